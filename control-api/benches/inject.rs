//! **Purpose.** How long the webhook takes over a review, from the body's bytes to the answer's: the bar is 10 ms each, the
//! 3 MB ones too. `make bench-micro ARGS=review`, which builds it as the program is built.
//!
//! **Limits.** Figures depend on the machine: nothing here fails.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use outrigger_control::webhook::review::answer;

#[path = "../tests/inject/cases.rs"]
mod cases;

fn reviews(criterion: &mut Criterion) {
    let config = cases::config();
    let mut group = criterion.benchmark_group("review");
    for name in ["plain", "bootstrap-from: \"projected-file\"", "many conflicts", "again: as it was", "host network"] {
        let case = cases::all().into_iter().find(|case| case.name == name).expect("a case of that name");
        group.bench_function(name, |bencher| bencher.iter(|| answer(&case.body, &config)));
    }
    for case in cases::large() {
        group.bench_function(&case.name, |bencher| bencher.iter(|| answer(&case.body, &config)));
    }
    let all = cases::all();
    group.bench_function(format!("all {} together", all.len()), |bencher| {
        bencher.iter(|| all.iter().map(|case| answer(&case.body, &config).body.len()).sum::<usize>());
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1)).sample_size(20);
    targets = reviews
}
criterion_main!(benches);
