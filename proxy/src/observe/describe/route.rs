//! Route tables as readable JSON.

use serde_json::{Value, json};

use super::{edits, percent, rate_limit, retry, span, upgrades};
use crate::config::{
    ClusterTarget, ForwardAction, HashPolicy, HashSource, HeaderMatch, HeaderTest, PathMatch, PathRewrite, QueryMatch,
    Redirect, Route, RouteAction, RouteMatch, RouteTable, TextMatch, VirtualHost,
};

/// A whole table.
pub fn route_table(table: &RouteTable) -> Value {
    json!({
        "name": table.name.as_str(),
        "ignore_port_in_host": table.ignore_port_in_host,
        "request_edits": edits(&table.request_edits),
        "response_edits": edits(&table.response_edits),
        "virtual_hosts": table.virtual_hosts.iter().map(virtual_host).collect::<Vec<_>>(),
    })
}

fn virtual_host(host: &VirtualHost) -> Value {
    json!({
        "name": &*host.name,
        "domains": super::texts(&host.domains),
        "request_edits": edits(&host.request_edits),
        "response_edits": edits(&host.response_edits),
        "rate_limit": host.rate_limit.as_deref().map(rate_limit),
        "routes": host.routes.iter().map(|one| route(one)).collect::<Vec<_>>(),
    })
}

/// One route.
pub fn route(route: &Route) -> Value {
    json!({
        "name": &*route.name,
        "match": matches(&route.matches),
        "action": action(&route.action),
        "rate_limit": route.rate_limit.as_deref().map(rate_limit),
        "request_edits": edits(&route.request_edits),
        "response_edits": edits(&route.response_edits),
    })
}

/// A match, part by part.
pub fn matches(matches: &RouteMatch) -> Value {
    let (kind, text) = path(&matches.path);
    json!({
        "path": { kind: text },
        "case_sensitive": matches.case_sensitive,
        "headers": matches.headers.iter().map(header_match).collect::<Vec<_>>(),
        "query": matches.query.iter().map(query_match).collect::<Vec<_>>(),
        "percent": percent(matches.fraction_ppm),
    })
}

/// A match in one line, for a table: `prefix /cart · 2 headers`.
pub fn matches_line(matches: &RouteMatch) -> String {
    let (kind, text) = path(&matches.path);
    let mut line = format!("{kind} {text}");
    let counted = |count: usize, one: &str, many: &str| match count {
        0 => String::new(),
        1 => format!(" · 1 {one}"),
        _ => format!(" · {count} {many}"),
    };
    line += &counted(matches.headers.len(), "header", "headers");
    line += &counted(matches.query.len(), "query parameter", "query parameters");
    if matches.fraction_ppm < 1_000_000 {
        line += &format!(" · {} % of requests", percent(matches.fraction_ppm));
    }
    line
}

fn path(path: &PathMatch) -> (&'static str, &str) {
    match path {
        PathMatch::Connect => ("connect", ""),
        PathMatch::Exact(text) => ("exact", text),
        PathMatch::Prefix(text) => ("prefix", text),
        PathMatch::SeparatedPrefix(text) => ("separated_prefix", text),
        PathMatch::Regex(regex) => ("regex", regex.as_str()),
    }
}

fn header_match(header: &HeaderMatch) -> Value {
    let test = match &header.test {
        HeaderTest::Grpc => json!({ "grpc": true }),
        HeaderTest::Present(present) => json!({ "present": present }),
        HeaderTest::Range { start, end } => json!({ "range": { "start": start, "end": end } }),
        HeaderTest::Text(test) => text(test),
    };
    json!({
        "name": &*header.name,
        "test": test,
        "invert": header.invert,
        "missing_as_empty": header.missing_as_empty,
    })
}

fn query_match(query: &QueryMatch) -> Value {
    json!({ "name": &*query.name, "test": query.test.as_ref().map_or_else(|| json!({ "present": true }), text) })
}

fn text(test: &TextMatch) -> Value {
    match test {
        TextMatch::Contains { text, ignore_case } => json!({ "contains": &**text, "ignore_case": ignore_case }),
        TextMatch::Exact { text, ignore_case } => json!({ "exact": &**text, "ignore_case": ignore_case }),
        TextMatch::Prefix { text, ignore_case } => json!({ "prefix": &**text, "ignore_case": ignore_case }),
        TextMatch::Regex(regex) => json!({ "regex": regex.as_str() }),
        TextMatch::Suffix { text, ignore_case } => json!({ "suffix": &**text, "ignore_case": ignore_case }),
    }
}

/// What a route does.
pub fn action(action: &RouteAction) -> Value {
    match action {
        RouteAction::Direct(direct) => json!({
            "direct_response": { "status": direct.status, "body": String::from_utf8_lossy(&direct.body) }
        }),
        RouteAction::Forward(to) => json!({ "forward": forward(to) }),
        RouteAction::Redirect(to) => json!({ "redirect": redirect(to) }),
    }
}

fn forward(forward: &ForwardAction) -> Value {
    let to = match &forward.target {
        ClusterTarget::Header(header) => json!({ "cluster_header": &**header }),
        ClusterTarget::One(cluster, index) => json!({ "cluster": cluster.as_str(), "known": index.is_some() }),
        ClusterTarget::Weighted { choices, total } => json!({
            "total_weight": total,
            "weighted_clusters": choices.iter().map(|choice| json!({
                "cluster": choice.cluster.as_str(),
                "known": choice.index.is_some(),
                "weight": choice.weight,
                "request_edits": edits(&choice.request_edits),
                "response_edits": edits(&choice.response_edits),
            })).collect::<Vec<_>>(),
        }),
    };
    json!({
        "to": to,
        "cluster_not_found_status": forward.cluster_not_found_status,
        "timeout": span(forward.timeout),
        "max_stream_duration": span(forward.max_stream_duration),
        "grpc_timeout_max": span(forward.grpc_timeout_max),
        "upgrades": upgrades(&forward.upgrades),
        "idle_timeout": span(forward.idle_timeout),
        "retry": forward.retry.as_deref().map(retry),
        "path_rewrite": forward.path_rewrite.as_ref().map(rewrite),
        "host_rewrite": forward.host_rewrite.as_deref(),
        "hash": forward.hash.iter().map(hash).collect::<Vec<_>>(),
    })
}

fn hash(policy: &HashPolicy) -> Value {
    let of = match &policy.source {
        HashSource::Cookie(cookie) => json!({
            "cookie": &*cookie.name,
            "ttl": span(cookie.ttl),
            "attributes": &*cookie.attributes,
        }),
        HashSource::Header(name) => json!({ "header": &**name }),
        HashSource::Query(name) => json!({ "query": &**name }),
        HashSource::SourceIp => json!("source_ip"),
    };
    json!({ "of": of, "terminal": policy.is_terminal })
}

fn redirect(redirect: &Redirect) -> Value {
    json!({
        "status": redirect.status,
        "scheme": redirect.scheme.as_deref(),
        "host": redirect.host.as_deref(),
        "port": redirect.port,
        "path": redirect.path.as_ref().map(rewrite),
        "strip_query": redirect.strip_query,
    })
}

fn rewrite(rewrite: &PathRewrite) -> Value {
    match rewrite {
        PathRewrite::Full(path) => json!({ "full": &**path }),
        PathRewrite::Prefix(path) => json!({ "prefix": &**path }),
        PathRewrite::Regex { pattern, with } => json!({ "regex": pattern.as_str(), "with": &**with }),
    }
}
