//! One suite, run on both drivers. A machine without io_uring fails the `uring` half: it is never skipped.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a scenario fails by panicking")]

mod suite;

use outrigger_reactor::DriverKind;

macro_rules! on_both {
    ($($name:ident in $room:ident),* $(,)?) => {
        mod uring {
            use super::{DriverKind, suite};
            $(#[test] fn $name() { suite::$room::$name(DriverKind::Uring); })*
        }
        mod epoll {
            use super::{DriverKind, suite};
            $(#[test] fn $name() { suite::$room::$name(DriverKind::Epoll); })*
        }
    };
}

on_both! {
    echoes in basic,
}
