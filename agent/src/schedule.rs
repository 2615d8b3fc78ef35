//! When to renew and how long to wait after a failure. Pure: time and chance are passed in.

use std::time::Duration;

use time::OffsetDateTime;

/// Waits after failures double from here ..
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// .. up to here.
const LONGEST_RETRY: Duration = Duration::from_secs(15);
/// Part of the half life by which renewals of many agents are spread, each way.
const JITTER: f64 = 0.1;

/// How long from `now` until a certificate should be renewed: half its lifetime, ± 10 % (`chance` in 0..1); nothing if
/// that has passed.
pub(crate) fn until_renewal(
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    now: OffsetDateTime,
    chance: f64,
) -> Duration {
    let half = (not_after - not_before) / 2;
    let due = not_before + half * (1.0 + JITTER * (2.0 * chance - 1.0));
    Duration::try_from(due - now).unwrap_or(Duration::ZERO)
}

/// How long to wait after the `failures`-th failure in a row (from 1): doubling, capped, less up to half by `chance`.
pub(crate) fn retry(failures: u32, chance: f64) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1).min(16)));
    doubled.min(LONGEST_RETRY).mul_f64(1.0 - chance / 2.0)
}

#[cfg(test)]
mod tests {
    use time::Duration as Span;

    use super::*;

    #[test]
    fn renewal_is_due_around_the_half_life() {
        let start = OffsetDateTime::UNIX_EPOCH;
        let end = start + Span::hours(1);
        for (chance, minutes) in [(0.0, 27), (0.5, 30), (1.0, 33)] {
            assert_eq!(until_renewal(start, end, start, chance), Duration::from_secs(minutes * 60));
        }
        assert_eq!(until_renewal(start, end, start + Span::minutes(40), 0.5), Duration::ZERO);
        assert_eq!(until_renewal(start, end, end + Span::days(1), 0.5), Duration::ZERO);
    }

    #[test]
    fn retries_double_and_stop_growing() {
        assert_eq!(retry(1, 0.0), FIRST_RETRY);
        assert_eq!(retry(2, 0.0), FIRST_RETRY * 2);
        assert_eq!(retry(2, 1.0), FIRST_RETRY);
        assert_eq!(retry(1000, 0.0), LONGEST_RETRY);
    }
}
