//! Purpose: who may ask: a token when one is set; on loopback, no page of a foreign origin.
//! Source: DNS rebinding makes a browser send a foreign `Host` to 127.0.0.1, and a form of any site
//! can POST there; so `Host` must be ours and a changing request must not come from elsewhere.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Api;
use super::error::ApiError;

/// Who may ask.
#[derive(Debug)]
pub struct Guard {
    token: Option<String>,
    /// Absent beyond loopback, where the token decides.
    hosts: Option<Vec<String>>,
}

impl Guard {
    /// A guard for an API bound to `bound`.
    #[must_use]
    pub fn new(bound: SocketAddr, token: Option<String>) -> Self {
        let own = match bound.ip() {
            std::net::IpAddr::V4(ip) => ip.to_string(),
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        };
        let hosts = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned);
        let hosts = hosts.into_iter().chain([own]).collect();
        Self { token, hosts: bound.ip().is_loopback().then_some(hosts) }
    }

    fn admits(&self, method: &Method, headers: &HeaderMap, path: &str) -> Result<(), ApiError> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(header::HOST).unwrap_or_default();
        if let Some(hosts) = &self.hosts
            && !hosts.iter().any(|own| own.eq_ignore_ascii_case(without_port(host)))
        {
            return Err(ApiError::forbidden(format!(
                "the Host header is {host:?}; this address answers to {} only",
                hosts.join(", ")
            )));
        }
        let changes = !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        if let Some(origin) = text(header::ORIGIN).filter(|_| changes) {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            if authority != Some(host) {
                return Err(ApiError::forbidden(format!("a page of {origin} may not change policy here")));
            }
        }
        let Some(token) = self.token.as_ref().filter(|_| path != "/healthz") else { return Ok(()) };
        let given = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        match given {
            Some(given) if is_same(given.trim(), token) => Ok(()),
            Some(_) => {
                tracing::warn!(%method, path, "a request with a wrong token was refused");
                Err(ApiError::forbidden("the token is not the one this server was started with"))
            }
            None => Err(ApiError::unauthorized(
                "this server wants a token: send Authorization: Bearer TOKEN (outriggerctl --token-file)",
            )),
        }
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Compares in a time that depends on the lengths only.
fn is_same(left: &str, right: &str) -> bool {
    let difference = left.bytes().zip(right.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
    left.len() == right.len() && difference == 0
}

/// Stands before every path.
pub(super) async fn admit(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let admitted = api.guard.admits(request.method(), request.headers(), request.uri().path());
    let response = match admitted {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    api.requests.count(response.status());
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn admits(guard: &Guard, method: Method, pairs: &[(header::HeaderName, &'static str)]) -> bool {
        let headers: HeaderMap =
            pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        guard.admits(&method, &headers, "/v1/apply").is_ok()
    }

    #[test]
    fn on_loopback_a_foreign_host_or_origin_is_refused() {
        let guard = Guard::new(([127, 0, 0, 1], 15080).into(), None);
        for host in ["127.0.0.1:15080", "localhost:15080", "localhost", "[::1]:15080"] {
            assert!(admits(&guard, Method::GET, &[(header::HOST, host)]), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example:15080", ""] {
            assert!(!admits(&guard, Method::GET, &[(header::HOST, host)]), "{host}");
        }
        let own = (header::HOST, "localhost:15080");
        let same = (header::ORIGIN, "http://localhost:15080");
        let other = (header::ORIGIN, "https://evil.example");
        assert!(admits(&guard, Method::POST, &[own.clone(), same]));
        assert!(!admits(&guard, Method::POST, &[own.clone(), other.clone()]));
        assert!(!admits(&guard, Method::POST, &[own.clone(), (header::ORIGIN, "null")]));
        assert!(admits(&guard, Method::GET, &[own, other]));
    }

    #[test]
    fn a_token_is_wanted_when_set() {
        let guard = Guard::new(([0, 0, 0, 0], 15080).into(), Some("secret-of-the-mesh".into()));
        let host = (header::HOST, "control.mesh:15080");
        assert!(!admits(&guard, Method::GET, std::slice::from_ref(&host)));
        let wrong = (header::AUTHORIZATION, "Bearer secret-of-the-mess");
        assert!(!admits(&guard, Method::GET, &[host.clone(), wrong]));
        let right = (header::AUTHORIZATION, "Bearer secret-of-the-mesh");
        assert!(admits(&guard, Method::GET, &[host, right]));
    }
}
