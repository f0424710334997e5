//! The admin port over real sockets.

mod exposition;
mod paths;
mod sampling;
mod stream;
mod world;
