//! One test per attack row that HTTP/1.1 parsing decides, each with the harmless neighbour that must pass.

use super::*;
use crate::config::{EscapedSlashes, HeaderEdits, ServerHeader};
use crate::http1::path::{Normal, PathRules, normalize};

#[test]
fn row_1_length_beside_coding() {
    for lines in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Content-Length: 0\r\nTransfer-Encoding: gzip\r\n",
    ] {
        assert_eq!(with_lines(lines), Err(Kind::BadFraming), "{lines:?}");
    }
    assert_eq!(with_lines("Content-Length: 4\r\n"), Ok(BodyLength::Length(4)));
    assert_eq!(with_lines("transfer-encoding: Chunked\t\r\n"), Ok(BodyLength::Chunked));
    assert_eq!(with_lines(""), Ok(BodyLength::Empty));
}

#[test]
fn row_2_lengths_that_are_not_one_number() {
    for value in ["+4", "-4", "", "4, 4", "4,5", "0x4", "4 4", "4.0", "12345678901234567890", "٤"] {
        assert_eq!(with_lines(&format!("Content-Length: {value}\r\n")), Err(Kind::BadFraming), "{value:?}");
    }
    for (one, two) in [(4, 5), (4, 4)] {
        let lines = format!("Content-Length: {one}\r\nX: y\r\ncontent-length: {two}\r\n");
        assert_eq!(with_lines(&lines), Err(Kind::BadFraming), "{lines:?}");
    }
    assert_eq!(
        with_lines("Content-Length: 9999999999999999999\r\n"),
        Ok(BodyLength::Length(9_999_999_999_999_999_999))
    );
    assert_eq!(with_lines("Content-Length: 0\r\n"), Ok(BodyLength::Length(0)));
}

#[test]
fn row_3_codings_other_than_one_chunked() {
    for value in
        ["xchunked", "gzip, chunked", "chunked, identity", "identity", "", "chunked;q=1", "chunked,", "\"chunked\""]
    {
        assert_eq!(with_lines(&format!("Transfer-Encoding: {value}\r\n")), Err(Kind::BadCoding), "{value:?}");
    }
    assert_eq!(
        with_lines("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        Err(Kind::BadCoding),
        "a second coding, even the same"
    );
}

#[test]
fn row_4_names_and_values_that_are_none() {
    for line in [
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: chunked\x0c",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        "X Y: z",
        ": value",
        "no colon",
        "Näme: x",
        "X[]: y",
        "\x00X: y",
        "X: \x7f",
    ] {
        assert_eq!(with_lines(&format!("{line}\r\n")), Err(Kind::BadHeader), "{line:?}");
    }
    let leading = b"GET / HTTP/1.1\r\n Host: shop\r\n\r\n";
    assert_eq!(verdict(leading), Err(Kind::BadHeader), "white space before the first header");
    assert_eq!(with_lines("!#$%&'*+-.^_`|~09azAZ: fine\r\nEmpty:\r\n"), Ok(BodyLength::Empty));
}

#[test]
fn row_5_coding_in_http_10() {
    let coded = b"POST / HTTP/1.0\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(verdict(coded), Err(Kind::BadFraming));
    request(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", |head| {
        assert_eq!(head.version(), Version::Http10, "the caller refuses it unless it is configured");
        assert!(head.keep_alive());
        assert_eq!(head.authority(), b"");
    });
    request(b"GET / HTTP/1.0\r\n\r\n", |head| assert!(!head.keep_alive()));
    for version in ["HTTP/2.0", "HTTP/1.2", "HTTP/0.9"] {
        assert_eq!(verdict(format!("GET / {version}\r\n\r\n").as_bytes()), Err(Kind::BadVersion), "{version}");
    }
}

#[test]
fn row_6_bare_lf() {
    assert_eq!(with_lines("X: y\n"), Err(Kind::BadHeader));
    assert_eq!(verdict(b"GET / HTTP/1.1\nHost: shop\r\n\r\n"), Err(Kind::BadRequestLine));
    assert_eq!(verdict(b"GET / HTTP/1.1\r\nHost: shop\r\n\n"), Err(Kind::BadHeader), "at the end of the head");
    assert_eq!(verdict(b"\nGET / HTTP/1.1\r\nHost: shop\r\n\r\n"), Err(Kind::BadRequestLine));
}

#[test]
fn row_7_bare_cr() {
    for line in ["X: a\rb", "X: a\r", "X\r: a", "\rX: a"] {
        assert_eq!(with_lines(&format!("{line}\r\n")), Err(Kind::BadHeader), "{line:?}");
    }
    assert_eq!(verdict(b"GET /a\rb HTTP/1.1\r\nHost: shop\r\n\r\n"), Err(Kind::BadPath));
    assert_eq!(verdict(b"GET / HTTP/1.1\r\r\nHost: shop\r\n\r\n"), Err(Kind::BadRequestLine));
}

#[test]
fn row_8_nul_and_raw_bytes() {
    assert_eq!(with_lines("X: a\0b\r\n"), Err(Kind::BadHeader));
    for target in ["/a%00b", "/%00", "/é", "/a\x01b", "/a\x7fb", "/a\tb", "/\u{0}"] {
        assert_eq!(with_target(target), Err(Kind::BadPath), "{target:?}");
    }
    assert_eq!(with_target("/a%c3%a9?x=%00"), Ok(BodyLength::Empty), "escaped, and NUL in a query is its own affair");
    assert_eq!(with_lines("X: caf\u{e9}\r\n"), Ok(BodyLength::Empty), "obs-text in a value is opaque");
}

#[test]
fn row_9_folded_lines() {
    for lines in ["X: a\r\n b\r\n", "X: a\r\n\tb\r\n", "Transfer-Encoding:\r\n chunked\r\n"] {
        assert_eq!(with_lines(lines), Err(Kind::BadHeader), "{lines:?}");
    }
}

/// What is left of a chunked body, or why not.
fn chunked(bytes: &[u8]) -> Result<Vec<u8>, ChunkFault> {
    let mut decoder = ChunkDecoder::new();
    let (mut at, mut body) = (0, Vec::new());
    while !decoder.is_done() {
        let step = decoder.step(&bytes[at..])?;
        body.extend_from_slice(&bytes[at..][step.data.unwrap_or(0..0)]);
        assert!(step.consumed > 0, "the body is not whole: {:?}", String::from_utf8_lossy(bytes));
        at += step.consumed;
    }
    Ok(body)
}

#[test]
fn row_10_chunk_sizes() {
    for size in ["-1", "00000000000000001", "0x1", "", "g", " 1", "1 ", "+1", "1\t"] {
        assert_eq!(chunked(format!("{size}\r\na\r\n0\r\n\r\n").as_bytes()), Err(ChunkFault::Size), "{size:?}");
    }
    assert_eq!(chunked(b"1\na\r\n0\r\n\r\n"), Err(ChunkFault::Size));
    assert_eq!(chunked(b"1\r\ra\r\n0\r\n\r\n"), Err(ChunkFault::Size));
    assert_eq!(chunked(b"1;a\nb\r\na\r\n0\r\n\r\n"), Err(ChunkFault::Extension));
    assert_eq!(chunked(b"1;a\0\r\na\r\n0\r\n\r\n"), Err(ChunkFault::Extension));
    assert_eq!(chunked(b";a\r\na\r\n0\r\n\r\n"), Err(ChunkFault::Size), "an extension without a size");
    assert_eq!(chunked(b"0000000000000001;a=\"b\"\r\na\r\n00\r\n\r\n"), Ok(b"a".to_vec()));
    let mut decoder = ChunkDecoder::new();
    let step = decoder.step(b"ffffffffffffffff\r\nabc").expect("16 digits are a size");
    assert_eq!(step, Step { consumed: 21, data: Some(18..21), done: false }, "the largest size does not wrap round");
}

#[test]
fn row_11_data_longer_than_its_size() {
    assert_eq!(chunked(b"1\r\nabc\r\n0\r\n\r\n"), Err(ChunkFault::DataEnd));
    assert_eq!(chunked(b"1\r\na\n0\r\n\r\n"), Err(ChunkFault::DataEnd));
    assert_eq!(chunked(b"3\r\nabc\r\n0\r\n\r\n"), Ok(b"abc".to_vec()));
}

#[test]
fn row_12_extensions_and_trailers_without_end() {
    let extended = |bytes: usize| chunked(format!("1;{}\r\na\r\n0\r\n\r\n", "e".repeat(bytes - 1)).as_bytes());
    assert_eq!(extended(16 * 1024 - 1), Ok(b"a".to_vec()));
    assert_eq!(extended(16 * 1024), Ok(b"a".to_vec()));
    assert_eq!(extended(16 * 1024 + 1), Err(ChunkFault::Extension));
    let many = "1;ext\r\na\r\n".repeat(5_000) + "0\r\n\r\n";
    assert_eq!(chunked(many.as_bytes()), Err(ChunkFault::Extension), "the bound is on the body, not on a chunk");
    let trailed = |lines: usize| chunked(format!("0\r\n{}\r\n", "a: b\r\n".repeat(lines)).as_bytes());
    assert_eq!(trailed(1), Ok(Vec::new()));
    assert_eq!(trailed(5_000), Err(ChunkFault::Trailer));
    for trailer in ["a b: c\r\n", ": c\r\n", " a: c\r\n", "a\r\n", "a: \0\r\n", "a: b\n"] {
        assert_eq!(chunked(format!("0\r\n{trailer}\r\n").as_bytes()), Err(ChunkFault::Trailer), "{trailer:?}");
    }
    assert_eq!(chunked(b"0\r\n\rX"), Err(ChunkFault::Trailer));
}

#[test]
fn row_13_heads_too_large() {
    let headers = |count: usize| with_lines(&"X: y\r\n".repeat(count - 1));
    assert_eq!(headers(99), Ok(BodyLength::Empty));
    assert_eq!(headers(100), Ok(BodyLength::Empty));
    assert_eq!(headers(101), Err(Kind::HeadTooLarge));
    let fixed = "GET / HTTP/1.1\r\nHost: shop\r\nX: \r\n\r\n".len();
    let sized = |bytes: usize| {
        let value = "v".repeat(bytes - fixed);
        verdict(format!("GET / HTTP/1.1\r\nHost: shop\r\nX: {value}\r\n\r\n").as_bytes())
    };
    assert_eq!(sized(LIMITS.max_bytes - 1), Ok(BodyLength::Empty));
    assert_eq!(sized(LIMITS.max_bytes), Ok(BodyLength::Empty));
    assert_eq!(sized(LIMITS.max_bytes + 1), Err(Kind::HeadTooLarge));
    assert_eq!(with_target(&format!("/{}", "u".repeat(70_000))), Err(Kind::HeadTooLarge));
    let mut table = RequestTable::default();
    let endless = vec![b'a'; LIMITS.max_bytes];
    assert_eq!(table.parse(&endless[1..], &LIMITS), Ok(Progress::Partial));
    assert_eq!(table.parse(&endless, &LIMITS), Err(Kind::HeadTooLarge), "no line end can come in time");
}

#[test]
fn row_14_hosts() {
    assert_eq!(verdict(b"GET / HTTP/1.1\r\n\r\n"), Err(Kind::BadHost));
    assert_eq!(with_lines("Host: shop\r\n"), Err(Kind::BadHost), "a second one");
    for host in [
        "", "a/b", "a,b", "a b", "u@a", "a:b", "a:", ":80", "a:123456", "a:65536", "a?b", "a#b", "[::1", "[]",
        "[::1]x", "[::1]:x", "[g::1]", "a\\b", "é", "a:80:80", "a\tb",
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(verdict(head.as_bytes()), Err(Kind::BadHost), "{host:?}");
    }
    for host in ["a", "a.b-c_d", "10.0.0.1:80", "[::1]", "[::ffff:10.0.0.1]:65535", "A.B:0"] {
        request(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes(), |head| {
            assert_eq!(head.authority(), host.as_bytes());
        });
    }
}

#[test]
fn row_15_absolute_target_beats_host() {
    request(b"GET http://orders:81/p?q HTTP/1.1\r\nHost: other\r\n\r\n", |head| {
        assert_eq!((head.authority(), head.path(), head.query()), (&b"orders:81"[..], &b"/p"[..], Some(&b"q"[..])));
        let mut out = Vec::new();
        write_request_head(&head, &RequestEdits::default(), &mut out);
        assert!(out.starts_with(b"GET /p?q HTTP/1.1\r\nhost: orders:81\r\n"), "{}", String::from_utf8_lossy(&out));
        assert!(!String::from_utf8_lossy(&out).contains("other"));
    });
    for (target, path, query) in
        [("HTTP://a", &b"/"[..], None), ("https://a?x=/y", b"/", Some(&b"x=/y"[..])), ("http://a/", b"/", None)]
    {
        request(format!("GET {target} HTTP/1.1\r\nHost: b\r\n\r\n").as_bytes(), |head| {
            assert_eq!((head.authority(), head.path(), head.query()), (&b"a"[..], path, query), "{target}");
        });
    }
    assert_eq!(with_target("http://u@a/"), Err(Kind::BadHost));
    assert_eq!(with_target("http:///p"), Err(Kind::BadHost));
    for target in ["ftp://a/", "http:/a", "a", "?x", "*", "a:80"] {
        assert_eq!(with_target(target), Err(Kind::BadRequestLine), "{target}");
    }
    assert_eq!(verdict(b"GET http://a/ HTTP/1.1\r\n\r\n"), Err(Kind::BadHost), "Host is needed all the same");
    assert_eq!(verdict(b"GET http://a/ HTTP/1.1\r\nHost: a/b\r\n\r\n"), Err(Kind::BadHost));
}

#[test]
fn row_16_fragment() {
    for target in ["/a#b", "/#", "http://a/#x", "/a?b#c"] {
        assert_eq!(with_target(target), Err(Kind::BadPath), "{target}");
    }
}

#[test]
fn row_17_paths_that_hide_others() {
    let rules = PathRules { normalize: true, ..PathRules::default() };
    let mut scratch = Vec::new();
    for path in ["/x/../admin", "/x/%2e%2e/admin", "/x/%2E./admin", "/x\\..\\admin", "/./admin", "/%61dmin"] {
        assert_eq!(normalize(path.as_bytes(), rules, &mut scratch), Ok(Normal::Changed(b"/admin")), "{path}");
    }
    for path in ["/x%2fadmin", "/x%5cadmin", "//admin", "/a//b", "/a.b/c..d/...", "/%25%32%65"] {
        let kept = match normalize(path.as_bytes(), rules, &mut scratch) {
            Ok(Normal::Unchanged) => path.as_bytes().to_vec(),
            Ok(Normal::Changed(changed)) => changed.to_vec(),
            other => panic!("{path}: {other:?}"),
        };
        let expected = if path == "/%25%32%65" { "/%252e" } else { path };
        assert_eq!(kept, expected.as_bytes(), "{path}");
    }
    let reject = PathRules { escaped_slashes: EscapedSlashes::RejectRequest, ..rules };
    for path in ["/a%2fb", "/a%2Fb", "/a%5cb", "/a%5Cb"] {
        assert_eq!(normalize(path.as_bytes(), reject, &mut scratch), Err(Kind::BadPath), "{path}");
    }
}

#[test]
fn row_18_connection_names_what_must_stay() {
    for names in [
        "host",
        "Host, x-forwarded-for",
        "x-forwarded-for",
        "X-Forwarded-Proto",
        "close, content-length",
        "authorization",
        "cookie",
        "x-request-id",
        "x-envoy-internal",
        "outrigger-deadline",
        "forwarded",
        "idempotency-key",
        "expect",
    ] {
        let lines = format!("Connection: {names}\r\n");
        assert_eq!(with_lines(&lines), Err(Kind::BadHeader), "{names}");
    }
    let many: Vec<String> = (0..40).map(|n| format!("x-{n}")).collect();
    assert_eq!(with_lines(&format!("Connection: {}\r\n", many.join(","))), Err(Kind::BadHeader));
    request(b"GET / HTTP/1.1\r\nHost: a\r\nX-Hop: 1\r\nConnection: x-hop ,, close\r\nx-hop: 2\r\n\r\n", |head| {
        assert_eq!(head.header(b"x-hop"), None, "routing does not see it");
        assert!(!head.keep_alive());
    });
}

#[test]
fn row_19_upgrade_to_h2c_is_dropped() {
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                  HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    request(bytes, |head| {
        assert!(!head.is_upgrade());
        let mut out = Vec::new();
        write_request_head(&head, &RequestEdits::default(), &mut out);
        assert_eq!(out, b"GET / HTTP/1.1\r\nHost: a\r\nx-forwarded-proto: http\r\n\r\n");
    });
}

#[test]
fn row_20_other_upgrades_are_seen() {
    for protocol in ["websocket", "foo", "h2c, websocket"] {
        let head =
            format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, upgrade\r\nUpgrade: {protocol}\r\n\r\n");
        request(head.as_bytes(), |head| assert!(head.is_upgrade(), "{protocol}"));
    }
    request(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", |head| assert!(!head.is_upgrade()));
    request(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", |head| {
        assert_eq!((head.method(), head.authority(), head.path()), (&b"CONNECT"[..], &b"a:443"[..], &b""[..]));
    });
    response(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: foo\r\n\r\n", |head| {
        assert!(head.is_switch() && !head.is_interim());
    });
}

#[test]
fn row_21_what_follows_a_head_is_told_apart() {
    let bytes = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /next HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut table = RequestTable::default();
    let Ok(Progress::Complete { head_bytes }) = table.parse(bytes, &LIMITS) else { panic!("the head is whole") };
    assert_eq!(table.view(bytes).body(), BodyLength::Length(3));
    let rest = &bytes[head_bytes + 3..];
    assert_eq!(table.parse(rest, &LIMITS), Ok(Progress::Complete { head_bytes: rest.len() }));
    assert_eq!(table.view(rest).path(), b"/next");
}

#[test]
fn row_22_forged_headers() {
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: By=me\r\nx-envoy-internal: true\r\n\
                  X-Envoy-Retry-On: 5xx\r\nOutrigger-Deadline: 1\r\nKeep-Alive: 5\r\nProxy-Connection: close\r\n\
                  TE: gzip\r\nTrailer: x\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-Proto: https\r\nFine: 1\r\n\r\n";
    let edits = RequestEdits { forwarded_for: Some([10, 0, 0, 9].into()), ..RequestEdits::default() };
    request(bytes, |head| {
        let mut out = Vec::new();
        write_request_head(&head, &edits, &mut out);
        assert_eq!(
            String::from_utf8_lossy(&out),
            "GET / HTTP/1.1\r\nHost: a\r\nFine: 1\r\nx-forwarded-for: 1.1.1.1, 10.0.0.9\r\nx-forwarded-proto: http\r\n\r\n"
        );
        out.clear();
        write_request_head(&head, &RequestEdits { trust: Trust::Mesh, ..edits }, &mut out);
        let text = String::from_utf8_lossy(&out);
        assert!(
            text.contains("x-envoy-internal: true\r\nX-Envoy-Retry-On: 5xx\r\nOutrigger-Deadline: 1\r\n"),
            "{text}"
        );
        assert!(text.contains("X-Forwarded-Proto: https\r\n") && !text.contains("proto: http\r\n"), "{text}");
        assert!(!text.contains("Client-Cert"), "{text}");
    });
    request(b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n", |head| {
        let mut out = Vec::new();
        write_request_head(&head, &RequestEdits::default(), &mut out);
        assert!(String::from_utf8_lossy(&out).contains("te: trailers\r\n"));
    });
}

#[test]
fn row_23_responses_that_are_none() {
    let verdict = |bytes: &[u8]| ResponseTable::default().parse(bytes, &ResponseLimits::default());
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        "HTTP/1.1 200 OK\nX: a\n\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 600 OK\r\n\r\n",
        "HTTP/1.1 200 O\0K\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "garbage",
        "<html>",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
    ] {
        assert_eq!(verdict(head.as_bytes()), Err(Kind::ResponseMalformed), "{head:?}");
    }
    let large = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "v".repeat(61 * 1024));
    assert_eq!(verdict(large.as_bytes()), Err(Kind::ResponseTooLarge));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(101));
    assert_eq!(verdict(many.as_bytes()), Err(Kind::ResponseTooLarge));
}

#[test]
fn row_24_a_response_that_stops_is_not_whole() {
    let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n";
    for cut in 0..bytes.len() {
        let mut table = ResponseTable::default();
        assert_eq!(table.parse(&bytes[..cut], &ResponseLimits::default()), Ok(Progress::Partial), "{cut}");
    }
    response(b"HTTP/1.1 200 OK\r\n\r\n", |head| {
        assert_eq!(head.body(b"GET"), BodyLength::UntilClose);
        let edits = ResponseEdits {
            body: BodyLength::Chunked,
            levels: &[&HeaderEdits::default()],
            server: ServerHeader::PassThrough,
            server_name: "",
            via: "",
            date: b"",
            extra: &[],
            connection: Connection::Implied,
        };
        let mut out = Vec::new();
        write_response_head(&head, &edits, &mut out);
        assert_eq!(out, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "the downstream can tell a cut");
    });
}
