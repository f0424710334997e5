//! Filter chains: what they match, and what they end in.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::listener::v3 as proto;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use proto::filter::ConfigType;
use proto::filter_chain_match::ConnectionSourceType;

use super::at::{At, at};
use super::{access, hcm, read, tcp_proxy};
use crate::config::{
    AccessFilter, ChainMatch, ChainName, FilterChain, IpPrefix, Protocol, ServerNameMatch, SourceType, Takes,
    TcpConnectionConfig, Transport,
};

/// Filters that do nothing here, yet come in every Istio listener.
const IDLE_FILTERS: [&str; 2] =
    ["envoy.tcp.metadataexchange.config.MetadataExchange", "istio.envoy.config.filter.network.stats.PluginConfig"];

/// What a filter chain ends in.
const TERMINAL: &str = "the HTTP connection manager or the TCP proxy";

/// All chains of a listener, named apart.
pub(super) fn filter_chains(listener: &At<'_, proto::Listener>, name: &str) -> Option<Vec<FilterChain>> {
    let listener = *listener;
    let entries = at!(listener.filter_chains);
    let mut chains = Vec::new();
    let mut all_read = true;
    for entry in entries.each() {
        let (asked, protocol) = (chain_match(&entry), network_filters(&entry, name));
        let Some((asked, protocol)) = asked.zip(protocol) else {
            all_read = false;
            continue;
        };
        let ambiguous = chains.iter().position(|(chain, _): &(FilterChain, _)| match &chain.takes {
            Takes::Match(other) => other.is_ambiguous_with(&asked),
            Takes::Rest => false,
        });
        if let Some(other) = ambiguous {
            let matched = at!(entry.filter_chain_match);
            matched.refuse(format_args!("matches connections ({asked}) that filter_chains[{other}] matches as well"));
        }
        let takes = Takes::Match(Box::new(asked));
        chains.push((FilterChain { name: "".into(), takes, protocol }, entry.value.name.as_str()));
    }
    if let Some(entry) = at!(listener.default_filter_chain).set() {
        if let Some(asked) = chain_match(&entry).filter(|asked| !asked.is_any()) {
            at!(entry.filter_chain_match)
                .refuse(format_args!("matches ({asked}) in the default filter chain; remove it"));
        }
        match network_filters(&entry, name) {
            Some(protocol) => {
                chains.push((FilterChain { name: "".into(), takes: Takes::Rest, protocol }, entry.value.name.as_str()));
            }
            None => all_read = false,
        }
    } else if entries.value.is_empty() {
        entries.refuse("is empty; at least one is required, or default_filter_chain");
    }
    (all_read && !chains.is_empty()).then(|| name_apart(chains))
}

/// Names chains so that live connections find theirs after an update: as given where that tells them apart, else with what
/// they match.
fn name_apart(chains: Vec<(FilterChain, &str)>) -> Vec<FilterChain> {
    let mut uses: HashMap<&str, usize> = HashMap::new();
    chains.iter().for_each(|(_, given)| *uses.entry(given).or_default() += 1);
    let named = chains.into_iter().map(|(chain, given)| {
        let takes = match &chain.takes {
            Takes::Match(asked) => asked.to_string(),
            Takes::Rest => "default".to_owned(),
        };
        let name = match (given, uses[given]) {
            ("", _) => takes,
            (given, 1) => given.to_owned(),
            (given, _) => format!("{given} ({takes})"),
        };
        FilterChain { name: ChainName::from(name), ..chain }
    });
    named.collect()
}

fn chain_match(chain: &At<'_, proto::FilterChain>) -> Option<ChainMatch> {
    let chain = *chain;
    let Some(asked) = at!(chain.filter_chain_match).set() else { return Some(ChainMatch::default()) };
    let destination_port = match asked.value.destination_port {
        None => Some(None),
        Some(_) => at!(asked.destination_port).within(1..=65_535).and_then(|port| u16::try_from(port).ok()).map(Some),
    };
    let destinations = prefixes(&at!(asked.prefix_ranges));
    let direct_sources = prefixes(&at!(asked.direct_source_prefix_ranges));
    let sources = prefixes(&at!(asked.source_prefix_ranges));
    let source_ports = source_ports(&at!(asked.source_ports));
    let source_type = at!(asked.source_type).one_of::<ConnectionSourceType>();
    let server_names = server_names(&at!(asked.server_names));
    let transport = transport(&at!(asked.transport_protocol));
    let protocols = application_protocols(&at!(asked.application_protocols));
    Some(ChainMatch {
        destination_port: destination_port?,
        destinations: destinations?,
        server_names: server_names?,
        transport: transport?,
        protocols: protocols?,
        direct_sources: direct_sources?,
        source_type: match source_type? {
            ConnectionSourceType::Any => SourceType::Any,
            ConnectionSourceType::External => SourceType::External,
            ConnectionSourceType::SameIpOrLoopback => SourceType::Local,
        },
        sources: sources?,
        source_ports: source_ports?,
    })
}

/// Every item through `read`; `None` when one was refused.
fn all<T, U>(items: &At<'_, Vec<T>>, read: impl Fn(At<'_, T>) -> Option<U>) -> Option<Vec<U>> {
    let read: Vec<U> = items.each().filter_map(read).collect();
    (read.len() == items.value.len()).then_some(read)
}

fn prefixes(ranges: &At<'_, Vec<CidrRange>>) -> Option<Vec<IpPrefix>> {
    all(ranges, prefix)
}

/// Addresses that begin alike.
pub(super) fn prefix(range: At<'_, CidrRange>) -> Option<IpPrefix> {
    let text = at!(range.address_prefix);
    let Ok(address) = text.value.parse() else {
        text.refuse(format_args!("{:?} is not an IP address", text.value));
        return None;
    };
    // Unset is 0, as in Envoy.
    let bits = range.value.prefix_len.as_ref().map_or(0, |bits| bits.value);
    let prefix = u8::try_from(bits).ok().and_then(|bits| IpPrefix::new(address, bits));
    if prefix.is_none() {
        let most = if address.is_ipv4() { 32 } else { 128 };
        at!(range.prefix_len).refuse(format_args!("{bits} is not in 0..={most}"));
    }
    prefix
}

fn source_ports(ports: &At<'_, Vec<u32>>) -> Option<Vec<u16>> {
    all(ports, |port| {
        let read = u16::try_from(*port.value).ok().filter(|port| *port > 0);
        if read.is_none() {
            port.refuse(format_args!("{} is not in 1..=65535", port.value));
        }
        read
    })
}

fn server_names(names: &At<'_, Vec<String>>) -> Option<Vec<ServerNameMatch>> {
    all(names, |name| {
        let text = name.value.to_ascii_lowercase();
        if text.is_empty() || text.len() > 255 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            name.refuse(format_args!("{:?} is not a server name", name.value));
            return None;
        }
        match text.strip_prefix('*') {
            None if text.contains('*') => {}
            None => return Some(ServerNameMatch::Exact(text.into())),
            Some(suffix) if suffix.len() > 1 && suffix.starts_with('.') && !suffix.contains('*') => {
                return Some(ServerNameMatch::Suffix(suffix.into()));
            }
            Some(_) => {}
        }
        name.refuse(format_args!("{:?} is neither a name nor \"*.\" with a suffix", name.value));
        None
    })
}

/// The inner value is `None` where nothing is asked.
#[allow(clippy::option_option, reason = "refused, not asked, asked")]
fn transport(protocol: &At<'_, String>) -> Option<Option<Transport>> {
    match protocol.value.as_str() {
        "" => Some(None),
        "raw_buffer" => Some(Some(Transport::Raw)),
        "tls" => Some(Some(Transport::Tls)),
        other => {
            protocol.refuse(format_args!("{other:?} is not one of \"raw_buffer\", \"tls\""));
            None
        }
    }
}

fn application_protocols(protocols: &At<'_, Vec<String>>) -> Option<Vec<Box<str>>> {
    all(protocols, |protocol| {
        let is_name = (1..=255).contains(&protocol.value.len());
        if !is_name {
            protocol.refuse(format_args!("{} bytes are not in 1..=255", protocol.value.len()));
        }
        is_name.then(|| protocol.value.as_str().into())
    })
}

fn network_filters(chain: &At<'_, proto::FilterChain>, name: &str) -> Option<Protocol> {
    let chain = *chain;
    if let Some(socket) = at!(chain.transport_socket).set() {
        read::plaintext(socket);
    }
    let filters = at!(chain.filters);
    let mut read = None;
    let mut access = Vec::new();
    for filter in filters.each() {
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
        if read.is_some() {
            filter.refuse(format_args!("comes after {TERMINAL}, which must be last"));
        } else if any.is::<HttpConnectionManager>() {
            let Some(hcm) = any.unpack::<HttpConnectionManager>() else { continue };
            let http = hcm::connection_manager(any.with(&hcm), name);
            read = Some(http.map(|http| Protocol::Http(Arc::new(http))));
        } else if any.is::<TcpProxy>() {
            let Some(tcp) = any.unpack::<TcpProxy>() else { continue };
            let tcp = tcp_proxy::tcp_proxy(any.with(&tcp));
            let access = std::mem::take(&mut access);
            read = Some(tcp.map(|tcp| Protocol::Tcp(Arc::new(TcpConnectionConfig { access, ..tcp }))));
        } else if any.is::<Rbac>() {
            let Some(rules) = any.unpack::<Rbac>() else { continue };
            let rules = access::of_connections(any.with(&rules));
            let name = filter.value.name.as_str().into();
            access.extend(rules.map(|rules| AccessFilter { name, rules }));
        } else if IDLE_FILTERS.contains(&any.type_name().as_str()) {
            any.ignore();
        } else {
            any.refuse(format_args!(
                "network filter {:?} with {} is not served; only {TERMINAL} is",
                filter.value.name,
                any.type_name()
            ));
        }
    }
    if read.is_none() {
        filters.refuse(format_args!("does not end in {TERMINAL}"));
    }
    if !access.is_empty() {
        filters.refuse("has a network RBAC filter in front of HTTP; use the filter envoy.filters.http.rbac");
    }
    read.flatten()
}
