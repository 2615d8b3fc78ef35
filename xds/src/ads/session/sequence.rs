//! The order in which policy slots change (design decision 3). Pure; who acknowledged what is the session's business.
//!
//! Envoy applies extension configs one by one in no promised order. So that no mixture of an old and a new policy admits
//! what both refuse, a change of the DENY slot and one other goes in steps, each acknowledged before the next:
//!
//! 1. DENY = old ∪ new. It only tightens, so it waits for nothing.
//! 2. The other slot. Whichever is in force, what either version denies is denied.
//! 3. DENY = new, once every other slot is what the snapshot wants.
//!
//! If several of CUSTOM, JWT and ALLOW change together, each slot first refuses what the old *or* the new policy refuses
//! in it: DENY = old ∪ new; CUSTOM asks its provider about what old *or* new asks about; and the AUDIT slot, which decides
//! nothing, enforces the new ALLOW rules in front of the old ones. Until that is acknowledged, everything that the old
//! policy refuses is refused; afterwards everything that the new one refuses. Between the two JWT changes, which cannot
//! be both at once. Then CUSTOM and ALLOW become the new ones, then DENY, then AUDIT. A request that only the new JWT slot
//! identifies may be refused until that is in force.
//!
//! A proxy that comes from another control plane (or from before a restart) holds slots that cannot be read back, so
//! there is no union. If DENY is one and only ALLOW changes with it, the new policy is put in front of whatever is in
//! use: AUDIT enforces the new ALLOW rules; then DENY = new; then ALLOW; then AUDIT = new. Every state on the way admits a
//! part of what the old policy or of what the new one admits; whom both admit never notices. In every other case DENY
//! refuses everything for as long as it takes to change the others.
//!
//! A slot that the proxy refuses keeps its last good content. If that is DENY, no other slot in use changes either: an
//! ALLOW policy that became a DENY policy would otherwise be gone without the DENY being there. If it is another slot,
//! DENY stays the union, for the same reason. Slots that are not in use yet (the listener that asks for them still waits
//! for them) are sent at once.

mod content;

use std::sync::Arc;

use super::held::Holding;
use crate::build::rbac::{self, DENY_SLOT};
use crate::resource::{Layers, Resource};

const ALLOW_SLOT: &str = "inbound.rbac.allow";
const JWT_SLOT: &str = "inbound.jwt_authn";
/// Decides nothing, so it can take a guard.
pub(super) const AUDIT_SLOT: &str = "inbound.rbac.audit";

/// A resource that is not what the snapshot wants.
#[derive(Clone, Debug)]
pub(super) struct Difference {
    pub(super) name: Arc<str>,
    /// `None`: to be removed.
    pub(super) target: Option<Resource>,
    /// The proxy refused exactly this.
    pub(super) refused: bool,
}

/// What is sent.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) name: Arc<str>,
    /// `None`: removed.
    pub(super) resource: Option<Resource>,
    /// A step on the way: the slot of the snapshot that is to blame if it is refused.
    pub(super) on_behalf_of: Option<Resource>,
}

impl From<&Difference> for Change {
    fn from(difference: &Difference) -> Self {
        let Difference { name, target, refused: _ } = difference;
        Self { name: name.clone(), resource: target.clone(), on_behalf_of: None }
    }
}

/// What to send of `differences` now. `holds` is what the proxy has of a slot.
pub(super) fn step(
    differences: &[Difference],
    wanted: &Layers,
    holds: &dyn Fn(&str) -> Holding,
) -> Vec<Change> {
    let in_use = |d: &&Difference| !matches!(holds(&d.name), Holding::Nothing);
    let (used, fresh): (Vec<&Difference>, Vec<&Difference>) = differences.iter().partition(in_use);
    let fresh = fresh.into_iter().filter(|d| !d.refused).map(Change::from);
    fresh.chain(Used::new(&used, wanted, holds).step()).collect()
}

/// The differences in slots that a listener uses.
struct Used<'a> {
    deny: Option<&'a Difference>,
    /// An AUDIT slot that enforces, or may: a guard that is still there.
    guard: Option<&'a Difference>,
    others: Vec<&'a Difference>,
    wanted: &'a Layers,
    holds: &'a dyn Fn(&str) -> Holding,
}

impl<'a> Used<'a> {
    fn new(used: &[&'a Difference], wanted: &'a Layers, holds: &'a dyn Fn(&str) -> Holding) -> Self {
        let mut sorted = Self { deny: None, guard: None, others: Vec::new(), wanted, holds };
        for difference in used {
            match &*difference.name {
                DENY_SLOT => sorted.deny = Some(difference),
                AUDIT_SLOT if !passive(&holds(AUDIT_SLOT)) => sorted.guard = Some(difference),
                _ => sorted.others.push(difference),
            }
        }
        sorted
    }

    fn step(&self) -> Vec<Change> {
        if matches!((self.holds)(DENY_SLOT), Holding::Has(held) if content::denies_everything(&held)) {
            return match self.deny {
                Some(deny) if deny.refused => Vec::new(),
                deny if self.others.is_empty() => self.finish(deny),
                _ => self.change_others(),
            };
        }
        if self.others.iter().filter(|d| decides(&d.name)).count() > 1 {
            return self.change_together();
        }
        let Some(deny) = self.deny else { return self.change_others() };
        let (false, Some(target)) = (deny.refused, &deny.target) else { return Vec::new() };
        if self.others.is_empty() {
            return self.finish(Some(deny));
        }
        match (self.holds)(&deny.name) {
            Holding::Has(held) => {
                let both = rbac::union(&held, target).unwrap_or_else(|_| content::deny_everything(DENY_SLOT));
                if both.hash == held.hash { self.change_others() } else { vec![on_the_way(both, target)] }
            }
            Holding::Nothing | Holding::Maybe(_) | Holding::Unknown => self.replace_unknown(deny, target),
        }
    }

    /// Several slots besides DENY are to change, each of which may be all that refuses a request.
    fn change_together(&self) -> Vec<Change> {
        if self.deny.is_some_and(|deny| deny.refused) {
            return Vec::new();
        }
        let Some(tightened) = self.tighten() else { return self.close() };
        if !tightened.is_empty() {
            return tightened;
        }
        // What keeps its last good content may be relied upon by either version: it stays at both.
        if self.others.iter().any(|d| d.refused && decides(&d.name)) {
            return Vec::new();
        }
        let first = |d: &&&Difference| !d.refused && *d.name != *ALLOW_SLOT && !custom(&d.name);
        let changes: Vec<Change> = self.others.iter().filter(first).map(|d| Change::from(*d)).collect();
        match self.others.iter().find(|d| *d.name == *ALLOW_SLOT) {
            _ if !changes.is_empty() => changes,
            // Alone, so that nothing else is in doubt if it is refused.
            Some(allow) => vec![Change::from(*allow)],
            None => self.change_others(),
        }
    }

    /// The next step to where each slot refuses what the old or the new policy refuses in it; empty once they do. `None`
    /// if nobody knows what is there. DENY and the guard are sent alone, so that nothing else is in doubt if they are
    /// refused.
    fn tighten(&self) -> Option<Vec<Change>> {
        if let Some(Difference { name, target: Some(target), .. }) = self.deny
            && let Some(both) = self.both(name, target, rbac::union)?
        {
            return Some(vec![both]);
        }
        let allow = self.others.iter().find(|d| *d.name == *ALLOW_SLOT && !d.refused);
        if let Some(target) = allow.and_then(|d| d.target.as_ref())
            && let Some(guard) = content::enforce(target, AUDIT_SLOT).ok()?
        {
            match (self.holds)(AUDIT_SLOT) {
                Holding::Has(held) if held.hash == guard.hash => {}
                Holding::Nothing => return None,
                held if passive(&held) => return Some(vec![on_the_way(guard, target)]),
                _ => return None,
            }
        }
        let mut changes = Vec::new();
        for Difference { name, target, refused } in &self.others {
            if let (true, Some(target), false) = (custom(name), target, refused) {
                changes.extend(self.both(name, target, rbac::union_custom)?);
            }
        }
        Some(changes)
    }

    /// What makes a slot the union of what is in it and `target`: `Some(None)` if it is.
    fn both(&self, name: &str, target: &Resource, union: Union) -> Option<Option<Change>> {
        let Holding::Has(held) = (self.holds)(name) else { return None };
        let both = union(&held, target).ok()?;
        Some((both.hash != held.hash).then(|| on_the_way(both, target)))
    }

    /// Refuses everything until the others are what they are to be.
    fn close(&self) -> Vec<Change> {
        match (self.wanted.get(DENY_SLOT), (self.holds)(DENY_SLOT)) {
            // No listener uses it.
            (None, _) | (_, Holding::Nothing) => self.change_others(),
            (Some(target), _) => vec![on_the_way(content::deny_everything(DENY_SLOT), target)],
        }
    }

    fn change_others(&self) -> Vec<Change> {
        let pending: Vec<Change> =
            self.others.iter().filter(|d| !d.refused).map(|d| Change::from(*d)).collect();
        // While the ALLOW rules are not the ones that the guard stands for, it stays.
        let unguarded = self.others.iter().any(|d| *d.name == *ALLOW_SLOT);
        if pending.is_empty() && !unguarded { self.finish(None) } else { pending }
    }

    /// Nothing else is left to change: DENY, and once that is in force the guard goes.
    fn finish(&self, deny: Option<&Difference>) -> Vec<Change> {
        let last = match (deny, self.guard) {
            (Some(deny), _) => Some(deny.into()),
            // A guard must not stay because what is to replace it cannot.
            (None, Some(Difference { target: Some(target), refused: true, .. })) => {
                Some(on_the_way(content::nothing(AUDIT_SLOT), target))
            }
            (None, guard) => guard.map(Change::from),
        };
        last.into_iter().collect()
    }

    /// DENY and others are to change, and nobody knows what DENY is now.
    fn replace_unknown(&self, deny: &Difference, target: &Resource) -> Vec<Change> {
        if self.others.iter().any(|d| d.refused) {
            // DENY could only become the new one alone, which the others' last good versions may rely on not to happen.
            return Vec::new();
        }
        if self.others.iter().any(|d| decides(&d.name) && *d.name != *ALLOW_SLOT) {
            return self.close();
        }
        let Some(allow) = self.wanted.get(ALLOW_SLOT) else { return vec![deny.into()] };
        let closed = || vec![on_the_way(content::deny_everything(DENY_SLOT), target)];
        let Ok(guard) = content::enforce(allow, AUDIT_SLOT) else { return closed() };
        // Without, the new policy admits all that the new DENY does not deny.
        let Some(guard) = guard else { return vec![deny.into()] };
        match (self.holds)(AUDIT_SLOT) {
            Holding::Has(held) if held.hash == guard.hash => vec![deny.into()],
            Holding::Nothing => closed(),
            held if passive(&held) => vec![on_the_way(guard, allow)],
            _ => closed(),
        }
    }
}

type Union = fn(&Resource, &Resource) -> Result<Resource, prost::DecodeError>;

/// The half of a CUSTOM pair that says which requests the provider is asked about.
fn custom(name: &str) -> bool {
    name.starts_with("inbound.custom.") && name.ends_with(".rbac")
}

/// Whether a request may be refused because of what the slot holds. (An ext_authz filter is asked only if the other half of
/// its pair says so, and depends on no policy.)
fn decides(name: &str) -> bool {
    name == ALLOW_SLOT || name == JWT_SLOT || custom(name)
}

/// What the AUDIT slot holds decides nothing. A guard is sent alone, so it is never what was refused together with others.
fn passive(held: &Holding) -> bool {
    match held {
        Holding::Has(r) | Holding::Maybe(Some(r)) => !content::enforces(r),
        Holding::Nothing | Holding::Maybe(None) => true,
        Holding::Unknown => false,
    }
}

fn on_the_way(resource: Resource, target: &Resource) -> Change {
    let on_behalf_of = (resource.hash != target.hash).then(|| target.clone());
    Change { name: resource.name.clone(), resource: Some(resource), on_behalf_of }
}
