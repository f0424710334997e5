//! **Purpose.** Heads that go on as header maps: what must not pass taken out, what we add put in, as `http1::edit` does
//! for bytes.
//!
//! **Shape.** A map is made from the received head, edited, and put into frames, or written as HTTP/1 by
//! [`http1::edit`](crate::http1::edit).
//!
//! **Limits.** As there: configured edits cannot touch framing or hop-by-hop headers.
//!
//! **Source.** RFC 9113 §8.2.2 and §8.2.3; RFC 9110 §7.6.1.

use std::cell::RefCell;

use http::header::{DATE, SERVER, TE, VIA};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::{HeaderEdit, HeaderEdits, ServerHeader};
use crate::http1::edit::{is_editable, put_address};
use crate::http1::line::Name;
use crate::http1::{BodyLength, RequestEdits, RequestHead, ResponseEdits, ResponseHead, Trust};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Values kept for the next message that has them: this proxy's name, the second's date, the addresses of some clients.
const KNOWN_MAX: usize = 16;

thread_local! {
    /// The values, and which one gives way to the next.
    static KNOWN: RefCell<(Vec<HeaderValue>, usize)> = const { RefCell::new((Vec::new(), 0)) };
}

/// The header lines of a request of HTTP/1 that concern more than its connection. Framing is left out but for the length.
pub fn request_map(head: &RequestHead<'_>) -> HeaderMap {
    map_of(head.lines(), head.body())
}

/// As [`request_map`], of a response whose body is framed as `body`.
pub fn response_map(head: &ResponseHead<'_>, body: BodyLength) -> HeaderMap {
    map_of(head.lines(), body)
}

fn map_of<'a>(lines: impl Iterator<Item = (&'a [u8], &'a [u8])>, body: BodyLength) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(24);
    for (name, value) in lines {
        let keeps = match Name::of(name) {
            // Told to the receiver even where no body follows, as in the answer to a HEAD.
            Name::ContentLength => !matches!(body, BodyLength::Chunked | BodyLength::UntilClose),
            Name::Te => value.eq_ignore_ascii_case(b"trailers"),
            Name::Host => false,
            name => !name.is_hop_by_hop(),
        };
        // Both were checked when the head was parsed.
        if keeps && let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            if name == TE {
                map.insert(name, value);
            } else {
                map.append(name, value);
            }
        }
    }
    map
}

/// Makes received headers those that go upstream. `target`, `host` and `connection` of the edits are not headers here.
pub fn edit_request(map: &mut HeaderMap, edits: &RequestEdits<'_>) {
    let drops = |name: &HeaderName| match Name::of(name.as_str().as_bytes()) {
        Name::Expect => !edits.keep_expect,
        Name::XEnvoy | Name::Outrigger | Name::XForwardedProto => edits.trust == Trust::Edge,
        Name::XForwardedClientCert | Name::Host => true,
        Name::Te | Name::ContentLength => false,
        name => name.is_hop_by_hop(),
    };
    remove_where(map, drops);
    if let Some(address) = edits.forwarded_for {
        let mut text = joined(map, &X_FORWARDED_FOR);
        put_address(address, &mut text);
        put_known(map, X_FORWARDED_FOR, &text);
    }
    if !map.contains_key(X_FORWARDED_PROTO) {
        put_known(map, X_FORWARDED_PROTO, edits.scheme.as_bytes());
    }
    if let Some(id) = edits.request_id {
        put(map, X_REQUEST_ID, id);
    }
    append_via(map, edits.via);
    configured(map, edits.levels);
    keep_out_of_table(map);
}

/// Values that are another in each request would only push the others out of the peer's table (RFC 7541 §6.2.3).
fn keep_out_of_table(map: &mut HeaderMap) {
    for name in [X_REQUEST_ID, TRACEPARENT] {
        if let Some(value) = map.get_mut(name) {
            value.set_sensitive(true);
        }
    }
}

/// Makes received headers those that go downstream. Their framing is the caller's: the length is taken out unless it holds.
pub fn edit_response(map: &mut HeaderMap, edits: &ResponseEdits<'_>) {
    remove_where(map, |name| {
        let name = Name::of(name.as_str().as_bytes());
        name.is_hop_by_hop() || (name == Name::ContentLength && edits.body == BodyLength::Chunked)
    });
    let is_ours = match edits.server {
        ServerHeader::Overwrite => true,
        ServerHeader::AppendIfAbsent => !map.contains_key(SERVER),
        ServerHeader::PassThrough => false,
    };
    if is_ours {
        put_known(map, SERVER, edits.server_name.as_bytes());
    }
    if !edits.date.is_empty() && !map.contains_key(DATE) {
        put_known(map, DATE, edits.date);
    }
    append_via(map, edits.via);
    configured(map, edits.levels);
}

fn remove_where(map: &mut HeaderMap, drops: impl Fn(&HeaderName) -> bool) {
    // Few heads lose anything: the names are gathered only where they do.
    if !map.keys().any(&drops) {
        return;
    }
    let dropped: Vec<HeaderName> = map.keys().filter(|name| drops(name)).cloned().collect();
    for name in dropped {
        map.remove(name);
    }
}

fn joined(map: &HeaderMap, name: &HeaderName) -> Vec<u8> {
    let mut text = Vec::new();
    for value in map.get_all(name).iter().filter(|value| !value.is_empty()) {
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b", ");
    }
    text
}

fn append_via(map: &mut HeaderMap, via: &str) {
    if let (false, Ok(via)) = (via.is_empty(), HeaderValue::from_str(via)) {
        map.append(VIA, via);
    }
}

/// Sets a header of ours; its value comes from what was checked when it was read.
pub fn put(map: &mut HeaderMap, name: HeaderName, value: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(value) {
        map.insert(name, value);
    }
}

/// As [`put`], of a value that many messages have: it is made once.
fn put_known(map: &mut HeaderMap, name: HeaderName, value: &[u8]) {
    if let Some(value) = known(value) {
        map.insert(name, value);
    }
}

/// The value of that text, shared with whoever asked for it before.
fn known(text: &[u8]) -> Option<HeaderValue> {
    KNOWN.with_borrow_mut(|(known, next)| {
        if let Some(value) = known.iter().find(|value| value.as_bytes() == text) {
            return Some(value.clone());
        }
        let value = HeaderValue::from_bytes(text).ok()?;
        if known.len() < KNOWN_MAX {
            known.push(value.clone());
        } else {
            known[*next] = value.clone();
            *next = (*next + 1) % KNOWN_MAX;
        }
        Some(value)
    })
}

/// Applies configured edits in their order.
fn configured(map: &mut HeaderMap, levels: &[&HeaderEdits]) {
    for level in levels {
        for name in &level.remove {
            if is_editable(Name::of(name.as_bytes())) {
                map.remove(&**name);
            }
        }
        for edit in &level.add {
            add(map, edit);
        }
    }
}

fn add(map: &mut HeaderMap, edit: &HeaderEdit) {
    let (HeaderEdit::AddIfAbsent(name, value)
    | HeaderEdit::Append(name, value)
    | HeaderEdit::Overwrite(name, value)
    | HeaderEdit::OverwriteIfExists(name, value)) = edit;
    let (Ok(key), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) else { return };
    if !is_editable(Name::of(name.as_bytes())) {
        return;
    }
    match edit {
        HeaderEdit::AddIfAbsent(..) if map.contains_key(&key) => {}
        HeaderEdit::OverwriteIfExists(..) if !map.contains_key(&key) => {}
        HeaderEdit::Append(..) => {
            map.append(key, value);
        }
        HeaderEdit::AddIfAbsent(..) | HeaderEdit::Overwrite(..) | HeaderEdit::OverwriteIfExists(..) => {
            map.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http1::{
        HeadLimits, Progress, RequestTable, ResponseLimits, ResponseTable, write_request_head, write_response_head,
    };

    const NAMES: [&str; 14] = [
        "accept",
        "x-a",
        "x-b",
        "via",
        "server",
        "date",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-request-id",
        "x-envoy-retry-on",
        "outrigger-fault",
        "x-forwarded-client-cert",
        "keep-alive",
        "te",
    ];

    fn name() -> impl Strategy<Value = &'static str> {
        prop::sample::select(&NAMES[..])
    }

    fn lines() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
        let value = prop::sample::select(&["1", "two", "trailers", ""][..]);
        prop::collection::vec((name(), value), 0..8)
    }

    fn edit() -> impl Strategy<Value = HeaderEdit> {
        (0..4, name(), prop::sample::select(&["set", "more"][..])).prop_map(|(kind, name, value)| match kind {
            0 => HeaderEdit::AddIfAbsent(name.into(), value.into()),
            1 => HeaderEdit::Append(name.into(), value.into()),
            2 => HeaderEdit::Overwrite(name.into(), value.into()),
            _ => HeaderEdit::OverwriteIfExists(name.into(), value.into()),
        })
    }

    fn level() -> impl Strategy<Value = HeaderEdits> {
        (prop::collection::vec(name(), 0..2), prop::collection::vec(edit(), 0..3))
            .prop_map(|(remove, add)| HeaderEdits { remove: remove.into_iter().map(Into::into).collect(), add })
    }

    fn text(first: &str, lines: &[(&str, &str)]) -> Vec<u8> {
        let mut text = format!("{first}\r\n");
        lines.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
        (text + "\r\n").into_bytes()
    }

    /// Name and value of every line but those that only HTTP/1 has, sorted.
    fn of_lines<'a>(lines: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<(String, String)> {
        let word = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let mut all: Vec<_> = lines.map(|(name, value)| (word(name), word(value))).collect();
        all.retain(|(name, _)| !matches!(&**name, "host" | "transfer-encoding"));
        all.sort();
        all
    }

    fn of_map(map: &HeaderMap) -> Vec<(String, String)> {
        of_lines(map.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())))
    }

    fn request<'a>(table: &'a mut RequestTable, bytes: &'a [u8]) -> RequestHead<'a> {
        let limits = HeadLimits { max_bytes: 60 * 1024, max_headers: 100, underscores: Default::default() };
        assert!(matches!(table.parse(bytes, &limits), Ok(Progress::Complete { .. })), "{bytes:?}");
        table.view(bytes)
    }

    proptest! {
        #[test]
        fn a_request_is_edited_alike_in_bytes_and_in_a_map(
            lines in lines(),
            levels in prop::collection::vec(level(), 0..3),
            is_edge in any::<bool>(),
            tells_address in any::<bool>(),
            id in prop::option::of(Just(&b"an-id"[..])),
            via in prop::sample::select(&["", "us"][..]),
        ) {
            let received = text("GET / HTTP/1.1\r\nhost: a", &lines);
            let levels: Vec<&HeaderEdits> = levels.iter().collect();
            let edits = RequestEdits {
                levels: &levels,
                forwarded_for: tells_address.then(|| [10, 0, 0, 1].into()),
                request_id: id,
                via,
                trust: if is_edge { Trust::Edge } else { Trust::Mesh },
                ..RequestEdits::default()
            };
            let (mut table, mut written_table, mut written) = (RequestTable::default(), RequestTable::default(), Vec::new());
            let head = request(&mut table, &received);
            write_request_head(&head, &edits, &mut written);
            let mut map = request_map(&head);
            edit_request(&mut map, &edits);
            prop_assert_eq!(of_map(&map), of_lines(request(&mut written_table, &written).lines()));
        }

        #[test]
        fn a_response_is_edited_alike_in_bytes_and_in_a_map(
            lines in lines(),
            levels in prop::collection::vec(level(), 0..3),
            server in prop::sample::select(&[ServerHeader::AppendIfAbsent, ServerHeader::Overwrite, ServerHeader::PassThrough][..]),
            length in prop::option::of(0_u64..3),
            via in prop::sample::select(&["", "us"][..]),
        ) {
            let length_line = length.map_or(String::new(), |length| format!("\r\ncontent-length: {length}"));
            let received = text(&format!("HTTP/1.1 200 OK{length_line}"), &lines);
            let levels: Vec<&HeaderEdits> = levels.iter().collect();
            let edits = ResponseEdits {
                body: length.map_or(BodyLength::Chunked, BodyLength::Length),
                levels: &levels,
                server,
                server_name: "us",
                via,
                date: b"now",
                extra: &[],
                connection: Default::default(),
            };
            let parse = |table: &mut ResponseTable, bytes: &[u8]| {
                assert!(matches!(table.parse(bytes, &ResponseLimits::default()), Ok(Progress::Complete { .. })));
            };
            let (mut table, mut written_table, mut written) = (ResponseTable::default(), ResponseTable::default(), Vec::new());
            parse(&mut table, &received);
            let head = table.view(&received);
            write_response_head(&head, &edits, &mut written);
            parse(&mut written_table, &written);
            let mut map = response_map(&head, edits.body);
            edit_response(&mut map, &edits);
            prop_assert_eq!(of_map(&map), of_lines(written_table.view(&written).lines()));
        }
    }
}
