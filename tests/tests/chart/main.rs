//! Purpose: the Helm chart. What needs no tool runs with all other tests: values, schema and README agree, panels and
//! alerts use metrics that exist. What needs Helm and the schemas of others is run by `make chart`, which gets them first.
//!
//! Shape: a rendering is a list of objects ([`Rendered`]); [`golden`] compares it with files, [`policy`] judges pods and
//! roles, [`webhook`] says who is called, [`schemas`] hands it to `tests/tools/manifests.py`.
//!
//! Errors: a tool that is missing fails its test and is named; none is skipped. `OUTRIGGER_BLESS=1` writes golden files
//! and the README's table anew.

#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden;
mod injected;
mod metrics;
mod policy;
mod refusals;
mod rendered;
mod schemas;
mod seccomp;
mod values;
mod webhook;

use outrigger_tests::world::tool::root;
use rendered::Rendered;

/// Sets of values below `tests/chart/values`, each rendered and judged by every test.
const SETS: [&str; 5] = ["certificate", "default", "everything", "minimal", "redb"];

fn read(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Compares text with a file of the repository, or writes it there.
fn compare(path: &str, text: &str) {
    if std::env::var_os("OUTRIGGER_BLESS").is_some() {
        let path = root().join(path);
        return std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let wanted = read(path);
    if wanted != text {
        let line = wanted.lines().zip(text.lines()).position(|(left, right)| left != right);
        let at = line.unwrap_or_else(|| wanted.lines().count().min(text.lines().count()));
        let show = |text: &str| text.lines().skip(at.saturating_sub(3)).take(8).collect::<Vec<_>>().join("\n");
        panic!(
            "{path} differs from line {}:\n--- there\n{}\n--- now\n{}\nOUTRIGGER_BLESS=1 writes it anew",
            at + 1,
            show(&wanted),
            show(text)
        );
    }
}

/// The path of a tool that `make chart` gets.
fn tool(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run this by `make chart`"))
}

fn everywhere() -> impl Iterator<Item = (&'static str, Rendered)> {
    SETS.into_iter().map(|set| (set, Rendered::of(set)))
}
