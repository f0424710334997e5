//! **Purpose.** Samples as text: for Prometheus, and for people.
//!
//! **Units.** Seconds and bytes.
//!
//! **Source.** Prometheus text exposition format 0.0.4: families are contiguous, `# HELP` and `# TYPE` come first, `\`,
//! `"` and line feeds are escaped in label values, histogram buckets are cumulative and end with `+Inf`.
//!
//! **Tests.** A strict parser of the format, in `tests.rs` of the admin room, over an answer with hostile names.

use std::fmt::Write as _;

use serde_json::{Map, json};

use super::{BUCKETS_US, Metric, MetricType, Sample, Samples, Spread, Value};

/// Media type of [`write_prometheus`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics that have samples, in the exposition format.
pub fn write_prometheus(samples: &Samples) -> String {
    let mut out = String::with_capacity(64 * 1024);
    for &metric in Metric::ALL {
        let family = samples.of(metric);
        if family.is_empty() {
            continue;
        }
        let name = metric.name();
        put(&mut out, format_args!("# HELP {name} {}\n# TYPE {name} {}\n", metric.help(), metric.kind().label()));
        for sample in family {
            match &sample.value {
                Value::Spread(spread) => write_buckets(&mut out, metric, sample, spread),
                Value::Count(count) => write_line(&mut out, metric, sample, ("", None), count),
                Value::Real(real) => write_line(&mut out, metric, sample, ("", None), real),
            }
        }
    }
    out
}

fn write_buckets(out: &mut String, metric: Metric, sample: &Sample, spread: &Spread) {
    for (bound, count) in BUCKETS_US.iter().zip(spread.at_most) {
        write_line(out, metric, sample, ("_bucket", Some(&seconds(*bound).to_string())), &count);
    }
    write_line(out, metric, sample, ("_bucket", Some("+Inf")), &spread.count);
    write_line(out, metric, sample, ("_sum", None), &seconds(spread.sum_us));
    write_line(out, metric, sample, ("_count", None), &spread.count);
}

/// One line; `part` is the suffix of the name and the `le` label.
fn write_line(
    out: &mut String,
    metric: Metric,
    sample: &Sample,
    part: (&str, Option<&str>),
    value: &dyn std::fmt::Display,
) {
    let (suffix, bound) = part;
    out.push_str(metric.name());
    out.push_str(suffix);
    write_labels(out, metric, sample, bound);
    put(out, format_args!(" {value}\n"));
}

fn write_labels(out: &mut String, metric: Metric, sample: &Sample, bound: Option<&str>) {
    let named = metric.labels().iter().map(|label| label.name()).zip(sample.labels.iter().map(|value| &**value));
    let mut before = '{';
    for (name, value) in named.chain(bound.map(|bound| ("le", bound))) {
        out.push(before);
        before = ',';
        out.push_str(name);
        out.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
    }
    if before == ',' {
        out.push('}');
    }
}

/// `name{labels}: value` a line for those that `keep` takes; latencies as quantiles. Control characters never reach a
/// terminal as they are.
pub fn write_text(samples: &Samples, keep: impl Fn(&str) -> bool) -> String {
    let mut out = String::new();
    for &metric in Metric::ALL {
        for sample in samples.of(metric) {
            let mut line = metric.name().to_owned();
            write_labels(&mut line, metric, sample, None);
            if !keep(&line) {
                continue;
            }
            match &sample.value {
                Value::Count(count) => put(&mut line, format_args!(": {count}")),
                Value::Real(real) => put(&mut line, format_args!(": {real}")),
                Value::Spread(spread) => write_quantiles(&mut line, spread),
            }
            for c in line.chars() {
                if c.is_control() {
                    put(&mut out, format_args!("{}", c.escape_default()));
                } else {
                    out.push(c);
                }
            }
            out.push('\n');
        }
    }
    out
}

fn write_quantiles(line: &mut String, spread: &Spread) {
    put(line, format_args!(": count={} sum={}", spread.count, seconds(spread.sum_us)));
    if let Some(quantiles) = spread.quantiles_us {
        let [p50, p90, p99] = quantiles.map(seconds);
        put(line, format_args!(" p50={p50} p90={p90} p99={p99}"));
    }
}

/// `{"stats": [{name, type, labels, value}]}` of those that `keep` takes.
pub fn to_json(samples: &Samples, keep: impl Fn(&str) -> bool) -> serde_json::Value {
    let mut stats = Vec::new();
    for &metric in Metric::ALL {
        for sample in samples.of(metric) {
            let mut line = metric.name().to_owned();
            write_labels(&mut line, metric, sample, None);
            if !keep(&line) {
                continue;
            }
            let labels: Map<String, serde_json::Value> = metric
                .labels()
                .iter()
                .zip(&sample.labels)
                .map(|(label, value)| (label.name().to_owned(), json!(&**value)))
                .collect();
            let value = match &sample.value {
                Value::Count(count) => json!(count),
                Value::Real(real) => json!(real),
                Value::Spread(spread) => spread_json(spread),
            };
            let kind: MetricType = metric.kind();
            stats.push(json!({"name": metric.name(), "type": kind.label(), "labels": labels, "value": value}));
        }
    }
    json!({ "stats": stats })
}

fn spread_json(spread: &Spread) -> serde_json::Value {
    let quantiles = spread.quantiles_us.map(|quantiles| quantiles.map(seconds));
    json!({
        "count": spread.count,
        "sum_seconds": seconds(spread.sum_us),
        "p50_seconds": quantiles.map(|[p50, _, _]| p50),
        "p90_seconds": quantiles.map(|[_, p90, _]| p90),
        "p99_seconds": quantiles.map(|[_, _, p99]| p99),
    })
}

#[allow(clippy::cast_precision_loss, reason = "285 years of microseconds fit a double's 53 bits")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a String cannot fail");
}
