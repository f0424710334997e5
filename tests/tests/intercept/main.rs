//! Purpose: `outrigger-proxy intercept` in real network namespaces, with the real `nft`, `iptables` and `ip6tables` in each
//! of their makes. Run by `make interop`, as root, for it makes namespaces.
//!
//! Shape: a pod and a node ([`pod`]); whoever is connected to answers with its name and where the client wanted to go.
//!
//! Errors: without root or a program it fails and says so; it is not skipped.

#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod apply;
mod capture;
mod pod;
mod verify;
