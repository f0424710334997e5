//! Purpose: real TLS through the proxy, which does not end it: curl before it, OpenSSL's servers behind it, each chosen by
//! the name asked for and proven by its certificate. Run by `make interop`, which gets the peers first.
//!
//! Errors: a peer that is missing fails its test and is named; none is skipped.

#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use outrigger_tests::world::process::{Launch, Process};
use outrigger_tests::world::resource::{self, any_port, cluster};
use outrigger_tests::world::scratch::Scratch;
use outrigger_tests::world::{Io, Proxy, ProxySetup, wait_for};
use serde_json::{Value, json};

const BOTH: [Io; 2] = [Io::Epoll, Io::Uring];

fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}; `make interop` installs it"))
}

/// A TLS server with a certificate of its own.
struct Server {
    address: SocketAddr,
    certificate: PathBuf,
    _process: Process,
}

impl Server {
    fn start(name: &str, folder: &Path) -> Self {
        let (certificate, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        let (certificate_text, key_text) = (certificate.to_str().unwrap(), key.to_str().unwrap());
        let subject = format!("/CN={name}");
        let alternative = format!("subjectAltName=DNS:{name}");
        let made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", &subject];
        let made = [&made[..], &["-addext", &alternative, "-out", certificate_text, "-keyout", key_text]].concat();
        let output = run("openssl", &made);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // OpenSSL cannot say which port it took: this one was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let launch = Launch { program: "openssl".into(), ..Launch::default() };
        let launch = launch.args(["s_server", "-www", "-quiet", "-accept", &address.to_string()]);
        let launch = launch.args(["-cert", certificate_text, "-key", key_text]);
        let mut process = Process::start("openssl", &launch).unwrap();
        wait_for(&format!("{address} to accept"), Duration::from_secs(20), || {
            if let Ok(Some(status)) = process.try_exit() {
                return Err(process.failure(&format!("ended with {status}")).to_string());
            }
            TcpStream::connect(address).map(drop).map_err(|error| error.to_string())
        });
        Self { address, certificate, _process: process }
    }
}

/// What curl says of `https://name/` through the proxy when it trusts that one certificate.
fn curl(proxy: &Proxy, name: &str, trusted: &Server) -> (bool, String) {
    let to = format!("{name}:443:{}", proxy.listener("main"));
    let url = format!("https://{name}/");
    let certificate = trusted.certificate.to_str().unwrap();
    let args = ["--silent", "--show-error", "--http1.0", "--max-time", "20", "--noproxy", "*", "--connect-to", &to];
    let output = run("curl", &[&args[..], &["--cacert", certificate, &url]].concat());
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn chain(cluster: &str, names: &[&str]) -> Value {
    json!({ "filter_chain_match": { "server_names": names }, "filters": [{ "name": "tcp", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": cluster, "cluster": cluster,
    }}]})
}

#[test]
#[ignore = "needs curl and openssl: make interop"]
fn each_name_reaches_the_server_that_can_prove_it() {
    let scratch = Scratch::new("tls").unwrap();
    let [shop, pay] = ["shop.example", "eu.pay.example"].map(|name| Server::start(name, scratch.path()));
    for io in BOTH {
        let listener = json!({ "name": "main", "address": any_port(),
            "filter_chains": [chain("shop", &["shop.example"]), chain("pay", &["*.pay.example"])],
            "listener_filters": [{ "name": "tls", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" } }] });
        let clusters = vec![cluster("shop", &[shop.address]), cluster("pay", &[pay.address])];
        let proxy = Proxy::start(&ProxySetup::new(io, resource::bootstrap(vec![listener], clusters)));
        for (name, server) in [("shop.example", &shop), ("eu.pay.example", &pay)] {
            let (is_ok, text) = curl(&proxy, name, server);
            assert!(is_ok && text.contains("Ciphers supported"), "{io:?} {name}: {text}");
        }
        let (is_ok, text) = curl(&proxy, "shop.example", &pay);
        assert!(!is_ok && text.contains("certificate"), "{io:?}: {text}");
        let (is_ok, text) = curl(&proxy, "other.example", &shop);
        assert!(!is_ok, "{io:?}: {text}");
        let labels = [("listener", "main"), ("kind", "no-filter-chain")];
        proxy.wait_metric("outrigger_listener_faults_total", &labels, 1.0);
        let tls = [("listener", "main"), ("verdict", "tls")];
        assert_eq!(proxy.metric("outrigger_listener_detections_total", &tls) as u64, 4, "{io:?}");
    }
}
