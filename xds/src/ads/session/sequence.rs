//! The order in which policy slots change (design decision 3). Pure; who acknowledged what is the session's business.
//!
//! Envoy applies extension configs one by one in no promised order. So that no mixture of an old and a new policy admits
//! what both refuse, a change of the DENY slot and others goes in steps, each acknowledged before the next:
//!
//! 1. DENY = old ∪ new. It only tightens, so it waits for nothing.
//! 2. The other slots. Whatever mixture of them is in force, what either version denies is denied.
//! 3. DENY = new, once every other slot is what the snapshot wants.
//!
//! A proxy that comes from another control plane (or from before a restart) holds a DENY slot that cannot be read back,
//! so there is no union. Then the new policy is put in front of whatever is in use: the AUDIT slot, which decides
//! nothing, enforces the new ALLOW rules; then DENY = new; then the others; then AUDIT = new. Every state on the way
//! admits a part of what the old policy or of what the new one admits; whom both admit never notices. Only if the AUDIT
//! slot is already taken by such a guard for another policy (the stream broke within these steps, and the policy
//! changed once more), DENY refuses everything for as long as it takes to change the others.
//!
//! A slot that the proxy refuses keeps its last good content. If that is DENY, no other slot in use changes either: an
//! ALLOW policy that became a DENY policy would otherwise be gone without the DENY being there. If it is another slot,
//! DENY stays the union, for the same reason. Slots that are not in use yet (the listener that asks for them still waits
//! for them) are sent at once.
//!
//! What this does not cover: a rule that moves between CUSTOM and ALLOW or DENY. Its pair of slots is among "the others".

mod content;

use std::sync::Arc;

use super::held::Holding;
use crate::build::rbac::{self, DENY_SLOT};
use crate::resource::{Layers, Resource};

const ALLOW_SLOT: &str = "inbound.rbac.allow";
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
