//! Purpose: the Gateway API's `HTTPRoute`, bound to a `Service` (GAMMA).
//! Errors: every field of the Gateway API that is not read here is refused as unknown, never
//! ignored: a route that half applies is worse than one that does not.
//! Limits: as the Gateway API's own schema (16 rules' names aside: 64 matches, 16 headers, 16
//! backends a rule); weights 0..=1,000,000.
//! Source: gateway-api v1 `HTTPRouteSpec`; retry from GEP-1731, timeouts from GEP-1742.

use std::time::Duration;

use super::cursor::{Cursor, Fields};
use super::object::{LABEL_RULE, SUBDOMAIN_RULE, is_dns_label, is_dns_subdomain};

const HOUR: Duration = Duration::from_secs(3_600);
const WEIGHT_MAX: u32 = 1_000_000;

/// Which request goes where, for the services it is bound to.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpRoute {
    /// The services whose callers it serves.
    pub parents: Vec<ParentRef>,
    /// Further authorities it answers to.
    pub hostnames: Vec<String>,
    /// The rules, in order.
    pub rules: Vec<Rule>,
}

/// The service a route is bound to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParentRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Only requests to this port, when set.
    pub port: Option<u16>,
}

/// Matches that share filters, backends and timeouts.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Name for `sectionName` of a policy.
    pub name: Option<String>,
    /// Any of these; never empty.
    pub matches: Vec<Match>,
    /// Changes to request and response.
    pub filters: Vec<Filter>,
    /// Where it goes, by weight.
    pub backends: Vec<BackendRef>,
    /// Limit of the whole exchange; zero turns it off.
    pub request_timeout: Option<Duration>,
    /// Limit of one try.
    pub try_timeout: Option<Duration>,
    /// When to try again.
    pub retry: Option<RouteRetry>,
}

/// All parts must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// The path.
    pub path: PathMatch,
    /// Headers.
    pub headers: Vec<ValueMatch>,
    /// Query parameters.
    pub query: Vec<ValueMatch>,
    /// The method.
    pub method: Option<&'static str>,
    /// Only calls of gRPC.
    pub is_grpc: bool,
}

/// How a path matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Whole segments from the start.
    Prefix(String),
    /// The whole path against a regular expression.
    Regex(String),
}

/// A named value, equal or by regular expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueMatch {
    /// Name of the header or parameter.
    pub name: String,
    /// What it must be.
    pub value: String,
    /// Whether `value` is a regular expression.
    pub is_regex: bool,
}

/// A change to the request or the response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Change request headers.
    RequestHeaders(HeaderEdits),
    /// Change response headers.
    ResponseHeaders(HeaderEdits),
    /// Change authority and path before forwarding.
    Rewrite(Rewrite),
}

/// Header changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Replace or add.
    pub set: Vec<(String, String)>,
    /// Append.
    pub add: Vec<(String, String)>,
    /// Take away.
    pub remove: Vec<String>,
}

/// New authority and path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// New authority.
    pub hostname: Option<String>,
    /// New path.
    pub path: Option<PathEdit>,
}

/// A new path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathEdit {
    /// All of it.
    Full(String),
    /// The matched prefix.
    Prefix(String),
}

/// A redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// New scheme.
    pub scheme: Option<&'static str>,
    /// New authority.
    pub hostname: Option<String>,
    /// New path.
    pub path: Option<PathEdit>,
    /// New port.
    pub port: Option<u16>,
    /// Status to answer with.
    pub status: u16,
}

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendRef {
    /// Names a Service, of which [`Services`](super::Services) knows the upstreams; else an Upstream itself.
    pub is_service: bool,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Port of the service.
    pub port: Option<u16>,
    /// Its share.
    pub weight: u32,
}

/// The Gateway API's own retry stanza.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteRetry {
    /// Status codes worth another try.
    pub codes: Vec<u32>,
    /// How many more tries.
    pub attempts: u32,
    /// First pause.
    pub backoff: Option<Duration>,
}

/// Reads a spec; `namespace` is the route's own.
pub fn parse_http_route(at: &Cursor<'_>, namespace: &str) -> Option<HttpRoute> {
    parse_route(at, namespace, RULE_FIELDS, parse_rule)
}

/// Reads what all kinds of route share, and each rule by `parse_rule`.
pub(super) fn parse_route(
    at: &Cursor<'_>,
    namespace: &str,
    rule_fields: &[&str],
    parse_rule: fn(&Cursor<'_>, &str) -> Option<Rule>,
) -> Option<HttpRoute> {
    let fields = at.fields(&["parentRefs", "hostnames", "rules"])?;
    let parents: Vec<_> = fields
        .required("parentRefs")
        .map(|at| at.items(1..=32))
        .unwrap_or_default()
        .iter()
        .filter_map(|at| parse_parent(at, namespace))
        .collect();
    let hostnames = fields
        .list("hostnames", 0..=16)
        .iter()
        .filter_map(|at| at.text(is_hostname, "must be a DNS name, with *. in front at most"))
        .collect();
    let items = fields.required("rules").map(|at| at.items(1..=64)).unwrap_or_default();
    let rules: Vec<_> = items.iter().filter_map(|at| parse_rule(at, namespace)).collect();
    for (index, rule) in rules.iter().enumerate() {
        if rule.name.is_some() && rules.iter().take(index).any(|other| other.name == rule.name) {
            let at = items.get(index).and_then(|at| at.fields(rule_fields));
            at.iter().for_each(|at| at.refuse_field("name", "two rules have this name"));
        }
    }
    Some(HttpRoute { parents, hostnames, rules })
}

fn is_hostname(text: &str) -> bool {
    let rest = text.strip_prefix("*.").unwrap_or(text);
    is_dns_subdomain(rest) && rest.parse::<std::net::IpAddr>().is_err()
}

fn parse_parent(at: &Cursor<'_>, namespace: &str) -> Option<ParentRef> {
    let fields = at.fields(&["group", "kind", "namespace", "name", "port"])?;
    if let Some(group) = fields.optional("group") {
        let _ = group.text(|text| text.is_empty() || text == "core", "must be \"\" (the core group)");
    }
    let _ = fields.required("kind").and_then(|at| at.choice(&[("Service", ())]));
    Some(ParentRef {
        namespace: parse_namespace(&fields, namespace)?,
        name: fields.required("name")?.text(is_dns_label, LABEL_RULE)?,
        port: fields.optional("port").and_then(|at| at.port()),
    })
}

fn parse_namespace(fields: &Fields<'_>, own: &str) -> Option<String> {
    match fields.optional("namespace") {
        Some(at) => at.text(is_dns_label, LABEL_RULE),
        None => Some(own.to_owned()),
    }
}

const RULE_FIELDS: &[&str] = &["name", "matches", "filters", "backendRefs", "timeouts", "retry"];

fn parse_rule(at: &Cursor<'_>, namespace: &str) -> Option<Rule> {
    let fields = at.fields(RULE_FIELDS)?;
    let mut matches: Vec<_> = fields.list("matches", 0..=64).iter().filter_map(parse_match).collect();
    if matches.is_empty() {
        let path = PathMatch::Prefix("/".to_owned());
        matches.push(Match { path, headers: Vec::new(), query: Vec::new(), method: None, is_grpc: false });
    }
    let filters = parse_filters(&fields);
    let backends = parse_backends(&fields, namespace);
    refuse_contradictions(&fields, &filters, &backends, &matches);
    let timeouts = fields.optional("timeouts").and_then(|at| at.fields(&["request", "backendRequest"]));
    let timeout = |name: &str| {
        let at = timeouts.as_ref()?.optional(name)?;
        at.duration(Duration::ZERO..=24 * HOUR)
    };
    let (request_timeout, try_timeout) = (timeout("request"), timeout("backendRequest"));
    if let (Some(whole), Some(one), Some(at)) = (request_timeout, try_timeout, &timeouts)
        && whole > Duration::ZERO
        && one > whole
    {
        at.refuse_field("backendRequest", "must not be longer than timeouts.request");
    }
    Some(Rule {
        name: fields.optional("name").and_then(|at| at.text(is_dns_subdomain, SUBDOMAIN_RULE)),
        matches,
        filters,
        backends,
        request_timeout,
        try_timeout,
        retry: fields.optional("retry").and_then(|at| parse_retry(&at)),
    })
}

/// The filters of a rule.
pub(super) fn parse_filters(fields: &Fields<'_>) -> Vec<Filter> {
    let filters: Vec<_> = fields.list("filters", 0..=16).iter().filter_map(parse_filter).collect();
    let kinds: Vec<_> = filters.iter().map(std::mem::discriminant).collect();
    if kinds.iter().enumerate().any(|(index, kind)| kinds.iter().take(index).any(|k| k == kind)) {
        fields.refuse_field("filters", "each type of filter may be used once in a rule");
    }
    filters
}

/// The backends of a rule.
pub(super) fn parse_backends(fields: &Fields<'_>, namespace: &str) -> Vec<BackendRef> {
    let items = fields.list("backendRefs", 0..=16);
    let backends: Vec<_> = items.iter().filter_map(|at| parse_backend(at, namespace)).collect();
    if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
        fields.refuse_field("backendRefs", "the sum of weights must be above 0");
    }
    backends
}

fn refuse_contradictions(fields: &Fields<'_>, filters: &[Filter], backends: &[BackendRef], matches: &[Match]) {
    let redirects = filters.iter().any(|filter| matches!(filter, Filter::Redirect(_)));
    if redirects && !backends.is_empty() {
        fields.refuse_field("backendRefs", "must be empty next to a RequestRedirect");
    }
    if redirects && filters.iter().any(|filter| matches!(filter, Filter::Rewrite(_))) {
        fields.refuse_field("filters", "URLRewrite and RequestRedirect exclude each other");
    }
    if !redirects && backends.is_empty() {
        fields.refuse_field("backendRefs", "a rule needs backendRefs or a RequestRedirect filter");
    }
    let wants_prefix = filters.iter().any(|filter| match filter {
        Filter::Redirect(redirect) => matches!(redirect.path, Some(PathEdit::Prefix(_))),
        Filter::Rewrite(rewrite) => matches!(rewrite.path, Some(PathEdit::Prefix(_))),
        Filter::RequestHeaders(_) | Filter::ResponseHeaders(_) => false,
    });
    if wants_prefix && !matches.iter().all(|one| matches!(one.path, PathMatch::Prefix(_))) {
        fields.refuse_field("matches", "ReplacePrefixMatch needs PathPrefix matches only");
    }
}

pub(super) const METHODS: [(&str, &str); 9] = [
    ("GET", "GET"),
    ("HEAD", "HEAD"),
    ("POST", "POST"),
    ("PUT", "PUT"),
    ("DELETE", "DELETE"),
    ("CONNECT", "CONNECT"),
    ("OPTIONS", "OPTIONS"),
    ("TRACE", "TRACE"),
    ("PATCH", "PATCH"),
];

fn parse_match(at: &Cursor<'_>) -> Option<Match> {
    let fields = at.fields(&["path", "headers", "queryParams", "method"])?;
    let path = match fields.optional("path") {
        Some(at) => parse_path(&at),
        None => Some(PathMatch::Prefix("/".to_owned())),
    };
    let headers = parse_values(&fields, "headers", true);
    let query = parse_values(&fields, "queryParams", false);
    let method = fields.optional("method").and_then(|at| at.choice(&METHODS));
    Some(Match { path: path?, headers, query, method, is_grpc: false })
}

#[derive(Debug, Clone, Copy)]
enum PathKind {
    Exact,
    Prefix,
    Regex,
}

pub(super) fn parse_path(at: &Cursor<'_>) -> Option<PathMatch> {
    let fields = at.fields(&["type", "value"])?;
    let words = [("Exact", PathKind::Exact), ("PathPrefix", PathKind::Prefix), ("RegularExpression", PathKind::Regex)];
    let kind = match fields.optional("type") {
        Some(at) => at.choice(&words)?,
        None => PathKind::Prefix,
    };
    let Some(value) = fields.optional("value") else {
        return match kind {
            PathKind::Regex => {
                fields.refuse_field("value", "is required for RegularExpression");
                None
            }
            PathKind::Exact => Some(PathMatch::Exact("/".to_owned())),
            PathKind::Prefix => Some(PathMatch::Prefix("/".to_owned())),
        };
    };
    match kind {
        PathKind::Regex => parse_regex(&value).map(PathMatch::Regex),
        PathKind::Exact => value.text(is_plain_path, PATH_RULE).map(PathMatch::Exact),
        PathKind::Prefix => value.text(is_plain_path, PATH_RULE).map(PathMatch::Prefix),
    }
}

const PATH_RULE: &str = "must start with / and hold no //, /./, /../, %2f, ?, # or space, \
                         and be at most 1024 bytes long";

fn is_plain_path(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    text.starts_with('/')
        && text.len() <= 1_024
        && !["//", "/./", "/../", "%2f", "?", "#"].iter().any(|part| lower.contains(part))
        && !text.ends_with("/.")
        && !text.ends_with("/..")
        && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Reads a regular expression that runs in linear time and compiles to at most 64 KiB.
pub(super) fn parse_regex(at: &Cursor<'_>) -> Option<String> {
    let text = at.string()?;
    if text.is_empty() || text.len() > 1_024 {
        at.refuse("must be a regular expression of 1 to 1024 bytes");
        return None;
    }
    match regex::RegexBuilder::new(text).size_limit(1 << 16).build() {
        Ok(_) => Some(text.to_owned()),
        Err(error) => {
            let reason = error.to_string();
            let last = reason.lines().last().unwrap_or("it does not compile");
            at.refuse_with(
                format!("is not a regular expression we can run: {}", last.trim()),
                "use RE2 syntax: no look-around, no back-references",
            );
            None
        }
    }
}

/// Headers or query parameters, each once.
pub(super) fn parse_values(fields: &Fields<'_>, name: &str, is_header: bool) -> Vec<ValueMatch> {
    let mut values: Vec<ValueMatch> = Vec::new();
    for at in fields.list(name, 0..=16) {
        let Some(value) = parse_value(&at, is_header) else { continue };
        if values.iter().any(|other| other.name == value.name) {
            at.refuse_with(
                format!("{name} names {:?} twice; only one of them could match", value.name),
                "keep one, or use a RegularExpression",
            );
        }
        values.push(value);
    }
    values
}

fn parse_value(at: &Cursor<'_>, is_header: bool) -> Option<ValueMatch> {
    let fields = at.fields(&["type", "name", "value"])?;
    let words = [("Exact", false), ("RegularExpression", true)];
    let is_regex = match fields.optional("type") {
        Some(at) => at.choice(&words)?,
        None => false,
    };
    let name = parse_header_name(&fields.required("name")?);
    let value = fields.required("value")?;
    let value = if is_regex {
        parse_regex(&value)
    } else {
        value.text(is_header_value, "must be 1 to 4096 bytes without control characters")
    };
    let name = name?;
    let name = if is_header { name.to_ascii_lowercase() } else { name };
    Some(ValueMatch { name, value: value?, is_regex })
}

fn parse_header_name(at: &Cursor<'_>) -> Option<String> {
    let token = |text: &str| {
        (1..=256).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    };
    at.text(token, "must be 1 to 256 letters, digits or one of !#$%&'*+-.^_`|~")
}

fn is_header_value(text: &str) -> bool {
    (1..=4_096).contains(&text.len()) && !text.chars().any(char::is_control)
}

#[derive(Debug, Clone, Copy)]
enum FilterKind {
    Redirect,
    RequestHeaders,
    ResponseHeaders,
    Rewrite,
}

fn parse_filter(at: &Cursor<'_>) -> Option<Filter> {
    const BODIES: [&str; 4] = ["requestHeaderModifier", "responseHeaderModifier", "urlRewrite", "requestRedirect"];
    let fields = at.fields(&[&["type"], &BODIES[..]].concat())?;
    let words = [
        ("RequestHeaderModifier", FilterKind::RequestHeaders),
        ("ResponseHeaderModifier", FilterKind::ResponseHeaders),
        ("URLRewrite", FilterKind::Rewrite),
        ("RequestRedirect", FilterKind::Redirect),
    ];
    let kind = fields.required("type")?.choice(&words)?;
    let own = match kind {
        FilterKind::RequestHeaders => BODIES[0],
        FilterKind::ResponseHeaders => BODIES[1],
        FilterKind::Rewrite => BODIES[2],
        FilterKind::Redirect => BODIES[3],
    };
    for other in BODIES.iter().filter(|body| **body != own && fields.has(body)) {
        fields.refuse_field(other, format!("does not belong to this type; it reads {own}"));
    }
    let body = fields.required(own)?;
    match kind {
        FilterKind::RequestHeaders => parse_edits(&body).map(Filter::RequestHeaders),
        FilterKind::ResponseHeaders => parse_edits(&body).map(Filter::ResponseHeaders),
        FilterKind::Rewrite => parse_rewrite(&body).map(Filter::Rewrite),
        FilterKind::Redirect => parse_redirect(&body).map(Filter::Redirect),
    }
}

fn parse_edits(at: &Cursor<'_>) -> Option<HeaderEdits> {
    let fields = at.fields(&["set", "add", "remove"])?;
    let pairs = |name: &str| {
        let items = fields.list(name, 0..=16);
        items.iter().filter_map(parse_pair).collect::<Vec<_>>()
    };
    let remove = fields.list("remove", 0..=16);
    Some(HeaderEdits {
        set: pairs("set"),
        add: pairs("add"),
        remove: remove.iter().filter_map(parse_edited_name).collect(),
    })
}

fn parse_pair(at: &Cursor<'_>) -> Option<(String, String)> {
    let fields = at.fields(&["name", "value"])?;
    let name = fields.required("name").and_then(|at| parse_edited_name(&at));
    let value = fields.required("value")?;
    let value = value.text(is_header_value, "must be 1 to 4096 bytes without control characters");
    Some((name?, value?))
}

fn parse_edited_name(at: &Cursor<'_>) -> Option<String> {
    let name = parse_header_name(at)?.to_ascii_lowercase();
    if name == "host" || name.starts_with(':') {
        at.refuse_with("Host cannot be changed as a header", "use URLRewrite.hostname");
        return None;
    }
    Some(name)
}

fn parse_path_edit(at: &Cursor<'_>) -> Option<PathEdit> {
    let fields = at.fields(&["type", "replaceFullPath", "replacePrefixMatch"])?;
    let words = [("ReplaceFullPath", true), ("ReplacePrefixMatch", false)];
    let is_full = fields.required("type")?.choice(&words)?;
    let (own, other) =
        if is_full { ("replaceFullPath", "replacePrefixMatch") } else { ("replacePrefixMatch", "replaceFullPath") };
    if fields.has(other) {
        fields.refuse_field(other, format!("does not belong to this type; it reads {own}"));
    }
    let value = fields.required(own)?.text(is_plain_path, PATH_RULE)?;
    Some(if is_full { PathEdit::Full(value) } else { PathEdit::Prefix(value) })
}

fn parse_rewrite(at: &Cursor<'_>) -> Option<Rewrite> {
    let fields = at.fields(&["hostname", "path"])?;
    let hostname = fields.optional("hostname");
    let path = fields.optional("path");
    if hostname.is_none() && path.is_none() {
        at.refuse("must set hostname, path or both");
    }
    Some(Rewrite {
        hostname: hostname.and_then(|at| at.text(is_dns_subdomain, SUBDOMAIN_RULE)),
        path: path.and_then(|at| parse_path_edit(&at)),
    })
}

fn parse_redirect(at: &Cursor<'_>) -> Option<Redirect> {
    let fields = at.fields(&["scheme", "hostname", "path", "port", "statusCode"])?;
    let statuses = 301..=308;
    let status = match fields.optional("statusCode") {
        Some(at) => {
            let number = at.integer(statuses)?;
            if !matches!(number, 301 | 302 | 303 | 307 | 308) {
                at.refuse("must be one of 301, 302, 303, 307, 308");
            }
            u16::try_from(number).ok()?
        }
        None => 302,
    };
    Some(Redirect {
        scheme: fields.optional("scheme").and_then(|at| at.choice(&[("http", "http"), ("https", "https")])),
        hostname: fields.optional("hostname").and_then(|at| at.text(is_dns_subdomain, SUBDOMAIN_RULE)),
        path: fields.optional("path").and_then(|at| parse_path_edit(&at)),
        port: fields.optional("port").and_then(|at| at.port()),
        status,
    })
}

fn parse_backend(at: &Cursor<'_>, namespace: &str) -> Option<BackendRef> {
    let fields = at.fields(&["group", "kind", "namespace", "name", "port", "weight"])?;
    if let Some(group) = fields.optional("group") {
        let known = |text: &str| ["", "core", "outrigger.dev"].contains(&text);
        let _ = group.text(known, "must be \"\" (for a Service) or outrigger.dev (for an Upstream)");
    }
    let is_service = match fields.optional("kind") {
        Some(kind) => kind.choice(&[("Service", true), ("Upstream", false)]),
        None => Some(true),
    };
    let port = fields.optional("port").and_then(|at| at.port());
    let weight = match fields.optional("weight") {
        Some(at) => at.integer32(0..=WEIGHT_MAX),
        None => Some(1),
    };
    let backend_namespace = parse_namespace(&fields, namespace);
    let name = fields.required("name")?.text(is_dns_label, LABEL_RULE);
    Some(BackendRef { is_service: is_service?, namespace: backend_namespace?, name: name?, port, weight: weight? })
}

fn parse_retry(at: &Cursor<'_>) -> Option<RouteRetry> {
    let fields = at.fields(&["codes", "attempts", "backoff"])?;
    let codes = fields.list("codes", 0..=64);
    let attempts = fields.optional("attempts");
    Some(RouteRetry {
        codes: codes.iter().filter_map(|at| at.integer32(400..=599)).collect(),
        attempts: match attempts {
            Some(at) => at.integer32(0..=50)?,
            None => 1,
        },
        backoff: fields.optional("backoff").and_then(|at| at.duration(Duration::from_millis(1)..=HOUR)),
    })
}
