//! Purpose: one match of one rule → one Envoy route.
//! Limits: Envoy keeps one bucket per route, so a limit on a rule with several matches, or on a
//! whole route, counts each match by itself.

use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HostRewriteSpecifier, MaxStreamDuration, UpgradeConfig,
};
use envoy_types::pb::envoy::config::route::v3::route_match::{GrpcRouteMatchOptions, PathSpecifier};
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::config::route::v3::{
    QueryParameterMatcher, RedirectAction, RetryPolicy, Route, RouteAction, RouteMatch, WeightedCluster,
};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use envoy_types::util::pack_any;

use super::carrier;
use super::effective::{Attached, Layer};
use super::proto::{always, bucket, header_matcher, number, regex, span, string_matcher};
use crate::model::http_route::{BackendRef, Filter, HeaderEdits, Match, PathEdit, PathMatch, Redirect, Rewrite, Rule};
use crate::model::upstream::AppProtocol;
use crate::model::{Kind, ObjectKey};

/// Name of Envoy's local rate limit filter.
pub(super) const LOCAL_RATE_LIMIT: &str = "envoy.filters.http.local_ratelimit";
/// How often another endpoint is sought before one that was tried is taken again; as Istio.
const OTHER_ENDPOINT_ATTEMPTS: i64 = 5;

/// One match of a rule, and where it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct RuleAt<'a> {
    pub(super) route: &'a ObjectKey,
    pub(super) rule: &'a Rule,
    pub(super) rule_index: usize,
    pub(super) index: usize,
}

/// The route of a service that none is bound to.
pub(super) fn build_default_route(upstream: &ObjectKey, protocol: AppProtocol, attached: &Attached<'_>) -> Route {
    let rule = Rule {
        name: None,
        matches: Vec::new(),
        filters: Vec::new(),
        backends: vec![BackendRef {
            is_service: false,
            namespace: upstream.namespace.clone(),
            name: upstream.name.clone(),
            port: None,
            weight: 1,
        }],
        request_timeout: None,
        try_timeout: None,
        retry: None,
    };
    let layer = attached.for_rule(upstream, &rule, Some(upstream));
    // The limit of an upstream is enforced at its cluster, not here.
    let layer = Layer { limit: None, ..layer };
    let mut route = Route {
        name: format!("{}/{}/default", upstream.namespace, upstream.name),
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(Action::Route(build_action(&rule.backends, &layer, protocol == AppProtocol::Grpc, attached))),
        ..Route::default()
    };
    add_policies(&mut route, upstream, &layer);
    route
}

/// The route of one match; `None` when the rule leads nowhere.
pub(super) fn build_route(at: &RuleAt<'_>, upstream: Option<&ObjectKey>, attached: &Attached<'_>) -> Option<Route> {
    let RuleAt { route: key, rule, rule_index, index } = *at;
    let one = rule.matches.get(index)?;
    let layer = attached.for_rule(key, rule, upstream);
    let section = rule.name.clone().unwrap_or_else(|| rule_index.to_string());
    let mut name = match key.kind {
        // An HTTPRoute may have the same name.
        Kind::GrpcRoute => format!("grpc/{}/{}/{section}", key.namespace, key.name),
        _ => format!("{}/{}/{section}", key.namespace, key.name),
    };
    if rule.matches.len() > 1 {
        name.push_str(&format!("/{index}"));
    }
    let mut route = Route { name, r#match: Some(build_match(one)), ..Route::default() };
    let mut action = build_action(&rule.backends, &layer, one.is_grpc, attached);
    let mut redirect = None;
    for filter in &rule.filters {
        match filter {
            Filter::Redirect(target) => redirect = Some(build_redirect(target, one)),
            Filter::Rewrite(rewrite) => rewrite_action(&mut action, rewrite, one),
            Filter::RequestHeaders(edits) => {
                route.request_headers_to_add = build_edits(edits);
                route.request_headers_to_remove = edits.remove.clone();
            }
            Filter::ResponseHeaders(edits) => {
                route.response_headers_to_add = build_edits(edits);
                route.response_headers_to_remove = edits.remove.clone();
            }
        }
    }
    route.action = Some(redirect.map_or(Action::Route(action), Action::Redirect));
    add_policies(&mut route, key, &layer);
    Some(route)
}

fn add_policies(route: &mut Route, key: &ObjectKey, layer: &Layer) {
    let retry = layer.retry.as_ref().map(|retry| (&retry.source, retry.value.non_idempotent));
    let any = carrier::route_policy(key, retry);
    route.typed_per_filter_config.insert(carrier::ROUTE_POLICY.to_owned(), any);
    if let Some(limit) = &layer.limit {
        let source = &limit.source;
        let config = LocalRateLimit {
            stat_prefix: format!("{}/{}/{}", source.kind, source.namespace, source.name),
            token_bucket: Some(bucket(&limit.value)),
            filter_enabled: Some(always()),
            filter_enforced: Some(always()),
            ..LocalRateLimit::default()
        };
        route.typed_per_filter_config.insert(LOCAL_RATE_LIMIT.to_owned(), pack_any(config));
    }
}

fn build_match(one: &Match) -> RouteMatch {
    let path = match &one.path {
        PathMatch::Exact(path) => PathSpecifier::Path(path.clone()),
        PathMatch::Regex(pattern) => PathSpecifier::SafeRegex(regex(pattern)),
        PathMatch::Prefix(path) => match path.trim_end_matches('/') {
            "" => PathSpecifier::Prefix("/".to_owned()),
            segments => PathSpecifier::PathSeparatedPrefix(segments.to_owned()),
        },
    };
    let method = one.method.map(|method| header_matcher(":method", method, false));
    let headers = one.headers.iter().map(|wanted| header_matcher(&wanted.name, &wanted.value, wanted.is_regex));
    let query = one.query.iter().map(|wanted| QueryParameterMatcher {
        name: wanted.name.clone(),
        query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(string_matcher(
            &wanted.value,
            wanted.is_regex,
        ))),
    });
    RouteMatch {
        path_specifier: Some(path),
        headers: method.into_iter().chain(headers).collect(),
        query_parameters: query.collect(),
        grpc: one.is_grpc.then(GrpcRouteMatchOptions::default),
        ..RouteMatch::default()
    }
}

fn build_action(backends: &[BackendRef], layer: &Layer, is_grpc: bool, attached: &Attached<'_>) -> RouteAction {
    let name_of = |backend: &BackendRef| attached.backend_cluster(backend);
    let used: Vec<&BackendRef> = backends.iter().filter(|backend| backend.weight > 0).collect();
    let specifier = match used.as_slice() {
        [only] => ClusterSpecifier::Cluster(name_of(only)),
        several => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several
                .iter()
                .map(|backend| ClusterWeight {
                    name: name_of(backend),
                    weight: Some(number(backend.weight)),
                    ..ClusterWeight::default()
                })
                .collect(),
            ..WeightedCluster::default()
        }),
    };
    RouteAction {
        cluster_specifier: Some(specifier),
        timeout: layer.traffic.request_timeout.map(span),
        max_stream_duration: build_stream_limits(layer, is_grpc),
        upgrade_configs: layer.traffic.upgrades.iter().flatten().map(|kind| build_upgrade(kind)).collect(),
        retry_policy: build_retry(layer),
        ..RouteAction::default()
    }
}

/// A call of gRPC has the deadline that its caller set, and none where it set none, unless policy gives a timeout: then
/// that holds. Envoy knows only one of the two, since `max_stream_duration` hides a route's timeout from it.
fn build_stream_limits(layer: &Layer, is_grpc: bool) -> Option<MaxStreamDuration> {
    let honours_callers = is_grpc && layer.traffic.request_timeout.is_none();
    if !honours_callers && layer.traffic.stream_timeout.is_none() && layer.traffic.grpc_deadline_max.is_none() {
        return None;
    }
    Some(MaxStreamDuration {
        max_stream_duration: layer.traffic.stream_timeout.map(span),
        // Zero: all of it.
        grpc_timeout_header_max: Some(span(layer.traffic.grpc_deadline_max.unwrap_or_default())),
        grpc_timeout_header_offset: None,
    })
}

pub(super) fn build_upgrade(kind: &str) -> UpgradeConfig {
    UpgradeConfig { upgrade_type: kind.to_owned(), ..UpgradeConfig::default() }
}

fn build_retry(layer: &Layer) -> Option<RetryPolicy> {
    let Some(retry) = layer.retry.as_ref().map(|retry| &retry.value).filter(|r| r.attempts > 0) else {
        // The limit of one try lives in the retry policy, so it needs one even without retries.
        return layer.traffic.try_timeout.map(|timeout| RetryPolicy {
            num_retries: Some(number(0)),
            per_try_timeout: Some(span(timeout)),
            ..RetryPolicy::default()
        });
    };
    let previous = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(pack_any(PreviousHostsPredicate {}))),
    };
    Some(RetryPolicy {
        retry_on: retry.on.join(","),
        num_retries: Some(number(retry.attempts)),
        per_try_timeout: layer.traffic.try_timeout.or(retry.try_timeout).map(span),
        retriable_status_codes: retry.codes.clone(),
        retry_back_off: retry
            .backoff
            .map(|(base, max)| RetryBackOff { base_interval: Some(span(base)), max_interval: max.map(span) }),
        retry_host_predicate: vec![previous],
        host_selection_retry_max_attempts: OTHER_ENDPOINT_ATTEMPTS,
        ..RetryPolicy::default()
    })
}

fn build_edits(edits: &HeaderEdits) -> Vec<HeaderValueOption> {
    let option = |(name, value): &(String, String), action: HeaderAppendAction| HeaderValueOption {
        header: Some(HeaderValue {
            key: name.clone(),
            // A single % starts a substitution there.
            value: value.replace('%', "%%"),
            ..HeaderValue::default()
        }),
        append_action: action.into(),
        ..HeaderValueOption::default()
    };
    let set = edits.set.iter().map(|pair| option(pair, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = edits.add.iter().map(|pair| option(pair, HeaderAppendAction::AppendIfExistsOrAdd));
    set.chain(add).collect()
}

/// How a matched prefix is replaced without a missing or doubled slash.
enum PrefixEdit {
    Plain(String),
    Regex(RegexMatchAndSubstitute),
}

fn prefix_edit(one: &Match, replacement: &str) -> PrefixEdit {
    let matched = match &one.path {
        PathMatch::Prefix(path) => path.trim_end_matches('/'),
        PathMatch::Exact(_) | PathMatch::Regex(_) => "",
    };
    let replacement = replacement.trim_end_matches('/');
    match (matched, replacement) {
        ("", replacement) => PrefixEdit::Plain(format!("{replacement}/")),
        (matched, "") => PrefixEdit::Regex(substitute(&format!("^{}/*", regex::escape(matched)), "/")),
        (_, replacement) => PrefixEdit::Plain(replacement.to_owned()),
    }
}

fn substitute(pattern: &str, replacement: &str) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute { pattern: Some(regex(pattern)), substitution: replacement.replace('\\', "\\\\") }
}

fn rewrite_action(action: &mut RouteAction, rewrite: &Rewrite, one: &Match) {
    if let Some(hostname) = &rewrite.hostname {
        action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(hostname.clone()));
    }
    match &rewrite.path {
        Some(PathEdit::Full(path)) => action.regex_rewrite = Some(substitute("^/.*$", path)),
        Some(PathEdit::Prefix(replacement)) => match prefix_edit(one, replacement) {
            PrefixEdit::Plain(prefix) => action.prefix_rewrite = prefix,
            PrefixEdit::Regex(regex) => action.regex_rewrite = Some(regex),
        },
        None => {}
    }
}

fn build_redirect(redirect: &Redirect, one: &Match) -> RedirectAction {
    let code = match redirect.status {
        301 => RedirectResponseCode::MovedPermanently,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::Found,
    };
    let path = redirect.path.as_ref().map(|edit| match edit {
        PathEdit::Full(path) => PathRewriteSpecifier::PathRedirect(path.clone()),
        PathEdit::Prefix(replacement) => match prefix_edit(one, replacement) {
            PrefixEdit::Plain(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix),
            PrefixEdit::Regex(regex) => PathRewriteSpecifier::RegexRewrite(regex),
        },
    });
    RedirectAction {
        host_redirect: redirect.hostname.clone().unwrap_or_default(),
        port_redirect: redirect.port.map_or(0, u32::from),
        response_code: code.into(),
        scheme_rewrite_specifier: redirect
            .scheme
            .map(|scheme| SchemeRewriteSpecifier::SchemeRedirect(scheme.to_owned())),
        path_rewrite_specifier: path,
        ..RedirectAction::default()
    }
}
