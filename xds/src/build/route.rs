//! Route configurations. Every route has no timeout and no retries: who answers, and when, is the applications' matter.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh::{Protocol, Service};

use super::pb::route::{
    DirectResponseAction, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
    route_action::ClusterSpecifier, route_match::PathSpecifier,
};
use super::pb::{bool_value, millis};
use super::{OutboundService, cluster};

/// Everything to one inbound cluster.
pub(crate) fn inbound(cluster: &str) -> RouteConfiguration {
    single(cluster, "inbound")
}

/// Everything to one cluster.
pub(crate) fn single(cluster: &str, host: &str) -> RouteConfiguration {
    RouteConfiguration {
        name: cluster.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: host.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![to(cluster)],
            ..Default::default()
        }],
        validate_clusters: bool_value(false),
        ..Default::default()
    }
}

/// The hosts of one HTTP port number, for redirected traffic. The port that a client writes into `Host` does not matter: it
/// is this one.
pub(crate) fn port(
    allow_any: bool,
    namespace: &str,
    services: &[&OutboundService],
    number: u16,
) -> RouteConfiguration {
    let mut seen = BTreeSet::new();
    let mut hosts = Vec::new();
    for (service, _) in ports(services, |p| p.port == number && p.protocol.is_http()) {
        let domains: Vec<String> =
            names(service, namespace).into_iter().filter(|name| seen.insert(name.clone())).collect();
        let name = format!("{}:{number}", service.hostname);
        hosts.extend(host(name, domains, &cluster::outbound_name(number, &service.hostname)));
    }
    hosts.push(rest(allow_any));
    RouteConfiguration {
        name: number.to_string(),
        virtual_hosts: hosts,
        validate_clusters: bool_value(false),
        ignore_port_in_host_matching: true,
        ..Default::default()
    }
}

/// Every HTTP service by every name and port, for a proxy that is addressed as a forward proxy.
pub(crate) fn forward(name: &str, namespace: &str, services: &[&OutboundService]) -> RouteConfiguration {
    let mut seen = BTreeSet::new();
    let mut hosts = Vec::new();
    for (service, port) in ports(services, |p| p.protocol != Protocol::Tcp) {
        let number = port.port;
        let mut domains = Vec::new();
        for name in names(service, namespace) {
            domains.push(format!("{name}:{number}"));
            if number == 80 {
                domains.push(name);
            }
        }
        domains.retain(|domain| seen.insert(domain.clone()));
        let target = match port.protocol {
            Protocol::Auto => cluster::sniffed_http_name(number, &service.hostname),
            _ => cluster::outbound_name(number, &service.hostname),
        };
        hosts.extend(host(format!("{}:{number}", service.hostname), domains, &target));
    }
    hosts.push(nowhere());
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: hosts,
        validate_clusters: bool_value(false),
        ..Default::default()
    }
}

/// The ports that `wanted` accepts with their services, by host name.
fn ports<'a>(
    services: &[&'a OutboundService],
    wanted: impl Fn(&mesh::ServicePort) -> bool,
) -> Vec<(&'a Service, &'a mesh::ServicePort)> {
    let mut found: Vec<_> = services
        .iter()
        .flat_map(|s| s.ports.iter().map(|p| (&*s.service, &p.port)))
        .filter(|(_, port)| wanted(port))
        .collect();
    found.sort_by(|(a, x), (b, y)| (&a.hostname, x.port).cmp(&(&b.hostname, y.port)));
    found.dedup_by(|(a, x), (b, y)| (&a.hostname, x.port) == (&b.hostname, y.port));
    found
}

/// Every name under which a client in `namespace` may ask for `service`, in lower case.
pub(crate) fn names(service: &Service, namespace: &str) -> Vec<String> {
    let (name, ns) = (&service.name, &service.namespace);
    let mut names = vec![service.hostname.to_string(), format!("{name}.{ns}.svc"), format!("{name}.{ns}")];
    if **ns == *namespace {
        names.push(name.to_string());
    }
    names.extend(service.cluster_ips.iter().map(|ip| match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }));
    for name in &mut names {
        name.make_ascii_lowercase();
    }
    names
}

fn host(name: String, domains: Vec<String>, cluster: &str) -> Option<VirtualHost> {
    (!domains.is_empty()).then(|| VirtualHost {
        name,
        domains,
        routes: vec![to(cluster)],
        ..Default::default()
    })
}

/// A host that no service has.
fn rest(allow_any: bool) -> VirtualHost {
    if !allow_any {
        return nowhere();
    }
    VirtualHost {
        name: "allow_any".to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![to(cluster::PASSTHROUGH)],
        ..Default::default()
    }
}

fn nowhere() -> VirtualHost {
    VirtualHost {
        name: "block_all".to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![Route {
            name: "block_all".to_owned(),
            r#match: everything(),
            action: Some(Action::DirectResponse(DirectResponseAction { status: 502, ..Default::default() })),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn to(cluster: &str) -> Route {
    Route {
        name: "default".to_owned(),
        r#match: everything(),
        action: Some(Action::Route(RouteAction {
            timeout: millis(0),
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn everything() -> Option<RouteMatch> {
    Some(RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..Default::default() })
}
