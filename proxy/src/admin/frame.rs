//! What one second of the live page carries.
//!
//! **Units.** Rates a second over the last second; `window` values over the last ten. Latency in microseconds. A value
//! that cannot be told (no request in the window) is `null`, never 0.

use serde::Serialize;

/// Everything that moves.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Frame {
    pub at_unix_ms: u64,
    pub uptime_seconds: u64,
    pub epoch: u64,
    /// When it was published; `null` when the log does not reach back to it.
    pub epoch_unix_ms: Option<u64>,
    pub is_ready: bool,
    pub not_ready: Vec<String>,
    pub xds: XdsRow,
    pub totals: Totals,
    pub listeners: Vec<ListenerRow>,
    pub routes: Vec<RouteRow>,
    /// Routes without a row, for want of room.
    pub routes_left_out: usize,
    pub clusters: Vec<ClusterRow>,
    /// Clusters without a row.
    pub clusters_left_out: usize,
}

/// The tiles.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Totals {
    pub rate: f64,
    pub success: Option<f64>,
    pub p50_us: Option<u64>,
    pub p99_us: Option<u64>,
    pub active: u64,
    pub retry_rate: f64,
    pub limited_rate: f64,
    pub ejected: usize,
    pub endpoints: usize,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct XdsRow {
    pub configured: bool,
    pub connected: bool,
    pub server: String,
    pub last_heard_seconds: Option<u64>,
    pub last_error: Option<String>,
    /// Refusals that still stand, `type: reason`.
    pub rejections: Vec<String>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct ListenerRow {
    pub name: String,
    pub addresses: Vec<String>,
    pub connections: u64,
    pub accept_rate: f64,
    pub rate: f64,
    pub faults: Vec<FaultRow>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct RouteRow {
    pub listener: String,
    pub virtual_host: String,
    pub route: String,
    /// The match in one line; empty when the route left the configuration.
    pub matches: String,
    pub rate: f64,
    pub success: Option<f64>,
    pub p50_us: Option<u64>,
    pub p99_us: Option<u64>,
    pub active: u64,
    pub retry_rate: f64,
    pub suppressed_rate: f64,
    pub limited_rate: f64,
    pub faults: Vec<FaultRow>,
}

/// Refusals of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct FaultRow {
    pub side: &'static str,
    pub stage: &'static str,
    pub kind: &'static str,
    /// In the window.
    pub rate: f64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct ClusterRow {
    pub name: String,
    pub rate: f64,
    pub success: Option<f64>,
    pub p50_us: Option<u64>,
    pub p99_us: Option<u64>,
    pub connections: u64,
    pub endpoints: Vec<EndpointRow>,
    /// Endpoints without a row.
    pub endpoints_left_out: usize,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct EndpointRow {
    pub address: String,
    pub weight: u32,
    pub priority: u32,
    pub locality: String,
    pub health: &'static str,
    pub active: u32,
    pub connections: u32,
    pub rate: f64,
    pub failure_rate: f64,
    pub ejections: u64,
    pub ejected: Option<Ejection>,
}

/// An ejection that lasts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Ejection {
    /// Milliseconds since it began; `null` when that is not told.
    pub age_ms: Option<u64>,
    /// Milliseconds left; `null` when the end is not told.
    pub remaining_ms: Option<u64>,
}

/// Request rates of the last minute, oldest first.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct History {
    pub total: Vec<f64>,
    /// As [`Frame::routes`].
    pub routes: Vec<Vec<f64>>,
}
