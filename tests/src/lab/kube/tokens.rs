//! Service-account tokens: those the API server hands out, and those only its signing key could make.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Kube;

pub(super) const ISSUER: &str = "https://kubernetes.default.svc";

/// What a token of [`Kube::mint_token`] says. The UIDs are not looked up: a wrong one is a test, too.
#[derive(Clone, Debug)]
pub struct Claims<'a> {
    pub namespace: &'a str,
    pub account: &'a str,
    /// The service account's UID.
    pub uid: &'a str,
    pub audience: &'a str,
    /// Name and UID.
    pub pod: Option<(&'a str, &'a str)>,
    /// Seconds from now; negative for one that has expired.
    pub expires: i64,
}

impl Kube {
    /// A token by TokenRequest, for `audience` (empty: the API server itself), bound to the pod (name, UID) if one is
    /// given. The API server grants at least 600 seconds; [`Kube::mint_token`] makes shorter ones.
    ///
    /// # Errors
    /// What the API server refused.
    pub async fn token(
        &self,
        namespace: &str,
        account: &str,
        audience: &str,
        pod: Option<(&str, &str)>,
        seconds: u32,
    ) -> Result<String> {
        let mut spec = json!({"expirationSeconds": seconds});
        if !audience.is_empty() {
            spec["audiences"] = json!([audience]);
        }
        if let Some((name, uid)) = pod {
            spec["boundObjectRef"] = json!({"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid});
        }
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = http::Request::post(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body.to_string().into_bytes())?;
        let answer: Value = self.client.request(request).await.context("TokenRequest")?;
        Ok(answer["status"]["token"].as_str().context("no token in the answer")?.to_owned())
    }

    /// A token that the API server would accept as its own, with any claims and lifetime.
    ///
    /// # Errors
    /// If it cannot be signed.
    pub fn mint_token(&self, claims: &Claims<'_>) -> Result<String> {
        let Claims { namespace, account, uid, audience, pod, expires } = claims;
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let mut kubernetes = json!({"namespace": namespace, "serviceaccount": {"name": account, "uid": uid}});
        if let Some((name, uid)) = pod {
            kubernetes["pod"] = json!({"name": name, "uid": uid});
        }
        let body = json!({
            "iss": ISSUER, "aud": [audience], "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "iat": now - 3600, "nbf": now - 3600, "exp": now + expires, "kubernetes.io": kubernetes,
        });
        let key = std::fs::read(self.folder().join("sa.key"))?;
        let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
        Ok(jsonwebtoken::encode(&header, &body, &jsonwebtoken::EncodingKey::from_ec_pem(&key)?)?)
    }

    /// A kubeconfig file (mode 0600) of a service account, made if it is not there: it may do what RBAC lets it.
    ///
    /// # Errors
    /// What the API server refused.
    pub async fn kubeconfig_of(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        self.namespace(namespace).await?;
        self.service_account(namespace, account).await?;
        let token = self.token(namespace, account, "", None, 7200).await?;
        self.kubeconfig(&format!("{namespace}-{account}"), &token)
    }
}
