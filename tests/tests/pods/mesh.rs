//! Purpose: a cluster of one node with the chart in it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger_tests::world::kubelet::{Installed, Node, Phase, Pod};
use outrigger_tests::world::scratch::Scratch;
use outrigger_tests::world::tool::{fetch, root};
use outrigger_tests::world::{Downstream, Helm, Kube, wait_for};
use serde_json::{Value, json};

pub(crate) const SYSTEM: &str = "outrigger-system";
const CONTROL: &str = "outrigger-control";
const SECCOMP: &str = "outrigger-seccomp";
const SOON: Duration = Duration::from_secs(60);

/// How a mesh is set up.
pub(crate) struct Setup {
    /// The node has the profile that allows io_uring.
    pub(crate) installs_profile: bool,
}

/// A mesh that runs.
pub(crate) struct Mesh<'a> {
    pub(crate) node: &'a Node,
    pub(crate) kube: &'a Kube,
    installed: Installed,
    scratch: Scratch,
    listed: Listed,
}

/// A pod and the service it is behind.
struct Listing {
    service: String,
    namespace: String,
    pod: Arc<Pod>,
}

type Listed = Arc<Mutex<Vec<Listing>>>;

/// A service and the ports of its endpoints, by name.
struct Slices {
    namespace: &'static str,
    service: String,
    ports: Value,
}

pub(crate) fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// One mesh at a time: each has dozens of processes, and what they show hangs on when they come and go.
static ONE: Mutex<()> = Mutex::new(());

/// Starts node, API and control plane, and acts on them; everything ends with it.
pub(crate) fn with(setup: &Setup, act: impl FnOnce(&Mesh<'_>) + Send) {
    // A test that failed does not keep the others from theirs.
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let node = Node::new();
    node.place.inside(|| {
        let kube = Kube::start_at(node.place.address.into());
        let is_over = AtomicBool::new(false);
        let scratch = Scratch::new("mesh").unwrap();
        let mesh = Mesh {
            node: &node,
            kube: &kube,
            installed: install(&kube, setup, scratch.path()),
            scratch,
            listed: Listed::default(),
        };
        std::thread::scope(|scope| {
            scope.spawn(|| keep_slices(&kube, &mesh.listed, &is_over));
            // Ends the controller in any case, or a failed test would wait for it.
            let _over = Over(&is_over);
            let _seccomp = setup.installs_profile.then(|| mesh.start_daemon());
            let control = mesh.start_control();
            act(&mesh);
            drop(control);
            mesh.list(|listed| listed.clear());
        });
    });
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The chart, by Helm; and what the nodes then have.
fn install(kube: &Kube, setup: &Setup, scratch: &Path) -> Installed {
    kube.install_gateway().unwrap();
    let profile = format!("seccomp.install={}", setup.installs_profile);
    let helm = Helm { program: fetch("helm4").unwrap(), kube, namespace: SYSTEM };
    let settings = ["--set", "replicas=1", "--set", &profile, "--set", "log.format=text"];
    helm.succeed(&[&["install", "outrigger", "charts/outrigger", "--create-namespace"], &settings[..]].concat());

    let built = outrigger_tests::world::binary::find("outrigger-proxy").unwrap();
    let built = built.parent().unwrap().to_owned();
    // The runtime's own profile is the chart's without io_uring. The chart's own is the DaemonSet's to put there.
    let file = std::fs::read_to_string(root().join("charts/outrigger/files/seccomp.json")).unwrap();
    let profile: Value = serde_json::from_str(&file).unwrap();
    let address = kube.address();
    let std::net::IpAddr::V4(ip) = address.ip() else { panic!("{address} is of IPv4 here") };
    Installed {
        images: ["outrigger-control", "outrigger-proxy", "shop", "busybox"]
            .map(|image| (image.to_owned(), built.clone()))
            .into(),
        runtime_profile: profile,
        profiles: node_folder(scratch, "/var/lib/kubelet/seccomp"),
        api: Some((ip, address.port())),
    }
}

/// Where the node has a folder of its own.
fn node_folder(scratch: &Path, path: &str) -> PathBuf {
    scratch.join("node").join(path.trim_start_matches('/'))
}

impl Mesh<'_> {
    fn list<T>(&self, act: impl FnOnce(&mut Vec<Listing>) -> T) -> T {
        act(&mut self.listed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A pod of a workload of the chart.
    fn start_own(&self, workload: &str, name: &str) -> Arc<Pod> {
        let path = format!("/apis/apps/v1/namespaces/{SYSTEM}/{workload}");
        let workload = self.kube.get(&path).unwrap().unwrap();
        let mut pod = workload.pointer("/spec/template").unwrap().clone();
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["namespace"] = json!(SYSTEM);
        let account = text(&pod, "/spec/serviceAccountName");
        let service = text(&workload, "/metadata/name");
        self.run(&pod, &service, if account.is_empty() { "default" } else { &account })
    }

    /// The pod of the DaemonSet that installs the profile; it has, once it runs.
    fn start_daemon(&self) -> Arc<Pod> {
        let daemon = self.start_own(&format!("daemonsets/{SECCOMP}"), "seccomp-1");
        daemon.wait("to run", SOON, |state| state.phase == Phase::Running);
        daemon
    }

    /// The control plane, as its Deployment says.
    fn start_control(&self) -> Arc<Pod> {
        let control = self.start_own(&format!("deployments/{CONTROL}"), "control-1");
        control.wait_ready();
        self.node.set_name(&format!("{CONTROL}.{SYSTEM}.svc"), control.place.address);
        let reachable = || -> Result<(), String> {
            let probe = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": "probe", "namespace": "default", "labels": { "outrigger.dev/inject": "enabled" } },
                "spec": { "containers": [{ "name": "app", "image": "shop" }] },
            });
            let path = "/api/v1/namespaces/default/pods?dryRun=All";
            let (status, answer) = self
                .kube
                .call("POST", path, "application/json", &probe.to_string())
                .map_err(|error| error.to_string())?;
            if status == 201 { Ok(()) } else { Err(answer.to_string()) }
        };
        wait_for("the API to reach the webhook", SOON, reachable);
        control
    }

    /// Posts a pod and runs what the API made of it.
    fn run(&self, pod: &Value, service: &str, account: &str) -> Arc<Pod> {
        let path = format!("/api/v1/namespaces/{}/pods", text(pod, "/metadata/namespace"));
        let (status, stored) = self.kube.call("POST", &path, "application/json", &pod.to_string()).unwrap();
        assert_eq!(status, 201, "{}: {stored}", text(pod, "/metadata/name"));
        self.run_stored(&stored, service, account)
    }

    /// Runs a pod that the API has.
    fn run_stored(&self, stored: &Value, service: &str, account: &str) -> Arc<Pod> {
        let namespace = text(stored, "/metadata/namespace");
        let volumes = self.volumes(stored, &namespace);
        let account = self.kube.account(&namespace, account).unwrap();
        let pod = Arc::new(Pod::run(self.node, &self.installed, stored, volumes, Some(account.mount)));
        self.report(&pod, &namespace, "Pending");
        let listing = Listing { service: service.to_owned(), namespace, pod: pod.clone() };
        self.list(|listed| listed.push(listing));
        pod
    }

    /// Tells the API of a pod, as a kubelet does.
    fn report(&self, pod: &Pod, namespace: &str, phase: &str) {
        let address = pod.place.address;
        let status = json!({ "phase": phase, "podIP": address, "podIPs": [{ "ip": address }] });
        let metadata = json!({ "name": pod.name, "namespace": namespace });
        let told = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status });
        self.kube.apply_status(&told).unwrap_or_else(|error| panic!("{}: {error}", pod.name));
    }

    /// Runs the chart's own test, as `helm test` asks for it; what Helm said.
    pub(crate) fn helm_test(&self) -> String {
        let helm = Helm { program: fetch("helm4").unwrap(), kube: self.kube, namespace: SYSTEM };
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/outrigger-test-api");
        std::thread::scope(|scope| {
            let said = scope.spawn(|| helm.succeed(&["test", "outrigger", "--timeout", "60s"]));
            let stored = wait_for("Helm to make its pod", SOON, || {
                self.kube.get(&path).map_err(|error| error.to_string())?.ok_or_else(|| path.clone())
            });
            let pod = self.run_stored(&stored, "test", "default");
            let state = pod.wait("to be over", SOON, |state| state.is_over);
            assert_eq!(state.phase, Phase::Succeeded, "{state:#?}");
            self.report(&pod, SYSTEM, "Succeeded");
            said.join().unwrap()
        })
    }

    /// Folders for the Secrets, ConfigMaps and projections of a pod.
    fn volumes(&self, pod: &Value, namespace: &str) -> BTreeMap<String, PathBuf> {
        let mut folders = BTreeMap::new();
        for volume in pod.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten() {
            let name = text(volume, "/name");
            if let Some(path) = volume.pointer("/hostPath/path").and_then(Value::as_str) {
                let folder = node_folder(self.scratch.path(), path);
                std::fs::create_dir_all(&folder).unwrap();
                folders.insert(name, folder);
                continue;
            }
            let (kind, object) = match (volume.get("secret"), volume.get("configMap")) {
                (Some(secret), _) => ("secrets", text(secret, "/secretName")),
                (_, Some(map)) => ("configmaps", text(map, "/name")),
                _ => continue,
            };
            let path = format!("/api/v1/namespaces/{namespace}/{kind}/{object}");
            let stored = self.kube.get(&path).unwrap().unwrap_or_else(|| panic!("{path} is not there"));
            let folder = self.scratch.path().join(format!("{}-{name}", text(pod, "/metadata/name")));
            std::fs::create_dir_all(&folder).unwrap();
            for (key, value) in stored["data"].as_object().into_iter().flatten() {
                let value = value.as_str().unwrap_or_default();
                let bytes = if kind == "secrets" { base64(value) } else { value.as_bytes().to_vec() };
                std::fs::write(folder.join(key), bytes).unwrap();
            }
            folders.insert(name, folder);
        }
        folders
    }

    /// A Service whose endpoints the controller keeps; its address and port.
    pub(crate) fn service(&self, namespace: &str, name: &str, port: u16, target: u16) -> SocketAddr {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": namespace },
            "spec": {
                "selector": { "app": name },
                "ports": [{ "name": "http", "port": port, "targetPort": target, "appProtocol": "http" }],
            },
        });
        let stored = self.kube.apply(&service).unwrap();
        let address: Ipv4Addr = text(&stored, "/spec/clusterIP").parse().unwrap();
        (address, port).into()
    }

    fn pod(namespace: &str, app: &str, name: &str, spec: Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": namespace, "labels": { "app": app } },
            "spec": spec,
        })
    }

    /// A pod of an application that says its name at `/health`; asked to end, it does so at once.
    pub(crate) fn server(&self, namespace: &str, app: &str, name: &str) -> Arc<Pod> {
        self.annotated_server(namespace, app, name, &[])
    }

    /// As [`Mesh::server`], with settings of its sidecar.
    pub(crate) fn annotated_server(
        &self,
        namespace: &str,
        app: &str,
        name: &str,
        annotations: &[(&str, &str)],
    ) -> Arc<Pod> {
        let script =
            format!("trap 'exit 0' TERM; outrigger-shop app --role stock --name {name} --listen 0.0.0.0:8080 & wait");
        let container = json!({
            "name": "app", "image": "shop:1", "command": ["/bin/sh", "-c", script],
            "ports": [{ "containerPort": 8080 }],
            "readinessProbe": { "httpGet": { "path": "/health", "port": 8080 }, "periodSeconds": 1 },
            "securityContext": { "runAsUser": 1000, "runAsGroup": 1000 },
        });
        let spec = json!({ "serviceAccountName": "default", "containers": [container] });
        let mut pod = Self::pod(namespace, app, name, spec);
        pod["metadata"]["annotations"] =
            annotations.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))).collect();
        self.run(&pod, app, "default")
    }

    /// A pod as a Job makes it.
    pub(crate) fn job(&self, namespace: &str, name: &str, script: &str) -> Arc<Pod> {
        let container = json!({ "name": "app", "image": "shop:1", "command": ["/bin/sh", "-c", script] });
        let spec = json!({ "restartPolicy": "Never", "serviceAccountName": "default", "containers": [container] });
        let mut pod = Self::pod(namespace, "job", name, spec);
        pod["metadata"]["ownerReferences"] =
            json!([{ "apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": "0", "controller": true }]);
        self.run(&pod, "job", "default")
    }

    /// Takes a pod that is over out of the API and the list.
    pub(crate) fn forget(&self, name: &str) {
        let gone = self.list(|listed| {
            let at = listed.iter().position(|listing| listing.pod.name == name);
            at.map(|at| listed.remove(at))
        });
        if let Some(listing) = gone {
            self.kube.delete(&format!("/api/v1/namespaces/{}/pods/{name}", listing.namespace)).unwrap();
        }
    }

    /// What a pod's sidecar tells of itself at its health port.
    pub(crate) fn metrics(&self, pod: &Pod) -> String {
        let address = (pod.place.address, 15_020).into();
        let answer = Downstream::connect(address).and_then(|mut client| client.get("/metrics")).unwrap();
        String::from_utf8_lossy(&answer.body).into_owned()
    }

    /// Waits until a pod's requests to an address are answered.
    pub(crate) fn wait_served(&self, from: &Pod, address: SocketAddr) {
        wait_for("the service to answer", SOON, || {
            let answer =
                from.place.inside(|| Downstream::connect(address).and_then(|mut client| client.get("/health")));
            match answer {
                Ok(answer) if answer.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
}

/// The part of the endpoint slice controller that counts here: one slice a service, with what its pods say of themselves.
fn keep_slices(kube: &Kube, listed: &Listed, is_over: &AtomicBool) {
    let services = [
        Slices {
            namespace: SYSTEM,
            service: CONTROL.to_owned(),
            ports: json!([
                { "name": "api", "port": 15_080 }, { "name": "xds", "port": 15_010 }, { "name": "webhook", "port": 15_017 },
            ]),
        },
        Slices { namespace: "shop", service: "orders".to_owned(), ports: json!([{ "name": "http", "port": 8080 }]) },
    ];
    let mut written: BTreeMap<String, Value> = BTreeMap::new();
    while !is_over.load(Ordering::Relaxed) {
        for slices in &services {
            let endpoints: Vec<Value> = {
                let listed = listed.lock().unwrap_or_else(PoisonError::into_inner);
                let own =
                    listed.iter().filter(|one| one.service == slices.service && one.namespace == slices.namespace);
                own.map(|listing| endpoint(&listing.pod)).collect()
            };
            let ports: Vec<Value> = slices.ports.as_array().into_iter().flatten().cloned().collect();
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {
                    "name": format!("{}-1", slices.service), "namespace": slices.namespace,
                    "labels": { "kubernetes.io/service-name": slices.service },
                },
                "ports": ports, "endpoints": endpoints,
            });
            // Its namespace may not be there yet.
            if written.get(&slices.service) != Some(&slice) && kube.apply(&slice).is_ok() {
                written.insert(slices.service.clone(), slice);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn endpoint(pod: &Pod) -> Value {
    let state = pod.state();
    let serving = state.phase == Phase::Running;
    json!({
        "addresses": [pod.place.address.to_string()],
        "conditions": {
            "ready": state.is_ready, "serving": serving && (state.is_ready || state.is_terminating), "terminating": state.is_terminating,
        },
        "targetRef": { "kind": "Pod", "name": pod.name },
    })
}

fn base64(text: &str) -> Vec<u8> {
    use std::io::Write as _;
    let mut child = Command::new("base64")
        .arg("-d")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap().stdout
}
