//! What the controller may do in the API server: the one table that its RBAC manifests and `countersign check` are made
//! of. It asks for nothing and grants nothing. The certificate authority has a table of its own.

use std::collections::BTreeMap;

/// Where a right is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// In all namespaces, or of a kind without a namespace.
    Cluster,
    /// In the control plane's namespace.
    Namespace,
}

/// What its absence means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The controller does not become ready, or does not stay so, or turns proxies away.
    Required,
    /// Something is missing, and says so; policies are enforced all the same.
    Optional,
}

/// One right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    pub scope: Scope,
    /// Empty for the core group.
    pub api_group: &'static str,
    /// Subresources as `pods/status`.
    pub resources: Vec<&'static str>,
    /// Only objects of these names; empty for any. `{namespace}` stands for the control plane's.
    pub names: &'static [&'static str],
    pub verbs: &'static [&'static str],
    pub why: &'static str,
    pub need: Need,
}

impl Right {
    fn required(api_group: &'static str, resources: &[&'static str], verbs: &'static [&'static str]) -> Self {
        let (scope, need, resources) = (Scope::Cluster, Need::Required, resources.to_vec());
        Self { scope, api_group, resources, names: &[], verbs, why: "", need }
    }

    fn optional(api_group: &'static str, resources: &[&'static str], verbs: &'static [&'static str]) -> Self {
        Self { need: Need::Optional, ..Self::required(api_group, resources, verbs) }
    }

    /// In the control plane's namespace only.
    fn here(self) -> Self {
        Self { scope: Scope::Namespace, ..self }
    }

    fn named(self, names: &'static [&'static str]) -> Self {
        Self { names, ..self }
    }

    fn so(self, why: &'static str) -> Self {
        Self { why, ..self }
    }
}

const FOLLOW: &[&str] = &["list", "watch"];
const READ: &[&str] = &["get", "list", "watch"];
const POLICIES: [&str; 3] = ["authorizationpolicies", "peerauthentications", "requestauthentications"];
const POLICY_STATUS: [&str; 3] =
    ["authorizationpolicies/status", "peerauthentications/status", "requestauthentications/status"];

/// All of them.
pub fn rights() -> Vec<Right> {
    let mut rights = vec![
        Right::required("", &["namespaces", "pods", "services", "serviceaccounts"], FOLLOW)
            .so("which workloads there are, and whose they are"),
        Right::required("discovery.k8s.io", &["endpointslices"], FOLLOW).so("where services are served"),
        Right::required("security.istio.io", &POLICIES, READ).so("the policies"),
        Right::required("apiextensions.k8s.io", &["customresourcedefinitions"], READ)
            .so("whether a policy was deleted, or its definition uninstalled"),
        Right::required("authentication.k8s.io", &["tokenreviews"], &["create"])
            .so("whom a proxy's token speaks for"),
        Right::required("", &["configmaps"], READ).here().so("the mesh configuration and the mesh's roots"),
        Right::optional("networking.istio.io", &["sidecars", "workloadentries"], FOLLOW)
            .so("workloads outside the cluster, and who may call what; required where the kinds are defined"),
        Right::optional("networking.istio.io", &["destinationrules"], FOLLOW)
            .so("how services are called; required where the kind is defined"),
        Right::optional("telemetry.istio.io", &["telemetries"], FOLLOW)
            .so("which access logs are written; required where the kind is defined"),
        Right::optional("security.istio.io", &POLICY_STATUS, &["get", "patch", "update"])
            .so("telling in each policy's status where it is enforced"),
        Right::optional("events.k8s.io", &["events"], &["create", "patch"])
            .so("telling what happened to policies"),
        Right::optional(
            "coordination.k8s.io",
            &["leases"],
            &["get", "list", "watch", "create", "update", "patch", "delete"],
        )
        .here()
        .so("which replicas there are, and which of them writes"),
        Right::optional("", &["secrets"], &["get", "list", "watch", "update"])
            .here()
            .named(&[super::webhook::SECRET])
            .so("the admission webhook's certificate"),
        Right::optional("", &["secrets"], &["create"])
            .here()
            .so("making the webhook's certificate; RBAC cannot limit a creation to a name"),
        Right::optional(
            "admissionregistration.k8s.io",
            &["validatingwebhookconfigurations", "mutatingwebhookconfigurations"],
            &["get", "list", "watch", "patch"],
        )
        .named(&["countersign-{namespace}"])
        .so("telling the API server the webhook's authorities"),
        Right::optional("", &["serviceaccounts/token"], &["create"])
            .here()
            .named(&["countersign"])
            .so("outside a cluster only: this process's own token"),
    ];
    let mut ignored: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for kind in crds::unimplemented() {
        ignored.entry(kind.group).or_default().push(kind.plural);
    }
    rights.extend(ignored.into_iter().map(|(group, resources)| {
        Right::optional(group, &resources, FOLLOW).so("counting what has no effect here; only names are read")
    }));
    rights
}

/// The file that the chart includes: YAML with the lists `cluster` and `namespace`.
pub fn manifest() -> String {
    use std::fmt::Write as _;
    let mut text =
        "# What the controller may do in the API server. Made from source/src/kubernetes/rights.rs:\n\
                    # BLESS=1 cargo test -p source rights\n"
            .to_owned();
    let all = rights();
    for (scope, name) in [(Scope::Cluster, "cluster"), (Scope::Namespace, "namespace")] {
        let _ = writeln!(text, "{name}:");
        for right in all.iter().filter(|right| right.scope == scope) {
            let Right { scope: _, api_group, resources, names, verbs, why, need } = right;
            let optional = if *need == Need::Optional { " (optional)" } else { "" };
            let _ = writeln!(text, "# {why}{optional}");
            let _ = writeln!(text, "- apiGroups: [{api_group:?}]\n  resources: {resources:?}");
            if !names.is_empty() {
                let _ = writeln!(text, "  resourceNames: {names:?}");
            }
            let _ = writeln!(text, "  verbs: {verbs:?}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_charts_rights_are_these() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/countersign/files/controller-rules.yaml");
        if std::env::var_os("BLESS").is_some() {
            std::fs::create_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
            std::fs::write(path, manifest()).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(found == manifest(), "out of date: BLESS=1 cargo test -p source rights");
    }

    /// What is watched here is in the table; nothing in it is more than was thought of.
    #[test]
    fn what_is_watched_is_allowed_and_nothing_is_unlimited() {
        let all = rights();
        for kind in crds::Kind::ALL {
            let plural = super::super::objects::plural(kind);
            let allowed = all.iter().any(|right| {
                right.api_group == kind.group()
                    && right.resources.contains(&plural)
                    && FOLLOW.iter().all(|verb| right.verbs.contains(verb))
            });
            assert!(allowed, "{kind}");
        }
        for right in &all {
            assert!(!right.why.is_empty() && !right.resources.is_empty(), "{right:?}");
            let words = right.resources.iter().chain(right.verbs).chain([&right.api_group]);
            assert!(words.into_iter().all(|word| !word.contains('*')), "{right:?}");
            // Other people's secrets are none of ours.
            let secrets = right.resources.contains(&"secrets");
            assert!(
                !secrets
                    || (right.scope == Scope::Namespace
                        && (!right.names.is_empty() || right.verbs == ["create"]))
            );
        }
    }
}
