//! Outrigger: admin.
