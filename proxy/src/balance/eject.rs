//! **Purpose.** Outlier detection: an endpoint that fails again and again is left out for a time.
//!
//! **Shape.** One [`Ejector`] per cluster, shared by workers, keyed by address, so that an update of the endpoints keeps what
//! is known. A worker holds the [`Record`] of each endpoint; a success costs it one relaxed load. Failures are counted by
//! atomics; the lock is taken only to eject, to sweep and to change the members.
//! ```text
//! in use ──failures in a row reach the threshold, enforced, cap not reached──▶ ejected for base × n (+ jitter, ≤ max)
//!    ▲────────────────────────── sweep after that time ─────────────────────────┘   each quiet sweep: n − 1
//! ```
//!
//! **Units.** Nanoseconds of a monotonic clock.
//!
//! **Source.** Envoy, outlier detection: consecutive 5xx, gateway failures and local-origin failures with their enforcing
//! shares. Faults that this proxy caused (limits, a downstream gone) say nothing about an endpoint and are not [`Seen`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::chance::Chance;
use crate::config::OutlierDetection;
use crate::fault::Kind;
use crate::grpc::GrpcCode;

/// How a try at an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It answered with this status.
    Answered(u16),
    /// It could not be reached, reset the connection, or answered something that is not HTTP.
    Failed,
    /// It did not answer in time.
    TimedOut,
}

impl Seen {
    /// What the end of a gRPC call says: the HTTP status of the same meaning. As in Envoy, but for codes in trailers, which
    /// Envoy does not look at: that is where a call that was begun ends.
    pub fn of_grpc(code: GrpcCode) -> Self {
        Self::Answered(code.http_status())
    }

    /// What a fault says about the endpoint; `None`: nothing.
    pub fn of_fault(kind: Kind) -> Option<Self> {
        match kind {
            Kind::ConnectRefused
            | Kind::ConnectUnreachable
            | Kind::SendReset
            | Kind::ResponseReset
            | Kind::ResponseClosed
            | Kind::ResponseMalformed
            | Kind::ResponseTooLarge
            | Kind::ResponseTruncated
            | Kind::RelayReset => Some(Self::Failed),
            Kind::ConnectTimeout | Kind::PerTryTimeout | Kind::RouteTimeout | Kind::StreamIdle => Some(Self::TimedOut),
            _ => None,
        }
    }
}

/// The settings and the moment that a result is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Ruling<'a> {
    /// The cluster's knobs.
    pub config: &'a OutlierDetection,
    /// Now.
    pub now_ns: u64,
    /// For the enforcing shares and the jitter.
    pub chance: &'a Chance,
}

/// An ejection that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejected {
    /// Which endpoint.
    pub address: SocketAddr,
    /// When its time is over; a sweep then brings it back.
    pub until_ns: u64,
    /// Ejections in a row, this one included.
    pub times: u32,
    /// What was counted.
    pub cause: Cause,
}

/// Which count reached its threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// 5xx in a row.
    Consecutive5xx,
    /// 502, 503, 504 in a row.
    ConsecutiveGatewayFailure,
    /// Failures to reach it in a row.
    ConsecutiveLocalOriginFailure,
}

impl Cause {
    /// Its name in logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive-5xx",
            Self::ConsecutiveGatewayFailure => "consecutive-gateway-failure",
            Self::ConsecutiveLocalOriginFailure => "consecutive-local-origin-failure",
        }
    }
}

/// What is known of one endpoint. Held by workers; the same for as long as the address stays in the cluster.
#[derive(Debug)]
pub struct Record {
    address: SocketAddr,
    answered_5xx: AtomicU32,
    gateway_failures: AtomicU32,
    local_failures: AtomicU32,
    ejected: AtomicBool,
    until_ns: AtomicU64,
    /// Ejections in a row; falls by one with each quiet sweep.
    times: AtomicU32,
}

impl Record {
    /// Out of use now.
    #[inline]
    pub fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// When the present ejection is over; `None`: it is in use.
    pub fn ejected_until_ns(&self) -> Option<u64> {
        self.is_ejected().then(|| self.until_ns.load(Ordering::Relaxed))
    }

    /// Ejections in a row.
    pub fn times_ejected(&self) -> u32 {
        self.times.load(Ordering::Relaxed)
    }

    fn clear_counts(&self) {
        for count in [&self.answered_5xx, &self.gateway_failures, &self.local_failures] {
            clear(count);
        }
    }
}

/// A store only when it changes something: a healthy endpoint's line stays shared among the workers' caches.
fn clear(count: &AtomicU32) {
    if count.load(Ordering::Relaxed) != 0 {
        count.store(0, Ordering::Relaxed);
    }
}

/// Counts one more; true when that reaches `threshold` (0 is off). Above it counts too: an update may have lowered it.
fn reaches(count: &AtomicU32, threshold: u32) -> bool {
    threshold > 0 && count.fetch_add(1, Ordering::Relaxed) >= threshold - 1
}

/// Judges the endpoints of one cluster.
#[derive(Debug, Default)]
pub struct Ejector {
    records: Mutex<BTreeMap<SocketAddr, Arc<Record>>>,
    generation: AtomicU64,
}

impl Ejector {
    /// Makes exactly these addresses the members. Those that stay keep what is known of them.
    pub fn set_members(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        let mut records = self.lock();
        let mut before = std::mem::take(&mut *records);
        for address in addresses {
            let record = before.remove(&address).unwrap_or_else(|| {
                Arc::new(Record {
                    address,
                    answered_5xx: AtomicU32::new(0),
                    gateway_failures: AtomicU32::new(0),
                    local_failures: AtomicU32::new(0),
                    ejected: AtomicBool::new(false),
                    until_ns: AtomicU64::new(0),
                    times: AtomicU32::new(0),
                })
            });
            records.insert(address, record);
        }
        drop(records);
        self.bump();
    }

    /// The record of a member.
    pub fn record(&self, address: SocketAddr) -> Option<Arc<Record>> {
        self.lock().get(&address).cloned()
    }

    /// Changes whenever the answer of [`Record::is_ejected`] of any member may have changed.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Members that are out of use.
    pub fn ejected_count(&self) -> usize {
        self.lock().values().filter(|record| record.is_ejected()).count()
    }

    /// True while a sweep has something to do: a member is out of use, or not wholly forgiven.
    pub fn is_restless(&self) -> bool {
        self.lock().values().any(|record| record.is_ejected() || record.times_ejected() > 0)
    }

    /// Takes note of how a try ended; `Some`: the endpoint was ejected for it.
    pub fn on_result(&self, record: &Record, seen: Seen, ruling: &Ruling<'_>) -> Option<Ejected> {
        let config = ruling.config;
        let status = match seen {
            Seen::Answered(status) => {
                // Whatever the answer is, the endpoint could be reached.
                clear(&record.local_failures);
                status
            }
            Seen::Failed | Seen::TimedOut if config.split_external_local_origin => {
                let reached = reaches(&record.local_failures, config.consecutive_local_origin_failure);
                let share = config.enforcing_consecutive_local_origin_failure;
                let cause = Cause::ConsecutiveLocalOriginFailure;
                return if reached { self.judge(record, cause, share, ruling) } else { None };
            }
            Seen::Failed => 503,
            Seen::TimedOut => 504,
        };
        if status < 500 {
            clear(&record.answered_5xx);
            clear(&record.gateway_failures);
            return None;
        }
        let mut ejected = None;
        if !(502..=504).contains(&status) {
            clear(&record.gateway_failures);
        } else if reaches(&record.gateway_failures, config.consecutive_gateway_failure) {
            let share = config.enforcing_consecutive_gateway_failure;
            ejected = self.judge(record, Cause::ConsecutiveGatewayFailure, share, ruling);
        }
        if reaches(&record.answered_5xx, config.consecutive_5xx) {
            let by_5xx = self.judge(record, Cause::Consecutive5xx, config.enforcing_consecutive_5xx, ruling);
            ejected = ejected.or(by_5xx);
        }
        ejected
    }

    /// Brings back the endpoints whose time is over, and forgives the others a little. Called each
    /// [`OutlierDetection::interval`]. With `None` (detection was switched off) all come back, and none is a member any more:
    /// whoever still judges by the old settings ejects nothing.
    pub fn sweep(&self, config: Option<&OutlierDetection>, now_ns: u64) -> Vec<SocketAddr> {
        let mut records = self.lock();
        let mut back = Vec::new();
        for record in records.values() {
            if !record.is_ejected() {
                let times = record.times.load(Ordering::Relaxed);
                record.times.store(times.saturating_sub(1), Ordering::Relaxed);
            } else if config.is_none() || record.until_ns.load(Ordering::Relaxed) <= now_ns {
                record.clear_counts();
                record.ejected.store(false, Ordering::Relaxed);
                back.push(record.address);
            }
        }
        if config.is_none() {
            records.clear();
        }
        drop(records);
        if !back.is_empty() {
            self.bump();
        }
        back
    }

    /// A count reached its threshold: it starts anew, and the endpoint goes if the shares and the cap allow it.
    fn judge(&self, record: &Record, cause: Cause, enforcing: u32, ruling: &Ruling<'_>) -> Option<Ejected> {
        let count = match cause {
            Cause::Consecutive5xx => &record.answered_5xx,
            Cause::ConsecutiveGatewayFailure => &record.gateway_failures,
            Cause::ConsecutiveLocalOriginFailure => &record.local_failures,
        };
        count.store(0, Ordering::Relaxed);
        if enforcing < 100 && ruling.chance.below(100) >= u64::from(enforcing) {
            return None;
        }
        let records = self.lock();
        let is_member = records.get(&record.address).is_some_and(|member| std::ptr::eq(&**member, record));
        if !is_member || record.is_ejected() || !may_eject(&records, ruling.config) {
            return None;
        }
        let longest = longest_times(ruling.config);
        let times = record.times.load(Ordering::Relaxed).saturating_add(1).min(longest);
        record.times.store(times, Ordering::Relaxed);
        let until_ns = ruling.now_ns.saturating_add(draw_time_ns(times, ruling));
        record.until_ns.store(until_ns, Ordering::Relaxed);
        record.ejected.store(true, Ordering::Relaxed);
        drop(records);
        self.bump();
        Some(Ejected { address: record.address, until_ns, times, cause })
    }

    fn bump(&self) {
        // Release pairs with the Acquire of `generation`: who sees the new number sees the new flags.
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Arc<Record>>> {
        // Nothing panics while it is held; were it so, the records themselves would still be sound.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One more may go: within `max_ejection_percent`, or the one that may always go.
fn may_eject(records: &BTreeMap<SocketAddr, Arc<Record>>, config: &OutlierDetection) -> bool {
    let ejected = records.values().filter(|record| record.is_ejected()).count();
    let within = (ejected + 1) * 100 <= records.len() * usize::try_from(config.max_ejection_percent).unwrap_or(100);
    within || (ejected == 0 && config.always_eject_one)
}

/// Beyond so many ejections in a row the time no longer grows, so they are not counted: forgiving starts at once.
fn longest_times(config: &OutlierDetection) -> u32 {
    let base = config.base_ejection_time.as_nanos().max(1);
    u32::try_from(config.max_ejection_time.as_nanos().div_ceil(base)).unwrap_or(u32::MAX).max(1)
}

fn draw_time_ns(times: u32, ruling: &Ruling<'_>) -> u64 {
    let config = ruling.config;
    let time = config.base_ejection_time.saturating_mul(times).min(config.max_ejection_time);
    let nanos = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    nanos(time).saturating_add(ruling.chance.below(nanos(config.max_ejection_time_jitter)))
}
