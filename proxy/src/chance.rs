//! A small random source for balancing, jitter and shares: passed in, never ambient, never for secrets.

use std::cell::Cell;

/// SplitMix64 (Steele, Lea, Flood 2014): one add and three multiplies a draw, full period.
#[derive(Clone, Debug)]
pub struct Chance(Cell<u64>);

impl Chance {
    /// The same seed gives the same draws.
    pub fn from_seed(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    /// The next 64 random bits.
    #[inline]
    pub fn bits(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.0.set(state);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A draw from `0..bound`; 0 when `bound` is 0. The bias is below `bound` / 2^64.
    #[inline]
    pub fn below(&self, bound: u64) -> u64 {
        let wide = u128::from(self.bits()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_stay_below_the_bound_and_reach_every_value() {
        let chance = Chance::from_seed(1);
        let mut seen = [false; 7];
        for _ in 0..1000 {
            seen[usize::try_from(chance.below(7)).unwrap()] = true;
        }
        assert_eq!(seen, [true; 7]);
        assert_eq!(chance.below(0), 0);
    }
}
