//! The HTTP policy filters of a workload and their names: the fixed slots of design decision 3. The same list, in the
//! same order, stands in every inbound HTTP chain of a proxy.

use super::encode::any;
use super::pb::{Any, ads, core, hcm};
use super::{Inbound, ext_authz, jwt, rbac};

/// One slot: its name in ECDS and what it holds.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) config: Any,
    /// It decides nothing at the moment.
    idle: bool,
}

/// CUSTOM pairs by provider name, then JWT, then AUDIT, DENY, ALLOW (semantics §3.4).
pub(crate) fn slots(inbound: &Inbound<'_>) -> Vec<Slot> {
    let policy = inbound.policy;
    let mut slots = Vec::new();
    for (name, (config, resolved)) in inbound.authorizers() {
        let shadow = rbac::custom(name, policy.custom.get(name).filter(|_| resolved.is_some()));
        let idle = shadow.is_empty();
        let pair =
            [("rbac", any(&shadow.http())), ("ext_authz", any(&ext_authz::http(name, config, resolved)))];
        slots.extend(pair.map(|(kind, config)| Slot {
            name: format!("inbound.custom.{name}.{kind}"),
            config,
            idle,
        }));
    }
    let jwt = any(&jwt::authentication(&policy.jwt));
    slots.push(Slot { name: "inbound.jwt_authn".to_owned(), config: jwt, idle: policy.jwt.is_empty() });
    let filters = [
        ("inbound.rbac.audit", rbac::audit(policy)),
        (rbac::DENY_SLOT, rbac::deny(policy, |provider| inbound.usable(provider))),
        ("inbound.rbac.allow", rbac::allow(policy)),
    ];
    slots.extend(filters.map(|(name, filter)| {
        let idle = filter.is_empty();
        Slot { name: name.to_owned(), config: any(&filter.http()), idle }
    }));
    slots
}

/// The slots as filters of an HTTP connection manager: references, or (on request) the content itself, where what
/// decides nothing is left out.
pub(crate) fn http_filters(slots: &[Slot], inline: bool) -> Vec<hcm::HttpFilter> {
    slots.iter().filter(|slot| !(inline && slot.idle)).map(|slot| http_filter(slot, inline)).collect()
}

fn http_filter(slot: &Slot, inline: bool) -> hcm::HttpFilter {
    use hcm::http_filter::ConfigType;
    let Slot { name, config, idle: _ } = slot;
    let config_type = if inline {
        ConfigType::TypedConfig(config.clone())
    } else {
        // No default: until the slot has come, the listener does not open.
        ConfigType::ConfigDiscovery(core::ExtensionConfigSource {
            config_source: ads(),
            type_urls: vec![config.type_url.clone()],
            ..Default::default()
        })
    };
    hcm::HttpFilter { name: name.clone(), config_type: Some(config_type), ..Default::default() }
}
