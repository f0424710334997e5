//! **Purpose.** The bounds of one cluster: what is in flight, waiting, open and retried, over all workers.
//!
//! **Shape.** [`CircuitState`] holds the counters; a place taken is a [`Slot`], given back when it is dropped. The limits
//! come with each call, so that an update of the cluster binds at once and resets nothing.
//!
//! **Source.** Envoy, circuit breakers, default priority; the retry budget counts active and waiting requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::config::CircuitLimits;

/// Counters of one cluster, shared by workers.
#[derive(Debug, Default)]
pub struct CircuitState {
    requests: AtomicU32,
    pending: AtomicU32,
    connections: AtomicU32,
    retries: AtomicU32,
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    Connections,
    Pending,
    Requests,
    Retries,
}

/// A place taken; given back on drop.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub struct Slot {
    state: Arc<CircuitState>,
    bound: Bound,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.state.counter(self.bound).fetch_sub(1, Ordering::Relaxed);
    }
}

impl CircuitState {
    /// A place among the requests in flight; `None`: `max_requests` are.
    pub fn try_request(self: &Arc<Self>, limits: &CircuitLimits) -> Option<Slot> {
        self.try_enter(Bound::Requests, limits.max_requests)
    }

    /// A place among the requests that wait for a connection; `None`: `max_pending_requests` do.
    pub fn try_pending(self: &Arc<Self>, limits: &CircuitLimits) -> Option<Slot> {
        self.try_enter(Bound::Pending, limits.max_pending_requests)
    }

    /// A place among the connections; `None`: `max_connections` are open.
    pub fn try_connection(self: &Arc<Self>, limits: &CircuitLimits) -> Option<Slot> {
        self.try_enter(Bound::Connections, limits.max_connections)
    }

    /// A place among the retries in flight; `None`: as many as allowed are.
    pub fn try_retry(self: &Arc<Self>, limits: &CircuitLimits) -> Option<Slot> {
        self.try_enter(Bound::Retries, self.retries_allowed(limits))
    }

    /// A retry would find a place now.
    pub fn may_retry(&self, limits: &CircuitLimits) -> bool {
        self.retries() < self.retries_allowed(limits)
    }

    /// Retries allowed at once: a share of what is active when there is a budget, else `max_retries`.
    pub fn retries_allowed(&self, limits: &CircuitLimits) -> u32 {
        let Some(budget) = limits.retry_budget else { return limits.max_retries };
        let active = u64::from(self.requests()) + u64::from(self.pending());
        let share = active.saturating_mul(u64::from(budget.budget_bp)) / 10_000;
        u32::try_from(share).unwrap_or(u32::MAX).max(budget.min_concurrency)
    }

    /// Requests in flight.
    pub fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Requests waiting for a connection.
    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Connections open or being opened.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Retries in flight.
    pub fn retries(&self) -> u32 {
        self.retries.load(Ordering::Relaxed)
    }

    fn counter(&self, bound: Bound) -> &AtomicU32 {
        match bound {
            Bound::Connections => &self.connections,
            Bound::Pending => &self.pending,
            Bound::Requests => &self.requests,
            Bound::Retries => &self.retries,
        }
    }

    fn try_enter(self: &Arc<Self>, bound: Bound, limit: u32) -> Option<Slot> {
        // Compare-and-swap and not add-then-undo: the undo window would refuse others without need.
        let enter = |count: u32| (count < limit).then_some(count.saturating_add(1));
        self.counter(bound).fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).ok()?;
        Some(Slot { state: self.clone(), bound })
    }
}
