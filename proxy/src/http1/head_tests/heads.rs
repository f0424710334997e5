//! Heads at every split, against `httparse`, and what a head says.

use proptest::prelude::*;

use super::*;

const PLAIN: &[u8] = b"\r\nPUT /a/b?c=d HTTP/1.1\r\nHost: shop:80\r\nX-A:  1 \r\nx-a:2\r\nExpect: 100-Continue\r\n\
                       Content-Length: 4\r\n\r\nrest";

#[test]
fn reads_the_same_at_every_split() {
    let whole = PLAIN.len() - 4;
    for first in 0..whole {
        for second in [first, (first + whole) / 2, whole - 1] {
            let mut table = RequestTable::default();
            assert_eq!(table.parse(&PLAIN[..first], &LIMITS), Ok(Progress::Partial), "{first}");
            assert_eq!(table.parse(&PLAIN[..second.max(first)], &LIMITS), Ok(Progress::Partial), "{first} {second}");
            assert_eq!(table.parse(PLAIN, &LIMITS), Ok(Progress::Complete { head_bytes: whole }));
            let head = table.view(PLAIN);
            assert_eq!((head.method(), head.target(), head.path()), (&b"PUT"[..], &b"/a/b?c=d"[..], &b"/a/b"[..]));
            assert_eq!((head.query(), head.authority()), (Some(&b"c=d"[..]), &b"shop:80"[..]));
            assert_eq!(head.values(b"x-a").collect::<Vec<_>>(), [b"1", b"2"]);
            assert_eq!(head.header(b"x-a"), Some(&b"1"[..]));
            assert!(head.expects_continue() && head.keep_alive() && head.is_idempotent());
            assert_eq!(head.body(), BodyLength::Length(4));
        }
    }
}

#[test]
fn a_table_is_as_new_after_each_head() {
    let mut table = RequestTable::default();
    let bad = b"POST http://x/?y HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nConnection: close, upgrade\r\n\
                Upgrade: foo\r\nTransfer-Encoding: chunked\r\nIdempotency-Key: k\r\n\r\n";
    assert!(matches!(table.parse(bad, &LIMITS), Ok(Progress::Complete { .. })));
    assert!(table.view(bad).has_idempotency_key() && table.view(bad).is_upgrade());
    assert_eq!(table.parse(b"GET / HTTP/1.1\r\nbroken", &LIMITS), Ok(Progress::Partial));
    table.reset();
    assert_eq!(table.parse(b"GET / HTTP/1.1\r\nbro ken: 1\r\n", &LIMITS), Err(Kind::BadHeader));
    let plain = b"GET /n HTTP/1.1\r\nHost: b\r\n\r\n";
    assert_eq!(table.parse(plain, &LIMITS), Ok(Progress::Complete { head_bytes: plain.len() }));
    let head = table.view(plain);
    assert_eq!((head.path(), head.query(), head.authority()), (&b"/n"[..], None, &b"b"[..]));
    assert_eq!((head.body(), head.lines().count()), (BodyLength::Empty, 1));
    assert!(head.keep_alive() && !head.expects_continue() && !head.is_upgrade() && !head.has_idempotency_key());
}

#[test]
fn a_first_byte_that_begins_no_request_is_refused_at_once() {
    for first in [0x16, 0x00, b' ', b':', 0xff] {
        assert_eq!(RequestTable::default().parse(&[first], &LIMITS), Err(Kind::BadRequestLine), "{first:#x}");
    }
    for blank in 1..=4 {
        let bytes = [b"\r\n".repeat(blank), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()].concat();
        assert_eq!(verdict(&bytes), Ok(BodyLength::Empty), "{blank}");
    }
    let bytes = [b"\r\n".repeat(5), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()].concat();
    assert_eq!(verdict(&bytes), Err(Kind::BadRequestLine));
}

#[test]
fn request_lines() {
    for line in [
        "GET /",
        "GET",
        "",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "G(T / HTTP/1.1",
        "GET / http/1.1",
        "GET / HTTP/1.1x",
        "GET / HTTP/11",
        "GET\t/\tHTTP/1.1",
        "GET /a b HTTP/1.1",
    ] {
        let bytes = format!("X{line}\r\nHost: a\r\n\r\n");
        let bytes = if line.is_empty() { bytes.as_bytes() } else { &bytes.as_bytes()[1..] };
        assert_eq!(verdict(bytes), Err(Kind::BadRequestLine), "{line:?}");
    }
    request(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", |head| assert_eq!(head.path(), b"*"));
}

#[test]
fn expectations() {
    assert_eq!(with_lines("Expect: 200-ok\r\n"), Err(Kind::BadExpectation));
    assert_eq!(with_lines("Expect:\r\n"), Err(Kind::BadExpectation));
    assert_eq!(with_lines("Expect: 100-continue\r\nExpect: x\r\n"), Err(Kind::BadExpectation));
    request(b"PUT / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n", |head| assert!(!head.expects_continue()));
}

#[test]
fn underscores() {
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nX_Y: 1\r\nz: 2\r\n\r\n";
    let parse = |underscores, look: &dyn Fn(RequestHead<'_>)| {
        let mut table = RequestTable::default();
        table.parse(bytes, &HeadLimits { underscores, ..LIMITS }).map(|_| look(table.view(bytes)))
    };
    assert_eq!(parse(UnderscoreHeaders::RejectRequest, &|_| ()), Err(Kind::Underscore));
    let allowed = parse(UnderscoreHeaders::Allow, &|head| assert_eq!(head.header(b"x_y"), Some(&b"1"[..])));
    assert_eq!(allowed, Ok(()));
    let dropped = parse(UnderscoreHeaders::Drop, &|head| {
        assert_eq!(head.header(b"x_y"), None);
        let mut out = Vec::new();
        write_request_head(&head, &RequestEdits::default(), &mut out);
        assert_eq!(out, b"GET / HTTP/1.1\r\nHost: a\r\nz: 2\r\nx-forwarded-proto: http\r\n\r\n");
    });
    assert_eq!(dropped, Ok(()));
}

#[test]
fn what_a_response_says() {
    let parsed =
        |bytes: &[u8], method: &[u8]| response(bytes, |head| (head.status(), head.body(method), head.keep_alive()));
    for (bytes, method, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "GET", (200, BodyLength::Length(5), true)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD", (200, BodyLength::Empty, true)),
        ("HTTP/1.1 304 \r\nContent-Length: 5\r\n\r\n", "GET", (304, BodyLength::Empty, true)),
        ("HTTP/1.1 204\r\nConnection: close\r\n\r\n", "GET", (204, BodyLength::Empty, false)),
        ("HTTP/1.1 100 Continue\r\n\r\n", "POST", (100, BodyLength::Empty, true)),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "GET", (200, BodyLength::Chunked, true)),
        ("HTTP/1.0 200 OK\r\n\r\n", "GET", (200, BodyLength::UntilClose, false)),
        (
            "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\n",
            "GET",
            (200, BodyLength::Length(1), true),
        ),
    ] {
        assert_eq!(parsed(bytes.as_bytes(), method.as_bytes()), expected, "{bytes:?}");
    }
    response(b"HTTP/1.1 299 Made Up\r\nA: b\r\n\r\n", |head| {
        assert_eq!((head.reason(), head.header(b"a")), (&b"Made Up"[..], Some(&b"b"[..])));
    });
}

proptest! {
    /// What we accept, `httparse` (which is laxer) reads the same way.
    #[test]
    fn accepted_heads_mean_what_httparse_reads(
        method in "[A-Z]{1,6}",
        target in "[/*a-c:?%.#]{0,8}",
        lines in prop::collection::vec("[A-Ca-c -]{0,4}:?[ \t]{0,2}[!-~ \t]{0,6}", 0..5),
        junk in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2),
    ) {
        let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{}\r\n", lines.iter().map(|l| format!("{l}\r\n")).collect::<String>()).into_bytes();
        for (at, byte) in junk {
            let at = at.index(bytes.len() - 4);
            bytes[at] = byte;
        }
        let mut table = RequestTable::default();
        let one = table.parse(&bytes, &LIMITS);
        let mut split = RequestTable::default();
        let mut last = Ok(Progress::Partial);
        for end in 0..=bytes.len() {
            last = split.parse(&bytes[..end], &LIMITS);
            if last != Ok(Progress::Partial) {
                break;
            }
        }
        prop_assert_eq!(last, one, "byte by byte: {:?}", String::from_utf8_lossy(&bytes));
        if let Ok(Progress::Complete { head_bytes }) = one {
            let mut headers = [httparse::EMPTY_HEADER; 100];
            let mut theirs = httparse::Request::new(&mut headers);
            let parsed = theirs.parse(&bytes);
            prop_assert_eq!(parsed, Ok(httparse::Status::Complete(head_bytes)), "{:?}", String::from_utf8_lossy(&bytes));
            let head = table.view(&bytes);
            prop_assert_eq!(theirs.method.map(str::as_bytes), Some(head.method()));
            prop_assert_eq!(theirs.path.map(str::as_bytes), Some(head.target()));
            let ours: Vec<_> = table.view(&bytes).table_lines().iter().map(|l| (l.name_in(&bytes), l.value_in(&bytes))).collect();
            let theirs: Vec<_> = theirs.headers.iter().map(|h| (h.name.as_bytes(), h.value)).collect();
            prop_assert_eq!(ours, theirs);
        }
    }
}
