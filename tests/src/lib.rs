//! Outrigger seen from outside: real binaries, real sockets, and the other ends of every wire.

#![forbid(unsafe_code)]

pub mod world;
