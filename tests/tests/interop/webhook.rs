//! Purpose: the webhook's TLS and HTTP in the eyes of OpenSSL and curl, with certificates that OpenSSL made.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use outrigger_tests::world::process::{Launch, Process};
use outrigger_tests::world::scratch::Scratch;
use serde_json::{Value, json};

use super::run;

/// `tls.crt`, `tls.key` and `ca.crt` for localhost.
fn make_certificates(folder: &Path) {
    let file = |name: &str| folder.join(name).display().to_string();
    let (key, certificate, authority) = (file("tls.key"), file("tls.crt"), file("ca.crt"));
    let args = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    let more =
        ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", &key, "-out"];
    run("openssl", &[&args[..], &more[..], &[certificate.as_str()]].concat());
    std::fs::copy(certificate, authority).unwrap();
}

fn review() -> String {
    let pod = json!({ "metadata": {}, "spec": { "containers": [{ "name": "app" }] } });
    let request = json!({ "uid": "u", "kind": { "kind": "Pod" }, "operation": "CREATE", "object": pod });
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request }).to_string()
}

#[test]
#[ignore = "needs OpenSSL and curl: make interop"]
fn openssl_and_curl_reach_the_webhook() {
    let scratch = Scratch::new("webhook").unwrap();
    make_certificates(scratch.path());
    let store = scratch.path().join("policy.redb").display().to_string();
    let folder = scratch.path().display().to_string();
    let free = "127.0.0.1:0";
    let args = ["--api", free, "--xds", free, "--webhook", free, "--store", &store, "--webhook-cert-dir", &folder];
    let launch = Launch::built("outrigger-control").unwrap().args(args);
    let mut control = Process::start("control", &launch).unwrap();
    let line = control.wait_line("outrigger-control ready ", Duration::from_secs(20)).unwrap();
    let address = line.split_whitespace().find_map(|word| word.strip_prefix("webhook=")).unwrap();
    let port = address.rsplit_once(':').unwrap().1;
    let authority = scratch.path().join("ca.crt").display().to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        let args = ["s_client", "-connect", address, "-servername", "localhost", "-CAfile", &authority];
        let more = ["-verify_return_error", "-verify_hostname", "localhost", "-alpn", "h2,http/1.1", version];
        let mut command = Command::new("openssl");
        let output = command.args(args).args(more).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("Verify return code: 0 (ok)"), "{version}: {text}");
        assert!(text.contains("ALPN protocol: http/1.1"), "{version}: {text}");
    }
    let body = scratch.write("review.json", &review()).unwrap().display().to_string();
    let (url, body) = (format!("https://localhost:{port}/inject"), format!("@{body}"));
    let args = ["--silent", "--show-error", "--noproxy", "*", "--cacert", &authority, "--data-binary", &body];
    let json = ["-H", "content-type: application/json", &url];
    let output = run("curl", &[&args[..], &json[..]].concat());
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["response"]["allowed"], true, "{answer}");
    assert_eq!(answer["response"]["patchType"], "JSONPatch", "{answer}");
    let large = scratch.write("large.json", &" ".repeat(4 << 20)).unwrap().display().to_string();
    let large = format!("@{large}");
    let args = ["--silent", "--show-error", "--noproxy", "*", "--cacert", &authority, "--data-binary", &large];
    let output = run("curl", &[&args[..], &["-w", "%{http_code}"], &json[..]].concat());
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("413"), "{}", String::from_utf8_lossy(&output.stdout));
}
