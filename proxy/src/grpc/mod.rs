//! **Purpose.** What gRPC means over HTTP, as far as a proxy has to know it.
//!
//! **Shape.** Pure functions and small coders over byte slices. [`content`]: which messages are gRPC.
//!
//! **Source.** gRPC over HTTP/2 (`doc/PROTOCOL-HTTP2.md`). Where it leaves a choice: Envoy's.

pub mod content;

pub use content::is_grpc;
