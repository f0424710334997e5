//! Outrigger: route.
