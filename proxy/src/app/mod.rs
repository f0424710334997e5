//! **Purpose.** The one assembly point: settings and bootstrap in, a running proxy out.
//!
//! **Shape.** The main thread is the control thread: a tokio runtime that runs the xDS client, the admin port, signals
//! and what is due by itself, and publishes snapshots; it sleeps while nothing is. Worker threads run the data path and are
//! commanded by mailboxes.
//! ```text
//!  starting ──first snapshot, sockets bound──▶ ready ──SIGTERM, /prestop──▶ leaving ──SIGTERM and nobody sends here──┐
//!      └──SIGTERM─────────┐                       └──SIGINT, POST /drain──┐                                          │
//!                         └───────────────────────────────────────────────┴──▶ draining ◀────────────────────────────┘
//!                                                                 last connection or drain time──▶ ended
//! ```
//!
//! **Errors.** [`Failure::Refused`] for what the operator must change (exit code 2), [`Failure::Broke`] for what failed
//! while running (exit code 1).
//!
//! **Cancel.** A second SIGTERM ends the wait for peers, a further signal while draining the process at once.

mod control;
mod ending;
mod glue;
mod heartbeat;
mod leave;
mod log;
mod thread;

pub use control::run;
pub use log::LogLevel;

use outrigger_reactor::IoChoice;

use crate::bootstrap;

/// The reactor's word for what the command line asks for.
pub fn io_choice(choice: bootstrap::IoChoice) -> IoChoice {
    match choice {
        bootstrap::IoChoice::Auto => IoChoice::Auto,
        bootstrap::IoChoice::Epoll => IoChoice::Epoll,
        bootstrap::IoChoice::Uring => IoChoice::Uring,
    }
}

/// Why the proxy ended.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It failed while running.
    #[error("{0}")]
    Broke(String),
    /// Its input was refused: file, setting or port.
    #[error("{0}")]
    Refused(String),
}
