//! The codes of gRPC, and what stands for what between them, HTTP statuses and the faults of this proxy.

use crate::fault::{Fault, Kind};

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal $word:literal $http:literal;)+) => {
        /// How a call ended. The table beside each name: number, word, the HTTP status that says the same.
        ///
        /// Source: gRPC, `doc/statuscodes.md`; the statuses are Envoy's `grpcToHttpStatus`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum GrpcCode { $($(#[doc = $doc])+ $name = $number,)+ }

        impl GrpcCode {
            /// Every code; `code as usize` is its place.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];
            /// As it stands in the `grpc-status` header.
            pub fn number(self) -> &'static str { match self { $(Self::$name => stringify!($number),)+ } }
            /// Its name in metrics and logs.
            pub fn label(self) -> &'static str { match self { $(Self::$name => $word,)+ } }
            /// The HTTP status that says the same: what outlier detection judges by.
            pub fn http_status(self) -> u16 { match self { $(Self::$name => $http,)+ } }
        }
    };
}

codes! {
    /// It was served.
    Ok = 0 "OK" 200;
    /// Its caller gave it up.
    Cancelled = 1 "CANCELLED" 499;
    /// Nothing better is known.
    Unknown = 2 "UNKNOWN" 500;
    /// An argument is wrong whatever the state.
    InvalidArgument = 3 "INVALID_ARGUMENT" 400;
    /// Its deadline passed first.
    DeadlineExceeded = 4 "DEADLINE_EXCEEDED" 504;
    /// What it asks for is not there.
    NotFound = 5 "NOT_FOUND" 404;
    /// What it should make is there.
    AlreadyExists = 6 "ALREADY_EXISTS" 409;
    /// Its caller may not.
    PermissionDenied = 7 "PERMISSION_DENIED" 403;
    /// A quota or a disk is spent.
    ResourceExhausted = 8 "RESOURCE_EXHAUSTED" 429;
    /// The state does not allow it.
    FailedPrecondition = 9 "FAILED_PRECONDITION" 400;
    /// It lost against another one.
    Aborted = 10 "ABORTED" 409;
    /// Past the end.
    OutOfRange = 11 "OUT_OF_RANGE" 400;
    /// No such method.
    Unimplemented = 12 "UNIMPLEMENTED" 501;
    /// An invariant is broken.
    Internal = 13 "INTERNAL" 500;
    /// For now; trying again may help.
    Unavailable = 14 "UNAVAILABLE" 503;
    /// What was stored is lost.
    DataLoss = 15 "DATA_LOSS" 500;
    /// Its caller is not known.
    Unauthenticated = 16 "UNAUTHENTICATED" 401;
}

impl GrpcCode {
    /// The value of a `grpc-status` header. A number without a name, and what is no number, is [`GrpcCode::Unknown`], as
    /// gRPC's clients take it.
    pub fn parse(value: &[u8]) -> Self {
        let number = std::str::from_utf8(value).ok().filter(|text| !text.starts_with('+'));
        let place = number.and_then(|text| text.parse::<usize>().ok());
        place.and_then(|place| Self::ALL.get(place).copied()).unwrap_or(Self::Unknown)
    }

    /// What an HTTP status means to a caller of gRPC that got no `grpc-status`.
    /// Source: gRPC, `doc/http-grpc-status-mapping.md`.
    pub fn of_http(status: u16) -> Self {
        match status {
            400 => Self::Internal,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 => Self::Unimplemented,
            429 | 502 | 503 | 504 => Self::Unavailable,
            _ => Self::Unknown,
        }
    }

    /// What a fault of this proxy is answered with. A status set by configuration decides as any HTTP status does.
    pub fn of_fault(fault: &Fault) -> Self {
        fault.status.map_or_else(|| Self::of_kind(fault.kind), Self::of_http)
    }

    /// It says that the upstream failed, not its caller: its HTTP status is a 5xx.
    pub fn is_failure(self) -> bool {
        self.http_status() >= 500
    }

    /// As the mapping of statuses says, as in Envoy, but for times that ran out: the caller's own deadline is known to be
    /// over, where 504 would become UNAVAILABLE and invite another try, and a request that stopped coming is told so.
    /// Limits are UNAVAILABLE: another endpoint or a moment later may serve.
    fn of_kind(kind: Kind) -> Self {
        match kind {
            Kind::BadFraming
            | Kind::BadHeader
            | Kind::BadHost
            | Kind::BadRequestLine
            | Kind::BadPath
            | Kind::BadChunk
            | Kind::Underscore
            | Kind::Internal => Self::Internal,
            Kind::BadCoding | Kind::NoRoute => Self::Unimplemented,
            Kind::BadVersion | Kind::BadExpectation | Kind::DirectResponse | Kind::Redirect => Self::Unknown,
            Kind::HeadTooLarge => Self::ResourceExhausted,
            Kind::HeadTimeout | Kind::RequestTimeout | Kind::RouteTimeout | Kind::CallTimeout | Kind::StreamOverAge => {
                Self::DeadlineExceeded
            }
            Kind::AccessDenied | Kind::UpgradeRefused => Self::PermissionDenied,
            Kind::Gone | Kind::RelayGone => Self::Cancelled,
            Kind::NoCluster
            | Kind::NoRouteTable
            | Kind::RateLimited
            | Kind::ClusterLimited
            | Kind::MaxRequests
            | Kind::MaxPending
            | Kind::MaxConnections
            | Kind::Draining
            | Kind::NoEndpoint
            | Kind::ConnectRefused
            | Kind::ConnectUnreachable
            | Kind::ConnectTimeout
            | Kind::SendReset
            | Kind::ResponseReset
            | Kind::ResponseClosed
            | Kind::ResponseMalformed
            | Kind::ResponseTooLarge
            | Kind::ResponseTruncated
            | Kind::PerTryTimeout
            | Kind::StreamIdle
            | Kind::StreamRefused
            | Kind::UpgradeUnsupported
            | Kind::RelayIdle
            | Kind::RelayOverAge
            | Kind::RelayReset
            | Kind::BadProxyHeader
            | Kind::BadClientHello
            | Kind::DetectTimeout
            | Kind::NoFilterChain
            | Kind::ProxyHeaderPooled
            | Kind::AcceptLoop
            | Kind::ConnectLoop
            | Kind::NoOriginal => Self::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_stand_in_their_places() {
        assert_eq!(GrpcCode::ALL.len(), 17);
        for (place, code) in GrpcCode::ALL.iter().enumerate() {
            assert_eq!((*code as usize, code.number()), (place, place.to_string().as_str()));
            assert_eq!(GrpcCode::parse(code.number().as_bytes()), *code);
        }
        for odd in ["", "17", "-1", "+1", "1 ", "x", "99999999999999999999999"] {
            assert_eq!(GrpcCode::parse(odd.as_bytes()), GrpcCode::Unknown, "{odd:?}");
        }
    }

    #[test]
    fn statuses_are_mapped_as_specified() {
        for (status, code) in [
            (400, GrpcCode::Internal),
            (401, GrpcCode::Unauthenticated),
            (403, GrpcCode::PermissionDenied),
            (404, GrpcCode::Unimplemented),
            (429, GrpcCode::Unavailable),
            (502, GrpcCode::Unavailable),
            (503, GrpcCode::Unavailable),
            (504, GrpcCode::Unavailable),
            (200, GrpcCode::Unknown),
            (500, GrpcCode::Unknown),
            (302, GrpcCode::Unknown),
        ] {
            assert_eq!(GrpcCode::of_http(status), code, "{status}");
        }
    }

    #[test]
    fn failures_are_those_of_the_upstream() {
        let failures: Vec<_> =
            GrpcCode::ALL.iter().filter(|code| code.is_failure()).map(|code| code.number()).collect();
        assert_eq!(failures, ["2", "4", "12", "13", "14", "15"]);
    }

    /// Only these differ from what the fault's status would become.
    #[test]
    fn faults_follow_their_status_but_for_times_and_sizes() {
        let mut differ = Vec::new();
        for &kind in Kind::ALL {
            let code = GrpcCode::of_fault(&Fault::new(kind));
            assert_ne!(code, GrpcCode::Ok, "{kind:?}");
            if kind.status() != 0 && code != GrpcCode::of_http(kind.status()) {
                differ.push((kind.label(), code.label()));
            }
        }
        assert_eq!(
            differ,
            [
                ("bad-coding", "UNIMPLEMENTED"),
                ("head-too-large", "RESOURCE_EXHAUSTED"),
                ("head-timeout", "DEADLINE_EXCEEDED"),
                ("request-timeout", "DEADLINE_EXCEEDED"),
                ("call-timeout", "DEADLINE_EXCEEDED"),
                ("internal", "INTERNAL"),
                ("over-age", "DEADLINE_EXCEEDED"),
                ("timeout", "DEADLINE_EXCEEDED"),
            ]
        );
        let limited = Fault::new(Kind::RateLimited);
        assert_eq!(GrpcCode::of_fault(&limited), GrpcCode::Unavailable);
        assert_eq!(GrpcCode::of_fault(&limited.with_status(403)), GrpcCode::PermissionDenied);
    }
}
