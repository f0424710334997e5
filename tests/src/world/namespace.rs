//! Purpose: network namespaces of this machine, by name, as `ip` makes them.
//!
//! Errors: without root or `ip` each of these panics and says so; a test that needs namespaces is not skipped.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `ip` with these words.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output();
    let output = output.unwrap_or_else(|error| panic!("ip: {error}; `make interop` installs it"));
    assert!(
        output.status.success(),
        "ip {words}: {}; this test makes network namespaces, which takes root",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Takes a namespace away.
pub fn delete(name: &str) {
    // What was not made cannot be deleted, and a failure that brought us here is told already.
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

/// The file that stands for a namespace.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Moves this thread into a namespace, for good.
///
/// # Panics
/// When that is not allowed.
pub fn enter(name: &str) {
    let path = path(name);
    let entered = File::open(&path)
        .and_then(|file| Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?));
    entered.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Runs `act` on a thread inside of a namespace; whatever it starts is in there too, processes and their sockets.
pub fn inside<T: Send>(name: &str, act: impl FnOnce() -> T + Send) -> T {
    let enter_and_act = || {
        enter(name);
        act()
    };
    thread::scope(|scope| scope.spawn(enter_and_act).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
