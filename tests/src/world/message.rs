//! Purpose: just enough HTTP/1.1 to read what a proxy sends, strictly, and to keep its exact bytes.
//!
//! Errors: [`std::io::ErrorKind::InvalidData`] for what is no HTTP/1.1, `UnexpectedEof` for what breaks off; a reader
//! on the test's side never repairs anything.

use std::io::{self, BufRead, Read};

const HEAD_BYTES_MAX: usize = 256 * 1024;
const HEADERS_MAX: usize = 512;

/// Header fields in the order received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, Vec<u8>)>);

impl Headers {
    /// All values of a name, whatever its letter case.
    pub fn all(&self, name: &str) -> Vec<String> {
        let fits = |(other, _): &&(String, Vec<u8>)| other.eq_ignore_ascii_case(name);
        self.0.iter().filter(fits).map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }

    /// The first value of a name.
    pub fn first(&self, name: &str) -> Option<String> {
        self.all(name).into_iter().next()
    }

    /// Whether a comma-separated header lists `token`.
    pub fn lists(&self, name: &str, token: &str) -> bool {
        self.all(name).iter().any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    }
}

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// In chunks.
    Chunked,
    /// That many bytes.
    Known(u64),
    /// To the end of the connection.
    UntilClose,
}

/// The lines up to the empty one, raw.
pub fn read_head(stream: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    loop {
        let start = head.len();
        let read = stream.take((HEAD_BYTES_MAX - start) as u64).read_until(b'\n', &mut head)?;
        if read == 0 && head.is_empty() {
            return Ok(None);
        }
        if !head.ends_with(b"\n") {
            let kind = if head.len() >= HEAD_BYTES_MAX { "a head too large" } else { "the head broke off" };
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{kind}: {}", show(&head))));
        }
        if &head[start..] == b"\r\n" {
            return Ok(Some(head));
        }
    }
}

/// Start line and headers of a request head.
pub fn parse_request(head: &[u8]) -> io::Result<(String, String, Headers)> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        other => return Err(invalid(format!("no request head: {other:?}: {}", show(head)))),
    }
    let (method, target) = (request.method.unwrap_or_default().to_owned(), request.path.unwrap_or_default().to_owned());
    Ok((method, target, own_headers(request.headers)))
}

/// Status, reason and headers of a response head.
pub fn parse_response(head: &[u8]) -> io::Result<(u16, String, Headers)> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    match response.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        other => return Err(invalid(format!("no response head: {other:?}: {}", show(head)))),
    }
    let (status, reason) = (response.code.unwrap_or_default(), response.reason.unwrap_or_default().to_owned());
    Ok((status, reason, own_headers(response.headers)))
}

fn own_headers(fields: &[httparse::Header<'_>]) -> Headers {
    Headers(fields.iter().map(|field| (field.name.to_owned(), field.value.to_vec())).collect())
}

/// The body length that the headers promise; `None` when they name none.
pub fn body_length(headers: &Headers) -> io::Result<Option<BodyLength>> {
    let codings = headers.all("transfer-encoding");
    let lengths = headers.all("content-length");
    match (codings.as_slice(), lengths.as_slice()) {
        ([], []) => Ok(None),
        ([coding], []) if coding.eq_ignore_ascii_case("chunked") => Ok(Some(BodyLength::Chunked)),
        ([], [length]) => match length.parse() {
            Ok(length) => Ok(Some(BodyLength::Known(length))),
            Err(_) => Err(invalid(format!("content-length {length:?}"))),
        },
        _ => Err(invalid(format!("framing: transfer-encoding {codings:?}, content-length {lengths:?}"))),
    }
}

/// Reads a body of that length, and its trailers; `raw` gets every byte as it was on the wire.
pub fn read_body(stream: &mut impl BufRead, length: BodyLength, raw: &mut Vec<u8>) -> io::Result<(Vec<u8>, Headers)> {
    match length {
        BodyLength::Known(length) => {
            let mut body = vec![0; usize::try_from(length).map_err(|_| invalid("a body too large".into()))?];
            stream.read_exact(&mut body)?;
            raw.extend_from_slice(&body);
            Ok((body, Headers::default()))
        }
        BodyLength::UntilClose => {
            let mut body = Vec::new();
            stream.read_to_end(&mut body)?;
            raw.extend_from_slice(&body);
            Ok((body, Headers::default()))
        }
        BodyLength::Chunked => read_chunks(stream, raw),
    }
}

fn read_chunks(stream: &mut impl BufRead, raw: &mut Vec<u8>) -> io::Result<(Vec<u8>, Headers)> {
    let mut body = Vec::new();
    loop {
        let line = read_line(stream, raw)?;
        let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
        let size = std::str::from_utf8(size).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let size = size.ok_or_else(|| invalid(format!("chunk size {}", show(&line))))?;
        if size == 0 {
            return Ok((body, read_trailers(stream, raw)?));
        }
        let start = body.len();
        body.resize(start + size, 0);
        stream.read_exact(&mut body[start..])?;
        raw.extend_from_slice(&body[start..]);
        if !read_line(stream, raw)?.is_empty() {
            return Err(invalid("chunk data longer than its size".into()));
        }
    }
}

fn read_trailers(stream: &mut impl BufRead, raw: &mut Vec<u8>) -> io::Result<Headers> {
    let start = raw.len();
    while !read_line(stream, raw)?.is_empty() {}
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    match httparse::parse_headers(&raw[start..], &mut fields) {
        Ok(httparse::Status::Complete((_, fields))) => Ok(own_headers(fields)),
        other => Err(invalid(format!("no trailers: {other:?}: {}", show(&raw[start..])))),
    }
}

fn read_line(stream: &mut impl BufRead, raw: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    stream.take(HEAD_BYTES_MAX as u64).read_until(b'\n', &mut line)?;
    raw.extend_from_slice(&line);
    match line.strip_suffix(b"\r\n") {
        Some(line) => Ok(line.to_vec()),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("a line broke off: {}", show(&line)))),
    }
}

/// Bytes as text for a failure message, cut short.
pub fn show(bytes: &[u8]) -> String {
    const SHOWN: usize = 600;
    let cut = if bytes.len() > SHOWN { format!("… ({} bytes)", bytes.len()) } else { String::new() };
    format!("\"{}\"{cut}", bytes[..bytes.len().min(SHOWN)].escape_ascii())
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_body_is_read_and_its_wire_bytes_are_kept() {
        let wire = b"3\r\nabc\r\n0\r\nX-T: 1\r\n\r\nrest";
        let (mut stream, mut raw) = (&wire[..], Vec::new());
        let (body, trailers) = read_body(&mut stream, BodyLength::Chunked, &mut raw).unwrap();
        assert_eq!((body.as_slice(), trailers.all("x-t")), (&b"abc"[..], vec!["1".to_owned()]));
        assert_eq!(raw, &wire[..wire.len() - 4]);
        assert_eq!(stream, b"rest");
    }

    #[test]
    fn what_breaks_off_is_an_error() {
        for wire in [&b"3\r\nab"[..], b"3\r\nabc\r\n", b"zz\r\n", b"1\r\nabc\r\n"] {
            assert!(read_body(&mut &wire[..], BodyLength::Chunked, &mut Vec::new()).is_err(), "{}", show(wire));
        }
        assert!(read_head(&mut &b"GET / HTTP/1.1\r\nA: b"[..]).is_err());
        assert!(read_head(&mut &b""[..]).unwrap().is_none());
    }

    #[test]
    fn contradicting_framing_is_an_error() {
        let headers = |list: &[(&str, &str)]| {
            Headers(list.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect())
        };
        assert!(body_length(&headers(&[("Content-Length", "1"), ("transfer-encoding", "chunked")])).is_err());
        assert!(body_length(&headers(&[("Content-Length", "1"), ("content-length", "1")])).is_err());
        assert_eq!(body_length(&headers(&[])).unwrap(), None);
    }
}
