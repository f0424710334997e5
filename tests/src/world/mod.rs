//! Purpose: the world around a proxy, for tests and for the shop: [`Proxy`] and [`Control`] are built binaries run as
//! processes; [`Upstream`] is a scripted server behind them, [`OpaqueUpstream`] one of raw bytes; [`Downstream`] is a
//! client that speaks bytes; [`h2`] has both ends for HTTP/2; [`Envoy`] is a real one; [`Load`] is many of those at a rate; [`AdsServer`] pushes whatever a test wants pushed.
//!
//! Shape: everything binds port 0 and tells its address; everything stops when its value is dropped, and a process
//! also when the thread that started it ends. [`resource`] writes bootstraps and xDS resources as JSON.
//!
//! Limits: nothing waits without a deadline; a wait that fails says what it waited for and shows the process's log.

#![allow(clippy::panic, reason = "it serves tests, and a test fails by panicking")]

pub mod ads;
pub mod binary;
pub mod control;
pub mod downstream;
pub mod envoy;
pub mod h2;
pub mod helm;
pub mod kube;
pub mod kubelet;
pub mod load;
pub mod message;
pub mod namespace;
pub mod opaque;
pub mod port;
pub mod process;
pub mod proxy;
pub mod resource;
pub mod scratch;
pub mod tool;
pub mod upstream;
pub mod wait;

pub use ads::AdsServer;
pub use control::Control;
pub use downstream::{Downstream, Response};
pub use envoy::Envoy;
pub use h2::{H2Answer, H2Downstream, H2Upstream};
pub use helm::Helm;
pub use kube::{Account, Kube};
pub use load::{Load, Tally};
pub use opaque::OpaqueUpstream;
pub use port::HeldPort;
pub use proxy::{Io, Proxy, ProxySetup};
pub use upstream::{Answer, Gate, Recorded, Upstream};
pub use wait::wait_for;
