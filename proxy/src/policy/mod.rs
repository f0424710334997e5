//! Outrigger: policy.
