//! Outrigger: bootstrap.
