//! The admin port over real sockets.

mod exposition;
mod paths;
mod stream;
mod world;
