//! **Purpose.** Gives every worker its even part of the connections, whichever worker the kernel wakes.
//!
//! **Shape.** A [`Crew`] is all workers as one of them sees them. The worker that accepts a connection keeps it unless
//! another has clearly fewer ([`emptier`]); then it puts it into that worker's inbox, out of which [`take_in`] serves it.
//! ```text
//!  kernel ──▶ accept, on any worker ──▶ it has few ────────────▶ served here
//!                                   └─▶ another has fewer ─▶ inbox ─▶ served there
//!                                         └─ inbox closed: that worker stops ─▶ served here
//! ```
//! A connection counts for its new worker from the moment it is handed over: a burst does not run after a number that
//! is about to change. While connections come and go a few more are no reason to move one ([`Passing`]).
//!
//! **Limits.** Counts of different workers are read one after the other, so two that accept at once may both be off by
//! one. What was handed over stays: a connection that served a request is never moved.
//!
//! **Cancel.** A closed inbox gives back what it is sent, and what lay in it is served: none is lost at a drain.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use outrigger_reactor::{Accepted, Mailbox, Sender, mailbox};

use super::accept::serve;
use crate::config::ListenerName;
use crate::drain::{Load, Place, Watch};
use crate::stats::Counter;
use crate::worker::Worker;

/// Loads that differ by less than this part of the larger are even: moving a connection costs a wake of another thread,
/// and among many a few more or less are no unevenness. Keeps the loads within 1/16 of each other.
const EVEN_PART: u32 = 16;

/// Connections more than another worker has that are even too while connections come and go: then the next close
/// evens as well as a hand-over, and for nothing.
const PASSING_MORE: u32 = 4;
/// Accepts between two looks at whether connections come and go, and how long the answer holds.
const PASSING_ACCEPTS: u32 = 16;
const PASSING_HOLDS: Duration = Duration::from_secs(1);

/// All workers, as one of them sees them.
#[derive(Clone, Debug)]
pub struct Crew {
    members: Arc<[Member]>,
    own: usize,
}

#[derive(Debug)]
struct Member {
    load: Arc<Load>,
    inbox: Sender<Handed>,
    /// Written by the member itself.
    handed_over: Counter,
}

/// A connection on its way to the worker that is to serve it.
#[derive(Debug)]
pub struct Handed {
    listener: ListenerName,
    accepted: Accepted,
    /// Dropped once the connection counts by itself.
    place: Place,
}

impl Crew {
    /// A crew of `count` workers: for each its view of the others, and its inbox.
    pub fn muster(count: usize) -> Vec<(Self, Mailbox<Handed>)> {
        let (inboxes, mailboxes): (Vec<_>, Vec<_>) = (0..count).map(|_| mailbox()).unzip();
        let member = |inbox| Member { load: Arc::default(), inbox, handed_over: Counter::default() };
        let members: Arc<[Member]> = inboxes.into_iter().map(member).collect();
        let crews = (0..count).map(|own| Self { members: members.clone(), own });
        crews.zip(mailboxes).collect()
    }

    /// This worker's connections, with those on their way to it.
    pub fn load(&self) -> &Arc<Load> {
        &self.members[self.own].load
    }

    /// Connections that this worker has handed to others.
    pub fn handed_over(&self) -> u64 {
        self.members[self.own].handed_over.value()
    }

    /// Hands a connection to a worker with clearly fewer: by more than `slack`, and by more than a sixteenth. Given back:
    /// this worker is to serve it.
    pub(super) fn hand(&self, listener: &ListenerName, accepted: Accepted, slack: u32) -> Option<Accepted> {
        let load = |at: usize| self.members[at].load.value();
        let Some(to) = emptier(self.own, self.members.len(), slack, load) else {
            return Some(accepted);
        };
        let to = &self.members[to];
        match to.inbox.send(Handed { listener: listener.clone(), accepted, place: to.load.place() }) {
            Ok(()) => {
                self.members[self.own].handed_over.add_one();
                None
            }
            Err(back) => Some(back.accepted),
        }
    }
}

/// The worker with the fewest connections, if `own` has clearly more; of equal ones the next after `own`.
fn emptier(own: usize, count: usize, slack: u32, load: impl Fn(usize) -> u32) -> Option<usize> {
    let most = load(own);
    if most <= slack {
        return None;
    }
    let others = (1..count).map(|step| (own + step) % count);
    let (to, least) = others.map(|at| (at, load(at))).min_by_key(|(_, load)| *load)?;
    (most > least.saturating_add(slack.max(most / EVEN_PART))).then_some(to)
}

/// Whether the connections that a worker accepts come and go: half as many have ended as were accepted.
#[derive(Debug, Default)]
pub(super) struct Passing {
    accepted: u32,
    ended: u64,
    until: Option<Instant>,
}

impl Passing {
    /// To be told of each accept, with the number of connections that have ended so far; answers how many connections
    /// more than another's are even.
    pub(super) fn slack(&mut self, ended: u64, now: Instant) -> u32 {
        self.accepted += 1;
        if self.accepted == PASSING_ACCEPTS {
            let passed = ended.wrapping_sub(self.ended) >= u64::from(PASSING_ACCEPTS / 2);
            *self = Self { accepted: 0, ended, until: passed.then_some(now + PASSING_HOLDS) };
        }
        if self.until.is_some_and(|until| now < until) { PASSING_MORE } else { 0 }
    }
}

/// Serves what other workers hand over, until `stop` is told; then what is on its way too, and nothing after it.
/// Cancel: what is on its way is closed.
pub async fn take_in(worker: Rc<Worker>, mut inbox: Mailbox<Handed>, stop: Watch) {
    let take = |Handed { listener, accepted, place }| {
        serve(&worker, &listener, accepted);
        drop(place);
    };
    loop {
        let mut receiving = pin!(inbox.recv());
        let received = poll_fn(|cx| match stop.poll_started(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => receiving.as_mut().poll(cx),
        });
        match received.await {
            Some(handed) => take(handed),
            None => break,
        }
    }
    inbox.close().into_iter().for_each(take);
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_reactor::{DriverKind, Options, Runtime, TcpListener};
    use proptest::prelude::*;

    fn choose(own: usize, loads: &[u32]) -> Option<usize> {
        emptier(own, loads.len(), 0, |at| loads[at])
    }

    #[test]
    fn a_connection_moves_only_where_it_evens_something_out() {
        for (own, loads, to) in [
            (0, &[0][..], None),
            (0, &[9], None),
            (0, &[0, 0], None),
            (0, &[1, 1], None),
            (0, &[1, 0], Some(1)),
            (1, &[1, 0], None),
            (0, &[15, 14], Some(1)),
            (0, &[16, 15], None),
            (0, &[16, 14], Some(1)),
            (0, &[100, 94], None),
            (0, &[100, 93], Some(1)),
            (2, &[3, 1, 4, 1], Some(3)),
            (3, &[3, 1, 1, 4], Some(1)),
            (0, &[u32::MAX, u32::MAX], None),
        ] {
            assert_eq!(choose(own, loads), to, "{own} of {loads:?}");
        }
    }

    #[test]
    fn while_connections_come_and_go_a_few_more_are_even() {
        let now = Instant::now();
        let mut passing = Passing::default();
        let mut slack = |ended, after| passing.slack(ended, now + after);
        let first: Vec<u32> = (0..16).map(|ended| slack(ended, Duration::ZERO)).collect();
        assert_eq!(first, [[0; 15].as_slice(), &[PASSING_MORE]].concat());
        assert_eq!(slack(16, PASSING_HOLDS - Duration::from_millis(1)), PASSING_MORE);
        assert_eq!(slack(16, PASSING_HOLDS), 0, "it holds for a time");
        // None of the next ends: they stay.
        let next: Vec<u32> = (0..14).map(|_| slack(16, PASSING_HOLDS / 2)).collect();
        assert_eq!(next, [[PASSING_MORE; 13].as_slice(), &[0]].concat());
        let with_slack = |loads: &[u32]| emptier(0, loads.len(), PASSING_MORE, |at| loads[at]);
        assert_eq!(
            [[4, 0], [5, 0], [5, 1], [64, 60], [80, 74]].map(|loads| with_slack(&loads)),
            [None, Some(1), None, None, Some(1)]
        );
    }

    proptest! {
        /// Whoever is woken, and whoever leaves: once as many have come as there are, all are within a tenth of even.
        #[test]
        fn loads_become_even_whichever_worker_is_woken(
            mut loads in proptest::collection::vec(0_u32..300, 2..12),
            woken in proptest::collection::vec(0_usize..12, 400),
            favourite in 0_usize..12,
        ) {
            let count = loads.len();
            // What was uneven before is evened by new connections alone: enough must come to fill the emptier ones.
            let most = loads.iter().copied().max().unwrap_or(0);
            let missing: u32 = loads.iter().map(|load| most - load).sum();
            for at in 0..(missing as usize + 40 * count) {
                // Mostly one worker is woken, sometimes another.
                let own = if at % 3 == 0 { woken[at % woken.len()] } else { favourite } % count;
                let to = choose(own, &loads).unwrap_or(own);
                prop_assert!(to == own || loads[to] < loads[own]);
                loads[to] += 1;
            }
            let even = loads.iter().sum::<u32>() as f64 / count as f64;
            for load in &loads {
                prop_assert!((f64::from(*load) - even).abs() <= (even / 10.0).max(1.0), "{loads:?}");
            }
        }
    }

    #[test]
    fn what_a_closed_inbox_does_not_take_is_given_back() {
        let mut runtime = Runtime::new(DriverKind::Epoll, &Options::default()).unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(std::net::TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
            let address = listener.local_addr().unwrap();
            let name = ListenerName::from("main");
            let mut crew = Crew::muster(2);
            let (_, mut inbox) = crew.pop().unwrap();
            let (crew, _own_inbox) = crew.pop().unwrap();
            let _busy: Vec<Place> = (0..4).map(|_| crew.load().place()).collect();
            let mut clients = Vec::new();
            for _ in 0..2 {
                clients.push(std::net::TcpStream::connect(address).unwrap());
                let accepted = poll_fn(|cx| listener.poll_accepted(cx)).await.unwrap();
                assert!(crew.hand(&name, accepted, 0).is_none());
            }
            let theirs = &crew.members[1].load;
            assert_eq!((theirs.value(), crew.handed_over()), (2, 2), "they count before they are taken");
            let taken = inbox.recv().await.unwrap();
            assert_eq!(
                (taken.listener.as_str(), taken.accepted.peer_addr()),
                ("main", clients[0].local_addr().unwrap())
            );
            drop(taken);
            assert_eq!(inbox.close().len(), 1);
            clients.push(std::net::TcpStream::connect(address).unwrap());
            let accepted = poll_fn(|cx| listener.poll_accepted(cx)).await.unwrap();
            let back = crew.hand(&name, accepted, 0).expect("it is given back");
            assert_eq!(back.peer_addr(), clients[2].local_addr().unwrap());
            assert_eq!((theirs.value(), crew.handed_over(), crew.load().value()), (0, 2, 4));
        });
    }
}
