//! Picks: exact shares, bounds, exhaustive small tables. Ejection: tables of 2, 3 and 5 endpoints, and threads.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::tiers::{Counts, Share, compute};
use super::*;
use crate::chance::Chance;
use crate::config::{EndpointConfig, EndpointHealth, EndpointSet, LoadBalancing, OutlierDetection};
use crate::fault::{Kind, Side};
use crate::grpc::GrpcCode;

const LEAST: LoadBalancing = LoadBalancing::LeastRequest { choices: 2 };
const ALL_POLICIES: [LoadBalancing; 5] = [
    LoadBalancing::RoundRobin,
    LoadBalancing::Random,
    LEAST,
    LoadBalancing::RingHash { minimum: 64, maximum: 1024 },
    LoadBalancing::Maglev { table_size: 251 },
];

fn address(at: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 8_000 + u16::try_from(at).expect("few endpoints")))
}

/// Endpoints as (weight, priority, health).
fn set(endpoints: &[(u32, u32, EndpointHealth)]) -> EndpointSet {
    let endpoints = endpoints.iter().enumerate().map(|(at, &(weight, priority, health))| EndpointConfig {
        address: address(at),
        weight,
        priority,
        locality: "".into(),
        health,
    });
    EndpointSet { endpoints: endpoints.collect(), overprovisioning_percent: 140 }
}

fn weighted(weights: &[u32]) -> EndpointSet {
    set(&weights.iter().map(|weight| (*weight, 0, EndpointHealth::Healthy)).collect::<Vec<_>>())
}

/// Endpoints that are up by bit, with their busyness.
struct World {
    up: u32,
    active: Vec<Cell<u32>>,
}

impl World {
    fn all_up(count: usize) -> Self {
        Self { up: u32::MAX, active: vec![Cell::new(0); count] }
    }
}

impl Live for World {
    fn is_up(&self, index: usize) -> bool {
        self.up & (1 << index) != 0
    }

    fn active(&self, index: usize) -> u32 {
        self.active[index].get()
    }
}

fn counts(picks: impl Iterator<Item = usize>, of: usize) -> Vec<u32> {
    let mut counts = vec![0; of];
    picks.for_each(|index| counts[index] += 1);
    counts
}

#[test]
fn a_hash_keeps_its_endpoint_while_that_is_up() {
    let chance = Chance::from_seed(1);
    for policy in
        [LoadBalancing::RingHash { minimum: 1024, maximum: 8 << 20 }, LoadBalancing::Maglev { table_size: 251 }]
    {
        let mut world = World::all_up(5);
        let mut balancer = Balancer::new(policy, &weighted(&[1; 5]), 0);
        let mut pick = |world: &World, generation, hash, tried: &[usize]| {
            balancer.pick(world, generation, tried, Draw { chance: &chance, hash: Some(hash) }).unwrap().index
        };
        let hashes: Vec<u64> = (0..200_u64).map(|key| hash_of(&key.to_le_bytes())).collect();
        let before: Vec<usize> = hashes.iter().map(|hash| pick(&world, 1, *hash, &[])).collect();
        assert!((0..5).all(|index| before.contains(&index)), "{policy:?}");
        for (hash, first) in hashes.iter().zip(&before) {
            let second = pick(&world, 1, *hash, &[*first]);
            assert!(second != *first && second == pick(&world, 1, *hash, &[*first]), "another, and always the same");
        }
        world.up &= !1;
        let after: Vec<usize> = hashes.iter().map(|hash| pick(&world, 2, *hash, &[])).collect();
        let moved = before.iter().zip(&after).filter(|(was, is)| **was != 0 && was != is).count();
        assert!(!after.contains(&0) && moved <= 45, "{policy:?}: {moved}");
        world.up |= 1;
        let again: Vec<usize> = hashes.iter().map(|hash| pick(&world, 3, *hash, &[])).collect();
        assert_eq!(before, again, "{policy:?}");
    }
}

proptest! {
    #[test]
    fn turns_are_exact_over_any_cycle(
        weights in prop::collection::vec(1_u32..9, 1..7),
        seed in any::<u64>(),
        skipped in 0_usize..50,
    ) {
        let chance = Chance::from_seed(seed);
        let world = World::all_up(weights.len());
        let mut balancer = Balancer::new(LoadBalancing::RoundRobin, &weighted(&weights), 50);
        let cycle: u32 = if weights.iter().all(|w| *w == weights[0]) {
            u32::try_from(weights.len()).expect("few")
        } else {
            weights.iter().sum()
        };
        let mut pick = || balancer.pick(&world, 0, &[], &chance).expect("all are up").index;
        (0..skipped).for_each(|_| { pick(); });
        let expected: Vec<u32> = if cycle == weights.iter().sum::<u32>() { weights.clone() } else { vec![1; weights.len()] };
        for _ in 0..3 {
            prop_assert_eq!(counts((0..cycle).map(|_| pick()), weights.len()), expected.clone());
        }
    }

    #[test]
    fn a_pick_is_usable_untried_and_of_its_share(
        endpoints in prop::collection::vec((1_u32..5, 0_u32..3, 0_u8..6), 1..7),
        up in any::<u32>(),
        tried in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        threshold in prop::sample::select(vec![0, 50, 100]),
        seed in any::<u64>(),
    ) {
        use EndpointHealth::*;
        let health = |at: u8| [Degraded, Draining, Healthy, Timeout, Unhealthy, Unknown][usize::from(at)];
        let endpoints: Vec<_> = endpoints.into_iter().map(|(w, p, h)| (w, p, health(h))).collect();
        let chance = Chance::from_seed(seed);
        let world = World { up, active: vec![Cell::new(1); endpoints.len()] };
        let tried: Vec<usize> = tried.iter().map(|at| at.index(endpoints.len())).collect();
        let usable = |at: usize| world.is_up(at) && endpoints[at].2.is_usable();
        for policy in ALL_POLICIES {
            let mut balancer = Balancer::new(policy, &set(&endpoints), threshold);
            for _ in 0..20 {
                let picked = balancer.pick(&world, 1, &tried, &chance);
                let Some(pick) = picked else {
                    prop_assert!(threshold == 0 || (0..endpoints.len()).all(|at| !usable(at)));
                    prop_assert!((0..endpoints.len()).all(|at| !usable(at)), "a usable endpoint is always found");
                    break;
                };
                prop_assert!(pick.panic || usable(pick.index), "{:?} of {:?}", pick, endpoints);
                prop_assert!(threshold > 0 || !pick.panic);
                if tried.contains(&pick.index) {
                    // Allowed only when every endpoint that takes load was tried.
                    let (count, _) = balancer.usable();
                    let distinct: std::collections::BTreeSet<_> = tried.iter().collect();
                    prop_assert!(distinct.len() >= count.min(endpoints.len()), "{:?} tried {:?}", pick, tried);
                }
            }
        }
    }

    #[test]
    fn loads_sum_to_all_or_nothing(
        counts in prop::collection::vec((0_u32..6, 0_u32..6, 0_u32..6), 1..5),
        threshold in prop::sample::select(vec![0_u32, 30, 50, 100]),
    ) {
        let counts: Vec<Counts> = counts
            .into_iter()
            .map(|(healthy, degraded, down)| Counts { total: healthy + degraded + down, healthy, degraded })
            .collect();
        let mut shares = Vec::new();
        compute(&counts, 140, threshold, &mut shares);
        let sum: u32 = shares.iter().map(|share| share.healthy + share.degraded).sum();
        let has_usable = counts.iter().any(|count| count.healthy + count.degraded > 0);
        let has_any = counts.iter().any(|count| count.total > 0);
        prop_assert_eq!(sum, if has_usable || (threshold > 0 && has_any) { 100 } else { 0 }, "{:?}", shares);
        for (share, count) in shares.iter().zip(&counts) {
            prop_assert!(share.panic || share.healthy == 0 || count.healthy > 0);
            prop_assert!(share.panic || share.degraded == 0 || count.degraded > 0);
            prop_assert!(!share.panic || threshold > 0);
        }
    }
}

#[test]
fn priorities_spill_as_in_envoy() {
    let shares = |counts: &[(u32, u32, u32)], threshold| {
        let counts: Vec<Counts> =
            counts.iter().map(|&(total, healthy, degraded)| Counts { total, healthy, degraded }).collect();
        let mut shares = Vec::new();
        compute(&counts, 140, threshold, &mut shares);
        shares.into_iter().map(|Share { healthy, degraded, panic }| (healthy, degraded, panic)).collect::<Vec<_>>()
    };
    // The table of Envoy's documentation on priority levels, two levels of 100 endpoints.
    for (first, second, expected) in [
        (100, 100, [100, 0]),
        (72, 100, [100, 0]),
        (71, 100, [99, 1]),
        (50, 100, [70, 30]),
        (25, 100, [35, 65]),
        (0, 100, [0, 100]),
    ] {
        let found = shares(&[(100, first, 0), (100, second, 0)], 0);
        assert_eq!(found, [(expected[0], 0, false), (expected[1], 0, false)], "{first} {second}");
    }
    // Short of 100 % together: scaled up. 25 % and 25 % give 35 and 35 of 70.
    assert_eq!(shares(&[(100, 25, 0), (100, 25, 0)], 0), [(50, 0, false), (50, 0, false)]);
    assert_eq!(shares(&[(4, 0, 0), (4, 0, 0)], 0), [(0, 0, false), (0, 0, false)], "panic off: refuse");
    assert_eq!(shares(&[(4, 0, 0), (4, 0, 0)], 50), [(50, 0, true), (50, 0, true)], "all in panic: by size");
    assert_eq!(shares(&[(9, 0, 0), (1, 0, 0)], 50), [(90, 0, true), (10, 0, true)]);
    assert_eq!(shares(&[(3, 1, 0)], 50), [(100, 0, true)]);
    assert_eq!(shares(&[(3, 2, 0)], 50), [(100, 0, false)], "two of three are above the threshold");
    assert_eq!(shares(&[(2, 1, 0)], 50), [(100, 0, false)], "at the threshold is not below it");
    assert_eq!(shares(&[(4, 1, 0), (4, 4, 0)], 50), [(35, 0, false), (65, 0, false)], "the next level makes up for it");
    assert_eq!(shares(&[(2, 1, 1)], 50), [(70, 30, false)], "degraded after healthy");
    assert_eq!(shares(&[(2, 0, 2)], 50), [(0, 100, false)]);
    assert_eq!(shares(&[(0, 0, 0), (2, 2, 0)], 50), [(0, 0, false), (100, 0, false)]);
    assert_eq!(shares(&[], 50), []);
}

#[test]
fn every_small_table_behaves() {
    // Up to four endpoints, every set of them up, every set tried: the pick is one of those left, or the tried are all.
    for count in 1..=4_usize {
        for up in 0_u32..1 << count {
            for tried_bits in 0_u32..1 << count {
                let world = World { up, active: vec![Cell::new(0); count] };
                let tried: Vec<usize> = (0..count).filter(|at| tried_bits & (1 << at) != 0).collect();
                let panics = up.count_ones() * 2 < u32::try_from(count).expect("few");
                let choosable = if panics { (1 << count) - 1 } else { up };
                for policy in ALL_POLICIES {
                    let mut balancer = Balancer::new(policy, &weighted(&vec![1; count]), 50);
                    let chance = Chance::from_seed(u64::from(up) * 31 + u64::from(tried_bits));
                    for _ in 0..8 {
                        let pick = balancer.pick(&world, 9, &tried, &chance).expect("panic leaves none without");
                        assert_eq!(pick.panic, panics, "{count} {up:b}");
                        let bit = 1 << pick.index;
                        assert_ne!(choosable & bit, 0, "{policy:?} {count} {up:b} {tried_bits:b}: {pick:?}");
                        let left = choosable & !tried_bits;
                        assert!(left == 0 || left & bit != 0, "{policy:?} {up:b} {tried_bits:b}: {pick:?}");
                    }
                }
            }
        }
    }
    let mut empty = Balancer::new(LoadBalancing::RoundRobin, &EndpointSet::default(), 50);
    assert_eq!(empty.pick(&World::all_up(0), 0, &[], &Chance::from_seed(1)), None);
}

#[test]
fn a_change_is_seen_with_its_generation() {
    let mut world = World::all_up(3);
    let chance = Chance::from_seed(2);
    let mut balancer = Balancer::new(LoadBalancing::RoundRobin, &weighted(&[1, 1, 1]), 50);
    let mut seen = |world: &World, generation| {
        let picks = (0..30).map(|_| balancer.pick(world, generation, &[], &chance).expect("some are up").index);
        counts(picks, 3)
    };
    assert_eq!(seen(&world, 0), [10, 10, 10]);
    world.up = 0b101;
    assert_eq!(seen(&world, 0), [10, 10, 10], "between generations nobody is asked");
    assert_eq!(seen(&world, 1), [15, 0, 15]);
    world.up = 0b111;
    assert_eq!(seen(&world, 2), [10, 10, 10]);
}

#[test]
fn workers_start_at_different_turns() {
    let world = World::all_up(5);
    for weights in [vec![1; 5], vec![1, 2, 3, 4, 5]] {
        let first: std::collections::BTreeSet<usize> = (0..64)
            .filter_map(|seed| {
                let mut balancer = Balancer::new(LoadBalancing::RoundRobin, &weighted(&weights), 50);
                Some(balancer.pick(&world, 0, &[], &Chance::from_seed(seed))?.index)
            })
            .collect();
        assert!(first.len() >= 3, "{weights:?}: {first:?}");
    }
}

#[test]
fn shares_at_random_follow_the_weights() {
    let world = World::all_up(3);
    for (policy, weights) in
        [(LoadBalancing::Random, [1, 1, 1]), (LoadBalancing::Random, [1, 3, 6]), (LEAST, [1, 1, 1]), (LEAST, [1, 3, 6])]
    {
        let chance = Chance::from_seed(17);
        let mut balancer = Balancer::new(policy, &weighted(&weights), 50);
        let picks = (0..30_000).filter_map(|_| Some(balancer.pick(&world, 0, &[], &chance)?.index));
        let counts = counts(picks, 3);
        let total: u32 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            let expected = 30_000 * weight / total;
            assert!(count.abs_diff(expected) < 600, "{policy:?} {weights:?}: {counts:?}");
        }
    }
}

#[test]
fn the_less_busy_is_taken() {
    let chance = Chance::from_seed(4);
    let world = World::all_up(2);
    world.active[0].set(5);
    let mut balancer = Balancer::new(LEAST, &weighted(&[1, 1]), 50);
    assert!((0..100).all(|_| balancer.pick(&world, 0, &[], &chance).expect("up").index == 1), "of two, always");
    // In a closed loop, work in hand levels out by weight.
    for (weights, expected) in [([1, 1, 1, 1], [100, 100, 100, 100]), ([1, 1, 2, 4], [50, 50, 100, 200])] {
        let world = World::all_up(4);
        let mut balancer = Balancer::new(LEAST, &weighted(&weights), 50);
        for _ in 0..400 {
            let index = balancer.pick(&world, 0, &[], &chance).expect("up").index;
            world.active[index].set(world.active[index].get() + 1);
        }
        for (active, expected) in world.active.iter().zip(expected) {
            assert!(active.get().abs_diff(expected) <= 12, "{weights:?}: {:?}", world.active);
        }
    }
    // As many choices as endpoints: the least busy of all, without luck.
    let world = World::all_up(5);
    for (at, busy) in [3, 1, 4, 0, 5].into_iter().enumerate() {
        world.active[at].set(busy);
    }
    let all = LoadBalancing::LeastRequest { choices: 8 };
    let mut balancer = Balancer::new(all, &weighted(&[1; 5]), 50);
    assert!((0..50).all(|_| balancer.pick(&world, 0, &[], &chance).expect("up").index == 3));
}

#[test]
fn load_splits_between_priorities() {
    use EndpointHealth::{Healthy, Unhealthy};
    let set = set(&[(1, 0, Healthy), (1, 0, Unhealthy), (1, 1, Healthy), (1, 1, Healthy)]);
    let chance = Chance::from_seed(6);
    let world = World::all_up(4);
    let mut balancer = Balancer::new(LoadBalancing::RoundRobin, &set, 50);
    let picks = (0..10_000).filter_map(|_| Some(balancer.pick(&world, 0, &[], &chance)?.index));
    let counts = counts(picks, 4);
    assert!(counts[0].abs_diff(7_000) < 200 && counts[1] == 0, "{counts:?}: half of priority 0 takes 70 %");
    assert!(counts[2].abs_diff(counts[3]) <= 1, "{counts:?}");
    let mut retry = |tried: &[usize]| balancer.pick(&world, 0, tried, &chance).expect("some are up").index;
    assert!((0..50).all(|_| retry(&[0]) >= 2), "a retry crosses priorities");
    assert!((0..50).all(|_| retry(&[2, 3]) == 0));
    assert!((0..50).all(|_| retry(&[0, 2, 3]) != 1), "all tried: any of the usable ones again");
}

const DETECTION: OutlierDetection = OutlierDetection {
    consecutive_5xx: 3,
    consecutive_gateway_failure: 0,
    consecutive_local_origin_failure: 2,
    split_external_local_origin: false,
    enforcing_consecutive_5xx: 100,
    enforcing_consecutive_gateway_failure: 100,
    enforcing_consecutive_local_origin_failure: 100,
    interval: Duration::from_secs(10),
    base_ejection_time: Duration::from_secs(30),
    max_ejection_time: Duration::from_secs(100),
    max_ejection_time_jitter: Duration::ZERO,
    max_ejection_percent: 10,
    always_eject_one: true,
};

const SECOND: u64 = 1_000_000_000;

/// An ejector of so many endpoints, with what drives it.
struct Bench {
    ejector: Ejector,
    records: Vec<Arc<Record>>,
    chance: Chance,
    config: OutlierDetection,
    now_ns: u64,
}

impl Bench {
    fn new(count: usize, config: OutlierDetection) -> Self {
        let ejector = Ejector::default();
        ejector.set_members((0..count).map(address));
        let records = (0..count).map(|at| ejector.record(address(at)).expect("a member")).collect();
        Self { ejector, records, chance: Chance::from_seed(8), config, now_ns: 0 }
    }

    fn see(&self, at: usize, seen: Seen) -> Option<Ejected> {
        let ruling = Ruling { config: &self.config, now_ns: self.now_ns, chance: &self.chance };
        self.ejector.on_result(&self.records[at], seen, &ruling)
    }

    /// Fails an endpoint until it is ejected, at most `times` times.
    fn fail(&self, at: usize, times: u32) -> Option<Ejected> {
        (0..times).find_map(|_| self.see(at, Seen::Answered(500)))
    }

    fn ejected(&self) -> Vec<usize> {
        (0..self.records.len()).filter(|at| self.records[*at].is_ejected()).collect()
    }

    fn sweep(&mut self, after: u64) -> usize {
        self.now_ns += after;
        self.ejector.sweep(Some(&self.config), self.now_ns).len()
    }
}

#[test]
fn failures_in_a_row_eject_at_the_threshold() {
    let bench = Bench::new(3, DETECTION);
    assert_eq!((bench.see(0, Seen::Answered(500)), bench.see(0, Seen::Answered(599))), (None, None));
    assert_eq!(bench.see(0, Seen::Answered(499)), None, "in a row is in a row");
    assert_eq!(bench.fail(0, 2), None);
    let ejected = bench.see(0, Seen::Failed).expect("the third in a row");
    let expected = Ejected { address: address(0), until_ns: 30 * SECOND, times: 1, cause: Cause::Consecutive5xx };
    assert_eq!(ejected, expected);
    assert_eq!(bench.ejected(), [0]);
    assert_eq!(bench.records[0].ejected_until_ns(), Some(30 * SECOND));
    assert_eq!(bench.fail(0, 20), None, "once is enough");
}

#[test]
fn the_cap_holds_for_small_tables() {
    for (count, percent, always_one, expected) in [
        (2, 10, true, 1),
        (2, 10, false, 0),
        (2, 50, false, 1),
        (2, 100, false, 2),
        (3, 10, true, 1),
        (3, 33, false, 0),
        (3, 34, false, 1),
        (3, 67, true, 2),
        (5, 10, true, 1),
        (5, 20, false, 1),
        (5, 40, true, 2),
        (5, 59, true, 2),
        (5, 100, true, 5),
        (5, 0, true, 1),
        (5, 0, false, 0),
    ] {
        let config = OutlierDetection { max_ejection_percent: percent, always_eject_one: always_one, ..DETECTION };
        let bench = Bench::new(count, config);
        (0..count).for_each(|at| {
            bench.fail(at, 9);
        });
        assert_eq!(bench.ejected().len(), expected, "{count} endpoints, {percent} %, one anyway: {always_one}");
        assert_eq!(bench.ejector.ejected_count(), expected);
    }
}

#[test]
fn ejections_lengthen_to_the_cap_and_are_forgiven() {
    let mut bench = Bench::new(3, DETECTION);
    for (times, seconds) in [(1, 30), (2, 60), (3, 90), (4, 100), (4, 100)] {
        let generation = bench.ejector.generation();
        let ejected = bench.fail(1, 3).expect("three in a row");
        assert_eq!((ejected.times, ejected.until_ns), (times, bench.now_ns + seconds * SECOND));
        assert_ne!(bench.ejector.generation(), generation);
        assert!(bench.ejector.is_restless());
        assert_eq!(bench.sweep((seconds - 1) * SECOND), 0, "not yet");
        let generation = bench.ejector.generation();
        assert_eq!((bench.sweep(SECOND), bench.ejected()), (1, vec![]));
        assert_ne!(bench.ejector.generation(), generation);
        assert_eq!(bench.records[1].times_ejected(), times, "the sweep that brings it back does not forgive");
    }
    for left in [3, 2, 1, 0, 0] {
        assert_eq!(bench.ejector.is_restless(), bench.records[1].times_ejected() > 0, "until it is wholly forgiven");
        assert_eq!(bench.sweep(10 * SECOND), 0);
        assert_eq!(bench.records[1].times_ejected(), left);
    }
    assert_eq!(bench.fail(1, 3).map(|ejected| ejected.times), Some(1));
}

#[test]
fn an_endpoint_comes_back_with_a_clean_slate() {
    let mut bench = Bench::new(2, DETECTION);
    bench.fail(0, 3).expect("ejected");
    bench.fail(0, 2);
    assert_eq!(bench.sweep(30 * SECOND), 1);
    assert_eq!(bench.fail(0, 2), None, "what came in while it was out does not count");
    assert!(bench.see(0, Seen::Answered(503)).is_some());
    assert_eq!(bench.ejector.sweep(None, bench.now_ns), [address(0)], "switched off: all come back at once");
    assert_eq!(bench.fail(0, 9), None, "who still judges by the old settings ejects nothing");
}

#[test]
fn gateway_failures_are_counted_apart() {
    let config = OutlierDetection { consecutive_5xx: 0, consecutive_gateway_failure: 2, ..DETECTION };
    let bench = Bench::new(3, config);
    for status in [500, 501, 505, 599] {
        assert_eq!(bench.see(0, Seen::Answered(status)), None);
    }
    assert_eq!(bench.see(0, Seen::Answered(502)), None);
    assert_eq!(bench.see(0, Seen::Answered(500)), None, "500 breaks the row");
    assert_eq!(bench.see(0, Seen::Answered(504)), None);
    let ejected = bench.see(0, Seen::TimedOut).expect("a timeout is as a 504");
    assert_eq!(ejected.cause, Cause::ConsecutiveGatewayFailure);
    // Both thresholds at once: one ejection, and both rows start anew.
    let both = Bench::new(3, OutlierDetection { consecutive_5xx: 2, consecutive_gateway_failure: 2, ..DETECTION });
    assert_eq!(both.see(1, Seen::Answered(503)), None);
    assert_eq!(both.see(1, Seen::Answered(503)).map(|e| e.cause), Some(Cause::ConsecutiveGatewayFailure));
    assert_eq!(both.see(1, Seen::Answered(503)), None);
}

#[test]
fn local_failures_are_split_off_when_asked() {
    let config = OutlierDetection { split_external_local_origin: true, ..DETECTION };
    let bench = Bench::new(3, config);
    assert_eq!(bench.see(0, Seen::Failed), None);
    assert_eq!(bench.see(0, Seen::Answered(500)), None, "any answer shows that it can be reached");
    assert_eq!(bench.see(0, Seen::Failed), None);
    let ejected = bench.see(0, Seen::TimedOut).expect("two in a row");
    assert_eq!(ejected.cause, Cause::ConsecutiveLocalOriginFailure);
    assert!(bench.fail(1, 2).is_none(), "and an answer is no local failure");
}

#[test]
fn shares_decide_whether_a_detection_ejects() {
    let never = Bench::new(3, OutlierDetection { enforcing_consecutive_5xx: 0, ..DETECTION });
    assert_eq!(never.fail(0, 1_000), None);
    let config = OutlierDetection { enforcing_consecutive_5xx: 40, ..DETECTION };
    let mut half = Bench::new(3, config);
    let mut ejections = 0;
    for _ in 0..2_000 {
        ejections += u32::from(half.fail(0, 3).is_some());
        half.sweep(1_000 * SECOND);
    }
    assert!((700..900).contains(&ejections), "{ejections} of 2000 at 40 %");
}

#[test]
fn jitter_only_adds() {
    let config = OutlierDetection { max_ejection_time_jitter: Duration::from_secs(10), ..DETECTION };
    let times: Vec<u64> = (0..50)
        .map(|seed| {
            let mut bench = Bench::new(3, config);
            bench.chance = Chance::from_seed(seed);
            bench.fail(0, 3).expect("ejected").until_ns
        })
        .collect();
    assert!(times.iter().all(|time| (30 * SECOND..40 * SECOND).contains(time)), "{times:?}");
    assert!(times.iter().any(|time| *time < 33 * SECOND) && times.iter().any(|time| *time > 37 * SECOND));
}

#[test]
fn what_is_known_survives_an_update() {
    let mut bench = Bench::new(3, DETECTION);
    bench.fail(0, 3).expect("ejected");
    bench.fail(1, 2);
    bench.ejector.set_members([address(0), address(1), address(7)]);
    assert!(Arc::ptr_eq(&bench.records[0], &bench.ejector.record(address(0)).expect("stays")));
    assert_eq!(bench.ejected(), [0], "an update does not bring it back");
    assert!(bench.ejector.record(address(2)).is_none());
    assert_eq!(bench.fail(2, 9), None, "who left is not judged");
    assert_eq!(bench.see(1, Seen::Answered(500)), None, "detected, but the one that may go is gone");
    bench.ejector.set_members([address(1), address(7)]);
    assert_eq!(bench.ejector.ejected_count(), 0, "who leaves gives its place up");
    assert!(bench.fail(1, 3).is_some());
    assert_eq!(bench.sweep(30 * SECOND), 1);
    bench.ejector.set_members([address(0)]);
    let back = bench.ejector.record(address(0)).expect("a member again");
    assert!(!back.is_ejected(), "who left is forgotten");
}

#[test]
fn a_lowered_threshold_binds_at_the_next_failure() {
    let mut bench = Bench::new(3, OutlierDetection { consecutive_5xx: 10, ..DETECTION });
    assert_eq!(bench.fail(0, 8), None);
    bench.config.consecutive_5xx = 5;
    assert!(bench.see(0, Seen::Answered(500)).is_some());
}

#[test]
fn what_we_caused_says_nothing_about_an_endpoint() {
    for &kind in Kind::ALL {
        let says = Seen::of_fault(kind);
        // One that takes no more streams on a connection, or no tunnels, is well.
        let is_well = matches!(kind, Kind::StreamRefused | Kind::UpgradeUnsupported);
        assert_eq!(says.is_some(), kind.side() == Side::Upstream && !is_well, "{kind:?}");
    }
    assert_eq!(Seen::of_fault(Kind::ConnectTimeout), Some(Seen::TimedOut));
    assert_eq!(Seen::of_fault(Kind::ConnectRefused), Some(Seen::Failed));
    assert_eq!(Seen::of_grpc(GrpcCode::Unavailable), Seen::Answered(503));
    assert_eq!(Seen::of_grpc(GrpcCode::NotFound), Seen::Answered(404));
}

#[test]
fn threads_eject_within_the_cap() {
    let bench = Bench::new(5, OutlierDetection { max_ejection_percent: 40, ..DETECTION });
    let ejections: BTreeMap<SocketAddr, u32> = thread::scope(|scope| {
        let workers: Vec<_> = (0..4_u64)
            .map(|seed| {
                let (ejector, records, config) = (&bench.ejector, &bench.records, &bench.config);
                scope.spawn(move || {
                    let chance = Chance::from_seed(seed);
                    let ruling = Ruling { config, now_ns: 0, chance: &chance };
                    let results = (0..5_000).map(|_| &records[usize::try_from(chance.below(5)).expect("below 5")]);
                    let ejected = results.filter_map(|record| ejector.on_result(record, Seen::Failed, &ruling));
                    ejected.map(|ejected| ejected.address).collect::<Vec<_>>()
                })
            })
            .collect();
        let mut counts = BTreeMap::new();
        for worker in workers {
            for address in worker.join().expect("no worker panics") {
                *counts.entry(address).or_insert(0) += 1;
            }
        }
        counts
    });
    assert_eq!(ejections.len(), 2, "40 % of five: {ejections:?}");
    assert!(ejections.values().all(|count| *count == 1), "each told once: {ejections:?}");
    assert_eq!(bench.ejected().len(), 2);
}
