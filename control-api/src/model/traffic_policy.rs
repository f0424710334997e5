//! Purpose: our kinds `TrafficPolicy` and `RateLimit`, which attach to routes and upstreams.
//! Shape: a [`TargetRef`] names a whole HTTPRoute or GRPCRoute, one of its rules (`sectionName`), an Upstream, or a
//! Service: all of its ports, or one (`sectionName`).
//! A limit is a [`TokenBucket`]; every target has its own bucket in every proxy. Timeouts and retries
//! on an Upstream hold for calls of its service by name, where no nearer policy sets them.
//! Units: a bucket refills `fill` tokens each `interval`; Envoy's smallest interval is 50 ms.

use std::time::Duration;

use super::cursor::{Cursor, Fields};
use super::object::{Kind, SUBDOMAIN_RULE, is_dns_subdomain};
use super::upstream::{Limits, OutlierDetection, parse_limits, parse_outlier};

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3_600);
/// Envoy refuses a bucket that is filled more often.
const FILL_INTERVAL_MIN: Duration = Duration::from_millis(50);

/// The layer of an upstream that is for its service's port.
pub const PORT_LAYER: &str = "port";

/// What a policy attaches to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TargetRef {
    /// HTTPRoute, GRPCRoute or Upstream.
    pub kind: Kind,
    /// Names a Service, which stands for the upstreams of its ports; the kind is Upstream then.
    pub is_service: bool,
    /// Its name, in the policy's namespace.
    pub name: String,
    /// One rule of a route, or one port of a service.
    pub section: Option<String>,
}

impl TargetRef {
    /// Which part of its target it is for; a port of a service, by number or name, is one and the same.
    #[must_use]
    pub fn layer(&self) -> Option<String> {
        self.section.as_ref().map(|section| if self.is_service { PORT_LAYER.to_owned() } else { section.clone() })
    }
}

/// Timeouts, retries and limits.
#[derive(Debug, Clone, PartialEq)]
pub struct TrafficPolicy {
    /// What it attaches to.
    pub targets: Vec<TargetRef>,
    /// Timeouts, retries and upgrades.
    pub traffic: Traffic,
    /// Local limit.
    pub limit: Option<TokenBucket>,
    /// Replaces the upstream's own, for Upstream targets.
    pub outlier: Option<OutlierDetection>,
    /// Replaces the upstream's own, for Upstream targets.
    pub limits: Option<Limits>,
}

/// How exchanges are made; what is absent is said elsewhere or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Limit of the whole exchange; zero turns it off.
    pub request_timeout: Option<Duration>,
    /// Limit of one try.
    pub try_timeout: Option<Duration>,
    /// Longest life of a stream, whatever moves in it; zero turns it off. It takes the place of the default limit of the
    /// exchange, not of one that is set.
    pub stream_timeout: Option<Duration>,
    /// Most of the deadline that a caller of gRPC may set; zero is all of it. It too takes the place of the default.
    pub grpc_deadline_max: Option<Duration>,
    /// Upgrades that are granted, in lower case.
    pub upgrades: Option<Vec<String>>,
    /// When to try again.
    pub retry: Option<Retry>,
}

impl Traffic {
    /// What is set here, and for the rest what is set farther off.
    #[must_use]
    pub fn over(self, farther: &Self) -> Self {
        Self {
            request_timeout: self.request_timeout.or(farther.request_timeout),
            try_timeout: self.try_timeout.or(farther.try_timeout),
            stream_timeout: self.stream_timeout.or(farther.stream_timeout),
            grpc_deadline_max: self.grpc_deadline_max.or(farther.grpc_deadline_max),
            upgrades: self.upgrades.or_else(|| farther.upgrades.clone()),
            retry: self.retry.or_else(|| farther.retry.clone()),
        }
    }
}

/// When to try again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Envoy's conditions.
    pub on: Vec<&'static str>,
    /// How many more tries.
    pub attempts: u32,
    /// Limit of one try.
    pub try_timeout: Option<Duration>,
    /// Status codes worth another try.
    pub codes: Vec<u32>,
    /// First and longest pause.
    pub backoff: Option<(Duration, Option<Duration>)>,
    /// Whether methods that are not idempotent are tried again too.
    pub non_idempotent: bool,
}

/// A named limit.
#[derive(Debug, Clone, PartialEq)]
pub struct RateLimit {
    /// What it attaches to.
    pub targets: Vec<TargetRef>,
    /// The limit.
    pub limit: TokenBucket,
}

/// A bucket of tokens, one taken per request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBucket {
    /// Its size.
    pub max: u32,
    /// Tokens added at a time.
    pub fill: u32,
    /// How often.
    pub interval: Duration,
}

/// Reads a TrafficPolicy.
pub fn parse_traffic_policy(at: &Cursor<'_>) -> Option<TrafficPolicy> {
    const SETTINGS: [&str; 6] = ["timeouts", "retry", "upgrades", "localRateLimit", "outlierDetection", "limits"];
    let fields = at.fields(&[&["targetRefs"], &SETTINGS[..]].concat())?;
    let targets = parse_targets(&fields);
    if !SETTINGS.iter().any(|name| fields.has(name)) {
        at.refuse(format!("sets nothing; use one of {}", SETTINGS.join(", ")));
    }
    for name in ["outlierDetection", "limits"] {
        if fields.has(name) && targets.iter().any(|target| target.kind != Kind::Upstream) {
            fields.refuse_field(name, "belongs to targets of kind Upstream or Service only");
        }
    }
    let limit = fields.optional("localRateLimit");
    Some(TrafficPolicy {
        targets,
        traffic: parse_traffic(&fields),
        limit: limit.and_then(|at| parse_bucket(&at.fields(&["requests", "per", "burst"])?)),
        outlier: fields.optional("outlierDetection").and_then(|at| parse_outlier(&at)),
        limits: fields.optional("limits").and_then(|at| parse_limits(&at)),
    })
}

/// Reads `timeouts`, `retry` and `upgrades`, beside other fields.
#[must_use]
pub fn parse_traffic(fields: &Fields<'_>) -> Traffic {
    let timeouts =
        fields.optional("timeouts").and_then(|at| at.fields(&["request", "perTry", "stream", "grpcDeadlineMax"]));
    let timeout = |name: &str| timeouts.as_ref()?.optional(name)?.duration(Duration::ZERO..=24 * HOUR);
    let (request_timeout, try_timeout) = (timeout("request"), timeout("perTry"));
    let retry = fields.optional("retry").and_then(|at| parse_retry(&at));
    if let (Some(whole), Some(at)) = (request_timeout.filter(|span| !span.is_zero()), &timeouts)
        && try_timeout.is_some_and(|one| one > whole)
    {
        at.refuse_field("perTry", "must not be longer than timeouts.request");
    }
    if try_timeout.is_some() && retry.as_ref().is_some_and(|retry| retry.try_timeout.is_some()) {
        fields.refuse_field("timeouts", "perTry is also set as retry.perTryTimeout; keep one");
    }
    Traffic {
        request_timeout,
        try_timeout,
        stream_timeout: timeout("stream"),
        grpc_deadline_max: timeout("grpcDeadlineMax"),
        upgrades: fields.has("upgrades").then(|| parse_upgrades(fields)),
        retry,
    }
}

fn parse_upgrades(fields: &Fields<'_>) -> Vec<String> {
    let is_protocol = |text: &str| {
        (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._/+".contains(&b))
    };
    let mut upgrades: Vec<String> = Vec::new();
    for at in fields.list("upgrades", 0..=16) {
        let Some(word) = at.text(is_protocol, "must be the word of an Upgrade header, like websocket") else {
            continue;
        };
        let word = word.to_ascii_lowercase();
        if word == "h2c" {
            at.refuse_with("would tunnel requests past every rule", "set appProtocol: h2c on the Upstream");
        } else if upgrades.contains(&word) {
            at.refuse("is in the list twice");
        } else {
            upgrades.push(word);
        }
    }
    upgrades
}

/// Reads a RateLimit.
pub fn parse_rate_limit(at: &Cursor<'_>) -> Option<RateLimit> {
    let fields = at.fields(&["targetRefs", "requests", "per", "burst", "scope"])?;
    if let Some(scope) = fields.optional("scope") {
        let _ = scope.choice(&[("Local", ())]);
    }
    let targets = parse_targets(&fields);
    Some(RateLimit { targets, limit: parse_bucket(&fields)? })
}

fn parse_targets(fields: &Fields<'_>) -> Vec<TargetRef> {
    let [http, grpc] = [Kind::HttpRoute, Kind::GrpcRoute].map(|kind| (kind.as_str(), (kind, false)));
    parse_targets_of(fields, &[&[http, grpc], &OWN_TARGETS[..]].concat())
}

/// Targets that are Upstreams or Services.
pub(super) fn parse_own_targets(fields: &Fields<'_>) -> Vec<TargetRef> {
    parse_targets_of(fields, &OWN_TARGETS)
}

/// The kinds of target that have endpoints, and whether each is a Service.
const OWN_TARGETS: [(&str, (Kind, bool)); 2] =
    [("Upstream", (Kind::Upstream, false)), ("Service", (Kind::Upstream, true))];

fn parse_targets_of(fields: &Fields<'_>, kinds: &[(&str, (Kind, bool))]) -> Vec<TargetRef> {
    let items = fields.required("targetRefs").map(|at| at.items(1..=64)).unwrap_or_default();
    let mut targets = Vec::new();
    for at in items {
        let Some(target) = parse_target(&at, kinds) else { continue };
        if targets.contains(&target) {
            at.refuse("this target is in the list twice");
        }
        targets.push(target);
    }
    targets
}

fn parse_target(at: &Cursor<'_>, kinds: &[(&str, (Kind, bool))]) -> Option<TargetRef> {
    let fields = at.fields(&["group", "kind", "name", "sectionName"])?;
    let (kind, is_service) = match fields.required("kind").and_then(|at| at.choice(kinds)) {
        Some((kind, is_service)) => (Some(kind), is_service),
        None => (None, false),
    };
    if let (Some(kind), Some(group)) = (kind, fields.optional("group")) {
        let own = if is_service { "" } else { kind.api_version().trim_end_matches("/v1") };
        let _ = group.choice(&[(own, ())]);
    }
    let section = fields.optional("sectionName");
    if section.is_some() && kind == Some(Kind::Upstream) && !is_service {
        fields.refuse_field("sectionName", "an Upstream has no sections; leave it out");
    }
    let name = fields.required("name")?.text(is_dns_subdomain, SUBDOMAIN_RULE);
    let section = section.and_then(|at| at.text(is_dns_subdomain, SUBDOMAIN_RULE));
    Some(TargetRef { kind: kind?, is_service, name: name?, section })
}

/// The retry conditions we know, in Envoy's spelling.
const RETRY_ON: [(&str, &str); 13] = [
    ("5xx", "5xx"),
    ("gateway-error", "gateway-error"),
    ("connect-failure", "connect-failure"),
    ("reset", "reset"),
    ("reset-before-request", "reset-before-request"),
    ("refused-stream", "refused-stream"),
    ("retriable-4xx", "retriable-4xx"),
    ("retriable-status-codes", "retriable-status-codes"),
    ("cancelled", "cancelled"),
    ("deadline-exceeded", "deadline-exceeded"),
    ("internal", "internal"),
    ("resource-exhausted", "resource-exhausted"),
    ("unavailable", "unavailable"),
];

fn parse_retry(at: &Cursor<'_>) -> Option<Retry> {
    let fields = at.fields(&["on", "attempts", "perTryTimeout", "statusCodes", "backoff", "nonIdempotent"])?;
    let mut on: Vec<&'static str> = Vec::new();
    for at in fields.list("on", 1..=RETRY_ON.len()) {
        match at.choice(&RETRY_ON) {
            Some(word) if on.contains(&word) => at.refuse("is in the list twice"),
            Some(word) => on.push(word),
            None => {}
        }
    }
    if !fields.has("on") {
        on = vec!["connect-failure", "refused-stream", "gateway-error"];
    }
    let codes: Vec<u32> = fields.list("statusCodes", 1..=64).iter().filter_map(|at| at.integer32(400..=599)).collect();
    if !codes.is_empty() && !on.contains(&"retriable-status-codes") {
        on.push("retriable-status-codes");
    }
    if codes.is_empty() && on.contains(&"retriable-status-codes") && !fields.has("statusCodes") {
        fields.refuse_field("statusCodes", "is required with retriable-status-codes");
    }
    let attempts = match fields.optional("attempts") {
        Some(at) => at.integer32(0..=50)?,
        None => 1,
    };
    Some(Retry {
        on,
        attempts,
        try_timeout: fields.optional("perTryTimeout").and_then(|at| at.duration(MS..=24 * HOUR)),
        codes,
        backoff: fields.optional("backoff").and_then(|at| parse_backoff(&at)),
        non_idempotent: fields.optional("nonIdempotent").and_then(|at| at.boolean()).unwrap_or(false),
    })
}

fn parse_backoff(at: &Cursor<'_>) -> Option<(Duration, Option<Duration>)> {
    let fields = at.fields(&["base", "max"])?;
    let base = fields.required("base")?.duration(MS..=HOUR);
    let max = fields.optional("max").and_then(|at| at.duration(MS..=HOUR));
    if let (Some(base), Some(max)) = (base, max)
        && max < base
    {
        fields.refuse_field("max", "must not be shorter than base");
    }
    Some((base?, max))
}

fn parse_bucket(fields: &Fields<'_>) -> Option<TokenBucket> {
    let requests = fields.required("requests").and_then(|at| at.integer32(1..=u32::MAX));
    let per = match fields.optional("per") {
        Some(at) => at.duration(FILL_INTERVAL_MIN..=24 * HOUR),
        None => Some(Duration::from_secs(1)),
    };
    let burst = match fields.optional("burst") {
        Some(at) => at.integer32(1..=u32::MAX),
        None => requests,
    };
    let (requests, per, burst) = (requests?, per?, burst?);
    if burst >= requests {
        return Some(TokenBucket { max: burst, fill: requests, interval: per });
    }
    // A bucket smaller than one fill would cut the rate, so it is filled in smaller steps.
    let interval = per.mul_f64(f64::from(burst) / f64::from(requests));
    if interval < FILL_INTERVAL_MIN {
        fields.refuse_field(
            "burst",
            "is too small for this rate: it would have to be refilled more often than every 50ms",
        );
        return None;
    }
    Some(TokenBucket { max: burst, fill: burst, interval })
}
