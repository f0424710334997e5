//! **Purpose.** What changes in a head when an upgrade crosses from one version of HTTP to the other.
//!
//! **Shape.** WebSocket in HTTP/1 proves with a key and its digest that both ends mean the same; in HTTP/2 the stream does,
//! and neither is sent. Other protocols have no such headers.
//!
//! **Source.** RFC 6455 §1.3; RFC 8441 §5.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName};

use crate::chance::Chance;
use crate::http2::edit::put;

const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
const WEBSOCKET_ID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The request of a client goes on as HTTP/1: WebSocket needs a key there.
pub(super) fn to_http1(headers: &mut HeaderMap, protocol: &[u8], chance: &Chance) {
    if protocol.eq_ignore_ascii_case(b"websocket") && !headers.contains_key(KEY) {
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&chance.bits().to_ne_bytes());
        nonce[8..].copy_from_slice(&chance.bits().to_ne_bytes());
        put(headers, KEY, STANDARD.encode(nonce).as_bytes());
    }
}

/// The request of a client goes on as HTTP/2.
pub(super) fn to_http2(headers: &mut HeaderMap) {
    headers.remove(KEY);
}

/// The answer of HTTP/2 to an upgrade becomes one of HTTP/1: the digest of the client's key is due.
pub(super) fn accept_in_http1(headers: &mut HeaderMap, key: Option<&[u8]>) {
    if let Some(key) = key {
        let digest = sha1_smol::Sha1::from([key, WEBSOCKET_ID].concat()).digest().bytes();
        put(headers, ACCEPT, STANDARD.encode(digest).as_bytes());
    }
}

/// The answer of either version becomes one of HTTP/2.
pub(super) fn accept_in_http2(headers: &mut HeaderMap) {
    headers.remove(ACCEPT);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_standard() {
        let mut headers = HeaderMap::new();
        accept_in_http1(&mut headers, Some(b"dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(headers[ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
