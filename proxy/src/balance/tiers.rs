//! **Purpose.** How load is shared between priorities, and when an unhealthy cluster is used whole.
//!
//! **Shape.** [`compute`] is pure: counts per priority in, load in percent per priority, class and panic out.
//!
//! **Source.** Envoy, `LoadBalancerBase::recalculatePerPriorityState`: availability of a priority is its usable share times
//! the overprovisioning factor, 100 % at most; priorities take load in order until 100 % is spent; degraded endpoints come
//! after all healthy ones. While the sum is 100 % nothing panics; else a priority below the threshold is used whole, and
//! when all of them are below it, load follows their sizes.

/// Endpoints of one priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) total: u32,
    pub(super) healthy: u32,
    pub(super) degraded: u32,
}

/// Load of one priority. Over all priorities the loads sum to 100, or to 0 when nothing may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// Percent for its healthy endpoints (for all of its endpoints in panic).
    pub(super) healthy: u32,
    /// Percent for its degraded ones.
    pub(super) degraded: u32,
    /// Too few are usable: all are used.
    pub(super) panic: bool,
}

/// Shares of the priorities in order. `overprovisioning` and `panic_threshold` are percentages.
pub(super) fn compute(counts: &[Counts], overprovisioning: u32, panic_threshold: u32, shares: &mut Vec<Share>) {
    shares.clear();
    shares.resize(counts.len(), Share::default());
    let available = |usable: u32, total: u32| match total {
        0 => 0,
        _ => (u64::from(usable) * u64::from(overprovisioning) / u64::from(total)).min(100),
    };
    let sum: u64 =
        counts.iter().map(|c| available(c.healthy, c.total) + available(c.degraded, c.total)).sum::<u64>().min(100);
    if sum < 100 {
        for (share, count) in shares.iter_mut().zip(counts) {
            let usable = u64::from(count.healthy) + u64::from(count.degraded);
            share.panic = usable * 100 < u64::from(panic_threshold) * u64::from(count.total);
        }
        let occupied = || shares.iter().zip(counts).filter(|(_, count)| count.total > 0);
        if occupied().all(|(share, _)| share.panic) && occupied().next().is_some() {
            return share_by_size(counts, shares);
        }
    }
    if sum == 0 {
        return;
    }
    let mut left = 100;
    for (share, count) in shares.iter_mut().zip(counts) {
        share.healthy = take(available(count.healthy, count.total), sum, &mut left);
    }
    for (share, count) in shares.iter_mut().zip(counts) {
        share.degraded = take(available(count.degraded, count.total), sum, &mut left);
    }
    // What rounding left over goes to the first that takes load at all.
    if let Some(first) = shares.iter_mut().find(|share| share.healthy > 0) {
        first.healthy += left;
    } else if let Some(first) = shares.iter_mut().find(|share| share.degraded > 0) {
        first.degraded += left;
    }
}

fn take(available: u64, sum: u64, left: &mut u32) -> u32 {
    let wanted = u32::try_from(available * 100 / sum).unwrap_or(100);
    let taken = wanted.min(*left);
    *left -= taken;
    taken
}

fn share_by_size(counts: &[Counts], shares: &mut [Share]) {
    let total: u64 = counts.iter().map(|count| u64::from(count.total)).sum();
    let mut left = 100;
    for (share, count) in shares.iter_mut().zip(counts) {
        share.healthy = take(u64::from(count.total), total.max(1), &mut left);
    }
    if let Some(first) = shares.iter_mut().zip(counts).find(|(_, count)| count.total > 0) {
        first.0.healthy += left;
    }
}
