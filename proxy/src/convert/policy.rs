//! Retries, local rate limits, and the policy that Envoy's messages cannot say (`outrigger.policy.v1`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3 as ratelimit;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::RbacPerRoute;
use envoy_types::pb::envoy::r#type::v3::{HttpStatus, TokenBucket};
use envoy_types::pb::google::protobuf::Any;
use outrigger_xds_proto::policy::v1::{ClusterPolicy, RoutePolicy};

use super::at::{At, at};
use super::read::runtime_fraction_ppm;
use super::{access, header};
use crate::config::{AccessOverride, LocalRateLimit, RetryOn, RetryPolicy, TokenBucketConfig};

const RATE_LIMIT_FILTER: &str = "envoy.filters.http.local_ratelimit";
const TOO_MANY_REQUESTS: u16 = 429;
const MIN_FILL_INTERVAL: Duration = Duration::from_millis(50);
const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);
/// Picks for an endpoint not tried before, unless configured.
const DEFAULT_ENDPOINT_ATTEMPTS: u32 = 5;

/// What a virtual host, a route or a weighted cluster says to single filters.
#[derive(Default)]
pub(super) struct FilterOverrides {
    pub(super) access: Vec<AccessOverride>,
    pub(super) rate_limit: Option<Arc<LocalRateLimit>>,
    pub(super) retry_non_idempotent: Option<bool>,
}

impl FilterOverrides {
    /// What is said about who may call, here or else on the level above.
    pub(super) fn access_over(&self, above: &[AccessOverride]) -> Vec<AccessOverride> {
        let inherited = above.iter().filter(|one| !self.access.iter().any(|own| own.filter == one.filter));
        self.access.iter().chain(inherited).cloned().collect()
    }
}

/// Reads `typed_per_filter_config`. Settings for filters that are not served are ignored: such a filter is in no chain,
/// or the listener would have been refused.
pub(super) fn overrides(at: At<'_, HashMap<String, Any>>, place: &str) -> FilterOverrides {
    let mut found = FilterOverrides::default();
    for (filter, any) in at.entries() {
        if !any.is::<route::FilterConfig>() {
            override_one((filter, &any), place, &mut found);
            continue;
        }
        let Some(config) = any.unpack::<route::FilterConfig>() else { continue };
        let config = any.with(&config);
        if config.value.disabled {
            found.access.push(AccessOverride { filter: filter.into(), rules: None });
            if filter == RATE_LIMIT_FILTER {
                found.rate_limit = Some(Arc::new(no_limit(place)));
            }
        } else if let Some(any) = at!(config.config).set() {
            override_one((filter, &any), place, &mut found);
        }
    }
    found
}

fn override_one((filter, any): (&str, &At<'_, Any>), place: &str, found: &mut FilterOverrides) {
    if any.is::<ratelimit::LocalRateLimit>() {
        if let Some(limit) = any.unpack::<ratelimit::LocalRateLimit>() {
            let limit = local_rate_limit(any.with(&limit), place);
            found.rate_limit = Some(Arc::new(limit.unwrap_or_else(|| no_limit(place))));
        }
    } else if any.is::<RbacPerRoute>() {
        let rules = any.unpack::<RbacPerRoute>().and_then(|rbac| access::of_route(any.with(&rbac)));
        found.access.extend(rules.map(|rules| AccessOverride { filter: filter.into(), rules }));
    } else if any.is::<RoutePolicy>() {
        found.retry_non_idempotent = any.unpack::<RoutePolicy>().and_then(|policy| policy.retry_non_idempotent);
    } else {
        any.ignore();
    }
}

/// A limit that lets everything pass: it hides the limit of the level above, as a filter turned off does.
fn no_limit(place: &str) -> LocalRateLimit {
    let bucket = TokenBucketConfig { max_tokens: u32::MAX, tokens_per_fill: 1, fill_interval: MIN_FILL_INTERVAL };
    LocalRateLimit { rule: place.into(), bucket, enabled_ppm: 0, enforced_ppm: 0, status: TOO_MANY_REQUESTS }
}

/// The settings of Envoy's local rate limit; `None` when they hold no bucket. Buckets are told apart by name and place.
pub(super) fn local_rate_limit(limit: At<'_, ratelimit::LocalRateLimit>, place: &str) -> Option<LocalRateLimit> {
    let name = at!(limit.stat_prefix).named();
    if !limit.value.descriptors.is_empty() {
        at!(limit.descriptors).refuse("descriptors are not served; only one bucket for all requests is");
    }
    if !limit.value.rate_limits.is_empty() {
        at!(limit.rate_limits).refuse("descriptors are not served; only one bucket for all requests is");
    }
    if limit.value.local_rate_limit_per_downstream_connection {
        at!(limit.local_rate_limit_per_downstream_connection)
            .refuse("a bucket per connection is not served; only one for all connections is");
    }
    if let Some(shared) = at!(limit.local_cluster_rate_limit).set() {
        shared.refuse("sharing a limit between proxies is not served");
    }
    let status = at!(limit.status).set().map_or(Some(TOO_MANY_REQUESTS), refusal_status);
    let enabled_ppm = runtime_fraction_ppm(at!(limit.filter_enabled)).unwrap_or(0);
    let enforced_ppm = runtime_fraction_ppm(at!(limit.filter_enforced)).unwrap_or(0);
    let bucket = token_bucket(at!(limit.token_bucket).set()?, 1);
    let rule = format!("{}@{place}", name?).into();
    Some(LocalRateLimit { rule, bucket: bucket?, enabled_ppm, enforced_ppm, status: status? })
}

/// Envoy takes a code below 400 for 429.
fn refusal_status(status: At<'_, HttpStatus>) -> Option<u16> {
    let code = at!(status.code);
    match u16::try_from(*code.value) {
        Ok(known @ 400..=599) => Some(known),
        Ok(0..=399) => Some(TOO_MANY_REQUESTS),
        _ => {
            code.refuse(format_args!("{} is not in 0..=599", code.value));
            None
        }
    }
}

fn token_bucket(bucket: At<'_, TokenBucket>, least_tokens: u32) -> Option<TokenBucketConfig> {
    let max_tokens = bucket.value.max_tokens;
    if max_tokens < least_tokens {
        at!(bucket.max_tokens).refuse(format_args!("{max_tokens} is not in {least_tokens}..={}", u32::MAX));
    }
    let tokens_per_fill = match bucket.value.tokens_per_fill {
        None => Some(1),
        Some(_) => at!(bucket.tokens_per_fill).within(1..=u32::MAX),
    };
    let interval = at!(bucket.fill_interval);
    let fill_interval = interval.required().and_then(|_| interval.span());
    if let Some(given) = fill_interval.filter(|given| *given < MIN_FILL_INTERVAL) {
        interval.refuse(format_args!("{given:?} is below {MIN_FILL_INTERVAL:?}"));
    }
    Some(TokenBucketConfig { max_tokens, tokens_per_fill: tokens_per_fill?, fill_interval: fill_interval? })
}

/// The limit of `outrigger.policy.v1.ClusterPolicy` on all requests to the cluster `name`.
pub(super) fn cluster_policy(any: &At<'_, Any>, name: &str) -> Option<Arc<LocalRateLimit>> {
    if !any.is::<ClusterPolicy>() {
        any.refuse(format_args!("carries {}, not outrigger.policy.v1.ClusterPolicy", any.type_name()));
        return None;
    }
    let policy = any.unpack::<ClusterPolicy>()?;
    let policy = any.with(&policy);
    let bucket = token_bucket(at!(policy.local_rate_limit).set()?, 0)?;
    let rule = if policy.value.rule.is_empty() { "cluster" } else { &policy.value.rule };
    Some(Arc::new(LocalRateLimit {
        rule: format!("{rule}@{name}").into(),
        bucket,
        enabled_ppm: super::read::ALL_PPM,
        enforced_ppm: super::read::ALL_PPM,
        status: TOO_MANY_REQUESTS,
    }))
}

/// A retry policy.
pub(super) fn retry_policy(policy: At<'_, route::RetryPolicy>, retry_non_idempotent: bool) -> Option<RetryPolicy> {
    let on = retry_on(at!(policy.retry_on));
    let retries = at!(policy.num_retries).number().unwrap_or(1);
    let per_try_timeout = at!(policy.per_try_timeout).limit(None);
    let (backoff_base, backoff_max) = backoff(at!(policy.retry_back_off));
    let status_codes = status_codes(at!(policy.retriable_status_codes));
    let response_headers = response_headers(at!(policy.retriable_headers));
    if !policy.value.retriable_request_headers.is_empty() {
        at!(policy.retriable_request_headers).refuse("a condition on request headers is not served");
    }
    let attempts = at!(policy.host_selection_retry_max_attempts);
    let endpoint_attempts = match u32::try_from(*attempts.value) {
        Ok(0) => DEFAULT_ENDPOINT_ATTEMPTS,
        Ok(count) => count,
        Err(_) => {
            attempts.refuse(format_args!("{} is not in 0..={}", attempts.value, u32::MAX));
            return None;
        }
    };
    let previous = at!(policy.retry_host_predicate);
    for predicate in previous.each() {
        // Endpoints that were tried are avoided always; what else a predicate would avoid is not known here.
        if predicate.value.name != "envoy.retry_host_predicates.previous_hosts" {
            predicate.ignore();
        }
    }
    Some(RetryPolicy {
        on,
        retries,
        per_try_timeout,
        status_codes: status_codes?,
        response_headers: response_headers?,
        backoff_base,
        backoff_max,
        endpoint_attempts,
        retry_non_idempotent,
    })
}

fn retry_on(words: At<'_, String>) -> RetryOn {
    let mut on = RetryOn::default();
    for word in words.value.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let flag = match word {
            "5xx" => &mut on.any_5xx,
            "cancelled" => &mut on.grpc_cancelled,
            "connect-failure" => &mut on.connect_failure,
            "deadline-exceeded" => &mut on.grpc_deadline_exceeded,
            "gateway-error" => &mut on.gateway_error,
            "internal" => &mut on.grpc_internal,
            "refused-stream" => &mut on.refused_stream,
            "reset" => &mut on.reset,
            "reset-before-request" => &mut on.reset_before_request,
            "resource-exhausted" => &mut on.grpc_resource_exhausted,
            "retriable-4xx" => &mut on.retriable_4xx,
            "retriable-headers" => &mut on.response_headers,
            "retriable-status-codes" => &mut on.status_codes,
            "unavailable" => &mut on.grpc_unavailable,
            _ => {
                // Envoy skips words it does not know.
                words.ignore();
                continue;
            }
        };
        *flag = true;
    }
    on
}

fn backoff(backoff: At<'_, Option<route::retry_policy::RetryBackOff>>) -> (Duration, Duration) {
    let Some(backoff) = backoff.set() else { return (DEFAULT_BACKOFF, DEFAULT_BACKOFF * 10) };
    let base = at!(backoff.base_interval);
    let base = base.required().and_then(|_| base.positive()).unwrap_or(DEFAULT_BACKOFF);
    let max = at!(backoff.max_interval).positive().unwrap_or(base.saturating_mul(10));
    if max < base {
        at!(backoff.max_interval).refuse(format_args!("{max:?} is below base_interval, {base:?}"));
    }
    (base, max)
}

fn status_codes(codes: At<'_, Vec<u32>>) -> Option<Vec<u16>> {
    let mut read = Vec::with_capacity(codes.value.len());
    for code in codes.each() {
        match u16::try_from(*code.value) {
            Ok(known @ 100..=599) => read.push(known),
            _ => code.refuse(format_args!("{} is not in 100..=599", code.value)),
        }
    }
    read.sort_unstable();
    read.dedup();
    (read.len() <= codes.value.len()).then_some(read)
}

fn response_headers(headers: At<'_, Vec<route::HeaderMatcher>>) -> Option<Vec<Arc<str>>> {
    use route::header_matcher::HeaderMatchSpecifier;
    let mut names = Vec::with_capacity(headers.value.len());
    for matcher in headers.each() {
        let only_present =
            matches!(matcher.value.header_match_specifier, None | Some(HeaderMatchSpecifier::PresentMatch(true)));
        if !only_present || matcher.value.invert_match {
            matcher.refuse("only `present_match: true` is served here");
        }
        names.extend(header::name(at!(matcher.name)));
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::super::rejection::{Findings, ResourceKind};
    use super::*;
    use envoy_types::pb::google::protobuf::{Duration as Span, UInt32Value};

    fn outcome<M, T>(message: &M, read: impl FnOnce(At<'_, M>) -> Option<T>) -> Result<T, String> {
        let findings = Findings::default();
        let value = read(At::root(&findings, message));
        findings.finish(ResourceKind::Cluster, "c", value).result.map_err(|r| r.to_string())
    }

    fn millis(millis: i64) -> Option<Span> {
        Some(Span { seconds: millis / 1000, nanos: i32::try_from(millis % 1000 * 1_000_000).unwrap() })
    }

    fn bucket(max_tokens: u32, tokens_per_fill: Option<u32>, fill_ms: i64) -> TokenBucket {
        TokenBucket {
            max_tokens,
            tokens_per_fill: tokens_per_fill.map(|value| UInt32Value { value }),
            fill_interval: millis(fill_ms),
        }
    }

    #[test]
    fn buckets_keep_to_their_bounds() {
        let read = |bucket: TokenBucket| outcome(&bucket, |at| token_bucket(at, 1));
        assert_eq!(read(bucket(1, None, 50)).unwrap().tokens_per_fill, 1);
        assert!(read(bucket(0, None, 50)).unwrap_err().contains("max_tokens: 0 is not in 1..="));
        assert!(read(bucket(1, Some(0), 50)).unwrap_err().contains("tokens_per_fill: 0 is not in 1..="));
        assert!(read(bucket(1, None, 49)).unwrap_err().contains("fill_interval: 49ms is below 50ms"));
        assert!(
            read(TokenBucket { max_tokens: 1, ..Default::default() }).unwrap_err().contains("fill_interval: is not")
        );
    }

    #[test]
    fn a_limit_is_off_unless_enabled_and_named_by_its_place() {
        let limit = ratelimit::LocalRateLimit {
            stat_prefix: "shop/orders".into(),
            token_bucket: Some(bucket(5, None, 1000)),
            ..Default::default()
        };
        let read = outcome(&limit, |at| local_rate_limit(at, "t/v/r")).unwrap();
        assert_eq!((read.enabled_ppm, read.enforced_ppm, read.status), (0, 0, 429));
        assert_eq!(&*read.rule, "shop/orders@t/v/r");
        for (code, expected) in [(0, Some(429)), (399, Some(429)), (400, Some(400)), (503, Some(503)), (600, None)] {
            let limit = ratelimit::LocalRateLimit { status: Some(HttpStatus { code }), ..limit.clone() };
            assert_eq!(outcome(&limit, |at| local_rate_limit(at, "")).ok().map(|l| l.status), expected, "{code}");
        }
    }

    #[test]
    fn retries_have_envoys_defaults() {
        let policy = route::RetryPolicy {
            retry_on: "5xx, connect-failure,unavailable".into(),
            retriable_status_codes: vec![503, 409, 503],
            ..Default::default()
        };
        let read = outcome(&policy, |at| retry_policy(at, false)).unwrap();
        let expected = RetryOn { any_5xx: true, connect_failure: true, grpc_unavailable: true, ..RetryOn::default() };
        assert_eq!(read.on, expected);
        assert_eq!((read.retries, read.per_try_timeout, read.status_codes), (1, None, vec![409, 503]));
        assert_eq!((read.backoff_base, read.backoff_max), (Duration::from_millis(25), Duration::from_millis(250)));
    }

    #[test]
    fn retry_settings_out_of_bounds_are_named() {
        let backoff = |base, max| route::RetryPolicy {
            retry_back_off: Some(route::retry_policy::RetryBackOff { base_interval: base, max_interval: max }),
            ..Default::default()
        };
        for (policy, text) in [
            (backoff(None, millis(5)), "retry_back_off.base_interval: is not set"),
            (backoff(millis(0), None), "retry_back_off.base_interval: 0s is not above 0s"),
            (backoff(millis(10), millis(5)), "retry_back_off.max_interval: 5ms is below base_interval"),
            (
                route::RetryPolicy { retriable_status_codes: vec![200, 600], ..Default::default() },
                "retriable_status_codes[1]: 600 is not in 100..=599",
            ),
            (
                route::RetryPolicy { host_selection_retry_max_attempts: -1, ..Default::default() },
                "host_selection_retry_max_attempts: -1 is not in 0..=",
            ),
        ] {
            let error = outcome(&policy, |at| retry_policy(at, false)).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}
