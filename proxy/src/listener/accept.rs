//! One worker's accept loop over one socket.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use outrigger_reactor::{TcpListener, TcpStream, sleep, spawn};

use crate::config::ListenerName;
use crate::drain::Watch;
use crate::http1;
use crate::worker::Worker;

/// Pause after an accept that failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts and serves until `stop` is told; then whoever stands in the kernel's queue is served too, since a closed
/// socket would reset them. Connections served go on after that, to the end of the worker's drain.
/// Cancel: who stands in the kernel's queue is reset.
pub async fn accept(worker: Rc<Worker>, listener: ListenerName, socket: TcpListener, stop: Watch) {
    let cell = worker.listener_cell(&listener);
    let serve = |stream: TcpStream, peer: SocketAddr| {
        cell.accepted.add_one();
        let connection = http1::Downstream::new(worker.clone(), listener.clone(), stream, peer);
        // Owned by the worker's drain: its watch is in the connection, and the runtime ends it at the deadline.
        spawn(connection.serve()).detach();
    };
    loop {
        let accepted = poll_fn(|cx| match stop.poll_started(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => socket.poll_accept(cx).map(Some),
        });
        match accepted.await {
            None => break,
            Some(Ok((stream, peer))) => serve(stream, peer),
            Some(Err(error)) => {
                cell.accept_failures.add_one();
                worker.log_accept_failure(&listener, &error);
                sleep(PAUSE).await;
            }
        }
    }
    for (stream, peer) in socket.close() {
        serve(stream, peer);
    }
}
