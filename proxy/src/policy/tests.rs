//! Buckets against an exact model, circuits under threads, and the whole table of retry decisions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::chance::Chance;
use crate::config::{CircuitLimits, LocalRateLimit, RetryBudget, RetryOn, RetryPolicy, TokenBucketConfig};
use crate::fault::{Fault, Kind, Retry};
use crate::grpc::GrpcCode;
use crate::stats::SuppressReason;

fn bucket(max_tokens: u32, tokens_per_fill: u32, fill_ms: u64) -> TokenBucketConfig {
    TokenBucketConfig { max_tokens, tokens_per_fill, fill_interval: Duration::from_millis(fill_ms) }
}

/// One fill at a time, with counters that cannot overflow.
struct SlowBucket {
    config: TokenBucketConfig,
    next_fill_ns: u128,
    tokens: u128,
}

impl SlowBucket {
    fn take(&mut self, now_ns: u64) -> bool {
        while self.next_fill_ns <= u128::from(now_ns) {
            self.next_fill_ns += self.config.fill_interval.as_nanos();
            let filled = self.tokens + u128::from(self.config.tokens_per_fill);
            self.tokens = filled.min(u128::from(self.config.max_tokens));
        }
        let admitted = self.tokens > 0;
        self.tokens -= u128::from(admitted);
        admitted
    }
}

proptest! {
    #[test]
    fn a_bucket_is_its_slow_model(
        max_tokens in 0_u32..20,
        tokens_per_fill in 1_u32..30,
        fill_ms in 50_u64..200,
        start in 0_u64..1 << 40,
        gaps in prop::collection::vec(prop_oneof![0_u64..1_000, 0_u64..300_000_000, Just(50_000_000)], 1..200),
    ) {
        let config = bucket(max_tokens, tokens_per_fill, fill_ms);
        let fast = TokenBucket::new(config, start);
        let mut slow = SlowBucket {
            config,
            next_fill_ns: u128::from(start) + config.fill_interval.as_nanos(),
            tokens: u128::from(max_tokens),
        };
        let mut now = start;
        for gap in gaps {
            now += gap;
            prop_assert_eq!(fast.take(now), slow.take(now), "at {}", now - start);
            prop_assert_eq!(u128::from(fast.tokens(now)), slow.tokens);
        }
    }
}

#[test]
fn a_bucket_does_not_drift_and_survives_its_counter() {
    let interval = 50_000_000_u64;
    let one = TokenBucket::new(bucket(10, 3, 50), 5);
    let taken = |now| (0..20).filter(|_| one.take(now)).count();
    assert_eq!(taken(5), 10);
    for fill in 1..=1_000 {
        assert_eq!(taken(5 + fill * interval + fill % 7), 3, "asked late, filled on time");
    }
    // The counter of fills wraps at 2^32; two long silences and one short get past it.
    let (first, second) = ((1 << 31) + 500, (1 << 32) - 2);
    for fill in [first, second, second + 5] {
        assert_eq!(taken(5 + fill * interval), 10);
        assert_eq!(taken(5 + (fill + 1) * interval), 3);
    }
}

#[test]
fn an_older_clock_reading_takes_nothing_back() {
    let one = TokenBucket::new(bucket(1, 1, 100), 0);
    assert!(one.take(0) && !one.take(0));
    assert!(one.take(100_000_000));
    assert!(!one.take(99_999_999), "the fill at 100 ms was spent");
    assert!(!one.take(199_999_999));
    assert!(one.take(200_000_000));
    assert!(!TokenBucket::new(bucket(0, 1, 100), 0).take(u64::MAX));
}

#[test]
fn threads_never_take_more_than_there_is() {
    let shared = TokenBucket::new(bucket(1_000, 10, 50), 0);
    let admitted = AtomicU32::new(0);
    thread::scope(|scope| {
        for worker in 0..4 {
            let (shared, admitted) = (&shared, &admitted);
            scope.spawn(move || {
                for step in 0..20_000_u64 {
                    // Readings of the workers differ by up to one fill.
                    let now = step * 25_000 + worker * 12_000_000;
                    admitted.fetch_add(u32::from(shared.take(now)), Ordering::Relaxed);
                }
            });
        }
    });
    let last = 19_999 * 25_000 + 3 * 12_000_000_u64;
    let due = 1_000 + 10 * u32::try_from(last / 50_000_000).expect("a few");
    assert_eq!(admitted.into_inner(), due, "all of what was due, and no more: demand was far above it");
}

fn limit(rule: &str, config: TokenBucketConfig) -> LocalRateLimit {
    LocalRateLimit { rule: rule.into(), bucket: config, enabled_ppm: 1_000_000, enforced_ppm: 1_000_000, status: 429 }
}

#[test]
fn a_limit_counts_and_enforces_its_shares() {
    let chance = Chance::from_seed(3);
    let tight = limit("r", bucket(1, 1, 1_000));
    let one = TokenBucket::new(tight.bucket, 0);
    assert_eq!(admit(&tight, &one, 0, &chance), Verdict::Admitted);
    assert_eq!(admit(&tight, &one, 0, &chance), Verdict::Limited);
    let shadow = LocalRateLimit { enforced_ppm: 0, ..tight.clone() };
    assert_eq!(admit(&shadow, &one, 0, &chance), Verdict::WouldLimit);
    let off = LocalRateLimit { enabled_ppm: 0, ..tight.clone() };
    assert_eq!(admit(&off, &one, 0, &chance), Verdict::Admitted);
    let half = LocalRateLimit { enforced_ppm: 500_000, ..tight };
    let limited = (0..10_000).filter(|_| admit(&half, &one, 0, &chance) == Verdict::Limited).count();
    assert!((4_800..5_200).contains(&limited), "{limited}");
}

#[test]
fn buckets_keep_their_tokens_over_updates() {
    let buckets = Buckets::default();
    let first = buckets.bucket(&limit("a", bucket(1, 1, 1_000)), 0);
    assert!(first.take(0));
    let again = buckets.bucket(&LocalRateLimit { status: 503, ..limit("a", bucket(1, 1, 1_000)) }, 5);
    assert!(Arc::ptr_eq(&first, &again) && !again.take(5));
    assert!(!Arc::ptr_eq(&first, &buckets.bucket(&limit("a", bucket(2, 1, 1_000)), 5)), "another setting");
    assert!(!Arc::ptr_eq(&first, &buckets.bucket(&limit("b", bucket(1, 1, 1_000)), 5)), "another rule");
    buckets.retain(|rule, _| rule == "b");
    assert!(buckets.bucket(&limit("a", bucket(1, 1, 1_000)), 5).take(5), "forgotten, so full again");
}

const LIMITS: CircuitLimits =
    CircuitLimits { max_connections: 1, max_pending_requests: 2, max_requests: 3, max_retries: 1, retry_budget: None };

#[test]
fn circuit_bounds_bind_at_their_value() {
    let state = Arc::new(CircuitState::default());
    let requests: Vec<Slot> = (0..3).filter_map(|_| state.try_request(&LIMITS)).collect();
    assert_eq!((requests.len(), state.requests()), (3, 3));
    assert!(state.try_request(&LIMITS).is_none());
    let pending: Vec<Slot> = (0..3).filter_map(|_| state.try_pending(&LIMITS)).collect();
    let connections: Vec<Slot> = (0..3).filter_map(|_| state.try_connection(&LIMITS)).collect();
    let retries: Vec<Slot> = (0..3).filter_map(|_| state.try_retry(&LIMITS)).collect();
    assert_eq!((pending.len(), connections.len(), retries.len()), (2, 1, 1));
    assert!(!state.may_retry(&LIMITS));
    drop((requests, pending, connections, retries));
    assert_eq!((state.requests(), state.pending(), state.connections(), state.retries()), (0, 0, 0, 0));
    let none = CircuitLimits { max_requests: 0, ..LIMITS };
    assert!(state.try_request(&none).is_none());
    let all = CircuitLimits { max_requests: u32::MAX, ..LIMITS };
    assert!(state.try_request(&all).is_some());
}

#[test]
fn a_retry_budget_is_a_share_with_a_floor() {
    let state = Arc::new(CircuitState::default());
    let limits = CircuitLimits {
        max_requests: 100,
        max_pending_requests: 100,
        max_retries: 0,
        retry_budget: Some(RetryBudget { budget_bp: 2_000, min_concurrency: 3 }),
        ..LIMITS
    };
    for (active, allowed) in [(0, 3), (15, 3), (19, 3), (20, 4), (100, 20)] {
        let slots: Vec<_> = (0..active).filter_map(|_| state.try_request(&limits)).collect();
        assert_eq!(state.retries_allowed(&limits), allowed, "{active}");
        drop(slots);
    }
    let _pending: Vec<_> = (0..50).filter_map(|_| state.try_pending(&limits)).collect();
    assert_eq!(state.retries_allowed(&limits), 10, "those that wait are active too");
}

#[test]
fn threads_never_pass_a_circuit_bound() {
    let state = Arc::new(CircuitState::default());
    let limits = CircuitLimits { max_requests: 2, ..LIMITS };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    if let Some(slot) = state.try_request(&limits) {
                        assert!(state.requests() <= 2);
                        drop(slot);
                    }
                }
            });
        }
    });
    assert_eq!(state.requests(), 0);
}

const ON_ALL: RetryOn = RetryOn {
    any_5xx: true,
    gateway_error: true,
    reset: true,
    reset_before_request: true,
    connect_failure: true,
    retriable_4xx: true,
    refused_stream: true,
    status_codes: true,
    response_headers: true,
    grpc_cancelled: true,
    grpc_deadline_exceeded: true,
    grpc_internal: true,
    grpc_resource_exhausted: true,
    grpc_unavailable: true,
};

fn policy(on: RetryOn) -> RetryPolicy {
    RetryPolicy {
        on,
        retries: 2,
        per_try_timeout: None,
        status_codes: vec![418],
        response_headers: vec!["x-again".into()],
        backoff_base: Duration::from_millis(25),
        backoff_max: Duration::from_millis(250),
        endpoint_attempts: 5,
        retry_non_idempotent: false,
    }
}

const FIRST: Attempt = Attempt {
    tries_made: 1,
    sent: Sent::Maybe,
    on_reused: false,
    replayed: false,
    idempotent: true,
    body_replayable: true,
    response_started: false,
    deadline_left: None,
    budget: true,
};

fn on_fault(policy: Option<&RetryPolicy>, attempt: &Attempt, kind: Kind) -> Decision {
    decide(policy, attempt, &Outcome::Fault(&Fault::new(kind)), &Chance::from_seed(1))
}

fn on_status(policy: Option<&RetryPolicy>, attempt: &Attempt, status: u16) -> Decision {
    decide(policy, attempt, &Outcome::Status { status, has_header: &|_| false }, &Chance::from_seed(1))
}

fn is_retry(decision: Decision) -> bool {
    matches!(decision, Decision::Retry { .. })
}

#[test]
fn each_word_of_retry_on_asks_for_its_outcomes() {
    use Kind::*;
    let connect = [ConnectRefused, ConnectUnreachable, ConnectTimeout];
    let reset = [SendReset, ResponseReset, ResponseClosed, ResponseMalformed, ResponseTooLarge, PerTryTimeout];
    let none = RetryOn::default();
    for (word, on, by_connect, by_reset, statuses) in [
        ("none", none, false, false, vec![]),
        ("5xx", RetryOn { any_5xx: true, ..none }, true, true, vec![500, 502, 503, 504, 599]),
        ("gateway-error", RetryOn { gateway_error: true, ..none }, true, true, vec![502, 503, 504]),
        ("reset", RetryOn { reset: true, ..none }, true, true, vec![]),
        ("connect-failure", RetryOn { connect_failure: true, ..none }, true, false, vec![]),
        ("reset-before-request", RetryOn { reset_before_request: true, ..none }, true, false, vec![]),
        ("retriable-4xx", RetryOn { retriable_4xx: true, ..none }, false, false, vec![409]),
        ("retriable-status-codes", RetryOn { status_codes: true, ..none }, false, false, vec![418]),
        ("retriable-headers", RetryOn { response_headers: true, ..none }, false, false, vec![]),
        ("refused-stream", RetryOn { refused_stream: true, ..none }, false, false, vec![]),
    ] {
        let policy = policy(on);
        for &kind in Kind::ALL {
            let expected = (connect.contains(&kind) && by_connect) || (reset.contains(&kind) && by_reset);
            assert_eq!(is_retry(on_fault(Some(&policy), &FIRST, kind)), expected, "{word} {kind:?}");
        }
        for status in [200, 400, 409, 418, 429, 499, 500, 501, 502, 503, 504, 505, 599] {
            let asked = statuses.contains(&status) || (word == "5xx" && status >= 500);
            assert_eq!(is_retry(on_status(Some(&policy), &FIRST, status)), asked, "{word} {status}");
            assert_eq!(asks_on_answer(&policy, status, &|_| false), asked, "{word} {status}");
        }
    }
    let unsent = Attempt { sent: Sent::Nothing, idempotent: false, ..FIRST };
    let before = policy(RetryOn { reset_before_request: true, ..none });
    assert!(is_retry(on_fault(Some(&before), &unsent, ResponseClosed)));
    let headers = policy(RetryOn { response_headers: true, ..none });
    let outcome = Outcome::Status { status: 200, has_header: &|name| name == "x-again" };
    assert!(is_retry(decide(Some(&headers), &FIRST, &outcome, &Chance::from_seed(1))));
}

#[test]
fn each_word_of_grpc_asks_for_its_code() {
    let none = RetryOn::default();
    let post = Attempt { idempotent: false, ..FIRST };
    for (asked, on) in [
        (None, none),
        (Some(GrpcCode::Cancelled), RetryOn { grpc_cancelled: true, ..none }),
        (Some(GrpcCode::DeadlineExceeded), RetryOn { grpc_deadline_exceeded: true, ..none }),
        (Some(GrpcCode::Internal), RetryOn { grpc_internal: true, ..none }),
        (Some(GrpcCode::ResourceExhausted), RetryOn { grpc_resource_exhausted: true, ..none }),
        (Some(GrpcCode::Unavailable), RetryOn { grpc_unavailable: true, ..none }),
        (None, RetryOn { any_5xx: true, status_codes: true, retriable_4xx: true, ..none }),
    ] {
        let policy = policy(on);
        for &code in GrpcCode::ALL {
            let decision = decide(Some(&policy), &post, &Outcome::Grpc(code), &Chance::from_seed(1));
            assert_eq!(is_retry(decision), Some(code) == asked, "{on:?} {code:?}");
            assert_eq!(asks_on_grpc(&policy, code), Some(code) == asked, "{on:?} {code:?}");
        }
    }
    let all = policy(ON_ALL);
    for (attempt, reason) in [
        (Attempt { response_started: true, ..post }, SuppressReason::ResponseStarted),
        (Attempt { body_replayable: false, ..post }, SuppressReason::BodyTooLarge),
        (Attempt { budget: false, ..post }, SuppressReason::Budget),
        (Attempt { deadline_left: Some(Duration::ZERO), ..post }, SuppressReason::Deadline),
    ] {
        let decision = decide(Some(&all), &attempt, &Outcome::Grpc(GrpcCode::Unavailable), &Chance::from_seed(1));
        assert_eq!(decision, Decision::Suppressed(reason));
    }
}

#[test]
fn work_is_never_doubled() {
    // Every combination of what can be known about a try; the only retries allowed are those that cannot repeat work.
    for bits in 0_u32..1 << 7 {
        let bit = |at: u32| bits & (1 << at) != 0;
        let attempt = Attempt {
            sent: if bit(0) { Sent::Maybe } else { Sent::Nothing },
            on_reused: bit(1),
            replayed: bit(2),
            idempotent: bit(3),
            body_replayable: bit(4),
            response_started: bit(5),
            ..FIRST
        };
        let with_policy = bit(6).then(|| policy(ON_ALL));
        for &kind in Kind::ALL {
            for retry in [Retry::Never, Retry::Safe, Retry::Unknown] {
                let fault = Fault::new(kind).with_retry(retry);
                let decision = decide(with_policy.as_ref(), &attempt, &Outcome::Fault(&fault), &Chance::from_seed(1));
                if is_retry(decision) || decision == Decision::Replay {
                    let harmless = attempt.sent == Sent::Nothing || attempt.idempotent || retry == Retry::Safe;
                    assert!(harmless, "{attempt:?} {kind:?} {retry:?}");
                    assert!(attempt.body_replayable && !attempt.response_started, "{attempt:?} {kind:?}");
                }
                if decision == Decision::Replay {
                    let is_lost = attempt.on_reused || kind == Kind::StreamRefused;
                    assert!(is_lost && !attempt.replayed, "{attempt:?} {kind:?}");
                }
                if is_retry(decision) {
                    assert!(with_policy.is_some(), "{attempt:?} {kind:?}");
                }
            }
        }
    }
}

#[test]
fn a_retry_that_may_not_be_says_why() {
    let all = policy(ON_ALL);
    let reason = |attempt: Attempt| on_fault(Some(&all), &attempt, Kind::ResponseReset);
    let suppressed = Decision::Suppressed;
    assert_eq!(reason(Attempt { idempotent: false, ..FIRST }), suppressed(SuppressReason::NotIdempotent));
    assert_eq!(reason(Attempt { body_replayable: false, ..FIRST }), suppressed(SuppressReason::BodyTooLarge));
    assert_eq!(reason(Attempt { response_started: true, ..FIRST }), suppressed(SuppressReason::ResponseStarted));
    assert_eq!(reason(Attempt { budget: false, ..FIRST }), suppressed(SuppressReason::Budget));
    let late = Attempt { deadline_left: Some(Duration::ZERO), ..FIRST };
    assert_eq!(reason(late), suppressed(SuppressReason::Deadline));
    assert!(is_retry(reason(Attempt { deadline_left: Some(Duration::from_millis(25)), ..FIRST })));
    let owner = RetryPolicy { retry_non_idempotent: true, ..policy(ON_ALL) };
    assert!(is_retry(on_fault(Some(&owner), &Attempt { idempotent: false, ..FIRST }, Kind::ResponseReset)));
    assert!(is_retry(on_status(Some(&owner), &Attempt { idempotent: false, ..FIRST }, 503)));
    let post = Attempt { idempotent: false, ..FIRST };
    assert_eq!(on_status(Some(&all), &post, 503), suppressed(SuppressReason::NotIdempotent));
    assert!(is_retry(on_fault(Some(&all), &post, Kind::ConnectRefused)), "nothing left, so a POST goes again");
}

#[test]
fn retries_end() {
    let all = policy(ON_ALL);
    for (tries_made, expected) in [(1, true), (2, true), (3, false), (u32::MAX, false)] {
        let decision = on_status(Some(&all), &Attempt { tries_made, ..FIRST }, 503);
        assert_eq!(is_retry(decision), expected, "{tries_made}");
        assert!(expected || decision == Decision::Pass);
    }
    assert_eq!(on_status(None, &FIRST, 503), Decision::Pass);
    assert_eq!(on_fault(None, &FIRST, Kind::ConnectRefused), Decision::Pass);
}

#[test]
fn a_dead_kept_connection_is_replayed_once() {
    let reused = Attempt { on_reused: true, ..FIRST };
    for kind in [Kind::SendReset, Kind::ResponseReset, Kind::ResponseClosed] {
        assert_eq!(on_fault(None, &reused, kind), Decision::Replay, "{kind:?}");
        assert_eq!(on_fault(None, &Attempt { replayed: true, ..reused }, kind), Decision::Pass);
        let post = Attempt { idempotent: false, ..reused };
        assert_eq!(on_fault(None, &post, kind), Decision::Pass, "it may have been served");
        assert_eq!(on_fault(None, &Attempt { sent: Sent::Nothing, ..post }, kind), Decision::Replay);
        assert_eq!(on_fault(None, &Attempt { body_replayable: false, ..reused }, kind), Decision::Pass);
        let late = Attempt { deadline_left: Some(Duration::ZERO), ..reused };
        assert_eq!(on_fault(None, &late, kind), Decision::Pass);
    }
    assert_eq!(on_fault(None, &reused, Kind::PerTryTimeout), Decision::Pass);
    assert_eq!(on_status(None, &reused, 503), Decision::Pass);
}

#[test]
fn pauses_grow_to_the_cap_with_full_jitter() {
    let many = RetryPolicy { retries: 100, ..policy(ON_ALL) };
    let chance = Chance::from_seed(5);
    for (number, step_ms) in [(1, 25), (2, 75), (3, 175), (4, 250), (5, 250), (31, 250), (32, 250), (99, 250)] {
        let step = Duration::from_millis(step_ms);
        let mut longest = Duration::ZERO;
        let mut total = Duration::ZERO;
        for _ in 0..2_000 {
            let attempt = Attempt { tries_made: number, ..FIRST };
            let outcome = Outcome::Status { status: 503, has_header: &|_| false };
            let Decision::Retry { backoff } = decide(Some(&many), &attempt, &outcome, &chance) else {
                panic!("a retry is due")
            };
            assert!(backoff < step, "{number}: {backoff:?}");
            longest = longest.max(backoff);
            total += backoff;
        }
        assert!(longest > step * 95 / 100, "{number}: {longest:?}");
        let mean = total / 2_000;
        assert!(mean > step * 45 / 100 && mean < step * 55 / 100, "{number}: {mean:?}");
    }
}
