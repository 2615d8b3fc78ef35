use spiffe::{Mint, PrivateKey, SpiffeId, TrustBundle, Usage};
use time::macros::datetime;

use super::*;

const NOW: OffsetDateTime = datetime!(2026-08-01 12:00 UTC);
const TIMING: Timing = Timing { grace: Duration::minutes(5), leaf: Duration::DAY };

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn fresh() -> State {
    State::new(Material::create(&domain(), NOW).unwrap(), Origin::Own)
}

fn step_at(state: &State, wish: Wish, published: bool, after: Duration) -> Option<State> {
    step(state, wish, published, &domain(), NOW + after, TIMING).unwrap()
}

/// Whether a leaf that `state` signs chains to `bundle`, as far as the root goes.
fn trusted(state: &State, bundle: &TrustBundle) -> bool {
    state.signer.roots().unwrap().roots().all(|root| bundle.roots().any(|one| one == root))
}

#[test]
fn the_new_root_is_published_before_it_signs_and_the_old_one_trusted_until_its_leaves_are_gone() {
    let start = fresh();
    assert_eq!(step_at(&start, Wish::Keep, true, Duration::ZERO), None);
    let waiting = step_at(&start, Wish::New { at_once: false }, true, Duration::ZERO).unwrap();
    assert_eq!(waiting.signer, start.signer);
    let both = waiting.bundle().unwrap();
    assert_eq!(both.roots().len(), 2);
    // Nothing happens before every namespace has it, however long that takes, nor before the grace is over.
    assert_eq!(step_at(&waiting, Wish::Keep, false, Duration::DAY), None);
    let published = step_at(&waiting, Wish::Keep, true, Duration::DAY).unwrap();
    assert_eq!(published.signer, start.signer);
    assert_eq!(step_at(&published, Wish::Keep, true, Duration::DAY + Duration::minutes(4)), None);
    assert_eq!(step_at(&published, Wish::Keep, false, Duration::DAY + Duration::minutes(6)), None);
    let switched = step_at(&published, Wish::Keep, true, Duration::DAY + Duration::minutes(6)).unwrap();
    assert_ne!(switched.signer, start.signer);
    assert!(trusted(&switched, &both) && trusted(&start, &switched.bundle().unwrap()));
    // A second wish while one is under way changes nothing.
    assert_eq!(step_at(&waiting, Wish::New { at_once: false }, false, Duration::DAY), None);
    let last = Duration::days(2) + Duration::minutes(6) + MARGIN;
    assert_eq!(step_at(&switched, Wish::Keep, true, last - Duration::SECOND), None);
    let done = step_at(&switched, Wish::Keep, true, last).unwrap();
    assert_eq!(done.bundle().unwrap().roots().len(), 1);
    assert_eq!(step_at(&done, Wish::Keep, true, last), None);
}

#[test]
fn every_state_survives_the_secret() {
    let start = fresh();
    let waiting = step_at(&start, Wish::New { at_once: true }, false, Duration::ZERO).unwrap();
    let switched = step_at(&waiting, Wish::Keep, true, Duration::HOUR).unwrap();
    for state in [start, waiting, switched] {
        let secret = state.to_secret("istio-system", "countersign-ca", Some("7")).unwrap();
        assert_eq!(State::from_secret(&secret, &domain()).unwrap(), state);
        let other: TrustDomain = "other.example".parse().unwrap();
        assert!(matches!(State::from_secret(&secret, &other), Err(MaterialError::TrustDomain { .. })));
        let text = format!("{secret:?}{state:?}");
        assert!(!text.contains("PRIVATE KEY"));
    }
}

#[test]
fn at_once_skips_the_grace_but_not_the_publication() {
    let start = fresh();
    let waiting = step_at(&start, Wish::New { at_once: true }, false, Duration::ZERO).unwrap();
    assert_eq!(step_at(&waiting, Wish::Keep, false, Duration::DAY), None);
    assert_ne!(step_at(&waiting, Wish::Keep, true, Duration::SECOND).unwrap().signer, start.signer);
    // Also one that is under way already.
    let slow = step_at(&start, Wish::New { at_once: false }, false, Duration::ZERO).unwrap();
    let hurried = step_at(&slow, Wish::New { at_once: true }, false, Duration::SECOND).unwrap();
    assert!(step_at(&hurried, Wish::Keep, true, Duration::SECOND).unwrap().next.is_none());
}

#[test]
fn an_ageing_root_of_ours_is_replaced_and_a_plugged_one_is_the_operators() {
    let mut state = fresh();
    let late = ROOT_LIFETIME - Duration::days(729);
    assert!(step_at(&state, Wish::Keep, true, ROOT_LIFETIME - Duration::days(731)).is_none());
    assert!(step_at(&state, Wish::Keep, true, late).unwrap().next.is_some());
    state.origin = Origin::Plugged;
    assert!(step_at(&state, Wish::Keep, true, late).is_none());
}

#[test]
fn a_plugged_authority_goes_through_the_same_steps_and_can_be_taken_back() {
    let (start, plugged) = (fresh(), Material::create(&domain(), NOW).unwrap());
    let waiting = step_at(&start, Wish::Plugged(plugged.clone()), true, Duration::ZERO).unwrap();
    assert_eq!((&waiting.signer, waiting.next.as_ref().unwrap().published), (&start.signer, None));
    assert_eq!(step_at(&waiting, Wish::Plugged(plugged.clone()), false, Duration::DAY), None);
    let back = step_at(&waiting, Wish::Plugged(start.signer), true, Duration::DAY).unwrap();
    assert_eq!(back.next, None);
    let published = step_at(&waiting, Wish::Plugged(plugged.clone()), true, Duration::DAY).unwrap();
    let after = Duration::DAY + Duration::minutes(5);
    let switched = step_at(&published, Wish::Plugged(plugged.clone()), true, after).unwrap();
    assert_eq!(switched.signer, plugged);
    assert_eq!(switched.origin, Origin::Plugged);
}

#[test]
fn an_intermediate_signs_below_its_root_and_is_replaced_at_once() {
    let intermediate = super::super::material::testing::intermediate;
    let (root, first) = intermediate(None);
    let authority = first.authority().unwrap();
    assert_eq!(authority.intermediates().len(), 1);
    let key = PrivateKey::generate().unwrap();
    let id = SpiffeId::workload(&domain(), "shop", "orders").unwrap();
    let mint = Mint { id, dns_names: vec![], lifetime: Duration::HOUR, usage: Usage::ServerAndClient };
    assert!(authority.sign_own(&key, &mint, OffsetDateTime::now_utc()).is_ok());
    let state = State::new(first, Origin::Plugged);
    let (_, second) = intermediate(Some(root));
    let switched = step_at(&state, Wish::Plugged(second.clone()), false, Duration::ZERO).unwrap();
    assert_eq!(switched.signer, second);
    assert_eq!(switched.bundle().unwrap(), state.bundle().unwrap());
}

#[test]
fn keys_from_nowhere_become_a_change_of_roots() {
    let (held, foreign) = (fresh(), fresh());
    let gentle = gentler(&held, &foreign).unwrap();
    assert_eq!((&gentle.signer, &gentle.next.as_ref().unwrap().material), (&held.signer, &foreign.signer));
    // The steps of our own are none: each goes on trusting the last signer.
    let waiting = step_at(&held, Wish::New { at_once: true }, false, Duration::ZERO).unwrap();
    let switched = step_at(&waiting, Wish::Keep, true, Duration::ZERO).unwrap();
    let last = step_at(&switched, Wish::Keep, true, Duration::days(3)).unwrap();
    for (before, after) in [(&held, &waiting), (&waiting, &switched), (&held, &switched), (&switched, &last)]
    {
        assert_eq!(gentler(before, after), None);
    }
    assert_eq!(gentler(&held, &gentle), None);
}
