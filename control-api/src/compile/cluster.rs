//! Purpose: one EDS cluster per Upstream.

use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbConfig, LbPolicy, LeastRequestLbConfig,
};
use envoy_types::pb::envoy::config::cluster::v3::{self as pb, CircuitBreakers, Cluster};
use envoy_types::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CoreHttpOptions, Metadata,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig, explicit_http_config,
};
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::util::pack_any;

use super::carrier;
use super::effective::{Attached, Layer, cluster_name};
use super::proto::{ads, number, span};
use super::resource::{Resource, ResourceSet};
use crate::model::upstream::{AppProtocol, Balancing, CONNECT_TIMEOUT, Connection, Limits, OutlierDetection};
use crate::model::{ObjectKey, PolicySet};

pub(super) fn compile_clusters(policy: &PolicySet) -> ResourceSet {
    let attached = Attached::build(policy);
    policy
        .upstreams()
        .map(|(object, upstream)| {
            let mesh = policy.mesh_config(&object.key.namespace).connection;
            let connection = upstream.connection.clone().over(&mesh);
            let layer = attached.for_upstream(&object.key);
            let cluster = build_cluster(&object.key, (upstream.protocol, &connection), &layer);
            Resource::pack(cluster.name.clone(), &cluster)
        })
        .collect()
}

fn build_cluster(key: &ObjectKey, (protocol, connection): (AppProtocol, &Connection), layer: &Layer) -> Cluster {
    let (policy, config) = match connection.balancing.unwrap_or(Balancing::RoundRobin) {
        Balancing::LeastRequest { choices } => {
            let config = LeastRequestLbConfig { choice_count: Some(number(choices)), ..Default::default() };
            (LbPolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(config)))
        }
        Balancing::Random => (LbPolicy::Random, None),
        Balancing::RoundRobin => (LbPolicy::RoundRobin, None),
    };
    let outlier = layer.outlier.as_ref().or(connection.outlier.as_ref());
    let limits = layer.limits.as_ref().or(connection.limits.as_ref());
    let mut cluster = Cluster {
        name: cluster_name(&key.namespace, &key.name),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(ads()), service_name: String::new() }),
        connect_timeout: Some(span(connection.connect_timeout.unwrap_or(CONNECT_TIMEOUT))),
        lb_policy: policy.into(),
        lb_config: config,
        outlier_detection: outlier.map(build_outlier),
        circuit_breakers: limits.map(build_limits),
        common_lb_config: connection.panic_percent.map(|percent| CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: f64::from(percent) }),
            ..CommonLbConfig::default()
        }),
        ..Cluster::default()
    };
    if let Some(limit) = &layer.limit {
        let any = carrier::cluster_policy(&limit.value, &limit.source);
        let typed = std::iter::once((carrier::CLUSTER_POLICY.to_owned(), any)).collect();
        cluster.metadata = Some(Metadata { typed_filter_metadata: typed, ..Metadata::default() });
    }
    if let Some(options) = build_http_options(protocol, connection) {
        set_http_options(&mut cluster, options);
    }
    cluster
}

pub(super) fn set_http_options(cluster: &mut Cluster, options: HttpProtocolOptions) {
    let key = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned();
    cluster.typed_extension_protocol_options.insert(key, pack_any(options));
}

fn build_outlier(outlier: &OutlierDetection) -> pb::OutlierDetection {
    pb::OutlierDetection {
        consecutive_5xx: outlier.consecutive_5xx.map(number),
        consecutive_gateway_failure: outlier.consecutive_gateway_failure.map(number),
        consecutive_local_origin_failure: outlier.consecutive_local_origin_failure.map(number),
        interval: outlier.interval.map(span),
        base_ejection_time: outlier.base_ejection_time.map(span),
        max_ejection_time: outlier.max_ejection_time.map(span),
        max_ejection_percent: outlier.max_ejection_percent.map(number),
        enforcing_consecutive_5xx: outlier.enforcing_consecutive_5xx.map(number),
        // Envoy detects gateway failures by default but acts on none of them. Whoever sets the
        // count wants it to count.
        enforcing_consecutive_gateway_failure: outlier
            .enforcing_consecutive_gateway_failure
            .or(outlier.consecutive_gateway_failure.map(|_| 100))
            .map(number),
        enforcing_consecutive_local_origin_failure: outlier.enforcing_consecutive_local_origin_failure.map(number),
        split_external_local_origin_errors: outlier.split_local_origin.unwrap_or(false),
        ..pb::OutlierDetection::default()
    }
}

fn build_limits(limits: &Limits) -> CircuitBreakers {
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: limits.max_connections.map(number),
            max_pending_requests: limits.max_pending_requests.map(number),
            max_requests: limits.max_requests.map(number),
            max_retries: limits.max_retries.map(number),
            ..Thresholds::default()
        }],
        ..CircuitBreakers::default()
    }
}

fn build_http_options(protocol: AppProtocol, connection: &Connection) -> Option<HttpProtocolOptions> {
    let has_lifetimes = connection.idle_timeout.is_some() || connection.max_requests_per_connection.is_some();
    let is_plain = matches!(protocol, AppProtocol::Http | AppProtocol::Tcp | AppProtocol::Tls);
    if !has_lifetimes && is_plain {
        return None;
    }
    let lifetimes = CoreHttpOptions {
        idle_timeout: connection.idle_timeout.map(span),
        max_requests_per_connection: connection.max_requests_per_connection.map(number),
        ..CoreHttpOptions::default()
    };
    Some(HttpProtocolOptions {
        common_http_protocol_options: has_lifetimes.then_some(lifetimes),
        ..protocol_options(protocol)
    })
}

/// How endpoints are spoken to, and nothing else.
pub(super) fn protocol_options(protocol: AppProtocol) -> HttpProtocolOptions {
    use explicit_http_config::ProtocolConfig;
    let explicit =
        |config| UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) });
    let options = match protocol {
        AppProtocol::Detect | AppProtocol::Downstream => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(Http1ProtocolOptions::default()),
                http2_protocol_options: Some(Http2ProtocolOptions::default()),
                ..UseDownstreamHttpConfig::default()
            })
        }
        AppProtocol::Grpc | AppProtocol::H2c => {
            explicit(ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default()))
        }
        // Of bytes passed on unread, only the lifetimes beside it count.
        AppProtocol::Http | AppProtocol::Tcp | AppProtocol::Tls => {
            explicit(ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default()))
        }
    };
    HttpProtocolOptions { upstream_protocol_options: Some(options), ..HttpProtocolOptions::default() }
}
