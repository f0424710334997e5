//! **Purpose.** Configuration over time: what the bootstrap file holds, then what a control plane sends.
//!
//! **Shape.** [`run`] publishes snapshots to the caller; [`XdsStatus`] tells how it stands.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bootstrap::Bootstrap;
use crate::config::Snapshot;

/// How the configuration stands.
#[derive(Debug, Default)]
pub struct XdsStatus {
    ready: AtomicBool,
}

impl XdsStatus {
    /// True once the first snapshot was published.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// What the first snapshot waits for.
    pub fn waiting(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Publishes the bootstrap's own resources, once.
pub async fn run(bootstrap: Arc<Bootstrap>, status: Arc<XdsStatus>, mut publish: impl FnMut(Arc<Snapshot>)) {
    publish(Arc::new(Snapshot::link(1, &bootstrap.resources).0));
    status.ready.store(true, Ordering::Relaxed);
    pending().await
}
