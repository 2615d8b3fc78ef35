//! `rules[]` of an AuthorizationPolicy: validation (semantics §1.5) and conversion in one walk.
//!
//! A positive list with a value that cannot be read is left out as a whole: the values are alternatives, so leaving out
//! only the bad one would make the rule match less. In a `not…` list the bad value alone is left out.

use std::sync::Arc;

use policy::{Atom, Match, StringMatch};

use super::{Action, Condition, From, MAX_FROM, MAX_SERVICE_ACCOUNTS, Operation, Rule, Source, To};
use crate::finding::Issues;
use crate::path::At;
use crate::values::{self, Parsed};
use crate::when::Key;

/// What the walk of one rule needs to know of its policy.
struct Walk<'w> {
    action: Action,
    namespace: &'w Arc<str>,
    issues: &'w mut Issues,
}

/// Rule number `index`.
pub(super) fn read(
    rule: &Rule,
    action: Action,
    namespace: &Arc<str>,
    index: usize,
    issues: &mut Issues,
) -> policy::Rule {
    let at = At::ROOT.key("spec");
    let at = at.key("rules");
    let at = at.index(index);
    let mut walk = Walk { action, namespace, issues };
    let Rule { from, to, when } = rule;
    let converted = policy::Rule {
        from: walk.from(from.as_deref(), &at.key("from")),
        to: walk.to(to.as_deref(), &at.key("to")),
        when: when
            .iter()
            .enumerate()
            .filter_map(|(i, c)| walk.condition(c, &at.key("when").index(i)))
            .collect(),
        never: false,
    };
    if action == Action::Deny && http_only(rule) {
        walk.issues
            .warning(&at, "only HTTP attributes and no ports: on TCP ports in scope this denies everything");
    }
    converted
}

impl Walk<'_> {
    fn from(&mut self, from: Option<&[From]>, at: &At<'_>) -> Vec<policy::Source> {
        let Some(from) = from else { return Vec::new() };
        if from.is_empty() {
            self.issues.error(at, "an empty list: leave it out to mean any source");
        }
        if from.len() > MAX_FROM {
            self.issues.error(at, format!("at most {MAX_FROM} sources are allowed"));
        }
        let source = |(i, from): (usize, &From)| {
            let at = at.index(i);
            let at = at.key("source");
            match &from.source {
                Some(source) => self.source(source, &at),
                None => {
                    self.issues.missing(&at, "a source is required");
                    policy::Source::default()
                }
            }
        };
        from.iter().enumerate().map(source).collect()
    }

    fn source(&mut self, source: &Source, at: &At<'_>) -> policy::Source {
        if *source == Source::default() {
            self.issues.missing(at, "no field is set");
        }
        self.check_service_accounts(source, at);
        self.check_custom_source(source, at);
        self.warn_spiffe(&source.principals, &at.key("principals"));
        self.warn_spiffe(&source.not_principals, &at.key("notPrincipals"));
        let Source {
            principals,
            not_principals,
            request_principals,
            not_request_principals,
            namespaces,
            not_namespaces,
            service_accounts,
            not_service_accounts,
            ip_blocks,
            not_ip_blocks,
            remote_ip_blocks,
            not_remote_ip_blocks,
            trust_domains,
            not_trust_domains,
        } = source;
        let namespace = self.namespace.clone();
        let peer = |v: &str| Ok(Atom::Principal(StringMatch::parse(v)));
        let token = |v: &str| Ok(Atom::RequestPrincipal(values::request_principal(v)));
        let namespaced = |v: &str| Ok(Atom::Namespace(v.into()));
        let account = |v: &str| values::service_account(v, &namespace);
        let address = |v: &str| values::ip_block(v).map(Atom::SourceIp);
        let remote = |v: &str| values::ip_block(v).map(Atom::RemoteIp);
        policy::Source {
            principals: self.field(at, "principals", principals, not_principals, &peer),
            request_principals: self.field(
                at,
                "requestPrincipals",
                request_principals,
                not_request_principals,
                &token,
            ),
            namespaces: self.field(at, "namespaces", namespaces, not_namespaces, &namespaced),
            service_accounts: self.field(
                at,
                "serviceAccounts",
                service_accounts,
                not_service_accounts,
                &account,
            ),
            trust_domains: self.field(
                at,
                "trustDomains",
                trust_domains,
                not_trust_domains,
                &values::trust_domain,
            ),
            ip_blocks: self.field(at, "ipBlocks", ip_blocks, not_ip_blocks, &address),
            remote_ip_blocks: self.field(
                at,
                "remoteIpBlocks",
                remote_ip_blocks,
                not_remote_ip_blocks,
                &remote,
            ),
        }
    }

    fn check_service_accounts(&mut self, source: &Source, at: &At<'_>) {
        for (name, list) in [
            ("serviceAccounts", &source.service_accounts),
            ("notServiceAccounts", &source.not_service_accounts),
        ] {
            if list.len() > MAX_SERVICE_ACCOUNTS {
                self.issues
                    .error(&at.key(name), format!("at most {MAX_SERVICE_ACCOUNTS} entries are allowed"));
            }
        }
        let accounts = !(source.service_accounts.is_empty() && source.not_service_accounts.is_empty());
        let other = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
        if accounts && other.iter().any(|list| !list.is_empty()) {
            self.issues.error(at, "service accounts cannot be combined with principals or namespaces");
        }
    }

    /// Identity fields cannot be used with CUSTOM: its filters run before the token is read (semantics §4.8).
    fn check_custom_source(&mut self, source: &Source, at: &At<'_>) {
        if self.action != Action::Custom {
            return;
        }
        for (name, list) in [
            ("principals", &source.principals),
            ("notPrincipals", &source.not_principals),
            ("requestPrincipals", &source.request_principals),
            ("notRequestPrincipals", &source.not_request_principals),
            ("namespaces", &source.namespaces),
            ("notNamespaces", &source.not_namespaces),
            ("serviceAccounts", &source.service_accounts),
            ("notServiceAccounts", &source.not_service_accounts),
            ("trustDomains", &source.trust_domains),
            ("notTrustDomains", &source.not_trust_domains),
        ] {
            if !list.is_empty() {
                self.issues.error(&at.key(name), "not supported with CUSTOM");
            }
        }
    }

    fn warn_spiffe(&mut self, principals: &[String], at: &At<'_>) {
        for (i, value) in principals.iter().enumerate().filter(|(_, v)| v.starts_with("spiffe://")) {
            self.issues.warning(&at.index(i), format!("`{value}` never matches: leave `spiffe://` out"));
        }
    }

    fn to(&mut self, to: Option<&[To]>, at: &At<'_>) -> Vec<policy::Operation> {
        let Some(to) = to else { return Vec::new() };
        if to.is_empty() {
            self.issues.error(at, "an empty list: leave it out to mean any operation");
        }
        let operation = |(i, to): (usize, &To)| {
            let at = at.index(i);
            let at = at.key("operation");
            match &to.operation {
                Some(operation) => self.operation(operation, &at),
                None => {
                    self.issues.missing(&at, "an operation is required");
                    policy::Operation::default()
                }
            }
        };
        to.iter().enumerate().map(operation).collect()
    }

    fn operation(&mut self, operation: &Operation, at: &At<'_>) -> policy::Operation {
        if *operation == Operation::default() {
            self.issues.missing(at, "no field is set");
        }
        let Operation { hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths } =
            operation;
        let host = |v: &str| Ok(Atom::Host(StringMatch::parse(v)));
        let port = |v: &str| values::port(v).map(Atom::Port);
        let method = |v: &str| Ok(Atom::Method(StringMatch::parse(v)));
        let path = |v: &str| values::path(v).map(Atom::Path);
        policy::Operation {
            hosts: self.field(at, "hosts", hosts, not_hosts, &host),
            ports: self.field(at, "ports", ports, not_ports, &port),
            methods: self.field(at, "methods", methods, not_methods, &method),
            paths: self.field(at, "paths", paths, not_paths, &path),
        }
    }

    /// A field `name` and its twin `notName`.
    fn field(
        &mut self,
        at: &At<'_>,
        name: &str,
        any: &[String],
        none: &[String],
        parse: &dyn Fn(&str) -> Parsed<Atom>,
    ) -> Match {
        let not_name = format!("not{}{}", name[..1].to_ascii_uppercase(), &name[1..]);
        Match { any: self.any(any, &at.key(name), parse), none: self.none(none, &at.key(&not_name), parse) }
    }

    /// `None`: nothing of it can be read, so it constrains nothing.
    fn condition(&mut self, condition: &Condition, at: &At<'_>) -> Option<policy::Condition> {
        let Condition { key: written, values, not_values } = condition;
        if values.is_empty() && not_values.is_empty() {
            self.issues.missing(at, "values or notValues are required");
        }
        let key = match Key::parse(written) {
            Ok(key) => key,
            Err(why) => {
                self.issues.missing(&at.key("key"), why);
                return None;
            }
        };
        if self.action == Action::Custom && key.about_identity() {
            self.issues.error(&at.key("key"), format!("`{written}` is not supported with CUSTOM"));
        }
        let namespace = self.namespace.clone();
        let parse = |value: &str| key.atom(value, &namespace);
        let values = Match {
            any: self.any(values, &at.key("values"), &parse),
            none: self.none(not_values, &at.key("notValues"), &parse),
        };
        Some(policy::Condition { key: written.as_str().into(), side: key.side(), values })
    }

    /// The alternatives of a field: all of them, or none if one cannot be read.
    fn any(&mut self, list: &[String], at: &At<'_>, parse: &dyn Fn(&str) -> Parsed<Atom>) -> Vec<Atom> {
        let atoms = self.none(list, at, parse);
        if atoms.len() == list.len() { atoms } else { Vec::new() }
    }

    /// The values that can be read.
    fn none(&mut self, list: &[String], at: &At<'_>, parse: &dyn Fn(&str) -> Parsed<Atom>) -> Vec<Atom> {
        let mut atoms = Vec::with_capacity(list.len());
        for (i, value) in list.iter().enumerate() {
            if value.is_empty() {
                self.issues.error(&at.index(i), "an empty value");
                continue;
            }
            match parse(value) {
                Ok(atom) => atoms.push(atom),
                Err(why) => self.issues.error(&at.index(i), why),
            }
        }
        atoms
    }
}

/// Whether a rule says something, all of it only visible in HTTP, and names no port (semantics §1.5, last row).
fn http_only(rule: &Rule) -> bool {
    let empty = |list: &Vec<String>| list.is_empty();
    let source_tcp = |s: &Source| {
        !(empty(&s.principals)
            && empty(&s.not_principals)
            && empty(&s.namespaces)
            && empty(&s.not_namespaces)
            && empty(&s.service_accounts)
            && empty(&s.not_service_accounts)
            && empty(&s.ip_blocks)
            && empty(&s.not_ip_blocks)
            && empty(&s.remote_ip_blocks)
            && empty(&s.not_remote_ip_blocks)
            && empty(&s.trust_domains)
            && empty(&s.not_trust_domains))
    };
    let from = rule.from.iter().flatten().filter_map(|f| f.source.as_ref());
    let to: Vec<_> = rule.to.iter().flatten().filter_map(|t| t.operation.as_ref()).collect();
    let tcp_key = |c: &Condition| !Key::parse(&c.key).is_ok_and(|key| key.http_only());
    let says_something = rule.from.is_some() || rule.to.is_some() || !rule.when.is_empty();
    says_something
        && !from.clone().any(source_tcp)
        && !to.iter().any(|o| !(empty(&o.ports) && empty(&o.not_ports)))
        && !rule.when.iter().any(tcp_key)
}
