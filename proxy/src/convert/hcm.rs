//! The HTTP connection manager and its filters.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use envoy_types::pb::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit as RateLimitFilter;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::http::upstream_codec::v3::UpstreamCodec;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use envoy_types::pb::google::protobuf::Any;
use proto::http_connection_manager::{
    CodecType, PathWithEscapedSlashesAction, RouteSpecifier, ServerHeaderTransformation, StripPortMode,
};
use proto::http_filter::ConfigType;

use super::at::{At, at};
use super::{access, header, http2, policy, read, route};
use crate::config::{
    AccessFilter, Codec, EscapedSlashes, Http2Config, HttpConnectionConfig, LocalRateLimit, RouteSource, ServerHeader,
    UnderscoreHeaders,
};

const MAX_HEAD_KIB: u32 = 8192;

/// Filters that do nothing here, yet come, not optional, in every Istio listener.
const IDLE_FILTERS: [&str; 4] = [
    "io.istio.http.peer_metadata.Config",
    "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
    "stats.PluginConfig",
    "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
];

pub(super) fn connection_manager(
    hcm: At<'_, proto::HttpConnectionManager>,
    listener: &str,
) -> Option<HttpConnectionConfig> {
    let stat_prefix = at!(hcm.stat_prefix).named();
    let routes = routes(&hcm, listener);
    let filters = filters(at!(hcm.http_filters), listener, Chain::Listener);
    let base = HttpConnectionConfig::new(&stat_prefix?, routes?);
    let base = paths_and_headers(&hcm, base)?;
    let base = lifetimes(&hcm, base);
    let base = protocols(&hcm, base)?;
    Some(HttpConnectionConfig {
        access: filters.access,
        grpc_web: filters.grpc_web,
        rate_limit: filters.rate_limit.map(Arc::new),
        ..base
    })
}

/// Versions of HTTP and what may be made of a connection.
fn protocols(hcm: &At<'_, proto::HttpConnectionManager>, base: HttpConnectionConfig) -> Option<HttpConnectionConfig> {
    let hcm = *hcm;
    let codec = at!(hcm.codec_type);
    let codec = match codec.one_of::<CodecType>() {
        Some(CodecType::Auto) => Some(Codec::Auto),
        Some(CodecType::Http1) => Some(Codec::Http1),
        Some(CodecType::Http2) => Some(Codec::Http2),
        Some(CodecType::Http3) => {
            codec.refuse("HTTP/3 is not served; use AUTO, HTTP1 or HTTP2");
            None
        }
        None => None,
    };
    let http2 = at!(hcm.http2_protocol_options).set().map_or(Some(Http2Config::default()), http2::options);
    let upgrades = http2::listener_upgrades(at!(hcm.upgrade_configs));
    Some(HttpConnectionConfig {
        codec: codec?,
        http2: http2?,
        upgrades,
        http1_trailers: hcm.value.http_protocol_options.as_ref().is_some_and(|options| options.enable_trailers),
        ..base
    })
}

fn routes(hcm: &At<'_, proto::HttpConnectionManager>, listener: &str) -> Option<RouteSource> {
    match &hcm.value.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => {
            let rds = hcm.field("rds", rds);
            read::ads_source(at!(rds.config_source));
            let name = at!(rds.route_config_name).named();
            Some(RouteSource::Named(name?.into()))
        }
        Some(RouteSpecifier::RouteConfig(table)) => {
            let table = hcm.field("route_config", table);
            let name = if table.value.name.is_empty() { listener } else { &table.value.name };
            route::table(table, name).map(|table| RouteSource::Inline(Arc::new(table)))
        }
        Some(RouteSpecifier::ScopedRoutes(scoped)) => {
            hcm.field("scoped_routes", scoped).refuse("is not served; use rds or route_config");
            None
        }
        None => {
            hcm.refuse("has no routes; one of rds, route_config is required");
            None
        }
    }
}

fn paths_and_headers(
    hcm: &At<'_, proto::HttpConnectionManager>,
    base: HttpConnectionConfig,
) -> Option<HttpConnectionConfig> {
    let hcm = *hcm;
    let escaped = at!(hcm.path_with_escaped_slashes_action).one_of::<PathWithEscapedSlashesAction>();
    let transformation = at!(hcm.server_header_transformation).one_of::<ServerHeaderTransformation>();
    let server_name = match hcm.value.server_name.as_str() {
        "" => Some(base.server_name.clone()),
        _ => header::value(at!(hcm.server_name)),
    };
    let via = header::value(at!(hcm.via));
    let head_kib = match hcm.value.max_request_headers_kb {
        None => Some(None),
        Some(_) => at!(hcm.max_request_headers_kb).within(1..=MAX_HEAD_KIB).map(Some),
    };
    Some(HttpConnectionConfig {
        max_head_bytes: head_kib?.and_then(|kib| usize::try_from(kib).ok()).map_or(base.max_head_bytes, |k| k * 1024),
        use_remote_address: at!(hcm.use_remote_address).flag(false),
        skip_xff_append: hcm.value.skip_xff_append,
        xff_trusted_hops: hcm.value.xff_num_trusted_hops,
        normalize_path: at!(hcm.normalize_path).flag(true),
        merge_slashes: hcm.value.merge_slashes,
        escaped_slashes: match escaped? {
            PathWithEscapedSlashesAction::ImplementationSpecificDefault
            | PathWithEscapedSlashesAction::KeepUnchanged => EscapedSlashes::KeepUnchanged,
            PathWithEscapedSlashesAction::RejectRequest => EscapedSlashes::RejectRequest,
            PathWithEscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
            PathWithEscapedSlashesAction::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
        },
        server_name: server_name?,
        server_header: match transformation? {
            ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
            ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
            ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
        },
        via: via?,
        generate_request_id: at!(hcm.generate_request_id).flag(true),
        preserve_request_id: hcm.value.preserve_external_request_id,
        strip_any_host_port: matches!(hcm.value.strip_port_mode, Some(StripPortMode::StripAnyHostPort(true))),
        accept_http_10: hcm.value.http_protocol_options.as_ref().is_some_and(|options| options.accept_http_10),
        ..base
    })
}

fn lifetimes(hcm: &At<'_, proto::HttpConnectionManager>, base: HttpConnectionConfig) -> HttpConnectionConfig {
    let hcm = *hcm;
    let base = HttpConnectionConfig {
        request_headers_timeout: at!(hcm.request_headers_timeout).limit(None),
        request_timeout: at!(hcm.request_timeout).limit(None),
        stream_idle_timeout: at!(hcm.stream_idle_timeout).limit(base.stream_idle_timeout),
        ..base
    };
    let Some(common) = at!(hcm.common_http_protocol_options).set() else { return base };
    let max_headers = match common.value.max_headers_count {
        None => None,
        Some(_) => at!(common.max_headers_count).within(1..=u32::MAX),
    };
    HttpConnectionConfig {
        idle_timeout: at!(common.idle_timeout).limit(base.idle_timeout),
        max_connection_duration: at!(common.max_connection_duration).limit(None),
        max_requests_per_connection: at!(common.max_requests_per_connection).bound(),
        max_headers: max_headers.and_then(|count| usize::try_from(count).ok()).unwrap_or(base.max_headers),
        underscore_headers: match at!(common.headers_with_underscores_action).one_of::<HeadersWithUnderscoresAction>() {
            Some(HeadersWithUnderscoresAction::Allow) | None => UnderscoreHeaders::Allow,
            Some(HeadersWithUnderscoresAction::DropHeader) => UnderscoreHeaders::Drop,
            Some(HeadersWithUnderscoresAction::RejectRequest) => UnderscoreHeaders::RejectRequest,
        },
        ..base
    }
}

/// The limit among a cluster's upstream filters, which end in the upstream codec.
pub(super) fn upstream_rate_limit(list: At<'_, Vec<proto::HttpFilter>>, cluster: &str) -> Option<LocalRateLimit> {
    if list.value.is_empty() {
        return None;
    }
    filters(list, cluster, Chain::Cluster).rate_limit
}

/// Where a filter chain stands, which says what ends it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chain {
    Cluster,
    Listener,
}

impl Chain {
    fn is_ended_by(self, any: &At<'_, Any>) -> bool {
        match self {
            Self::Cluster => any.is::<UpstreamCodec>(),
            Self::Listener => any.is::<Router>(),
        }
    }

    fn terminal(self) -> &'static str {
        match self {
            Self::Cluster => "the upstream codec",
            Self::Listener => "the router",
        }
    }
}

/// What a filter chain does besides forwarding.
#[derive(Default)]
struct Filters {
    access: Vec<AccessFilter>,
    grpc_web: bool,
    rate_limit: Option<LocalRateLimit>,
}

/// A filter that decides who may call. One that is off here could be turned on by a route: that is not served, and to
/// leave it out would weaken security.
fn access_filter(filter: &At<'_, proto::HttpFilter>, any: &At<'_, Any>) -> Option<AccessFilter> {
    let filter = *filter;
    if filter.value.disabled {
        at!(filter.disabled).refuse("a disabled RBAC filter is not served; remove it, or turn it off by route");
    }
    let rbac = any.unpack::<Rbac>()?;
    let rules = access::of_requests(any.with(&rbac))?;
    Some(AccessFilter { name: filter.value.name.as_str().into(), rules })
}

/// Reads a filter chain: what is not served must be optional, and the last one must be the terminal one.
fn filters(list: At<'_, Vec<proto::HttpFilter>>, place: &str, chain: Chain) -> Filters {
    let terminal = chain.terminal();
    let mut found = Filters::default();
    let mut ended = false;
    for filter in list.each() {
        if ended {
            filter.refuse(format_args!("comes after {terminal}, which must be last"));
            continue;
        }
        let any = match &filter.value.config_type {
            Some(ConfigType::TypedConfig(any)) => filter.field("typed_config", any),
            Some(ConfigType::ConfigDiscovery(source)) => {
                filter.field("config_discovery", source).refuse("ECDS is not served; use typed_config");
                continue;
            }
            None => {
                filter.refuse("has no typed_config; it is required");
                continue;
            }
        };
        if chain.is_ended_by(&any) {
            ended = true;
        } else if any.is::<Rbac>() && chain == Chain::Listener {
            found.access.extend(access_filter(&filter, &any));
        } else if filter.value.disabled {
            any.ignore();
        } else if any.is::<RateLimitFilter>() {
            let Some(settings) = any.unpack::<RateLimitFilter>() else { continue };
            if found.rate_limit.is_some() {
                filter.refuse("only one local rate limit in a chain is served");
            }
            found.rate_limit = policy::local_rate_limit(any.with(&settings), place);
        } else if any.is::<GrpcWeb>() && chain == Chain::Listener {
            found.grpc_web = true;
        } else if filter.value.is_optional || IDLE_FILTERS.contains(&any.type_name().as_str()) {
            any.ignore();
        } else {
            any.refuse(format_args!(
                "filter {:?} with {} is not served; remove it or set is_optional",
                filter.value.name,
                any.type_name()
            ));
        }
    }
    if !ended {
        list.refuse(format_args!("does not end in {terminal}"));
    }
    found
}
