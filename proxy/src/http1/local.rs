//! **Purpose.** Responses that the proxy makes itself, and reason phrases.
//!
//! **Source.** RFC 9110 §15; the IANA registry of status codes.

use std::fmt::Display;
use std::io::Write as _;

use super::edit::{Connection, put, put_connection, put_length, write_status_line};

/// A response made here.
#[derive(Clone, Copy)]
pub struct LocalResponse<'a> {
    /// Its status.
    pub status: u16,
    /// Value of `outrigger-fault`; `None` writes none.
    pub fault: Option<&'a dyn Display>,
    /// Further headers, names in lower case.
    pub extra: &'a [(&'a str, &'a [u8])],
    /// The body. `content-type: text/plain` goes with it unless `extra` has another.
    pub body: &'a [u8],
    /// The request was a HEAD: the body is announced and not sent.
    pub is_head: bool,
    /// What is said about the connection.
    pub connection: Connection,
    /// Value of `server`; empty writes none.
    pub server_name: &'a str,
    /// Value of `date`; empty writes none.
    pub date: &'a [u8],
}

impl Default for LocalResponse<'_> {
    fn default() -> Self {
        Self {
            status: 500,
            fault: None,
            extra: &[],
            body: b"",
            is_head: false,
            connection: Connection::Implied,
            server_name: "",
            date: b"",
        }
    }
}

impl std::fmt::Debug for LocalResponse<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalResponse").field("status", &self.status).finish_non_exhaustive()
    }
}

/// Writes a whole response. Header values must hold no line ends; configuration and [`Display`] of a fault see to that.
pub fn write_local_response(response: &LocalResponse<'_>, out: &mut Vec<u8>) {
    write_status_line(response.status, b"", out);
    let may_have_body = response.status >= 200 && response.status != 204 && response.status != 304;
    if may_have_body {
        put_length(u64::try_from(response.body.len()).unwrap_or(u64::MAX), out);
        let has_type = response.extra.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        if !response.body.is_empty() && !has_type {
            put(out, b"content-type", b"text/plain");
        }
    }
    if let Some(fault) = response.fault {
        // Writing to a Vec cannot fail.
        let _ = write!(out, "outrigger-fault: {fault}\r\n");
    }
    for (name, value) in response.extra {
        put(out, name.as_bytes(), value);
    }
    if !response.server_name.is_empty() {
        put(out, b"server", response.server_name.as_bytes());
    }
    if !response.date.is_empty() {
        put(out, b"date", response.date);
    }
    put_connection(response.connection, out);
    out.extend_from_slice(b"\r\n");
    if may_have_body && !response.is_head {
        out.extend_from_slice(response.body);
    }
}

/// The registered phrase of a status; empty when there is none.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        511 => "Network Authentication Required",
        _ => "",
    }
}
