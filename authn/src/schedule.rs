//! When to renew and how long to wait after a failure. Pure: time and chance are passed in.

use std::time::Duration;

use time::OffsetDateTime;

/// Waits after failures double from here ..
pub const FIRST_RETRY: Duration = Duration::from_millis(250);
/// .. up to here.
pub const LONGEST_RETRY: Duration = Duration::from_secs(15);
/// Renewals of many agents are spread over the last fifth of the first half of the lifetime: 45 % ± 5 % of it. Never past
/// the half, so that an outage finds at least half a lifetime left.
const SPREAD: f64 = 0.2;

/// When a certificate should be renewed: at half its lifetime or up to a fifth of that earlier (`chance` in 0..1).
pub fn renewal(not_before: OffsetDateTime, not_after: OffsetDateTime, chance: f64) -> OffsetDateTime {
    let half = (not_after - not_before) / 2;
    not_before + half * (1.0 - SPREAD * chance.clamp(0.0, 1.0))
}

/// How long to wait after the `failures`-th failure in a row (from 1): doubling, capped, less up to half by `chance`.
pub fn retry(failures: u32, chance: f64) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1).min(16)));
    doubled.min(LONGEST_RETRY).mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::Duration as Span;

    use super::*;

    #[test]
    fn renewal_is_due_at_the_half_life_or_a_little_before() {
        let start = OffsetDateTime::UNIX_EPOCH;
        let end = start + Span::hours(1);
        for (chance, minutes) in [(0.0, 30), (0.5, 27), (1.0, 24)] {
            assert_eq!(renewal(start, end, chance), start + Span::minutes(minutes));
        }
    }

    #[test]
    fn retries_double_and_stop_growing() {
        assert_eq!(retry(1, 0.0), FIRST_RETRY);
        assert_eq!(retry(2, 0.0), FIRST_RETRY * 2);
        assert_eq!(retry(2, 1.0), FIRST_RETRY);
        assert_eq!(retry(1000, 0.0), LONGEST_RETRY);
    }

    proptest! {
        #[test]
        fn at_least_half_of_any_lifetime_is_left(seconds in 1i64..100_000_000, chance in 0.0..1.0f64) {
            let start = OffsetDateTime::UNIX_EPOCH;
            let lifetime = Span::seconds(seconds);
            let due = renewal(start, start + lifetime, chance) - start;
            prop_assert!(due * 2 <= lifetime, "{due} of {lifetime}");
            prop_assert!(due * 10 >= lifetime * 4 - Span::SECOND, "{due} of {lifetime}");
        }

        #[test]
        fn retries_never_shrink_below_half_the_last_nor_pass_the_cap(failures in 1u32.., chance in 0.0..1.0f64) {
            let wait = retry(failures, chance);
            prop_assert!(wait <= LONGEST_RETRY && wait >= FIRST_RETRY / 2);
            prop_assert!(retry(failures.saturating_add(1), chance) >= wait, "more failures wait no less");
        }
    }
}
