use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::model::{Action, Attachment, Meta, MtlsMode, Rule};
use crate::set::{PolicySet, WorkloadKey};

fn meta(name: &str) -> Meta {
    Meta { drain_on_revoke: true, ..Meta::new(ObjectName::new("foo", name)) }
}

fn deny(meta: Meta, rules: Vec<Rule>) -> Arc<AuthorizationPolicy> {
    let attachment = Attachment::Namespace;
    Arc::new(AuthorizationPolicy { meta, attachment, action: Action::Deny, rules })
}

fn peer(name: &str, created: i64, mode: MtlsMode) -> Arc<PeerAuthentication> {
    let meta = Meta { created, ..meta(name) };
    let (attachment, ports) = (Attachment::Namespace, BTreeMap::new());
    Arc::new(PeerAuthentication { meta, attachment, mode: Some(mode), ports })
}

fn drain(set: &PolicySet, namespace: &str) -> Vec<(ObjectName, u64)> {
    let labels = Arc::new(BTreeMap::from([("app".to_owned(), "a".to_owned())]));
    crate::resolve(set, &WorkloadKey { namespace: namespace.into(), labels }).drain
}

#[test]
fn every_kind_drains_the_workloads_it_reaches() {
    let mut set = PolicySet::default();
    let request = RequestAuthentication { meta: meta("r"), attachment: Attachment::Namespace, rules: vec![] };
    set.put_request(Arc::new(request));
    set.put_authorization(deny(meta("d"), vec![]));
    set.put_peer(peer("p", 1, MtlsMode::Strict));
    set.put_peer(peer("younger", 2, MtlsMode::Strict));
    set.put_authorization(deny(Meta { drain_on_revoke: false, ..meta("quiet") }, vec![]));
    set.put_authorization(deny(Meta { dry_run: true, ..meta("dry") }, vec![]));
    let names: Vec<String> = drain(&set, "foo").iter().map(|(id, _)| id.name.to_string()).collect();
    assert_eq!(names, ["d", "p", "r"]);
    assert_eq!(drain(&set, "bar"), []);
}

#[test]
fn what_says_the_same_has_the_same_digest() {
    let with = |edit: &dyn Fn(&mut AuthorizationPolicy)| {
        let mut policy = AuthorizationPolicy::clone(&deny(meta("d"), vec![Rule::default()]));
        edit(&mut policy);
        let mut set = PolicySet::default();
        set.put_authorization(Arc::new(policy));
        drain(&set, "foo")
    };
    let original = with(&|_| {});
    let selector = Attachment::Labels(BTreeMap::from([("app".to_owned(), "a".to_owned())]));
    assert_eq!(with(&|p| p.meta.created = 7), original);
    assert_eq!(with(&|p| p.attachment = selector.clone()), original);
    assert_ne!(with(&|p| p.action = Action::Allow), original);
    assert_ne!(with(&|p| p.rules.clear()), original);
    assert_ne!(with(&|p| p.meta.dry_run = true), original);

    let mtls = |mode| {
        let mut set = PolicySet::default();
        set.put_peer(peer("p", 1, mode));
        drain(&set, "foo")
    };
    assert_eq!(mtls(MtlsMode::Strict), mtls(MtlsMode::Strict));
    assert_ne!(mtls(MtlsMode::Strict), mtls(MtlsMode::Permissive));
}
