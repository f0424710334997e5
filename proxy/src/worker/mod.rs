//! **Purpose.** What one worker thread holds, and what all of them share.
//!
//! **Shape.**
//! ```text
//!  Shared (one)                     Worker (one a thread, !Send)
//!   ├ counters, token buckets        ├ Reader of the current snapshot
//!   └ per cluster: limits,           ├ View: the snapshot ready to run, rebuilt when it changes
//!     ejections, open connections    │   ├ Routes per listener: table, index, counters
//!                                    │   └ Cluster per index: balancer, endpoints with their pools
//!                                    └ endpoints by cluster and address, kept over snapshots
//! ```
//! A request takes the [`View`] once and keeps it to its end. Live state is keyed by names and addresses, so a new
//! snapshot resets none of it.
//!
//! **Limits.** Nothing is built for a cluster or a route before its first request.

mod bell;
mod cluster;
mod originals;
mod own;
mod server_first;
mod shared;
mod spare;
mod view;

pub use bell::Bell;
pub use cluster::{Cluster, InFlight, OpenFault};
pub use own::Own;
pub use server_first::{Destination, FirstWord, ServerFirst};
pub use shared::{ClusterState, Shared};
pub use spare::Spare;
pub use view::{Limit, ListenerView, LiveRoute, Routes, View};

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outrigger_reactor::now;

use crate::chance::Chance;
use crate::config::{ClusterName, ListenerName, LocalRateLimit, Reader};
use crate::drain::{Drain, Load};
use crate::policy::{self, TokenBucket, Verdict};
use crate::stats::{ClusterCell, ListenerCell, MethodTable, RouteCell, RouteKey};
use crate::upstream::{Endpoint, Slots};

/// Log lines about failing accepts are this far apart.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// Endpoints of one worker by cluster and address.
type Endpoints = HashMap<(ClusterName, SocketAddr), Rc<Endpoint>>;

/// Counters of a cluster, with the live state they were made beside: where that is new, the registry has forgotten the
/// old counters too.
#[derive(Clone)]
struct Counted {
    state: Arc<ClusterState>,
    cell: Arc<ClusterCell>,
    methods: Rc<MethodTable>,
}

/// One worker thread's state.
pub struct Worker {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// This worker's random source.
    pub chance: Chance,
    /// Tells its connections to finish.
    pub drain: Drain,
    /// Memory for bodies that may have to be sent again.
    pub spare: Spare,
    reader: RefCell<Reader>,
    view: RefCell<Rc<View>>,
    endpoints: RefCell<Endpoints>,
    route_cells: RefCell<HashMap<RouteKey, Arc<RouteCell>>>,
    cluster_cells: RefCell<HashMap<Arc<str>, Counted>>,
    listener_cells: RefCell<HashMap<ListenerName, Arc<ListenerCell>>>,
    slots: RefCell<HashMap<ClusterName, Slots>>,
    /// The epoch of which nothing is held that it does not have; `None` where that is not known.
    pruned: Cell<Option<u64>>,
    date: Cell<(u64, [u8; 29])>,
    logged: Cell<Option<Instant>>,
}

impl Worker {
    /// A worker that has seen no snapshot. Its connections count in `load`.
    pub fn new(shared: Arc<Shared>, mut reader: Reader, seed: u64, load: Arc<Load>) -> Rc<Self> {
        let snapshot = reader.current().clone();
        Rc::new(Self {
            view: RefCell::new(Rc::new(View::new(snapshot))),
            shared,
            chance: Chance::from_seed(seed),
            drain: Drain::showing(load),
            spare: Spare::default(),
            reader: RefCell::new(reader),
            endpoints: RefCell::default(),
            route_cells: RefCell::default(),
            cluster_cells: RefCell::default(),
            listener_cells: RefCell::default(),
            slots: RefCell::default(),
            pruned: Cell::new(None),
            date: Cell::new((0, [b' '; 29])),
            logged: Cell::new(None),
        })
    }

    /// The current snapshot, ready to run.
    pub fn view(&self) -> Rc<View> {
        let mut reader = self.reader.borrow_mut();
        let snapshot = reader.current();
        let mut view = self.view.borrow_mut();
        if !Arc::ptr_eq(snapshot, &view.snapshot) {
            *view = Rc::new(view.follow(snapshot.clone()));
        }
        view.clone()
    }

    /// Asks `bucket` for a token under `limit`.
    pub fn admit(&self, limit: &LocalRateLimit, bucket: &TokenBucket) -> Verdict {
        policy::admit(limit, bucket, self.shared.since_start_ns(now()), &self.chance)
    }

    /// The value of a `date` header, made anew each second.
    pub fn date(&self) -> [u8; 29] {
        let since = self.shared.started_at + now().saturating_duration_since(self.shared.started);
        let second = since.as_secs();
        let (made, text) = self.date.get();
        if made == second {
            return text;
        }
        let text = http_date(second);
        self.date.set((second, text));
        text
    }

    /// This worker's counters of a listener.
    pub fn listener_cell(&self, name: &ListenerName) -> Arc<ListenerCell> {
        let mut cells = self.listener_cells.borrow_mut();
        cells.entry(name.clone()).or_insert_with(|| self.shared.registry.listener(name.as_str().into())).clone()
    }

    /// This worker's counters of a route.
    pub fn route_cell(&self, key: RouteKey) -> Arc<RouteCell> {
        let mut cells = self.route_cells.borrow_mut();
        cells.entry(key).or_insert_with_key(|key| self.shared.registry.route(key.clone())).clone()
    }

    /// This worker's counters of a cluster; new ones for a cluster that left the configuration and came back.
    fn counted(&self, name: &Arc<str>, state: &Arc<ClusterState>) -> Counted {
        let mut cells = self.cluster_cells.borrow_mut();
        if let Some(counted) = cells.get(name).filter(|known| Arc::ptr_eq(&known.state, state)) {
            return counted.clone();
        }
        let counted = Counted {
            state: state.clone(),
            cell: self.shared.registry.cluster(name.clone()),
            methods: Rc::new(MethodTable::new(name.clone())),
        };
        cells.insert(name.clone(), counted.clone());
        counted
    }

    /// This worker's side of an endpoint, the same one for as long as the configuration has it.
    pub fn endpoint(&self, cluster: &ClusterName, address: SocketAddr) -> Rc<Endpoint> {
        let cell = self.shared.registry.endpoint(&cluster.as_str().into(), address);
        let mut endpoints = self.endpoints.borrow_mut();
        let known = endpoints.get(&(cluster.clone(), address));
        // One that left and came back between two sweeps has counters that the registry has forgotten.
        if let Some(known) = known.filter(|known| Arc::ptr_eq(&known.cell, &cell)) {
            known.reinstate();
            return known.clone();
        }
        let endpoint = Rc::new(Endpoint::new(address, cell));
        let stale = endpoints.insert((cluster.clone(), address), endpoint.clone());
        drop(endpoints);
        if let Some(stale) = stale {
            stale.retire();
        }
        endpoint
    }

    /// This worker's hold on the connections of a cluster.
    fn slots(&self, cluster: &ClusterName, state: &ClusterState) -> Slots {
        let mut slots = self.slots.borrow_mut();
        slots.entry(cluster.clone()).or_insert_with(|| Slots::new(state.open.clone())).clone()
    }

    /// Closes idle connections that are over age, whose peer closed, or whose endpoint left the configuration.
    /// To be called about once a second.
    pub fn sweep(&self) {
        let view = self.view();
        let now = now();
        view.sweep_originals(now);
        if self.pruned.get() != Some(view.epoch()) {
            self.prune(&view);
            self.pruned.set(Some(view.epoch()));
        }
        for ((cluster, _), endpoint) in self.endpoints.borrow().iter().filter(|(_, one)| one.holds_connections()) {
            if let Some(reuse) = view.reuse_of(cluster) {
                endpoint.sweep(now, reuse);
            }
        }
    }

    /// Lets go of what a view does not have.
    fn prune(&self, view: &View) {
        self.slots.borrow_mut().retain(|cluster, _| view.has_cluster(cluster.as_str()));
        self.cluster_cells.borrow_mut().retain(|cluster, _| view.has_cluster(cluster));
        let mut members = view.snapshot.members();
        self.endpoints.borrow_mut().retain(|(cluster, address), endpoint| {
            let is_there = members.has(cluster.as_str(), *address);
            if !is_there {
                endpoint.retire();
            }
            is_there
        });
    }

    /// Says that accepting fails, but not for every connection.
    pub fn log_accept_failure(&self, listener: &ListenerName, error: &std::io::Error) {
        let now = now();
        if self.logged.get().is_none_or(|last| now.saturating_duration_since(last) >= LOG_PAUSE) {
            self.logged.set(Some(now));
            tracing::error!(%listener, %error, "cannot accept: raise the limit of open files (ulimit -n) or lower max_connections");
        }
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}

/// Seconds since the epoch as an IMF-fixdate (RFC 9110 §5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(seconds: u64) -> [u8; 29] {
    const DAYS: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
    const MONTHS: [&[u8; 3]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    let place = |index: u64, bound: usize| usize::try_from(index).map_or(0, |index| index % bound);
    text[..3].copy_from_slice(DAYS[place(days % 7, 7)]);
    text[8..11].copy_from_slice(MONTHS[place(month - 1, 12)]);
    let mut digits = |at: usize, mut value: u64, width: usize| {
        for place in (at..at + width).rev() {
            text[place] = b'0' + u8::try_from(value % 10).unwrap_or(0);
            value /= 10;
        }
    };
    digits(5, day, 2);
    digits(12, year, 4);
    digits(17, rest / 3600, 2);
    digits(20, rest / 60 % 60, 2);
    digits(23, rest % 60, 2);
    text
}

/// Year, month and day of a count of days since 1970-01-01 (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Wall time of the start of the process, since the Unix epoch.
pub(crate) fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_standard() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_827_696, "Tue, 29 Feb 2000 12:34:56 GMT"),
            (4_102_444_799, "Thu, 31 Dec 2099 23:59:59 GMT"),
        ] {
            assert_eq!(String::from_utf8(http_date(seconds).to_vec()).unwrap(), text);
        }
    }
}
