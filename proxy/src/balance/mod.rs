//! Outrigger: balance.
