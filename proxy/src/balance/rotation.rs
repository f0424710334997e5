//! **Purpose.** Choosing inside one group of endpoints: in turn, at random, or the less busy of some.
//!
//! **Shape.** A [`Rotation`] is rebuilt in place when the group changes. Equal weights take the short way (a counter, one
//! draw). Unequal ones go in turn by earliest deadline: the k-th turn of weight w is due at k/w, so that in every w1+…+wn
//! turns each endpoint has exactly as many as its weight; and at random through the running sum of weights.
//!
//! **Limits.** Turns compare k/w as exact fractions; there is no drift, however long it runs.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::chance::Chance;

/// One endpoint's next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    /// Turns had, and one.
    number: u64,
    weight: u32,
    member: u32,
}

impl Ord for Turn {
    /// The earliest is the greatest, since the heap gives the greatest; ties go to the first member.
    fn cmp(&self, other: &Self) -> Ordering {
        let ours = u128::from(self.number) * u128::from(other.weight);
        let theirs = u128::from(other.number) * u128::from(self.weight);
        theirs.cmp(&ours).then(other.member.cmp(&self.member))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A group of endpoints with the state of its turns.
#[derive(Debug, Default)]
pub(super) struct Rotation {
    /// Places in the endpoint set.
    members: Vec<u32>,
    /// Running sum of weights; empty when all weights are equal.
    sums: Vec<u64>,
    next: usize,
    turns: BinaryHeap<Turn>,
}

impl Rotation {
    /// Takes the group anew, starting at a random point of its turns, so that workers do not march in step.
    pub(super) fn rebuild(&mut self, members: impl Iterator<Item = (u32, u32)> + Clone, chance: &Chance) {
        self.members.clear();
        self.members.extend(members.clone().map(|(member, _)| member));
        self.sums.clear();
        self.turns.clear();
        self.next = index(chance.below(size(self.members.len())));
        let mut weights = members.clone().map(|(_, weight)| weight);
        let first = weights.next().unwrap_or(1);
        if weights.all(|weight| weight == first) {
            return;
        }
        let phase = chance.below(1 << 32);
        let mut sum = 0;
        for (member, weight) in members {
            let weight = weight.max(1);
            sum += u64::from(weight);
            self.sums.push(sum);
            let number = ((phase * u64::from(weight)) >> 32) + 1;
            self.turns.push(Turn { number, weight, member });
        }
    }

    pub(super) fn members(&self) -> &[u32] {
        &self.members
    }

    /// The next in turn.
    pub(super) fn in_turn(&mut self) -> Option<u32> {
        if let Some(mut turn) = self.turns.peek_mut() {
            turn.number += 1;
            return Some(turn.member);
        }
        let member = *self.members.get(self.next)?;
        self.next = if self.next + 1 == self.members.len() { 0 } else { self.next + 1 };
        Some(member)
    }

    /// One at random, by weight.
    pub(super) fn at_random(&self, chance: &Chance) -> Option<u32> {
        let place = match self.sums.last() {
            None => index(chance.below(size(self.members.len()))),
            Some(total) => {
                let drawn = chance.below(*total);
                self.sums.partition_point(|sum| *sum <= drawn)
            }
        };
        self.members.get(place).copied()
    }

    /// The least busy for its weight, of `choices` drawn at random; of all when there are no more.
    pub(super) fn least_busy(&self, choices: u32, active: impl Fn(u32) -> u32, chance: &Chance) -> Option<u32> {
        let count = self.members.len();
        if count <= 1 {
            return self.members.first().copied();
        }
        let mut best: Option<(u32, u64, u64)> = None;
        let mut consider = |place: usize| {
            let Some(&member) = self.members.get(place) else { return };
            let (busy, weight) = (u64::from(active(member)), self.weight(place));
            // busy / weight < best busy / best weight
            if best.is_none_or(|(_, b, w)| busy * w < b * weight) {
                best = Some((member, busy, weight));
            }
        };
        if self.sums.is_empty() {
            // Distinct draws: of two endpoints both are looked at, and the busier is never taken.
            let draws = index(u64::from(choices)).min(count);
            let start = index(chance.below(size(count)));
            consider(start);
            if draws == 2 {
                let other = index(chance.below(size(count - 1)));
                consider(if other >= start { other + 1 } else { other });
            } else if draws == count {
                (1..count).for_each(|step| consider((start + step) % count));
            } else {
                (1..draws).for_each(|_| consider(index(chance.below(size(count)))));
            }
        } else {
            let total = self.sums.last().copied().unwrap_or(1);
            for _ in 0..choices {
                let drawn = chance.below(total);
                consider(self.sums.partition_point(|sum| *sum <= drawn));
            }
        }
        best.map(|(member, _, _)| member)
    }

    /// One at random by weight, of those that `fits` allows.
    pub(super) fn among(&self, fits: impl Fn(u32) -> bool, chance: &Chance) -> Option<u32> {
        let allowed = || self.members.iter().enumerate().filter(|(_, member)| fits(**member));
        let total: u64 = allowed().map(|(place, _)| self.weight(place)).sum();
        let mut left = chance.below(total);
        for (place, member) in allowed() {
            let weight = self.weight(place);
            if left < weight {
                return Some(*member);
            }
            left -= weight;
        }
        None
    }

    /// The weight at a place; 1 when all are equal.
    fn weight(&self, place: usize) -> u64 {
        match (self.sums.get(place), place.checked_sub(1)) {
            (None, _) => 1,
            (Some(sum), None) => *sum,
            (Some(sum), Some(before)) => sum - self.sums[before],
        }
    }
}

fn size(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn index(drawn: u64) -> usize {
    usize::try_from(drawn).unwrap_or(usize::MAX)
}
