//! curl and h2load before the proxy, nginx behind it.

use std::path::Path;

use outrigger_tests::world::process::{Launch, Process};
use outrigger_tests::world::scratch::Scratch;
use outrigger_tests::world::upstream::pattern;
use outrigger_tests::world::{Answer, Proxy, ProxySetup, Upstream, resource};

use super::{BOTH, free_port, run, wait_accepts};

fn curl(args: &[&str]) -> String {
    let fixed = ["--silent", "--show-error", "--max-time", "20", "--noproxy", "*"];
    String::from_utf8(run("curl", &[&fixed[..], args].concat()).stdout).unwrap()
}

#[test]
#[ignore = "needs curl: make interop"]
fn curl_gets_posts_uploads_and_keeps_its_connection() {
    for io in BOTH {
        let upstream = Upstream::start(|request| match request.target.as_str() {
            "/echo" => Answer::ok(request.body.clone()),
            "/chunks" => Answer::status(200).chunks([&b"one "[..], b"two"]),
            target => Answer::ok(format!("{} {target}", request.method)),
        });
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[upstream.address()])));
        let url = |path: &str| format!("http://{}{path}", proxy.listener("main"));
        assert_eq!(curl(&[&url("/a?b=c")]), "GET /a?b=c");
        assert_eq!(curl(&["-d", "x=1", &url("/echo")]), "x=1");
        assert_eq!(curl(&[&url("/chunks")]), "one two");
        assert_eq!(curl(&["--head", "-o", "/dev/null", "-w", "%{http_code}", &url("/h")]), "200");
        assert_eq!(curl(&["-H", "Transfer-Encoding: chunked", "-d", "chunked up", &url("/echo")]), "chunked up");
        let scratch = Scratch::new("curl").unwrap();
        let body = pattern(0, 3 << 20);
        let (up, down) = (scratch.path().join("up"), scratch.path().join("down"));
        std::fs::write(&up, &body).unwrap();
        let data = format!("@{}", up.display());
        curl(&["-H", "Expect: 100-continue", "--data-binary", &data, "-o", down.to_str().unwrap(), &url("/echo")]);
        assert!(std::fs::read(&down).unwrap() == body, "{io:?}: the upload came back changed");
        let connects = curl(&["-o", "/dev/null", "-o", "/dev/null", "-w", "%{num_connects} ", &url("/1"), &url("/2")]);
        assert_eq!(connects.trim(), "1 0", "{io:?}: the second request goes out on the first connection");
    }
}

#[test]
#[ignore = "needs h2load: make interop"]
fn h2load_over_http_1_loses_nothing() {
    for io in BOTH {
        let upstream = Upstream::start(|_| Answer::ok(vec![b'x'; 1_024]));
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[upstream.address()])));
        let url = format!("http://{}/", proxy.listener("main"));
        let text =
            String::from_utf8(run("h2load", &["--h1", "-n", "20000", "-c", "32", "-t", "1", &url]).stdout).unwrap();
        assert!(text.contains("20000 succeeded, 0 failed, 0 errored, 0 timeout"), "{io:?}: {text}");
        assert!(text.contains("20000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{io:?}: {text}");
    }
}

#[test]
#[ignore = "needs nginx: make interop"]
fn nginx_serves_through_the_proxy() {
    let scratch = Scratch::new("nginx").unwrap();
    let folder = scratch.path().display().to_string();
    let body = pattern(0, 1 << 20);
    std::fs::write(scratch.path().join("file"), &body).unwrap();
    let address = free_port();
    let conf = format!(
        "master_process off; daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{ worker_connections 256; }}\n\
         http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;\n\
         uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; keepalive_timeout 60s;\n\
         server {{ listen {address}; root {folder}; location /conn {{ return 200 $connection; }} }} }}\n"
    );
    let conf = scratch.write("nginx.conf", &conf).unwrap();
    let program = ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists());
    let launch = Launch { program: program.unwrap_or("nginx").into(), ..Launch::default() };
    let mut nginx =
        Process::start("nginx", &launch.args(["-p".into(), scratch.path().into(), "-c".into(), conf.into_os_string()]))
            .unwrap();
    wait_accepts(address, &mut nginx);
    for io in BOTH {
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[address])));
        let mut client = proxy.connect();
        assert!(client.get("/file").unwrap().body == body, "{io:?}");
        let connections: Vec<String> = (0..10).map(|_| client.get("/conn").unwrap().text()).collect();
        assert!(connections.iter().all(|one| *one == connections[0]), "{io:?}: kept alive: {connections:?}");
        let range = client.request("GET", "/file", &[("range", "bytes=100-199")], b"").unwrap();
        assert_eq!((range.status, range.body.as_slice()), (206, &body[100..200]));
        let head = client.request("HEAD", "/file", &[], b"").unwrap();
        assert_eq!((head.status, head.header("content-length")), (200, Some((1 << 20).to_string())));
        let etag = head.header("etag").unwrap();
        assert_eq!(client.request("GET", "/file", &[("if-none-match", &etag)], b"").unwrap().status, 304);
        assert_eq!(client.get("/none").unwrap().status, 404);
    }
}
