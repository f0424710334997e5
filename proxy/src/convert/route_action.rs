//! What a route does.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as proto;
use proto::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
use proto::route_action::{ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier};

use super::at::{At, at};
use super::matcher::substitution;
use super::read::inline_bytes;
use super::route::RouteDefaults;
use super::{hash_policy, header, http2, policy};
use crate::config::{
    ClusterTarget, DirectResponse, ForwardAction, PathRewrite, Redirect, RetryPolicy, RouteAction, WeightedCluster,
};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// Envoy's default of `max_direct_response_body_size_bytes`.
const MAX_BODY_BYTES: usize = 4096;

pub(super) fn action(route: At<'_, proto::Route>, defaults: &RouteDefaults<'_>) -> Option<RouteAction> {
    use proto::route::Action;
    match &route.value.action {
        Some(Action::Route(action)) => forward(route.field("route", action), defaults).map(RouteAction::Forward),
        Some(Action::Redirect(action)) => redirect(route.field("redirect", action)).map(RouteAction::Redirect),
        Some(Action::DirectResponse(action)) => direct(route.field("direct_response", action)).map(RouteAction::Direct),
        Some(Action::FilterAction(action)) => {
            route.field("filter_action", action).refuse("is not served; use route, redirect or direct_response");
            None
        }
        Some(Action::NonForwardingAction(action)) => {
            route
                .field("non_forwarding_action", action)
                .refuse("is for gRPC servers only; use route, redirect or direct_response");
            None
        }
        None => {
            route.refuse("has no action; one of route, redirect, direct_response is required");
            None
        }
    }
}

fn forward(action: At<'_, proto::RouteAction>, defaults: &RouteDefaults<'_>) -> Option<ForwardAction> {
    let target = target(&action);
    let not_found = at!(action.cluster_not_found_response_code).one_of::<ClusterNotFoundResponseCode>();
    let stream = stream_limits(action);
    let timeout = at!(action.timeout).limit(stream.default_timeout);
    let upgrades = http2::route_upgrades(at!(action.upgrade_configs));
    let idle_timeout = at!(action.idle_timeout).span();
    let retry = match at!(action.retry_policy).set() {
        Some(policy) => policy::retry_policy(policy, defaults.retry_non_idempotent),
        None => defaults
            .retry
            .map(|retry| RetryPolicy { retry_non_idempotent: defaults.retry_non_idempotent, ..retry.clone() }),
    };
    let path_rewrite = path_rewrite(&action);
    let host_rewrite = host_rewrite(&action);
    let hash = hash_policy::hash_policies(&at!(action.hash_policy));
    if action.value.priority != 0 {
        at!(action.priority).refuse("only the DEFAULT priority is served");
    }
    if !action.value.request_mirror_policies.is_empty() {
        at!(action.request_mirror_policies).ignore();
    }
    Some(ForwardAction {
        target: target?,
        cluster_not_found_status: match not_found? {
            ClusterNotFoundResponseCode::ServiceUnavailable => 503,
            ClusterNotFoundResponseCode::NotFound => 404,
            ClusterNotFoundResponseCode::InternalServerError => 500,
        },
        timeout,
        idle_timeout,
        retry: retry.map(Arc::new),
        path_rewrite,
        host_rewrite,
        hash,
        max_stream_duration: stream.max_duration,
        grpc_timeout_max: stream.grpc_timeout_max,
        upgrades,
    })
}

/// How long a stream may live.
struct StreamLimits {
    /// Of a route that says nothing of its timeout.
    default_timeout: Option<Duration>,
    max_duration: Option<Duration>,
    grpc_timeout_max: Option<Duration>,
}

/// Envoy drops a route's timeout once `max_stream_duration` is there. Here only the default goes: what is written holds.
fn stream_limits(action: At<'_, proto::RouteAction>) -> StreamLimits {
    let older = at!(action.max_grpc_timeout);
    let Some(limits) = at!(action.max_stream_duration).set() else {
        let default_timeout = Some(DEFAULT_TIMEOUT);
        return StreamLimits { default_timeout, max_duration: None, grpc_timeout_max: older.limit(None) };
    };
    let max = at!(limits.grpc_timeout_header_max);
    StreamLimits {
        default_timeout: None,
        max_duration: at!(limits.max_stream_duration).limit(None),
        grpc_timeout_max: if max.value.is_some() { max.limit(None) } else { older.limit(None) },
    }
}

fn target(action: &At<'_, proto::RouteAction>) -> Option<ClusterTarget> {
    match &action.value.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => {
            let name = action.field("cluster", name).named()?;
            Some(ClusterTarget::One(name.into(), None))
        }
        Some(ClusterSpecifier::ClusterHeader(name)) => {
            header::matched_name(action.field("cluster_header", name)).map(ClusterTarget::Header)
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => weights(&action.field("weighted_clusters", weighted)),
        Some(ClusterSpecifier::ClusterSpecifierPlugin(name)) => {
            action.field("cluster_specifier_plugin", name).refuse("is not served; use cluster or weighted_clusters");
            None
        }
        Some(ClusterSpecifier::InlineClusterSpecifierPlugin(plugin)) => {
            action
                .field("inline_cluster_specifier_plugin", plugin)
                .refuse("is not served; use cluster or weighted_clusters");
            None
        }
        None => {
            action.refuse("names no cluster; one of cluster, cluster_header, weighted_clusters is required");
            None
        }
    }
}

fn weights(weighted: &At<'_, proto::WeightedCluster>) -> Option<ClusterTarget> {
    let weighted = *weighted;
    let clusters = at!(weighted.clusters);
    let mut choices = Vec::with_capacity(clusters.value.len());
    let mut sum = 0_u64;
    for choice in clusters.each() {
        let weight = at!(choice.weight).number().unwrap_or(0);
        sum += u64::from(weight);
        if !choice.value.cluster_header.is_empty() {
            at!(choice.cluster_header).refuse("a cluster named by a header is not served here; use name");
            continue;
        }
        if let Some(rewrite) = &choice.value.host_rewrite_specifier {
            choice.with(rewrite).refuse("host_rewrite_literal is not served here; set it on the route");
        }
        let overrides = policy::overrides(at!(choice.typed_per_filter_config), "");
        if overrides.access.iter().any(|one| one.rules.is_some()) {
            at!(choice.typed_per_filter_config).refuse("RBAC by cluster is not served; set it on the route");
        }
        if overrides.rate_limit.is_some() {
            at!(choice.typed_per_filter_config)
                .refuse("a limit on one weighted cluster is not served; set it on the route");
        }
        let Some(name) = at!(choice.name).named() else { continue };
        choices.push(WeightedCluster {
            cluster: name.into(),
            index: None,
            weight,
            request_edits: header::edits(at!(choice.request_headers_to_add), at!(choice.request_headers_to_remove)),
            response_edits: header::edits(at!(choice.response_headers_to_add), at!(choice.response_headers_to_remove)),
        });
    }
    match u32::try_from(sum) {
        Ok(total @ 1..) => Some(ClusterTarget::Weighted { choices, total }),
        _ => {
            clusters.refuse(format_args!("the sum of weights, {sum}, is not in 1..={}", u32::MAX));
            None
        }
    }
}

fn path_rewrite(action: &At<'_, proto::RouteAction>) -> Option<PathRewrite> {
    let action = *action;
    let given = [
        !action.value.prefix_rewrite.is_empty(),
        action.value.regex_rewrite.is_some(),
        !action.value.path_rewrite.is_empty(),
        action.value.path_rewrite_policy.is_some(),
    ];
    if given.into_iter().filter(|is_set| *is_set).count() > 1 {
        action.refuse("only one of prefix_rewrite, regex_rewrite, path_rewrite, path_rewrite_policy may be set");
        return None;
    }
    if let Some(policy) = at!(action.path_rewrite_policy).set() {
        policy.refuse("path templates are not served; use regex_rewrite");
    }
    if !action.value.prefix_rewrite.is_empty() {
        return path_text(at!(action.prefix_rewrite)).map(PathRewrite::Prefix);
    }
    if !action.value.path_rewrite.is_empty() {
        return formatted_path(at!(action.path_rewrite)).map(PathRewrite::Full);
    }
    let (pattern, with) = substitution(at!(action.regex_rewrite).set()?)?;
    Some(PathRewrite::Regex { pattern, with })
}

/// Part of a request target: anything else would let configuration break the request line.
fn path_text(at: At<'_, String>) -> Option<Arc<str>> {
    if at.value.bytes().any(|b| b <= b' ' || b >= 0x7f) {
        at.refuse(format_args!("{:?} has blanks or bytes that a path cannot carry", at.value));
        return None;
    }
    Some(at.value.as_str().into())
}

fn formatted_path(at: At<'_, String>) -> Option<Arc<str>> {
    let plain = header::format(at)?.as_ref().to_owned();
    path_text(at.with(&plain))
}

fn host_rewrite(action: &At<'_, proto::RouteAction>) -> Option<Arc<str>> {
    match action.value.host_rewrite_specifier.as_ref()? {
        HostRewriteSpecifier::HostRewriteLiteral(literal) => host(action.field("host_rewrite_literal", literal)),
        HostRewriteSpecifier::HostRewrite(format) => {
            let at = action.field("host_rewrite", format);
            let plain = header::format(at)?.as_ref().to_owned();
            host(at.with(&plain))
        }
        HostRewriteSpecifier::AutoHostRewrite(flag) => {
            if flag.value {
                action.field("auto_host_rewrite", flag).refuse("is not served; use host_rewrite_literal");
            }
            None
        }
        HostRewriteSpecifier::HostRewriteHeader(name) => {
            action.field("host_rewrite_header", name).refuse("is not served; use host_rewrite_literal");
            None
        }
        HostRewriteSpecifier::HostRewritePathRegex(regex) => {
            action.field("host_rewrite_path_regex", regex).refuse("is not served; use host_rewrite_literal");
            None
        }
    }
}

/// An authority.
fn host(at: At<'_, String>) -> Option<Arc<str>> {
    let is_host = !at.value.is_empty()
        && at.value.len() <= 1024
        && at.value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+,;=".contains(&b));
    if !is_host {
        at.refuse(format_args!("{:?} is not a host", at.value));
        return None;
    }
    Some(at.value.as_str().into())
}

fn redirect(action: At<'_, proto::RedirectAction>) -> Option<Redirect> {
    let status = match at!(action.response_code).one_of::<RedirectResponseCode>()? {
        RedirectResponseCode::MovedPermanently => 301,
        RedirectResponseCode::Found => 302,
        RedirectResponseCode::SeeOther => 303,
        RedirectResponseCode::TemporaryRedirect => 307,
        RedirectResponseCode::PermanentRedirect => 308,
    };
    let scheme: Option<Arc<str>> = match &action.value.scheme_rewrite_specifier {
        None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => None,
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => {
            let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
            if !is_scheme {
                action.field("scheme_redirect", scheme).refuse(format_args!("{scheme:?} is not a scheme"));
            }
            Some(scheme.as_str().into())
        }
    };
    let port = u16::try_from(action.value.port_redirect);
    if port.is_err() {
        at!(action.port_redirect).refuse(format_args!("{} is not in 0..=65535", action.value.port_redirect));
    }
    let path = match &action.value.path_rewrite_specifier {
        None => None,
        Some(PathRewriteSpecifier::PathRedirect(path)) => {
            path_text(action.field("path_redirect", path)).map(PathRewrite::Full)
        }
        Some(PathRewriteSpecifier::PathRewrite(path)) => {
            formatted_path(action.field("path_rewrite", path)).map(PathRewrite::Full)
        }
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            path_text(action.field("prefix_rewrite", prefix)).map(PathRewrite::Prefix)
        }
        Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => substitution(action.field("regex_rewrite", rewrite))
            .map(|(pattern, with)| PathRewrite::Regex { pattern, with }),
    };
    let host = match action.value.host_redirect.as_str() {
        "" => None,
        _ => host(at!(action.host_redirect)),
    };
    let port = port.ok().filter(|port| *port > 0);
    Some(Redirect { status, scheme, host, port, path, strip_query: action.value.strip_query })
}

fn direct(action: At<'_, proto::DirectResponseAction>) -> Option<DirectResponse> {
    let status = u16::try_from(action.value.status).ok().filter(|status| (200..=599).contains(status));
    if status.is_none() {
        at!(action.status).refuse(format_args!("{} is not in 200..=599", action.value.status));
    }
    let body = match at!(action.body).set() {
        None => Some(Arc::default()),
        Some(source) => inline_bytes(source),
    };
    if let Some(body) = body.as_ref().filter(|body| body.len() > MAX_BODY_BYTES) {
        at!(action.body).refuse(format_args!("{} bytes; at most {MAX_BODY_BYTES} are allowed", body.len()));
    }
    if let Some(format) = at!(action.body_format).set() {
        format.refuse("is not served; use body");
    }
    Some(DirectResponse { status: status?, body: body? })
}
