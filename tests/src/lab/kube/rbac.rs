//! The rights that the chart gives to the controller and to the certificate authority, and no others.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Kube;
use crate::lab::programs::root;

/// As in the chart's files.
#[derive(Deserialize)]
struct Rules {
    cluster: Vec<Value>,
    namespace: Vec<Value>,
}

impl Kube {
    /// The service accounts `countersign` and `countersign-ca` of `istio-system`, with the rights of the chart's files.
    ///
    /// # Errors
    /// What the API server refused.
    pub async fn install_rights(&self) -> Result<()> {
        const NS: &str = "istio-system";
        for (account, file) in [("countersign", "controller-rules.yaml"), ("countersign-ca", "ca-rules.yaml")]
        {
            let path = root().join("charts/countersign/files").join(file);
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let Rules { cluster, namespace } = serde_yaml::from_str(&text.replace("{namespace}", NS))?;
            self.service_account(NS, account).await?;
            let subjects = json!([{"kind": "ServiceAccount", "name": account, "namespace": NS}]);
            for (role, binding, rules, metadata) in [
                ("ClusterRole", "ClusterRoleBinding", cluster, json!({"name": account})),
                ("Role", "RoleBinding", namespace, json!({"name": account, "namespace": NS})),
            ] {
                let api = "rbac.authorization.k8s.io/v1";
                self.put(json!({"apiVersion": api, "kind": role, "metadata": metadata, "rules": rules}))
                    .await?;
                let of = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": account});
                let bound = json!({
                    "apiVersion": api, "kind": binding, "metadata": metadata, "subjects": subjects, "roleRef": of,
                });
                self.put(bound).await?;
            }
        }
        Ok(())
    }
}
