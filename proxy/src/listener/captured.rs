//! **Purpose.** Connections that rules of the kernel bring: where they were going decides who serves them.
//!
//! **Shape.**
//! ```text
//!   original destination ──▶ the heartbeat's ──────────────▶ answered and closed
//!                        ├─▶ a listener's that is handed its connections ──▶ served by that one
//!                        ├─▶ this listener itself, beside a workload ──▶ closed: it would go on to itself
//!                        └─▶ anything else ─────────────▶ served here
//! ```
//! Without a rule the original destination is the address that was connected to. What is served runs under it from here on:
//! filter chains, logs and clusters of original destinations see no other.
//!
//! **Limits.** One system call a connection, and only of listeners that are configured to ask.
//!
//! **Errors.** A loop is counted as a fault of the listener.
//!
//! **Source.** Envoy, `use_original_dst` and the listener filter `original_dst`. Differs: only listeners without a port of their
//! own are handed connections, so that a port bound for other clients does not draw captured ones; loops.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use outrigger_reactor::{Buf, TcpStream, spawn, timeout};

use super::accept::serve_under;
use crate::config::OriginalDestination;
use crate::drain::Watch;
use crate::fault::{Fault, Kind};
use crate::worker::{ListenerView, View, Worker};

/// Time for the answer to a heartbeat to leave.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves a connection accepted by a listener that asks for original destinations.
pub(super) fn serve(worker: &Rc<Worker>, view: &Rc<View>, accepted_by: &ListenerView, stream: TcpStream) {
    let config = accepted_by.config();
    let own = &worker.shared.own;
    let destination = stream.original_dst();
    if own.is_heartbeat(destination) {
        worker.listener_cell(&config.name).heartbeats.add_one();
        // Owned by the worker's drain.
        spawn(answer_heartbeat(stream, worker.drain.watch())).detach();
        return;
    }
    if config.capture.original == OriginalDestination::HandsOver
        && let Some(other) = view.handed_to(destination)
    {
        worker.listener_cell(&config.name).handed.add_one();
        return serve_under(worker, view, other, stream, Some(destination));
    }
    if config.is_behind_rules() && own.listener_at(destination).as_ref() == Some(&config.name) {
        return refuse(worker, view, accepted_by, (stream.peer_addr(), destination));
    }
    serve_under(worker, view, accepted_by, stream, Some(destination));
}

fn refuse(worker: &Worker, view: &View, accepted_by: &ListenerView, (peer, destination): (SocketAddr, SocketAddr)) {
    let name = &accepted_by.config().name;
    worker.listener_cell(name).faults.add_one(Kind::AcceptLoop);
    let fault = Fault::new(Kind::AcceptLoop);
    let fault = fault.header(view.epoch());
    tracing::debug!(listener = %name, %peer, %destination, %fault, "connection to the listener itself closed");
}

/// Says that the rules brought a heartbeat here, and which process got it.
/// Cancel: the connection is closed.
async fn answer_heartbeat(stream: TcpStream, _watch: Watch) {
    stream.queue(Buf::from(format!("outrigger-heartbeat {}\n", std::process::id()).into_bytes()));
    // Who asked and does not wait for the answer gets none.
    let _ = timeout(ANSWER_TIMEOUT, stream.flush()).await;
}
