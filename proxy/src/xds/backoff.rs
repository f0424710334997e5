//! Pauses between attempts: exponential, with full jitter, also at the cap.

use std::time::Duration;

use crate::chance::Chance;

/// Source: "full jitter", a uniform draw from zero to the step, so that proxies that lost one server come back spread.
#[derive(Debug)]
pub(super) struct Backoff {
    base: Duration,
    cap: Duration,
    attempts: u32,
    chance: Chance,
}

impl Backoff {
    pub(super) fn new(base: Duration, cap: Duration, chance: Chance) -> Self {
        Self { base, cap, attempts: 0, chance }
    }

    /// The next pause.
    pub(super) fn next(&mut self) -> Duration {
        let step = self.base.saturating_mul(1_u32.checked_shl(self.attempts).unwrap_or(u32::MAX)).min(self.cap);
        self.attempts = self.attempts.saturating_add(1);
        let nanos = u64::try_from(step.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.chance.below(nanos.saturating_add(1)))
    }

    /// The last attempt served its purpose.
    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_below_the_step_and_spread_over_it_also_at_the_cap() {
        let (base, cap) = (Duration::from_millis(500), Duration::from_secs(30));
        let mut largest = Duration::ZERO;
        let mut smallest = cap;
        for seed in 0..200 {
            let mut backoff = Backoff::new(base, cap, Chance::from_seed(seed));
            assert!(backoff.next() <= base);
            assert!(backoff.next() <= base * 2);
            for _ in 0..100 {
                let pause = backoff.next();
                assert!(pause <= cap);
                largest = largest.max(pause);
                smallest = smallest.min(pause);
            }
            backoff.reset();
            assert!(backoff.next() <= base);
        }
        assert!(largest > cap * 9 / 10 && smallest < cap / 10, "{smallest:?} {largest:?}");
    }
}
