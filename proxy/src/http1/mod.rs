//! Outrigger: http1.
