//! Which services a client may call: what `exportTo` of a service gives, and what a Sidecar takes of that (semantics §1.6).
//! Pure. Nothing here decides what a server admits: a client's proxy can be gone round.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::service::{Service, ServicePort};
use crate::workload::InboundPort;

/// `exportTo`: the namespaces whose proxies may know of something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExportTo {
    /// `*`.
    All,
    /// Every one that is named, and its own for `.`; empty for `~` alone.
    Some { own: bool, namespaces: BTreeSet<Arc<str>> },
}

impl ExportTo {
    /// `~`: nobody.
    pub fn nobody() -> Self {
        Self::Some { own: false, namespaces: BTreeSet::new() }
    }

    /// Whether clients in `client` may know of what is in `owner`.
    pub fn reaches(&self, owner: &str, client: &str) -> bool {
        match self {
            Self::All => true,
            Self::Some { own, namespaces } => (*own && owner == client) || namespaces.contains(client),
        }
    }
}

/// A Sidecar (networking.istio.io), as far as policy and visibility need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Seconds since the epoch, 0 if unknown.
    pub created: i64,
    /// `None`: every workload of its namespace, and in the root namespace of every namespace without one of its own.
    pub selector: Option<BTreeMap<String, String>>,
    pub scope: Arc<Scope>,
    /// Empty: the inbound ports are those of the Services.
    pub ingress: Vec<Ingress>,
}

/// What the clients under one Sidecar may call. Without any it is the default: all that is exported to them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope {
    /// `None`: every host.
    pub egress: Option<Vec<Egress>>,
    /// `outboundTrafficPolicy.mode` is ALLOW_ANY; `None`: as the mesh configuration says.
    pub allow_any: Option<bool>,
}

/// `egress[]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Egress {
    /// Only this port of the hosts. `None`: every port that no other entry names.
    pub port: Option<u16>,
    pub hosts: Vec<HostRule>,
}

/// `egress[].hosts[]`: `NAMESPACE/HOST`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostRule {
    /// `None`: `*`. What was `.` is the Sidecar's namespace here; a rule for `~` is none.
    pub namespace: Option<Arc<str>>,
    pub host: HostMatch,
}

/// A host name, or every name that ends in something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostMatch {
    /// `*`.
    Any,
    Exact(Arc<str>),
    /// `*.example.com`, without the `*`.
    Suffix(Arc<str>),
}

/// `ingress[]`: a port of the workload itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingress {
    pub port: u16,
    pub protocol: crate::Protocol,
    /// Where the application listens; `None`: where the connection was going.
    pub app: Option<IngressApp>,
}

/// `ingress[].defaultEndpoint`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IngressApp {
    /// `127.0.0.1:PORT` or `[::1]:PORT`.
    Loopback(std::net::SocketAddr),
    /// `0.0.0.0:PORT` or `[::]:PORT`: the workload's own address.
    Own { ipv6: bool, port: u16 },
    /// `unix://PATH`.
    Pipe(Arc<str>),
}

impl HostMatch {
    /// `*`, `*.SUFFIX`, or a whole name; without regard to case.
    pub fn parse(host: &str) -> Self {
        let host = host.to_ascii_lowercase();
        match host.strip_prefix('*') {
            Some("") => Self::Any,
            Some(suffix) => Self::Suffix(suffix.into()),
            None => Self::Exact(host.into()),
        }
    }

    /// Whether it covers all of `host`, which may be a wildcard itself.
    pub fn covers(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(name) => name.eq_ignore_ascii_case(host),
            Self::Suffix(suffix) => {
                let start = host.len().wrapping_sub(suffix.len());
                // `*.a.b` covers `x.a.b` and `*.a.b`, not `a.b` or `.a.b`.
                host.len() > suffix.len()
                    && host.get(start..).is_some_and(|end| end.eq_ignore_ascii_case(suffix))
            }
        }
    }
}

impl Egress {
    fn covers(&self, service: &Service) -> bool {
        let rule = |rule: &HostRule| {
            rule.namespace.as_ref().is_none_or(|ns| *ns == service.namespace)
                && rule.host.covers(&service.hostname)
        };
        self.hosts.iter().any(rule)
    }
}

impl Scope {
    /// Nothing may be called: what a Sidecar is read as that cannot be understood.
    pub fn nothing() -> Self {
        Self { egress: Some(Vec::new()), allow_any: Some(false) }
    }

    /// Whether `port` of `service` is among the hosts; what the service's `exportTo` says counts beside.
    ///
    /// An entry for a port number is all there is for HTTP on that number, because such hosts share one listener. At
    /// other ports, entries without a port count as well.
    pub fn covers(&self, service: &Service, port: &ServicePort) -> bool {
        let Some(egress) = &self.egress else { return true };
        let exact = |entry: &&Egress| entry.port == Some(port.port);
        if egress.iter().filter(exact).any(|entry| entry.covers(service)) {
            return true;
        }
        let claimed = port.protocol.is_http() && egress.iter().any(|entry| exact(&entry));
        !claimed && egress.iter().filter(|entry| entry.port.is_none()).any(|entry| entry.covers(service))
    }
}

impl Sidecar {
    /// The ports of `ingress`, ascending.
    pub fn inbound_ports(&self) -> Vec<InboundPort> {
        let port = |Ingress { port, protocol, app }: &Ingress| InboundPort {
            port: *port,
            protocol: *protocol,
            app: app.clone(),
        };
        let mut ports: Vec<_> = self.ingress.iter().map(port).collect();
        ports.sort_by_key(|port| port.port);
        ports
    }

    fn order(&self) -> (i64, &str) {
        (self.created, &self.name)
    }

    fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.as_ref().is_some_and(|selector| selector.iter().all(|(k, v)| labels.get(k) == Some(v)))
    }
}

/// The Sidecar of a workload with `labels`: one of its namespace (`own`) that selects it, one there without selector, one of
/// the root namespace without selector. Of several the oldest, then by name.
pub fn sidecar<'a>(
    labels: &BTreeMap<String, String>,
    own: impl Iterator<Item = &'a Sidecar> + Clone,
    root: impl Iterator<Item = &'a Sidecar>,
) -> Option<&'a Sidecar> {
    let oldest = |a: &&Sidecar, b: &&Sidecar| a.order().cmp(&b.order());
    let selecting = own.clone().filter(|s| s.selects(labels)).min_by(oldest);
    let everywhere = |s: &&Sidecar| s.selector.is_none();
    selecting
        .or_else(|| own.filter(everywhere).min_by(oldest))
        .or_else(|| root.filter(everywhere).min_by(oldest))
}

/// The ports of `service` that clients in `client` under `scope` may call: `None` if there are none, `Some(None)` if all of
/// them. `default` is what a service without `exportTo` is read as.
pub fn visible(
    client: &str,
    scope: &Scope,
    service: &Service,
    default: &ExportTo,
) -> Option<Option<Vec<u16>>> {
    let export_to = service.export_to.as_ref().unwrap_or(default);
    if !export_to.reaches(&service.namespace, client) {
        return None;
    }
    if scope.egress.is_none() {
        return Some(None);
    }
    let ports: Vec<u16> =
        service.ports.iter().filter(|port| scope.covers(service, port)).map(|port| port.port).collect();
    match ports.len() {
        // Without ports there is nothing to call.
        0 => None,
        all if all == service.ports.len() => Some(None),
        _ => Some(Some(ports)),
    }
}

#[cfg(test)]
mod tests;
