//! Endpoint pick of each balancer, with outlier detection on, through the cluster as a worker runs it.

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion};
use outrigger_proxy::config::{
    ClusterConfig, ClusterIndex, Discovery, EndpointConfig, EndpointHealth, EndpointSet, LoadBalancing, Resources,
};
use outrigger_proxy::route::Chosen;
use outrigger_proxy::worker::{Cluster, Worker};

const BALANCERS: [(&str, LoadBalancing); 3] = [
    ("round robin", LoadBalancing::RoundRobin),
    ("least request", LoadBalancing::LeastRequest { choices: 2 }),
    ("random", LoadBalancing::Random),
];

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("endpoint pick");
    for (name, balancing) in BALANCERS {
        for count in [1, 3, 100, 1000] {
            let (worker, cluster) = running(cluster(balancing, count, &|_| 1));
            let id = BenchmarkId::new(name, count);
            group.bench_function(id, |bencher| bencher.iter(|| cluster.pick(&[], &worker.chance)));
        }
        let (worker, cluster) = running(cluster(balancing, 100, &|at| 1 + at % 5));
        let id = BenchmarkId::new(name, "100 weighted");
        group.bench_function(id, |bencher| bencher.iter(|| cluster.pick(&[], &worker.chance)));
    }
    group.finish();
}

/// A cluster as a worker runs it.
pub(crate) fn running(config: ClusterConfig) -> (Rc<Worker>, Rc<Cluster>) {
    let mut resources = Resources::default();
    let name = config.name.clone();
    resources.clusters.insert(name.clone(), Arc::new(config));
    let (worker, _) = super::worker(&resources);
    let chosen = Chosen::Linked { name: &name, index: Some(ClusterIndex(0)), weighted: None };
    let cluster = worker.view().cluster(&chosen, &worker).expect("it is in the snapshot");
    (worker, cluster)
}

pub(crate) fn cluster(balancing: LoadBalancing, endpoints: u16, weight: &dyn Fn(u16) -> u16) -> ClusterConfig {
    let endpoint = |at: u16| EndpointConfig {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 10_000 + at)),
        weight: u32::from(weight(at)),
        priority: 0,
        locality: "".into(),
        health: EndpointHealth::Healthy,
    };
    let set = EndpointSet { endpoints: (0..endpoints).map(endpoint).collect(), overprovisioning_percent: 140 };
    ClusterConfig { discovery: Discovery::Static(Arc::new(set)), ..super::cluster(balancing) }
}
