//! What goes wrong by chance, the same for the same seed and order of calls.

use std::time::Duration;

use super::call::Call;
use super::faults::{Fault, When};

/// How bad it is.
#[derive(Debug, Clone)]
pub(crate) struct Weather {
    /// Calls of a thousand that fail.
    pub(crate) failing_per_mille: u64,
    /// Calls of a thousand that AWS refuses for good.
    pub(crate) refused_per_mille: u64,
    /// The shortest and the longest that a call takes more.
    pub(crate) latency: (Duration, Duration),
    /// The state of the random numbers; not zero.
    pub(crate) seed: u64,
}

impl Weather {
    /// A random number below `limit` (xorshift64).
    fn below(&mut self, limit: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % limit.max(1)
    }

    /// What happens to a call.
    pub(super) fn strike(&mut self, call: &Call) -> Vec<(When, Fault)> {
        let (shortest, longest) = self.latency;
        let spread_ms = u64::try_from((longest - shortest).as_millis()).unwrap();
        let delay = shortest + Duration::from_millis(self.below(spread_ms));
        let mut happens = vec![(When::Before, Fault::Delay(delay))];
        if self.below(1_000) < self.refused_per_mille {
            happens
                .push((When::Before, Fault::Status(403, "<Error><Code>AccessDenied</Code></Error>".into())));
        } else if self.below(1_000) < self.failing_per_mille {
            let busy = if call.is_s3() { "s3.slowdown" } else { "iam.throttling" };
            happens.push(match self.below(9) {
                0 => (When::Before, Fault::Replay(busy)),
                1 => (When::Before, Fault::Reset),
                2 => (When::After, Fault::Reset),
                3 => (When::After, Fault::Fin),
                4 => (When::After, Fault::HalfBody),
                5 => (When::After, Fault::Hang),
                6 => (When::Before, Fault::Hang),
                7 => (When::After, Fault::Status(500, String::new())),
                _ => (When::Before, Fault::Status(502, "<html>Bad Gateway</html>".into())),
            });
        }
        happens
    }
}
