//! **Purpose.** Whether a try that went wrong is followed by another. It never makes the application do work twice.
//!
//! **Shape.** [`decide`] is pure. Two questions, in this order: does the policy ask for a retry of this outcome, and may it
//! be given one? A retry that was asked for and not given is [`Decision::Suppressed`] with its reason, to be counted.
//! Apart from policy stands the *replay*: a kept connection that turns out to be closed says nothing about the endpoint,
//! so a request that failed on one before any byte of an answer goes out once more, on a new connection; so does one that
//! an endpoint of HTTP/2 says it did not process.
//!
//! **Source.** Envoy, `x-envoy-retry-on` and its back-off: retry n waits a uniform draw from `0..(2^n - 1) * base`, capped;
//! the draw is made at the cap too. RFC 9110 §9.2.2 for what may be repeated. Stricter than Envoy: a request that may have
//! reached the application is repeated only when that is harmless. Every call of gRPC is a POST, so there a policy that
//! names a code is its owner's leave: without it the word would ask for nothing.

use std::time::Duration;

use crate::chance::Chance;
use crate::config::{RetryOn, RetryPolicy};
use crate::fault::{Fault, Kind, Retry};
use crate::grpc::GrpcCode;
use crate::stats::SuppressReason;

/// How a try ended.
#[derive(Clone, Copy)]
pub enum Outcome<'a> {
    /// By a fault.
    Fault(&'a Fault),
    /// By a gRPC code, in the head of the answer or in trailers before any message of it.
    Grpc(GrpcCode),
    /// By an answer of the upstream.
    Status {
        /// Its status.
        status: u16,
        /// Whether it has a header of that (lower-case) name.
        has_header: &'a dyn Fn(&str) -> bool,
    },
}

impl std::fmt::Debug for Outcome<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fault(fault) => f.debug_tuple("Fault").field(&fault.kind).finish(),
            Self::Grpc(code) => f.debug_tuple("Grpc").field(code).finish(),
            Self::Status { status, .. } => f.debug_tuple("Status").field(status).finish(),
        }
    }
}

/// What of the request left this proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Bytes of it may have reached the application.
    Maybe,
    /// No byte of it reached the application, provably.
    Nothing,
}

/// The try, as far as the decision needs it.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// Tries made under the policy, the first included and replays not.
    pub tries_made: u32,
    /// What left.
    pub sent: Sent,
    /// It went out on a connection that had served before.
    pub on_reused: bool,
    /// The request was replayed before.
    pub replayed: bool,
    /// Its method may be repeated, or it carries an Idempotency-Key.
    pub idempotent: bool,
    /// All of its body is at hand, or it has none.
    pub body_replayable: bool,
    /// Part of an answer was passed on.
    pub response_started: bool,
    /// Time left for the request; `None`: unbounded.
    pub deadline_left: Option<Duration>,
    /// The cluster has a place for a retry.
    pub budget: bool,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The outcome stands; nothing asks for a retry.
    Pass,
    /// Once more at once, on a new connection; it counts neither as a try nor against the budget.
    Replay,
    /// Once more after a pause.
    Retry {
        /// The pause.
        backoff: Duration,
    },
    /// The policy asked, and it may not be.
    Suppressed(SuppressReason),
}

/// Decides on one outcome.
pub fn decide(policy: Option<&RetryPolicy>, attempt: &Attempt, outcome: &Outcome<'_>, chance: &Chance) -> Decision {
    if may_replay(attempt, outcome) {
        return Decision::Replay;
    }
    let Some(policy) = policy else { return Decision::Pass };
    let retry_number = attempt.tries_made;
    if retry_number > policy.retries || !asks(policy, attempt, outcome) {
        return Decision::Pass;
    }
    let backoff = draw_backoff(policy, retry_number, chance);
    let reason = if attempt.response_started {
        SuppressReason::ResponseStarted
    } else if !is_harmless(policy, attempt, outcome) {
        SuppressReason::NotIdempotent
    } else if !attempt.body_replayable {
        SuppressReason::BodyTooLarge
    } else if attempt.deadline_left.is_some_and(|left| left <= backoff) {
        SuppressReason::Deadline
    } else if !attempt.budget {
        SuppressReason::Budget
    } else {
        return Decision::Retry { backoff };
    };
    Decision::Suppressed(reason)
}

/// A kept connection was found dead before any byte of an answer, or the endpoint says that it did not process the request.
fn may_replay(attempt: &Attempt, outcome: &Outcome<'_>) -> bool {
    let Outcome::Fault(fault) = outcome else { return false };
    let is_loss = matches!(fault.kind, Kind::SendReset | Kind::ResponseReset | Kind::ResponseClosed);
    ((is_loss && attempt.on_reused) || fault.kind == Kind::StreamRefused)
        && !attempt.replayed
        && !attempt.response_started
        && attempt.body_replayable
        && (attempt.sent == Sent::Nothing || fault.retry == Retry::Safe || attempt.idempotent)
        && attempt.deadline_left.is_none_or(|left| !left.is_zero())
}

/// Repeating it cannot do the work twice, or its owner says that this is harmless.
fn is_harmless(policy: &RetryPolicy, attempt: &Attempt, outcome: &Outcome<'_>) -> bool {
    let has_leave = match outcome {
        Outcome::Fault(fault) => fault.retry == Retry::Safe,
        Outcome::Grpc(_) => true,
        Outcome::Status { .. } => false,
    };
    has_leave || attempt.sent == Sent::Nothing || attempt.idempotent || policy.retry_non_idempotent
}

/// The policy asks for a retry of this outcome.
fn asks(policy: &RetryPolicy, attempt: &Attempt, outcome: &Outcome<'_>) -> bool {
    match *outcome {
        Outcome::Fault(fault) => asks_on_fault(&policy.on, fault.kind, attempt.sent),
        Outcome::Grpc(code) => asks_on_grpc(policy, code),
        Outcome::Status { status, has_header } => asks_on_answer(policy, status, has_header),
    }
}

/// The policy asks for a retry of an answer of that status. When it does not, [`decide`] says [`Decision::Pass`]
/// whatever the try was: a caller that asks this first need not gather the rest.
pub fn asks_on_answer(policy: &RetryPolicy, status: u16, has_header: &dyn Fn(&str) -> bool) -> bool {
    let on = &policy.on;
    (on.any_5xx && (500..=599).contains(&status))
        || (on.gateway_error && (502..=504).contains(&status))
        || (on.retriable_4xx && status == 409)
        || (on.status_codes && policy.status_codes.contains(&status))
        || (on.response_headers && policy.response_headers.iter().any(|name| has_header(name)))
}

/// The policy asks for a retry of a call that ended with that code, as [`asks_on_answer`] does of a status.
pub fn asks_on_grpc(policy: &RetryPolicy, code: GrpcCode) -> bool {
    let on = &policy.on;
    match code {
        GrpcCode::Cancelled => on.grpc_cancelled,
        GrpcCode::DeadlineExceeded => on.grpc_deadline_exceeded,
        GrpcCode::Internal => on.grpc_internal,
        GrpcCode::ResourceExhausted => on.grpc_resource_exhausted,
        GrpcCode::Unavailable => on.grpc_unavailable,
        _ => false,
    }
}

/// Which faults are the upstream's silence. What this proxy refused by itself (limits, no endpoint, its deadline) would be
/// refused again.
fn asks_on_fault(on: &RetryOn, kind: Kind, sent: Sent) -> bool {
    let on_any = on.any_5xx || on.gateway_error || on.reset;
    match kind {
        Kind::ConnectRefused | Kind::ConnectUnreachable | Kind::ConnectTimeout => {
            on_any || on.connect_failure || on.reset_before_request
        }
        Kind::StreamRefused => on_any || on.refused_stream || on.reset_before_request,
        Kind::SendReset
        | Kind::ResponseReset
        | Kind::ResponseClosed
        | Kind::ResponseMalformed
        | Kind::ResponseTooLarge
        | Kind::PerTryTimeout => on_any || (on.reset_before_request && sent == Sent::Nothing),
        _ => false,
    }
}

/// The pause before retry `number` (from 1).
fn draw_backoff(policy: &RetryPolicy, number: u32, chance: &Chance) -> Duration {
    let factor = 1_u32.checked_shl(number).map_or(u32::MAX, |power| power - 1);
    let step = policy.backoff_base.saturating_mul(factor).min(policy.backoff_max);
    Duration::from_nanos(chance.below(u64::try_from(step.as_nanos()).unwrap_or(u64::MAX)))
}
