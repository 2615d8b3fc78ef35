//! Which listener answers what, and to whom: the one route table of the control plane. The gRPC ports are held to it by
//! [`gate`], the monitoring port by `runtime::http` (a test compares), the page `docs/reference/ports-and-files.md` is
//! made from it. Services judge further (whose proxies, whose certificate); nothing here is a reason to judge less.

mod caller;
mod gate;
#[cfg(test)]
mod tests;

pub(crate) use caller::caller;
pub(crate) use gate::Gate;

/// A listener, by its usual port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// 15010, gRPC without TLS.
    Plaintext,
    /// 15012 of `controller` and `standalone`, gRPC over TLS.
    Secure,
    /// 15012 of `ca`, gRPC over TLS.
    Ca,
    /// 15014, HTTP.
    Monitoring,
    /// 15017, HTTPS.
    Webhook,
}

/// Who may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anybody who reaches the port.
    Anybody,
    /// Peers on a loopback address of this machine (or pod) that also ask by a loopback name.
    Loopback,
    /// Whoever shows a verified identity: a certificate of the mesh, or a service-account token.
    Identity,
    /// Whoever shows what the service itself judges anew: a token or a certificate.
    OwnProof,
    /// The control plane's own service account, by certificate.
    ControlPlane,
    /// The API server, which has no identity that could be asked for: the port answers nothing but questions about what
    /// the caller itself sent.
    ApiServer,
}

impl Access {
    #[cfg(test)]
    fn says(self) -> &'static str {
        match self {
            Self::Anybody => "anybody who reaches it",
            Self::Loopback => "callers on the same machine or in the same pod, by a loopback address",
            Self::Identity => "a verified identity (certificate or token)",
            Self::OwnProof => "the caller's own proof (token, certificate), judged by the service",
            Self::ControlPlane => "the control plane's own identity (certificate)",
            Self::ApiServer => "the API server",
        }
    }
}

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) port: Port,
    /// The path of an HTTP or gRPC request.
    pub(crate) path: &'static str,
    pub(crate) access: Access,
    /// What is judged beyond that.
    pub(crate) further: &'static str,
}

const fn route(port: Port, path: &'static str, access: Access, further: &'static str) -> Route {
    Route { port, path, access, further }
}

const ADS: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
const DELTA_ADS: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const CERTIFICATES: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// The table.
#[rustfmt::skip]
pub(crate) static ROUTES: &[Route] = &[
    route(Port::Plaintext, ADS, Access::Anybody, "on loopback unless told otherwise; no secrets, no debug types"),
    route(Port::Plaintext, DELTA_ADS, Access::Anybody, "the same"),
    route(Port::Secure, ADS, Access::Identity, "the identity must be the registered one of the node id's workload, a token its own pod's"),
    route(Port::Secure, DELTA_ADS, Access::Identity, "the same"),
    route(Port::Secure, CERTIFICATES, Access::OwnProof, "`controller` hands the caller's own token on to `ca`; renewals by certificate go to `ca` itself"),
    route(Port::Secure, "/countersign.ca.v1.Enrollment/Join", Access::OwnProof, "`standalone` alone: a join token"),
    route(Port::Secure, "/countersign.ca.v1.Enrollment/Renew", Access::OwnProof, "`standalone` alone: the agent's certificate"),
    route(Port::Secure, "/countersign.receipts.v1.Receipts/Watch", Access::ControlPlane, "`controller` alone: what the other replicas' proxies enforce"),
    route(Port::Ca, CERTIFICATES, Access::OwnProof, "the identity comes from the CA's own review of it"),
    route(Port::Monitoring, "/healthz", Access::Anybody, ""),
    route(Port::Monitoring, "/ready", Access::Anybody, ""),
    route(Port::Monitoring, "/metrics", Access::Anybody, "numbers without names of workloads"),
    route(Port::Monitoring, "/version", Access::Anybody, ""),
    route(Port::Monitoring, "/debug/log", Access::Loopback, "GET: what is logged; PUT: changes it"),
    route(Port::Monitoring, "/status", Access::Loopback, "objects, proxies, findings; `controller` and `standalone` alone"),
    route(Port::Webhook, "/validate", Access::ApiServer, "`controller` alone"),
    route(Port::Webhook, "/inject", Access::ApiServer, "`controller` alone, with `--injection-config`"),
    route(Port::Webhook, "/ready", Access::Anybody, "`controller` alone"),
];

/// Of the xDS types on one stream: which port serves them, and what is judged beyond the table above.
#[cfg(test)]
#[rustfmt::skip]
static TYPES: &[(&str, &str, &str)] = &[
    ("`Cluster`, `ClusterLoadAssignment`, `Listener`, `RouteConfiguration`, `TypedExtensionConfig`", "15010, 15012", "one's own workload's alone"),
    ("`Secret`", "none", "certificates come from the agent beside the proxy"),
    ("`istio.io/debug/syncz`, `istio.io/debug/config_dump`", "15012", "proxies of one's own namespace; the root namespace sees all"),
];

/// The table's line for a request.
pub(crate) fn find(port: Port, path: &str) -> Option<&'static Route> {
    ROUTES.iter().find(|route| route.port == port && route.path == path)
}

/// The tables as the documentation shows them.
#[cfg(test)]
fn markdown() -> String {
    let mut text = String::from("| listener | path | who may call | further |\n|---|---|---|---|\n");
    for Route { port, path, access, further } in ROUTES {
        let port = match port {
            Port::Plaintext => "15010",
            Port::Secure => "15012",
            Port::Ca => "15012 of `ca`",
            Port::Monitoring => "15014",
            Port::Webhook => "15017",
        };
        text += &format!("| {port} | `{path}` | {} | {further} |\n", access.says());
    }
    text += "\n| xDS type | port | whose |\n|---|---|---|\n";
    for (types, port, whose) in TYPES {
        text += &format!("| {types} | {port} | {whose} |\n");
    }
    text
}
