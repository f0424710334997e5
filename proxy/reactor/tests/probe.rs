//! What the probe says here, and under a seccomp filter that forbids io_uring.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use outrigger_reactor::{DriverKind, IoChoice, probe};

#[test]
fn this_machine_allows_io_uring() {
    let found = probe(IoChoice::Auto).unwrap();
    assert_eq!(found.driver, DriverKind::Uring, "{found:?}");
    assert!(found.checks.iter().all(|check| check.passed));
}
