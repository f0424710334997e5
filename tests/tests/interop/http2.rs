//! h2spec, nghttp2's tools and Python's `h2` on either side of the proxy.

use std::path::Path;
use std::process::Command;

use outrigger_tests::world::process::{Launch, Process};
use outrigger_tests::world::resource::{self, cluster, http2_cluster, plain, route};
use outrigger_tests::world::scratch::Scratch;
use outrigger_tests::world::upstream::pattern;
use outrigger_tests::world::{Answer, H2Answer, H2Upstream, Proxy, ProxySetup, Upstream};
use serde_json::{Value, json};

use super::{BOTH, envoy, fetched, free_port, python, run, wait_accepts};

/// nghttpd over a folder, in plain text.
pub(super) fn nghttpd(scratch: &Scratch) -> (Process, std::net::SocketAddr) {
    let address = free_port();
    let program = ["/usr/sbin/nghttpd", "/usr/bin/nghttpd"].into_iter().find(|path| Path::new(path).exists());
    let launch = Launch { program: program.unwrap_or("nghttpd").into(), ..Launch::default() };
    let folder = scratch.path().display().to_string();
    let port = address.port().to_string();
    let arguments =
        ["--no-tls", "-a", "127.0.0.1", "-d", &folder, "--trailer", "x-trailer: nghttpd", "--echo-upload", &port];
    let mut process = Process::start("nghttpd", &launch.args(arguments)).unwrap();
    wait_accepts(address, &mut process);
    (process, address)
}

/// The last line of h2spec and how many passed and were there.
fn h2spec(program: &str, port: u16, is_strict: bool) -> (String, String) {
    let port = port.to_string();
    let mut arguments = vec!["-h", "127.0.0.1", "-p", &port];
    if is_strict {
        arguments.push("--strict");
    }
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let sum = text.lines().rev().find(|line| line.contains(" tests, ")).unwrap_or("no sum").to_owned();
    (sum, text)
}

/// Forwards to an application, which answers when it has all of a request.
///
/// A direct answer does not wait for that: it is sent whole, then RST_STREAM(NO_ERROR) (RFC 9113 §8.1), after which frames
/// of that stream are passed over (§5.1). About five cases send a head without END_STREAM, then a frame that must be an error:
/// they count what came first, so before a direct answer they pass or not by which end was faster.
///
/// The listener takes HTTP/2 only: where the first bytes choose, what is no preface is HTTP/1 and gets its 400.
fn framed(app: &Upstream) -> Value {
    resource::forwarding_with(json!({ "codec_type": "HTTP2" }), cluster("app", &[app.address()]))
}

#[test]
#[ignore = "needs h2spec and envoy: make interop"]
fn h2spec_finds_nothing() {
    let program = fetched("h2spec");
    let app = Upstream::named("hello");
    let bootstrap = framed(&app);
    // A peer's deadlines are waited out while ours are looked at.
    let beside = std::thread::spawn({
        let (program, bootstrap) = (program.clone(), bootstrap.clone());
        move || {
            let envoy = envoy::start(&bootstrap);
            h2spec(&program, envoy.listener("main").port(), true).0
        }
    });
    for io in BOTH {
        let proxy = Proxy::start(&ProxySetup::new(io, bootstrap.clone()));
        for is_strict in [false, true] {
            let (sum, text) = h2spec(&program, proxy.listener("main").port(), is_strict);
            println!("h2spec, {io:?}{}: {sum}", if is_strict { ", strict" } else { "" });
            let (all, passed) = counts(&sum);
            assert!(all >= 145, "h2spec ran {all} of at least 145 tests: {text}");
            assert_eq!(passed, all, "{io:?}, strict {is_strict}: {text}");
        }
    }
    println!("h2spec, Envoy, strict: {}", beside.join().unwrap());
}

/// `146 tests, 146 passed, 0 skipped, 0 failed`: all of them, and the second.
fn counts(sum: &str) -> (u32, u32) {
    let mut numbers = sum.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[test]
#[ignore = "needs nghttp2's tools: make interop"]
fn nghttp_and_nghttpd_talk_through_the_proxy() {
    let scratch = Scratch::new("nghttpd").unwrap();
    let body = pattern(0, 3 << 20);
    std::fs::write(scratch.path().join("file"), &body).unwrap();
    let (_nghttpd, address) = nghttpd(&scratch);
    for io in BOTH {
        let routes = vec![route("/", resource::forward("app"))];
        let proxy = Proxy::start(&ProxySetup::new(io, plain(routes, vec![http2_cluster("app", &[address])])));
        let url = |path: &str| format!("http://{}{path}", proxy.listener("main"));
        assert!(run("nghttp", &[&url("/file")]).stdout == body, "{io:?}: the file came changed");
        let told = String::from_utf8_lossy(&run("nghttp", &["-nv", &url("/file")]).stdout).into_owned();
        assert!(told.contains(":status: 200") && told.contains("x-trailer: nghttpd"), "{io:?}: {told}");
        let data = scratch.path().join("file").display().to_string();
        assert!(run("nghttp", &["-d", &data, &url("/upload")]).stdout == body, "{io:?}: the upload came back changed");
        let many: Vec<String> = (0..20).map(|number| url(&format!("/file?{number}"))).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(run("nghttp", &many).stdout.len(), 20 * body.len(), "{io:?}: twenty at once");
    }
}

#[test]
#[ignore = "needs h2load: make interop"]
fn h2load_over_http_2_loses_nothing() {
    for io in BOTH {
        let one = Upstream::start(|_| Answer::ok(vec![b'x'; 1_024]));
        let two = H2Upstream::start(|_| H2Answer::ok(vec![b'x'; 1_024]));
        let to_two = plain(vec![route("/", resource::forward("app"))], vec![http2_cluster("app", &[two.address()])]);
        for (bootstrap, version, count) in [
            (resource::forwarding(&[one.address()]), "h2c", "20000"),
            (to_two.clone(), "h2c", "4000"),
            (to_two, "http/1.1", "4000"),
        ] {
            let proxy = Proxy::start(&ProxySetup::new(io, bootstrap));
            let url = format!("http://{}/", proxy.listener("main"));
            let arguments = [
                "-p",
                version,
                "-n",
                count,
                "-c",
                "8",
                "-m",
                if version == "h2c" { "10" } else { "1" },
                "-t",
                "1",
                &url,
            ];
            let text = String::from_utf8(run("h2load", &arguments).stdout).unwrap();
            assert!(
                text.contains(&format!("{count} succeeded, 0 failed, 0 errored, 0 timeout")),
                "{io:?} {version}: {text}"
            );
            assert!(text.contains(&format!("{count} 2xx, 0 3xx, 0 4xx, 0 5xx")), "{io:?} {version}: {text}");
        }
    }
}

#[test]
#[ignore = "needs curl: make interop"]
fn curl_speaks_http_2() {
    for io in BOTH {
        let upstream = Upstream::start(|request| Answer::ok(format!("{} {}", request.target, request.body.len())));
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[upstream.address()])));
        let url = format!("http://{}/a", proxy.listener("main"));
        let fixed = ["--silent", "--show-error", "--max-time", "20", "--noproxy", "*", "--http2-prior-knowledge"];
        let told = run("curl", &[&fixed[..], &["-w", " %{http_version}", "-d", "hello", &url]].concat()).stdout;
        assert_eq!(String::from_utf8_lossy(&told), "/a 5 2", "{io:?}");
    }
}

#[test]
#[ignore = "needs Python's h2: make interop"]
fn python_h2_asks_through_the_proxy() {
    for io in BOTH {
        let one = Upstream::start(|request| Answer::ok(request.body.clone()));
        let two = H2Upstream::start(|request| H2Answer::ok(request.body.clone()).trailers(&[("x-end", "1")]));
        let to_two = plain(vec![route("/", resource::forward("app"))], vec![http2_cluster("app", &[two.address()])]);
        for bootstrap in [resource::forwarding(&[one.address()]), to_two] {
            let proxy = Proxy::start(&ProxySetup::new(io, bootstrap));
            let told = python("h2_client.py", &[&proxy.listener("main").port().to_string()]);
            assert_eq!(told.trim(), "50 streams, 100 bytes to 200000, all came back", "{io:?}");
        }
    }
}
