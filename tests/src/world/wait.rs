//! Purpose: waiting for a condition, with a deadline and a name.

use std::time::{Duration, Instant};

const POLL_EVERY: Duration = Duration::from_millis(5);

/// Polls `condition` until it gives a value; panics after `limit` with `what` and the last thing it said.
///
/// # Panics
/// When the time is up.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + limit;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(last) if Instant::now() >= end => panic!("waited {limit:?} for {what}; last seen: {last}"),
            Err(_) => std::thread::sleep(POLL_EVERY),
        }
    }
}
