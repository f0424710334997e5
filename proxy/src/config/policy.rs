//! Retry and rate-limit policies as configured.

use std::sync::Arc;
use std::time::Duration;

/// What may be retried: one flag per `retry_on` word that this proxy serves.
/// Source: Envoy, `x-envoy-retry-on`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryOn {
    /// `5xx`: any 5xx answer, and every case of `connect_failure` and `reset`.
    pub any_5xx: bool,
    /// `gateway-error`: 502, 503, 504.
    pub gateway_error: bool,
    /// `reset`: the upstream went away before the response head was complete, or the try timed out.
    pub reset: bool,
    /// `reset-before-request`: as `reset`, but only when no byte of the request was sent.
    pub reset_before_request: bool,
    /// `connect-failure`: no connection could be made, its timeout included.
    pub connect_failure: bool,
    /// `retriable-4xx`: 409.
    pub retriable_4xx: bool,
    /// `refused-stream`: REFUSED_STREAM of HTTP/2.
    pub refused_stream: bool,
    /// `retriable-status-codes`: the codes in [`RetryPolicy::status_codes`].
    pub status_codes: bool,
    /// `retriable-headers`: a response header named in [`RetryPolicy::response_headers`].
    pub response_headers: bool,
    /// `cancelled`: the gRPC code of that name, before any message of the answer.
    pub grpc_cancelled: bool,
    /// `deadline-exceeded`: as above.
    pub grpc_deadline_exceeded: bool,
    /// `internal`: as above.
    pub grpc_internal: bool,
    /// `resource-exhausted`: as above.
    pub grpc_resource_exhausted: bool,
    /// `unavailable`: as above.
    pub grpc_unavailable: bool,
}

/// When and how a request is tried again. Defaults are Envoy's.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Which outcomes are retried.
    pub on: RetryOn,
    /// Tries after the first; Envoy's default is 1.
    pub retries: u32,
    /// Time for one try; `None`: only the route timeout binds.
    pub per_try_timeout: Option<Duration>,
    /// Codes for [`RetryOn::status_codes`], sorted.
    pub status_codes: Vec<u16>,
    /// Names (lower case) for [`RetryOn::response_headers`].
    pub response_headers: Vec<Arc<str>>,
    /// First back-off step; jitter is full (a uniform draw from zero to the step). Default 25 ms.
    pub backoff_base: Duration,
    /// Largest back-off step. Default 250 ms.
    pub backoff_max: Duration,
    /// Picks made to find an endpoint not tried before, before settling for one that was.
    pub endpoint_attempts: u32,
    /// The route's owner states that repeating any method is harmless (`outrigger.policy.v1.RoutePolicy`).
    pub retry_non_idempotent: bool,
}

/// A token bucket. Source: Envoy `type.v3.TokenBucket`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenBucketConfig {
    /// Most tokens held; also what it starts with.
    pub max_tokens: u32,
    /// Tokens added each `fill_interval`; at least 1.
    pub tokens_per_fill: u32,
    /// At least 50 ms, as in Envoy.
    pub fill_interval: Duration,
}

/// A local rate limit on a route, a virtual host, a listener or a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRateLimit {
    /// Identity of the bucket: requests under equal identities and equal buckets share tokens, and keep them over updates.
    pub rule: Arc<str>,
    /// The bucket.
    pub bucket: TokenBucketConfig,
    /// Share of requests that are counted against the bucket, in millionths.
    pub enabled_ppm: u32,
    /// Share of requests over the limit that are refused, in millionths (the rest only count as "would be limited").
    pub enforced_ppm: u32,
    /// Code of the refusal; at least 400, default 429.
    pub status: u16,
}
