//! Configuration and its history, the I/O driver and the control plane, as they are.

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::render::{Format, reply};
use super::{Admin, AdminSources};
use crate::observe::describe;

pub(super) async fn config(State(admin): State<Admin>, format: Format) -> Response {
    let mut told = describe::snapshot(&admin.publisher.current());
    told["version"] = json!(env!("CARGO_PKG_VERSION"));
    told["node"] = json!(admin.node);
    told["xds"] = xds_status(&admin);
    reply(format, &told)
}

pub(super) async fn epochs(State(admin): State<Admin>, format: Format) -> Response {
    let current = admin.publisher.current().epoch;
    reply(format, &json!({ "current": current, "recent": as_json(&admin.epochs.recent()) }))
}

pub(super) async fn io(State(admin): State<Admin>, format: Format) -> Response {
    let mut told = as_json(&admin.io);
    told["workers"] = as_json(&(admin.workers)());
    reply(format, &told)
}

pub(super) async fn limits(State(admin): State<Admin>, format: Format) -> Response {
    reply(format, &json!({ "limits": as_json(&(admin.limits)()) }))
}

pub(super) async fn xds(State(admin): State<Admin>, format: Format) -> Response {
    reply(format, &xds_status(&admin))
}

fn xds_status(sources: &AdminSources) -> Value {
    as_json(&(sources.xds)())
}

/// Plain values have no way to fail.
fn as_json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}
