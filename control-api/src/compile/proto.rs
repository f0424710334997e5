//! Purpose: the small conversions that every message needs.

use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    self as core, AggregatedConfigSource, ApiVersion, ConfigSource, RuntimeFractionalPercent, SocketAddress,
};
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, TokenBucket};
use envoy_types::pb::google::protobuf;

use crate::model::traffic_policy;

pub(super) fn span(span: Duration) -> protobuf::Duration {
    protobuf::Duration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.subsec_nanos()).unwrap_or(0),
    }
}

pub(super) fn number(value: u32) -> protobuf::UInt32Value {
    protobuf::UInt32Value { value }
}

pub(super) fn flag(value: bool) -> protobuf::BoolValue {
    protobuf::BoolValue { value }
}

pub(super) fn address(address: SocketAddr) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(address.port()))),
            ..SocketAddress::default()
        })),
    }
}

pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}

pub(super) fn regex(regex: &str) -> RegexMatcher {
    RegexMatcher { regex: regex.to_owned(), ..RegexMatcher::default() }
}

pub(super) fn string_matcher(value: &str, is_regex: bool) -> StringMatcher {
    let pattern = if is_regex { MatchPattern::SafeRegex(regex(value)) } else { MatchPattern::Exact(value.to_owned()) };
    StringMatcher { ignore_case: false, match_pattern: Some(pattern) }
}

pub(super) fn header_matcher(name: &str, value: &str, is_regex: bool) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(string_matcher(value, is_regex))),
        ..HeaderMatcher::default()
    }
}

pub(super) fn always() -> RuntimeFractionalPercent {
    RuntimeFractionalPercent {
        default_value: Some(FractionalPercent { numerator: 100, denominator: DenominatorType::Hundred.into() }),
        runtime_key: String::new(),
    }
}

pub(super) fn bucket(limit: &traffic_policy::TokenBucket) -> TokenBucket {
    TokenBucket {
        max_tokens: limit.max,
        tokens_per_fill: Some(number(limit.fill)),
        fill_interval: Some(span(limit.interval)),
    }
}
