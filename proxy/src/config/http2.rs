//! HTTP/2 on either side, and upgrades.

use std::sync::Arc;
use std::time::Duration;

/// Which version of HTTP the connections of a listener speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// HTTP/2 when a connection begins with its preface, else HTTP/1.
    #[default]
    Auto,
    /// HTTP/1 only.
    Http1,
    /// HTTP/2 only, by prior knowledge.
    Http2,
}

/// Which version of HTTP the endpoints of a cluster are spoken to in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// The one that the request came in (Envoy: `use_downstream_protocol_config`).
    Downstream,
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
}

/// Settings of HTTP/2 connections. Source: Envoy, `Http2ProtocolOptions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2Config {
    /// Streams of one connection at once: 1 or more, default 1024. Announced to a client; towards an endpoint the lower
    /// of this and what the endpoint announces holds, and more open another connection.
    pub max_concurrent_streams: u32,
    /// Bytes of one stream's body that its sender may be ahead of its reader: 65535 ..= 2^31 - 1, default 64 KiB
    /// (Envoy: 16 MiB). It bounds what a stalled reader makes this process hold.
    pub stream_window: u32,
    /// As above, over all streams of a connection; default as much as all streams may hold together, so that stalled
    /// streams never take the others' share.
    pub connection_window: Option<u32>,
    /// Extended CONNECT (RFC 8441) is accepted from clients, and used towards endpoints.
    pub allow_connect: bool,
    /// How a silent connection is tried; `None` not at all.
    pub keepalive: Option<Http2Keepalive>,
}

impl Default for Http2Config {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1024,
            stream_window: 64 * 1024,
            connection_window: None,
            allow_connect: false,
            keepalive: None,
        }
    }
}

/// PING on a connection. Source: Envoy, `KeepaliveSettings`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2Keepalive {
    /// Time between two of them; `None`: none are sent.
    pub interval: Option<Duration>,
    /// Time for the answer; the connection is then closed.
    pub timeout: Duration,
    /// Largest random addition to the interval, in percent of it; default 15.
    pub jitter_percent: u32,
}

/// Whether requests may turn their connection into a tunnel of one kind. Source: Envoy, `UpgradeConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// The word of the `Upgrade` header, in lower case, or [`Upgrade::CONNECT`].
    pub kind: Arc<str>,
    /// It is granted.
    pub enabled: bool,
    /// The tunnel ends at this proxy: the endpoint gets the bytes inside and no CONNECT of its own. Envoy: `connect_config`.
    pub ends_here: bool,
}

impl Upgrade {
    /// The kind of the CONNECT method.
    pub const CONNECT: &str = "connect";
}
