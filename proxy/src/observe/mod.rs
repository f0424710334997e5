//! Outrigger: observe.
