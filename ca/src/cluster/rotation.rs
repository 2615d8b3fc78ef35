//! The steps of a change of roots. Pure: what is wanted, what is published and the time are passed in.
//!
//! ```text
//! signer A ─► next B: A signs, A and B are trusted ─► B is in every namespace ─► grace ─► B signs, A and B are trusted ─►
//! no leaf of A can live ─► B signs, B is trusted
//! ```

use spiffe::{AuthorityError, TrustDomain};
use time::{Duration, OffsetDateTime};

use super::material::{Material, MaterialError, Next, Origin, Retired, State};
use crate::ROOT_LIFETIME;

/// A root of ours is replaced when less than a fifth of its life is left.
const RENEW_ROOT_AT: i32 = 5;
/// For clocks, and for leaves signed while the Secret's change is on its way to other replicas.
const MARGIN: Duration = Duration::HOUR;

/// How long to wait for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From "the new root is in every namespace" to the first leaf under it: until kubelets have shown it to pods, and
    /// agents that learn of roots only with a certificate have asked for one.
    pub grace: Duration,
    /// The longest life of a leaf.
    pub leaf: Duration,
}

/// What the operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// What is.
    Keep,
    /// A new root of our making; `at_once`: without the grace.
    New { at_once: bool },
    /// To sign with this.
    Plugged(Material),
}

/// The next state, if there is anything to do. `published` says whether every namespace has all that `state` trusts.
pub(crate) fn step(
    state: &State,
    wish: Wish,
    published: bool,
    domain: &TrustDomain,
    now: OffsetDateTime,
    timing: Timing,
) -> Result<Option<State>, MaterialError> {
    let mut new = state.clone();
    new.retired.retain(|retired| now < retired.until);
    match wish {
        Wish::Plugged(material) => plug(&mut new, material)?,
        Wish::New { at_once } => create(&mut new, at_once, domain, now)?,
        Wish::Keep if new.next.is_none() && new.origin == Origin::Own && ages(&new.signer, now)? => {
            create(&mut new, false, domain, now)?;
        }
        Wish::Keep => {}
    }
    // Only what was published under this very state counts.
    if published && new.next == state.next {
        advance(&mut new, now, timing);
    }
    Ok((new != *state).then_some(new))
}

/// What to do instead of `new`, if that forgets what `held` signs with: then workloads would lose their peers at once. `held`
/// goes on signing, and the new signer follows by the usual steps. Every step of ours goes on trusting the last signer.
///
/// Only for a change that was seen to happen: whoever slept through a whole change of roots must not bring the old one back.
pub(crate) fn gentler(held: &State, new: &State) -> Option<State> {
    let (signing, trusted) = (held.signer.roots().ok()?, new.bundle().ok()?);
    if signing.roots().all(|root| trusted.roots().any(|one| one == root)) {
        return None;
    }
    let State { signer, origin, next: _, retired } = new;
    let next = Next { material: signer.clone(), origin: *origin, published: None, at_once: false };
    let mut gentler = State { next: Some(next), ..held.clone() };
    gentler.retired.extend(retired.iter().filter(|retired| !held.retired.contains(retired)).cloned());
    Some(gentler)
}

fn plug(state: &mut State, material: Material) -> Result<(), MaterialError> {
    if state.signer == material {
        // Taken back before it signed anything.
        state.next = None;
        state.origin = Origin::Plugged;
    } else if state.next.as_ref().is_none_or(|next| next.material != material) {
        let (trusted, roots) = (state.signer.roots()?, material.roots()?);
        let same = |root: &[u8]| trusted.roots().any(|one| one == root);
        if roots.roots().all(same) {
            // Another certificate below the same root: everybody trusts it already.
            *state = State {
                signer: material,
                origin: Origin::Plugged,
                next: None,
                retired: state.retired.clone(),
            };
        } else {
            state.next = Some(Next { material, origin: Origin::Plugged, published: None, at_once: false });
        }
    }
    Ok(())
}

fn create(
    state: &mut State,
    at_once: bool,
    domain: &TrustDomain,
    now: OffsetDateTime,
) -> Result<(), MaterialError> {
    match &mut state.next {
        Some(next) => next.at_once |= at_once,
        None => {
            let material = Material::create(domain, now)?;
            state.next = Some(Next { material, origin: Origin::Own, published: None, at_once });
        }
    }
    Ok(())
}

fn ages(signer: &Material, now: OffsetDateTime) -> Result<bool, MaterialError> {
    match signer.authority() {
        Ok(authority) => Ok((authority.not_after() - now) * RENEW_ROOT_AT < ROOT_LIFETIME),
        Err(MaterialError::Authority(AuthorityError::Expired(_))) => Ok(true),
        Err(error) => Err(error),
    }
}

fn advance(state: &mut State, now: OffsetDateTime, timing: Timing) {
    let Some(next) = &mut state.next else { return };
    let published = *next.published.get_or_insert(now);
    if !next.at_once && now < published + timing.grace {
        return;
    }
    let Some(Next { material, origin, published: _, at_once: _ }) = state.next.take() else { return };
    let old = std::mem::replace(&mut state.signer, material);
    state.origin = origin;
    state.retired.push(Retired { roots: old.roots_pem().to_owned(), until: now + timing.leaf + MARGIN });
}

#[cfg(test)]
mod tests;
