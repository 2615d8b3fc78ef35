//! From a rule as written to `(OR permissions) AND (OR principals)` (semantics §4.1).

use std::collections::HashSet;

use crate::effective::{Clause, EffectiveRule};
use crate::model::{Action, AuthorizationPolicy, Condition, Match, Operation, Rule, Side, Source};
use crate::set::Scope;
use crate::trust;

/// The rules of `policy` in normal form, aliases applied. A policy without rules yields one that never matches, so
/// that its presence is felt (an ALLOW denies everything).
pub(super) fn normalise(scope: &Scope, policy: &AuthorizationPolicy) -> Vec<EffectiveRule> {
    let id = &policy.meta.id;
    if policy.rules.is_empty() {
        return vec![EffectiveRule::never(id.clone(), 0)];
    }
    let normal = |(index, rule): (usize, &Rule)| {
        // Only ALLOW is closed by matching nothing; of the other actions `crds` has left out what it could not read.
        if rule.never && policy.action == Action::Allow {
            return EffectiveRule::never(id.clone(), index);
        }
        EffectiveRule {
            policy: id.clone(),
            index,
            permissions: branches(scope, rule.to.iter().map(operation), &rule.when, Side::Permission),
            principals: branches(scope, rule.from.iter().map(source), &rule.when, Side::Principal),
        }
    };
    policy.rules.iter().enumerate().map(normal).collect()
}

type Fields<'a> = Vec<(&'a str, &'a Match)>;

/// One branch per `to` (or `from`) entry, or one that matches anything; every `when` of that side joins each.
fn branches<'a>(
    scope: &Scope,
    entries: impl Iterator<Item = Fields<'a>>,
    when: &'a [Condition],
    side: Side,
) -> Vec<Vec<Clause>> {
    let conditions: Fields<'a> =
        when.iter().filter(|c| c.side == side).map(|c| (&*c.key, &c.values)).collect();
    let mut entries: Vec<Fields<'a>> = entries.collect();
    if entries.is_empty() {
        entries.push(Vec::new());
    }
    let clauses = |fields: Fields<'a>| {
        let all = fields.into_iter().chain(conditions.iter().copied());
        all.filter(|(_, m)| !m.is_empty()).map(|(field, m)| clause(scope, field, m)).collect()
    };
    entries.into_iter().map(clauses).collect()
}

fn clause(scope: &Scope, field: &str, values: &Match) -> Clause {
    let Match { any, none } = values;
    let expand = |atoms: &[crate::Atom]| -> Vec<crate::Atom> {
        let mut seen = HashSet::with_capacity(atoms.len());
        let expanded = atoms.iter().flat_map(|atom| trust::expand(scope, atom));
        expanded.filter(|atom| seen.insert(atom.clone())).collect()
    };
    Clause { field: field.into(), any: expand(any), none: expand(none) }
}

fn source(source: &Source) -> Fields<'_> {
    let Source {
        principals,
        request_principals,
        namespaces,
        service_accounts,
        trust_domains,
        ip_blocks,
        remote_ip_blocks,
    } = source;
    vec![
        ("principals", principals),
        ("requestPrincipals", request_principals),
        ("namespaces", namespaces),
        ("serviceAccounts", service_accounts),
        ("trustDomains", trust_domains),
        ("ipBlocks", ip_blocks),
        ("remoteIpBlocks", remote_ip_blocks),
    ]
}

fn operation(operation: &Operation) -> Fields<'_> {
    let Operation { hosts, ports, methods, paths } = operation;
    vec![("hosts", hosts), ("ports", ports), ("methods", methods), ("paths", paths)]
}
