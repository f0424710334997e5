//! Outrigger: upstream.
