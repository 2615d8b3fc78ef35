//! Why a request is decided as it is: what [`evaluate`] says, told stage by stage, with what dry-run policies would change.
//!
//! Decides nothing of its own: every verdict in here is one of [`evaluate`]. What policies there are and why they apply
//! to a workload is [`applying`]'s. Asks no external authorizer; one that would be asked is named and taken to agree.

mod applying;
mod shadow;
mod steps;

use std::sync::Arc;

use serde::Serialize;

use crate::effective::{ActionRules, EffectivePolicy, EffectiveRule};
use crate::evaluate::{
    Deciding, Decision, Mismatch, NearMiss, Protocol, Request, Verdict, evaluate_with_nearest,
};
use crate::model::ObjectName;

pub use applying::{Applying, Reach, applying};
pub use shadow::{IfEnforced, Shadow, ShadowPolicy};
pub use steps::{Outcome, Step};

/// A decision with its reasons. The names of the serialised fields are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Always that of [`evaluate`].
    pub verdict: Verdict,
    /// The stage that settled it.
    pub stage: Stage,
    /// One line for people; whatever the request says in it is escaped.
    pub reason: String,
    /// What an HTTP caller is answered if it is denied. `None`: it is allowed, or the connection is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The policy and rule that settled it, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<By>,
    /// The stages in the order in which a proxy goes through them.
    pub steps: Vec<Step>,
    /// Providers that would be asked; an allow holds if all of them agree.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub consulted: Vec<Arc<str>>,
    /// AUDIT rules that flag the request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub audited: Vec<By>,
    /// For a default deny: the ALLOW rule that came closest. `None` if no rule can match anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Nearest>,
    /// What the dry-run policies would do. `None` if there are none, or the request does not get that far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<Shadow>,
}

/// Where a decision falls, in the order of semantics §4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// The TLS handshake refused the certificate: [`Explanation::refused_handshake`].
    Handshake,
    /// STRICT, and no verified identity.
    Mtls,
    /// An external authorizer is asked. Never the deciding one here: it is taken to agree.
    Custom,
    /// A token was refused, or a required one is missing.
    Jwt,
    Audit,
    Deny,
    Allow,
    /// No rule matched: denied if any ALLOW policy applies, otherwise allowed.
    Default,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Handshake => "handshake",
            Self::Mtls => "mtls",
            Self::Custom => "custom",
            Self::Jwt => "jwt",
            Self::Audit => "audit",
            Self::Deny => "deny",
            Self::Allow => "allow",
            Self::Default => "default",
        })
    }
}

/// A policy, and where it has rules, which of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct By {
    pub kind: &'static str,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Index in `spec.rules`, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
}

impl By {
    fn rule(rule: &EffectiveRule) -> Self {
        let EffectiveRule { policy, index, permissions: _, principals: _ } = rule;
        Self { rule: Some(*index), ..Self::policy("AuthorizationPolicy", policy) }
    }

    fn policy(kind: &'static str, id: &ObjectName) -> Self {
        Self { kind, namespace: id.namespace.clone(), name: id.name.clone(), rule: None }
    }
}

/// `NAMESPACE/NAME[RULE]`, as policy tests write it.
impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind: _, namespace, name, rule } = self;
        write!(f, "{namespace}/{name}")?;
        rule.map_or(Ok(()), |rule| write!(f, "[{rule}]"))
    }
}

/// An ALLOW rule that does not match, and every field that differs in the alternative where the fewest do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nearest {
    pub rule: By,
    pub differs: Vec<Difference>,
}

/// One field or condition that was not met. In words, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The API field or when-key.
    pub field: Arc<str>,
    pub wanted: String,
    pub had: String,
}

/// The decision about `request`, explained.
pub fn explain(policy: &EffectivePolicy, request: &Request) -> Explanation {
    let decision = evaluate_with_nearest(policy, request);
    let EffectivePolicy { mtls: _, jwt: _, custom: _, audit, deny, allow, drain: _ } = policy;
    let found = |rules: &ActionRules, name: &str| find(rules.enforced.as_deref(), name).map(By::rule);
    let (stage, by) = match &decision.deciding {
        Deciding::Mtls(set_by) => {
            (Stage::Mtls, set_by.as_ref().map(|id| By::policy("PeerAuthentication", id)))
        }
        Deciding::Token(_) => (Stage::Jwt, None),
        Deciding::Deny(rule) => (Stage::Deny, found(deny, rule)),
        Deciding::Allow(rule) => (Stage::Allow, found(allow, rule)),
        Deciding::NoAllowPolicy | Deciding::DefaultDeny => (Stage::Default, None),
    };
    let nearest = decision.nearest.as_ref().and_then(|NearMiss { rule, failed }| {
        let differs = failed.iter().map(|Mismatch { field, wanted, had }| Difference {
            field: field.clone(),
            wanted: wanted.clone(),
            had: had.clone(),
        });
        Some(Nearest { rule: found(allow, rule)?, differs: differs.collect() })
    });
    Explanation {
        verdict: decision.verdict,
        stage,
        reason: decision.to_string(),
        status: status(&decision, request),
        by,
        steps: steps::steps(policy, request, &decision, stage),
        audited: decision.audited.iter().filter_map(|name| found(audit, name)).collect(),
        nearest,
        dry_run: shadow::shadow(policy, request, &decision),
        consulted: decision.consulted,
    }
}

impl Explanation {
    /// A connection whose certificate is of a trust domain that the mesh does not accept: no policy gets to see it
    /// (semantics §3.3).
    pub fn refused_handshake(reason: &str) -> Self {
        let refused = Step { stage: Stage::Handshake, outcome: Outcome::Decided, detail: reason.to_owned() };
        Self {
            verdict: Verdict::Deny,
            stage: Stage::Handshake,
            reason: format!("denied in the TLS handshake: {reason}"),
            status: None,
            by: None,
            steps: vec![refused],
            consulted: Vec::new(),
            audited: Vec::new(),
            nearest: None,
            dry_run: None,
        }
    }
}

fn find<'r>(rules: Option<&'r [EffectiveRule]>, name: &str) -> Option<&'r EffectiveRule> {
    rules?.iter().find(|rule| rule.name() == name)
}

/// Under STRICT there is no filter chain for plaintext, and TCP has no answers: such connections are closed.
fn status(decision: &Decision, request: &Request) -> Option<u16> {
    if decision.verdict == Verdict::Allow || request.protocol == Protocol::Tcp {
        return None;
    }
    match &decision.deciding {
        Deciding::Mtls(_) => None,
        Deciding::Token(refusal) => Some(refusal.status()),
        Deciding::Deny(_) | Deciding::Allow(_) | Deciding::NoAllowPolicy | Deciding::DefaultDeny => Some(403),
    }
}

#[cfg(test)]
mod tests;
