//! Envoy's v3 messages for Outrigger: the generated types, their descriptors, YAML and JSON, `Any`, the support table
//! and `outrigger.policy.v1`.
//!
//! The generated types come from the `envoy-types` crate. The `.proto` files that ship inside it are compiled by
//! `build.rs` (about 2 s on one core, without protoc or network) into tables that are embedded and read in place.
//! Everything that works by name rests on them, by way of [`reflect`]: [`json`], [`any`], [`bounds`] and [`support`].
//!
//! ```
//! use outrigger_xds_proto::envoy::envoy::config::bootstrap::v3::Bootstrap;
//! use outrigger_xds_proto::json;
//!
//! let bootstrap: Bootstrap = json::from_yaml("node: { id: orders-0, cluster: orders }")?;
//! assert_eq!(bootstrap.node.map(|node| node.id).as_deref(), Some("orders-0"));
//!
//! let error = json::from_yaml::<Bootstrap>("node: { ids: orders-0 }").unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "node.ids: unknown field of envoy.config.core.v3.Node; did you mean id?"
//! );
//! # Ok::<(), json::ParseError>(())
//! ```

#![forbid(unsafe_code)]

pub mod any;
pub mod bounds;
pub mod descriptor;
pub mod document;
pub mod json;
pub mod reflect;
pub mod support;

/// Policy that Envoy's own messages cannot express; see `proto/outrigger`.
pub mod policy {
    /// The first version.
    #[allow(missing_docs, reason = "generated; the comments are those of the .proto file")]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/outrigger.policy.v1.rs"));
    }
}

/// The generated types: `envoy::envoy::config::cluster::v3::Cluster`, `envoy::google::protobuf::Any`.
pub use envoy_types::pb as envoy;
pub use prost;
