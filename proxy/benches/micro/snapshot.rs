//! What a request reads before it is routed: the current snapshot, as the worker runs it.

use criterion::Criterion;

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("snapshot");
    let resources = super::resources();
    let (worker, publisher) = super::worker(&resources);
    let mut reader = publisher.reader();
    group.bench_function("Reader::current", |bencher| bencher.iter(|| reader.current().epoch));
    group.bench_function("Worker::view", |bencher| bencher.iter(|| worker.view()));
    let name = resources.listeners.keys().next().expect("the bench has a listener");
    let view = worker.view();
    let chain = view.listener(name).expect("the bench has a listener").id();
    group.bench_function("View::http", |bencher| bencher.iter(|| view.http(chain)));
    group.bench_function("View::chain and its routes", |bencher| {
        bencher.iter(|| view.chain(chain).and_then(|chain| view.routes(chain)).is_some());
    });
    group.finish();
}
