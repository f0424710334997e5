//! **Purpose.** The one refusal contract: every answer that the proxy makes itself, and every opaque connection that it
//! breaks off, is a [`Fault`].
//!
//! **Shape.** A [`Kind`] is a closed list; status code, side, stage, retry verdict, metric label and Envoy response flag
//! are functions of it, in one table. The `outrigger-fault` header is written from the same value:
//! `side=upstream; stage=connect; kind=refused; cluster=orders; retry=safe; epoch=42`.
//!
//! **Source.** Response flags: Envoy, access log `%RESPONSE_FLAGS%`. Status codes: RFC 9110 §15, RFC 6585.

use std::fmt;
use std::sync::Arc;

/// Whose doing it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The one who connected to us.
    Downstream,
    /// This proxy: its configuration, its limits, its life cycle.
    Local,
    /// The one whom we connected to.
    Upstream,
}

/// Where in the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Who may call.
    Authorize,
    /// Choosing an endpoint.
    Balance,
    /// Opening a connection.
    Connect,
    /// Telling what a connection is.
    Detect,
    /// Reading a message head or body.
    Parse,
    /// Rate limits and circuit limits.
    Policy,
    /// Passing the bytes of an opaque connection on.
    Relay,
    /// Waiting for or reading the upstream's answer.
    Response,
    /// Choosing a route.
    Route,
    /// Sending the request.
    Send,
}

/// Whether the same request may be sent again without doing its work twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// It would be refused again.
    Never,
    /// No byte of it reached the application.
    Safe,
    /// It may have been served.
    Unknown,
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident: $side:ident $stage:ident $label:literal $status:literal $retry:ident $flag:literal;)+) => {
        /// What happened. The table beside each name: side, stage, label, status, retry verdict, Envoy response flag.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $($(#[doc = $doc])+ $name,)+ }

        impl Kind {
            /// Every kind, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];
            /// Whose doing it is.
            pub fn side(self) -> Side { match self { $(Self::$name => Side::$side,)+ } }
            /// Where it happens.
            pub fn stage(self) -> Stage { match self { $(Self::$name => Stage::$stage,)+ } }
            /// Its name in the header, the log and the metrics; unique within side and stage.
            pub fn label(self) -> &'static str { match self { $(Self::$name => $label,)+ } }
            /// The status it is answered with unless configuration sets another; 0: the connection is closed without an answer.
            pub fn status(self) -> u16 { match self { $(Self::$name => $status,)+ } }
            /// The verdict it carries unless the maker of the fault knows better.
            pub fn retry(self) -> Retry { match self { $(Self::$name => Retry::$retry,)+ } }
            /// One sentence for the body of the answer.
            pub fn explanation(self) -> &'static str { match self { $(Self::$name => concat!($($doc),+).trim_ascii_start(),)+ } }
            /// Envoy's response flag.
            pub fn flag(self) -> &'static str { match self { $(Self::$name => $flag,)+ } }
        }
    };
}

kinds! {
    /// Content-Length and Transfer-Encoding contradict each other or themselves.
    BadFraming:        Downstream Parse    "bad-framing"        400 Never   "DPE";
    /// A header line that RFC 9112 does not allow.
    BadHeader:         Downstream Parse    "bad-header"         400 Never   "DPE";
    /// No Host, several, or one that is no authority.
    BadHost:           Downstream Parse    "bad-host"           400 Never   "DPE";
    /// A request line that RFC 9112 does not allow.
    BadRequestLine:    Downstream Parse    "bad-request-line"   400 Never   "DPE";
    /// A path with NUL, control bytes, a fragment, or one that leaves the root.
    BadPath:           Downstream Parse    "bad-path"           400 Never   "DPE";
    /// A chunk that is not one.
    BadChunk:          Downstream Parse    "bad-chunk"          400 Never   "DPE";
    /// Header name with an underscore where configuration refuses it.
    Underscore:        Downstream Parse    "underscore-header"  400 Never   "DPE";
    /// A transfer coding other than chunked.
    BadCoding:         Downstream Parse    "bad-coding"         501 Never   "DPE";
    /// Neither HTTP/1.1 nor an accepted HTTP/1.0.
    BadVersion:        Downstream Parse    "bad-version"        426 Never   "DPE";
    /// An expectation other than 100-continue.
    BadExpectation:    Downstream Parse    "bad-expectation"    417 Never   "DPE";
    /// More bytes or headers than the listener takes.
    HeadTooLarge:      Downstream Parse    "head-too-large"     431 Never   "DPE";
    /// The head did not arrive in time.
    HeadTimeout:       Downstream Parse    "head-timeout"       408 Safe    "DT";
    /// The request did not arrive in time.
    RequestTimeout:    Downstream Parse    "request-timeout"    408 Unknown "DT";
    /// The connection begins with no PROXY header, or with a broken one.
    BadProxyHeader:    Downstream Detect   "bad-proxy-header"   0   Never   "DPE";
    /// The connection does not begin with a ClientHello that can be read.
    BadClientHello:    Downstream Detect   "bad-client-hello"   0   Never   "DPE";
    /// A connection made to a listener that only rules of the kernel are to bring connections to: it would go on to itself.
    AcceptLoop:        Local      Detect   "loop"               0   Never   "NR";
    /// The client did not say in time what its connection is.
    DetectTimeout:     Downstream Detect   "timeout"            0   Safe    "DT";
    /// An upgrade or CONNECT that no configuration grants.
    UpgradeRefused:    Downstream Route    "upgrade-refused"    403 Never   "";
    /// The time that a call of gRPC was given by its caller ran out.
    CallTimeout:       Downstream Response "call-timeout"     408 Unknown "UT";
    /// The downstream went away before its answer.
    Gone:              Downstream Response "gone"               0   Unknown "DC";
    /// No filter chain of the listener takes the connection.
    NoFilterChain:     Local      Detect   "no-filter-chain"    0   Never   "NR";
    /// No route matches.
    NoRoute:           Local      Route    "no-route"           404 Never   "NR";
    /// The route's cluster is not there.
    NoCluster:         Local      Route    "no-cluster"         503 Safe    "NC";
    /// The listener's routes have not arrived.
    NoRouteTable:      Local      Route    "no-route-table"     503 Safe    "NR";
    /// A route that answers by itself.
    DirectResponse:    Local      Route    "direct-response"    200 Never   "";
    /// A route that sends the client elsewhere.
    Redirect:          Local      Route    "redirect"           301 Never   "";
    /// The policy in force does not let this caller do this.
    AccessDenied:      Local      Authorize "denied"            403 Never   "";
    /// A local rate limit on the listener, the host or the route.
    RateLimited:       Local      Policy   "rate-limited"       429 Safe    "RL";
    /// A local rate limit on the cluster.
    ClusterLimited:    Local      Policy   "cluster-rate-limited" 429 Safe  "RL";
    /// `max_requests` of the cluster.
    MaxRequests:       Local      Policy   "max-requests"       503 Safe    "UO";
    /// `max_pending_requests` of the cluster.
    MaxPending:        Local      Policy   "max-pending"        503 Safe    "UO";
    /// `max_connections` of the cluster.
    MaxConnections:    Local      Policy   "max-connections"    503 Safe    "UO";
    /// This proxy is going away.
    Draining:          Local      Policy   "draining"           503 Safe    "DR";
    /// The cluster wants PROXY headers, which connections shared by requests cannot tell.
    ProxyHeaderPooled: Local      Connect  "proxy-header"       503 Never   "UF";
    /// The connection would be to a listener of this proxy.
    ConnectLoop:       Local      Connect  "loop"               503 Never   "UF";
    /// The cluster's endpoints are original destinations, and this connection has none.
    NoOriginal:        Local      Balance  "no-original-destination" 503 Never "UH";
    /// The cluster has no endpoint that may be used.
    NoEndpoint:        Local      Balance  "no-endpoint"        503 Safe    "UH";
    /// Something that cannot happen did; a bug.
    Internal:          Local      Response "internal"           500 Unknown "";
    /// A stream lived as long as its route lets it.
    StreamOverAge:     Local      Response "over-age"         504 Unknown "UMSDR";
    /// The endpoint refused the connection.
    ConnectRefused:    Upstream   Connect  "refused"            503 Safe    "UF";
    /// The endpoint cannot be reached.
    ConnectUnreachable: Upstream  Connect  "unreachable"        503 Safe    "UF";
    /// The connect took too long.
    ConnectTimeout:    Upstream   Connect  "timeout"            503 Safe    "UF";
    /// Sending failed; see the retry verdict for what left.
    SendReset:         Upstream   Send     "reset"              503 Unknown "UC";
    /// The endpoint did not process the request: it refused the stream, or is going away.
    StreamRefused:     Upstream   Send     "refused-stream"     503 Safe    "UR";
    /// The endpoint does not take extended CONNECT, by which HTTP/2 upgrades.
    UpgradeUnsupported: Upstream  Send     "upgrade-unsupported" 502 Never  "";
    /// The connection was reset before the response head was complete.
    ResponseReset:     Upstream   Response "reset"              503 Unknown "UR";
    /// The connection ended before the response head was complete.
    ResponseClosed:    Upstream   Response "closed"             503 Unknown "UC";
    /// The answer is not HTTP/1.1.
    ResponseMalformed: Upstream   Response "malformed"          502 Unknown "UPE";
    /// The answer's head is larger than 60 KiB or 100 headers.
    ResponseTooLarge:  Upstream   Response "head-too-large"     502 Unknown "UPE";
    /// The body ended or broke off after the head was passed on: the downstream connection is reset.
    ResponseTruncated: Upstream   Response "truncated"          0   Unknown "UC";
    /// One try took too long.
    PerTryTimeout:     Upstream   Response "per-try-timeout"    504 Unknown "UT";
    /// The route's timeout ran out.
    RouteTimeout:      Upstream   Response "timeout"            504 Unknown "UT";
    /// No byte moved for the stream idle timeout.
    StreamIdle:        Upstream   Response "stream-idle"        504 Unknown "SI";
    /// The client reset its opaque connection: the endpoint's is reset too.
    RelayGone:         Downstream Relay    "reset"              0   Unknown "DC";
    /// No byte of an opaque connection moved either way for the idle timeout.
    RelayIdle:         Local      Relay    "idle"               0   Unknown "";
    /// An opaque connection lived as long as it may.
    RelayOverAge:      Local      Relay    "over-age"           0   Unknown "DT";
    /// The endpoint reset an opaque connection: the client's is reset too.
    RelayReset:        Upstream   Relay    "reset"              0   Unknown "UC";
}

impl Side {
    /// Its name in the header, the log and the metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Local => "local",
            Self::Upstream => "upstream",
        }
    }
}

impl Stage {
    /// Its name in the header, the log and the metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Authorize => "authorize",
            Self::Balance => "balance",
            Self::Connect => "connect",
            Self::Detect => "detect",
            Self::Parse => "parse",
            Self::Policy => "policy",
            Self::Relay => "relay",
            Self::Response => "response",
            Self::Route => "route",
            Self::Send => "send",
        }
    }
}

impl Retry {
    /// Its name in the header, the log and the metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Safe => "safe",
            Self::Unknown => "unknown",
        }
    }
}

/// One refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What happened; side and stage follow from it.
    pub kind: Kind,
    /// Whether a retry is safe; [`Kind::retry`] unless better is known.
    pub retry: Retry,
    /// The rule that decided: a limit's identity, a route's name.
    pub rule: Option<Arc<str>>,
    /// The cluster it concerns.
    pub cluster: Option<Arc<str>>,
    /// Status set by configuration in place of [`Kind::status`].
    pub status: Option<u16>,
}

impl Fault {
    /// A fault with the verdict of its kind.
    pub fn new(kind: Kind) -> Self {
        Self { kind, retry: kind.retry(), rule: None, cluster: None, status: None }
    }

    /// Names the rule that decided.
    pub fn with_rule(mut self, rule: Arc<str>) -> Self {
        self.rule = Some(rule);
        self
    }

    /// Names the cluster.
    pub fn with_cluster(mut self, cluster: Arc<str>) -> Self {
        self.cluster = Some(cluster);
        self
    }

    /// Sets the verdict.
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Sets the status.
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// The status it is answered with; 0: no answer, the connection is closed.
    pub fn status(&self) -> u16 {
        self.status.unwrap_or_else(|| self.kind.status())
    }

    /// The `outrigger-fault` header of this fault at `epoch`.
    pub fn header(&self, epoch: u64) -> FaultHeader<'_> {
        FaultHeader { fault: self, epoch }
    }
}

/// Writes the value of the `outrigger-fault` header. Bytes of names that a header may not carry are written as `_`.
#[derive(Debug)]
pub struct FaultHeader<'a> {
    fault: &'a Fault,
    epoch: u64,
}

/// Would end the name, or the header.
fn is_unsafe(c: char) -> bool {
    !c.is_ascii_graphic() || c == ';'
}

impl fmt::Display for FaultHeader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.fault.kind;
        write!(f, "side={}; stage={}; kind={}", kind.side().label(), kind.stage().label(), kind.label())?;
        for (key, name) in [("cluster", &self.fault.cluster), ("rule", &self.fault.rule)] {
            if let Some(name) = name {
                write!(f, "; {key}=")?;
                // Piece by piece, for nearly every name is one: a character at a time took a fifth of a refusal.
                for piece in name.split_inclusive(is_unsafe) {
                    let safe = piece.trim_end_matches(is_unsafe);
                    f.write_str(safe)?;
                    f.write_str(if safe.len() < piece.len() { "_" } else { "" })?;
                }
            }
        }
        write!(f, "; retry={}; epoch={}", self.fault.retry.label(), self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_kind_is_told_apart_by_side_stage_and_label() {
        let seen: HashSet<_> = Kind::ALL.iter().map(|k| (k.side(), k.stage(), k.label())).collect();
        assert_eq!(seen.len(), Kind::ALL.len());
    }

    #[test]
    fn every_kind_has_a_status_that_fits_its_side() {
        for &kind in Kind::ALL {
            let status = kind.status();
            match kind.side() {
                Side::Downstream => assert!(status == 0 || (400..=501).contains(&status), "{kind:?}"),
                Side::Local => assert!(status == 0 || (200..=599).contains(&status), "{kind:?}"),
                Side::Upstream => assert!(status == 0 || (502..=504).contains(&status), "{kind:?}"),
            }
            assert!(
                kind.label().bytes().all(|b| b.is_ascii_lowercase() || b == b'-' || b.is_ascii_digit()),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn header_names_everything() {
        let fault = Fault::new(Kind::ConnectRefused).with_cluster("orders".into());
        assert_eq!(
            fault.header(42).to_string(),
            "side=upstream; stage=connect; kind=refused; cluster=orders; retry=safe; epoch=42"
        );
    }

    #[test]
    fn header_value_cannot_be_broken_by_a_name() {
        let fault = Fault::new(Kind::NoCluster).with_cluster("a\r\nb; é".into());
        assert_eq!(
            fault.header(1).to_string(),
            "side=local; stage=route; kind=no-cluster; cluster=a__b___; retry=safe; epoch=1"
        );
    }
}
