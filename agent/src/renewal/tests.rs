use proptest::prelude::*;

use super::*;

const START: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
const HOUR: Span = Span::HOUR;
const WEEK: Span = Span::WEEK;

fn from(now: OffsetDateTime, lifetime: Span) -> Validity {
    Validity { not_before: now, not_after: now + lifetime }
}

fn enrolled() -> Renewal {
    let mut renewal = Renewal::new(START);
    renewal.got(Which::Agent, from(START, WEEK), START, 0.0);
    renewal.got(Which::Workload, from(START, HOUR), START, 0.0);
    renewal
}

#[test]
fn first_the_agent_then_the_workload_then_nothing_until_the_half_life() {
    let mut renewal = Renewal::new(START);
    assert_eq!(renewal.next(START), Step::Join);
    renewal.got(Which::Agent, from(START, WEEK), START, 0.5);
    assert_eq!(renewal.next(START), Step::Workload);
    renewal.got(Which::Workload, from(START, HOUR), START, 0.5);
    assert_eq!(renewal.next(START), Step::Wait(Duration::from_secs(27 * 60)));
    assert_eq!(renewal.next(START + Span::minutes(27)), Step::Workload);
}

#[test]
fn an_agent_certificate_that_cannot_be_renewed_does_not_keep_the_workload_from_its_own() {
    let mut renewal = enrolled();
    let now = START + Span::hours(84);
    assert_eq!(renewal.next(now), Step::RenewAgent);
    renewal.failed(Which::Agent, now, 0.0);
    assert_eq!(renewal.next(now), Step::Workload);
    renewal.failed(Which::Workload, now, 0.0);
    assert_eq!(renewal.next(now), Step::Wait(schedule::FIRST_RETRY));
}

#[test]
fn what_has_expired_is_taken_away_once_and_asked_for_at_once() {
    let mut renewal = enrolled();
    let late = START + HOUR;
    assert!(!renewal.expire(Which::Workload, late - Span::SECOND));
    renewal.failed(Which::Workload, late, 0.0);
    assert!(renewal.expire(Which::Workload, late) && !renewal.expire(Which::Workload, late));
    assert_eq!((renewal.next(late), renewal.left(Which::Workload, late)), (Step::Workload, None));
    assert!(renewal.expire(Which::Agent, START + WEEK));
    assert_eq!(renewal.next(START + WEEK), Step::Join);
}

#[test]
fn the_documented_budget_is_what_is_left_when_an_outage_begins_at_the_worst_moment() {
    for (lifetime, budget) in [(HOUR, WORKLOAD_OUTAGE_BUDGET), (WEEK, AGENT_OUTAGE_BUDGET)] {
        for chance in [0.0, 0.5, 1.0] {
            let due = schedule::renewal(START, START + lifetime, chance);
            assert!(START + lifetime - due >= budget, "{lifetime} with {chance}");
        }
    }
}

#[test]
fn an_operator_is_called_when_renewal_fails_for_long_and_not_before() {
    let mut renewal = enrolled();
    assert!(!renewal.alert(START));
    renewal.failed(Which::Workload, START + Span::minutes(31), 0.0);
    assert!(!renewal.alert(START + Span::minutes(31)), "a hiccup");
    assert!(renewal.alert(START + Span::minutes(41)));
    renewal.got(Which::Workload, from(START + Span::minutes(42), HOUR), START + Span::minutes(42), 0.0);
    assert!(!renewal.alert(START + Span::minutes(42)));
}

#[test]
fn clocks_that_are_wrong_neither_storm_the_control_plane_nor_wait_for_years() {
    let mut renewal = enrolled();
    // Ours is 50 minutes ahead of the CA's.
    let ahead = START + Span::minutes(50);
    renewal.got(Which::Workload, from(START, HOUR), ahead, 0.0);
    assert_eq!(renewal.next(ahead), Step::Wait(Duration::from_secs(180)));
    // Set back by a year while waiting for the next try.
    renewal.failed(Which::Workload, ahead, 0.0);
    assert_eq!(renewal.next(ahead - Span::days(365)), Step::Workload);
}

#[test]
fn new_roots_ask_for_new_certificates_soon() {
    let mut renewal = enrolled();
    renewal.hurry(START, Duration::from_secs(10), 0.5);
    assert_eq!(renewal.next(START), Step::Wait(Duration::from_secs(5)));
    assert_eq!(renewal.next(START + Span::seconds(5)), Step::RenewAgent);
}

proptest! {
    /// With a control plane that sometimes answers, it never waits for nothing, and without failures never past the end
    /// of a certificate.
    #[test]
    fn it_never_sleeps_through_an_expiry(answers in proptest::collection::vec((any::<bool>(), 0.0..1.0f64), 1..200)) {
        let (mut renewal, mut now) = (Renewal::new(START), START);
        for (answered, chance) in answers {
            let (which, lifetime) = match renewal.next(now) {
                Step::Wait(wait) => {
                    prop_assert!(!wait.is_zero());
                    for which in [Which::Agent, Which::Workload] {
                        if let Some(left) = renewal.left(which, now).filter(|_| renewal.failures(which) == 0) {
                            prop_assert!(wait < left, "waits {wait:?} of {left}");
                        }
                    }
                    now += wait;
                    for which in [Which::Agent, Which::Workload] {
                        renewal.expire(which, now);
                    }
                    continue;
                }
                Step::Join | Step::RenewAgent => (Which::Agent, WEEK),
                Step::Workload => (Which::Workload, HOUR),
            };
            if answered {
                renewal.got(which, from(now, lifetime), now, chance);
            } else {
                renewal.failed(which, now, chance);
            }
        }
    }
}
