//! When a call is sent again within one `send`, as AWS' own SDKs do in their standard mode.
//!
//! Not here: the retries of a whole task, which last hours (`worker`), and the sending (`mod`).
//!
//! Invariants
//! - A pause is random, so that many workers do not come back together, and never above its cap.
//! - What only waiting for AWS or an operator can cure is not sent again here.
//!
//! Sources: AWS SDKs Reference Guide, "Retry behavior"; botocore's `retries/standard.py`.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

use super::error::Class;

/// The longest pause, unless the server asks for a longer one.
const DELAY_MS_MAX: u64 = 20_000;
/// How much longer than our own pause the one that AWS asks for may be.
const ASKED_EXTRA_MS_MAX: u64 = 5_000;

/// How often a failure is answered by sending again, and how long to wait before. Attempts count from 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct RetryPolicy {
    /// Attempts in total.
    attempts_max: u32,
    /// The longest pause after the first attempt; it doubles with each.
    delay_ms_first: u64,
}

impl RetryPolicy {
    /// The policy for a class of failure; `None`: do not send again.
    ///
    /// A call that is not `repeatable` may have taken effect although no answer came, so only a throttled
    /// one, which certainly did nothing, is sent again.
    pub(super) const fn of(class: Class, repeatable: bool) -> Option<RetryPolicy> {
        match class {
            Class::Throttle => Some(RetryPolicy { attempts_max: 6, delay_ms_first: 1_000 }),
            Class::Transient if repeatable => Some(RetryPolicy { attempts_max: 3, delay_ms_first: 50 }),
            Class::Transient | Class::Wait | Class::Credentials | Class::Permanent => None,
        }
    }

    /// The pause after failed attempt `attempt`; `None`: give up.
    pub(super) fn delay_after(self, attempt: u32, asked: Asked, random: u64) -> Option<Duration> {
        if attempt >= self.attempts_max {
            return None;
        }
        let doubled = self.delay_ms_first.saturating_mul(2_u64.saturating_pow(attempt.saturating_sub(1)));
        let delay_ms = random % (doubled.min(DELAY_MS_MAX) + 1);
        Some(Duration::from_millis(match asked {
            Asked::Nothing => delay_ms,
            Asked::ByAws { delay_ms: asked } => delay_ms.max(asked.min(delay_ms + ASKED_EXTRA_MS_MAX)),
            Asked::ByServer { delay_s } => delay_ms.max(delay_s.saturating_mul(1_000)),
        }))
    }
}

/// A pause that the answer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// It asks for none.
    Nothing,
    /// `x-amz-retry-after`, which is followed within limits.
    ByAws {
        /// Milliseconds.
        delay_ms: u64,
    },
    /// `Retry-After` of other stores and of proxies.
    ByServer {
        /// Seconds.
        delay_s: u64,
    },
}

impl Asked {
    /// Reads the two headers. A `Retry-After` that is a date is passed over.
    pub(super) fn read(status: u16, amz_retry_after: Option<&str>, retry_after: Option<&str>) -> Asked {
        let number = |text: Option<&str>| text.and_then(|text| text.trim().parse::<u64>().ok());
        if let Some(delay_ms) = number(amz_retry_after) {
            return Asked::ByAws { delay_ms };
        }
        match number(retry_after) {
            Some(delay_s) if matches!(status, 429 | 503) => Asked::ByServer { delay_s },
            _ => Asked::Nothing,
        }
    }
}

/// A random number. Without a source of randomness the pauses are merely not random.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).map_or(u64::MAX, |()| u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap_and_end() {
        let longest = |class| -> Vec<u128> {
            let policy = RetryPolicy::of(class, true).unwrap();
            let delays = (1..).map_while(|attempt| {
                let capped = policy.delay_ms_first * 2_u64.pow(attempt - 1);
                policy.delay_after(attempt, Asked::Nothing, capped.min(DELAY_MS_MAX))
            });
            delays.map(|delay| delay.as_millis()).collect()
        };
        assert_eq!(longest(Class::Transient), [50, 100]);
        assert_eq!(longest(Class::Throttle), [1_000, 2_000, 4_000, 8_000, 16_000]);
        let policy = RetryPolicy::of(Class::Throttle, true).unwrap();
        for seed in 0..1_000 {
            let delay = policy.delay_after(5, Asked::Nothing, random().wrapping_add(seed)).unwrap();
            assert!(delay <= Duration::from_millis(16_000));
        }
    }

    #[test]
    fn only_what_may_be_repeated_is() {
        let cases = [
            (Class::Transient, true, true),
            (Class::Transient, false, false),
            (Class::Throttle, true, true),
            (Class::Throttle, false, true),
            (Class::Wait, true, false),
            (Class::Credentials, true, false),
            (Class::Permanent, true, false),
        ];
        for (class, repeatable, again) in cases {
            assert_eq!(RetryPolicy::of(class, repeatable).is_some(), again, "{class:?} {repeatable}");
        }
    }

    #[test]
    fn the_server_may_ask_for_a_pause() {
        let policy = RetryPolicy::of(Class::Throttle, true).unwrap();
        let cases: [(u16, Option<&str>, Option<&str>, u64); 7] = [
            (503, None, None, 10),
            (503, Some("300"), None, 300),
            (503, Some("5"), Some("60"), 10),
            (400, Some("99999"), None, 5_010),
            (503, None, Some("7"), 7_000),
            (400, None, Some("7"), 10),
            (503, None, Some("Wed, 21 Oct 2015 07:28:00 GMT"), 10),
        ];
        for (status, amz, plain, expected_ms) in cases {
            let delay = policy.delay_after(1, Asked::read(status, amz, plain), 10).unwrap();
            assert_eq!(delay, Duration::from_millis(expected_ms), "{status} {amz:?} {plain:?}");
        }
    }
}
