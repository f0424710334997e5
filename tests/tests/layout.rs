//! Purpose: the rules of the code base that a machine can read: which room may use which, where `unsafe` and proto
//! types may stand, how files and types are named, how long a file may be.
//!
//! Shape: each rule is a pure function from a file's path and text to findings; one test runs all of them over the
//! workspace, and one test per rule shows it a bad sample, so that a rule that stopped finding anything fails.
//!
//! Limits: it reads text, not syntax trees. Comments and string literals are blanked first; what a macro writes
//! is not seen.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The pipeline: a room may use those after it, never those before it or beside it.
const PIPELINE: &[&[&str]] = &[
    &["app", "main", "lib"],
    &["listener"],
    &["detect"],
    &["tls"],
    &["http", "tcp"],
    &["worker"],
    &["route"],
    &["policy"],
    &["balance"],
    &["upstream"],
    &["http2"],
    &["http1"],
];

/// Rooms that any room may use; they use each other and nothing else.
const LEAVES: &[&str] = &["chance", "clock", "config", "drain", "fault", "grpc", "observe", "stats", "sync"];

/// Rooms off the pipeline, with the rooms each may use besides the leaves it is given here.
const BESIDE: &[(&str, &[&str])] = &[
    ("admin", &["config", "stats", "observe", "fault", "grpc", "drain", "clock", "sync"]),
    ("bootstrap", &["convert", "config"]),
    ("convert", LEAVES),
    ("intercept", &["bootstrap", "rules"]),
    ("rules", &["config"]),
    ("xds", &["bootstrap", "chance", "clock", "config", "convert", "drain", "fault", "observe", "stats", "sync"]),
];

/// Rooms that compute and do nothing else: no sockets, no tasks, no runtime.
const PURE: &[&str] =
    &["balance", "bootstrap", "config", "convert", "detect", "fault", "grpc", "policy", "route", "rules"];

/// The rooms that may name a proto type.
const PROTO: &[&str] = &["bootstrap", "convert", "xds"];

/// The rooms of the control thread, the only one with tokio on it; and `http2`, which gives `h2` the I/O traits it wants.
const TOKIO: &[&str] = &["admin", "app", "drain", "http2", "main", "xds"];

/// Words that say nothing, refused in names of types and files.
const EMPTY_WORDS: &[&str] = &[
    "Manager", "Handler", "Helper", "Util", "Utils", "Misc", "Common", "Context", "Data", "Info", "Impl", "Inner",
    "Wrapper", "Base",
];

/// Longest file, tests not counted.
const LINES_MAX: usize = 600;

/// Longest head comment of a module.
const HEAD_LINES_MAX: usize = 25;

/// Longer files, each with its reason.
const LONG_FILES: &[(&str, &str)] =
    &[("xds-proto/src/support/table.rs", "a flat table: one line a field, with tests over itself")];

/// Source folders of the workspace, from its root.
const SOURCES: &[&str] = &["proxy/src", "proxy/reactor/src", "control-api/src", "xds-proto/src", "tests/src"];

#[derive(Debug)]
struct Source {
    /// From the workspace root, with `/`.
    path: String,
    text: String,
    /// `text` with comments and literals blanked; same lines.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), code: blank(text) }
    }

    /// Below `proxy/src`: the room the file belongs to.
    fn room(&self) -> Option<&str> {
        let rest = self.path.strip_prefix("proxy/src/")?;
        Some(rest.split_once('/').map_or_else(|| rest.trim_end_matches(".rs"), |(room, _)| room))
    }

    /// How deep its module is: `http1/head.rs` is `crate::http1::head`, 2.
    fn module_depth(&self) -> usize {
        let rest = self.path.strip_prefix("proxy/src/").unwrap_or(&self.path);
        let parts = rest.split('/').count();
        if rest.ends_with("/mod.rs") || rest == "lib.rs" || rest == "main.rs" { parts - 1 } else { parts }
    }

    fn stem(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    fn is_test_only(&self) -> bool {
        self.stem() == "tests" || self.path.contains("/tests/")
    }

    /// The lines before the tests at its foot.
    fn lines_without_tests(&self) -> usize {
        let lines: Vec<&str> = self.text.lines().collect();
        let tests = lines.windows(2).position(|pair| {
            pair[0].trim() == "#[cfg(test)]" && pair[1].trim_start().starts_with("mod ") && pair[1].ends_with('{')
        });
        tests.unwrap_or(lines.len())
    }
}

/// Replaces comments, string literals and character literals by spaces, line by line.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = if rest.starts_with(b"//") {
            rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            find(rest, b"*/").map_or(rest.len(), |found| found + 2)
        } else if rest[0] == b'"' {
            quoted_end(rest)
        } else if is_raw_string(bytes, at) {
            let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
            let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
            let open = hashes + 2;
            find(&rest[open..], &close).map_or(rest.len(), |found| open + found + close.len())
        } else if rest[0] == b'\'' && rest.len() > 2 && (rest[1] == b'\\' || rest[2] == b'\'') {
            1 + rest[2..].iter().position(|b| *b == b'\'').map_or(1, |found| found + 2)
        } else {
            out.push(rest[0]);
            at += 1;
            continue;
        };
        out.extend(rest[..end].iter().map(|b| if *b == b'\n' { b'\n' } else { b' ' }));
        at += end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn quoted_end(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn is_raw_string(bytes: &[u8], at: usize) -> bool {
    let starts_word =
        at == 0 || !(bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_') || bytes[at - 1] == b'b';
    let hashes = bytes[at + 1..].iter().take_while(|b| **b == b'#').count();
    bytes[at] == b'r' && starts_word && bytes.get(at + 1 + hashes) == Some(&b'"')
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Places where `word` stands alone in `code`.
fn word_places<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let bytes = code.as_bytes();
        let before = at.checked_sub(1).is_some_and(|at| is_word_byte(bytes[at]));
        let after = bytes.get(at + word.len()).is_some_and(|b| is_word_byte(*b));
        !before && !after
    })
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// The rooms named right after `crate::` (or `super::` from the top of a room), braces opened.
fn rooms_used(source: &Source) -> Vec<(usize, String)> {
    let code = source.code.as_str();
    let mut found = Vec::new();
    for at in word_places(code, "crate") {
        if let Some(rest) = code[at + "crate".len()..].strip_prefix("::") {
            collect_heads(rest, line_of(code, at), &mut found);
        }
    }
    for at in word_places(code, "outrigger_proxy") {
        if let Some(rest) = code[at + "outrigger_proxy".len()..].strip_prefix("::") {
            collect_heads(rest, line_of(code, at), &mut found);
        }
    }
    for at in word_places(code, "super") {
        if code[..at].ends_with("super::") {
            continue;
        }
        let mut rest = &code[at..];
        let mut ups = 0;
        while let Some(next) = rest.strip_prefix("super::") {
            rest = next;
            ups += 1;
        }
        if ups == source.module_depth() {
            collect_heads(rest, line_of(code, at), &mut found);
        }
    }
    found
}

/// First names of a use tree: `a::b` gives a; `{a::b, c}` gives a and c.
fn collect_heads(tree: &str, line: usize, found: &mut Vec<(usize, String)>) {
    let tree = tree.trim_start();
    let Some(group) = tree.strip_prefix('{') else {
        let name: String = tree.bytes().take_while(|b| is_word_byte(*b)).map(char::from).collect();
        if !name.is_empty() {
            found.push((line, name));
        }
        return;
    };
    let mut depth = 0_usize;
    let mut start = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                collect_heads(&group[start..at], line, found);
                return;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                collect_heads(&group[start..at], line, found);
                start = at + 1;
            }
            _ => {}
        }
    }
}

fn level(room: &str) -> Option<usize> {
    PIPELINE.iter().position(|level| level.contains(&room))
}

fn is_room(name: &str) -> bool {
    level(name).is_some() || LEAVES.contains(&name) || BESIDE.iter().any(|(room, _)| *room == name)
}

fn may_use(room: &str, used: &str) -> bool {
    if room == used || level(room) == Some(0) {
        return true;
    }
    if let Some((_, allowed)) = BESIDE.iter().find(|(name, _)| *name == room) {
        return allowed.contains(&used);
    }
    match (level(room), level(used)) {
        (Some(from), Some(to)) => from < to,
        _ => LEAVES.contains(&used),
    }
}

fn arrows(source: &Source) -> Vec<String> {
    let Some(room) = source.room() else { return Vec::new() };
    if !is_room(room) {
        return vec![format!("{}: room `{room}` has no place in tests/tests/layout.rs: give it one", source.path)];
    }
    rooms_used(source)
        .into_iter()
        .filter(|(_, used)| is_room(used) && !may_use(room, used))
        .map(|(line, used)| format!("{}:{line}: `{room}` may not use `{used}`: arrows go one way", source.path))
        .collect()
}

fn foreign_crates(source: &Source) -> Vec<String> {
    let Some(room) = source.room() else { return Vec::new() };
    let mut findings = Vec::new();
    let mut refuse = |crates: &[&str], reason: &str| {
        for name in crates {
            for at in word_places(&source.code, name) {
                let line = line_of(&source.code, at);
                findings.push(format!("{}:{line}: `{room}` names `{name}`: {reason}", source.path));
            }
        }
    };
    if !PROTO.contains(&room) {
        refuse(&["envoy_types", "prost", "prost_types"], "proto types stay in bootstrap, convert and xds");
    }
    if PURE.contains(&room) {
        refuse(&["outrigger_reactor", "tonic", "axum"], "this room computes and does no I/O");
    }
    if !TOKIO.contains(&room) && !PROTO.contains(&room) {
        refuse(&["tokio"], "tokio lives on the control thread only");
    }
    findings
}

fn unsafe_places(source: &Source) -> Vec<String> {
    if source.path.starts_with("proxy/reactor/") {
        return Vec::new();
    }
    word_places(&source.code, "unsafe")
        .map(|at| format!("{}:{}: `unsafe` outside proxy/reactor", source.path, line_of(&source.code, at)))
        .collect()
}

/// `HttpHead` is Http, Head; `Base64` is one word.
fn words_of(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for c in name.chars() {
        match words.last_mut() {
            Some(word) if !c.is_ascii_uppercase() => word.push(c),
            _ => words.push(c.to_string()),
        }
    }
    words
}

fn empty_type_names(source: &Source) -> Vec<String> {
    let mut findings = Vec::new();
    for keyword in ["struct", "enum", "trait", "type", "union"] {
        for at in word_places(&source.code, keyword) {
            let rest = source.code[at + keyword.len()..].trim_start();
            let name: String = rest.bytes().take_while(|b| is_word_byte(*b)).map(char::from).collect();
            let is_public = source.code[..at].trim_end().ends_with("pub")
                || source.code[..at].rsplit('\n').next().is_some_and(|line| line.trim_start().starts_with("pub"));
            for word in words_of(&name) {
                let is_private_inner = word == "Inner" && !is_public;
                if EMPTY_WORDS.contains(&word.as_str()) && !is_private_inner {
                    let line = line_of(&source.code, at);
                    findings.push(format!("{}:{line}: `{name}`: `{word}` says nothing; name the thing", source.path));
                }
            }
        }
    }
    findings
}

fn empty_file_names(source: &Source) -> Vec<String> {
    let words = EMPTY_WORDS.iter().map(|word| word.to_ascii_lowercase());
    let parts: BTreeSet<String> = source.path.trim_end_matches(".rs").split(['/', '_']).map(str::to_owned).collect();
    words
        .filter(|word| parts.contains(word))
        .map(|word| format!("{}: `{word}` in a file name says nothing", source.path))
        .collect()
}

fn length(source: &Source) -> Vec<String> {
    let lines = source.lines_without_tests();
    let is_exempt = LONG_FILES.iter().any(|(path, _)| *path == source.path);
    if source.is_test_only() || is_exempt || lines <= LINES_MAX {
        return Vec::new();
    }
    vec![format!("{}: {lines} lines without tests, at most {LINES_MAX}: split it by purpose", source.path)]
}

fn head_comment(source: &Source) -> Vec<String> {
    let head = source.text.lines().take_while(|line| line.starts_with("//!")).count();
    if source.is_test_only() {
        return Vec::new();
    }
    match head {
        0 => vec![format!("{}: no head comment (`//!` on the first line): say what the module is for", source.path)],
        _ if head > HEAD_LINES_MAX => {
            vec![format!("{}: head comment of {head} lines, at most {HEAD_LINES_MAX}", source.path)]
        }
        _ => Vec::new(),
    }
}

/// `foo.rs` beside `foo/`: the form is `foo/mod.rs`.
fn module_forms(paths: &BTreeSet<String>) -> Vec<String> {
    let is_folder = |folder: &str| paths.range(format!("{folder}/")..format!("{folder}0")).next().is_some();
    paths
        .iter()
        .filter(|path| is_folder(path.trim_end_matches(".rs")))
        .map(|path| format!("{path}: stands beside a folder of its name: move it to mod.rs in there"))
        .collect()
}

fn all_findings(source: &Source) -> Vec<String> {
    [arrows, foreign_crates, unsafe_places, empty_type_names, empty_file_names, length, head_comment]
        .iter()
        .flat_map(|rule| rule(source))
        .collect()
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate lies in the workspace").to_path_buf()
}

fn read_sources() -> Vec<Source> {
    let root = workspace();
    let mut folders: Vec<PathBuf> = SOURCES.iter().map(|folder| root.join(folder)).collect();
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for entry in entries {
            let path = entry.expect("a folder can be read to its end").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                let shown = path.strip_prefix(&root).expect("below the root").to_string_lossy().replace('\\', "/");
                sources.push(Source::new(&shown, &text));
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

#[test]
fn the_workspace_keeps_its_rules() {
    let sources = read_sources();
    assert!(sources.len() > 20, "only {} source files found: the walk is broken", sources.len());
    let mut findings: Vec<String> = sources.iter().flat_map(all_findings).collect();
    findings.extend(module_forms(&sources.iter().map(|source| source.path.clone()).collect()));
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

#[test]
fn exemptions_are_still_needed() {
    for (path, reason) in LONG_FILES {
        let text = fs::read_to_string(workspace().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(Source::new(path, &text).lines_without_tests() > LINES_MAX, "{path} is short now: drop its exemption");
        assert!(!reason.is_empty(), "{path}: an exemption has a reason");
    }
}

#[test]
fn an_arrow_back_is_found() {
    for (path, text, wanted) in [
        ("proxy/src/upstream/pool.rs", "use crate::route::RouteMatch;", "`upstream` may not use `route`"),
        ("proxy/src/balance/mod.rs", "use super::listener::X;", "`balance` may not use `listener`"),
        ("proxy/src/http1/server.rs", "use super::super::listener;", "`http1` may not use `listener`"),
        ("proxy/src/http1/server.rs", "use crate::{config::A, listener::{B, C}};", "`http1` may not use `listener`"),
        ("proxy/src/http1/line.rs", "fn f() { crate::http2::go() }", "`http1` may not use `http2`"),
        ("proxy/src/convert/mod.rs", "use crate::balance::Pick;", "`convert` may not use `balance`"),
        ("proxy/src/xds/mod.rs", "use crate::route;", "`xds` may not use `route`"),
        ("proxy/src/fault.rs", "use crate::http1::Head;", "`fault` may not use `http1`"),
        ("proxy/src/admin/mod.rs", "use crate::upstream::Pool;", "`admin` may not use `upstream`"),
        ("proxy/src/bootstrap/mod.rs", "use crate::xds::Stream;", "`bootstrap` may not use `xds`"),
        ("proxy/src/attic/mod.rs", "", "room `attic` has no place"),
    ] {
        let found = arrows(&Source::new(path, text));
        assert!(found.len() == 1 && found[0].contains(wanted), "{path}: {text}: {found:?}");
    }
}

#[test]
fn an_arrow_forward_is_allowed() {
    for (path, text) in [
        ("proxy/src/app.rs", "use crate::{admin, convert, xds, listener};"),
        ("proxy/src/main.rs", "use outrigger_proxy::app;"),
        ("proxy/src/http/exchange.rs", "use crate::{route, policy::Chain, upstream::Pool, fault, stats, drain};"),
        ("proxy/src/http/exchange.rs", "// use crate::listener;\nconst A: &str = \"crate::listener\";"),
        ("proxy/src/http/exchange.rs", "use super::head; use super::super::route;"),
        ("proxy/src/fault.rs", "mod tests { use super::*; }"),
    ] {
        assert_eq!(arrows(&Source::new(path, text)), Vec::<String>::new(), "{path}: {text}");
    }
}

#[test]
fn a_proto_type_on_the_data_path_is_found() {
    let bad = Source::new("proxy/src/route/mod.rs", "use envoy_types::pb::Route;\nuse tokio::net::TcpStream;");
    assert_eq!(foreign_crates(&bad).len(), 2, "{:?}", foreign_crates(&bad));
    let impure = Source::new("proxy/src/balance/mod.rs", "use outrigger_reactor::spawn;");
    assert_eq!(foreign_crates(&impure).len(), 1);
    let good = Source::new("proxy/src/convert/mod.rs", "use envoy_types::pb::Route;");
    assert_eq!(foreign_crates(&good), Vec::<String>::new());
}

#[test]
fn unsafe_outside_the_reactor_is_found() {
    let text = "// unsafe\nfn f() { unsafe { g() } }\n#![forbid(unsafe_code)]";
    assert_eq!(
        unsafe_places(&Source::new("proxy/src/app.rs", text)),
        ["proxy/src/app.rs:2: `unsafe` outside proxy/reactor"]
    );
    assert_eq!(unsafe_places(&Source::new("proxy/reactor/src/ring.rs", text)), Vec::<String>::new());
}

#[test]
fn an_empty_name_is_found() {
    let bad = "pub struct PoolManager;\nenum HeadInfo { A }\npub(crate) struct Inner;\npub trait Handler {}";
    assert_eq!(empty_type_names(&Source::new("proxy/src/app.rs", bad)).len(), 4);
    let good = "struct Inner;\nstruct Base64;\n// struct Helper;\nstruct Information;";
    assert_eq!(empty_type_names(&Source::new("proxy/src/app.rs", good)), Vec::<String>::new());
    assert_eq!(empty_file_names(&Source::new("proxy/src/http1/head_util.rs", "")).len(), 1);
    assert_eq!(empty_file_names(&Source::new("proxy/src/http1/database.rs", "")), Vec::<String>::new());
}

#[test]
fn a_long_file_is_found() {
    let long = "//! Long.\n".to_owned() + &"fn f() {}\n".repeat(LINES_MAX);
    assert_eq!(length(&Source::new("proxy/src/app.rs", &long)).len(), 1);
    let tested = format!("//! Short.\n#[cfg(test)]\nmod tests {{\n{}}}\n", "fn f() {}\n".repeat(LINES_MAX));
    assert_eq!(length(&Source::new("proxy/src/app.rs", &tested)), Vec::<String>::new());
}

#[test]
fn a_missing_or_endless_head_comment_is_found() {
    assert_eq!(head_comment(&Source::new("proxy/src/app.rs", "use std::fs;\n")).len(), 1);
    let endless = "//! Again.\n".repeat(HEAD_LINES_MAX + 1);
    assert_eq!(head_comment(&Source::new("proxy/src/app.rs", &endless)).len(), 1);
    assert_eq!(head_comment(&Source::new("proxy/src/app.rs", "//! Fine.\n")), Vec::<String>::new());
}

#[test]
fn a_file_beside_a_folder_of_its_name_is_found() {
    let paths = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect();
    assert_eq!(module_forms(&paths(&["proxy/src/http1.rs", "proxy/src/http1/head.rs"])).len(), 1);
    assert_eq!(module_forms(&paths(&["proxy/src/http1/mod.rs", "proxy/src/http1/head.rs"])), Vec::<String>::new());
}

#[test]
fn blanking_keeps_lines_and_drops_words() {
    let text = "let a = \"crate::x \\\" unsafe\"; // unsafe\nlet b = r#\"unsafe \" \"#; let c = '\\''; let d: &'a str = f('\"');\n/* unsafe\n */ unsafe";
    let code = blank(text);
    assert_eq!(code.lines().count(), text.lines().count());
    assert_eq!(word_places(&code, "unsafe").count(), 1, "{code}");
}
