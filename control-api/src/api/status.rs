//! Purpose: how the control plane itself stands.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::Api;

pub(super) async fn status(State(api): State<Arc<Api>>) -> Json<Value> {
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "revision": api.store.current().revision,
        "proxies": api.roster.len(),
        "kubernetes": api.cluster.as_ref().map(|cluster| cluster.view()),
    }))
}
