//! The transitional DENY and CUSTOM slots (design decision 3).

use bytes::Bytes;
use prost::{DecodeError, Message};

use crate::Resource;
use crate::build::encode::{HttpRbac, Rules, any};
use crate::build::pb::{Any, core};

/// A DENY slot that denies whatever `old` or `new` denies: the first step of a change that touches several slots.
/// Both must be [`super::DENY_SLOT`] resources made by [`crate::build::own`]; the shadow rules are those of `new`.
/// A rule of `old` whose name `new` uses for something else is kept under `NAME-before`.
pub fn union(old: &Resource, new: &Resource) -> Result<Resource, DecodeError> {
    let mut after = rbac(new)?;
    after.rules = both(rbac(old)?.rules, after.rules);
    Ok(slot(new, &after))
}

/// The first half of a CUSTOM pair that asks the provider whenever `old` or `new` does. Both must be slots of the same
/// provider made by [`crate::build::own`].
pub fn union_custom(old: &Resource, new: &Resource) -> Result<Resource, DecodeError> {
    let before = rbac(old)?;
    let mut after = rbac(new)?;
    if after.shadow_rules_stat_prefix.is_empty() {
        after.shadow_rules_stat_prefix = before.shadow_rules_stat_prefix;
    }
    after.shadow_rules = both(before.shadow_rules, after.shadow_rules);
    Ok(slot(new, &after))
}

/// The rules of either; under their own names, those of `before` where `after` uses a name for something else with a
/// suffix.
fn both(before: Option<Rules>, after: Option<Rules>) -> Option<Rules> {
    let (Some(before), Some(mut rules)) = (before.clone(), after.clone()) else { return after.or(before) };
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
    Some(rules)
}

fn slot(new: &Resource, filter: &HttpRbac) -> Resource {
    let extension =
        core::TypedExtensionConfig { name: new.name.to_string(), typed_config: Some(any(filter)) };
    Resource::new(new.name.clone(), Bytes::from(any(&extension).encode_to_vec()))
}

fn rbac(slot: &Resource) -> Result<HttpRbac, DecodeError> {
    let extension = core::TypedExtensionConfig::decode(&*Any::decode(&*slot.any)?.value)?;
    HttpRbac::decode(&*extension.typed_config.unwrap_or_default().value)
}
