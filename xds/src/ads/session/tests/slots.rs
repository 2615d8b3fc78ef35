//! Policy slots with a meaning: three requests, of which rules name some.

use std::collections::BTreeMap;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::rbac::v3 as rbac;
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action;
use envoy_types::pb::google::protobuf::Any;
use proptest::prelude::*;
use prost::Message;

use crate::build::encode::{HttpRbac, Rules, any};
use crate::resource::Resource;

pub(super) const NAMES: [&str; 6] = [
    "inbound.rbac.audit",
    "inbound.rbac.deny",
    "inbound.rbac.allow",
    "inbound.jwt_authn",
    "inbound.custom.a.rbac",
    "inbound.custom.b.rbac",
];
const REQUESTS: u8 = 3;
/// A rule that the proxy cannot read.
const BAD: &str = "bad";

/// What a proxy has of each slot.
pub(super) type Slots = BTreeMap<String, Resource>;

/// Requests are bits.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Policy {
    pub(super) audit: u8,
    pub(super) deny: u8,
    /// What JWT refuses, and what each of two external authorizers is asked about (and refuses).
    pub(super) jwt: u8,
    pub(super) custom: [u8; 2],
    /// `None`: no ALLOW policy, everything passes.
    pub(super) allow: Option<u8>,
    pub(super) bad_deny: bool,
    pub(super) bad_allow: bool,
}

pub(super) fn policies() -> impl Strategy<Value = Policy> {
    let bits = 0..1u8 << REQUESTS;
    let some = || prop_oneof![2 => Just(0), 1 => 0..1u8 << REQUESTS];
    let others = (some(), [some(), some()]);
    (0..3u8, bits.clone(), proptest::option::weighted(0.7, bits), 0..10u8, others).prop_map(
        |(audit, deny, allow, bad, (jwt, custom))| Policy {
            audit,
            deny,
            jwt,
            custom,
            allow,
            bad_deny: bad == 0,
            bad_allow: bad == 1 && allow.is_some(),
        },
    )
}

impl Policy {
    pub(super) fn refused(&self) -> bool {
        self.bad_deny || self.bad_allow
    }

    pub(super) fn slots(&self) -> Slots {
        let Self { audit, deny, jwt, custom, allow, bad_deny, bad_allow } = self;
        let some = |bits: &u8| (*bits != 0).then_some(*bits);
        let deny_rules = (*deny != 0 || *bad_deny).then_some(*deny);
        let audit = (*audit != 0).then_some(*audit);
        [
            slot(NAMES[0], Action::Log, audit, false),
            slot(NAMES[1], Action::Deny, deny_rules, *bad_deny),
            slot(NAMES[2], Action::Allow, *allow, *bad_allow),
            slot(NAMES[3], Action::Deny, some(jwt), false),
            shadow(NAMES[4], some(&custom[0])),
            shadow(NAMES[5], some(&custom[1])),
        ]
        .into_iter()
        .map(|r| (r.name.to_string(), r))
        .collect()
    }

    fn admits(&self) -> u8 {
        self.allow.unwrap_or(everything()) & !self.deny & !self.jwt & !self.custom[0] & !self.custom[1]
    }
}

fn everything() -> u8 {
    (1 << REQUESTS) - 1
}

/// A slot whose rules name `requests`; `None`: without rules.
pub(super) fn slot(name: &str, action: Action, requests: Option<u8>, bad: bool) -> Resource {
    made(name, &HttpRbac { rules: named(action, requests, bad), ..HttpRbac::default() })
}

/// The first half of a CUSTOM pair.
pub(super) fn shadow(name: &str, requests: Option<u8>) -> Resource {
    made(name, &HttpRbac { shadow_rules: named(Action::Deny, requests, false), ..HttpRbac::default() })
}

fn named(action: Action, requests: Option<u8>, bad: bool) -> Option<Rules> {
    requests.map(|requests| {
        let named = (0..REQUESTS).filter(|r| requests & 1 << r != 0).map(|r| r.to_string());
        let policies = named.chain(bad.then(|| BAD.to_owned())).map(|name| (name, rbac::Policy::default()));
        Rules { action: action as i32, policies: policies.collect() }
    })
}

fn made(name: &str, filter: &HttpRbac) -> Resource {
    let config = TypedExtensionConfig { name: name.to_owned(), typed_config: Some(any(filter)) };
    Resource::new(name, Bytes::from(any(&config).encode_to_vec()))
}

pub(super) fn rules(slot: &Resource) -> Option<Rules> {
    let HttpRbac { rules, shadow_rules, .. } = filter(slot);
    rules.or(shadow_rules)
}

fn filter(slot: &Resource) -> HttpRbac {
    let any = Any::decode(&*slot.any).expect("an Any");
    let config = TypedExtensionConfig::decode(&*any.value).expect("an extension config");
    assert_eq!(*config.name, *slot.name);
    HttpRbac::decode(&*config.typed_config.expect("a config").value).expect("an RBAC filter")
}

pub(super) fn refused(slot: &Resource) -> bool {
    rules(slot).is_some_and(|rules| rules.policies.contains_key(BAD))
}

/// What passes one slot.
fn passes(slot: &Resource) -> u8 {
    let Some(rules) = rules(slot) else { return everything() };
    let bits = |name: &String| name.parse::<u8>().map_or(everything(), |r| 1 << r);
    let named = rules.policies.keys().map(bits).fold(0, |all, one| all | one);
    match Action::try_from(rules.action).expect("an action") {
        Action::Allow => named,
        Action::Deny => !named & everything(),
        Action::Log => everything(),
    }
}

/// What is in force admits nothing that all of `policies` refuse. A proxy that lacks a slot does not open its listener.
pub(super) fn check(slots: &Slots, policies: &[Policy]) {
    if slots.len() < NAMES.len() {
        return;
    }
    let admitted = slots.values().map(passes).fold(everything(), |all, one| all & one);
    let justified = policies.iter().map(Policy::admits).fold(0, |all, one| all | one);
    assert_eq!(
        admitted & !justified,
        0,
        "admits {admitted:03b} where {policies:?} admit at most {justified:03b}"
    );
}
