//! Plain values that the application fills in from rooms this one does not know.

use std::time::Duration;

use serde::{Serialize, Serializer};

/// The I/O driver and why it was chosen.
#[derive(Clone, Debug, Default, Serialize)]
pub struct IoView {
    /// What the command line asked for: `auto`, `uring` or `epoll`.
    pub choice: String,
    /// What is used: `uring` or `epoll`.
    pub driver: String,
    /// Why, in one line.
    pub reason: String,
    /// Release of the kernel.
    pub kernel: String,
    /// What was looked at.
    pub checks: Vec<IoCheck>,
    /// Worker threads.
    pub worker_count: usize,
    /// Why that many, in one line.
    pub worker_reason: String,
}

/// One thing looked at to choose the driver.
#[derive(Clone, Debug, Default, Serialize)]
pub struct IoCheck {
    /// What.
    pub name: String,
    /// Whether it held.
    pub passed: bool,
    /// What was seen.
    pub detail: String,
}

/// What the heartbeats of the capture have shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CaptureView {
    /// The pod's traffic comes here, as far as the last heartbeats tell.
    pub is_proven: bool,
    /// Heartbeats answered.
    pub answered: u64,
    /// Heartbeats not answered.
    pub lost: u64,
}

/// Counters of one worker and its reactor.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct WorkerIo {
    /// Number of the worker, from 0.
    pub worker: usize,
    /// Downstream connections it serves now, with those on their way to it from other workers.
    pub connections: usize,
    /// Connections that it accepted and handed to a worker with fewer.
    pub handed_over: u64,
    /// Turns of the event loop.
    pub turns: u64,
    /// System calls made.
    pub syscalls: u64,
    /// Operations handed to the kernel.
    pub submissions: u64,
    /// Operations ended by the kernel.
    pub completions: u64,
    /// Operations cancelled.
    pub cancels: u64,
    /// Bytes received.
    pub recv_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes moved from socket to socket inside the kernel: neither received nor sent.
    pub spliced_bytes: u64,
    /// Bytes of bodies that the proxy copied in its memory: kept for another try, sent once more, or received in one
    /// piece with the end of a head that came in several.
    pub copied_bytes: u64,
    /// Sends whose bytes the kernel was to read in place.
    pub zc_sends: u64,
    /// Of these, those that it copied after all; each ends them for its connection.
    pub zc_copied: u64,
    /// Blocks of the receive pool in use.
    pub buffers_in_use: u64,
    /// Times the receive pool was empty.
    pub buffer_exhausted: u64,
    /// Tasks alive.
    pub tasks: u64,
    /// Sockets open.
    pub sockets: u64,
    /// Timers armed.
    pub timers: u64,
}

/// State of the xDS client.
#[derive(Clone, Debug, Default, Serialize)]
pub struct XdsStatus {
    /// Whether a control plane is configured at all.
    pub configured: bool,
    /// Its address or cluster.
    pub server: String,
    /// A stream is open.
    pub connected: bool,
    /// Streams opened so far.
    pub connects: u64,
    /// Time since the server was last heard.
    #[serde(rename = "last_heard_seconds_ago", serialize_with = "seconds")]
    pub last_heard: Option<Duration>,
    /// Why the last stream ended or could not be opened.
    pub last_error: Option<String>,
    /// Per resource type.
    pub types: Vec<XdsType>,
    /// What is waited for before the next snapshot.
    pub warming: Vec<String>,
    /// Paths of fields without effect here, with how often each was seen.
    pub ignored_fields: Vec<(String, u64)>,
}

/// One resource type on the stream.
#[derive(Clone, Debug, Default, Serialize)]
pub struct XdsType {
    /// Last part of the type URL: `Listener`, `RouteConfiguration`, `Cluster`, `ClusterLoadAssignment`.
    pub name: String,
    /// The version last accepted.
    pub version: String,
    /// Resources held.
    pub resources: u64,
    /// Responses acknowledged.
    pub accepted: u64,
    /// Responses refused.
    pub rejected: u64,
    /// What was said in the last refusal, until a response is accepted.
    pub last_rejection: Option<String>,
}

/// Fill of one local rate limit's bucket.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LimitLevel {
    /// Identity of the bucket.
    pub rule: String,
    /// Tokens left.
    pub tokens: u64,
    /// Most tokens.
    pub max_tokens: u64,
}

fn seconds<S: Serializer>(span: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match span {
        None => serializer.serialize_none(),
        Some(span) => serializer.serialize_f64(span.as_secs_f64()),
    }
}
