//! What a connection of HTTP/2 begins with.
//!
//! **Source.** RFC 9113 §3.4.

/// What a client sends before its first frame.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether bytes begin with it; `None`: they may yet.
pub fn is_preface(bytes: &[u8]) -> Option<bool> {
    if bytes.len() < PREFACE.len() && PREFACE.starts_with(bytes) {
        return None;
    }
    Some(bytes.starts_with(PREFACE))
}
