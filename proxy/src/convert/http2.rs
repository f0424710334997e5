//! Settings of HTTP/2 connections, and the upgrades that are granted.

use std::ops::RangeInclusive;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{Http2ProtocolOptions, KeepaliveSettings};
use envoy_types::pb::envoy::config::route::v3::route_action as route;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;
use envoy_types::pb::google::protobuf as google;

use super::at::{At, at};
use super::read;
use crate::config::{Http2Config, Http2Keepalive, Upgrade};

const STREAMS: RangeInclusive<u32> = 1..=0x7fff_ffff;
const WINDOW: RangeInclusive<u32> = 65_535..=0x7fff_ffff;
const MIN_KEEPALIVE: Duration = Duration::from_millis(1);
const DEFAULT_JITTER_PERCENT: u32 = 15;

/// Settings of HTTP/2 connections, within the bounds of the protocol.
pub(super) fn options(options: At<'_, Http2ProtocolOptions>) -> Option<Http2Config> {
    let default = Http2Config::default();
    let number = |at: At<'_, Option<google::UInt32Value>>, range, default| match at.value {
        None => Some(default),
        Some(_) => at.within(range),
    };
    let streams = number(at!(options.max_concurrent_streams), STREAMS, default.max_concurrent_streams);
    let stream_window = number(at!(options.initial_stream_window_size), WINDOW, default.stream_window);
    let connection_window = match options.value.initial_connection_window_size {
        None => Some(default.connection_window),
        Some(_) => at!(options.initial_connection_window_size).within(WINDOW).map(Some),
    };
    let keepalive = match at!(options.connection_keepalive).set() {
        None => Some(None),
        Some(settings) => keepalive(settings).map(Some),
    };
    Some(Http2Config {
        max_concurrent_streams: streams?,
        stream_window: stream_window?,
        connection_window: connection_window?,
        allow_connect: options.value.allow_connect,
        keepalive: keepalive?,
    })
}

fn keepalive(settings: At<'_, KeepaliveSettings>) -> Option<Http2Keepalive> {
    let interval = keepalive_span(at!(settings.interval));
    let timeout = at!(settings.timeout);
    let timeout = timeout.required().and_then(|_| keepalive_span(timeout));
    let jitter = at!(settings.interval_jitter);
    let jitter_percent = match jitter.value {
        None => Some(DEFAULT_JITTER_PERCENT),
        Some(_) => read::percent_bp(jitter).map(|bp| bp.div_ceil(100)),
    };
    if settings.value.connection_idle_interval.is_some() {
        at!(settings.connection_idle_interval).ignore();
    }
    Some(Http2Keepalive { interval: interval?, timeout: timeout??, jitter_percent: jitter_percent? })
}

/// A span of a millisecond or more; unset is `Some(None)`.
fn keepalive_span(at: At<'_, Option<google::Duration>>) -> Option<Option<Duration>> {
    if at.value.is_none() {
        return Some(None);
    }
    let span = at.span()?;
    if span < MIN_KEEPALIVE {
        at.refuse(format_args!("{span:?} is below {MIN_KEEPALIVE:?}"));
        return None;
    }
    Some(Some(span))
}

/// Upgrades that a listener grants.
pub(super) fn listener_upgrades(list: At<'_, Vec<hcm::UpgradeConfig>>) -> Vec<Upgrade> {
    let mut found = Vec::with_capacity(list.value.len());
    for upgrade in list.each() {
        if !upgrade.value.filters.is_empty() {
            at!(upgrade.filters).refuse("filters of one upgrade are not served; those of the listener hold for it");
        }
        add(&mut found, at!(upgrade.upgrade_type), at!(upgrade.enabled).flag(true), false);
    }
    found
}

/// Upgrades that a route grants or refuses, whatever its listener says.
pub(super) fn route_upgrades(list: At<'_, Vec<route::UpgradeConfig>>) -> Vec<Upgrade> {
    let mut found = Vec::with_capacity(list.value.len());
    for upgrade in list.each() {
        let ends_here = at!(upgrade.connect_config).set().is_some_and(|connect| {
            if let Some(header) = at!(connect.proxy_protocol_config).set() {
                header.refuse("a PROXY header before a tunnel is not served");
            }
            if connect.value.allow_post {
                at!(connect.allow_post).refuse("a tunnel opened by POST is not served; use CONNECT");
            }
            true
        });
        let kind = at!(upgrade.upgrade_type);
        if ends_here && !kind.value.eq_ignore_ascii_case(Upgrade::CONNECT) {
            at!(upgrade.connect_config).refuse(format_args!("is for CONNECT, not for {:?}", kind.value));
        }
        add(&mut found, kind, at!(upgrade.enabled).flag(true), ends_here);
    }
    found
}

fn add(found: &mut Vec<Upgrade>, kind: At<'_, String>, enabled: bool, ends_here: bool) {
    let Some(name) = kind.named() else { return };
    let name = name.to_ascii_lowercase();
    if name == "h2c" {
        kind.refuse("h2c is not tunnelled: its requests would pass every rule unseen; HTTP/2 needs no upgrade here");
    } else if found.iter().any(|before| *before.kind == *name) {
        kind.refuse(format_args!("{name:?} is there already"));
    } else {
        found.push(Upgrade { kind: name.into(), enabled, ends_here });
    }
}

#[cfg(test)]
mod tests {
    use super::super::rejection::{Findings, ResourceKind};
    use super::*;
    use envoy_types::pb::envoy::r#type::v3::Percent;

    fn read<M, T>(message: &M, read: impl FnOnce(At<'_, M>) -> Option<T>) -> Result<T, String> {
        let findings = Findings::default();
        let value = read(At::root(&findings, message));
        findings.finish(ResourceKind::Cluster, "c", value).result.map_err(|rejection| rejection.to_string())
    }

    fn number(value: u32) -> Option<google::UInt32Value> {
        Some(google::UInt32Value { value })
    }

    fn micros(micros: i32) -> Option<google::Duration> {
        Some(google::Duration { seconds: 0, nanos: micros * 1000 })
    }

    #[test]
    fn windows_and_streams_keep_to_the_bounds_of_the_protocol() {
        let with = |streams, stream, connection| Http2ProtocolOptions {
            max_concurrent_streams: streams,
            initial_stream_window_size: stream,
            initial_connection_window_size: connection,
            ..Default::default()
        };
        assert_eq!(read(&with(None, None, None), options), Ok(Http2Config::default()));
        for (edge, window) in [(1, 65_535), (0x7fff_ffff, 0x7fff_ffff)] {
            let set = read(&with(number(edge), number(window), number(window)), options).unwrap();
            assert_eq!((set.max_concurrent_streams, set.stream_window), (edge, window));
            assert_eq!(set.connection_window, Some(window));
        }
        for (bad, text) in [
            (with(number(0), None, None), "max_concurrent_streams: 0 is not in 1..=2147483647"),
            (with(number(1 << 31), None, None), "max_concurrent_streams: 2147483648 is not in 1..=2147483647"),
            (with(None, number(65_534), None), "initial_stream_window_size: 65534 is not in 65535..=2147483647"),
            (with(None, None, number(1 << 31)), "initial_connection_window_size: 2147483648 is not in 65535..="),
        ] {
            let told = read(&bad, options).unwrap_err();
            assert!(told.contains(text), "{told}");
        }
    }

    #[test]
    fn keepalive_needs_a_timeout_and_a_millisecond() {
        let with = |interval, timeout, jitter: Option<f64>| Http2ProtocolOptions {
            connection_keepalive: Some(KeepaliveSettings {
                interval,
                timeout,
                interval_jitter: jitter.map(|value| Percent { value }),
                connection_idle_interval: None,
            }),
            ..Default::default()
        };
        let set = read(&with(micros(2000), micros(1000), None), options).unwrap().keepalive.unwrap();
        assert_eq!((set.interval, set.timeout), (Some(Duration::from_millis(2)), MIN_KEEPALIVE));
        assert_eq!(set.jitter_percent, 15);
        let set = read(&with(None, micros(1000), Some(0.5)), options).unwrap().keepalive.unwrap();
        assert_eq!((set.interval, set.jitter_percent), (None, 1));
        for (bad, text) in [
            (with(None, None, None), "connection_keepalive.timeout: is not set; it is required"),
            (with(None, micros(999), None), "connection_keepalive.timeout: 999µs is below 1ms"),
            (with(micros(0), micros(1000), None), "connection_keepalive.interval: 0ns is below 1ms"),
            (with(None, micros(1000), Some(101.0)), "interval_jitter.value: 101 is not in 0..=100"),
        ] {
            let told = read(&bad, options).unwrap_err();
            assert!(told.contains(text), "{told}");
        }
    }

    #[test]
    fn upgrades_are_there_once_in_lower_case() {
        let one = |kind: &str, enabled: Option<bool>| hcm::UpgradeConfig {
            upgrade_type: kind.to_owned(),
            enabled: enabled.map(|value| google::BoolValue { value }),
            ..Default::default()
        };
        let set = read(&vec![one("WebSocket", None), one("CONNECT", Some(false))], |at| Some(listener_upgrades(at)));
        let expected = [("websocket", true), ("connect", false)];
        let expected = expected.map(|(kind, enabled)| Upgrade { kind: kind.into(), enabled, ends_here: false });
        assert_eq!(set.unwrap(), expected);
        let filtered = hcm::UpgradeConfig { filters: vec![Default::default()], ..one("a", None) };
        for (bad, text) in [
            (vec![one("", None)], "[0].upgrade_type: is empty; a name is required"),
            (vec![one("a", None), one("A", None)], "[1].upgrade_type: \"a\" is there already"),
            (vec![one("H2C", None)], "[0].upgrade_type: h2c is not tunnelled"),
            (vec![filtered], "[0].filters: filters of one upgrade are not served"),
        ] {
            let told = read(&bad, |at| Some(listener_upgrades(at))).unwrap_err();
            assert!(told.contains(text), "{told}");
        }
    }

    #[test]
    fn a_tunnel_that_ends_here_is_told_from_one_passed_on() {
        use route::upgrade_config::ConnectConfig;
        let one = |kind: &str, connect: Option<ConnectConfig>| {
            vec![route::UpgradeConfig { upgrade_type: kind.to_owned(), enabled: None, connect_config: connect }]
        };
        for (connect, ends_here) in [(None, false), (Some(ConnectConfig::default()), true)] {
            let set = read(&one("CONNECT", connect), |at| Some(route_upgrades(at))).unwrap();
            assert_eq!(set, [Upgrade { kind: "connect".into(), enabled: true, ends_here }]);
        }
        let post = ConnectConfig { allow_post: true, ..Default::default() };
        let proxied = ConnectConfig { proxy_protocol_config: Some(Default::default()), ..Default::default() };
        for (bad, text) in [
            (one("CONNECT", Some(post)), "[0].connect_config.allow_post: a tunnel opened by POST"),
            (one("CONNECT", Some(proxied)), "[0].connect_config.proxy_protocol_config: a PROXY header"),
            (one("websocket", Some(ConnectConfig::default())), "[0].connect_config: is for CONNECT"),
        ] {
            let told = read(&bad, |at| Some(route_upgrades(at))).unwrap_err();
            assert!(told.contains(text), "{told}");
        }
    }
}
