//! What an effective policy decides about one described request, and why: the second reader of the matchers, kept equal
//! to what Envoy does with the compiled ones (design decision 2).
//!
//! Verifies nothing: certificates and tokens come in as already verified. Asks nobody: an external authorizer that would
//! be consulted is named and taken to agree.

mod atom;
mod covers;
mod glob;
mod nearest;
mod request;
mod token;
mod view;

use std::sync::Arc;

use crate::effective::{ActionRules, Clause, EffectiveMtls, EffectivePolicy, EffectiveRule};
use crate::model::{MtlsMode, ObjectName};
use view::View;

pub use covers::{covers, never_matches};
pub use nearest::{Mismatch, NearMiss};
pub use request::{Protocol, Request};
pub use token::Refusal;

/// The answer, with everything that was looked at on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub verdict: Verdict,
    pub deciding: Deciding,
    /// Providers of the CUSTOM rules that match, by name: the verdict holds if all of them allow. On TCP also those of
    /// HTTP type, which Envoy cannot ask there (semantics §4.4); which type a provider has is not known here.
    pub consulted: Vec<Arc<str>>,
    /// The AUDIT rules that flag the request, by name, sorted.
    pub audited: Vec<String>,
    /// What the dry-run policies would have said; `None` if there are none or the request did not get that far.
    pub dry_run: Option<DryRun>,
    /// For [`Deciding::DefaultDeny`], if it was asked for: the ALLOW rule that came closest. `None` if no rule can match
    /// anything.
    pub nearest: Option<NearMiss>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Allow,
    Deny,
}

/// What settled it. Where several rules match, it is the one that Envoy reports: the first by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deciding {
    /// STRICT on this port, and the peer has no verified identity. Set by this PeerAuthentication.
    Mtls(Option<ObjectName>),
    /// The token was refused, or a required one is missing.
    Token(Refusal),
    /// A DENY rule, by name.
    Deny(String),
    /// An ALLOW rule, by name.
    Allow(String),
    /// No ALLOW policy is attached, so what nothing denies passes.
    NoAllowPolicy,
    /// ALLOW policies are attached and none of their rules matches.
    DefaultDeny,
}

impl std::fmt::Display for Deciding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // The name that Envoy reports for the guard.
            Self::Mtls(Some(id)) => write!(f, "ns[{}]-peerauthentication[{}]-strict", id.namespace, id.name),
            Self::Mtls(None) => f.write_str("mTLS required"),
            Self::Token(refusal) => refusal.fmt(f),
            Self::Deny(rule) | Self::Allow(rule) => f.write_str(rule),
            Self::NoAllowPolicy => f.write_str("no ALLOW policy"),
            Self::DefaultDeny => f.write_str("no ALLOW rule matches"),
        }
    }
}

/// One line for people; whatever the request says in it is escaped.
impl std::fmt::Display for Decision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Audits and dry runs decide nothing.
        let Self { verdict, deciding, consulted, audited: _, dry_run: _, nearest } = self;
        match deciding {
            Deciding::Mtls(_) => write!(f, "denied by {deciding}: no verified identity")?,
            Deciding::Token(_) => write!(f, "denied: {deciding}")?,
            Deciding::Deny(_) => write!(f, "denied by {deciding}")?,
            Deciding::Allow(_) => write!(f, "allowed by {deciding}")?,
            Deciding::NoAllowPolicy => write!(f, "allowed: {deciding}")?,
            Deciding::DefaultDeny => match nearest {
                Some(miss) => write!(f, "{deciding}; closest is {miss}")?,
                None => write!(f, "{deciding}")?,
            },
        }
        match verdict {
            Verdict::Allow if !consulted.is_empty() => write!(f, ", if agreed by {}", consulted.join(", ")),
            Verdict::Allow | Verdict::Deny => Ok(()),
        }
    }
}

/// What dry-run policies would decide on their own. Never part of the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRun {
    pub verdict: Verdict,
    /// The rule that matched, if one did.
    pub rule: Option<String>,
}

/// Decides about `request` as the proxy of the workload does (semantics §4.1): mTLS, CUSTOM, tokens, AUDIT, DENY, ALLOW.
/// On TCP as its chain can express the policy: see [`EffectivePolicy::tcp`].
pub fn evaluate(policy: &EffectivePolicy, request: &Request) -> Decision {
    decide(policy, request, false)
}

/// The same with [`Decision::nearest`], for people: it takes many times as long.
pub fn evaluate_with_nearest(policy: &EffectivePolicy, request: &Request) -> Decision {
    decide(policy, request, true)
}

fn decide(policy: &EffectivePolicy, request: &Request, nearest: bool) -> Decision {
    let EffectivePolicy { mtls, jwt, custom, audit, deny, allow, drain: _ } = policy;
    let mut decision = Decision {
        verdict: Verdict::Deny,
        deciding: Deciding::DefaultDeny,
        consulted: Vec::new(),
        audited: Vec::new(),
        dry_run: None,
        nearest: None,
    };
    let mut view = View::new(request, mtls.port(request.destination_port));
    if view.refused_plaintext() {
        decision.deciding = Deciding::Mtls(strict_by(mtls));
        return decision;
    }
    // Before tokens are read: CUSTOM cannot see them (semantics §4.8).
    let asked = |rules: &ActionRules| matched(rules.enforced.as_deref(), OnTcp::Wider, &view).is_some();
    decision.consulted =
        custom.iter().filter(|(_, rules)| asked(rules)).map(|(name, _)| name.clone()).collect();
    match token::authenticate(jwt, request) {
        Ok(token) => view.token = token,
        Err(refusal) => {
            decision.deciding = Deciding::Token(refusal);
            return decision;
        }
    }
    let audited = matching(audit.enforced.as_deref(), OnTcp::Wider, &view);
    decision.audited = audited.map(EffectiveRule::name).collect();
    decision.audited.sort();
    decision.dry_run = dry_run(deny, allow, &view);
    (decision.verdict, decision.deciding) = authorize(deny, allow, &view);
    if nearest && decision.deciding == Deciding::DefaultDeny {
        decision.nearest = nearest::nearest(allow.enforced.as_deref().unwrap_or_default(), &view);
    }
    decision
}

fn authorize(deny: &ActionRules, allow: &ActionRules, view: &View<'_>) -> (Verdict, Deciding) {
    if let Some(rule) = matched(deny.enforced.as_deref(), OnTcp::Wider, view) {
        return (Verdict::Deny, Deciding::Deny(rule));
    }
    match &allow.enforced {
        None => (Verdict::Allow, Deciding::NoAllowPolicy),
        Some(rules) => match matched(Some(rules), OnTcp::Never, view) {
            Some(rule) => (Verdict::Allow, Deciding::Allow(rule)),
            None => (Verdict::Deny, Deciding::DefaultDeny),
        },
    }
}

fn dry_run(deny: &ActionRules, allow: &ActionRules, view: &View<'_>) -> Option<DryRun> {
    if deny.shadow.is_none() && allow.shadow.is_none() {
        return None;
    }
    if let Some(rule) = matched(deny.shadow.as_deref(), OnTcp::Wider, view) {
        return Some(DryRun { verdict: Verdict::Deny, rule: Some(rule) });
    }
    let rule = matched(allow.shadow.as_deref(), OnTcp::Never, view);
    let passes = allow.shadow.is_none() || rule.is_some();
    Some(DryRun { verdict: if passes { Verdict::Allow } else { Verdict::Deny }, rule })
}

/// The PeerAuthentication named in the STRICT guard of this port, as `xds::build` names it.
fn strict_by(mtls: &EffectiveMtls) -> Option<ObjectName> {
    if mtls.mode == MtlsMode::Strict { mtls.set_by.clone() } else { mtls.ports_set_by.clone() }
}

/// What a rule that asks for something only HTTP has means on TCP (semantics §4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnTcp {
    /// ALLOW: it admits nothing.
    Never,
    /// Any other action: what cannot be asked there is left out.
    Wider,
}

/// The name of the rule that matches, the first in the order of names: Envoy keeps them in a sorted map.
fn matched(rules: Option<&[EffectiveRule]>, on_tcp: OnTcp, view: &View<'_>) -> Option<String> {
    matching(rules, on_tcp, view).map(EffectiveRule::name).min()
}

/// All rules that match, in the order of the policies.
fn matching<'a>(
    rules: Option<&'a [EffectiveRule]>,
    on_tcp: OnTcp,
    view: &'a View<'_>,
) -> impl Iterator<Item = &'a EffectiveRule> + 'a {
    rules.unwrap_or_default().iter().filter(move |rule| rule_matches(rule, on_tcp, view))
}

fn rule_matches(rule: &EffectiveRule, on_tcp: OnTcp, view: &View<'_>) -> bool {
    let EffectiveRule { policy: _, index: _, permissions, principals } = rule;
    if !view.is_http() && on_tcp == OnTcp::Never && rule.http_only() {
        return false;
    }
    let holds = |clause: &Clause| (!view.is_http() && clause.http_only()) || clause_matches(clause, view);
    let any_branch = |branches: &[Vec<Clause>]| branches.iter().any(|branch| branch.iter().all(holds));
    any_branch(permissions) && any_branch(principals)
}

fn clause_matches(clause: &Clause, view: &View<'_>) -> bool {
    let Clause { field: _, any, none } = clause;
    let matches = |atom| atom::matches(atom, view);
    (any.is_empty() || any.iter().any(matches)) && !none.iter().any(matches)
}

#[cfg(test)]
mod tests;
