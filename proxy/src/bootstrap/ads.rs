//! Where the xDS server is and what is asked of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use core::api_config_source::ApiType;
use core::config_source::ConfigSourceSpecifier;
use core::grpc_service::TargetSpecifier;
use envoy_types::pb::envoy::config::bootstrap::v3 as proto;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use prost::Message as _;

use super::Reader;
use crate::convert;

const DEFAULT_INITIAL_FETCH: Duration = Duration::from_secs(15);
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_MAX_MESSAGE_BYTES: usize = 64 << 20;
const PATH: &str = "dynamic_resources.ads_config";

/// The aggregated stream: one server, all types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdsConfig {
    /// The static cluster it is, or the target it was given as.
    pub cluster: Arc<str>,
    /// Hosts and ports, tried in turn.
    pub servers: Vec<(Arc<str>, u16)>,
    /// The `:authority` of the stream.
    pub authority: Arc<str>,
    /// Headers sent with the stream.
    pub metadata: Vec<(String, String)>,
    /// Time for one connect.
    pub connect_timeout: Duration,
    /// How long the start waits for what the server has not sent; zero: for ever.
    pub initial_fetch_timeout: Duration,
    /// Largest message accepted.
    pub max_message_bytes: usize,
    /// Listeners are asked for.
    pub listeners: bool,
    /// Clusters are asked for.
    pub clusters: bool,
}

impl Reader {
    pub(super) fn ads(&mut self, message: &proto::Bootstrap) -> Option<AdsConfig> {
        let dynamic = message.dynamic_resources.as_ref()?;
        let listeners = self.source("dynamic_resources.lds_config", dynamic.lds_config.as_ref());
        let clusters = self.source("dynamic_resources.cds_config", dynamic.cds_config.as_ref());
        let Some(config) = &dynamic.ads_config else {
            if listeners || clusters {
                self.refuse(PATH, "is not set, though lds_config or cds_config says `ads: {}`");
            }
            return None;
        };
        match ApiType::try_from(config.api_type) {
            Ok(ApiType::Grpc | ApiType::AggregatedGrpc) => {}
            Ok(ApiType::DeltaGrpc | ApiType::AggregatedDeltaGrpc) => {
                self.refuse(format!("{PATH}.api_type"), "DELTA_GRPC is not served yet; use GRPC");
            }
            Ok(other) => {
                self.refuse(format!("{PATH}.api_type"), format!("{} is not served; use GRPC", other.as_str_name()));
            }
            Err(_) => self.refuse(format!("{PATH}.api_type"), format!("{} is not known; use GRPC", config.api_type)),
        }
        #[allow(deprecated, reason = "it is named to be refused")]
        if config.transport_api_version == i32::from(core::ApiVersion::V2) {
            self.refuse(format!("{PATH}.transport_api_version"), "V2 is not served; use V3");
        }
        let Some(service) = config.grpc_services.first() else {
            self.refuse(format!("{PATH}.grpc_services"), "is empty; one service is required");
            return None;
        };
        if config.grpc_services.len() > 1 {
            self.ignored.push(format!("{PATH}.grpc_services"));
        }
        let timeouts = [dynamic.cds_config.as_ref(), dynamic.lds_config.as_ref()];
        let fetch = timeouts.into_iter().flatten().find_map(|source| source.initial_fetch_timeout.as_ref());
        let initial_fetch_timeout = match fetch {
            None => DEFAULT_INITIAL_FETCH,
            Some(span) => self.take("dynamic_resources.cds_config", convert::span("initial_fetch_timeout", *span))?,
        };
        let base = self.target(message, service)?;
        let metadata = self.metadata(service);
        Some(AdsConfig { metadata, initial_fetch_timeout, listeners, clusters, ..base })
    }

    /// Whether resources come by the aggregated stream.
    fn source(&mut self, path: &str, source: Option<&core::ConfigSource>) -> bool {
        let Some(source) = source else { return false };
        match &source.config_source_specifier {
            Some(ConfigSourceSpecifier::Ads(_)) => return true,
            Some(_) => self.refuse(path, "only `ads: {}` is served"),
            None => self.refuse(path, "names no source; use `ads: {}`"),
        }
        false
    }

    fn target(&mut self, message: &proto::Bootstrap, service: &core::GrpcService) -> Option<AdsConfig> {
        let path = format!("{PATH}.grpc_services[0]");
        match &service.target_specifier {
            Some(TargetSpecifier::EnvoyGrpc(grpc)) => {
                let clusters = message.static_resources.iter().flat_map(|given| &given.clusters).enumerate();
                let mut clusters = clusters.filter(|(_, cluster)| cluster.name == grpc.cluster_name);
                let Some((at, cluster)) = clusters.next() else {
                    let reason = format!("{:?} is not in static_resources.clusters", grpc.cluster_name);
                    self.refuse(format!("{path}.envoy_grpc.cluster_name"), reason);
                    return None;
                };
                let found = convert::server_addresses(&gives_addresses(cluster).encode_to_vec());
                let servers = self.take(&format!("static_resources.clusters[{at}]"), found)?;
                let authority = if grpc.authority.is_empty() { &cluster.name } else { &grpc.authority };
                let limit = grpc.max_receive_message_length.and_then(|limit| usize::try_from(limit.value).ok());
                Some(AdsConfig {
                    max_message_bytes: limit.filter(|limit| *limit > 0).unwrap_or(DEFAULT_MAX_MESSAGE_BYTES),
                    ..AdsConfig::at(&cluster.name, servers, authority)
                })
            }
            Some(TargetSpecifier::GoogleGrpc(_)) => {
                self.refuse(format!("{path}.google_grpc"), "is not served; use envoy_grpc and a static cluster");
                None
            }
            None => {
                self.refuse(path, "names no server; envoy_grpc is required");
                None
            }
        }
    }

    fn metadata(&mut self, service: &core::GrpcService) -> Vec<(String, String)> {
        let mut metadata = Vec::new();
        for (at, header) in service.initial_metadata.iter().enumerate() {
            let is_text = header.value.bytes().all(|b| (b' '..0x7f).contains(&b));
            let is_name = !header.key.is_empty()
                && !header.key.ends_with("-bin")
                && header.key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            if is_name && is_text {
                metadata.push((header.key.to_ascii_lowercase(), header.value.clone()));
            } else {
                let path = format!("{PATH}.grpc_services[0].initial_metadata[{at}]");
                self.refuse(path, "is not a header name of letters, digits, `-_.` and an ASCII value");
            }
        }
        metadata
    }
}

/// The cluster without what it says of its protocol, which is gRPC's, and need not be one that routes may use.
fn gives_addresses(cluster: &Cluster) -> Cluster {
    let mut plain = Cluster { typed_extension_protocol_options: HashMap::new(), ..cluster.clone() };
    #[allow(deprecated, reason = "bootstrap files have it")]
    {
        plain.http2_protocol_options = None;
    }
    plain
}

impl AdsConfig {
    /// That server, with the defaults for the rest.
    pub fn at(cluster: &str, servers: Vec<(Arc<str>, u16)>, authority: &str) -> Self {
        Self {
            cluster: cluster.into(),
            servers,
            authority: authority.into(),
            metadata: Vec::new(),
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            initial_fetch_timeout: DEFAULT_INITIAL_FETCH,
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
            listeners: true,
            clusters: true,
        }
    }
}
