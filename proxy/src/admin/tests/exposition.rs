//! A strict reader of the text format, apart from the writer: it shares no code with it.

use std::collections::{HashMap, HashSet};

use super::world::{HOSTILE, World};
use crate::observe::Metric;

#[derive(Debug)]
struct Line {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// Families in order, each with its type and lines. Panics on anything the format does not allow.
fn read(text: &str) -> Vec<(String, String, Vec<Line>)> {
    assert!(text.ends_with('\n') && !text.contains('\r'));
    let mut families: Vec<(String, String, Vec<Line>)> = Vec::new();
    let mut names = HashSet::new();
    let mut help = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').unwrap();
            assert!(names.insert(name.to_owned()), "{name} is not contiguous");
            assert!(!words.is_empty() && help.replace(name.to_owned()).is_none());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(help.take().as_deref(), Some(name), "TYPE without HELP");
            assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{kind}");
            families.push((name.into(), kind.into(), Vec::new()));
        } else {
            assert!(help.is_none() && !line.starts_with('#') && !line.is_empty(), "{line}");
            let (name, kind, lines) = families.last_mut().unwrap();
            let line = read_line(line);
            let rest = line.name.strip_prefix(name.as_str()).unwrap_or_else(|| panic!("{} in {name}", line.name));
            let parts: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(parts.contains(&rest), "{} in {name}", line.name);
            lines.push(line);
        }
    }
    families
}

fn read_line(line: &str) -> Line {
    let end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(end);
    assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':'), "{line}");
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap();
            assert!(label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{label:?} in {line}");
            let (value, after) = read_value(after, line);
            labels.push((label.to_owned(), value));
            match after.split_at(1) {
                (",", after) => rest = after,
                ("}", after) => {
                    rest = after;
                    break;
                }
                other => panic!("{other:?} in {line}"),
            }
        }
    }
    let value = rest.strip_prefix(' ').unwrap();
    assert!(!value.contains(' '), "{line}");
    Line { name: name.into(), labels, value: value.parse().unwrap() }
}

fn read_value<'a>(text: &'a str, line: &str) -> (String, &'a str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.push(match chars.next().map(|(_, c)| c) {
                Some('n') => '\n',
                Some(c @ ('\\' | '"')) => c,
                other => panic!("escape {other:?} in {line}"),
            }),
            c => value.push(c),
        }
    }
    panic!("no end of a label value in {line}");
}

fn labels_without_bound(line: &Line) -> Vec<(String, String)> {
    line.labels.iter().filter(|(name, _)| name != "le").cloned().collect()
}

#[tokio::test]
async fn the_exposition_is_sound() {
    let world = World::start().await;
    let answer = world.ask("GET", "/stats/prometheus").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let families = read(&answer.body);
    for (name, kind, lines) in &families {
        let metric = Metric::ALL.iter().find(|metric| metric.name() == name).unwrap();
        assert_eq!(metric.kind().label(), kind);
        let mut seen = HashSet::new();
        for line in lines {
            assert!(seen.insert((line.name.clone(), line.labels.clone())), "twice: {line:?}");
            assert!(line.value.is_finite() && line.value >= 0.0, "{line:?}");
            let names: Vec<_> =
                line.labels.iter().map(|(name, _)| name.as_str()).filter(|name| *name != "le").collect();
            assert_eq!(names, metric.labels().iter().map(|label| label.name()).collect::<Vec<_>>());
        }
        if kind == "histogram" {
            assert_histogram(lines);
        }
    }
    let of = |metric: Metric| &families.iter().find(|(name, ..)| name == metric.name()).unwrap().2;
    let requests = &of(Metric::RouteRequests)[0];
    assert_eq!(requests.value, 100.0);
    assert_eq!(requests.labels[2], ("route".into(), HOSTILE.into()));
    let limited = of(Metric::Faults).iter().find(|line| line.labels[2].1 == "rate-limited").unwrap();
    assert_eq!((limited.value, limited.labels[3].1.as_str()), (2.0, "RL"));
    assert_eq!(of(Metric::EndpointEjected)[0].value, 1.0);
    assert_eq!(of(Metric::IoDriver)[0].labels[0].1, "epoll");
    assert_eq!(of(Metric::XdsAge)[0].value, 1.5);
    assert_eq!(of(Metric::LimitTokens)[0].value, 7.0);
    let retries: Vec<_> = of(Metric::ClusterLimit).iter().filter(|line| line.labels[1].1 == "retries").collect();
    assert_eq!(retries.len(), 1, "a cluster with a retry budget has no bound of retries");
}

fn assert_histogram(lines: &[Line]) {
    let mut by_labels: HashMap<_, Vec<&Line>> = HashMap::new();
    for line in lines {
        by_labels.entry(labels_without_bound(line)).or_default().push(line);
    }
    for lines in by_labels.values() {
        let buckets: Vec<(f64, f64)> = lines
            .iter()
            .filter(|line| line.name.ends_with("_bucket"))
            .map(|line| (line.labels.last().unwrap().1.parse().unwrap(), line.value))
            .collect();
        assert!(buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1), "{buckets:?}");
        let one = |suffix: &str| lines.iter().find(|line| line.name.ends_with(suffix)).unwrap().value;
        assert_eq!(*buckets.last().unwrap(), (f64::INFINITY, one("_count")));
        assert!(one("_sum") >= 0.0);
    }
}

#[tokio::test]
async fn the_sum_of_a_histogram_is_in_seconds() {
    let world = World::start().await;
    let body = world.ask("GET", "/stats/prometheus").await.body;
    let families = read(&body);
    let (_, _, lines) = families.iter().find(|(name, ..)| name == Metric::RouteLatency.name()).unwrap();
    let sum = lines.iter().find(|line| line.name.ends_with("_sum")).unwrap().value;
    // Twice 50 values from 100 µs to 5 ms.
    assert!((sum - 0.255).abs() < 1e-9, "{sum}");
    let at_most_2_5_ms = lines.iter().find(|line| line.labels.last().unwrap().1 == "0.0025").unwrap().value;
    assert!((50.0..=54.0).contains(&at_most_2_5_ms), "{at_most_2_5_ms}");
}

#[tokio::test]
async fn text_and_json_tell_the_same_and_can_be_filtered() {
    let world = World::start().await;
    let text = world.ask("GET", "/stats?filter=route_requests").await.body;
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("outrigger_route_requests_total{listener=\"in\"") && text.ends_with(": 100\n"), "{text}");
    let json = world.ask("GET", "/stats?format=json&filter=route_requests").await.json();
    assert_eq!(json["stats"][0]["value"], 100);
    assert_eq!(json["stats"][0]["labels"]["route"], HOSTILE);
    let all = world.ask("GET", "/stats").await.body;
    assert!(all.contains("p99=") && !all.chars().any(|c| c.is_control() && c != '\n'));
}
