//! Purpose: a real Kubernetes API: etcd and kube-apiserver as processes on loopback (or an address that a test chose), with
//! RBAC on and a certificate of its own. No controller and no kubelet runs: a test writes what those would.
//!
//! Shape: [`Kube`] owns both processes and speaks to the API through `curl`, as `system:masters`; [`Kube::account`] is a
//! service account with the files that a pod would find mounted. The API server can be stopped and started again.
//!
//! Errors: a request that the API refuses is an error that shows its answer; [`Kube::call`] gives status and body as they are.
//!
//! Limits: etcd does not sync to the disk; a webhook's `service` is looked up through EndpointSlices, as there is no
//! kube-proxy. Service accounts are not put into pods. Binaries come from `tests/tools/fetch.py` or the PATH.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::process::{Launch, Process};
use super::scratch::Scratch;
use super::tool::fetch;
use super::wait::wait_for;

const READY_WITHIN: Duration = Duration::from_secs(90);
const ADMIN_TOKEN: &str = "outrigger-test-admin";
const APPLY: &str = "application/apply-patch+yaml";

/// A Kubernetes API server with its etcd.
#[derive(Debug)]
pub struct Kube {
    server: Option<Process>,
    etcd_url: String,
    address: SocketAddr,
    scratch: Scratch,
    // Ends after the server, which complains without it.
    _etcd: Process,
}

/// A service account, as a pod sees it.
#[derive(Debug, Clone)]
pub struct Account {
    /// Its bearer token.
    pub token: String,
    /// A folder with `token`, `ca.crt` and `namespace`, as mounted into a pod.
    pub mount: PathBuf,
    /// A kubeconfig that uses the token.
    pub kubeconfig: PathBuf,
}

impl Kube {
    /// Starts one on loopback.
    ///
    /// # Panics
    /// When it does not become ready.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_at(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// Starts one that listens on an address of this machine (or of this network namespace).
    ///
    /// # Panics
    /// When it does not become ready.
    #[track_caller]
    pub fn start_at(listen: IpAddr) -> Self {
        Self::try_start_at(listen).unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_start_at(listen: IpAddr) -> io::Result<Self> {
        let scratch = Scratch::new("kube")?;
        let [client, peer] = [free_port(Ipv4Addr::LOCALHOST.into())?, free_port(Ipv4Addr::LOCALHOST.into())?];
        let (etcd_url, peer_url) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let etcd = start_etcd(&scratch, &etcd_url, &peer_url)?;
        write_keys(&scratch)?;
        let address = SocketAddr::new(listen, free_port(listen)?);
        let mut kube = Self { server: None, etcd_url, address, scratch, _etcd: etcd };
        kube.resume_server()?;
        Ok(kube)
    }

    /// Starts the API server (again), on its port, and waits until it is ready.
    pub fn resume_server(&mut self) -> io::Result<()> {
        let folder = self.scratch.path();
        let file = |name: &str| folder.join(name).display().to_string();
        let launch = Launch { program: fetch("kube-apiserver")?.into(), ..Launch::default() };
        let launch = launch.args([
            format!("--etcd-servers={}", self.etcd_url),
            format!("--bind-address={}", self.address.ip()),
            format!("--advertise-address={}", self.address.ip()),
            format!("--secure-port={}", self.address.port()),
            format!("--cert-dir={}", file("certs")),
            format!("--token-auth-file={}", file("tokens.csv")),
            format!("--service-account-key-file={}", file("accounts.pub")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            "--enable-aggregator-routing=true".to_owned(),
            // There is no controller that would make the default accounts.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--profiling=false".to_owned(),
            "--v=1".to_owned(),
        ]);
        self.server = Some(Process::start("kube-apiserver", &launch)?);
        let limit = READY_WITHIN;
        wait_for("the Kubernetes API to be ready", limit, || {
            if let Some(status) = self.server.as_mut().and_then(|server| server.try_exit().ok().flatten()) {
                let failure = self.server.as_ref().map(|server| server.failure("ended").to_string());
                panic!("kube-apiserver ended with {status}: {}", failure.unwrap_or_default());
            }
            match self.call("GET", "/readyz", "", "") {
                Ok((200, _)) => Ok(()),
                Ok((status, body)) => Err(format!("{status} {body}")),
                Err(error) => Err(error.to_string()),
            }
        });
        Ok(())
    }

    /// Kills the API server; etcd and all that is stored stay.
    pub fn kill_server(&mut self) {
        self.server = None;
    }

    /// The API server's process, while it runs.
    pub fn server(&mut self) -> Option<&mut Process> {
        self.server.as_mut()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its certificate authority.
    pub fn authority(&self) -> PathBuf {
        self.scratch.path().join("certs/apiserver.crt")
    }

    /// A kubeconfig with every right.
    pub fn kubeconfig(&self) -> io::Result<PathBuf> {
        self.write_kubeconfig("admin", ADMIN_TOKEN)
    }

    fn write_kubeconfig(&self, user: &str, token: &str) -> io::Result<PathBuf> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": user } }],
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://{}", self.address),
                "certificate-authority": self.authority(),
            }}],
            "users": [{ "name": user, "user": { "token": token } }],
        });
        self.scratch.write(&format!("{user}.kubeconfig"), &config.to_string())
    }

    /// Makes a service account (its namespace must be there) and what a pod that runs as it would find.
    pub fn account(&self, namespace: &str, name: &str) -> io::Result<Account> {
        self.apply(&json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name, "namespace": namespace },
        }))?;
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let ask = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
        let answer = self.succeed("POST", &path, "application/json", &ask.to_string())?;
        let token = answer.pointer("/status/token").and_then(Value::as_str).unwrap_or_default().to_owned();
        let mount = self.scratch.path().join(format!("mount-{namespace}-{name}"));
        std::fs::create_dir_all(&mount)?;
        std::fs::write(mount.join("token"), &token)?;
        std::fs::write(mount.join("namespace"), namespace)?;
        std::fs::copy(self.authority(), mount.join("ca.crt"))?;
        let kubeconfig = self.write_kubeconfig(&format!("{namespace}-{name}"), &token)?;
        Ok(Account { token, mount, kubeconfig })
    }

    /// One request, as administrator; status and JSON body (or text).
    pub fn call(&self, method: &str, path: &str, content_type: &str, body: &str) -> io::Result<(u16, Value)> {
        self.call_as(ADMIN_TOKEN, (method, path), content_type, body)
    }

    /// One request with somebody's token; status and JSON body (or text).
    pub fn call_as(
        &self,
        token: &str,
        (method, path): (&str, &str),
        content_type: &str,
        body: &str,
    ) -> io::Result<(u16, Value)> {
        let mut command = Command::new("curl");
        command.args(["-sS", "--noproxy", "*", "--max-time", "30", "-X", method, "-w", "\n%{http_code}"]);
        command.arg("--cacert").arg(self.authority());
        command.args(["-H", &format!("authorization: Bearer {token}")]);
        if !body.is_empty() {
            command.args(["-H", &format!("content-type: {content_type}"), "--data-binary", "@-"]);
        }
        command.arg(format!("https://{}{path}", self.address));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // curl closes its input early when it cannot connect, and says so itself.
            let _ = stdin.write_all(body.as_bytes());
        }
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (answer, status) = text.rsplit_once('\n').unwrap_or(("", "0"));
        match status.parse() {
            Ok(status) if output.status.success() && status != 0 => {
                Ok((status, serde_json::from_str(answer).unwrap_or_else(|_| Value::from(answer))))
            }
            _ => Err(io::Error::other(format!("{method} {path}: {}", String::from_utf8_lossy(&output.stderr).trim()))),
        }
    }

    fn succeed(&self, method: &str, path: &str, content_type: &str, body: &str) -> io::Result<Value> {
        match self.call(method, path, content_type, body)? {
            (200..=299, answer) => Ok(answer),
            (status, answer) => Err(io::Error::other(format!("{method} {path}: {status}: {}", said(&answer)))),
        }
    }

    /// Creates or changes an object by server-side apply.
    pub fn apply(&self, object: &Value) -> io::Result<Value> {
        let path = self.path_of(object)?;
        self.succeed("PATCH", &format!("{path}?fieldManager=test&force=true"), APPLY, &object.to_string())
    }

    /// As [`Kube::apply`], for each document of a YAML stream.
    pub fn apply_yaml(&self, text: &str) -> io::Result<Vec<Value>> {
        let documents = serde_yaml_ng::Deserializer::from_str(text);
        let objects: Result<Vec<Value>, _> = documents.map(serde::Deserialize::deserialize).collect();
        let objects = objects.map_err(io::Error::other)?;
        objects.iter().filter(|object| !object.is_null()).map(|object| self.apply(object)).collect()
    }

    /// Asks whether the API takes an object, without storing it; what it said against it.
    pub fn judge(&self, object: &Value) -> io::Result<Result<Value, String>> {
        let path = self.path_of(object)?;
        let query = "?fieldManager=test&force=true&dryRun=All&fieldValidation=Strict";
        Ok(match self.call("PATCH", &format!("{path}{query}"), APPLY, &object.to_string())? {
            (200..=299, answer) => Ok(answer),
            (_, answer) => Err(said(&answer)),
        })
    }

    /// Changes an object's status by server-side apply.
    pub fn apply_status(&self, object: &Value) -> io::Result<Value> {
        let path = self.path_of(object)?;
        self.succeed("PATCH", &format!("{path}/status?fieldManager=test-status&force=true"), APPLY, &object.to_string())
    }

    /// An object, if it is there.
    pub fn get(&self, path: &str) -> io::Result<Option<Value>> {
        match self.call("GET", path, "", "")? {
            (200, answer) => Ok(Some(answer)),
            (404, _) => Ok(None),
            (status, answer) => Err(io::Error::other(format!("GET {path}: {status}: {}", said(&answer)))),
        }
    }

    /// Deletes an object or a collection at once.
    pub fn delete(&self, path: &str) -> io::Result<()> {
        self.succeed("DELETE", &format!("{path}?gracePeriodSeconds=0"), "", "").map(drop)
    }

    /// Makes a namespace with labels.
    pub fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> io::Result<()> {
        let labels: Value = labels.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))).collect();
        let namespace =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels }});
        self.apply(&namespace).map(drop)
    }

    /// Installs CRDs and waits until they are served.
    pub fn install(&self, definitions: &[Value]) -> io::Result<()> {
        for definition in definitions {
            self.apply(definition)?;
            let name = definition.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
            let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
            wait_for(&format!("{name} to be served"), READY_WITHIN, || {
                let found = self.get(&path).map_err(|error| error.to_string())?.unwrap_or_default();
                let conditions = found.pointer("/status/conditions").and_then(Value::as_array).cloned();
                let is = |kind: &str| {
                    let all = conditions.iter().flatten();
                    all.clone().any(|one| one["type"] == kind && one["status"] == "True")
                };
                if is("Established") && is("NamesAccepted") { Ok(()) } else { Err(format!("{conditions:?}")) }
            });
        }
        Ok(())
    }

    /// Installs the Gateway API's own CRDs.
    pub fn install_gateway(&self) -> io::Result<()> {
        let folder = fetch("gateway-crds")?;
        for name in ["httproutes", "grpcroutes"] {
            let text = std::fs::read_to_string(folder.join(format!("gateway.networking.k8s.io_{name}.yaml")))?;
            let definition: Value = serde_yaml_ng::from_str(&text).map_err(io::Error::other)?;
            self.install(&[definition])?;
        }
        Ok(())
    }

    /// The path of an object, as the API's own discovery says.
    pub fn path_of(&self, object: &Value) -> io::Result<String> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
        let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
        let mut found = None;
        // A kind that was defined a moment ago may take another to be discovered.
        wait_for(&format!("{kind} of {version} to be discovered"), Duration::from_secs(10), || {
            let list = self.get(&root).map_err(|error| error.to_string())?.unwrap_or_default();
            let resources = list["resources"].as_array().cloned().unwrap_or_default();
            let is_it = |one: &&Value| one["kind"] == kind && !one["name"].as_str().unwrap_or("/").contains('/');
            found = resources.iter().find(is_it).cloned();
            found.as_ref().map(drop).ok_or_else(|| format!("{list}"))
        });
        let resource = found.unwrap_or_default();
        let plural = resource["name"].as_str().unwrap_or_default();
        let namespace = match text("/metadata/namespace") {
            "" => "default",
            namespace => namespace,
        };
        Ok(match resource["namespaced"].as_bool() {
            Some(true) => format!("{root}/namespaces/{namespace}/{plural}/{name}"),
            _ => format!("{root}/{plural}/{name}"),
        })
    }
}

/// What the API says of a refusal.
fn said(answer: &Value) -> String {
    answer["message"].as_str().map_or_else(|| answer.to_string(), str::to_owned)
}

/// A port that is free now. Another process may take it before ours does, which then ends and says so.
fn free_port(at: IpAddr) -> io::Result<u16> {
    TcpListener::bind((at, 0))?.local_addr().map(|address| address.port())
}

fn start_etcd(scratch: &Scratch, url: &str, peer_url: &str) -> io::Result<Process> {
    let launch = Launch { program: fetch("etcd")?.into(), ..Launch::default() };
    let launch = launch.args([
        format!("--data-dir={}", scratch.path().join("etcd").display()),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--listen-peer-urls={peer_url}"),
        format!("--initial-advertise-peer-urls={peer_url}"),
        format!("--initial-cluster=default={peer_url}"),
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ]);
    Process::start("etcd", &launch)
}

/// The key that signs service accounts' tokens, and the administrator's token.
fn write_keys(scratch: &Scratch) -> io::Result<()> {
    let (key, public) = (scratch.path().join("accounts.key"), scratch.path().join("accounts.pub"));
    let openssl = |words: &[&str], files: &[&Path]| {
        let made = Command::new("openssl").args(words).args(files).stderr(Stdio::null()).status()?;
        let failed = || io::Error::other(format!("openssl {} failed: {made}", words.join(" ")));
        if made.success() { Ok(()) } else { Err(failed()) }
    };
    openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"], &[&key])?;
    openssl(&["pkey", "-pubout", "-in"], &[&key, Path::new("-out"), &public])?;
    std::fs::create_dir_all(scratch.path().join("certs"))?;
    scratch.write("tokens.csv", &format!("{ADMIN_TOKEN},admin,admin,\"system:masters\"\n")).map(drop)
}
