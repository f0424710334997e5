//! Purpose: Kubernetes as a source of Services and as a store of policy.
//! Shape: [`Cluster`] is a view that watches keep; [`ClusterStore`] is its policy as a [`crate::store::Store`]; `crd` has
//! the definitions of our kinds, `rules` what all this may do. The decisions are pure (`service`, `registry`, `pods`, `policy`,
//! `status`); `watch`, `store`, `report` and `lease` speak with the API server.
//! Errors: [`ClusterError`] at the start; later a failure is logged, counted and told in `/v1/status`, and the last view
//! stays in force.
//! Limits: one cluster.
//! Tests: foot of the pure files; `tests/tests/kube.rs` with a real API server.

pub(crate) mod client;
mod cluster;
pub mod crd;
mod lease;
mod pods;
mod policy;
mod registry;
mod report;
pub mod rules;
mod service;
mod status;
mod store;
mod watch;

pub use client::{ClientError, connect, find_namespace};
pub use cluster::{Cluster, ClusterError, Reads};
pub use service::Skip;
pub use store::ClusterStore;
pub use watch::PulseView;
