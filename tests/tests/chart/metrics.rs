//! Purpose: panels and alerts ask for metrics that exist, by labels that they have.
//!
//! Limits: it reads expressions as words, not as PromQL; that they parse is shown by `schemas`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::read;
use super::rendered::parse;

/// Labels that a scrape adds.
const SCRAPED: [&str; 4] = ["container", "le", "namespace", "pod"];

/// Metrics with their labels, as the two programs' sources declare them.
fn declared() -> BTreeMap<String, BTreeSet<String>> {
    let proxy = read("proxy/src/observe/names.rs");
    let quoted = |line: &str| line.split('"').nth(1).map(str::to_owned);
    let labels: BTreeMap<&str, String> = proxy
        .lines()
        .filter_map(|line| Some((line.split_whitespace().next()?, quoted(line)?)))
        .filter(|(word, text)| word.chars().all(char::is_alphanumeric) && !text.contains(' '))
        .collect();
    let mut metrics = BTreeMap::new();
    for line in proxy.lines() {
        let Some((name, rest)) = quoted(line)
            .filter(|name| name.starts_with("outrigger_") || name.starts_with("process_"))
            .zip(line.split_once('['))
        else {
            continue;
        };
        let list = rest.1.split(']').next().unwrap();
        let own = list.split_whitespace().map(|word| labels[word].clone());
        metrics.insert(name, own.collect());
    }
    // The control plane writes its page line by line; a name may stand in a binding of its own before that.
    let mut bound: BTreeMap<&str, String> = BTreeMap::new();
    let control = read("control-api/src/api/metrics.rs");
    for line in control.lines().map(str::trim) {
        let name = quoted(line).filter(|name| name.starts_with("outrigger_control_"));
        let binding = line.strip_prefix("const ").or_else(|| line.strip_prefix("let "));
        if let (Some(name), Some(rest)) = (&name, binding) {
            bound.insert(rest.split([':', ' ']).next().unwrap(), name.clone());
        }
        let by_binding = || bound.get(line.strip_prefix("page.line(")?.split(',').next()?).cloned();
        let Some(name) = name.or_else(by_binding) else { continue };
        let own: &mut BTreeSet<String> = metrics.entry(name).or_default();
        own.extend(line.split("&[(\"").nth(1).and_then(|rest| Some(rest.split('"').next()?.to_owned())));
    }
    metrics
}

/// Names and labels that an expression uses: words before `{`, `[` or an end; words of `by (…)` and of matchers.
fn used(expression: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut names, mut labels) = (BTreeSet::new(), BTreeSet::new());
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut rest = expression;
    let mut depth_of_by = false;
    while let Some(start) = rest.find(|c: char| is_word(c) || c == '"' || c == ')' || c == '$') {
        rest = &rest[start..];
        if rest.starts_with('"') {
            rest = rest[1..].split_once('"').map_or("", |(_, after)| after);
            continue;
        }
        if let Some(after) = rest.strip_prefix(')') {
            depth_of_by = false;
            rest = after;
            continue;
        }
        if let Some(after) = rest.strip_prefix('$') {
            rest = after.trim_start_matches(is_word);
            continue;
        }
        let word: &str = rest.split(|c: char| !is_word(c)).next().unwrap();
        let after = rest[word.len()..].trim_start();
        rest = &rest[word.len()..];
        match word {
            "by" => depth_of_by = true,
            _ if word.starts_with(|c: char| c.is_ascii_digit()) => {}
            _ if depth_of_by || after.starts_with('=') && !after.starts_with("==") || after.starts_with("!=\"") => {
                labels.insert(word.to_owned());
            }
            _ if word.contains('_') && !after.starts_with('(') => {
                names.insert(word.to_owned());
            }
            _ => {}
        }
    }
    (names, labels)
}

fn expressions() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&read("charts/outrigger/files/dashboard.json")).unwrap();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push((panel["title"].to_string(), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    let rules = parse(&read("charts/outrigger/files/rules.yaml"));
    for rule in rules[0]["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap()) {
        found.push((rule["alert"].to_string(), rule["expr"].as_str().unwrap().to_owned()));
    }
    found
}

#[test]
fn panels_and_alerts_use_metrics_that_exist() {
    let declared = declared();
    assert!(declared.len() > 70, "only {} metrics were found in the sources", declared.len());
    let expressions = expressions();
    assert!(expressions.len() > 35, "{}", expressions.len());
    for (place, expression) in expressions {
        let (names, labels) = used(&expression);
        assert!(!names.is_empty(), "{place}: {expression}");
        let mut own: BTreeSet<String> = SCRAPED.iter().map(|label| (*label).to_owned()).collect();
        for name in &names {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let metric = declared.get(name).or_else(|| declared.get(base?));
            own.extend(metric.unwrap_or_else(|| panic!("{place}: no metric is called {name}")).iter().cloned());
        }
        let foreign: Vec<_> = labels.difference(&own).collect();
        assert!(foreign.is_empty(), "{place}: {names:?} have no label {foreign:?}");
    }
}

#[test]
fn names_and_labels_are_read_out_of_an_expression() {
    let (names, labels) =
        used("topk(10, sum by (a, b_c) (rate(x_total{d=~\"$d\",e!=\"f_g\"}[$__rate_interval])) == 0) > 0.5 * y_z");
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["x_total", "y_z"]);
    assert_eq!(labels.into_iter().collect::<Vec<_>>(), ["a", "b_c", "d", "e"]);
}

/// Panels do not overlap, and each says what it shows.
#[test]
fn the_dashboard_is_laid_out() {
    let dashboard: Value = serde_json::from_str(&read("charts/outrigger/files/dashboard.json")).unwrap();
    let mut taken = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(numbers.insert(panel["id"].as_u64().unwrap()), "{panel}");
        assert!(at("x") + at("w") <= 24, "{panel}");
        for place in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
            assert!(taken.insert(place), "{} lies on another", panel["title"]);
        }
        let is_told = panel["description"].as_str().is_some_and(|text| text.ends_with('.'));
        assert!(is_told || panel["type"] == "row", "{} says nothing", panel["title"]);
    }
}
