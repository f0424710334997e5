//! One worker's accept loop over one socket.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use outrigger_reactor::{Accepted, TcpListener, TcpStream, now, sleep, spawn};

use super::arrive::Arrival;
use super::captured;
use super::crew::{Crew, Passing};
use crate::config::{ListenerName, OriginalDestination, Protocol};
use crate::drain::Watch;
use crate::tcp::Origin;
use crate::worker::{ListenerView, View, Worker};
use crate::{http, tcp};

/// Pause after an accept that failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts until `stop` is told, and serves what the crew does not take; then whoever stands in the kernel's queue is
/// served too, since a closed socket would reset them. Connections served go on after that, to the end of the worker's
/// drain.
/// Cancel: who stands in the kernel's queue is reset.
pub async fn accept(worker: Rc<Worker>, crew: Crew, listener: ListenerName, socket: TcpListener, stop: Watch) {
    let cell = worker.listener_cell(&listener);
    let mut passing = Passing::default();
    loop {
        let accepted = poll_fn(|cx| match stop.poll_started(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => socket.poll_accepted(cx).map(Some),
        });
        match accepted.await {
            None => break,
            Some(Ok(accepted)) => {
                cell.accepted.add_one();
                let slack = passing.slack(worker.drain.ended(), now());
                if let Some(accepted) = crew.hand(&listener, accepted, slack) {
                    serve(&worker, &listener, accepted);
                }
            }
            Some(Err(error)) => {
                note_failure(&worker, &listener, &error);
                sleep(PAUSE).await;
            }
        }
    }
    for (stream, _) in socket.close() {
        cell.accepted.add_one();
        serve_stream(&worker, &listener, stream);
    }
}

/// Serves an accepted connection on this worker.
pub(super) fn serve(worker: &Rc<Worker>, listener: &ListenerName, accepted: Accepted) {
    match accepted.open() {
        Ok(stream) => serve_stream(worker, listener, stream),
        Err(error) => note_failure(worker, listener, &error),
    }
}

fn serve_stream(worker: &Rc<Worker>, listener: &ListenerName, stream: TcpStream) {
    let view = worker.view();
    // It went while the connection was on its way.
    let Some(first) = view.listener(listener) else { return };
    match first.config().capture.original {
        OriginalDestination::Unasked => serve_under(worker, &view, first, stream, None),
        OriginalDestination::Asked | OriginalDestination::HandsOver => captured::serve(worker, &view, first, stream),
    }
}

/// Serves a connection under a listener, of which `first` is the first chain; made to `destination`, or where it was accepted.
pub(super) fn serve_under(
    worker: &Rc<Worker>,
    view: &Rc<View>,
    first: &ListenerView,
    stream: TcpStream,
    destination: Option<SocketAddr>,
) {
    if first.config().only_chain().is_some() {
        let origin = Origin { source: stream.peer_addr(), destination, first_word: None };
        start(worker, view, first, stream, origin);
    } else {
        spawn(Arrival::new(worker, first.config(), stream, destination).serve()).detach();
    }
}

/// Serves a connection under its filter chain.
pub(super) fn start(worker: &Rc<Worker>, view: &Rc<View>, chain: &ListenerView, stream: TcpStream, origin: Origin) {
    let (worker, id) = (worker.clone(), chain.id().clone());
    // Owned by the worker's drain: its watch is in the connection, and the runtime ends it at the deadline.
    match chain.protocol() {
        Protocol::Tcp(settings) => {
            let connection = tcp::Downstream::new(worker, id.listener.clone(), stream, origin);
            spawn(connection.serve(view.clone(), settings.clone())).detach();
        }
        Protocol::Http(_) => {
            spawn(http::serve(worker, id, stream, (origin.source, origin.destination))).detach();
        }
    }
}

fn note_failure(worker: &Worker, listener: &ListenerName, error: &io::Error) {
    worker.listener_cell(listener).accept_failures.add_one();
    worker.log_accept_failure(listener, error);
}
