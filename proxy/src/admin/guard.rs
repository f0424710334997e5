//! **Purpose.** Keeps web pages away from the admin port, and hardens its own page.
//!
//! **Shape.** A browser on the same machine can be made to send requests here: by a page whose name was rebound to a
//! loopback address (then `Host` is that name), or by a form of another site (then `Origin` and `Sec-Fetch-Site` tell).
//! Both are refused with 403. What is asked for by anything but GET and HEAD is checked for its origin.
//!
//! **Limits.** A port in `Host` is not compared: port forwarding changes it. This is no login: who may connect may act.
//!
//! **Source.** RFC 6454 (Origin); Fetch Metadata Request Headers; CSP Level 3.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::json;

use super::render;

const HEADERS: [(HeaderName, &str); 7] = [
    (header::CACHE_CONTROL, "no-store"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
];

/// Knows the address the port is bound to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guard {
    bound: IpAddr,
}

impl Guard {
    pub(super) fn new(bound: SocketAddr) -> Self {
        Self { bound: bound.ip().to_canonical() }
    }

    fn refusal(self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<String> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next().and_then(|host| host.to_str().ok()).unwrap_or_default();
        let named = uri.authority().map_or(host, |authority| authority.as_str());
        if hosts.next().is_some() || !self.admits(host) || !self.admits(named) {
            return Some(format!(
                "Host {host:?} is not this port: use localhost, a loopback address or {}",
                if self.bound.is_unspecified() { "the machine's IP address".into() } else { self.bound.to_string() }
            ));
        }
        if matches!(*method, Method::GET | Method::HEAD) {
            return None;
        }
        for origin in headers.get_all(header::ORIGIN) {
            let same = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
            if !same.is_some_and(|origin| origin.eq_ignore_ascii_case(host)) {
                return Some(format!(
                    "Origin {origin:?} is another site: only this port's own page may change anything"
                ));
            }
        }
        for site in headers.get_all("sec-fetch-site") {
            if site != "same-origin" && site != "none" {
                return Some(format!("Sec-Fetch-Site {site:?}: only this port's own page may change anything"));
            }
        }
        None
    }

    /// Whether `authority` (a `Host` value) names this machine. An IP address cannot be rebound, so on a wildcard bind any is
    /// taken.
    fn admits(self, authority: &str) -> bool {
        let Some(host) = host_of(authority) else { return false };
        match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().map(|address| address.to_canonical())
        {
            Ok(address) => address.is_loopback() || address == self.bound || self.bound.is_unspecified(),
            Err(_) => host.eq_ignore_ascii_case("localhost"),
        }
    }
}

/// The host in `host`, `host:port`, `[v6]` or `[v6]:port`; `None` when it is neither.
fn host_of(authority: &str) -> Option<&str> {
    let (host, rest) = match authority.strip_prefix('[') {
        Some(inside) => authority.split_at(inside.find(']')? + 2),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port_is_sound = match rest.strip_prefix(':') {
        Some(port) => !port.is_empty() && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()),
        None => rest.is_empty(),
    };
    (port_is_sound && !host.is_empty()).then_some(host)
}

/// The layer before every path.
pub(super) async fn stand(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let mut response = match guard.refusal(request.method(), request.uri(), request.headers()) {
        Some(refusal) => render::json(StatusCode::FORBIDDEN, &json!({ "error": refusal })),
        None => next.run(request).await,
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(bound: &str, host: &str) -> bool {
        Guard::new(bound.parse().unwrap()).admits(host)
    }

    #[test]
    fn loopback_and_the_bound_address_are_admitted() {
        for host in ["localhost", "LOCALHOST:15000", "127.0.0.1", "127.0.0.1:1", "127.9.9.9:15000", "[::1]", "[::1]:80"]
        {
            assert!(admits("127.0.0.1:15000", host), "{host}");
        }
        assert!(admits("10.0.0.7:15000", "10.0.0.7:15000"));
        assert!(admits("0.0.0.0:15020", "10.0.0.8:15020"));
        assert!(admits("[::]:15020", "[fd00::1]:15020"));
        assert!(admits("[::ffff:10.0.0.7]:1", "10.0.0.7"));
    }

    #[test]
    fn names_and_other_addresses_are_not() {
        for host in [
            "",
            ":80",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "localhost:",
            "localhost:1a",
            "localhost:123456",
            "user@localhost",
            "[::1",
            "[::1]x",
            "[evil]",
            "10.0.0.7",
            "localhost,evil",
            "127.1",
            "0x7f.1",
        ] {
            assert!(!admits("127.0.0.1:15000", host), "{host}");
        }
        assert!(!admits("0.0.0.0:15020", "rebound.example:15020"));
    }
}
