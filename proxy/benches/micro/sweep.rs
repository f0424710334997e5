//! A worker's look at its endpoints, each second, between two requests: none waits longer than that takes.

use std::sync::Arc;

use criterion::{BenchmarkId, Criterion};
use outrigger_proxy::config::{ClusterIndex, LoadBalancing, Resources};
use outrigger_proxy::route::Chosen;

use super::balance::cluster;

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sweep");
    for count in [1, 100, 1000, 5000] {
        let mut resources = Resources::default();
        let config = cluster(LoadBalancing::RoundRobin, count, &|_| 1);
        resources.clusters.insert(config.name.clone(), Arc::new(config));
        let (worker, _publisher) = super::worker(&resources);
        let name = resources.clusters.keys().next().expect("there is one");
        let chosen = Chosen::Linked { name, index: Some(ClusterIndex(0)), weighted: None };
        let _cluster = worker.view().cluster(&chosen, &worker).expect("it is in the snapshot");
        group.bench_function(BenchmarkId::new("endpoints", count), |bencher| bencher.iter(|| worker.sweep()));
    }
    group.finish();
}
