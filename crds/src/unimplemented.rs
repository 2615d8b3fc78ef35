//! Kinds of Istio and of the Gateway API that people have in their clusters and that nothing here acts on. Never ignored
//! in silence: who meets one says so, with what its absence means. It does not say which of them a cluster has.

use std::fmt;

/// A kind that has no effect here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unimplemented {
    /// The API group; several groups have a kind of the same name.
    pub group: &'static str,
    pub kind: &'static str,
    /// The name of its resource in API paths.
    pub plural: &'static str,
    /// Those that are served by its own definition, the stored one first.
    pub versions: &'static [&'static str],
    /// How access may differ from what its author expects.
    pub access: Access,
    /// What ignoring it means for security, in one sentence.
    pub meaning: &'static str,
}

impl Unimplemented {
    /// The name of its definition: `PLURAL.GROUP`.
    pub fn definition(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }
}

/// What ignoring a kind can do to access, compared with a control plane that acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Something may pass that it would have stopped.
    Wider,
    /// Something may fail that it would have let pass.
    Narrower,
    /// One or the other, depending on its content.
    Either,
    /// Who may call what stays as it is.
    Unchanged,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wider => "wider",
            Self::Narrower => "narrower",
            Self::Either => "either",
            Self::Unchanged => "unchanged",
        })
    }
}

/// All of them, by group and kind.
pub fn unimplemented() -> &'static [Unimplemented] {
    UNIMPLEMENTED
}

const EXTENSIONS: &str = "extensions.istio.io";
const GATEWAY_API: &str = "gateway.networking.k8s.io";
const NETWORKING: &str = "networking.istio.io";

const ALPHA: &[&str] = &["v1alpha1"];
const GATEWAY_VERSIONS: &[&str] = &["v1", "v1beta1"];
const GATEWAY_ALPHA: &[&str] = &["v1alpha2"];
const NETWORKING_VERSIONS: &[&str] = &["v1", "v1alpha3", "v1beta1"];

const fn row(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    versions: &'static [&'static str],
    access: Access,
    meaning: &'static str,
) -> Unimplemented {
    Unimplemented { group, kind, plural, versions, access, meaning }
}

#[rustfmt::skip]
const UNIMPLEMENTED: &[Unimplemented] = &[
    row(EXTENSIONS, "TrafficExtension", "trafficextensions", ALPHA, Access::Wider,
        "no script or module of it runs: what it would have refused passes"),
    row(EXTENSIONS, "WasmPlugin", "wasmplugins", ALPHA, Access::Wider,
        "no module of it runs: what a plug-in that authenticates or authorizes would have refused passes"),
    row(GATEWAY_API, "BackendTLSPolicy", "backendtlspolicies", &["v1", "v1alpha3"], Access::Either,
        "backends are called without the TLS it asks for, and their certificates are not checked as it says"),
    row(GATEWAY_API, "GRPCRoute", "grpcroutes", &["v1"], Access::Either,
        "its calls go where the client addresses them: no gateway serves them and no match of it holds back any"),
    row(GATEWAY_API, "Gateway", "gateways", GATEWAY_VERSIONS, Access::Narrower,
        "there is no gateway or waypoint for it: nothing enters through it, and policies that target it apply nowhere"),
    row(GATEWAY_API, "GatewayClass", "gatewayclasses", GATEWAY_VERSIONS, Access::Narrower,
        "no gateway of that class is run"),
    row(GATEWAY_API, "HTTPRoute", "httproutes", GATEWAY_VERSIONS, Access::Either,
        "requests go where the client addresses them: no gateway serves them and no match, filter or redirect of it applies"),
    row(GATEWAY_API, "ReferenceGrant", "referencegrants", &["v1beta1", "v1"], Access::Narrower,
        "nothing that needs its permission is done"),
    row(GATEWAY_API, "TCPRoute", "tcproutes", GATEWAY_ALPHA, Access::Narrower,
        "no gateway forwards its connections"),
    row(GATEWAY_API, "TLSRoute", "tlsroutes", &["v1", "v1alpha3", "v1alpha2"], Access::Narrower,
        "no gateway forwards its connections"),
    row(NETWORKING, "EnvoyFilter", "envoyfilters", &["v1alpha3"], Access::Either,
        "no filter or setting of it reaches Envoy: what such a filter would have refused passes"),
    row(NETWORKING, "Gateway", "gateways", NETWORKING_VERSIONS, Access::Narrower,
        "there is no gateway for it: nothing enters or leaves through it"),
    row(NETWORKING, "ProxyConfig", "proxyconfigs", &["v1beta1"], Access::Unchanged,
        "its settings of proxies (threads, environment, image) have no effect"),
    row(NETWORKING, "ServiceEntry", "serviceentries", NETWORKING_VERSIONS, Access::Narrower,
        "its hosts are not known: under REGISTRY_ONLY they cannot be called, otherwise they are called as unknown hosts, and its endpoints get no policy of their own"),
    row(NETWORKING, "VirtualService", "virtualservices", NETWORKING_VERSIONS, Access::Either,
        "requests go where the client addresses them: no match, rewrite, redirect, direct response, injected fault or JWT-claim route of it applies"),
    row(NETWORKING, "WorkloadGroup", "workloadgroups", NETWORKING_VERSIONS, Access::Narrower,
        "machines are not registered by it: write a WorkloadEntry for each"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::Kind;

    #[test]
    fn the_table_is_sorted_and_complete() {
        let names: Vec<_> = unimplemented().iter().map(|one| (one.group, one.kind)).collect();
        assert!(names.is_sorted(), "{names:?}");
        let definitions: BTreeSet<_> = unimplemented().iter().map(Unimplemented::definition).collect();
        assert_eq!(definitions.len(), names.len());
        for one in unimplemented() {
            assert!(!one.versions.is_empty() && !one.meaning.is_empty(), "{one:?}");
            assert_eq!(one.plural, one.plural.to_lowercase(), "{one:?}");
            assert!(!one.meaning.ends_with('.') && !one.meaning.contains('|'), "{one:?}");
            let read =
                Kind::ALL.into_iter().any(|kind| (kind.group(), kind.as_str()) == (one.group, one.kind));
            assert!(!read, "{} is implemented", one.kind);
        }
    }
}
