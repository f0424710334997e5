//! The sampler with its seconds passed in: no clock runs.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::world::{Recorder, resources};
use crate::admin::frame::{Frame, History};
use crate::admin::sample::Sampler;
use crate::admin::{AdminSources, Readiness};
use crate::config::{Publisher, Resources, Snapshot};
use crate::fault::Kind;
use crate::observe::{EpochLog, IoView, XdsStatus};
use crate::stats::{Registry, RouteCell, RouteKey};

struct Bench {
    registry: Arc<Registry>,
    sampler: Sampler,
    now: Instant,
}

impl Bench {
    /// `before` fills the registry before anybody watches.
    fn new(resources: &Resources, before: impl FnOnce(&Registry)) -> Self {
        let registry = Arc::<Registry>::default();
        before(&registry);
        let publisher = Publisher::new();
        publisher.publish(Arc::new(Snapshot::link(1, resources).0));
        let now = Instant::now();
        let sources = AdminSources {
            registry: registry.clone(),
            publisher,
            epochs: Arc::<EpochLog>::default(),
            started: now,
            io: IoView::default(),
            workers: Arc::new(Vec::new),
            ready: Arc::new(Readiness::default),
            capture: Arc::new(|| None),
            xds: Arc::new(XdsStatus::default),
            limits: Arc::new(Vec::new),
            control: Arc::<Recorder>::default(),
            node: String::new(),
        };
        Self { registry, sampler: Sampler::new(Arc::new(sources), now), now }
    }

    fn second(&mut self) -> (Frame, History) {
        self.now += Duration::from_secs(1);
        self.sampler.take(self.now)
    }
}

fn key(route: &str) -> RouteKey {
    RouteKey { listener: "in".into(), virtual_host: "shop".into(), route: route.into() }
}

fn serve(cell: &RouteCell, count: u64, class: usize, latency_us: u64) {
    cell.requests.add(count);
    cell.by_class[class].add(count);
    (0..count).for_each(|_| cell.latency.record(latency_us));
}

#[test]
fn rates_are_of_the_last_second_and_the_rest_of_the_last_ten() {
    let mut bench = Bench::new(&Resources::default(), |registry| serve(&registry.route(key("a")), 1000, 5, 9));
    let cells = [bench.registry.route(key("a")), bench.registry.route(key("a"))];
    for second in 1..=3u64 {
        cells.iter().for_each(|cell| serve(cell, 10 * second, 2, 1000));
        let (frame, _) = bench.second();
        let row = &frame.routes[0];
        assert_eq!(row.rate, 20.0 * second as f64);
        assert_eq!(row.success, Some(1.0), "what was before does not count");
        assert!((1000..=1064).contains(&row.p99_us.unwrap()), "{row:?}");
        assert_eq!(frame.totals.rate, row.rate);
    }
    serve(&cells[0], 120, 5, 50_000);
    cells[1].retries.add(60);
    let (frame, _) = bench.second();
    assert_eq!(frame.routes[0].success, Some(0.5));
    assert_eq!(frame.routes[0].retry_rate, 15.0, "60 in a window of four seconds");
    assert!(frame.routes[0].p99_us.unwrap() >= 50_000);
    assert_eq!(frame.totals.success, Some(0.5));
    for _ in 0..9 {
        let (frame, _) = bench.second();
        assert_eq!(frame.routes[0].rate, 0.0);
        assert!(frame.routes[0].success.is_some());
    }
    let (frame, history) = bench.second();
    assert_eq!((frame.routes[0].success, frame.routes[0].p99_us, frame.totals.p50_us), (None, None, None));
    assert_eq!(frame.routes[0].retry_rate, 0.0);
    assert_eq!(history.routes[0][..5], [20.0, 40.0, 60.0, 120.0, 0.0]);
    assert_eq!(history.total, history.routes[0]);
}

#[test]
fn a_route_that_appears_has_counted_from_zero() {
    let mut bench = Bench::new(&Resources::default(), |_| {});
    assert!(bench.second().0.routes.is_empty());
    serve(&bench.registry.route(key("late")), 7, 2, 500);
    let (frame, _) = bench.second();
    assert_eq!((frame.routes[0].rate, frame.routes[0].success), (7.0, Some(1.0)));
}

#[test]
fn a_downstream_that_left_is_no_failure() {
    let mut bench = Bench::new(&Resources::default(), |_| {});
    let cell = bench.registry.route(key("a"));
    serve(&cell, 8, 2, 500);
    serve(&cell, 3, 0, 500);
    (0..2).for_each(|_| cell.faults.add_one(Kind::Gone));
    cell.faults.add_one(Kind::ResponseTruncated);
    (0..5).for_each(|_| cell.faults.add_one(Kind::Redirect));
    let row = &bench.second().0.routes[0];
    assert_eq!(row.success, Some(1.0 - 1.0 / 9.0));
    let kinds: Vec<_> = row.faults.iter().map(|fault| (fault.kind, fault.rate)).collect();
    assert_eq!(kinds, [("gone", 2.0), ("truncated", 1.0)], "a redirect is no refusal");
}

#[test]
fn configured_routes_come_first_in_their_order_and_busy_ones_are_never_left_out() {
    let mut bench = Bench::new(&resources(), |_| {});
    for at in 0..300 {
        bench.registry.route(key(&format!("{at:03}"))).requests.add(1);
    }
    let busy = bench.registry.route(key("health"));
    busy.requests.add(1);
    let (frame, history) = bench.second();
    assert_eq!((frame.routes.len(), history.routes.len(), frame.routes_left_out), (200, 200, 105 + 1));
    assert_eq!((frame.routes[0].route.as_str(), frame.routes[0].matches.contains("exact /health")), ("health", true));
    assert_eq!(frame.routes[1].route, "000");
    assert_eq!(frame.totals.rate, 301.0, "totals are over everything");
}

#[test]
fn ejected_endpoints_tell_how_long() {
    let mut bench = Bench::new(&resources(), |_| {});
    let cell = bench.registry.endpoint(&"orders".into(), "10.0.0.1:80".parse().unwrap());
    cell.ejected.store(true, Relaxed);
    cell.ejected_at_ms.store(1, Relaxed);
    cell.ejected_until_ms.store(3_600_000, Relaxed);
    cell.requests.store(4, Relaxed);
    let (frame, _) = bench.second();
    let row = &frame.clusters[0].endpoints[0];
    let ejected = row.ejected.as_ref().unwrap();
    assert!(ejected.age_ms.is_some() && ejected.remaining_ms.is_some_and(|left| left > 3_000_000), "{ejected:?}");
    assert_eq!(row.rate, 4.0);
    assert_eq!((frame.totals.ejected, frame.totals.endpoints), (1, 2));
    assert!(frame.clusters[0].endpoints[1].ejected.is_none());
    cell.ejected.store(false, Relaxed);
    assert_eq!(bench.second().0.totals.ejected, 0);
}

#[test]
fn the_memory_of_a_route_that_left_is_dropped() {
    let mut bench = Bench::new(&Resources::default(), |_| {});
    bench.registry.cluster("orders".into()).requests.add(1);
    bench.second();
    bench.registry.retain_clusters(|_| false);
    bench.second();
    bench.registry.cluster("orders".into()).requests.add(5);
    let (frame, _) = bench.second();
    assert!(frame.clusters.is_empty(), "no cluster is configured");
}
