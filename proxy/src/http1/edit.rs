//! **Purpose.** Heads that go on: what was received, with what must not pass taken out and what we add put in.
//!
//! **Shape.** One pass over the table of lines. Lines that stay are copied in runs; lines that go only end a run. Our
//! additions and the configured [`HeaderEdits`] follow the received lines. The order of configured edits is that of the
//! levels given (Envoy: route, virtual host, route table), each level first removing, then adding.
//!
//! **Limits.** Configured edits cannot touch `host`, framing or hop-by-hop headers: those are not theirs to decide.
//!
//! **Source.** RFC 9110 §7.6.1 for what is hop-by-hop; RFC 9112 §6 for framing; Envoy for the order of edits and for what
//! an edge removes.

use std::io::Write as _;
use std::net::IpAddr;

use http::HeaderMap;
use http::header::{CONTENT_LENGTH, COOKIE};

use crate::config::{HeaderEdit, HeaderEdits, ServerHeader};

use super::framing::BodyLength;
use super::head::RequestHead;
use super::line::{Line, Name};
use super::local::reason_phrase;
use super::response::ResponseHead;

/// What the head says about its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Connection {
    /// Nothing: HTTP/1.1 goes on.
    #[default]
    Implied,
    /// `connection: close`.
    Close,
    /// `connection: keep-alive`, for HTTP/1.0.
    KeepAlive,
}

/// Whose forwarding headers are believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// The downstream is outside: `x-envoy-*`, `outrigger-*` and `x-forwarded-proto` are its own invention.
    #[default]
    Edge,
    /// The downstream belongs to the mesh.
    Mesh,
}

/// How a request head is changed on its way upstream.
#[derive(Clone, Copy, Debug)]
pub struct RequestEdits<'a> {
    /// New path and query; `None`: as received.
    pub target: Option<&'a [u8]>,
    /// New authority; `None`: as received.
    pub host: Option<&'a [u8]>,
    /// Configured edits, first level first.
    pub levels: &'a [&'a HeaderEdits],
    /// Address appended to `x-forwarded-for`; `None`: passed on as it came.
    pub forwarded_for: Option<IpAddr>,
    /// `x-forwarded-proto`: always set at the edge, in the mesh only when absent.
    pub scheme: &'a str,
    /// `x-request-id` set in place of what came; `None`: passed on as it came.
    pub request_id: Option<&'a [u8]>,
    /// `via` added; empty adds none.
    pub via: &'a str,
    /// Whose forwarding headers are believed.
    pub trust: Trust,
    /// `expect: 100-continue` is passed on.
    pub keep_expect: bool,
    /// What is said about the upstream connection.
    pub connection: Connection,
}

impl Default for RequestEdits<'_> {
    fn default() -> Self {
        Self {
            target: None,
            host: None,
            levels: &[],
            forwarded_for: None,
            scheme: "http",
            request_id: None,
            via: "",
            trust: Trust::Edge,
            keep_expect: false,
            connection: Connection::Implied,
        }
    }
}

/// How a response head is changed on its way downstream.
#[derive(Clone, Copy, Debug)]
pub struct ResponseEdits<'a> {
    /// How the body is framed towards the downstream.
    pub body: BodyLength,
    /// Configured edits, first level first.
    pub levels: &'a [&'a HeaderEdits],
    /// What happens to `server`.
    pub server: ServerHeader,
    /// Our `server`.
    pub server_name: &'a str,
    /// `via` added; empty adds none.
    pub via: &'a str,
    /// `date` added when absent; empty adds none.
    pub date: &'a [u8],
    /// Headers of ours, names in lower case.
    pub extra: &'a [(&'a str, &'a [u8])],
    /// What is said about the downstream connection.
    pub connection: Connection,
}

/// Writes the request head that goes upstream, in HTTP/1.1 and origin form.
pub fn write_request_head(head: &RequestHead<'_>, edits: &RequestEdits<'_>, out: &mut Vec<u8>) {
    let bytes = head.bytes();
    out.reserve(bytes.len().min(64 * 1024) + 256);
    let keeps_host = edits.host.is_none() && head.host_is_authority();
    let mut run = Run::default();
    match head.plain_request_line().filter(|_| edits.target.is_none()) {
        Some((start, end)) => run.keep(start, end, bytes, out),
        None => write_request_line(head, edits.target, out),
    }
    if !keeps_host {
        put(out, b"host", edits.host.unwrap_or_else(|| head.authority()));
    }
    let passes = |name: Name| match name {
        Name::Other => true,
        Name::Host => keeps_host,
        Name::Expect => edits.keep_expect,
        Name::XEnvoy | Name::Outrigger | Name::XForwardedProto => edits.trust == Trust::Mesh,
        Name::XForwardedClientCert => false,
        Name::XForwardedFor => edits.forwarded_for.is_none(),
        Name::XRequestId => edits.request_id.is_none(),
        // The one valid framing header says what we would write in its place.
        Name::ContentLength => true,
        Name::TransferEncoding => head.body() == BodyLength::Chunked,
        Name::Date | Name::IdempotencyKey | Name::Server => true,
        name => !name.is_hop_by_hop(),
    };
    let mut has_proto = false;
    let mut has_te_trailers = false;
    for line in head.table_lines() {
        let keeps = !line.is_dropped && passes(line.name);
        match line.name {
            Name::XForwardedProto => has_proto |= keeps,
            Name::Te => has_te_trailers |= line.value_in(bytes).eq_ignore_ascii_case(b"trailers"),
            _ => {}
        }
        run.line(line, keeps && !is_edited_away(line, edits.levels, bytes), bytes, out);
    }
    run.flush(bytes, out);
    let mut own = Own { levels: edits.levels, out };
    if let Some(address) = edits.forwarded_for {
        own.put_forwarded_for(head, address);
    }
    if !has_proto {
        own.put("x-forwarded-proto", edits.scheme.as_bytes());
    }
    if let Some(id) = edits.request_id {
        own.put("x-request-id", id);
    }
    if has_te_trailers {
        put(own.out, b"te", b"trailers");
    }
    if !edits.via.is_empty() {
        own.put("via", edits.via.as_bytes());
    }
    let existed = |name: &str| {
        let ours = (name == "x-forwarded-for" && edits.forwarded_for.is_some())
            || name == "x-forwarded-proto"
            || (name == "x-request-id" && edits.request_id.is_some())
            || (name == "via" && !edits.via.is_empty());
        // What must not pass is not there: a client could else keep a header out by sending it.
        ours || (passes(Name::of(name.as_bytes())) && head.header(name.as_bytes()).is_some())
    };
    put_added(edits.levels, &existed, out);
    put_connection(edits.connection, out);
    out.extend_from_slice(b"\r\n");
}

/// Writes the response head that goes downstream, in HTTP/1.1.
pub fn write_response_head(head: &ResponseHead<'_>, edits: &ResponseEdits<'_>, out: &mut Vec<u8>) {
    let bytes = head.bytes();
    out.reserve(bytes.len().min(64 * 1024) + 256);
    write_status_line(head.status(), head.reason(), out);
    let framing = head.framing();
    // A bodyless answer (HEAD, 304) keeps the length that a body would have had; 1xx and 204 must not have one.
    let may_say_length = head.status() >= 200 && head.status() != 204;
    let keeps_length = match edits.body {
        BodyLength::Empty => may_say_length,
        BodyLength::Length(length) => framing.length == Some(length),
        BodyLength::Chunked | BodyLength::UntilClose => false,
    };
    let mut run = Run::default();
    run.skip_to(head.first_line_end());
    let (mut has_server, mut has_date) = (false, false);
    for line in head.table_lines() {
        let keeps = !line.is_dropped
            && match line.name {
                Name::Other => true,
                Name::ContentLength => keeps_length,
                Name::TransferEncoding => edits.body == BodyLength::Chunked && framing.is_chunked,
                Name::Server => {
                    has_server = true;
                    edits.server != ServerHeader::Overwrite
                }
                Name::Date => {
                    has_date = true;
                    true
                }
                name => !name.is_hop_by_hop(),
            };
        run.line(line, keeps && !is_edited_away(line, edits.levels, bytes), bytes, out);
    }
    run.flush(bytes, out);
    match edits.body {
        BodyLength::Length(length) if framing.length != Some(length) => put_length(length, out),
        BodyLength::Chunked if !framing.is_chunked => put(out, b"transfer-encoding", b"chunked"),
        _ => {}
    }
    let mut own = Own { levels: edits.levels, out };
    if edits.server == ServerHeader::Overwrite || (edits.server == ServerHeader::AppendIfAbsent && !has_server) {
        own.put("server", edits.server_name.as_bytes());
    }
    if !has_date && !edits.date.is_empty() {
        own.put("date", edits.date);
    }
    if !edits.via.is_empty() {
        own.put("via", edits.via.as_bytes());
    }
    for (name, value) in edits.extra {
        own.put(name, value);
    }
    let existed = |name: &str| {
        let ours = (name == "server" && edits.server != ServerHeader::PassThrough)
            || (name == "date" && !edits.date.is_empty())
            || (name == "via" && !edits.via.is_empty())
            || edits.extra.iter().any(|(extra, _)| *extra == name);
        ours || head.header(name.as_bytes()).is_some()
    };
    put_added(edits.levels, &existed, out);
    put_connection(edits.connection, out);
    out.extend_from_slice(b"\r\n");
}

/// A head of HTTP/1 out of a header map that is edited already.
#[derive(Clone, Copy, Debug)]
pub struct MapHead<'a> {
    /// The headers, without framing but for a length that holds.
    pub headers: &'a HeaderMap,
    /// How the body is framed.
    pub body: BodyLength,
    /// The protocol that its connection is to become, or becomes.
    pub upgrade: Option<&'a [u8]>,
    /// What is said about the connection otherwise.
    pub connection: Connection,
}

/// Writes a request head out of a map; `target` is path and query, or the authority for CONNECT.
pub fn write_request_map(method: &[u8], target: &[u8], host: &[u8], head: &MapHead<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(method);
    out.push(b' ');
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    put(out, b"host", host);
    write_map(head, head.headers.contains_key(CONTENT_LENGTH), out);
}

/// Writes a response head out of a map.
pub fn write_response_map(status: u16, head: &MapHead<'_>, out: &mut Vec<u8>) {
    write_status_line(status, b"", out);
    write_map(head, head.headers.contains_key(CONTENT_LENGTH), out);
}

fn write_map(head: &MapHead<'_>, has_length: bool, out: &mut Vec<u8>) {
    let mut cookies = head.headers.get_all(COOKIE).iter();
    if let Some(first) = cookies.next() {
        // Crumbs of HTTP/2 become one line. Source: RFC 9113 §8.2.3.
        out.extend_from_slice(b"cookie: ");
        out.extend_from_slice(first.as_bytes());
        for crumb in cookies {
            out.extend_from_slice(b"; ");
            out.extend_from_slice(crumb.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }
    for (name, value) in head.headers {
        if *name != COOKIE {
            put(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    match head.body {
        BodyLength::Length(length) if !has_length => put_length(length, out),
        BodyLength::Chunked => put(out, b"transfer-encoding", b"chunked"),
        BodyLength::Empty | BodyLength::Length(_) | BodyLength::UntilClose => {}
    }
    match head.upgrade {
        Some(protocol) => {
            put(out, b"connection", b"upgrade");
            put(out, b"upgrade", protocol);
        }
        None => put_connection(head.connection, out),
    }
    out.extend_from_slice(b"\r\n");
}

/// Received bytes that stay and lie together; copied at once.
#[derive(Debug, Default)]
struct Run {
    start: usize,
    end: usize,
}

impl Run {
    fn skip_to(&mut self, at: usize) {
        (self.start, self.end) = (at, at);
    }

    fn keep(&mut self, start: usize, end: usize, bytes: &[u8], out: &mut Vec<u8>) {
        if start != self.end {
            self.flush(bytes, out);
            self.start = start;
        }
        self.end = end;
    }

    fn line(&mut self, line: &Line, keeps: bool, bytes: &[u8], out: &mut Vec<u8>) {
        if keeps {
            self.keep(line.start(), line.end(), bytes, out);
        }
    }

    #[inline(never)]
    fn flush(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(bytes.get(self.start..self.end).unwrap_or_default());
        self.start = self.end;
    }
}

/// Writes headers of ours, unless configuration takes them away again.
struct Own<'a> {
    levels: &'a [&'a HeaderEdits],
    out: &'a mut Vec<u8>,
}

impl Own<'_> {
    fn put(&mut self, name: &str, value: &[u8]) {
        if !self.is_replaced(name) {
            put(self.out, name.as_bytes(), value);
        }
    }

    fn is_replaced(&self, name: &str) -> bool {
        steps(self.levels).any(|step| step.replaces(name.as_bytes()))
    }

    fn put_forwarded_for(&mut self, head: &RequestHead<'_>, address: IpAddr) {
        if self.is_replaced("x-forwarded-for") {
            return;
        }
        self.out.extend_from_slice(b"x-forwarded-for: ");
        for value in head.known(Name::XForwardedFor).filter(|value| !value.is_empty()) {
            self.out.extend_from_slice(value);
            self.out.extend_from_slice(b", ");
        }
        put_address(address, self.out);
        self.out.extend_from_slice(b"\r\n");
    }
}

/// One configured edit in the order of application.
#[derive(Clone, Copy)]
enum EditStep<'a> {
    Add(&'a HeaderEdit),
    Remove(&'a str),
}

fn steps<'a>(levels: &'a [&'a HeaderEdits]) -> impl Iterator<Item = EditStep<'a>> + Clone {
    levels.iter().flat_map(|edits| {
        let removed = edits.remove.iter().map(|name| EditStep::Remove(name));
        removed.chain(edits.add.iter().map(EditStep::Add))
    })
}

impl EditStep<'_> {
    /// Lines of that name that were there before this step are gone after it.
    fn replaces(self, name: &[u8]) -> bool {
        match self {
            Self::Remove(removed) => name.eq_ignore_ascii_case(removed.as_bytes()),
            Self::Add(HeaderEdit::Overwrite(key, _) | HeaderEdit::OverwriteIfExists(key, _)) => {
                name.eq_ignore_ascii_case(key.as_bytes())
            }
            Self::Add(HeaderEdit::AddIfAbsent(..) | HeaderEdit::Append(..)) => false,
        }
    }
}

fn is_edited_away(line: &Line, levels: &[&HeaderEdits], bytes: &[u8]) -> bool {
    !levels.is_empty() && is_editable(line.name) && steps(levels).any(|step| step.replaces(line.name_in(bytes)))
}

/// Configuration may add, replace and remove it.
pub(crate) fn is_editable(name: Name) -> bool {
    !name.is_hop_by_hop() && !matches!(name, Name::ContentLength | Name::Host)
}

/// Writes what the configured edits add. `existed` tells whether a name was there before any of them.
fn put_added(levels: &[&HeaderEdits], existed: &dyn Fn(&str) -> bool, out: &mut Vec<u8>) {
    for (at, step) in steps(levels).enumerate() {
        let EditStep::Add(edit) = step else { continue };
        let (name, value) = match edit {
            HeaderEdit::AddIfAbsent(name, value)
            | HeaderEdit::Append(name, value)
            | HeaderEdit::Overwrite(name, value)
            | HeaderEdit::OverwriteIfExists(name, value) => (&**name, &**value),
        };
        if !is_editable(Name::of(name.as_bytes())) {
            continue;
        }
        let exists = || exists_before(levels, at, name, existed(name));
        let applies = match edit {
            HeaderEdit::AddIfAbsent(..) => !exists(),
            HeaderEdit::OverwriteIfExists(..) => exists(),
            HeaderEdit::Append(..) | HeaderEdit::Overwrite(..) => true,
        };
        let is_undone = steps(levels).skip(at + 1).any(|later| later.replaces(name.as_bytes()));
        if applies && !is_undone {
            put(out, name.as_bytes(), value.as_bytes());
        }
    }
}

/// Whether a header is there when step `at` is reached.
fn exists_before(levels: &[&HeaderEdits], at: usize, name: &str, existed: bool) -> bool {
    steps(levels).take(at).fold(existed, |exists, step| match step {
        EditStep::Remove(removed) => exists && !removed.eq_ignore_ascii_case(name),
        EditStep::Add(HeaderEdit::AddIfAbsent(key, _) | HeaderEdit::Append(key, _) | HeaderEdit::Overwrite(key, _)) => {
            exists || key.eq_ignore_ascii_case(name)
        }
        EditStep::Add(HeaderEdit::OverwriteIfExists(..)) => exists,
    })
}

fn write_request_line(head: &RequestHead<'_>, target: Option<&[u8]>, out: &mut Vec<u8>) {
    out.extend_from_slice(head.method());
    out.push(b' ');
    match target.or_else(|| head.path_and_query()) {
        Some(target) => out.extend_from_slice(target),
        None => {
            out.extend_from_slice(head.path());
            if let Some(query) = head.query() {
                out.push(b'?');
                out.extend_from_slice(query);
            }
        }
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// Writes `HTTP/1.1 <status> <reason>`; an empty reason is filled in.
pub(super) fn write_status_line(status: u16, reason: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    put_number(u64::from(status), out);
    out.push(b' ');
    out.extend_from_slice(if reason.is_empty() { reason_phrase(status).as_bytes() } else { reason });
    out.extend_from_slice(b"\r\n");
}

/// Writes `name: value`. One copy: it is called in a dozen places.
#[inline(never)]
pub(super) fn put(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

pub(super) fn put_length(length: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"content-length: ");
    put_number(length, out);
    out.extend_from_slice(b"\r\n");
}

pub(super) fn put_connection(connection: Connection, out: &mut Vec<u8>) {
    match connection {
        Connection::Implied => {}
        Connection::Close => put(out, b"connection", b"close"),
        Connection::KeepAlive => put(out, b"connection", b"keep-alive"),
    }
}

/// Each octet in decimal with a dot behind it, and how many bytes that is.
static OCTETS: [([u8; 4], u8); 256] = {
    let mut table = [([b'.'; 4], 0); 256];
    let mut octet = 0;
    while octet < 256 {
        let digits = [b'0' + (octet / 100) as u8, b'0' + (octet / 10 % 10) as u8, b'0' + (octet % 10) as u8];
        let (text, count) = &mut table[octet];
        let mut at = if octet < 10 {
            2
        } else if octet < 100 {
            1
        } else {
            0
        };
        while at < 3 {
            text[*count as usize] = digits[at];
            *count += 1;
            at += 1;
        }
        *count += 1;
        octet += 1;
    }
    table
};

/// Writes an address as text.
pub(crate) fn put_address(address: IpAddr, out: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => {
            let mut text = [0; 16];
            let mut end = 0;
            for octet in address.octets() {
                let (digits, count) = OCTETS[usize::from(octet)];
                text[end..end + 4].copy_from_slice(&digits);
                end += usize::from(count);
            }
            out.extend_from_slice(&text[..end - 1]);
        }
        // Writing to a Vec cannot fail.
        IpAddr::V6(address) => {
            let _ = write!(out, "{address}");
        }
    }
}

fn put_number(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789"[usize::try_from(number % 10).unwrap_or(0)];
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}
