//! One running instance and the ports on which it is served.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::protocol::Protocol;
use crate::service::Service;
use crate::visibility::IngressApp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadKind {
    Pod,
    WorkloadEntry,
}

/// A Pod or a WorkloadEntry, as far as anything here needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub kind: WorkloadKind,
    pub labels: Arc<BTreeMap<String, String>>,
    /// `default` where none is given.
    pub service_account: Arc<str>,
    /// Every address, primary first.
    pub addresses: Vec<IpAddr>,
    /// Container ports by name (Pod) or `ports` (WorkloadEntry), for named target ports.
    pub named_ports: BTreeMap<String, u16>,
    /// Offers mTLS: label `security.istio.io/tlsMode: istio`, or a WorkloadEntry with a service account (semantics §1.6).
    pub mutual_tls: bool,
    /// Running and Ready (a WorkloadEntry always is).
    pub ready: bool,
    /// Seconds since the epoch, 0 if unknown.
    pub created: i64,
    /// `metadata.uid`; `None` for what comes from files.
    pub uid: Option<Arc<str>>,
}

/// A port of a workload that some Service or its Sidecar names (semantics §3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundPort {
    /// The workload's own port.
    pub port: u16,
    pub protocol: Protocol,
    /// Where the application listens, if a Sidecar says so; else at the same port.
    pub app: Option<IngressApp>,
}

/// The declared ports of `workload`: target ports of the services that select it, ascending. Where two services name
/// the same port, the oldest (then by name, namespace) decides the protocol. UDP is skipped.
pub fn inbound_ports<'a>(
    workload: &Workload,
    services: impl IntoIterator<Item = &'a Service>,
) -> Vec<InboundPort> {
    let mut selecting: Vec<&Service> = services.into_iter().filter(|s| s.selects(workload)).collect();
    selecting.sort_by(|a, b| a.order().cmp(&b.order()));
    let mut ports = BTreeMap::new();
    for service in selecting {
        for port in &service.ports {
            if let Some(target) = port.target_on(workload) {
                ports.entry(target).or_insert(port.protocol);
            }
        }
    }
    ports.into_iter().map(|(port, protocol)| InboundPort { port, protocol, app: None }).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::service::{ServicePort, TargetPort};

    /// In namespace foo, labelled `app: shop`, with a port named web.
    pub(crate) fn workload(name: &str, address: &str) -> Workload {
        Workload {
            namespace: "foo".into(),
            name: name.into(),
            kind: WorkloadKind::Pod,
            labels: Arc::new([("app".to_owned(), "shop".to_owned())].into()),
            service_account: "default".into(),
            addresses: vec![address.parse().unwrap()],
            named_ports: [("web".to_owned(), 8081)].into(),
            mutual_tls: true,
            ready: true,
            created: 0,
            uid: None,
        }
    }

    /// In namespace foo, selecting `app: shop`.
    pub(crate) fn service(name: &str, created: i64, ports: &[(u16, TargetPort, Protocol)]) -> Service {
        let port = |(port, target, protocol): &(u16, TargetPort, Protocol)| ServicePort {
            name: format!("p{port}"),
            port: *port,
            target: target.clone(),
            protocol: *protocol,
        };
        Service {
            namespace: "foo".into(),
            name: name.into(),
            hostname: format!("{name}.foo.svc.cluster.local").into(),
            cluster_ips: vec![],
            ports: ports.iter().map(port).collect(),
            selector: Some([("app".to_owned(), "shop".to_owned())].into()),
            created,
            export_to: None,
        }
    }

    /// Semantics §3.1: target ports, and the oldest service decides what a port speaks.
    #[test]
    fn the_oldest_service_decides_a_ports_protocol() {
        let number = TargetPort::Number;
        let young =
            service("a", 2, &[(80, number(8080), Protocol::Http), (90, number(9090), Protocol::Auto)]);
        let old = service(
            "b",
            1,
            &[(81, number(8080), Protocol::Tcp), (82, TargetPort::Name("web".into()), Protocol::Http2)],
        );
        let mut elsewhere = service("c", 0, &[(80, number(8080), Protocol::Http)]);
        elsewhere.namespace = "bar".into();
        let missing = service("d", 0, &[(80, TargetPort::Name("missing".into()), Protocol::Http)]);
        let expected = [(8080, Protocol::Tcp), (8081, Protocol::Http2), (9090, Protocol::Auto)];
        let shop = workload("w", "10.0.0.1");
        for services in [[&young, &old, &elsewhere, &missing], [&missing, &elsewhere, &old, &young]] {
            let ports: Vec<_> =
                inbound_ports(&shop, services).into_iter().map(|p| (p.port, p.protocol)).collect();
            assert_eq!(ports, expected);
        }
    }

    #[test]
    fn services_of_one_age_are_ordered_by_name() {
        let a = service("a", 0, &[(80, TargetPort::Number(8080), Protocol::Http)]);
        let b = service("b", 0, &[(80, TargetPort::Number(8080), Protocol::Tcp)]);
        let ports = inbound_ports(&workload("w", "10.0.0.1"), [&b, &a]);
        assert_eq!(ports, [InboundPort { port: 8080, protocol: Protocol::Http, app: None }]);
    }
}
