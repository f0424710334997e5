//! **Purpose.** What is told about the running proxy, apart from how it is asked for.
//!
//! **Shape.** [`Metric`] and [`Label`] name everything once. [`Observation`] borrows the state of one moment;
//! [`collect`] turns it into [`Sample`]s, and [`write_prometheus`], [`write_text`] and [`to_json`] render those.
//! [`describe`] turns configuration into readable JSON. [`EpochLog`] remembers what each published snapshot changed.
//! [`CaptureView`], [`IoView`], [`WorkerIo`], [`XdsStatus`] and [`LimitLevel`] are plain values that the application fills in, so that
//! nothing here depends on the rooms they come from.
//!
//! **Units.** Seconds and bytes in metrics; microseconds in the histograms they come from.
//!
//! **Source.** Prometheus text exposition format 0.0.4.

mod collect;
pub mod describe;
mod epochs;
mod names;
mod process;
mod prometheus;
mod status;

pub use collect::{BUCKETS_US, Observation, Sample, Samples, Spread, Value, collect};
pub use epochs::{EpochChange, EpochLog};
pub use names::{Label, Metric, MetricType, Unit};
pub use process::Process;
pub use prometheus::{CONTENT_TYPE, to_json, write_prometheus, write_text};
pub use status::{CaptureView, IoCheck, IoView, LimitLevel, WorkerIo, XdsStatus, XdsType};
