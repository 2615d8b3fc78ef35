//! All that applies to one workload, resolved: the input of every reader of policy.
//!
//! Equal inputs give equal values, so "did anything change" is `==`, and pods with equal inputs share one.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::matcher::Atom;
use crate::model::{JwtRule, MtlsMode, ObjectName};

/// Everything that decides about traffic to one workload.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EffectivePolicy {
    pub mtls: EffectiveMtls,
    /// Union of the attached RequestAuthentications, sorted by issuer (stable).
    pub jwt: Vec<JwtRule>,
    /// By provider name, sorted.
    pub custom: BTreeMap<Arc<str>, ActionRules>,
    pub audit: ActionRules,
    pub deny: ActionRules,
    pub allow: ActionRules,
    /// Attached policies whose change must also drain connections (`countersign.io/on-revoke: drain`), with a digest
    /// of their content. Any change of this list is a filter-chain change.
    pub drain: Vec<(ObjectName, u64)>,
}

impl EffectivePolicy {
    /// The same policy as a TCP filter chain can express it (semantics §4.4). An ALLOW rule with an HTTP-only field is
    /// dropped whole, so it admits less; a rule of any other action loses just that field, so it matches more. Tokens
    /// do not exist there.
    pub fn tcp(&self) -> Self {
        let Self { mtls, jwt: _, custom, audit, deny, allow, drain: _ } = self;
        Self {
            mtls: mtls.clone(),
            jwt: Vec::new(),
            custom: custom.iter().map(|(name, rules)| (name.clone(), rules.tcp_widened())).collect(),
            audit: audit.tcp_widened(),
            deny: deny.tcp_widened(),
            allow: allow.tcp_narrowed(),
            // A network filter is bound at accept: every change of a TCP chain drains anyway.
            drain: Vec::new(),
        }
    }
}

impl ActionRules {
    fn tcp_narrowed(&self) -> Self {
        self.map(|rules| rules.iter().filter(|rule| !rule.http_only()).cloned().collect())
    }

    fn tcp_widened(&self) -> Self {
        self.map(|rules| rules.iter().map(EffectiveRule::without_http).collect())
    }

    fn map(&self, edit: impl Fn(&[EffectiveRule]) -> Vec<EffectiveRule>) -> Self {
        let Self { enforced, shadow } = self;
        Self { enforced: enforced.as_deref().map(&edit), shadow: shadow.as_deref().map(&edit) }
    }
}

/// PeerAuthentication, resolved (semantics §2.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveMtls {
    /// For every port without an entry in `ports`.
    pub mode: MtlsMode,
    /// Workload ports whose `portLevelMtls` entry says otherwise or the same; UNSET is already replaced by `mode`.
    pub ports: BTreeMap<u16, MtlsMode>,
    /// The object that set `mode` (`None`: the mesh default) and, if any, the one that set `ports`.
    pub set_by: Option<ObjectName>,
    pub ports_set_by: Option<ObjectName>,
}

impl Default for EffectiveMtls {
    fn default() -> Self {
        Self { mode: MtlsMode::Permissive, ports: BTreeMap::new(), set_by: None, ports_set_by: None }
    }
}

impl EffectiveMtls {
    /// The mode of one workload port.
    pub fn port(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.mode)
    }

    /// What STRICT adds to the DENY slot so that plaintext connections that outlive a PERMISSIVE → STRICT change are
    /// refused at their next request (design decision 3). `None` where no port is STRICT.
    pub fn guard(&self) -> Option<MtlsGuard> {
        let differing = |strict: bool| {
            self.ports.iter().filter(move |(_, m)| (**m == MtlsMode::Strict) == strict).map(|(p, _)| *p)
        };
        if self.mode == MtlsMode::Strict {
            Some(MtlsGuard::AllBut(differing(false).collect()))
        } else {
            let ports: Vec<u16> = differing(true).collect();
            (!ports.is_empty()).then_some(MtlsGuard::Only(ports))
        }
    }
}

/// The ports on which a peer without a verified certificate is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MtlsGuard {
    AllBut(Vec<u16>),
    Only(Vec<u16>),
}

/// The rules of one action. `enforced: None` means no policy of this action is attached (so ALLOW passes);
/// `Some(vec![])` means policies are attached and nothing in them can match (so ALLOW denies everything).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ActionRules {
    pub enforced: Option<Vec<EffectiveRule>>,
    /// Dry-run policies: same convention.
    pub shadow: Option<Vec<EffectiveRule>>,
}

/// One rule of one policy, normalised: `(OR permissions) AND (OR principals)`, each branch an AND of clauses.
/// An empty outer list matches nothing; an empty branch matches anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveRule {
    pub policy: ObjectName,
    /// Number of the rule in its policy, from 0.
    pub index: usize,
    pub permissions: Vec<Vec<Clause>>,
    pub principals: Vec<Vec<Clause>>,
}

impl EffectiveRule {
    /// `ns[NAMESPACE]-policy[NAME]-rule[INDEX]`: the name Envoy reports and tools parse (semantics §4.1, §6.8).
    pub fn name(&self) -> String {
        format!("ns[{}]-policy[{}]-rule[{}]", self.policy.namespace, self.policy.name, self.index)
    }

    /// Whether it asks for something that only HTTP has, so that a TCP chain cannot allow by it.
    pub fn http_only(&self) -> bool {
        self.permissions.iter().chain(&self.principals).flatten().any(Clause::http_only)
    }

    fn without_http(&self) -> Self {
        let keep = |branches: &[Vec<Clause>]| {
            let branch = |b: &Vec<Clause>| b.iter().filter(|c| !c.http_only()).cloned().collect();
            branches.iter().map(branch).collect()
        };
        Self { permissions: keep(&self.permissions), principals: keep(&self.principals), ..self.clone() }
    }

    /// A rule that matches nothing, for a policy without rules.
    pub fn never(policy: ObjectName, index: usize) -> Self {
        Self { policy, index, permissions: Vec::new(), principals: Vec::new() }
    }
}

/// One field or condition: `(any is empty OR one of any matches) AND none of none matches`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Clause {
    /// The API field or when-key, for explanations.
    pub field: Arc<str>,
    pub any: Vec<Atom>,
    pub none: Vec<Atom>,
}

impl Clause {
    /// Whether only an HTTP filter chain can judge it.
    pub fn http_only(&self) -> bool {
        self.any.iter().chain(&self.none).any(Atom::http_only)
    }
}
