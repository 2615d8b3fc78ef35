//! The order in which policy slots change, so that no mixture of old and new admits what both refuse (design decision 3):
//! DENY = old ∪ new, the other slots, DENY = new. Pure; who acknowledged what is the session's business.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::held::Holding;
use crate::build::rbac;
use crate::resource::{Layers, Resource};

type Change = (Arc<str>, Option<Resource>);

/// The part of `changes` to send now.
pub(super) fn step(
    mut changes: Vec<Change>,
    holds: impl Fn(&str) -> Holding,
    covering: Option<(u64, u64)>,
) -> Vec<Change> {
    // A slot that the proxy does not hold yet is not in use: its listener still waits for it.
    let in_use = |name: &str| !matches!(holds(name), Holding::Nothing);
    let Some(at) = changes.iter().position(|(name, _)| **name == *rbac::DENY_SLOT && in_use(name)) else {
        return changes;
    };
    if changes.len() == 1 {
        return changes;
    }
    let (name, target) = changes[at].clone();
    if !changes.iter().any(|(name, _)| **name != *rbac::DENY_SLOT && in_use(name)) {
        // The others still hold their listener back; it opens with the new DENY.
        return vec![(name, target)];
    }
    let Some(target) = target else { return changes };
    let held = holds(&name);
    let covered = |held: &Resource| covering == Some((held.hash, target.hash));
    match held {
        Holding::Has(held) if covered(&held) => {
            changes.remove(at);
            changes
        }
        Holding::Has(held) => {
            let union = rbac::union(&held, &target).unwrap_or_else(|_| deny_everything(&target));
            if union.hash == held.hash {
                // It denies all of both already.
                changes.remove(at);
                return changes;
            }
            vec![(name, Some(union))]
        }
        // What it holds cannot be kept beside the new rules because we do not know it.
        _ => vec![(name, Some(deny_everything(&target)))],
    }
}

/// Whether `changes` hold a DENY slot other than the wanted one.
pub(super) fn transitional(changes: &[Change], wanted: &Layers) -> bool {
    covering(changes, wanted).is_some()
}

/// The transitional DENY slot among `changes` and the target that it covers, by hash.
pub(super) fn covering(changes: &[Change], wanted: &Layers) -> Option<(u64, u64)> {
    let (name, sent) = changes.iter().find(|(name, _)| **name == *rbac::DENY_SLOT)?;
    let (sent, target) = (sent.as_ref()?, wanted.get(name)?);
    (sent.hash != target.hash).then_some((sent.hash, target.hash))
}

/// A DENY slot that refuses every request, for the moments in which nothing better can be known.
fn deny_everything(target: &Resource) -> Resource {
    use envoy_types::pb::envoy::config::{core::v3::TypedExtensionConfig, rbac::v3 as proto};
    use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
    use envoy_types::pb::google::protobuf::Any;
    let any_permission = proto::Permission { rule: Some(proto::permission::Rule::Any(true)) };
    let any_principal = proto::Principal { identifier: Some(proto::principal::Identifier::Any(true)) };
    let policy = proto::Policy {
        permissions: vec![any_permission],
        principals: vec![any_principal],
        ..Default::default()
    };
    let rules = proto::Rbac {
        action: proto::rbac::Action::Deny as i32,
        policies: [("countersign-transition".to_owned(), policy)].into(),
        ..Default::default()
    };
    let wrap = |url: &str, value: Vec<u8>| Any { type_url: format!("type.googleapis.com/{url}"), value };
    let filter = Rbac { rules: Some(rules), ..Default::default() }.encode_to_vec();
    let config = TypedExtensionConfig {
        name: target.name.to_string(),
        typed_config: Some(wrap("envoy.extensions.filters.http.rbac.v3.RBAC", filter)),
    };
    let any = wrap("envoy.config.core.v3.TypedExtensionConfig", config.encode_to_vec());
    Resource::new(target.name.clone(), Bytes::from(any.encode_to_vec()))
}
