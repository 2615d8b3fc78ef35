//! The transitional DENY slot (design decision 3).

use bytes::Bytes;
use prost::{DecodeError, Message};

use crate::Resource;
use crate::build::encode::{HttpRbac, any};
use crate::build::pb::{Any, core};

/// A DENY slot that denies whatever `old` or `new` denies: the first step of a change that touches several slots.
/// Both must be [`super::DENY_SLOT`] resources made by [`crate::build::own`]; the shadow rules are those of `new`.
/// A rule of `old` whose name `new` uses for something else is kept under `NAME-before`.
pub fn union(old: &Resource, new: &Resource) -> Result<Resource, DecodeError> {
    let before = rbac(old)?;
    let mut after = rbac(new)?;
    if let Some(before) = before.rules {
        match &mut after.rules {
            None => after.rules = Some(before),
            Some(rules) => {
                for (name, policy) in before.policies {
                    if rules.policies.get(&name) == Some(&policy) {
                        continue;
                    }
                    let mut free = name;
                    while rules.policies.contains_key(&free) {
                        free.push_str("-before");
                    }
                    rules.policies.insert(free, policy);
                }
            }
        }
    }
    let extension =
        core::TypedExtensionConfig { name: new.name.to_string(), typed_config: Some(any(&after)) };
    Ok(Resource::new(new.name.clone(), Bytes::from(any(&extension).encode_to_vec())))
}

fn rbac(slot: &Resource) -> Result<HttpRbac, DecodeError> {
    let extension = core::TypedExtensionConfig::decode(&*Any::decode(&*slot.any)?.value)?;
    HttpRbac::decode(&*extension.typed_config.unwrap_or_default().value)
}
