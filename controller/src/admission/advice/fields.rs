//! What a field of a rule can see: whom, over what. No store.

use policy::{Atom, Match, Operation, Rule, Source};

/// An API field or `when` key with its values.
pub(super) struct Field<'a> {
    pub(super) name: &'a str,
    pub(super) values: &'a Match,
}

/// The fields of one source.
pub(super) fn of_source(source: &Source) -> Vec<Field<'_>> {
    let Source {
        principals,
        request_principals,
        namespaces,
        service_accounts,
        trust_domains,
        ip_blocks,
        remote_ip_blocks,
    } = source;
    named([
        ("principals", principals),
        ("requestPrincipals", request_principals),
        ("namespaces", namespaces),
        ("serviceAccounts", service_accounts),
        ("trustDomains", trust_domains),
        ("ipBlocks", ip_blocks),
        ("remoteIpBlocks", remote_ip_blocks),
    ])
}

/// The fields of one operation.
pub(super) fn of_operation(operation: &Operation) -> Vec<Field<'_>> {
    let Operation { hosts, ports, methods, paths } = operation;
    named([("hosts", hosts), ("ports", ports), ("methods", methods), ("paths", paths)])
}

fn named<'a, const N: usize>(fields: [(&'a str, &'a Match); N]) -> Vec<Field<'a>> {
    let set = fields.into_iter().filter(|(_, values)| !values.is_empty());
    set.map(|(name, values)| Field { name, values }).collect()
}

/// The conditions of a rule.
pub(super) fn of_conditions(rule: &Rule) -> Vec<Field<'_>> {
    rule.when.iter().map(|condition| Field { name: &condition.key, values: &condition.values }).collect()
}

/// Everything that a rule asks for.
pub(super) fn of_rule(rule: &Rule) -> Vec<Field<'_>> {
    let from = rule.from.iter().flat_map(of_source);
    let to = rule.to.iter().flat_map(of_operation);
    from.chain(to).chain(of_conditions(rule)).collect()
}

impl Field<'_> {
    fn has(&self, property: fn(&Atom) -> bool) -> bool {
        self.values.any.iter().chain(&self.values.none).any(property)
    }

    /// Only mTLS tells.
    pub(super) fn of_identity(&self) -> bool {
        self.has(|atom| {
            matches!(
                atom,
                Atom::Principal(_) | Atom::Namespace(_) | Atom::ServiceAccount { .. } | Atom::TrustDomain(_)
            )
        })
    }

    /// Only HTTP tells.
    pub(super) fn of_http(&self) -> bool {
        self.has(Atom::http_only)
    }
}

/// Whether only a verified token tells.
pub(super) fn of_token(atom: &Atom) -> bool {
    matches!(atom, Atom::RequestPrincipal(_) | Atom::Audience(_) | Atom::Presenter(_) | Atom::Claim { .. })
}

/// The ports that a rule is limited to; `None` if to none in particular.
pub(super) fn ports(rule: &Rule) -> Option<Vec<u16>> {
    let limited = |values: &Match| -> Option<Vec<u16>> {
        let ports: Vec<u16> = values
            .any
            .iter()
            .filter_map(|atom| match atom {
                Atom::Port(port) => Some(*port),
                _ => None,
            })
            .collect();
        (!ports.is_empty()).then_some(ports)
    };
    if let Some(ports) = rule.when.iter().find_map(|condition| limited(&condition.values)) {
        return Some(ports);
    }
    if rule.to.is_empty() {
        return None;
    }
    // One operation without ports opens the rule to all.
    let each: Option<Vec<Vec<u16>>> = rule.to.iter().map(|operation| limited(&operation.ports)).collect();
    each.map(|ports| ports.concat())
}
