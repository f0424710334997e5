//! The cells: what is counted of a route, a cluster, an endpoint and a listener.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use super::{Counter, FaultCounters, Gauge, Histogram};

/// Why a retry that the policy asked for was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SuppressReason {
    /// The body was larger than what is kept for replay.
    BodyTooLarge,
    /// `max_retries` or the retry budget of the cluster.
    Budget,
    /// The route's timeout is over or would be.
    Deadline,
    /// The request may have reached the application and its method may not be repeated.
    NotIdempotent,
    /// Part of the response was already passed on.
    ResponseStarted,
}

impl SuppressReason {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 5] =
        [Self::BodyTooLarge, Self::Budget, Self::Deadline, Self::NotIdempotent, Self::ResponseStarted];

    /// Its name in the metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::BodyTooLarge => "body-too-large",
            Self::Budget => "budget",
            Self::Deadline => "deadline",
            Self::NotIdempotent => "not-idempotent",
            Self::ResponseStarted => "response-started",
        }
    }
}

/// What the first bytes of a connection were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Detected {
    /// TLS that cannot be read.
    BadHello,
    /// HTTP/1.
    Http1,
    /// HTTP/2 without TLS.
    Http2,
    /// None of these.
    Opaque,
    /// Nothing that tells came in time.
    Silent,
    /// Not waited for: at this destination the server speaks first.
    Skipped,
    /// TLS.
    Tls,
}

impl Detected {
    /// Every one, in the order of the counters.
    pub const ALL: [Self; 7] =
        [Self::BadHello, Self::Http1, Self::Http2, Self::Opaque, Self::Silent, Self::Skipped, Self::Tls];

    /// Its name in the metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::BadHello => "bad-hello",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Opaque => "opaque",
            Self::Silent => "silent",
            Self::Skipped => "skipped",
            Self::Tls => "tls",
        }
    }
}

/// One worker's counts of one route.
#[derive(Debug, Default)]
pub struct RouteCell {
    /// Requests that matched.
    pub requests: Counter,
    /// Answers by class: index 0 is "no answer", 1..=5 are 1xx..5xx.
    pub by_class: [Counter; 6],
    /// Requests in flight.
    pub active: Gauge,
    /// Tries after the first.
    pub retries: Counter,
    /// Retries whose answer was passed on without a fault.
    pub retry_success: Counter,
    /// Retries wanted and not made, by [`SuppressReason`].
    pub retry_suppressed: [Counter; 5],
    /// Refused by a rate limit.
    pub limited: Counter,
    /// Over a rate limit that is not enforced.
    pub would_limit: Counter,
    /// Faults answered.
    pub faults: FaultCounters,
    /// From the first byte of the request head to the last byte of the answer, in microseconds.
    pub latency: Histogram,
    /// Body bytes received and sent downstream.
    pub bytes_in: Counter,
    /// As above.
    pub bytes_out: Counter,
}

/// One worker's counts of one cluster.
#[derive(Debug, Default)]
pub struct ClusterCell {
    /// Tries sent or begun.
    pub requests: Counter,
    /// Answers of the upstream by class, as in [`RouteCell::by_class`].
    pub by_class: [Counter; 6],
    /// Tries after the first.
    pub retries: Counter,
    /// Retries wanted and not made, by [`SuppressReason`].
    pub retry_suppressed: [Counter; 5],
    /// Connections opened.
    pub connects: Counter,
    /// Connects that failed.
    pub connect_failures: Counter,
    /// Connections open.
    pub connections: Gauge,
    /// Requests served on a connection that was used before.
    pub reuses: Counter,
    /// Faults of tries, whether or not they were retried.
    pub faults: FaultCounters,
    /// Picks made among all endpoints because too few were usable.
    pub panic_picks: Counter,
    /// From the start of a try to its response head, in microseconds.
    pub latency: Histogram,
}

/// All workers' counts of one endpoint, and the live state that balancing reads.
#[derive(Debug, Default)]
pub struct EndpointCell {
    /// Tries in flight.
    pub active: AtomicU32,
    /// Tries begun.
    pub requests: AtomicU64,
    /// Tries answered below 500.
    pub successes: AtomicU64,
    /// Tries answered 5xx or failed.
    pub failures: AtomicU64,
    /// Connects that failed.
    pub connect_failures: AtomicU64,
    /// Connections open.
    pub connections: AtomicU32,
    /// Out of use by outlier detection now.
    pub ejected: AtomicBool,
    /// Ejections ever.
    pub ejections: AtomicU64,
    /// Milliseconds since the process began at which the present ejection began; 0 when not ejected.
    pub ejected_at_ms: AtomicU64,
    /// Milliseconds since the process began at which the present ejection ends; 0 when not ejected.
    pub ejected_until_ms: AtomicU64,
}

/// What became of calls and connections that RBAC was asked about, one count a filter.
#[derive(Debug, Default)]
pub struct AccessCounters {
    /// Let through.
    pub allowed: Counter,
    /// Refused.
    pub denied: Counter,
    /// A shadow would have let it through.
    pub shadow_allowed: Counter,
    /// A shadow would have refused it.
    pub shadow_denied: Counter,
}

/// One worker's counts of one listener.
#[derive(Debug, Default)]
pub struct ListenerCell {
    /// What became of calls that RBAC was asked about.
    pub access: AccessCounters,
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections open.
    pub connections: Gauge,
    /// Requests whose head was read.
    pub requests: Counter,
    /// Faults answered before a route was known, and closes without an answer.
    pub faults: FaultCounters,
    /// Bytes of opaque connections, received and sent downstream.
    pub bytes_in: Counter,
    /// As above.
    pub bytes_out: Counter,
    /// Accepts that failed (file descriptors ran out).
    pub accept_failures: Counter,
    /// Connections whose first bytes were looked at, by [`Detected`].
    pub detected: [Counter; Detected::ALL.len()],
    /// PROXY headers taken off.
    pub proxy_headers: Counter,
    /// Connections handed to the listener that has their original destination for its address.
    pub handed: Counter,
    /// Heartbeats of the capture answered.
    pub heartbeats: Counter,
    /// Times a destination was found to have a server that speaks first.
    pub server_first: Counter,
}
