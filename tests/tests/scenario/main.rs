//! Purpose: what the built binaries do over real sockets, each scenario on both I/O drivers.
//!
//! Shape: one module a subject; [`on_both_drivers`] turns one body into two tests. The world around a proxy is
//! `outrigger_tests::world`.
//!
//! Limits: a scenario that cannot run fails; none is skipped.

#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

/// Defines each scenario as a module with a test per driver.
macro_rules! on_both_drivers {
    ($($(#[$meta:meta])* fn $name:ident($io:ident) $body:block)+) => {
        $(
            $(#[$meta])*
            mod $name {
                #[allow(unused_imports, reason = "scenarios share their module's imports")]
                use super::*;

                fn run($io: Io) $body

                #[test]
                fn epoll() {
                    run(Io::Epoll);
                }

                #[test]
                fn uring() {
                    run(Io::Uring);
                }
            }
        )+
    };
}

mod access;
mod attacks;
mod balancing;
mod capture;
mod connect;
mod control;
mod detect;
mod drain;
mod edges;
mod eject;
mod fallback;
mod forwarding;
mod grpc;
mod health;
mod http2;
mod http2_attacks;
mod idle;
mod inject;
mod input;
mod leave;
mod limits;
mod memory;
mod mixes;
mod retry;
mod routing;
mod swaps;
mod tcp;
mod timeouts;
mod tunnel;
mod upgrade;
mod workers;
mod zero_copy;
