//! When a route applies.

use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as proto;
use proto::header_matcher::HeaderMatchSpecifier;
use proto::query_parameter_matcher::QueryParameterMatchSpecifier;
use proto::route_match::PathSpecifier;

use super::at::{At, at};
use super::header;
use super::matcher::{Anchor, part, regex, text_match};
use super::read::{ALL_PPM, runtime_fraction_ppm};
use crate::config::{HeaderMatch, HeaderTest, PathMatch, QueryMatch, RouteMatch, TextMatch};

pub(super) fn route_match(given: At<'_, proto::RouteMatch>) -> Option<RouteMatch> {
    let path = path(&given);
    for (is_set, at) in [
        (given.value.tls_context.is_some(), at!(given.tls_context).with(&())),
        (!given.value.dynamic_metadata.is_empty(), at!(given.dynamic_metadata).with(&())),
        (!given.value.filter_state.is_empty(), at!(given.filter_state).with(&())),
        (!given.value.cookies.is_empty(), at!(given.cookies).with(&())),
    ] {
        if is_set {
            at.refuse("this condition is not served; without it the route would match more requests");
        }
    }
    let fraction = at!(given.runtime_fraction);
    let fraction_ppm = if fraction.value.is_some() { runtime_fraction_ppm(fraction) } else { Some(ALL_PPM) };
    let headers = at!(given.headers);
    let mut headers: Vec<_> = headers.each().filter_map(|at| header_match(&at)).collect();
    if given.value.grpc.is_some() {
        headers.push(grpc_match());
    }
    let query = at!(given.query_parameters);
    let query = query.each().filter_map(|at| query_match(&at)).collect();
    Some(RouteMatch {
        path: path?,
        case_sensitive: at!(given.case_sensitive).flag(true),
        headers,
        query,
        fraction_ppm: fraction_ppm?,
    })
}

fn path(given: &At<'_, proto::RouteMatch>) -> Option<PathMatch> {
    match &given.value.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => Some(PathMatch::Prefix(prefix.as_str().into())),
        Some(PathSpecifier::Path(path)) => Some(PathMatch::Exact(path.as_str().into())),
        Some(PathSpecifier::SafeRegex(pattern)) => {
            regex(given.field("safe_regex", pattern), Anchor::Both).map(PathMatch::Regex)
        }
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            let is_path = prefix.len() > 1 && !prefix.contains(['?', '#']) && !prefix.ends_with('/');
            if !is_path {
                given
                    .field("path_separated_prefix", prefix)
                    .refuse(format_args!("{prefix:?} is not a path without `?`, `#` and a final `/`"));
            }
            is_path.then(|| PathMatch::SeparatedPrefix(prefix.as_str().into()))
        }
        Some(PathSpecifier::ConnectMatcher(_)) => Some(PathMatch::Connect),
        Some(PathSpecifier::PathMatchPolicy(policy)) => {
            given.field("path_match_policy", policy).refuse("path templates are not served; use safe_regex");
            None
        }
        None => {
            given.refuse(
                "has no path; one of prefix, path, safe_regex, path_separated_prefix, connect_matcher is required",
            );
            None
        }
    }
}

/// Calls of gRPC alone.
fn grpc_match() -> HeaderMatch {
    HeaderMatch { name: "content-type".into(), test: HeaderTest::Grpc, invert: false, missing_as_empty: false }
}

pub(super) fn header_match(given: &At<'_, proto::HeaderMatcher>) -> Option<HeaderMatch> {
    let given = *given;
    let name = header::matched_name(at!(given.name));
    let text =
        |field: &'static str, text: &String| -> Option<Arc<str>> { part(given.field(field, text)).map(Arc::from) };
    let test = match &given.value.header_match_specifier {
        None => Some(HeaderTest::Present(true)),
        Some(HeaderMatchSpecifier::PresentMatch(present)) => Some(HeaderTest::Present(*present)),
        Some(HeaderMatchSpecifier::RangeMatch(range)) => Some(HeaderTest::Range { start: range.start, end: range.end }),
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => {
            text_match(given.field("string_match", matcher)).map(HeaderTest::Text)
        }
        Some(HeaderMatchSpecifier::ExactMatch(exact)) => {
            Some(HeaderTest::Text(TextMatch::Exact { text: exact.as_str().into(), ignore_case: false }))
        }
        Some(HeaderMatchSpecifier::SafeRegexMatch(pattern)) => {
            regex(given.field("safe_regex_match", pattern), Anchor::Both).map(|r| HeaderTest::Text(TextMatch::Regex(r)))
        }
        Some(HeaderMatchSpecifier::PrefixMatch(prefix)) => {
            text("prefix_match", prefix).map(|text| HeaderTest::Text(TextMatch::Prefix { text, ignore_case: false }))
        }
        Some(HeaderMatchSpecifier::SuffixMatch(suffix)) => {
            text("suffix_match", suffix).map(|text| HeaderTest::Text(TextMatch::Suffix { text, ignore_case: false }))
        }
        Some(HeaderMatchSpecifier::ContainsMatch(contains)) => text("contains_match", contains)
            .map(|text| HeaderTest::Text(TextMatch::Contains { text, ignore_case: false })),
    };
    Some(HeaderMatch {
        name: name?,
        test: test?,
        invert: given.value.invert_match,
        missing_as_empty: given.value.treat_missing_header_as_empty,
    })
}

fn query_match(given: &At<'_, proto::QueryParameterMatcher>) -> Option<QueryMatch> {
    let given = *given;
    let name = at!(given.name).named();
    let test = match &given.value.query_parameter_match_specifier {
        None | Some(QueryParameterMatchSpecifier::PresentMatch(true)) => None,
        Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => {
            Some(text_match(given.field("string_match", matcher))?)
        }
        Some(QueryParameterMatchSpecifier::PresentMatch(present)) => {
            given.field("present_match", present).refuse("the absence of a parameter is not served; use true");
            return None;
        }
    };
    Some(QueryMatch { name: name?.into(), test })
}
