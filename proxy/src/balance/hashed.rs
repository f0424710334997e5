//! **Purpose.** The endpoint of a hash: the same one for as long as the endpoints are the same, and mostly when one comes or goes.
//!
//! **Shape.** A [`HashTable`] of one group: a ring, on which each endpoint has points as many as its weight asks and a hash
//! belongs to the next point; or Maglev's table, which the endpoints fill in turn, each in an order of its own, and in which
//! a hash belongs to its slot. One left out by a retry hands its hashes to the points or slots behind. Of n endpoints one that
//! leaves for good moves its own hashes, 1/n of all, and of the others' fewer than as many again on a ring, whose other points
//! grow in number, and a few in Maglev's table.
//!
//! **Limits.** A ring of 1024 points takes 16 KiB a worker, Maglev's table 256 KiB by default. Both are made anew when the
//! group changes.
//!
//! **Source.** Envoy's `RingHashLoadBalancer` and `MaglevTable`: the same points and slots for the same endpoints, but that
//! Maglev's endpoints take turns in the order of their addresses, however discovery lists them.

use std::net::SocketAddr;

use twox_hash::XxHash64;

use crate::config::LoadBalancing;

/// An endpoint of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hashed {
    /// Its place in the endpoint set.
    pub(super) member: u32,
    pub(super) weight: u32,
    pub(super) address: SocketAddr,
}

/// Endpoints by hash.
#[derive(Debug, Default)]
pub(super) enum HashTable {
    /// The policy asks for none.
    #[default]
    None,
    /// By slot.
    Maglev(Vec<u32>),
    /// Sorted by point.
    Ring(Vec<(u64, u32)>),
}

/// The hash of what a policy names, as Envoy takes it.
pub fn hash_of(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(0, bytes)
}

/// The hash of several values, whatever their order, as Envoy takes it: that of one is [`hash_of`] it.
pub fn hash_of_all(values: &mut [&[u8]]) -> u64 {
    values.sort_unstable();
    values.iter().fold(0, |seed, value| XxHash64::oneshot(seed, value))
}

impl HashTable {
    /// The table of a group under `policy`.
    pub(super) fn build(policy: LoadBalancing, group: impl Iterator<Item = Hashed>) -> Self {
        match policy {
            LoadBalancing::LeastRequest { .. } | LoadBalancing::Random | LoadBalancing::RoundRobin => Self::None,
            LoadBalancing::Maglev { table_size } => Self::Maglev(fill_slots(group.collect(), table_size)),
            LoadBalancing::RingHash { minimum, maximum } => {
                Self::Ring(place_points(&group.collect::<Vec<_>>(), minimum, maximum))
            }
        }
    }

    /// The endpoint of `hash`, or the next behind it that `fits`.
    pub(super) fn find(&self, hash: u64, fits: impl Fn(u32) -> bool) -> Option<u32> {
        match self {
            Self::None => None,
            Self::Maglev(slots) => {
                let at = usize::try_from(hash.checked_rem(slots.len() as u64)?).ok()?;
                let order = slots[at..].iter().chain(&slots[..at]);
                order.copied().find(|member| fits(*member))
            }
            Self::Ring(points) => {
                let at = points.partition_point(|(point, _)| *point < hash);
                let order = points[at..].iter().chain(&points[..at]);
                order.map(|(_, member)| *member).find(|member| fits(*member))
            }
        }
    }
}

/// As many points in all that the lightest endpoint has a whole number of them, within the bounds.
#[allow(clippy::cast_precision_loss, reason = "a point more or less; sums of weights are far below 2^52")]
fn place_points(group: &[Hashed], minimum: u32, maximum: u32) -> Vec<(u64, u32)> {
    let total: f64 = group.iter().map(|one| f64::from(one.weight)).sum();
    let least = group.iter().map(|one| one.weight).min().map_or(1.0, f64::from) / total;
    let scale = ((least * f64::from(minimum)).ceil() / least).min(f64::from(maximum));
    let mut points = Vec::new();
    let (mut placed, mut target) = (0.0, 0.0);
    for one in group {
        target += scale * f64::from(one.weight) / total;
        let mut number = 0_u32;
        while placed < target {
            points.push((hash_of(format!("{}_{number}", one.address).as_bytes()), one.member));
            number += 1;
            placed += 1.0;
        }
    }
    points.sort_unstable();
    points
}

/// Fills the slots: each endpoint in turn takes the next free one of its own order, a lighter one not in every round.
fn fill_slots(mut group: Vec<Hashed>, table_size: u32) -> Vec<u32> {
    struct Filler {
        hashed: Hashed,
        next: u64,
        skip: u64,
        /// Rounds times weight at which its next turn is.
        due: u64,
    }
    group.sort_unstable_by_key(|one| one.address);
    let size = u64::from(table_size.max(2));
    let heaviest = group.iter().map(|one| u64::from(one.weight)).max().unwrap_or(1);
    let mut fillers: Vec<Filler> = Vec::with_capacity(group.len());
    for hashed in group {
        let key = hashed.address.to_string();
        let skip = XxHash64::oneshot(1, key.as_bytes()) % (size - 1) + 1;
        fillers.push(Filler { hashed, next: hash_of(key.as_bytes()) % size, skip, due: 0 });
    }
    let mut slots = vec![u32::MAX; if fillers.is_empty() { 0 } else { table_size.max(2) as usize }];
    let mut free = slots.len();
    let mut round = 0;
    while free > 0 {
        round += 1;
        for filler in &mut fillers {
            if free == 0 || round * u64::from(filler.hashed.weight) < filler.due {
                continue;
            }
            filler.due += heaviest;
            let mut slot = &mut slots[filler.next as usize];
            while *slot != u32::MAX {
                filler.next = (filler.next + filler.skip) % size;
                slot = &mut slots[filler.next as usize];
            }
            *slot = filler.hashed.member;
            filler.next = (filler.next + filler.skip) % size;
            free -= 1;
        }
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RING: LoadBalancing = LoadBalancing::RingHash { minimum: 1024, maximum: 8 << 20 };
    const MAGLEV: LoadBalancing = LoadBalancing::Maglev { table_size: 4099 };

    fn group(weights: &[u32]) -> Vec<Hashed> {
        let one = |(member, weight): (u32, &u32)| Hashed {
            member,
            weight: *weight,
            address: SocketAddr::from(([127, 0, 0, 1], 90 + u16::try_from(member).unwrap())),
        };
        (0..).zip(weights).map(one).collect()
    }

    fn build(policy: LoadBalancing, group: &[Hashed]) -> HashTable {
        HashTable::build(policy, group.iter().copied())
    }

    fn keys() -> impl Iterator<Item = u64> {
        (0..10_000_u64).map(|key| hash_of(&key.to_le_bytes()))
    }

    #[test]
    fn points_lie_where_envoys_do() {
        assert_eq!(hash_of(b""), 0xef46_db37_51d8_e999);
        let policy = LoadBalancing::RingHash { minimum: 12, maximum: 1024 };
        let HashTable::Ring(points) = build(policy, &group(&[1; 6])) else { panic!("no ring") };
        let expected = [
            (833_437_586_790_550_860, 4),
            (928_266_305_478_181_108, 2),
            (1_033_482_794_131_418_490, 0),
            (3_551_244_743_356_806_947, 5),
            (3_851_675_632_748_031_481, 3),
            (5_583_722_120_771_150_861, 1),
            (6_311_230_543_546_372_928, 1),
            (7_700_377_290_971_790_572, 3),
            (13_144_177_310_400_110_813, 5),
            (13_444_792_449_719_432_967, 2),
            (15_516_499_411_664_133_160, 4),
            (16_117_243_373_044_804_889, 0),
        ];
        assert_eq!(points, expected);
    }

    #[test]
    fn weights_are_kept() {
        let weights = [1, 2, 5];
        for policy in [RING, MAGLEV] {
            let table = build(policy, &group(&weights));
            let mut counts = [0_u32; 3];
            keys().for_each(|key| counts[table.find(key, |_| true).unwrap() as usize] += 1);
            for (count, weight) in counts.iter().zip(weights) {
                let expected = 10_000.0 * f64::from(weight) / 8.0;
                assert!((f64::from(*count) / expected - 1.0).abs() < 0.25, "{policy:?}: {counts:?}");
            }
        }
        for policy in [RING, MAGLEV] {
            assert_eq!(build(policy, &[]).find(7, |_| true), None);
            assert_eq!(build(policy, &group(&[3])).find(7, |_| true), Some(0));
            assert_eq!(build(policy, &group(&[3])).find(7, |_| false), None);
        }
        let bounded = LoadBalancing::RingHash { minimum: 1024, maximum: 10 };
        assert!(matches!(build(bounded, &group(&[1, 1])), HashTable::Ring(points) if points.len() == 10));
    }

    #[test]
    fn maglev_does_not_mind_the_order() {
        let (ours, mut turned) = (group(&[1, 2, 3, 4]), group(&[1, 2, 3, 4]));
        turned.reverse();
        let (ours, turned) = (build(MAGLEV, &ours), build(MAGLEV, &turned));
        assert!(keys().all(|key| ours.find(key, |_| true) == turned.find(key, |_| true)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        /// One of n leaves: its own keys move, and of the others fewer than as many (ring) or a few (Maglev).
        #[test]
        fn one_that_leaves_moves_its_own_keys(count in 2_usize..20, gone in any::<prop::sample::Index>()) {
            let gone = u32::try_from(gone.index(count)).unwrap();
            for (policy, others) in [(RING, 1.5 / count as f64), (MAGLEV, 0.06)] {
                let all = group(&vec![1; count]);
                let (before, left) = (build(policy, &all), all.iter().filter(|one| one.member != gone));
                let after = HashTable::build(policy, left.copied());
                let (mut own, mut moved) = (0, 0);
                for key in keys() {
                    let (was, is) = (before.find(key, |_| true).unwrap(), after.find(key, |_| true).unwrap());
                    prop_assert_ne!(is, gone);
                    own += u32::from(was == gone);
                    moved += u32::from(was != gone && was != is);
                }
                let share = f64::from(own) * count as f64 / 10_000.0;
                prop_assert!((0.5..2.0).contains(&share), "{:?}: {} of {}", policy, own, count);
                prop_assert!(f64::from(moved) / 10_000.0 <= others, "{:?}: {} others of {}", policy, moved, count);
            }
        }
    }
}
