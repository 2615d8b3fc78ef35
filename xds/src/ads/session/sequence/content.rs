//! What policy slots hold while they change. Made from slots that `build` made; adds no rule of its own but "nobody".

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action;
use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy, Principal, permission, principal};
use envoy_types::pb::google::protobuf::Any;
use prost::{DecodeError, Message};

use crate::build::encode::{HttpRbac, Rules, any};
use crate::resource::Resource;

/// A slot `name` that enforces the ALLOW rules of `allow` (its dry-run rules not). `None` if it enforces none.
pub(super) fn enforce(allow: &Resource, name: &str) -> Result<Option<Resource>, DecodeError> {
    let HttpRbac { rules, .. } = filter(allow)?;
    Ok(rules.map(|rules| slot(name, &HttpRbac { rules: Some(rules), ..HttpRbac::default() })))
}

/// Whether a slot admits or refuses anybody; one that cannot be read may.
pub(super) fn enforces(slot: &Resource) -> bool {
    let passive = |rules: &Rules| rules.action == Action::Log as i32;
    filter(slot).map_or(true, |filter| filter.rules.is_some_and(|rules| !passive(&rules)))
}

/// A slot that decides nothing.
pub(super) fn nothing(name: &str) -> Resource {
    slot(name, &HttpRbac::default())
}

/// The rule of [`deny_everything`]. Policies' rules are named `ns[…`.
const EVERYTHING: &str = "countersign-transition";

/// Whether the slot is one of [`deny_everything`].
pub(super) fn denies_everything(slot: &Resource) -> bool {
    filter(slot).is_ok_and(|filter| filter.rules.is_some_and(|rules| rules.policies.contains_key(EVERYTHING)))
}

/// A slot that refuses every request, for the moment in which nothing better can be known.
pub(super) fn deny_everything(name: &str) -> Resource {
    let policy = Policy {
        permissions: vec![Permission { rule: Some(permission::Rule::Any(true)) }],
        principals: vec![Principal { identifier: Some(principal::Identifier::Any(true)) }],
        ..Policy::default()
    };
    let rules = Rules { action: Action::Deny as i32, policies: [(EVERYTHING.to_owned(), policy)].into() };
    slot(name, &HttpRbac { rules: Some(rules), ..HttpRbac::default() })
}

fn filter(slot: &Resource) -> Result<HttpRbac, DecodeError> {
    let config = TypedExtensionConfig::decode(&*Any::decode(&*slot.any)?.value)?;
    HttpRbac::decode(&*config.typed_config.unwrap_or_default().value)
}

fn slot(name: &str, filter: &HttpRbac) -> Resource {
    let config = TypedExtensionConfig { name: name.to_owned(), typed_config: Some(any(filter)) };
    Resource::new(name, Bytes::from(any(&config).encode_to_vec()))
}
