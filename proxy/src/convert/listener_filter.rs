//! Listener filters: what is looked at of a connection before it gets its filter chain.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::proxy_protocol_config::Version;
use envoy_types::pb::envoy::config::listener::v3 as proto;
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::r#type::v3::Int32Range;
use proto::ListenerFilterChainMatchPredicate as Predicate;
use proto::listener_filter_chain_match_predicate::{MatchSet, Rule};

use super::at::{At, at};
use crate::config::{
    FilterChain, HttpInspection, Inspection, PortMatch, ProxyInspection, ProxyVersion, Takes, TlsInspection, Transport,
};

const TIMEOUT: Duration = Duration::from_secs(15);

/// Predicates nest at most this deep; each level is a call.
const DEPTH_MAX: usize = 16;

/// The inspection of a listener with these chains.
pub(super) fn inspection(listener: &At<'_, proto::Listener>, chains: &[FilterChain]) -> Option<Inspection> {
    let listener = *listener;
    let mut inspection = Inspection {
        timeout: at!(listener.listener_filters_timeout).limit(Some(TIMEOUT)),
        goes_on: listener.value.continue_on_listener_filters_timeout,
        ..Inspection::default()
    };
    let filters = at!(listener.listener_filters);
    let mut all_read = true;
    for filter in filters.each() {
        all_read &= listener_filter(&filter, &mut inspection).is_some();
    }
    // As in Envoy, which puts the filter in: the chains would else never match.
    if inspection.tls.is_none() && chains.iter().any(needs_tls) {
        inspection.tls = Some(TlsInspection::default());
    }
    all_read.then_some(inspection)
}

/// Whether one of the filters is `original_dst`.
pub(super) fn asks_original(listener: &At<'_, proto::Listener>) -> bool {
    use proto::listener_filter::ConfigType;
    let listener = *listener;
    let filters = at!(listener.listener_filters);
    filters.each().any(|filter| match &filter.value.config_type {
        Some(ConfigType::TypedConfig(any)) => filter.field("typed_config", any).is::<OriginalDst>(),
        Some(ConfigType::ConfigDiscovery(_)) | None => false,
    })
}

fn needs_tls(chain: &FilterChain) -> bool {
    let Takes::Match(asked) = &chain.takes else { return false };
    let asks_names = !asked.server_names.is_empty() || !asked.protocols.is_empty();
    asked.transport == Some(Transport::Tls) || (asked.transport.is_none() && asks_names)
}

/// Reads one into `inspection`; `None`: it was refused.
fn listener_filter(filter: &At<'_, proto::ListenerFilter>, inspection: &mut Inspection) -> Option<()> {
    use proto::listener_filter::ConfigType;
    let filter = *filter;
    let any = match &filter.value.config_type {
        Some(ConfigType::TypedConfig(any)) => filter.field("typed_config", any),
        Some(ConfigType::ConfigDiscovery(source)) => {
            filter.field("config_discovery", source).refuse("ECDS is not served; use typed_config");
            return None;
        }
        None => {
            filter.refuse("has no typed_config; it is required");
            return None;
        }
    };
    let off = match at!(filter.filter_disabled).set() {
        None => None,
        Some(predicate) => Some(port_match(&predicate, 0)?),
    };
    let is_again = if any.is::<OriginalDst>() {
        // Its place among the others is of no account: the kernel is asked before the first byte is read.
        any.unpack::<OriginalDst>()?;
        if off.is_some() {
            at!(filter.filter_disabled).refuse("is not served for original_dst; remove it");
            return None;
        }
        false
    } else if any.is::<TlsInspector>() {
        let tls = any.unpack::<TlsInspector>()?;
        inspection.tls.replace(tls_inspector(&any.with(&tls), off)?).is_some()
    } else if any.is::<HttpInspector>() {
        any.unpack::<HttpInspector>()?;
        inspection.http.replace(HttpInspection { off }).is_some()
    } else if any.is::<ProxyProtocol>() {
        let proxy = any.unpack::<ProxyProtocol>()?;
        if inspection.tls.is_some() || inspection.http.is_some() {
            filter.refuse("comes after an inspector, which would look at its header; move it to the front");
            return None;
        }
        inspection.proxy.replace(proxy_protocol(&any.with(&proxy), off)?).is_some()
    } else {
        any.refuse(format_args!("listener filter {} is not served", any.type_name()));
        return None;
    };
    if is_again {
        filter.refuse(format_args!("{} is there twice", any.type_name()));
    }
    (!is_again).then_some(())
}

fn tls_inspector(tls: &At<'_, TlsInspector>, off: Option<PortMatch>) -> Option<TlsInspection> {
    let tls = *tls;
    let hello_max = match tls.value.max_client_hello_size {
        None => 16 * 1024,
        Some(_) => at!(tls.max_client_hello_size).within(1..=16 * 1024)?,
    };
    Some(TlsInspection {
        hello_max: usize::try_from(hello_max).ok()?,
        closes_on_error: tls.value.close_connection_on_client_hello_parsing_errors,
        off,
    })
}

fn proxy_protocol(proxy: &At<'_, ProxyProtocol>, off: Option<PortMatch>) -> Option<ProxyInspection> {
    let proxy = *proxy;
    let versions = at!(proxy.disallowed_versions);
    let mut refused = None;
    for version in versions.each() {
        let version = match version.one_of::<Version>()? {
            Version::V1 => ProxyVersion::V1,
            Version::V2 => ProxyVersion::V2,
        };
        if refused.is_some_and(|other| other != version) {
            versions.refuse("names both versions; leave one, or remove the filter");
            return None;
        }
        refused = Some(version);
    }
    Some(ProxyInspection { is_optional: proxy.value.allow_requests_without_proxy_protocol, refused, off })
}

fn port_match(predicate: &At<'_, Predicate>, depth: usize) -> Option<PortMatch> {
    if depth == DEPTH_MAX {
        predicate.refuse(format_args!("nests more than {DEPTH_MAX} deep"));
        return None;
    }
    match &predicate.value.rule {
        Some(Rule::AnyMatch(true)) => Some(PortMatch::Every),
        Some(Rule::AnyMatch(false)) => {
            predicate.field("any_match", &false).refuse("false is not served; use true");
            None
        }
        Some(Rule::NotMatch(inner)) => {
            let inner = port_match(&predicate.field("not_match", &**inner), depth + 1)?;
            Some(PortMatch::Not(Box::new(inner)))
        }
        Some(Rule::AndMatch(set)) => port_matches(&predicate.field("and_match", set), depth).map(PortMatch::All),
        Some(Rule::OrMatch(set)) => port_matches(&predicate.field("or_match", set), depth).map(PortMatch::Any),
        Some(Rule::DestinationPortRange(range)) => port_range(&predicate.field("destination_port_range", range)),
        None => {
            predicate.refuse("has no rule; one is required");
            None
        }
    }
}

fn port_matches(set: &At<'_, MatchSet>, depth: usize) -> Option<Vec<PortMatch>> {
    let set = *set;
    let rules = at!(set.rules);
    if rules.value.len() < 2 {
        rules.refuse(format_args!("has {} rules; at least 2 are required", rules.value.len()));
        return None;
    }
    let read: Vec<PortMatch> = rules.each().filter_map(|rule| port_match(&rule, depth + 1)).collect();
    (read.len() == rules.value.len()).then_some(read)
}

fn port_range(range: &At<'_, Int32Range>) -> Option<PortMatch> {
    let read = u32::try_from(range.value.start).ok().zip(u32::try_from(range.value.end).ok());
    let read = read.filter(|(start, end)| start < end && *end <= 65_536);
    if read.is_none() {
        let Int32Range { start, end } = range.value;
        range.refuse(format_args!("{start}..{end} is not a range within 0..65536"));
    }
    read.map(|(start, end)| PortMatch::Range(start..end))
}
