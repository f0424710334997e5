//! Route match over a large table: 1,000 virtual hosts of ten routes each.

use std::sync::Arc;

use criterion::Criterion;
use outrigger_proxy::chance::Chance;
use outrigger_proxy::config::{
    DirectResponse, HeaderEdits, HeaderMatch, HeaderTest, PathMatch, Route, RouteAction, RouteMatch, RouteTable,
    TextMatch, VirtualHost,
};
use outrigger_proxy::route::{Found, Index, RequestView};

const HOSTS: u64 = 1000;
const REQUESTS: usize = 1024;

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route match, 10,000 routes, 1,000 hosts");
    let index = Index::build(Arc::new(table()));
    let chance = Chance::from_seed(7);
    for (name, draw) in [("hits", hit as fn(&Chance) -> Request), ("misses", miss), ("both", either)] {
        let drawing = Chance::from_seed(11);
        let requests: Vec<Request> = (0..REQUESTS).map(|_| draw(&drawing)).collect();
        let found = |request: &Request| matches!(index.find(request, &chance), Found::Route { .. });
        let hits = requests.iter().filter(|request| found(request)).count();
        let expected = match name {
            "hits" => REQUESTS..=REQUESTS,
            "misses" => 0..=0,
            _ => 1..=REQUESTS - 1,
        };
        assert!(expected.contains(&hits), "{name}: {hits} of {REQUESTS} were routed");
        let mut next = super::ring(&requests);
        group.bench_function(name, |bencher| bencher.iter(|| found(next())));
    }
    group.finish();
}

#[derive(Debug)]
struct Request {
    authority: String,
    path: String,
    canary: Option<&'static [u8]>,
}

impl RequestView for Request {
    fn method(&self) -> &[u8] {
        b"GET"
    }

    fn scheme(&self) -> &[u8] {
        b"http"
    }

    fn authority(&self) -> &[u8] {
        self.authority.as_bytes()
    }

    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }

    fn query(&self) -> Option<&[u8]> {
        None
    }

    fn each_value<'s>(&'s self, name: &[u8], visit: &mut dyn FnMut(&'s [u8])) {
        if name == b"x-canary" {
            self.canary.into_iter().for_each(visit);
        }
    }
}

/// The domain of a virtual host; of every ten, two are suffix wildcards of several lengths and one a prefix wildcard.
fn domain(at: u64) -> String {
    match at % 10 {
        7 => format!("*.tenant-{at}.shop.example"),
        8 => format!(
            "*.zone-{}.region-{at}{}.example",
            at % 7,
            [".mesh", ".internal", ".mesh.internal"][at as usize % 3]
        ),
        9 => format!("edge-{at}.*"),
        _ => format!("service-{at}.namespace-{}.svc.cluster.local", at % 17),
    }
}

fn table() -> RouteTable {
    let host = |at: u64| VirtualHost {
        name: format!("host-{at}").into(),
        domains: vec![domain(at).into()],
        routes: routes(),
        request_edits: HeaderEdits::default(),
        response_edits: HeaderEdits::default(),
        rate_limit: None,
    };
    RouteTable {
        name: "bench".into(),
        virtual_hosts: (0..HOSTS).map(host).collect(),
        request_edits: HeaderEdits::default(),
        response_edits: HeaderEdits::default(),
        ignore_port_in_host: false,
    }
}

fn routes() -> Vec<Arc<Route>> {
    let canary = || HeaderMatch {
        name: "x-canary".into(),
        test: HeaderTest::Text(TextMatch::Exact { text: "yes".into(), ignore_case: false }),
        invert: false,
        missing_as_empty: false,
    };
    let exact = |path: &str| (PathMatch::Exact(path.into()), Vec::new());
    let prefix = |path: &str| (PathMatch::Prefix(path.into()), Vec::new());
    let matches = [
        exact("/healthz"),
        exact("/v1/orders"),
        (PathMatch::Prefix("/v1/orders/".into()), vec![canary()]),
        prefix("/v1/orders/"),
        prefix("/v1/stock/"),
        (PathMatch::SeparatedPrefix("/v1/payments".into()), Vec::new()),
        (PathMatch::Prefix("/v2/".into()), vec![canary()]),
        prefix("/v2/catalogue/"),
        prefix("/assets/"),
        exact("/"),
    ];
    matches.into_iter().enumerate().map(|(at, (path, headers))| route(at, path, headers)).collect()
}

fn route(at: usize, path: PathMatch, headers: Vec<HeaderMatch>) -> Arc<Route> {
    Arc::new(Route {
        access: Vec::new(),
        name: format!("route-{at}").into(),
        matches: RouteMatch { path, case_sensitive: true, headers, query: Vec::new(), fraction_ppm: 1_000_000 },
        action: RouteAction::Direct(DirectResponse { status: 200, body: Arc::from(&b""[..]) }),
        rate_limit: None,
        request_edits: HeaderEdits::default(),
        response_edits: HeaderEdits::default(),
    })
}

fn pick<'a>(chance: &Chance, from: &[&'a str]) -> &'a str {
    from[usize::try_from(chance.below(from.len() as u64)).expect("below the length")]
}

fn authority(chance: &Chance) -> String {
    let domain = domain(chance.below(HOSTS));
    match domain.split_once('*') {
        Some(("", suffix)) => format!("{}{suffix}", pick(chance, &["www", "api", "eu-west-1"])),
        Some((prefix, _)) => format!("{prefix}{}", pick(chance, &["internal", "shop.example"])),
        None => domain,
    }
}

fn hit(chance: &Chance) -> Request {
    let path = pick(
        chance,
        &[
            "/healthz",
            "/v1/orders",
            "/v1/orders/17",
            "/v1/orders/17/lines/4",
            "/v1/stock/lamp-green",
            "/v1/payments",
            "/v1/payments/visa/confirm",
            "/v2/catalogue/lamps",
            "/assets/app.js",
            "/",
        ],
    );
    let canary: Option<&'static [u8]> = (chance.below(4) == 0).then_some(b"yes");
    Request { authority: authority(chance), path: path.into(), canary }
}

/// An unknown host, or a path that no route of a known one has.
fn miss(chance: &Chance) -> Request {
    if chance.below(2) == 0 {
        let path = pick(chance, &["/v1/orders-17", "/v1/paymentsx", "/v3/catalogue", "/favicon.ico", "/healthz/deep"]);
        return Request { authority: authority(chance), path: path.into(), canary: None };
    }
    let unknown =
        pick(chance, &["service-1.namespace-2.svc.cluster.example", "www.tenant-17.shop.test", "x", "10.0.0.1"]);
    Request { authority: unknown.into(), ..hit(chance) }
}

fn either(chance: &Chance) -> Request {
    if chance.below(4) == 0 { miss(chance) } else { hit(chance) }
}
