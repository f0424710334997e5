//! One route against one request. Source: Envoy, `config.route.v3.RouteMatch` and `HeaderMatcher`.

use std::borrow::Cow;

use memchr::{memchr, memmem};

use crate::chance::Chance;
use crate::config::{HeaderMatch, HeaderTest, PathMatch, QueryMatch, RouteMatch, TextMatch};
use crate::grpc;

use super::view::RequestView;

/// All parts hold. The share is drawn last, so that requests which do not match otherwise use no chance.
pub(super) fn matches(route: &RouteMatch, request: &impl RequestView, chance: &Chance) -> bool {
    path_matches(route, request)
        && route.headers.iter().all(|test| header_matches(test, request))
        && (route.query.is_empty() || query_matches(&route.query, request.query().unwrap_or_default()))
        && (route.fraction_ppm >= 1_000_000 || chance.below(1_000_000) < u64::from(route.fraction_ppm))
}

fn path_matches(route: &RouteMatch, request: &impl RequestView) -> bool {
    let path = request.path();
    let same = |a: &[u8], b: &[u8]| if route.case_sensitive { a == b } else { a.eq_ignore_ascii_case(b) };
    let begins = |text: &[u8]| path.get(..text.len()).is_some_and(|head| same(head, text));
    match &route.path {
        PathMatch::Connect => request.method() == b"CONNECT",
        // The request of a tunnel has no path: an open route is no leave to open one.
        _ if path.is_empty() => false,
        PathMatch::Exact(text) => same(path, text.as_bytes()),
        PathMatch::Prefix(text) => begins(text.as_bytes()),
        PathMatch::SeparatedPrefix(text) => {
            begins(text.as_bytes()) && path.get(text.len()).is_none_or(|next| *next == b'/')
        }
        PathMatch::Regex(regex) => regex.is_match(path),
    }
}

pub(super) fn header_matches(header: &HeaderMatch, request: &(impl RequestView + ?Sized)) -> bool {
    let value = header_value(&header.name, request);
    if let HeaderTest::Present(expected) = header.test {
        let present = value.is_some() || header.missing_as_empty;
        return (present == expected) != header.invert;
    }
    let value = match value {
        Some(value) => value,
        None if header.missing_as_empty => Cow::Borrowed(&b""[..]),
        // Envoy: the rule is not met, turned round or not.
        None => return false,
    };
    let met = match &header.test {
        HeaderTest::Grpc => grpc::is_grpc(&value),
        HeaderTest::Present(_) => true,
        HeaderTest::Range { start, end } => {
            let number = std::str::from_utf8(&value).ok().and_then(|text| text.trim().parse::<i64>().ok());
            number.is_some_and(|number| (*start..*end).contains(&number))
        }
        HeaderTest::Text(text) => text_matches(text, &value),
    };
    met != header.invert
}

/// The value under test; several lines are joined by `,`.
fn header_value<'r>(name: &str, request: &'r (impl RequestView + ?Sized)) -> Option<Cow<'r, [u8]>> {
    match name {
        ":method" => return Some(Cow::Borrowed(request.method())),
        ":scheme" => return Some(Cow::Borrowed(request.scheme())),
        ":authority" | "host" => return Some(Cow::Borrowed(request.authority())),
        ":path" => {
            return Some(match request.query() {
                None => Cow::Borrowed(request.path()),
                Some(query) => Cow::Owned([request.path(), b"?", query].concat()),
            });
        }
        _ => {}
    }
    let mut joined: Option<Cow<'r, [u8]>> = None;
    request.each_value(name.as_bytes(), &mut |value| match &mut joined {
        None => joined = Some(Cow::Borrowed(value)),
        Some(before) => {
            let before = before.to_mut();
            before.push(b',');
            before.extend_from_slice(value);
        }
    });
    joined
}

/// A text test on bytes.
pub(super) fn text_matches(test: &TextMatch, value: &[u8]) -> bool {
    let same = |a: &[u8], b: &[u8], ignore_case: bool| if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b };
    match test {
        TextMatch::Contains { text, ignore_case: false } => memmem::find(value, text.as_bytes()).is_some(),
        TextMatch::Contains { text, ignore_case: true } => {
            text.is_empty() || value.windows(text.len()).any(|window| window.eq_ignore_ascii_case(text.as_bytes()))
        }
        TextMatch::Exact { text, ignore_case } => same(value, text.as_bytes(), *ignore_case),
        TextMatch::Prefix { text, ignore_case } => {
            value.get(..text.len()).is_some_and(|head| same(head, text.as_bytes(), *ignore_case))
        }
        TextMatch::Suffix { text, ignore_case } => {
            let at = value.len().checked_sub(text.len());
            at.is_some_and(|at| same(&value[at..], text.as_bytes(), *ignore_case))
        }
        TextMatch::Regex(regex) => regex.is_match(value),
    }
}

/// As Envoy does it: values are compared as sent, and the first of a name counts.
fn query_matches(tests: &[QueryMatch], query: &[u8]) -> bool {
    tests.iter().all(|test| {
        let pairs = query.split(|b| *b == b'&').map(|pair| match memchr(b'=', pair) {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &b""[..]),
        });
        let first = pairs.into_iter().find(|(name, _)| *name == test.name.as_bytes());
        first.is_some_and(|(_, value)| test.test.as_ref().is_none_or(|text| text_matches(text, value)))
    })
}
