//! Purpose: a container of a pod's spec as an OCI bundle, field by field as a container runtime under a kubelet does it.
//!
//! Shape: [`config`] is pure: the pod, one of its containers and what is known of the node give the `config.json` that
//! `crun` runs. An image is a folder of programs over the file system of this machine, read-only where the spec says.
//!
//! Limits: what the pods of these tests use. A field that would change what is run and is not read here is refused.
//!
//! Source: OCI runtime specification 1.0; Kubernetes, container runtime interface; containerd's default capabilities.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// What a container gets when nothing is said (containerd).
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
const IO_URING: [&str; 3] = ["io_uring_setup", "io_uring_enter", "io_uring_register"];
const CONTAINER_FIELDS: [&str; 18] = [
    "name",
    "image",
    "imagePullPolicy",
    "command",
    "args",
    "env",
    "ports",
    "resources",
    "volumeMounts",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
    "securityContext",
    "restartPolicy",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "workingDir",
];

/// What a node knows of a pod that runs on it.
#[derive(Debug, Clone)]
pub struct Site {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// File of its network namespace.
    pub network: PathBuf,
    /// Its hosts file.
    pub hosts: PathBuf,
    /// Folders of the pod's volumes, by name.
    pub volumes: BTreeMap<String, PathBuf>,
    /// The service account's files, where they are mounted.
    pub account: Option<PathBuf>,
    /// Where the API is, for the environment.
    pub api: Option<(Ipv4Addr, u16)>,
    /// Folder of programs by image, without its tag.
    pub images: BTreeMap<String, PathBuf>,
    /// A profile from which the runtime's own default follows.
    pub runtime_profile: Value,
    /// The kubelet's folder of seccomp profiles.
    pub profiles: PathBuf,
    /// Folder of empty folders to mount on.
    pub roots: PathBuf,
}

impl Site {
    /// Where a container's files are mounted. Its own: the runtime makes what it mounts on, and two that start at once in one
    /// would be in each other's way.
    pub fn root(&self, container: &str) -> PathBuf {
        self.roots.join(container)
    }
}

/// The configuration of a container; refused when the kubelet would not start it, or this one cannot.
pub fn config(pod: &Value, container: &Value, site: &Site) -> Result<Value, String> {
    let name = text(container, "/name");
    let fields = container.as_object().ok_or("a container is an object")?;
    if let Some(unread) = fields.keys().find(|field| !CONTAINER_FIELDS.contains(&field.as_str())) {
        return Err(format!("container {name}: field {unread} is not read here"));
    }
    let context = |field: &str| {
        let own = container.pointer(&format!("/securityContext/{field}"));
        own.or_else(|| pod.pointer(&format!("/spec/securityContext/{field}"))).filter(|value| !value.is_null())
    };
    let uid = context("runAsUser").and_then(Value::as_u64).unwrap_or(0);
    let gid = context("runAsGroup").and_then(Value::as_u64).unwrap_or(0);
    if uid == 0 && context("runAsNonRoot") == Some(&json!(true)) {
        return Err(format!("container {name}: runAsNonRoot, and the image runs as root"));
    }
    let env = environment(pod, container, site)?;
    let image = text(container, "/image").rsplit_once(':').map_or(text(container, "/image"), |(image, _)| image);
    let programs =
        site.images.get(image).ok_or_else(|| format!("container {name}: no image {image:?} on this node"))?;
    let capabilities = capabilities(container);
    let is_read_only = container.pointer("/securityContext/readOnlyRootFilesystem") == Some(&json!(true));
    let escalates = container.pointer("/securityContext/allowPrivilegeEscalation") != Some(&json!(false));
    let variables: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    Ok(json!({
        "ociVersion": "1.0.2",
        "hostname": text(pod, "/metadata/name"),
        "root": { "path": site.root(name), "readonly": is_read_only },
        "process": {
            "terminal": false,
            "cwd": "/",
            "user": { "uid": uid, "gid": gid },
            "args": command(container, &env),
            "env": variables,
            "noNewPrivileges": !escalates,
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
        },
        "mounts": mounts(container, site, programs)?,
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                { "type": "network", "path": site.network },
            ],
            "seccomp": seccomp(context("seccompProfile"), site)?,
        },
    }))
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// Its variables in order; `$(NAME)` of an earlier one is replaced.
fn environment(pod: &Value, container: &Value, site: &Site) -> Result<Vec<(String, String)>, String> {
    let mut env = vec![("PATH".to_owned(), "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned())];
    if let Some((address, port)) = site.api {
        env.push(("KUBERNETES_SERVICE_HOST".to_owned(), address.to_string()));
        env.push(("KUBERNETES_SERVICE_PORT".to_owned(), port.to_string()));
    }
    for variable in list(container, "/env") {
        let name = text(variable, "/name");
        let value = match variable.pointer("/valueFrom") {
            None => expand(text(variable, "/value"), &env),
            Some(from) => {
                downward(pod, container, from, site.address).map_err(|why| format!("variable {name}: {why}"))?
            }
        };
        env.push((name.to_owned(), value));
    }
    Ok(env)
}

/// Fills a folder with the files of a `downwardAPI` volume.
pub(super) fn project(pod: &Value, volume: &Value, address: Ipv4Addr, folder: &Path) -> Result<(), String> {
    for item in list(volume, "/downwardAPI/items") {
        let content = downward(pod, &Value::Null, item, address)?;
        let file = folder.join(text(item, "/path"));
        std::fs::write(&file, content).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(())
}

fn downward(pod: &Value, container: &Value, from: &Value, address: Ipv4Addr) -> Result<String, String> {
    if let Some(wanted) = from.pointer("/resourceFieldRef") {
        let of = text(wanted, "/resource");
        let pointer = format!("/resources/{}", of.replace('.', "/"));
        // Without a limit, a node's whole capacity is told; these nodes have two CPUs and 4 GiB.
        let whole = if of.ends_with("cpu") { "2" } else { "4294967296" };
        let amount = container.pointer(&pointer).and_then(Value::as_str).unwrap_or(whole);
        return Ok(match (wanted["divisor"] == "1m", amount.strip_suffix('m')) {
            (true, Some(milli)) => milli.to_owned(),
            (true, None) => format!("{amount}000"),
            (false, _) => amount.to_owned(),
        });
    }
    let path = text(from, "/fieldRef/fieldPath");
    let keyed = |map: &str| {
        let key = path.strip_prefix(&format!("metadata.{map}['"))?.strip_suffix("']")?;
        Some(pod["metadata"][map][key].as_str().unwrap_or_default().to_owned())
    };
    Ok(match path {
        "metadata.name" => text(pod, "/metadata/name").to_owned(),
        "metadata.namespace" => text(pod, "/metadata/namespace").to_owned(),
        "metadata.uid" => text(pod, "/metadata/uid").to_owned(),
        "spec.serviceAccountName" => match text(pod, "/spec/serviceAccountName") {
            "" => "default".to_owned(),
            name => name.to_owned(),
        },
        "spec.nodeName" => "node".to_owned(),
        "status.podIP" | "status.podIPs" => address.to_string(),
        "status.hostIP" => "198.18.0.1".to_owned(),
        _ => keyed("annotations").or_else(|| keyed("labels")).ok_or_else(|| format!("no field {path:?}"))?,
    })
}

/// Kubernetes' expansion: `$(NAME)` of a known variable, `$$` for a dollar; the rest stays.
fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let named = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        let known = named.and_then(|(name, after)| {
            let value = env.iter().rev().find(|(known, _)| known == name)?;
            Some((&value.1, after))
        });
        match known {
            Some((value, after)) => {
                out.push_str(value);
                rest = after;
            }
            None if rest.starts_with('$') => {
                out.push('$');
                rest = &rest[1..];
            }
            None => out.push('$'),
        }
    }
    out + rest
}

fn command(container: &Value, env: &[(String, String)]) -> Vec<String> {
    let words = list(container, "/command").chain(list(container, "/args"));
    words.filter_map(Value::as_str).map(|word| expand(word, env)).collect()
}

fn capabilities(container: &Value) -> Vec<String> {
    let named = |field: &str| -> Vec<String> {
        let pointer = format!("/securityContext/capabilities/{field}");
        list(container, &pointer).filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let dropped = named("drop");
    let mut kept: Vec<String> = match dropped.iter().any(|name| name == "ALL") {
        true => Vec::new(),
        false => DEFAULT_CAPABILITIES.iter().map(ToString::to_string).collect(),
    };
    kept.retain(|name| !dropped.iter().any(|other| *name == format!("CAP_{other}")));
    kept.extend(named("add").iter().map(|name| format!("CAP_{name}")));
    kept
}

fn mounts(container: &Value, site: &Site, programs: &Path) -> Result<Vec<Value>, String> {
    let special = |at: &str, kind: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
    let bind = |at: &str, from: &Path, mode: &str| json!({ "destination": at, "type": "bind", "source": from, "options": ["rbind", "nosuid", mode] });
    let mut mounts = vec![
        special("/proc", "proc", &[]),
        special("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        special("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        special("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    // The image's file system; a link to another of these folders is one here too.
    for folder in ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc"] {
        if Path::new(folder).exists() {
            mounts.push(bind(folder, Path::new(folder), "ro"));
        }
    }
    mounts.push(bind("/usr/local/bin", programs, "ro"));
    mounts.push(bind("/etc/hosts", &site.hosts, "ro"));
    if let Some(account) = &site.account {
        mounts.push(bind("/var/run/secrets/kubernetes.io/serviceaccount", account, "ro"));
    }
    for mount in list(container, "/volumeMounts") {
        let volume = text(mount, "/name");
        let folder = site.volumes.get(volume).ok_or_else(|| format!("no volume {volume:?}"))?;
        let mode = if mount["readOnly"] == json!(true) { "ro" } else { "rw" };
        let from = match text(mount, "/subPath") {
            "" => folder.clone(),
            path => folder.join(path),
        };
        mounts.push(bind(text(mount, "/mountPath"), &from, mode));
    }
    Ok(mounts)
}

/// The filter of a container. The runtime's own default is without io_uring, as containerd's is.
fn seccomp(profile: Option<&Value>, site: &Site) -> Result<Value, String> {
    let installed = |name: &str| {
        let text =
            std::fs::read_to_string(site.profiles.join(name)).map_err(|error| format!("profile {name:?}: {error}"))?;
        serde_json::from_str(&text).map_err(|error| format!("profile {name:?}: {error}"))
    };
    match profile.map(|profile| text(profile, "/type")) {
        Some("Localhost") => installed(text(profile.unwrap_or(&Value::Null), "/localhostProfile")),
        Some("RuntimeDefault") => {
            let mut profile = site.runtime_profile.clone();
            let rules = profile["syscalls"].as_array_mut().ok_or("a profile without rules")?;
            for names in rules.iter_mut().filter_map(|rule| rule["names"].as_array_mut()) {
                names.retain(|name| !IO_URING.iter().any(|call| name == call));
            }
            rules.retain(|rule| rule["names"].as_array().is_some_and(|names| !names.is_empty()));
            Ok(profile)
        }
        Some("Unconfined") | None => Ok(Value::Null),
        Some(other) => Err(format!("no seccomp profile of type {other:?}")),
    }
}
