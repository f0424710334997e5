//! One worker's accept loop over one socket.

use std::rc::Rc;
use std::time::Duration;

use outrigger_reactor::{TcpListener, sleep, spawn};

use crate::config::ListenerName;
use crate::http1;
use crate::worker::Worker;

/// Pause after an accept that failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts and serves until dropped. Connections served go on after that, to the end of the drain.
/// Cancel: no accepted connection is lost.
pub async fn accept(worker: Rc<Worker>, listener: ListenerName, socket: TcpListener) {
    let cell = worker.listener_cell(&listener);
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => {
                cell.accepted.add_one();
                let connection = http1::Downstream::new(worker.clone(), listener.clone(), stream, peer);
                // Owned by the worker's drain: its watch is in the connection, and the runtime ends it at the deadline.
                spawn(connection.serve()).detach();
            }
            Err(error) => {
                cell.accept_failures.add_one();
                worker.log_accept_failure(&listener, &error);
                sleep(PAUSE).await;
            }
        }
    }
}
