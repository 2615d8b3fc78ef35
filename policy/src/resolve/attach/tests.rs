use std::collections::BTreeMap;

use std::sync::Arc;

use super::*;
use crate::model::{Action, ObjectName};

const ROOT: &str = "istio-system";

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn workload(namespace: &str, pairs: &[(&str, &str)]) -> WorkloadKey {
    WorkloadKey { namespace: namespace.into(), labels: Arc::new(labels(pairs)) }
}

fn gateway(name: &str) -> TargetRef {
    TargetRef { group: "gateway.networking.k8s.io".into(), kind: "Gateway".into(), name: name.into() }
}

/// `(AuthorizationPolicy and RequestAuthentication, PeerAuthentication)`.
#[track_caller]
fn check(namespace: &str, attachment: &Attachment, workload: &WorkloadKey, expected: (bool, bool)) {
    let scope = Scope::default();
    let meta = Meta::new(ObjectName::new(namespace, "p"));
    let (attachment, rules) = (attachment.clone(), Vec::new());
    let peer = PeerAuthentication {
        meta: meta.clone(),
        attachment: attachment.clone(),
        mode: None,
        ports: BTreeMap::new(),
    };
    let request = RequestAuthentication { meta: meta.clone(), attachment: attachment.clone(), rules };
    let authorization = AuthorizationPolicy { meta, attachment, action: Action::Deny, rules: Vec::new() };
    let attached = [authorization.attaches_to(&scope, workload), request.attaches_to(&scope, workload)];
    assert_eq!(attached, [expected.0; 2]);
    assert_eq!(peer.attaches_to(&scope, workload), expected.1);
}

#[test]
fn namespace_root_and_selector() {
    let whole = Attachment::Namespace;
    let app = Attachment::Labels(labels(&[("app", "a")]));
    let two = Attachment::Labels(labels(&[("app", "a"), ("tier", "x")]));
    let a = workload("foo", &[("app", "a"), ("other", "o")]);
    check("foo", &whole, &a, (true, true));
    check("foo", &whole, &workload("foo", &[]), (true, true));
    check("bar", &whole, &a, (false, false));
    check(ROOT, &whole, &a, (true, true));
    check("foo", &app, &a, (true, true));
    check("foo", &app, &workload("foo", &[("app", "b")]), (false, false));
    check("foo", &app, &workload("foo", &[]), (false, false));
    check("foo", &two, &a, (false, false));
    check("foo", &two, &workload("foo", &[("app", "a"), ("tier", "x")]), (true, true));
    check("bar", &app, &a, (false, false));
    // In the root namespace a selector reaches all namespaces, but never with PeerAuthentication.
    check(ROOT, &app, &a, (true, false));
    check(ROOT, &app, &workload("foo", &[]), (false, false));
    check(ROOT, &app, &workload(ROOT, &[("app", "a")]), (true, false));
}

#[test]
fn references_reach_gateways_only() {
    let gateways = Attachment::Targets(vec![gateway("other"), gateway("edge")]);
    let edge = workload("foo", &[(GATEWAY_LABEL, "edge"), ("app", "a")]);
    check("foo", &gateways, &workload("foo", &[("app", "a")]), (false, false));
    check("foo", &gateways, &edge, (true, false));
    check("foo", &gateways, &workload("foo", &[(GATEWAY_LABEL, "edges")]), (false, false));
    check("bar", &gateways, &edge, (false, false));
    check(ROOT, &gateways, &edge, (false, false));
    check("foo", &Attachment::Targets(vec![]), &edge, (false, false));
    for (group, kind) in [("", "Service"), ("gateway.networking.k8s.io", "GatewayClass"), ("", "Gateway")] {
        let target = TargetRef { group: group.into(), kind: kind.into(), name: "edge".into() };
        check("foo", &Attachment::Targets(vec![target]), &edge, (false, false));
    }
    // A selector works there too.
    check("foo", &Attachment::Labels(labels(&[("app", "a")])), &edge, (true, true));
}
