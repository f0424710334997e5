//! Path spelling against a slow resolver that works on lists of segments.

use proptest::prelude::*;

use super::*;
use crate::config::EscapedSlashes;
use crate::http1::path::{Normal, PathRules, normalize};

const RULES: PathRules =
    PathRules { normalize: true, merge_slashes: false, escaped_slashes: EscapedSlashes::KeepUnchanged };

fn spelled(path: &str, rules: PathRules) -> Result<String, Kind> {
    let mut scratch = vec![b'x'; 3];
    Ok(match normalize(path.as_bytes(), rules, &mut scratch)? {
        Normal::Unchanged => path.to_owned(),
        Normal::Changed(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Normal::RedirectTo(bytes) => format!("-> {}", String::from_utf8_lossy(bytes)),
    })
}

/// RFC 3986 §5.2.4 on a list of segments.
fn oracle(path: &str) -> Result<String, Kind> {
    let path = path.replace("%2e", ".").replace("%2E", ".").replace('\\', "/");
    let segments: Vec<&str> = path[1..].split('/').collect();
    let mut kept: Vec<&str> = Vec::new();
    for (at, segment) in segments.iter().enumerate() {
        let is_last = at + 1 == segments.len();
        match *segment {
            "." => {}
            ".." => {
                kept.pop().ok_or(Kind::BadPath)?;
            }
            other => kept.push(other),
        }
        if is_last && matches!(*segment, "." | "..") {
            kept.push("");
        }
    }
    Ok(format!("/{}", kept.join("/")))
}

proptest! {
    #[test]
    fn dots_resolve_as_in_the_oracle(
        segments in prop::collection::vec(prop::sample::select(vec!["", ".", "..", "a", "b.c", "...", "%2e", ".%2E"]), 0..7),
        backslash in any::<bool>(),
    ) {
        let path = format!("/{}", segments.join(if backslash { "\\" } else { "/" }));
        prop_assert_eq!(spelled(&path, RULES), oracle(&path), "{}", path);
    }

    #[test]
    fn the_result_is_its_own_result(path in "/[a-c/.%25eEfF\\\\]{0,16}", merge in any::<bool>()) {
        let rules = PathRules { merge_slashes: merge, ..RULES };
        if let Ok(once) = spelled(&path, rules) {
            prop_assert!(once.starts_with('/'));
            prop_assert_eq!(spelled(&once, rules), Ok(once.clone()), "{} gave {}", path, once);
            prop_assert!(!once.split('/').any(|segment| matches!(segment, "." | "..")), "{} gave {}", path, once);
        }
    }
}

#[test]
fn examples_of_every_rule() {
    let merge = PathRules { merge_slashes: true, ..RULES };
    let redirect = PathRules { escaped_slashes: EscapedSlashes::UnescapeAndRedirect, ..RULES };
    let forward = PathRules { escaped_slashes: EscapedSlashes::UnescapeAndForward, ..RULES };
    for (path, rules, expected) in [
        ("/", RULES, "/"),
        ("/a/./b/../c", RULES, "/a/c"),
        ("/a/..", RULES, "/"),
        ("/a/.", RULES, "/a/"),
        ("/a/b/..", RULES, "/a/"),
        ("/a//../b", RULES, "/a/b"),
        ("/%7Eme/%41%2d%5F", RULES, "/~me/A-_"),
        ("/%20%2B%2f", RULES, "/%20%2B%2f"),
        ("//a///b", merge, "/a/b"),
        ("/a%2fb", merge, "/a%2fb"),
        ("/a%2fb", redirect, "-> /a/b"),
        ("/a/b", redirect, "/a/b"),
        ("/x%2F..%5Cadmin", forward, "/admin"),
        ("/a/%41", redirect, "/a/A"),
        ("/a/../b", PathRules::default(), "/a/../b"),
        ("*", RULES, "*"),
        ("", RULES, ""),
    ] {
        assert_eq!(spelled(path, rules), Ok(expected.to_owned()), "{path}");
    }
    for path in ["/..", "/../a", "/a/../..", "/%2e%2E/x", "/a%", "/a%2", "/a%zz", "/%%32e"] {
        assert_eq!(spelled(path, RULES), Err(Kind::BadPath), "{path}");
    }
}
