//! A worker's look at its endpoints, each second, between two requests: none waits longer than that takes.

use criterion::{BenchmarkId, Criterion};
use outrigger_proxy::config::LoadBalancing;

use super::balance::{cluster, running};

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sweep");
    for count in [1, 100, 1000, 5000] {
        let (worker, _cluster) = running(cluster(LoadBalancing::RoundRobin, count, &|_| 1));
        group.bench_function(BenchmarkId::new("endpoints", count), |bencher| bencher.iter(|| worker.sweep()));
    }
    group.finish();
}
