//! Outrigger's data plane, as a library for its binary, its tests and its fuzz targets.
//!
//! The rooms and the arrows between them are in `docs/ARCHITECTURE.md`.

pub mod admin;
pub mod app;
pub mod balance;
pub mod bootstrap;
pub mod chance;
pub mod config;
pub mod convert;
pub mod detect;
pub mod drain;
pub mod fault;
pub mod grpc;
pub mod http;
pub mod http1;
pub mod http2;
pub mod intercept;
pub mod listener;
pub mod observe;
pub mod policy;
pub mod route;
pub mod rules;
pub mod stats;
pub mod tcp;
pub mod upstream;
pub mod worker;
pub mod xds;
