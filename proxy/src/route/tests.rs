//! Routing: the index against the plain walk, and examples of every rule.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::config::{
    ClusterTarget, DirectResponse, HeaderEdits, HeaderMatch, HeaderTest, PathMatch, PathRewrite, QueryMatch, Redirect,
    Route, RouteAction, RouteMatch, RouteTable, TextMatch, VirtualHost, WeightedCluster,
};

#[derive(Clone, Debug)]
struct Request {
    method: &'static str,
    scheme: &'static str,
    authority: String,
    path: String,
    query: Option<String>,
    headers: Vec<(&'static str, &'static str)>,
}

impl Request {
    fn to(authority: &str, path: &str) -> Self {
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (path, None),
        };
        let (authority, path) = (authority.to_owned(), path.to_owned());
        Self { method: "GET", scheme: "http", authority, path, query, headers: Vec::new() }
    }

    fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }
}

impl RequestView for Request {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }

    fn scheme(&self) -> &[u8] {
        self.scheme.as_bytes()
    }

    fn authority(&self) -> &[u8] {
        self.authority.as_bytes()
    }

    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }

    fn query(&self) -> Option<&[u8]> {
        self.query.as_deref().map(str::as_bytes)
    }

    fn each_value<'s>(&'s self, name: &[u8], visit: &mut dyn FnMut(&'s [u8])) {
        let values = self.headers.iter().filter(|(found, _)| found.as_bytes() == name);
        values.for_each(|(_, value)| visit(value.as_bytes()));
    }
}

fn matching(path: PathMatch) -> RouteMatch {
    RouteMatch { path, case_sensitive: true, headers: Vec::new(), query: Vec::new(), fraction_ppm: 1_000_000 }
}

fn route(name: &str, matches: RouteMatch) -> Arc<Route> {
    Arc::new(Route {
        access: Vec::new(),
        name: name.into(),
        matches,
        action: RouteAction::Direct(DirectResponse { status: 200, body: Arc::from(&b""[..]) }),
        rate_limit: None,
        request_edits: HeaderEdits::default(),
        response_edits: HeaderEdits::default(),
    })
}

fn host(name: &str, domains: &[&str], routes: Vec<Arc<Route>>) -> VirtualHost {
    VirtualHost {
        name: name.into(),
        domains: domains.iter().map(|domain| Arc::from(*domain)).collect(),
        routes,
        request_edits: HeaderEdits::default(),
        response_edits: HeaderEdits::default(),
        rate_limit: None,
    }
}

fn table(virtual_hosts: Vec<VirtualHost>) -> RouteTable {
    RouteTable {
        name: "t".into(),
        virtual_hosts,
        request_edits: HeaderEdits::default(),
        response_edits: HeaderEdits::default(),
        ignore_port_in_host: false,
    }
}

fn places(found: Found<'_>) -> Option<(usize, Option<usize>)> {
    match found {
        Found::NoHost => None,
        Found::NoRoute { host_index, .. } => Some((host_index, None)),
        Found::Route { host_index, route_index, .. } => Some((host_index, Some(route_index))),
    }
}

/// Both ways of finding, which must agree.
fn found(table: &RouteTable, request: &Request) -> Option<(usize, Option<usize>)> {
    let walked = places(find(table, request, &Chance::from_seed(7)));
    let index = Index::build(Arc::new(table.clone()));
    assert_eq!(places(index.find(request, &Chance::from_seed(7))), walked, "{request:?}");
    walked
}

fn any_path() -> impl Strategy<Value = PathMatch> {
    let text = "(/[ab]{0,2}){1,3}/?";
    prop_oneof![
        Just(PathMatch::Connect),
        text.prop_map(|path| PathMatch::Exact(path.into())),
        text.prop_map(|path| PathMatch::Prefix(path.into())),
        "(/[ab]{1,2}){1,3}".prop_map(|path| PathMatch::SeparatedPrefix(path.into())),
        prop::sample::select(vec!["/a.*", ".*b", "/[ab]+/a?"]).prop_map(|pattern| {
            PathMatch::Regex(regex::bytes::Regex::new(&format!("^(?:{pattern})$")).expect("a pattern"))
        }),
    ]
}

fn any_match() -> impl Strategy<Value = RouteMatch> {
    let header = prop::option::of(any::<bool>().prop_map(|present| HeaderMatch {
        name: "x".into(),
        test: HeaderTest::Present(present),
        invert: false,
        missing_as_empty: false,
    }));
    let fraction = prop::sample::select(vec![1_000_000, 1_000_000, 500_000]);
    (any_path(), prop::bool::weighted(0.8), header, fraction).prop_map(
        |(path, case_sensitive, header, fraction_ppm)| RouteMatch {
            path,
            case_sensitive,
            headers: header.into_iter().collect(),
            query: Vec::new(),
            fraction_ppm,
        },
    )
}

fn any_domain() -> impl Strategy<Value = String> {
    prop_oneof!["[ab]\\.[ab]", "\\*\\.[ab]", "\\*-[ab]\\.a", "[ab]\\.\\*", "\\*", "\\*[ab]", "[ab]\\.[ab]:80"]
}

proptest! {
    #[test]
    fn index_and_walk_agree(
        hosts in prop::collection::vec(
            (prop::collection::vec(any_domain(), 1..3), prop::collection::vec(any_match(), 0..12)), 1..5),
        authority in "[abAB](-[ab])?\\.[ab](:80)?",
        method in prop::sample::select(vec!["CONNECT", "GET"]),
        path in "(/[abA]{0,2}){0,4}",
        has_header in any::<bool>(),
        ignore_port in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut seen = std::collections::HashSet::new();
        let virtual_hosts = hosts.into_iter().map(|(domains, matches)| {
            let domains: Vec<String> = domains.into_iter().filter(|domain| seen.insert(domain.clone())).collect();
            let domains: Vec<&str> = domains.iter().map(String::as_str).collect();
            host("h", &domains, matches.into_iter().map(|matches| route("r", matches)).collect())
        });
        let mut table = table(virtual_hosts.collect());
        table.ignore_port_in_host = ignore_port;
        let mut request = Request { method, ..Request::to(&authority, &path) };
        if has_header {
            request = request.with("x", "1");
        }
        let index = Index::build(Arc::new(table.clone()));
        let (one, two) = (Chance::from_seed(seed), Chance::from_seed(seed));
        let walked = places(find(&table, &request, &one));
        prop_assert_eq!(places(index.find(&request, &two)), walked, "{:?} in {:#?}", request, table);
        prop_assert_eq!(one.bits(), two.bits(), "both drew as often");
    }
}

#[test]
fn many_prefixes_of_one_path_fall_back_to_the_walk() {
    let routes = (1..40).map(|n| route("r", matching(PathMatch::Prefix("/a".repeat(40 - n).into())))).collect();
    let table = table(vec![host("h", &["*"], routes)]);
    assert_eq!(found(&table, &Request::to("x", &"/a".repeat(40))), Some((0, Some(0))));
    assert_eq!(found(&table, &Request::to("x", &"/a".repeat(5))), Some((0, Some(34))));
    assert_eq!(found(&table, &Request::to("x", "/b")), Some((0, None)));
}

#[test]
fn hosts_are_ranked() {
    let domains = ["a.b", "*.b", "*.x.b", "a.*", "a.b.*", "*", "a.b:80", "*-c.b"];
    let table = table(domains.iter().map(|domain| host(domain, &[domain], Vec::new())).collect());
    for (authority, expected) in [
        ("a.b", 0),
        ("A.B", 0),
        ("q.b", 1),
        (".b", 5),
        ("q.x.b", 2),
        (".x.b", 1),
        ("a.q", 3),
        ("a.b.q", 4),
        ("a.", 5),
        ("q", 5),
        ("", 5),
        ("a.b:80", 6),
        ("a.b:81", 3),
        ("q-c.b", 7),
        ("-c.b", 1),
    ] {
        assert_eq!(found(&table, &Request::to(authority, "/")), Some((expected, None)), "{authority}");
    }
    let mut without_port = table.clone();
    without_port.ignore_port_in_host = true;
    assert_eq!(found(&without_port, &Request::to("a.b:81", "/")), Some((0, None)));
    let long = format!("{}.b", "q".repeat(300));
    assert_eq!(found(&table, &Request::to(&long, "/")), Some((1, None)));
}

#[test]
fn no_host_is_told_apart_from_no_route() {
    let table = table(vec![host("h", &["a"], vec![route("r", matching(PathMatch::Exact("/x".into())))])]);
    assert_eq!(found(&table, &Request::to("b", "/x")), None);
    assert_eq!(found(&table, &Request::to("a", "/y")), Some((0, None)));
    assert_eq!(found(&table, &Request::to("a", "/x?q")), Some((0, Some(0))));
}

#[test]
fn paths_match_as_they_say() {
    let regex = regex::bytes::Regex::new("^(?:/[a-c]+)$").expect("a pattern");
    for (test, case_sensitive, yes, no) in [
        (PathMatch::Exact("/a".into()), true, vec!["/a"], vec!["/A", "/a/", "/ab", "/"]),
        (PathMatch::Exact("/a".into()), false, vec!["/a", "/A"], vec!["/b"]),
        (PathMatch::Prefix("/a".into()), true, vec!["/a", "/ab", "/a/b"], vec!["/A", "/"]),
        (PathMatch::Prefix("".into()), true, vec!["/", "/x"], vec![]),
        (PathMatch::SeparatedPrefix("/a".into()), true, vec!["/a", "/a/", "/a/b"], vec!["/ab", "/A/b"]),
        (PathMatch::SeparatedPrefix("/a".into()), false, vec!["/A/b"], vec!["/AB"]),
        (PathMatch::Regex(regex), true, vec!["/abc"], vec!["/abcd", "/ab/c", "x/a"]),
    ] {
        let table = table(vec![host("h", &["*"], vec![route("r", RouteMatch { case_sensitive, ..matching(test) })])]);
        for path in yes {
            assert_eq!(found(&table, &Request::to("x", path)), Some((0, Some(0))), "{path}");
        }
        for path in no {
            assert_eq!(found(&table, &Request::to("x", path)), Some((0, None)), "{path}");
        }
    }
}

#[test]
fn only_a_tunnels_own_route_takes_a_connect_without_a_path() {
    let regex = regex::bytes::Regex::new("^(?:.*)$").expect("a pattern");
    let open = [PathMatch::Prefix("".into()), PathMatch::Prefix("/".into()), PathMatch::Regex(regex)];
    let mut routes: Vec<_> = open.into_iter().map(|path| route("open", matching(path))).collect();
    let connect = Request { method: "CONNECT", ..Request::to("shop:443", "") };
    assert_eq!(found(&table(vec![host("h", &["*"], routes.clone())]), &connect), Some((0, None)));
    routes.push(route("tunnel", matching(PathMatch::Connect)));
    let table = table(vec![host("h", &["*"], routes)]);
    assert_eq!(found(&table, &connect), Some((0, Some(3))));
    assert_eq!(found(&table, &Request::to("shop:443", "/")), Some((0, Some(0))));
}

#[test]
fn a_grpc_route_takes_calls_alone() {
    for (kind, fits) in [("application/grpc", true), ("application/grpc+proto", true), ("application/json", false)] {
        let request = Request::to("a", "/").with("content-type", kind);
        assert_eq!(header_matches("content-type", HeaderTest::Grpc, false, false, &request), fits, "{kind}");
    }
    assert!(!header_matches("content-type", HeaderTest::Grpc, false, false, &Request::to("a", "/")));
}

fn header_matches(name: &str, test: HeaderTest, invert: bool, missing_as_empty: bool, request: &Request) -> bool {
    let header = HeaderMatch { name: name.into(), test, invert, missing_as_empty };
    let matches = RouteMatch { headers: vec![header], ..matching(PathMatch::Prefix("/".into())) };
    found(&table(vec![host("h", &["*"], vec![route("r", matches)])]), request) == Some((0, Some(0)))
}

#[test]
fn headers_match_as_in_envoy() {
    let with = Request::to("shop:1", "/p?k=v").with("x", "12").with("y", "a").with("y", "b");
    let exact = |text: &str| HeaderTest::Text(TextMatch::Exact { text: text.into(), ignore_case: false });
    let range = || HeaderTest::Range { start: 10, end: 20 };
    for (name, test, plain, inverted) in [
        ("x", HeaderTest::Present(true), true, false),
        ("x", HeaderTest::Present(false), false, true),
        ("z", HeaderTest::Present(true), false, true),
        ("z", HeaderTest::Present(false), true, false),
        ("x", exact("12"), true, false),
        ("x", exact("1"), false, true),
        ("z", exact(""), false, false),
        ("y", exact("a,b"), true, false),
        ("x", range(), true, false),
        ("y", range(), false, true),
        ("z", range(), false, false),
        (":method", exact("GET"), true, false),
        (":scheme", exact("http"), true, false),
        (":authority", exact("shop:1"), true, false),
        ("host", exact("shop:1"), true, false),
        (":path", exact("/p?k=v"), true, false),
    ] {
        assert_eq!(header_matches(name, test.clone(), false, false, &with), plain, "{name} {test:?}");
        assert_eq!(header_matches(name, test.clone(), true, false, &with), inverted, "{name} {test:?} inverted");
    }
    assert!(header_matches("z", exact(""), false, true, &with), "missing is tested as empty");
    assert!(header_matches("z", range(), true, true, &with));
    assert!(header_matches("z", HeaderTest::Present(true), false, true, &with));
    for (value, fits) in [("9", false), ("10", true), ("19", true), ("20", false), ("-5", false), ("1x", false)] {
        let request = Request::to("a", "/").with("x", Box::leak(value.to_owned().into_boxed_str()));
        assert_eq!(header_matches("x", range(), false, false, &request), fits, "{value}");
    }
}

#[test]
fn texts_match_as_they_say() {
    type Make = fn(Arc<str>, bool) -> TextMatch;
    let makers: [(Make, &str, &str); 4] = [
        (|text, ignore_case| TextMatch::Exact { text, ignore_case }, "abc", "xabc"),
        (|text, ignore_case| TextMatch::Prefix { text, ignore_case }, "abcx", "xabc"),
        (|text, ignore_case| TextMatch::Suffix { text, ignore_case }, "xabc", "abcx"),
        (|text, ignore_case| TextMatch::Contains { text, ignore_case }, "xabcx", "xab"),
    ];
    for (make, yes, no) in makers {
        assert!(matching::text_matches(&make("abc".into(), false), yes.as_bytes()), "{yes}");
        assert!(!matching::text_matches(&make("abc".into(), false), yes.to_ascii_uppercase().as_bytes()), "{yes}");
        assert!(matching::text_matches(&make("abc".into(), true), yes.to_ascii_uppercase().as_bytes()), "{yes}");
        assert!(!matching::text_matches(&make("abc".into(), true), no.as_bytes()), "{no}");
        assert!(!matching::text_matches(&make("abc".into(), true), b""));
    }
}

#[test]
fn queries_match_by_the_first_of_a_name() {
    let fits = |test: Option<&str>, path: &str| {
        let test = test.map(|text| TextMatch::Exact { text: text.into(), ignore_case: false });
        let query = vec![QueryMatch { name: "k".into(), test }];
        let matches = RouteMatch { query, ..matching(PathMatch::Prefix("/".into())) };
        found(&table(vec![host("h", &["*"], vec![route("r", matches)])]), &Request::to("a", path)) == Some((0, Some(0)))
    };
    assert!(fits(None, "/?k") && fits(None, "/?a=b&k=") && fits(Some("v"), "/?k=v") && fits(Some(""), "/?k"));
    assert!(!fits(None, "/") && !fits(None, "/?K=v") && !fits(Some("v"), "/?k=w&k=v") && !fits(Some("v"), "/?kk=v"));
    assert!(fits(Some("a=b"), "/?k=a=b"));
}

#[test]
fn weighted_shares_are_exact_within_a_bound() {
    let choice = |name: &str, weight| WeightedCluster {
        cluster: name.into(),
        index: None,
        weight,
        request_edits: HeaderEdits::default(),
        response_edits: HeaderEdits::default(),
    };
    let target =
        ClusterTarget::Weighted { choices: vec![choice("a", 90), choice("z", 0), choice("b", 10)], total: 100 };
    let chance = Chance::from_seed(11);
    let request = Request::to("a", "/");
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..100_000 {
        let Chosen::Linked { name, weighted: Some(_), .. } = choose_cluster(&target, &request, &chance) else {
            panic!("a weighted choice is linked");
        };
        *counts.entry(name.as_str()).or_insert(0_u32) += 1;
    }
    assert_eq!(counts.len(), 2, "{counts:?}: weight 0 is never drawn");
    assert!((89_500..=90_500).contains(&counts["a"]), "{counts:?}");
}

#[test]
fn a_cluster_can_be_named_by_a_header() {
    let target = ClusterTarget::Header("x-cluster".into());
    let chance = Chance::from_seed(1);
    let request = Request::to("a", "/");
    assert!(matches!(choose_cluster(&target, &request, &chance), Chosen::Missing));
    let named = request.with("x-cluster", "orders");
    assert!(matches!(choose_cluster(&target, &named, &chance), Chosen::Named(b"orders")));
}

#[test]
fn paths_are_rewritten() {
    let regex = || PathRewrite::Regex {
        pattern: regex::bytes::Regex::new("^/v([0-9])/").expect("a pattern"),
        with: "/api/$1/".into(),
    };
    for (rewrite, path_match, path, expected) in [
        (PathRewrite::Prefix("/new".into()), PathMatch::Prefix("/old".into()), "/old/x?q=1", "/new/x?q=1"),
        (PathRewrite::Prefix("/".into()), PathMatch::Prefix("/old/".into()), "/old/x", "/x"),
        (PathRewrite::Prefix("".into()), PathMatch::SeparatedPrefix("/old".into()), "/old", "/"),
        (PathRewrite::Prefix("/new".into()), PathMatch::Exact("/old".into()), "/old?q", "/new?q"),
        (PathRewrite::Full("/all".into()), PathMatch::Prefix("/".into()), "/old?q", "/all?q"),
        (PathRewrite::Full("/all?z=1".into()), PathMatch::Prefix("/".into()), "/old?q", "/all?z=1"),
        (regex(), PathMatch::Prefix("/".into()), "/v2/x?q", "/api/2/x?q"),
        (regex(), PathMatch::Prefix("/".into()), "/w2/x", "/w2/x"),
    ] {
        let mut out = b"left over".to_vec();
        rewrite_path(&rewrite, &matching(path_match), &Request::to("a", path), &mut out);
        assert_eq!(String::from_utf8_lossy(&out), expected, "{rewrite:?} {path}");
    }
}

#[test]
fn redirects_say_where_to() {
    let base = || Redirect { status: 301, ..Redirect::default() };
    for (redirect, authority, path, expected) in [
        (base(), "a", "/p?q", "http://a/p?q"),
        (Redirect { scheme: Some("https".into()), ..base() }, "a:80", "/p", "https://a/p"),
        (Redirect { scheme: Some("https".into()), ..base() }, "a:8080", "/p", "https://a:8080/p"),
        (Redirect { scheme: Some("https".into()), port: Some(8443), ..base() }, "[::1]:80", "/", "https://[::1]:8443/"),
        (Redirect { host: Some("b".into()), ..base() }, "a:8080", "/p", "http://b/p"),
        (Redirect { strip_query: true, ..base() }, "a", "/p?q", "http://a/p"),
        (Redirect { path: Some(PathRewrite::Full("/n".into())), ..base() }, "a", "/p?q", "http://a/n?q"),
        (Redirect { path: Some(PathRewrite::Full("/n?z".into())), ..base() }, "a", "/p?q", "http://a/n?z"),
        (Redirect { path: Some(PathRewrite::Prefix("n".into())), ..base() }, "a", "/p/x", "http://a/n/x"),
    ] {
        let mut out = Vec::new();
        write_location(&redirect, &matching(PathMatch::Prefix("/p".into())), &Request::to(authority, path), &mut out);
        assert_eq!(String::from_utf8_lossy(&out), expected, "{redirect:?}");
    }
}

#[test]
fn ports_are_split_off() {
    for (authority, host, port) in [
        ("a", "a", None),
        ("a:80", "a", Some("80")),
        ("[::1]", "[::1]", None),
        ("[::1]:80", "[::1]", Some("80")),
        ("", "", None),
        ("a:", "a", Some("")),
    ] {
        let found = split_port(authority.as_bytes());
        assert_eq!(found, (host.as_bytes(), port.map(str::as_bytes)), "{authority}");
    }
}
