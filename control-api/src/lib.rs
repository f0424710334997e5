//! Outrigger's control plane: policy in, xDS out.
//!
//! ```text
//! outriggerctl ─▶ api ─▶ model ─▶ store ─▶ compile ─▶ ads ─▶ proxies
//!                  kubernetes ─────┘ (policy and Services of a cluster)
//! ```
//! Arrows go one way: `model` knows nobody, `store` and `compile` know `model`, `ads` knows
//! `compile`, `kubernetes` knows `store` and the proxies' roster, `api` knows all of them, `app` puts them together.

pub mod ads;
pub mod api;
pub mod app;
pub mod compile;
pub mod inject;
pub mod kubernetes;
pub mod model;
pub mod settings;
pub mod store;
pub mod webhook;
