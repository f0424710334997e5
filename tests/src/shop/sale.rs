//! Purpose: the flash sale itself: orders at a steady rate, each with a key of its own, every answer counted.
//!
//! Shape: a [`Sale`] is an open-loop load on the gateway's sidecar; a [`Count`] is what came so far, and the
//! difference of two is what came between.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use outrigger_tests::world::load::{LoadRequest, RunningLoad};
use outrigger_tests::world::{Load, Response, Tally};

const CONNECTIONS: usize = 24;
const POLL_EVERY: Duration = Duration::from_millis(20);

/// A sale under way.
#[derive(Debug)]
pub(crate) struct Sale {
    load: RunningLoad,
    refusal: Arc<Mutex<Option<String>>>,
}

/// What became of the orders.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Count {
    /// Answered, failed or refused.
    pub(crate) sent: u64,
    /// Served by replica 1 of v1.
    pub(crate) orders_1: u64,
    /// Served by replica 2 of v1.
    pub(crate) orders_2: u64,
    /// Served by v2.
    pub(crate) orders_v2: u64,
    /// Refused by a limit.
    pub(crate) limited: u64,
}

impl Count {
    /// Orders placed.
    pub(crate) fn served(self) -> u64 {
        self.orders_1 + self.orders_2 + self.orders_v2
    }

    /// Everything that is neither served nor limited.
    pub(crate) fn lost(self) -> u64 {
        self.sent - self.served() - self.limited
    }

    /// What came after `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            sent: self.sent - earlier.sent,
            orders_1: self.orders_1 - earlier.orders_1,
            orders_2: self.orders_2 - earlier.orders_2,
            orders_v2: self.orders_v2 - earlier.orders_v2,
            limited: self.limited - earlier.limited,
        }
    }

    /// Shares of v1 and v2 among the served, in percent.
    #[allow(clippy::cast_precision_loss, reason = "counts of one demo stay far below 2^52")]
    pub(crate) fn shares(self) -> (f64, f64) {
        let share = |part: u64| 100.0 * part as f64 / self.served().max(1) as f64;
        (share(self.orders_1 + self.orders_2), share(self.orders_v2))
    }

    fn of(tally: &Tally) -> Self {
        Self {
            sent: tally.sent,
            orders_1: tally.count("orders-1"),
            orders_2: tally.count("orders-2"),
            orders_v2: tally.count("orders-v2"),
            limited: tally.count("limited"),
        }
    }
}

impl Sale {
    /// Opens the doors.
    pub(crate) fn open(front: SocketAddr, rate: u32, limit: Duration) -> Self {
        let refusal = Arc::new(Mutex::new(None));
        let seen = refusal.clone();
        let load = Load {
            address: front,
            connections: CONNECTIONS,
            rate: Some(f64::from(rate)),
            limit,
            request: Box::new(|number| LoadRequest {
                method: "POST",
                target: "/buy".to_owned(),
                headers: vec![("host", "gateway".to_owned()), ("idempotency-key", format!("order-{number}"))],
                body: br#"{"item":"lantern","count":1}"#.to_vec(),
            }),
            verdict: Box::new(move |_, response| outcome(response, &seen)),
        };
        Self { load: load.start(), refusal }
    }

    /// What came so far.
    pub(crate) fn count(&self) -> Count {
        Count::of(&self.load.tally())
    }

    /// Lets it run for a while and says what came in that time.
    pub(crate) fn watch(&self, span: Duration) -> Count {
        let before = self.count();
        let end = Instant::now() + span;
        while Instant::now() < end {
            thread::sleep(POLL_EVERY);
        }
        self.count().since(before)
    }

    /// The first refusal, as its `outrigger-fault` header had it.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Closes the doors, after the answers under way.
    pub(crate) fn close(self) -> Tally {
        self.load.stop()
    }
}

impl From<&Tally> for Count {
    fn from(tally: &Tally) -> Self {
        Self::of(tally)
    }
}

fn outcome(response: &Response, refusal: &Mutex<Option<String>>) -> Result<&'static str, String> {
    let fault = response.header("outrigger-fault");
    match (response.status, response.header("x-replica").as_deref()) {
        (201, Some("orders-1")) => Ok("orders-1"),
        (201, Some("orders-2")) => Ok("orders-2"),
        (201, Some("orders-v2")) => Ok("orders-v2"),
        (429, _) if fault.is_some() => {
            refusal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| fault.unwrap_or_default());
            Ok("limited")
        }
        (status, _) => Err(format!("status {status}, fault {fault:?}: {}", response.text())),
    }
}
