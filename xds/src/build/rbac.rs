//! AuthorizationPolicy rules as Envoy RBAC (semantics §4). Which rules apply, and to whom, was decided by
//! `policy::resolve`; where the filters stand is decided by the chains.

pub(crate) mod matcher;
#[cfg(test)]
pub(crate) mod samples;
mod union;

use policy::effective::{ActionRules, Clause, EffectiveMtls, EffectivePolicy, EffectiveRule, MtlsGuard};
use policy::matcher::Atom;

use super::encode::{HttpRbac, NetworkRbac, Rules};
use super::pb::rbac::{Permission, Policy, Principal, permission, principal, rbac::Action};

pub use union::{union, union_custom};

/// Name of the ECDS slot with the DENY rules and the STRICT guard: the one that [`union`] is for.
pub const DENY_SLOT: &str = "inbound.rbac.deny";

/// Where Envoy's RBAC filters publish what they decided.
pub(crate) const HTTP_FILTER: &str = "envoy.filters.http.rbac";
pub(crate) const NETWORK_FILTER: &str = "envoy.filters.network.rbac";
/// Stat prefix of every network RBAC filter.
pub(crate) const TCP_STATS: &str = "tcp.";

const DRY_RUN_ALLOW: &str = "istio_dry_run_allow_";
const DRY_RUN_DENY: &str = "istio_dry_run_deny_";

/// The content of one RBAC filter: HTTP and TCP differ only in how it is wrapped.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Filter {
    /// `None` enforces nothing; empty ALLOW rules deny everything (semantics §10.1).
    rules: Option<Rules>,
    shadow: Option<Rules>,
    shadow_prefix: String,
}

impl Filter {
    /// A filter that does nothing at all.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { rules, shadow, shadow_prefix: _ } = self;
        rules.is_none() && shadow.is_none()
    }

    pub(crate) fn http(self) -> HttpRbac {
        let Self { rules, shadow, shadow_prefix } = self;
        HttpRbac { rules, shadow_rules: shadow, shadow_rules_stat_prefix: shadow_prefix }
    }

    pub(crate) fn network(self) -> NetworkRbac {
        let Self { rules, shadow, shadow_prefix } = self;
        NetworkRbac {
            rules,
            shadow_rules: shadow,
            stat_prefix: TCP_STATS.to_owned(),
            shadow_rules_stat_prefix: shadow_prefix,
        }
    }
}

/// AUDIT only writes metadata; a dry-run of it would do nothing, so there is no shadow.
pub(crate) fn audit(policy: &EffectivePolicy) -> Filter {
    let rules = policy.audit.enforced.as_ref().map(|r| rules(Action::Log, r.iter()));
    Filter { rules, ..Filter::default() }
}

/// DENY policies, the STRICT guard, and CUSTOM policies whose provider does not exist (semantics §4.8: exactly the
/// requests they match are denied).
pub(crate) fn deny(policy: &EffectivePolicy, usable: impl Fn(&str) -> bool) -> Filter {
    let ActionRules { enforced, shadow } = &policy.deny;
    let mut enforced = enforced.as_ref().map(|r| rules(Action::Deny, r.iter()));
    let homeless = policy.custom.iter().filter(|(name, _)| !usable(name));
    for rule in homeless.filter_map(|(_, custom)| custom.enforced.as_ref()).flatten() {
        let into = enforced.get_or_insert_with(|| rules(Action::Deny, std::iter::empty()));
        into.policies
            .insert(format!("{}-deny-due-to-bad-CUSTOM-action", rule.name()), compile(rule, Action::Deny));
    }
    if let Some((name, guard)) = guard(&policy.mtls) {
        let into = enforced.get_or_insert_with(|| rules(Action::Deny, std::iter::empty()));
        into.policies.insert(name, guard);
    }
    let shadow = shadow.as_ref().map(|r| rules(Action::Deny, r.iter()));
    let shadow_prefix = if shadow.is_some() { DRY_RUN_DENY.to_owned() } else { String::new() };
    Filter { rules: enforced, shadow, shadow_prefix }
}

pub(crate) fn allow(policy: &EffectivePolicy) -> Filter {
    let ActionRules { enforced, shadow } = &policy.allow;
    let enforced = enforced.as_ref().map(|r| rules(Action::Allow, r.iter()));
    let shadow = shadow.as_ref().map(|r| rules(Action::Allow, r.iter()));
    let shadow_prefix = if shadow.is_some() { DRY_RUN_ALLOW.to_owned() } else { String::new() };
    Filter { rules: enforced, shadow, shadow_prefix }
}

/// The first half of a CUSTOM pair: nothing is enforced, a match is written down for ext_authz to read. Prefix and
/// rule names carry the provider, so that no provider answers for another (semantics §10.13).
pub(crate) fn custom(provider: &str, custom: Option<&ActionRules>) -> Filter {
    let Some(enforced) = custom.and_then(|c| c.enforced.as_ref()) else { return Filter::default() };
    let mut shadow = rules(Action::Deny, std::iter::empty());
    for rule in enforced {
        let name = format!("{}{}", custom_rule_prefix(provider), rule.name());
        shadow.policies.insert(name, compile(rule, Action::Deny));
    }
    Filter { rules: None, shadow: Some(shadow), shadow_prefix: custom_prefix(provider) }
}

/// Prefix of the metadata keys that the CUSTOM shadow of `provider` writes.
fn custom_prefix(provider: &str) -> String {
    format!("istio_ext_authz_{provider}_")
}

/// The metadata key that names the CUSTOM rule of `provider` that matched.
pub(crate) fn custom_key(provider: &str) -> String {
    format!("{}shadow_effective_policy_id", custom_prefix(provider))
}

/// How the names of the CUSTOM rules of `provider` begin.
pub(crate) fn custom_rule_prefix(provider: &str) -> String {
    format!("istio-ext-authz-{provider}-")
}

fn rules<'a>(action: Action, rules: impl Iterator<Item = &'a EffectiveRule>) -> Rules {
    let policies = rules.map(|rule| (rule.name(), compile(rule, action))).collect();
    Rules { action: action as i32, policies }
}

/// What STRICT denies at the next request of a plaintext connection that is still open (design decision 3).
fn guard(mtls: &EffectiveMtls) -> Option<(String, Policy)> {
    let ports = |ports: &[u16]| any_permission(ports.iter().map(|p| port(*p)).collect());
    let (set_by, permission) = match mtls.guard()? {
        MtlsGuard::AllBut(excepted) if excepted.is_empty() => (&mtls.set_by, anything()),
        MtlsGuard::AllBut(excepted) => (&mtls.set_by, not_permission(ports(&excepted))),
        MtlsGuard::Only(only) => (&mtls.ports_set_by, ports(&only)),
    };
    let (namespace, name) = set_by.as_ref().map_or(("", "mesh-default"), |id| (&*id.namespace, &*id.name));
    let authenticated = principal::Authenticated { principal_name: None };
    let authenticated = Principal { identifier: Some(principal::Identifier::Authenticated(authenticated)) };
    let policy = Policy {
        permissions: vec![permission],
        principals: vec![not_principal(authenticated)],
        ..Default::default()
    };
    Some((format!("ns[{namespace}]-peerauthentication[{name}]-strict"), policy))
}

/// One rule. An attribute that Envoy cannot test on its side makes an ALLOW rule match nothing and is left out of any
/// other (design decision 5); `policy` never puts one there.
fn compile(rule: &EffectiveRule, action: Action) -> Policy {
    let EffectiveRule { policy: _, index: _, permissions, principals } = rule;
    let closed = action == Action::Allow;
    let permissions: Option<Vec<Permission>> =
        permissions.iter().map(|branch| permission_branch(branch, closed)).collect();
    let principals: Option<Vec<Principal>> =
        principals.iter().map(|branch| principal_branch(branch, closed)).collect();
    let permissions =
        permissions.filter(|p| !p.is_empty()).unwrap_or_else(|| vec![not_permission(anything())]);
    let principals = principals.filter(|p| !p.is_empty()).unwrap_or_else(|| vec![not_principal(anyone())]);
    Policy { permissions, principals, ..Default::default() }
}

fn permission_branch(branch: &[Clause], closed: bool) -> Option<Permission> {
    let mut all = Vec::new();
    for Clause { field: _, any, none } in branch {
        let (any, none) = (side(any, closed, matcher::permission)?, side(none, closed, matcher::permission)?);
        if !any.is_empty() {
            all.push(any_permission(any));
        }
        if !none.is_empty() {
            all.push(not_permission(any_permission(none)));
        }
    }
    Some(match all.len() {
        0 => anything(),
        1 => all.remove(0),
        _ => Permission { rule: Some(permission::Rule::AndRules(permission::Set { rules: all })) },
    })
}

fn principal_branch(branch: &[Clause], closed: bool) -> Option<Principal> {
    let mut all = Vec::new();
    for Clause { field: _, any, none } in branch {
        let (any, none) = (side(any, closed, matcher::principal)?, side(none, closed, matcher::principal)?);
        if !any.is_empty() {
            all.push(any_principal(any));
        }
        if !none.is_empty() {
            all.push(not_principal(any_principal(none)));
        }
    }
    Some(match all.len() {
        0 => anyone(),
        1 => all.remove(0),
        _ => Principal { identifier: Some(principal::Identifier::AndIds(principal::Set { ids: all })) },
    })
}

/// The compiled atoms of one field; `None` if one cannot be expressed and the rule has to match nothing for that.
fn side<T>(atoms: &[Atom], closed: bool, compile: impl Fn(&Atom) -> Option<T>) -> Option<Vec<T>> {
    let compiled: Option<Vec<T>> = atoms.iter().map(compile).collect();
    compiled.or_else(|| (!closed).then(Vec::new))
}

fn anything() -> Permission {
    Permission { rule: Some(permission::Rule::Any(true)) }
}

fn anyone() -> Principal {
    Principal { identifier: Some(principal::Identifier::Any(true)) }
}

fn port(port: u16) -> Permission {
    Permission { rule: Some(permission::Rule::DestinationPort(port.into())) }
}

fn any_permission(mut rules: Vec<Permission>) -> Permission {
    match rules.len() {
        1 => rules.remove(0),
        _ => Permission { rule: Some(permission::Rule::OrRules(permission::Set { rules })) },
    }
}

fn any_principal(mut ids: Vec<Principal>) -> Principal {
    match ids.len() {
        1 => ids.remove(0),
        _ => Principal { identifier: Some(principal::Identifier::OrIds(principal::Set { ids })) },
    }
}

fn not_permission(rule: Permission) -> Permission {
    Permission { rule: Some(permission::Rule::NotRule(Box::new(rule))) }
}

fn not_principal(id: Principal) -> Principal {
    Principal { identifier: Some(principal::Identifier::NotId(Box::new(id))) }
}

#[cfg(test)]
mod tests {
    use policy::StringMatch;

    use super::*;

    /// An identity is no permission and a port no principal: ALLOW then matches nothing, any other action without it.
    #[test]
    fn what_envoy_cannot_test_on_its_side_closes_the_rule() {
        let clause = |atom| vec![vec![Clause { field: "".into(), any: vec![atom], none: vec![] }]];
        let open = vec![vec![]];
        let rule = |permissions, principals| EffectiveRule {
            policy: policy::ObjectName::new("foo", "a"),
            index: 0,
            permissions,
            principals,
        };
        let identity = Atom::Principal(StringMatch::Present);
        for action in [Action::Allow, Action::Deny] {
            let misplaced = compile(&rule(clause(identity.clone()), open.clone()), action);
            let nothing = vec![not_permission(anything())];
            let expected = if action == Action::Allow { nothing } else { vec![anything()] };
            assert_eq!((misplaced.permissions, misplaced.principals), (expected, vec![anyone()]));
            let misplaced = compile(&rule(open.clone(), clause(Atom::Port(80))), action);
            let nobody = vec![not_principal(anyone())];
            let expected = if action == Action::Allow { nobody } else { vec![anyone()] };
            assert_eq!((misplaced.permissions, misplaced.principals), (vec![anything()], expected));
        }
    }
}
