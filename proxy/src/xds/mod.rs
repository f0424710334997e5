//! Outrigger: xds.
