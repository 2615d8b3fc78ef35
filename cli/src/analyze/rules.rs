//! What can be said of the rules of one AuthorizationPolicy without knowing anything else.

use policy::{Action, Atom, AuthorizationPolicy, Match, Operation, Rule, Source, StringMatch};

use super::code::Code;

/// Rules that are looked at.
const RULES: usize = 64;
/// What values have that are meant as regular expressions.
const REGEX: [&str; 8] = [".*", ".+", "^", "$", "\\d", "\\w", "(?", "[a-z"];

pub(super) fn look(policy: &AuthorizationPolicy) -> Vec<(Code, String)> {
    let mut all = Vec::new();
    for (index, rule) in policy.rules.iter().enumerate().take(RULES) {
        all.extend(regex(rule).map(|(field, value)| {
            let text = format!(
                "rules[{index}] {field}: {value:?} looks like a regular expression and is taken as it is"
            );
            (Code::Regex, text)
        }));
        all.extend(host(&policy.action, rule).map(|(field, host)| {
            let text =
                format!("rules[{index}] {field}: {host:?} does not match {host}:80; list \"{host}:*\" too");
            (Code::HostPort, text)
        }));
    }
    all
}

/// The first value that looks like one, with its field.
fn regex(rule: &Rule) -> Option<(String, String)> {
    let Rule { from, to, when, never: _ } = rule;
    let fields = to.iter().flat_map(|operation| {
        let Operation { hosts, ports: _, methods, paths } = operation;
        [("hosts", hosts), ("methods", methods), ("paths", paths)]
    });
    let sources = from.iter().flat_map(|source| {
        let Source { principals, request_principals, namespaces, .. } = source;
        [("principals", principals), ("requestPrincipals", request_principals), ("namespaces", namespaces)]
    });
    let conditions = when.iter().map(|condition| (&*condition.key, &condition.values));
    let mut values = fields.chain(sources).chain(conditions).flat_map(|(field, values)| {
        values.any.iter().chain(&values.none).map(move |atom| (field, atom.to_string()))
    });
    let found = values.find(|(_, value)| REGEX.iter().any(|sign| value.contains(sign)))?;
    Some((found.0.to_owned(), found.1))
}

/// A host that is to be refused, without a port: the same host with one passes.
fn host(action: &Action, rule: &Rule) -> Option<(&'static str, String)> {
    let (field, of): (_, fn(&Match) -> &[Atom]) = match action {
        Action::Deny => ("hosts", |hosts| &hosts.any),
        Action::Allow => ("notHosts", |hosts| &hosts.none),
        Action::Audit | Action::Custom { .. } => return None,
    };
    rule.to.iter().find_map(|operation| {
        let hosts = of(&operation.hosts);
        let named = |wanted: &str| hosts.iter().any(|atom| atom.to_string() == wanted);
        let bare = |atom: &Atom| match atom {
            Atom::Host(StringMatch::Exact(host)) if !host.contains(':') => Some(host.to_string()),
            _ => None,
        };
        let bare = hosts.iter().filter_map(bare).find(|host| !named(&format!("{host}:*")))?;
        Some((field, bare))
    })
}
