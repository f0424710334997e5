//! **Purpose.** What gRPC means over HTTP, as far as a proxy has to know it.
//!
//! **Shape.** Pure functions and small coders over byte slices. [`content`]: which messages are gRPC or gRPC-Web.
//! [`GrpcCode`]: how a call ended, and what stands for what between codes, HTTP statuses and faults. [`answer`]: local
//! answers in the form that a caller reads. [`timeout`]: the time that a caller grants. [`web`]: the bodies of gRPC-Web.
//! [`MessageCounter`] and [`MethodName`]: what statistics tell of a call.
//!
//! **Source.** gRPC over HTTP/2 (`doc/PROTOCOL-HTTP2.md`) and gRPC-Web (`doc/PROTOCOL-WEB.md`). Where they leave a choice:
//! Envoy's.

pub mod answer;
mod code;
pub mod content;
mod message;
mod method;
pub mod timeout;
pub mod web;

pub use code::GrpcCode;
pub use content::{WebForm, is_grpc};
pub use message::MessageCounter;
pub use method::MethodName;
pub use timeout::TimeoutValue;
