//! Regular expressions and tests of text.
//!
//! **Limits.** Expressions run in linear time (the `regex` crate); a compiled one holds at most 1 MiB and nests at most
//! 100 deep.

use std::sync::Arc;

use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatchAndSubstitute, RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};
use regex::bytes::{Regex, RegexBuilder};

use super::at::{At, at};
use crate::config::TextMatch;

const MAX_REGEX_BYTES: usize = 1 << 20;
const MAX_REGEX_NESTING: u32 = 100;

/// Must match the whole input.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Both,
    None,
}

pub(super) fn regex(matcher: At<'_, RegexMatcher>, anchor: Anchor) -> Option<Regex> {
    let pattern = at!(matcher.regex);
    if pattern.value.is_empty() {
        pattern.refuse("is empty; an expression is required");
        return None;
    }
    // Compiled alone first: `a)|(?:b` is no expression, yet it would become one between the anchors.
    let alone = compile(pattern, pattern.value)?;
    match anchor {
        Anchor::None => Some(alone),
        Anchor::Both => compile(pattern, &format!(r"\A(?:{})\z", pattern.value)),
    }
}

fn compile(at: At<'_, String>, pattern: &str) -> Option<Regex> {
    let built = RegexBuilder::new(pattern).size_limit(MAX_REGEX_BYTES).nest_limit(MAX_REGEX_NESTING).build();
    match built {
        Ok(regex) => Some(regex),
        Err(regex::Error::CompiledTooBig(limit)) => {
            at.refuse(format_args!("{:?} needs more than {limit} bytes when compiled", at.value));
            None
        }
        Err(error) => {
            let text = error.to_string();
            let reason = text.lines().rev().find(|line| line.contains("error:")).unwrap_or(&text).trim();
            at.refuse(format_args!("{:?} is not a regular expression: {reason}", at.value));
            None
        }
    }
}

/// A pattern and its replacement in the form of the `regex` crate: `\1` becomes `${1}`, `\\` a backslash.
pub(super) fn substitution(rewrite: At<'_, RegexMatchAndSubstitute>) -> Option<(Regex, Arc<str>)> {
    let pattern = at!(rewrite.pattern).required().and_then(|pattern| regex(pattern, Anchor::None));
    let given = at!(rewrite.substitution);
    if given.value.contains(['\r', '\n', '\0']) {
        given.refuse("has CR, LF or NUL");
        return None;
    }
    let pattern = pattern?;
    let mut with = String::with_capacity(given.value.len());
    let mut chars = given.value.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => with.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => with.push('\\'),
                Some(digit) if digit.is_ascii_digit() => {
                    let group = digit.to_digit(10).and_then(|group| usize::try_from(group).ok()).unwrap_or(0);
                    if group >= pattern.captures_len() {
                        given.refuse(format_args!("\\{digit}: the expression has no such group"));
                        return None;
                    }
                    with.push_str(&format!("${{{group}}}"));
                }
                other => {
                    given.refuse(format_args!("a backslash is followed by {other:?}, not by a digit or a backslash"));
                    return None;
                }
            },
            c => with.push(c),
        }
    }
    Some((pattern, with.into()))
}

/// A test of text.
pub(super) fn text_match(matcher: At<'_, StringMatcher>) -> Option<TextMatch> {
    let ignore_case = matcher.value.ignore_case;
    let text = |text: &str| -> Arc<str> { if ignore_case { text.to_ascii_lowercase().into() } else { text.into() } };
    let Some(pattern) = &matcher.value.match_pattern else {
        matcher.refuse("has no pattern; one of exact, prefix, suffix, contains, safe_regex is required");
        return None;
    };
    Some(match pattern {
        MatchPattern::Exact(exact) => TextMatch::Exact { text: text(exact), ignore_case },
        MatchPattern::Prefix(prefix) => {
            TextMatch::Prefix { text: text(part(matcher.field("prefix", prefix))?), ignore_case }
        }
        MatchPattern::Suffix(suffix) => {
            TextMatch::Suffix { text: text(part(matcher.field("suffix", suffix))?), ignore_case }
        }
        MatchPattern::Contains(contains) => {
            TextMatch::Contains { text: text(part(matcher.field("contains", contains))?), ignore_case }
        }
        MatchPattern::SafeRegex(pattern) => {
            // Envoy: "ignore_case has no effect for the safe_regex match".
            TextMatch::Regex(regex(matcher.field("safe_regex", pattern), Anchor::Both)?)
        }
        MatchPattern::Custom(custom) => {
            matcher.field("custom", custom).refuse(format_args!("matcher {:?} is not served", custom.name));
            return None;
        }
    })
}

/// A part of a text, which must not be empty: it would match everything.
pub(super) fn part<'a>(at: At<'a, String>) -> Option<&'a str> {
    if at.value.is_empty() {
        at.refuse("is empty; at least one character is required");
        return None;
    }
    Some(at.value)
}

#[cfg(test)]
mod tests {
    use super::super::rejection::{Findings, ResourceKind};
    use super::*;

    fn matcher(regex: &str) -> RegexMatcher {
        RegexMatcher { regex: regex.to_owned(), ..Default::default() }
    }

    fn refusal<T, M>(value: &M, read: impl FnOnce(At<'_, M>) -> Option<T>) -> Option<String> {
        let findings = Findings::default();
        let read = read(At::root(&findings, value));
        findings.finish(ResourceKind::Listener, "", read).result.err().map(|r| r.to_string())
    }

    #[test]
    fn an_expression_matches_the_whole_input() {
        let findings = Findings::default();
        let regex = regex(At::root(&findings, &matcher("a|bc")), Anchor::Both).unwrap();
        assert!(regex.is_match(b"a") && regex.is_match(b"bc"));
        assert!(!regex.is_match(b"ac") && !regex.is_match(b"xa") && !regex.is_match(b"a\n"));
    }

    #[test]
    fn broken_and_huge_expressions_are_refused() {
        for bad in ["", "(", "a)|(?:b", "(?x)a # c", "(?:a{1000}){1000}", &"(".repeat(300), r"\1"] {
            let text = refusal(&matcher(bad), |at| regex(at, Anchor::Both));
            assert!(text.is_some_and(|t| t.contains("regex: ")), "{bad}");
        }
    }

    #[test]
    fn groups_are_rewritten_and_checked() {
        let rewrite = |substitution: &str| RegexMatchAndSubstitute {
            pattern: Some(matcher("^/(a+)/(b+)$")),
            substitution: substitution.to_owned(),
        };
        let findings = Findings::default();
        let value = rewrite(r"/\2/$1\\x\1");
        let (regex, with) = substitution(At::root(&findings, &value)).unwrap();
        assert_eq!(regex.replace_all(b"/aa/b", with.as_bytes()).as_ref(), br"/b/$1\xaa");
        for bad in [r"\3", r"\", r"\q", "a\nb"] {
            assert!(refusal(&rewrite(bad), substitution).is_some_and(|t| t.contains("substitution: ")), "{bad:?}");
        }
    }

    #[test]
    fn an_empty_part_is_refused_and_an_empty_whole_is_not() {
        let text = |pattern| StringMatcher { match_pattern: Some(pattern), ignore_case: true };
        assert!(refusal(&text(MatchPattern::Exact(String::new())), text_match).is_none());
        for bad in [
            MatchPattern::Prefix(String::new()),
            MatchPattern::Suffix(String::new()),
            MatchPattern::Contains(String::new()),
        ] {
            assert!(refusal(&text(bad.clone()), text_match).is_some(), "{bad:?}");
        }
        assert!(refusal(&StringMatcher::default(), text_match).is_some());
    }
}
