//! Outrigger: convert.
