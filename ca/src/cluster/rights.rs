//! What the certificate authority may do in the API server: the one table that its RBAC manifests are made of. It asks for
//! nothing and grants nothing.

use serde::Serialize;

/// Where a right is granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In all namespaces.
    Cluster,
    /// In the control plane's namespace.
    Namespace,
}

/// One right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    pub scope: Scope,
    /// Empty for the core group.
    pub api_group: &'static str,
    pub resource: &'static str,
    /// Only objects of these names; empty for any.
    pub names: &'static [&'static str],
    pub verbs: &'static [&'static str],
    pub why: &'static str,
}

/// All of them.
pub const RIGHTS: &[Right] = &[
    Right {
        scope: Scope::Cluster,
        api_group: "authentication.k8s.io",
        resource: "tokenreviews",
        names: &[],
        verbs: &["create"],
        why: "whom a caller's token speaks for",
    },
    Right {
        scope: Scope::Cluster,
        api_group: "",
        resource: "pods",
        names: &[],
        verbs: &["get", "list"],
        why: "whether the caller's pod lives",
    },
    Right {
        scope: Scope::Cluster,
        api_group: "",
        resource: "namespaces",
        names: &[],
        verbs: &["list", "watch"],
        why: "each gets the roots",
    },
    Right {
        scope: Scope::Cluster,
        api_group: "",
        resource: "configmaps",
        names: &[super::CONFIG_MAP],
        verbs: &["list", "watch", "patch", "create"],
        why: "the roots of every namespace",
    },
    Right {
        scope: Scope::Namespace,
        api_group: "",
        resource: "secrets",
        names: &[super::SECRET],
        verbs: &["get", "list", "watch", "update"],
        why: "the authority's keys",
    },
    Right {
        scope: Scope::Namespace,
        api_group: "",
        resource: "secrets",
        names: &[super::PLUGGED],
        verbs: &["get", "list", "watch"],
        why: "an authority that the operator plugged in",
    },
    Right {
        scope: Scope::Namespace,
        api_group: "",
        resource: "secrets",
        names: &[],
        verbs: &["create"],
        why: "making the keys; RBAC cannot limit a creation to a name",
    },
    Right {
        scope: Scope::Namespace,
        api_group: "",
        resource: "configmaps",
        names: &[],
        verbs: &["get", "list", "watch"],
        why: "the mesh configuration",
    },
];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    api_groups: [&'static str; 1],
    resources: [&'static str; 1],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    resource_names: &'static [&'static str],
    verbs: &'static [&'static str],
}

/// The rules of a ClusterRole or Role for `scope`, as JSON.
pub fn rules(scope: Scope) -> serde_json::Value {
    let rules = RIGHTS.iter().filter(|right| right.scope == scope).map(|right| {
        let Right { scope: _, api_group, resource, names, verbs, why: _ } = *right;
        Rule { api_groups: [api_group], resources: [resource], resource_names: names, verbs }
    });
    serde_json::to_value(rules.collect::<Vec<_>>()).expect("strings and lists are JSON")
}

/// The file that the chart includes: YAML with the lists `cluster` and `namespace`.
pub fn manifest() -> String {
    use std::fmt::Write as _;
    let mut text =
        "# What the certificate authority may do in the API server. Made from ca/src/cluster/rights.rs:\n\
                    # BLESS=1 cargo test -p ca rights\n"
            .to_owned();
    for (scope, name) in [(Scope::Cluster, "cluster"), (Scope::Namespace, "namespace")] {
        let _ = writeln!(text, "{name}:");
        for right in RIGHTS.iter().filter(|right| right.scope == scope) {
            let Right { scope: _, api_group, resource, names, verbs, why } = *right;
            let _ = writeln!(text, "# {why}");
            let _ = writeln!(text, "- apiGroups: [{api_group:?}]\n  resources: [{resource:?}]");
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
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/countersign/files/ca-rules.yaml");
        if std::env::var_os("BLESS").is_some() {
            std::fs::create_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
            std::fs::write(path, manifest()).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(found == manifest(), "out of date: BLESS=1 cargo test -p ca rights");
    }
}
