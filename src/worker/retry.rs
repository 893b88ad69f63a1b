//! When a task that failed runs again: policies as data.
//!
//! Not here: the retries of a single AWS call, which take seconds (`aws::retry`).

use std::time::Duration;

use crate::random;
use crate::store::TaskKind;

/// When to run a failed task again. Attempts count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RetryPolicy {
    /// The pause after the first attempt; it doubles with each.
    delay_s_first: u32,
    /// The longest pause.
    delay_s_max: u32,
    /// Attempts in all.
    pub(super) attempts_max: u32,
}

impl RetryPolicy {
    /// All policies on one screen.
    #[rustfmt::skip]
    pub(super) const fn of(kind: &TaskKind) -> RetryPolicy {
        match kind {
            // its deadline ends it before the attempts do, unless it fails at once again and again
            TaskKind::Provision         => RetryPolicy { delay_s_first: 1,  delay_s_max: 60,    attempts_max: 30 },
            // nobody asks again: the platform has forgotten the instance
            TaskKind::Delete            => RetryPolicy { delay_s_first: 2,  delay_s_max: 3_600, attempts_max: u32::MAX },
            TaskKind::Sweep             => RetryPolicy { delay_s_first: 10, delay_s_max: 3_600, attempts_max: u32::MAX },
            // the platform has written down the new plan already; what AWS refuses for good is put back
            TaskKind::ChangePlans       => RetryPolicy { delay_s_first: 1,  delay_s_max: 300,   attempts_max: u32::MAX },
            TaskKind::RotateCredentials => RetryPolicy { delay_s_first: 1,  delay_s_max: 60,    attempts_max: 10 },
            // somebody was told that the key ends
            TaskKind::RemovePreviousKey => RetryPolicy { delay_s_first: 5,  delay_s_max: 3_600, attempts_max: u32::MAX },
            // a key that nobody knows must not stay
            TaskKind::RemoveUnknownKeys => RetryPolicy { delay_s_first: 5,  delay_s_max: 3_600, attempts_max: u32::MAX },
            // who pays stands in the tags, and whose an instance of the stock has become
            TaskKind::Tag               => RetryPolicy { delay_s_first: 5,  delay_s_max: 3_600, attempts_max: u32::MAX },
            TaskKind::Check             => RetryPolicy { delay_s_first: 10, delay_s_max: 600,   attempts_max: 5 },
            TaskKind::NotifyCreateService | TaskKind::NotifyCreateBinding
                                        => RetryPolicy { delay_s_first: 10, delay_s_max: 600,   attempts_max: 12 },
            TaskKind::ResyncFromProvider | TaskKind::ResyncUntilAvailable | TaskKind::PerformPostProvision
                                        => RetryPolicy { delay_s_first: 5,  delay_s_max: 600,   attempts_max: 12 },
            TaskKind::ChangeProviders | TaskKind::RestoreDatabase | TaskKind::Unknown(_)
                                        => RetryPolicy { delay_s_first: 1,  delay_s_max: 1,     attempts_max: 1 },
        }
    }

    /// The pause after failed attempt `attempt`, doubling up to the cap; `None`: give up.
    pub(super) fn delay_after(self, attempt: u32) -> Option<Duration> {
        if attempt >= self.attempts_max {
            return None;
        }
        let doubled = self.delay_s_first.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1)));
        Some(Duration::from_secs(doubled.min(self.delay_s_max).into()))
    }
}

/// Whether a task goes on trying what AWS refuses for good: what it removes must not stay, what it writes be missing.
pub(super) fn outlasts_refusal(kind: &TaskKind) -> bool {
    matches!(
        kind,
        TaskKind::Delete
            | TaskKind::Sweep
            | TaskKind::RemovePreviousKey
            | TaskKind::RemoveUnknownKeys
            | TaskKind::Tag
    )
}

/// Takes a random part, a quarter at most, off a pause, so that many do not come back together.
pub(super) fn spread(pause: Duration) -> Duration {
    let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(pause_ms - random::below(pause_ms / 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_cap() {
        let policy = RetryPolicy { delay_s_first: 2, delay_s_max: 60, attempts_max: 8 };
        let delays: Vec<_> = (1..=8).map(|it| policy.delay_after(it).map(|it| it.as_secs())).collect();
        let expected = [2, 4, 8, 16, 32, 60, 60].map(Some);
        assert_eq!((&delays[..7], delays[7]), (&expected[..], None));
    }

    #[test]
    fn what_must_not_stay_or_was_promised_is_never_given_up() {
        use TaskKind::{ChangePlans, Delete, RemovePreviousKey, RemoveUnknownKeys, Sweep, Tag};
        for (kind, delay_s, refused) in [
            (Delete, 3_600, true),
            (Sweep, 3_600, true),
            (RemovePreviousKey, 3_600, true),
            (RemoveUnknownKeys, 3_600, true),
            (Tag, 3_600, true),
            (ChangePlans, 300, false),
        ] {
            let delay = RetryPolicy::of(&kind).delay_after(u32::MAX - 1);
            assert_eq!(delay, Some(Duration::from_secs(delay_s)), "{kind:?}");
            assert_eq!(outlasts_refusal(&kind), refused, "{kind:?}");
        }
        assert_eq!(RetryPolicy::of(&TaskKind::Unknown("x".into())).delay_after(1), None);
    }

    #[test]
    fn a_webhook_is_told_of_for_an_hour_at_most() {
        let policy = RetryPolicy::of(&TaskKind::NotifyCreateService);
        let pauses: Duration = (1..).map_while(|it| policy.delay_after(it)).sum();
        assert_eq!((policy.attempts_max, pauses), (12, Duration::from_secs(3_630)));
    }

    #[test]
    fn spread_takes_a_quarter_off_at_most() {
        for _ in 0..100 {
            let pause = spread(Duration::from_secs(8));
            assert!((Duration::from_secs(6)..=Duration::from_secs(8)).contains(&pause), "{pause:?}");
        }
        assert_eq!(spread(Duration::ZERO), Duration::ZERO);
    }
}
