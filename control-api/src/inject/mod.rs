//! Purpose: what makes a pod part of the mesh, as a pure function.
//! Shape: [`decide`] looks at a pod and gives steps of a JSON Patch. The webhook sends them; [`manifest`] applies them to
//! the pod templates of a file. Both get the same pod from the same input.
//!
//! ```text
//! review ───▶ Pod ─▶ decide ─▶ steps ─▶ answer
//! manifest ─▶ Pod ─▶ decide ─▶ steps ─▶ manifest
//!                      ▲
//!        annotations, config
//! ```
//! Errors: [`Problem`](crate::model::Problem)s with their paths in the pod; all of them at once.
//! Limits: nothing of a pod but what is looked at costs memory.
//! Tests: foot of each file; `tests/inject` runs recorded reviews through the webhook and through manifests.

pub mod annotations;
mod bootstrap;
pub mod config;
mod decide;
pub mod form;
pub mod list;
pub mod manifest;
pub mod patch;
mod pod;
mod sidecar;

pub use config::InjectorConfig;
pub use decide::{Decision, Outcome, Reason, decide};
pub use pod::Pod;
pub use sidecar::HEALTH_PORT_NAME;

/// The init container that captures.
pub const INTERCEPT_CONTAINER: &str = "outrigger-intercept";
/// The native sidecar.
pub const PROXY_CONTAINER: &str = "outrigger-proxy";
const BOOTSTRAP_VOLUME: &str = "outrigger-bootstrap";
/// The proxy's uid and gid.
const PROXY_ID: i64 = 1337;
const ADMIN_PORT: u16 = 15_000;
const OUTBOUND_PORT: u16 = 15_001;
const INBOUND_PORT: u16 = 15_006;
const HEARTBEAT_PORT: u16 = 15_009;
const HEALTH_PORT: u16 = 15_020;
/// What an application in the pod cannot listen on.
const PORTS: [u16; 5] = [ADMIN_PORT, OUTBOUND_PORT, INBOUND_PORT, HEARTBEAT_PORT, HEALTH_PORT];
