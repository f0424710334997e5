//! **Purpose.** The hash by which requests that belong together go to the same endpoint.
//!
//! **Shape.** Each [`HashPolicy`] gives a hash or none; they are joined in their order. A client without the cookie that it
//! is to be known by is given one, made of the two ends of its connection: requests that it sends before it has the cookie
//! go where those with it will.
//!
//! **Source.** Envoy, `HashPolicyImpl`, `Utility::makeSetCookieValue`: the same hashes and cookies.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use super::RequestView;
use crate::balance::{hash_of, hash_of_all};
use crate::config::{HashCookie, HashPolicy, HashSource, HeaderEdit, HeaderEdits};
use crate::upstream::Ends;

/// What hashing gave.
#[derive(Debug, Default)]
pub struct Hashed {
    /// The hash, where any policy gave one.
    pub hash: Option<u64>,
    /// The cookies that the client is given.
    pub cookies: HeaderEdits,
}

/// Hashes a request of a connection with these `ends`.
pub fn hash(policies: &[HashPolicy], request: &impl RequestView, ends: Ends) -> Hashed {
    let mut hashed = Hashed::default();
    for policy in policies {
        let found = match &policy.source {
            HashSource::Cookie(cookie) => of_cookie(cookie, request, ends, &mut hashed.cookies),
            HashSource::Header(name) => of_header(name, request),
            HashSource::Query(name) => parameter(name, request).map(hash_of),
            HashSource::SourceIp => Some(hash_of(canonical(ends.source).ip().to_string().as_bytes())),
        };
        if let Some(found) = found {
            hashed.hash = Some(hashed.hash.map_or(0, |before| before.rotate_left(1)) ^ found);
        }
        if policy.is_terminal && hashed.hash.is_some() {
            break;
        }
    }
    hashed
}

fn of_header(name: &str, request: &impl RequestView) -> Option<u64> {
    let pseudo = match name {
        ":authority" | "host" => Some(request.authority()),
        ":method" => Some(request.method()),
        ":path" => Some(request.path()),
        ":scheme" => Some(request.scheme()),
        _ => None,
    };
    let mut values: Vec<&[u8]> = pseudo.into_iter().collect();
    request.each_value(name.as_bytes(), &mut |value| values.push(value));
    (!values.is_empty()).then(|| hash_of_all(&mut values))
}

fn of_cookie(cookie: &HashCookie, request: &impl RequestView, ends: Ends, made: &mut HeaderEdits) -> Option<u64> {
    let mut sent = None;
    request.each_value(b"cookie", &mut |line| sent = sent.or_else(|| cookie_in(line, cookie.name.as_bytes())));
    if let Some(value) = sent.filter(|value| !value.is_empty()) {
        return Some(hash_of(value));
    }
    let ttl = cookie.ttl?;
    let both = format!("{}{}", canonical(ends.source), canonical(ends.destination));
    let value = format!("{:016x}", hash_of(both.as_bytes()));
    let mut line = format!("{}=\"{value}\"", cookie.name);
    if !ttl.is_zero() {
        // Text takes what it is given.
        let _ = write!(line, "; Max-Age={}", ttl.as_secs());
    }
    line.push_str(&cookie.attributes);
    line.push_str("; HttpOnly");
    made.add.push(HeaderEdit::Append("set-cookie".into(), line.into()));
    Some(hash_of(value.as_bytes()))
}

/// The value of a cookie in a line of them, without its quotes.
fn cookie_in<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    line.split(|byte| *byte == b';').find_map(|pair| {
        let value = pair.trim_ascii().strip_prefix(name)?.strip_prefix(b"=")?;
        Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
    })
}

/// As sent: nothing in it is decoded.
fn parameter<'r>(name: &str, request: &'r impl RequestView) -> Option<&'r [u8]> {
    let mut pairs = request.query()?.split(|byte| *byte == b'&');
    pairs.find_map(|pair| match memchr::memchr(b'=', pair) {
        Some(at) => (&pair[..at] == name.as_bytes()).then(|| &pair[at + 1..]),
        None => (pair == name.as_bytes()).then_some(&b""[..]),
    })
}

/// A client of IPv4 has one address, whatever socket took its connection.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::from((v4, address.port())),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Asked(&'static str, Vec<(&'static str, &'static str)>);

    impl RequestView for Asked {
        fn method(&self) -> &[u8] {
            b"GET"
        }
        fn scheme(&self) -> &[u8] {
            b"http"
        }
        fn authority(&self) -> &[u8] {
            b"shop"
        }
        fn path(&self) -> &[u8] {
            b"/"
        }
        fn query(&self) -> Option<&[u8]> {
            (!self.0.is_empty()).then_some(self.0.as_bytes())
        }
        fn each_value<'s>(&'s self, name: &[u8], visit: &mut dyn FnMut(&'s [u8])) {
            self.1.iter().filter(|(other, _)| other.as_bytes() == name).for_each(|(_, value)| visit(value.as_bytes()));
        }
    }

    fn ends() -> Ends {
        Ends { source: "[::ffff:10.0.0.1]:1000".parse().unwrap(), destination: "10.0.0.2:80".parse().unwrap() }
    }

    fn by(source: HashSource) -> HashPolicy {
        HashPolicy { source, is_terminal: false }
    }

    fn header(name: &str) -> HashPolicy {
        by(HashSource::Header(name.into()))
    }

    fn of(policies: &[HashPolicy], query: &'static str, headers: &[(&'static str, &'static str)]) -> Option<u64> {
        hash(policies, &Asked(query, headers.to_vec()), ends()).hash
    }

    #[test]
    fn each_part_is_hashed_as_it_was_sent() {
        let one = |source, query, headers: &[_]| of(&[by(source)], query, headers);
        let query = |query| one(HashSource::Query("k".into()), query, &[]);
        assert_eq!(query("kk=0&k=%31&k=2"), Some(hash_of(b"%31")));
        assert_eq!((query("k"), query("kk=1"), query("")), (Some(hash_of(b"")), None, None));
        assert_eq!(one(HashSource::SourceIp, "", &[]), Some(hash_of(b"10.0.0.1")));
        assert_eq!(of(&[header(":authority")], "", &[]), Some(hash_of(b"shop")));
        assert_eq!(of(&[header("x")], "", &[("x", "a")]), Some(hash_of(b"a")));
        assert_eq!(of(&[header("x")], "", &[]), None);
        let (there, back) = ([("x", "a"), ("x", "b")], [("x", "b"), ("x", "a")]);
        assert_eq!(of(&[header("x")], "", &there), of(&[header("x")], "", &back));
        assert_ne!(of(&[header("x")], "", &there), Some(hash_of(b"a")));
    }

    #[test]
    fn hashes_are_joined_until_one_is_terminal() {
        let headers = [("x", "a"), ("y", "b")];
        let (a, b) = (hash_of(b"a"), hash_of(b"b"));
        assert_eq!(of(&[header("x"), header("none"), header("y")], "", &headers), Some(a.rotate_left(1) ^ b));
        let terminal = |name| HashPolicy { is_terminal: true, ..header(name) };
        assert_eq!(of(&[terminal("x"), header("y")], "", &headers), Some(a));
        assert_eq!(of(&[terminal("none"), header("y")], "", &headers), Some(b), "none gives no hash to end with");
        assert_eq!(of(&[], "", &headers), None);
    }

    #[test]
    fn a_client_without_its_cookie_is_given_one() {
        let cookie = |ttl: Option<u64>, attributes: &str| {
            let ttl = ttl.map(Duration::from_secs);
            [by(HashSource::Cookie(HashCookie { name: "id".into(), ttl, attributes: attributes.into() }))]
        };
        let sent = |line| of(&cookie(Some(5), ""), "", &[("cookie", "a=1"), ("cookie", line)]);
        for line in ["id=me", "b=2; id=me; id=other", "id=\"me\""] {
            assert_eq!(sent(line), Some(hash_of(b"me")), "{line}");
        }
        assert_eq!(of(&cookie(None, ""), "", &[("cookie", "xid=me")]), None);
        let expected = format!("{:016x}", hash_of(b"10.0.0.1:100010.0.0.2:80"));
        for (ttl, attributes, text) in [(0, "", ""), (5, "; Path=/a; Secure", "; Max-Age=5; Path=/a; Secure")] {
            let made = hash(&cookie(Some(ttl), attributes), &Asked("", vec![("cookie", "id=")]), ends());
            let line = format!("id=\"{expected}\"{text}; HttpOnly");
            assert_eq!(made.cookies.add, [HeaderEdit::Append("set-cookie".into(), line.as_str().into())]);
            assert_eq!(made.hash, Some(hash_of(expected.as_bytes())), "it goes where it will go with the cookie");
        }
    }
}
