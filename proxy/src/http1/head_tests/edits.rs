//! Heads that go on: exact bytes, and configured edits against a slow list of headers.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::config::{HeaderEdit, HeaderEdits, ServerHeader};
use crate::fault::Fault;

fn forwarded(bytes: &[u8], edits: &RequestEdits<'_>) -> String {
    request(bytes, |head| {
        let mut out = Vec::new();
        write_request_head(&head, edits, &mut out);
        String::from_utf8_lossy(&out).into_owned()
    })
}

const PASS: ResponseEdits<'static> = ResponseEdits {
    body: BodyLength::Length(5),
    levels: &[],
    server: ServerHeader::PassThrough,
    server_name: "outrigger",
    via: "",
    date: b"",
    extra: &[],
    connection: Connection::Implied,
};

fn answered(bytes: &[u8], edits: &ResponseEdits<'_>) -> String {
    response(bytes, |head| {
        let mut out = Vec::new();
        write_response_head(&head, edits, &mut out);
        String::from_utf8_lossy(&out).into_owned()
    })
}

#[test]
fn an_untouched_request_keeps_its_bytes() {
    let bytes = b"POST /p?q HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nX-One:1\r\nACCEPT: */*\r\n\r\n";
    let edits = RequestEdits { trust: Trust::Mesh, ..RequestEdits::default() };
    let expected = String::from_utf8_lossy(bytes).replace("*/*\r\n", "*/*\r\nx-forwarded-proto: http\r\n");
    assert_eq!(forwarded(bytes, &edits), expected);
}

#[test]
fn every_request_edit_has_its_place() {
    let bytes = b"PUT /p?q HTTP/1.1\r\nA: 1\r\nHost: a\r\nExpect: 100-continue\r\nX-Request-Id: old\r\nB: 2\r\n\
                  Connection: keep-alive, b\r\nTransfer-Encoding: chunked\r\n\r\n";
    let edits = RequestEdits {
        target: Some(b"/new"),
        host: Some(b"inner:8080"),
        request_id: Some(b"id-1"),
        via: "1.1 mesh",
        scheme: "https",
        forwarded_for: Some("::1".parse().expect("an address")),
        connection: Connection::Close,
        ..RequestEdits::default()
    };
    assert_eq!(
        forwarded(bytes, &edits),
        "PUT /new HTTP/1.1\r\nhost: inner:8080\r\nA: 1\r\nTransfer-Encoding: chunked\r\nx-forwarded-for: ::1\r\n\
         x-forwarded-proto: https\r\nx-request-id: id-1\r\nvia: 1.1 mesh\r\nconnection: close\r\n\r\n"
    );
    let kept = forwarded(bytes, &RequestEdits { keep_expect: true, ..RequestEdits::default() });
    assert!(kept.contains("Expect: 100-continue\r\n") && kept.contains("X-Request-Id: old\r\n"), "{kept}");
}

#[test]
fn the_clients_address_is_appended_as_it_is_spelled() {
    for address in ["0.0.0.0", "127.0.0.1", "9.10.99.100", "255.255.255.255", "2001:db8::1"] {
        let edits = RequestEdits { forwarded_for: address.parse().ok(), ..RequestEdits::default() };
        let text = forwarded(b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n", &edits);
        assert!(text.contains(&format!("\r\nx-forwarded-for: 10.0.0.1, {address}\r\n")), "{text}");
    }
}

#[test]
fn http_10_goes_on_as_11() {
    let text = forwarded(b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", &RequestEdits::default());
    assert_eq!(text, "GET / HTTP/1.1\r\nHost: a\r\nx-forwarded-proto: http\r\n\r\n");
}

#[test]
fn response_framing_follows_the_body_that_is_sent() {
    let length = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: b\r\n\r\n";
    let chunked = b"HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\nTrailer: t\r\nKeep-Alive: 5\r\n\r\n";
    assert_eq!(answered(length, &PASS), "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: b\r\n\r\n");
    let as_chunked = ResponseEdits { body: BodyLength::Chunked, ..PASS };
    assert_eq!(answered(length, &as_chunked), "HTTP/1.1 200 OK\r\nA: b\r\ntransfer-encoding: chunked\r\n\r\n");
    assert_eq!(answered(chunked, &as_chunked), "HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\n\r\n");
    let closing = ResponseEdits { body: BodyLength::UntilClose, connection: Connection::Close, ..PASS };
    assert_eq!(answered(chunked, &closing), "HTTP/1.1 200 Fine\r\nconnection: close\r\n\r\n");
    let other = ResponseEdits { body: BodyLength::Length(7), ..PASS };
    assert_eq!(answered(chunked, &other), "HTTP/1.1 200 Fine\r\ncontent-length: 7\r\n\r\n");
    let empty = ResponseEdits { body: BodyLength::Empty, ..PASS };
    assert_eq!(answered(length, &empty), "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: b\r\n\r\n", "HEAD keeps it");
    let no_content = b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(answered(no_content, &empty), "HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(answered(b"HTTP/1.0 404\r\n\r\n", &empty), "HTTP/1.1 404 Not Found\r\n\r\n");
}

#[test]
fn the_server_header_follows_its_setting() {
    let theirs = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 5\r\n\r\n";
    let none = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    for (server, with, without) in [
        (ServerHeader::PassThrough, Some("Server: nginx"), None),
        (ServerHeader::Overwrite, Some("server: outrigger"), Some("server: outrigger")),
        (ServerHeader::AppendIfAbsent, Some("Server: nginx"), Some("server: outrigger")),
    ] {
        for (bytes, expected) in [(&theirs[..], with), (&none[..], without)] {
            let text = answered(bytes, &ResponseEdits { server, ..PASS });
            let found: Vec<&str> = text.lines().filter(|l| l.to_ascii_lowercase().starts_with("server:")).collect();
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{server:?}");
        }
    }
    let ours = ResponseEdits { via: "1.1 v", date: b"now", extra: &[("x-ours", b"1")], ..PASS };
    assert_eq!(
        answered(none, &ours),
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\ndate: now\r\nvia: 1.1 v\r\nx-ours: 1\r\n\r\n"
    );
    assert!(answered(b"HTTP/1.1 200 OK\r\nDate: then\r\n\r\n", &ours).contains("Date: then\r\n"));
}

#[test]
fn a_local_response_carries_its_fault() {
    let fault = Fault::new(Kind::RateLimited);
    let header = fault.header(7);
    let mut out = Vec::new();
    let mut local = LocalResponse {
        status: 429,
        fault: Some(&header),
        extra: &[("retry-after", b"1")],
        body: b"slow down",
        server_name: "outrigger",
        date: b"now",
        connection: Connection::Close,
        ..LocalResponse::default()
    };
    write_local_response(&local, &mut out);
    let head = "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 9\r\ncontent-type: text/plain\r\n\
                outrigger-fault: side=local; stage=policy; kind=rate-limited; retry=safe; epoch=7\r\nretry-after: 1\r\n\
                server: outrigger\r\ndate: now\r\nconnection: close\r\n\r\n";
    assert_eq!(String::from_utf8_lossy(&out), format!("{head}slow down"));
    out.clear();
    local.is_head = true;
    write_local_response(&local, &mut out);
    assert_eq!(String::from_utf8_lossy(&out), head);
    out.clear();
    write_local_response(&LocalResponse { status: 204, ..LocalResponse::default() }, &mut out);
    assert_eq!(out, b"HTTP/1.1 204 No Content\r\n\r\n");
}

#[test]
fn edits_cannot_touch_framing_or_host() {
    let names = ["host", "content-length", "transfer-encoding", "connection", "te", "upgrade", "keep-alive"];
    let edits = HeaderEdits {
        remove: names.iter().map(|name| Arc::from(*name)).collect(),
        add: names.iter().map(|name| HeaderEdit::Overwrite((*name).into(), "9".into())).collect(),
    };
    let bytes = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n";
    let text = forwarded(bytes, &RequestEdits { levels: &[&edits], ..RequestEdits::default() });
    assert_eq!(text, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nx-forwarded-proto: http\r\n\r\n");
}

#[test]
fn edits_reach_the_headers_we_add() {
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let level = HeaderEdits {
        remove: vec!["x-forwarded-proto".into()],
        add: vec![
            HeaderEdit::Overwrite("x-request-id".into(), "mine".into()),
            HeaderEdit::AddIfAbsent("via".into(), "no".into()),
            HeaderEdit::Append("via".into(), "two".into()),
        ],
    };
    let edits = RequestEdits { request_id: Some(b"ours"), via: "one", levels: &[&level], ..RequestEdits::default() };
    assert_eq!(
        forwarded(bytes, &edits),
        "GET / HTTP/1.1\r\nHost: a\r\nvia: one\r\nx-request-id: mine\r\nvia: two\r\n\r\n"
    );
}

/// Applies the edits one by one to a list, as their documentation says.
fn oracle(mut headers: Vec<(String, String)>, levels: &[HeaderEdits]) -> Vec<(String, String)> {
    for level in levels {
        headers.retain(|(name, _)| !level.remove.iter().any(|removed| removed.eq_ignore_ascii_case(name)));
        for edit in &level.add {
            let (name, value) = match edit {
                HeaderEdit::AddIfAbsent(n, v)
                | HeaderEdit::Append(n, v)
                | HeaderEdit::Overwrite(n, v)
                | HeaderEdit::OverwriteIfExists(n, v) => (n.to_string(), v.to_string()),
            };
            let exists = headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(&name));
            match edit {
                HeaderEdit::AddIfAbsent(..) if exists => continue,
                HeaderEdit::OverwriteIfExists(..) if !exists => continue,
                HeaderEdit::Overwrite(..) | HeaderEdit::OverwriteIfExists(..) => {
                    headers.retain(|(n, _)| !n.eq_ignore_ascii_case(&name));
                }
                HeaderEdit::AddIfAbsent(..) | HeaderEdit::Append(..) => {}
            }
            headers.push((name, value));
        }
    }
    headers
}

fn any_edit() -> impl Strategy<Value = HeaderEdit> {
    (0_u8..4, "[ab]", "[0-9]").prop_map(|(kind, name, value)| {
        let (name, value): (Arc<str>, Arc<str>) = (name.into(), value.into());
        match kind {
            0 => HeaderEdit::AddIfAbsent(name, value),
            1 => HeaderEdit::Append(name, value),
            2 => HeaderEdit::Overwrite(name, value),
            _ => HeaderEdit::OverwriteIfExists(name, value),
        }
    })
}

fn any_edits() -> impl Strategy<Value = HeaderEdits> {
    (prop::collection::vec("[ab]", 0..2), prop::collection::vec(any_edit(), 0..4))
        .prop_map(|(remove, add)| HeaderEdits { remove: remove.into_iter().map(Arc::from).collect(), add })
}

proptest! {
    #[test]
    fn levels_of_edits_do_what_a_list_would(
        lines in prop::collection::vec(("[abcAB]", "[x-z]"), 0..5),
        levels in prop::collection::vec(any_edits(), 0..4),
    ) {
        let text: String = lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let refs: Vec<&HeaderEdits> = levels.iter().collect();
        let expected = oracle(lines, &levels);
        let bytes = format!("GET / HTTP/1.1\r\nHost: h\r\n{text}\r\n");
        let sent = forwarded(bytes.as_bytes(), &RequestEdits { levels: &refs, ..RequestEdits::default() });
        let read = |text: &str| -> Vec<(String, String)> {
            let lines = text.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
            let ours = ["Host", "x-forwarded-proto", "Content-Length"];
            lines.filter(|(n, _)| !ours.contains(n)).map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
        };
        prop_assert_eq!(read(&sent), expected.clone());
        let bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n{text}\r\n");
        let sent = answered(bytes.as_bytes(), &ResponseEdits { levels: &refs, ..PASS });
        prop_assert_eq!(read(&sent), expected);
    }
}
