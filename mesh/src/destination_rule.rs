//! What callers are told about a host: DestinationRules, and which of them counts for a client and a service (semantics
//! §1.6, §3.5). It knows neither endpoints nor what the callee takes: where no rule speaks, that is left to automatic
//! mTLS.
//!
//! Looked up in the client's namespace, then in the service's, then in the root namespace; the first that has a rule
//! for the host decides. Within one namespace the most specific host counts, of its rules the one whose selector names
//! the client, else the oldest that says anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One DestinationRule, as far as it decides about TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationRule {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Seconds since the epoch, 0 if unknown.
    pub created: i64,
    /// Lower case and fully qualified. May begin with `*`.
    pub host: Arc<str>,
    /// Namespaces whose clients it is for; `None`: all.
    pub export_to: Option<BTreeSet<Arc<str>>>,
    /// Labels of the clients in its own namespace that it is for; `None`: any client.
    pub selector: Option<BTreeMap<String, String>>,
    /// `None`: no `trafficPolicy` at all.
    pub policy: Option<TrafficPolicy>,
    pub subsets: Vec<Subset>,
}

/// `trafficPolicy`: what it says about TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficPolicy {
    pub tls: Option<ClientTls>,
    /// By service port. An entry replaces the whole policy for its port, so that one without TLS says nothing of it.
    pub ports: BTreeMap<u16, Option<ClientTls>>,
}

/// A part of the endpoints, by their labels. No route leads to one here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subset {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub policy: Option<TrafficPolicy>,
}

/// How a client speaks to a port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClientTls {
    /// Plaintext, also to endpoints that take mTLS.
    Disable,
    /// Mesh mTLS to every endpoint.
    IstioMutual {
        /// Empty: the service's own name.
        sni: String,
        /// Empty: the service accounts behind the service.
        subject_alt_names: Vec<String>,
    },
    /// TLS with files at the proxy.
    Originate(Originate),
    /// It needs something that cannot be had, so nothing is sent.
    Refuse,
}

/// SIMPLE, or MUTUAL where there is a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Originate {
    /// Paths of the client's certificate and its key.
    pub certificate: Option<(String, String)>,
    /// Path of the roots; `None`: those of the system.
    pub roots: Option<String>,
    /// Path of a list of revoked certificates.
    pub revoked: Option<String>,
    /// Empty: the host that is called.
    pub sni: String,
    /// Empty: the host that is called, where [`Self::sni`] is empty too.
    pub subject_alt_names: Vec<String>,
    /// False: any certificate will do.
    pub verify: bool,
}

impl TrafficPolicy {
    /// What it says of a service port.
    pub fn port(&self, port: u16) -> Option<&ClientTls> {
        match self.ports.get(&port) {
            Some(own) => own.as_ref(),
            None => self.tls.as_ref(),
        }
    }
}

impl DestinationRule {
    /// Its policy for a subset and port: what the subset says, and where that is nothing, the rule's own. `None` for a
    /// subset that does not exist.
    pub fn subset(&self, name: &str, port: u16) -> Option<Option<&ClientTls>> {
        let subset = self.subsets.iter().find(|subset| subset.name == name)?;
        let own = self.policy.as_ref().and_then(|policy| policy.port(port));
        Some(match &subset.policy {
            // A port-level entry of the subset replaces everything.
            Some(policy) if policy.ports.contains_key(&port) => policy.port(port),
            Some(policy) => policy.port(port).or(own),
            None => own,
        })
    }

    /// Whether `hostname` (lower case) is meant by its host.
    pub fn names(&self, hostname: &str) -> bool {
        match self.host.strip_prefix('*') {
            Some(suffix) => hostname.ends_with(suffix),
            None => *self.host == *hostname,
        }
    }

    /// Whether it is for clients of that namespace; a selector is not looked at.
    pub fn visible_in(&self, namespace: &str) -> bool {
        match (&self.selector, &self.export_to) {
            (Some(_), _) => *self.namespace == *namespace,
            (None, Some(namespaces)) => namespaces.contains(namespace),
            (None, None) => true,
        }
    }

    /// Nobody outside its namespace sees it.
    fn private(&self) -> bool {
        let only = |names: &BTreeSet<Arc<str>>| names.len() == 1 && names.contains(&self.namespace);
        self.selector.is_some() || self.export_to.as_ref().is_some_and(only)
    }

    /// Those with a selector, then the oldest, then by name.
    fn order(&self) -> (bool, i64, &str) {
        (self.selector.is_none(), self.created, &self.name)
    }
}

/// Clients for whom the same rules count.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client {
    pub namespace: Arc<str>,
    /// The rules of its namespace whose selectors name it, by name.
    pub selected: BTreeSet<Arc<str>>,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DestinationRules(BTreeMap<Arc<str>, Namespace>);

#[derive(Clone, Debug, Default, PartialEq)]
struct Namespace {
    by_name: BTreeMap<Arc<str>, Arc<DestinationRule>>,
    /// By host, in the order in which they count.
    by_host: BTreeMap<Arc<str>, Vec<Arc<DestinationRule>>>,
    /// The hosts of `by_host` with a wildcard, the most specific first.
    wildcards: Vec<Arc<str>>,
}

impl DestinationRules {
    /// Sets or (with `None`) removes one; what was there.
    pub fn set(
        &mut self,
        namespace: &Arc<str>,
        name: &Arc<str>,
        rule: Option<Arc<DestinationRule>>,
    ) -> Option<Arc<DestinationRule>> {
        let here = self.0.entry(namespace.clone()).or_default();
        let old = here.by_name.remove(name);
        if let Some(old) = &old {
            here.forget(old);
        }
        if let Some(rule) = rule {
            here.by_name.insert(name.clone(), rule.clone());
            here.learn(rule);
        }
        if here.by_name.is_empty() {
            self.0.remove(namespace);
        }
        old
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<DestinationRule>> {
        self.0.get(namespace)?.by_name.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.0.values().flat_map(|here| here.by_name.values())
    }

    pub fn len(&self) -> usize {
        self.0.values().map(|here| here.by_name.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The client that a workload is.
    pub fn client(&self, namespace: &Arc<str>, labels: &BTreeMap<String, String>) -> Client {
        let rules = self.0.get(namespace).into_iter().flat_map(|here| here.by_name.values());
        let names = |selector: &BTreeMap<String, String>| {
            selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        let selected = rules.filter(|rule| rule.selector.as_ref().is_some_and(names));
        Client { namespace: namespace.clone(), selected: selected.map(|rule| rule.name.clone()).collect() }
    }

    /// The policy that counts for `client` when it calls `hostname` of a service in `namespace`. The second value is the
    /// rule that it stands in.
    pub fn policy(
        &self,
        client: &Client,
        namespace: &str,
        hostname: &str,
        root: &str,
    ) -> Option<(&TrafficPolicy, &Arc<DestinationRule>)> {
        let caller = &*client.namespace;
        let here = |namespace: &str, accepts: &dyn Fn(&DestinationRule) -> bool| {
            self.0.get(namespace)?.decide(hostname, &|rule| {
                let named = rule.selector.is_none() || client.selected.contains(&rule.name);
                accepts(rule) && rule.visible_in(caller) && named
            })
        };
        // What the root namespace shows to everybody is not more specific for clients that live there.
        let own = |rule: &DestinationRule| caller != root || rule.private();
        let decided = here(caller, &own)
            .or_else(|| here(namespace, &|rule| !rule.private()))
            .or_else(|| here(root, &|rule| !rule.private()));
        decided.flatten().and_then(|rule| Some((rule.policy.as_ref()?, rule)))
    }
}

impl Namespace {
    fn learn(&mut self, rule: Arc<DestinationRule>) {
        let host = rule.host.clone();
        let rules = self.by_host.entry(host.clone()).or_default();
        if rules.is_empty() && host.starts_with('*') {
            self.wildcards.push(host);
            self.wildcards.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        }
        rules.push(rule);
        rules.sort_by(|a, b| a.order().cmp(&b.order()));
    }

    fn forget(&mut self, rule: &DestinationRule) {
        let Some(rules) = self.by_host.get_mut(&rule.host) else { return };
        rules.retain(|one| one.name != rule.name);
        if rules.is_empty() {
            self.by_host.remove(&rule.host);
            self.wildcards.retain(|host| *host != rule.host);
        }
    }

    /// The rule that counts here; `Some(None)` if there are rules for the host, but none says anything.
    fn decide(
        &self,
        hostname: &str,
        accepts: &dyn Fn(&DestinationRule) -> bool,
    ) -> Option<Option<&Arc<DestinationRule>>> {
        let matching = self.wildcards.iter().filter(|host| hostname.ends_with(&host[1..]));
        let candidates =
            self.by_host.get(hostname).into_iter().chain(matching.filter_map(|h| self.by_host.get(h)));
        for rules in candidates {
            let rules: Vec<&Arc<DestinationRule>> = rules.iter().filter(|rule| accepts(rule)).collect();
            let Some(first) = rules.first() else { continue };
            let merged = |rule: &&&Arc<DestinationRule>| rule.selector == first.selector;
            return Some(rules.iter().filter(merged).find(|rule| rule.policy.is_some()).copied());
        }
        None
    }
}

#[cfg(test)]
mod tests;
