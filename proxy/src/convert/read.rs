//! Readers of small messages that many resources share: addresses, shares, sources.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, Percent, fractional_percent::DenominatorType};

use super::at::{At, at};

/// All requests, in millionths.
pub(super) const ALL_PPM: u32 = 1_000_000;

/// An IP address and port.
pub(super) fn ip_address(address: At<'_, Option<core::Address>>) -> Option<SocketAddr> {
    with_socket(address, |socket| {
        let text = at!(socket.address);
        let ip = text.value.parse::<IpAddr>().ok();
        if ip.is_none() {
            text.refuse(format_args!("{:?} is not an IP address", text.value));
        }
        let port = port(socket);
        Some(SocketAddr::new(ip?, port?))
    })
}

/// A host name or IP address, and a port.
pub(super) fn host_and_port(address: At<'_, Option<core::Address>>) -> Option<(Arc<str>, u16)> {
    with_socket(address, |socket| {
        let text = at!(socket.address);
        let is_name = text.value.len() <= 253
            && !text.value.is_empty()
            && text.value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':'));
        if !is_name {
            text.refuse(format_args!("{:?} is not a host name or IP address", text.value));
        }
        let port = port(socket);
        Some((Arc::from(is_name.then_some(text.value.as_str())?), port?))
    })
}

fn with_socket<T>(
    address: At<'_, Option<core::Address>>,
    read: impl FnOnce(At<'_, core::SocketAddress>) -> Option<T>,
) -> Option<T> {
    let address = address.required()?;
    let Some(kind) = &address.value.address else {
        address.refuse("has neither socket_address nor pipe; socket_address is required");
        return None;
    };
    match kind {
        core::address::Address::SocketAddress(socket) => {
            let socket = address.field("socket_address", socket);
            let protocol = at!(socket.protocol).one_of::<core::socket_address::Protocol>()?;
            if protocol != core::socket_address::Protocol::Tcp {
                at!(socket.protocol).refuse("UDP is not served; only TCP is");
                return None;
            }
            read(socket)
        }
        core::address::Address::Pipe(pipe) => {
            address.field("pipe", pipe).refuse("Unix sockets are not served; use socket_address");
            None
        }
        core::address::Address::EnvoyInternalAddress(internal) => {
            address
                .field("envoy_internal_address", internal)
                .refuse("internal listeners are not served; use socket_address");
            None
        }
    }
}

fn port(socket: At<'_, core::SocketAddress>) -> Option<u16> {
    use core::socket_address::PortSpecifier;
    match &socket.value.port_specifier {
        Some(PortSpecifier::PortValue(value)) => {
            let port = u16::try_from(*value).ok();
            if port.is_none() {
                socket.field("port_value", value).refuse(format_args!("{value} is not in 0..=65535"));
            }
            port
        }
        Some(PortSpecifier::NamedPort(name)) => {
            socket.field("named_port", name).refuse("named ports are not served; use port_value");
            None
        }
        None => {
            socket.refuse("has no port; port_value is required");
            None
        }
    }
}

/// A share of requests in millionths.
pub(super) fn fraction_ppm(fraction: At<'_, FractionalPercent>) -> Option<u32> {
    let per = match at!(fraction.denominator).one_of::<DenominatorType>()? {
        DenominatorType::Hundred => 10_000,
        DenominatorType::TenThousand => 100,
        DenominatorType::Million => 1,
    };
    let share = fraction.value.numerator.checked_mul(per).filter(|share| *share <= ALL_PPM);
    if share.is_none() {
        let total = ALL_PPM / per;
        at!(fraction.numerator).refuse(format_args!("{} is not in 0..={total}", fraction.value.numerator));
    }
    share
}

/// The default of a runtime fraction; the runtime itself is not consulted.
pub(super) fn runtime_fraction_ppm(fraction: At<'_, Option<core::RuntimeFractionalPercent>>) -> Option<u32> {
    let fraction = fraction.set()?;
    if !fraction.value.runtime_key.is_empty() {
        at!(fraction.runtime_key).ignore();
    }
    fraction_ppm(at!(fraction.default_value).required()?)
}

/// A percentage in hundredths of a percent, rounded.
pub(super) fn percent_bp(percent: At<'_, Option<Percent>>) -> Option<u32> {
    let percent = percent.set()?;
    let value = percent.value.value;
    if !(0.0..=100.0).contains(&value) {
        at!(percent.value).refuse(format_args!("{value} is not in 0..=100"));
        return None;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range above makes it fit")]
    Some((value * 100.0).round() as u32)
}

/// A source of resources: only the aggregated stream is served.
pub(super) fn ads_source(source: At<'_, Option<core::ConfigSource>>) {
    use core::config_source::ConfigSourceSpecifier as Source;
    let Some(source) = source.required() else { return };
    match &source.value.config_source_specifier {
        Some(Source::Ads(_) | Source::Self_(_)) => {}
        Some(Source::ApiConfigSource(other)) => source
            .field("api_config_source", other)
            .refuse("a server of its own is not served; use `ads: {}` and dynamic_resources.ads_config"),
        Some(Source::Path(path)) => source.field("path", path).refuse("files are not watched; use `ads: {}`"),
        Some(Source::PathConfigSource(path)) => {
            source.field("path_config_source", path).refuse("files are not watched; use `ads: {}`");
        }
        None => source.refuse("names no source; use `ads: {}`"),
    }
}

/// A text or bytes given in place.
pub(super) fn inline_bytes(source: At<'_, core::DataSource>) -> Option<Arc<[u8]>> {
    use core::data_source::Specifier;
    match &source.value.specifier {
        Some(Specifier::InlineString(text)) => Some(Arc::from(text.as_bytes())),
        Some(Specifier::InlineBytes(bytes)) => Some(Arc::from(bytes.as_slice())),
        Some(Specifier::Filename(name)) => {
            source.field("filename", name).refuse("files are not read; use inline_string");
            None
        }
        Some(Specifier::EnvironmentVariable(name)) => {
            source.field("environment_variable", name).refuse("the environment is not read; use inline_string");
            None
        }
        None => {
            source.refuse("has no content; inline_string is required");
            None
        }
    }
}

/// A transport socket that changes nothing. Encryption is never dropped silently.
pub(super) fn plaintext(socket: At<'_, core::TransportSocket>) {
    use core::transport_socket::ConfigType;
    match &socket.value.config_type {
        Some(ConfigType::TypedConfig(any)) => {
            let any = socket.field("typed_config", any);
            if !any.is::<RawBuffer>() {
                any.refuse(format_args!("transport socket {} is not served; only raw_buffer is", any.type_name()));
            }
        }
        None if socket.value.name == "envoy.transport_sockets.raw_buffer" => {}
        None => {
            socket.refuse(format_args!("transport socket {:?} is not served; only raw_buffer is", socket.value.name))
        }
    }
}
