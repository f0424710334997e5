//! One request asked of a token bucket that nobody else asks.

use std::hint::black_box;

use criterion::Criterion;
use outrigger_proxy::chance::Chance;
use outrigger_proxy::config::{LocalRateLimit, TokenBucketConfig};
use outrigger_proxy::policy::{TokenBucket, admit};
use outrigger_reactor::{DriverKind, Options, Runtime};
use std::time::Duration;

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("limiter");
    let chance = Chance::from_seed(7);
    for (name, max_tokens, fill) in [("admits", u32::MAX, u32::MAX), ("refuses", 1, 1)] {
        let limit = limit(max_tokens, fill);
        let bucket = TokenBucket::new(limit.bucket, 0);
        bucket.take(0);
        group.bench_function(name, |bencher| bencher.iter(|| admit(&limit, &bucket, black_box(1), &chance)));
    }
    // As the data path asks: the time is that of the loop's turn.
    let (worker, _publisher) = super::worker(&super::resources());
    let limit = limit(u32::MAX, u32::MAX);
    let bucket = TokenBucket::new(limit.bucket, 0);
    let mut runtime = Runtime::new(DriverKind::Epoll, &Options::default()).expect("epoll is everywhere");
    runtime.block_on(async {
        group.bench_function("admits in a worker", |bencher| bencher.iter(|| worker.admit(&limit, &bucket)));
    });
    group.finish();
}

fn limit(max_tokens: u32, tokens_per_fill: u32) -> LocalRateLimit {
    LocalRateLimit {
        rule: "bench".into(),
        bucket: TokenBucketConfig { max_tokens, tokens_per_fill, fill_interval: Duration::from_millis(50) },
        enabled_ppm: 1_000_000,
        enforced_ppm: 1_000_000,
        status: 429,
    }
}
