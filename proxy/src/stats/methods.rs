//! What is counted of the methods of gRPC.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;

use super::{Counter, Registry};
use crate::grpc::{GrpcCode, MethodName};

/// Most methods that a worker tells apart in one cluster.
pub const METHODS_MAX: usize = 256;
/// What stands for the others.
const OTHER: &str = "other";

/// Which method a cell belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MethodKey {
    /// Cluster that served the call.
    pub cluster: Arc<str>,
    /// Its service, with the package.
    pub service: Arc<str>,
    /// Its name in the service.
    pub method: Arc<str>,
}

/// One worker's counts of one method.
#[derive(Debug, Default)]
pub struct MethodCell {
    /// Calls that ended, by [`GrpcCode`].
    pub by_code: [Counter; GrpcCode::ALL.len()],
    /// Messages that callers sent.
    pub request_messages: Counter,
    /// Messages that callers were sent.
    pub response_messages: Counter,
}

impl MethodCell {
    /// Codes that calls have ended with, with their counts over `cells`.
    pub fn sum(cells: &[Arc<Self>]) -> impl Iterator<Item = (GrpcCode, u64)> + '_ {
        let count = |code: GrpcCode| cells.iter().map(|cell| cell.by_code[code as usize].value()).sum();
        GrpcCode::ALL.iter().map(move |&code| (code, count(code))).filter(|(_, count)| *count > 0)
    }
}

/// A call that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// How.
    pub code: GrpcCode,
    /// The code is the upstream's, not one that this proxy answered with.
    pub is_upstreams: bool,
    /// Messages that its caller sent.
    pub request_messages: u64,
    /// Messages that its caller was sent.
    pub response_messages: u64,
}

/// One worker's cells of one cluster by path. A method gets a cell of its own when the upstream first serves it: paths
/// that nothing is behind, which a caller makes up, count as `other` and take no room. So do methods beyond
/// [`METHODS_MAX`].
#[derive(Debug)]
pub struct MethodTable {
    cluster: Arc<str>,
    cells: RefCell<HashMap<Box<[u8]>, Arc<MethodCell>>>,
    other: OnceCell<Arc<MethodCell>>,
}

impl MethodTable {
    /// Of a cluster that has served no call.
    pub fn new(cluster: Arc<str>) -> Self {
        Self { cluster, cells: RefCell::default(), other: OnceCell::new() }
    }

    /// Counts a call of the method that `path` names.
    pub fn count(&self, path: &[u8], call: &Call, registry: &Registry) {
        let known = self.cells.borrow().get(path).map(|cell| call.count_in(cell)).is_some();
        if known {
            return;
        }
        match MethodName::parse(path).filter(|_| self.takes(call)) {
            Some(name) => {
                let cell = registry.method(self.key(name.service, name.method));
                call.count_in(&cell);
                self.cells.borrow_mut().insert(path.into(), cell);
            }
            None => call.count_in(self.other.get_or_init(|| registry.method(self.key(OTHER, OTHER)))),
        }
    }

    fn takes(&self, call: &Call) -> bool {
        call.is_upstreams && call.code != GrpcCode::Unimplemented && self.cells.borrow().len() < METHODS_MAX
    }

    fn key(&self, service: &str, method: &str) -> MethodKey {
        MethodKey { cluster: self.cluster.clone(), service: service.into(), method: method.into() }
    }
}

impl Call {
    fn count_in(&self, cell: &MethodCell) {
        cell.by_code[self.code as usize].add_one();
        cell.request_messages.add(self.request_messages);
        cell.response_messages.add(self.response_messages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(registry: &Registry) -> Vec<(String, u64)> {
        let mut seen = Vec::new();
        registry.methods(|key, cells| {
            let calls = MethodCell::sum(cells).map(|(_, count)| count).sum();
            seen.push((format!("{}/{}/{}", key.cluster, key.service, key.method), calls));
        });
        seen
    }

    const SERVED: Call = Call { code: GrpcCode::Ok, is_upstreams: true, request_messages: 1, response_messages: 2 };

    #[test]
    fn methods_are_counted_once_they_were_served() {
        let registry = Registry::default();
        let table = MethodTable::new("orders".into());
        let refused = Call { code: GrpcCode::Unavailable, is_upstreams: false, ..SERVED };
        let made_up = Call { code: GrpcCode::Unimplemented, ..SERVED };
        for (path, call) in [
            ("/a.B/C", &refused),
            ("/a.B/made-up", &made_up),
            ("/no-method", &SERVED),
            ("/a.B/C", &SERVED),
            ("/a.B/C", &refused),
        ] {
            table.count(path.as_bytes(), call, &registry);
        }
        assert_eq!(counts(&registry), [("orders/a.B/C".to_owned(), 2), ("orders/other/other".to_owned(), 3)]);
        registry.methods(|key, cells| {
            let calls = if &*key.service == OTHER { 3 } else { 2 };
            assert_eq!((cells[0].request_messages.value(), cells[0].response_messages.value()), (calls, 2 * calls));
        });
        registry.retain_clusters(|_| false);
        assert_eq!(counts(&registry), []);
    }

    #[test]
    fn methods_beyond_the_bound_count_as_other() {
        let registry = Registry::default();
        let table = MethodTable::new("c".into());
        for at in 0..=METHODS_MAX {
            table.count(format!("/s/m{at}").as_bytes(), &SERVED, &registry);
        }
        let counts = counts(&registry);
        assert_eq!(counts.len(), METHODS_MAX + 1);
        assert!(counts.contains(&("c/other/other".to_owned(), 1)), "{counts:?}");
    }
}
