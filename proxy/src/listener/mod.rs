//! Outrigger: listener.
