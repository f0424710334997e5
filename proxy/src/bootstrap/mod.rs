//! **Purpose.** What the process is told at its start: the command line and an Envoy bootstrap.
//!
//! **Shape.** [`Settings`] is the command line; [`load`] reads the bootstrap, a file or a text or a text laid over a file,
//! into a [`Bootstrap`]: who we are, where the admin port is, the static resources already converted, and where the xDS
//! server is. [`Settings::worker_count`] asks the
//! kernel's files too.
//!
//! **Errors.** All at once: [`BootstrapErrors`] names the file, and for each problem the path (or line and column), the
//! value and the remedy.
//!
//! **Limits.** The file has at most 64 MiB; what the YAML and JSON readers bound besides is said there.
//!
//! **Source.** Envoy, `config.bootstrap.v3`. Differs: without an `admin` block the admin port is 127.0.0.1:15000; with
//! one that has no address there is none. The cluster of the xDS server serves that alone, not routes.
//!
//! **Tests.** Below, and golden error texts in `tests.rs`.

mod ads;
mod cpus;
mod errors;
mod health;
mod own;
mod settings;
#[cfg(test)]
mod tests;
mod workers;

pub use ads::AdsConfig;
pub use errors::{BootstrapErrors, Problem};
pub use health::HealthAddress;
pub use settings::{IoChoice, LogFormat, Settings, parse_span};
pub use workers::{WORKERS_MAX, WorkerCount, Workers};

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use envoy_types::pb::envoy::config::bootstrap::v3 as proto;
use envoy_types::pb::envoy::config::core::v3 as core;
use outrigger_xds_proto::json;
use prost::Message as _;

use crate::config::{Discovery, Resources};
use crate::convert;

const MAX_FILE_BYTES: u64 = 64 << 20;
const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15_000);

/// What the file says.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// Who this proxy is.
    pub node: Node,
    /// Where the admin port listens; `None`: nowhere.
    pub admin: Option<SocketAddr>,
    /// Listeners and clusters in the file itself.
    pub resources: Resources,
    /// The xDS server; `None`: the file is all there is.
    pub ads: Option<AdsConfig>,
    /// Paths of fields that were set and are not used.
    pub ignored: Vec<String>,
}

/// Who this proxy is, as it tells the xDS server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Its name among proxies.
    pub id: Arc<str>,
    /// The service it stands beside.
    pub cluster: Arc<str>,
    /// `region/zone/sub_zone`, empty when not said.
    pub locality: Arc<str>,
    /// The addresses of the workload beside it, as its metadata tells them; none: not told.
    pub addresses: Vec<IpAddr>,
    /// The whole message, with metadata, for the first request of a stream.
    pub message: core::Node,
}

/// What a bootstrap that came with the command line is called in errors.
const TEXT_NAME: &str = "--config-yaml";

/// Reads the file at `path` and lays `text` over it; either may be missing.
pub fn load(path: Option<&Path>, text: Option<&str>) -> Result<Bootstrap, BootstrapErrors> {
    let mut name = path.map(Path::to_owned);
    let mut whole = proto::Bootstrap::default();
    if let Some(path) = path {
        let text = read(path).map_err(|reason| BootstrapErrors::one(path, "", reason))?;
        whole = message(path, &text)?;
    }
    if let Some(text) = text {
        let over = message(Path::new(TEXT_NAME), text)?;
        // Merging is what decoding after another message does: what is set wins, lists are appended.
        let merged = whole.merge(&*over.encode_to_vec());
        merged.map_err(|error| BootstrapErrors::one(Path::new(TEXT_NAME), "", error.to_string()))?;
        let joint = |file: PathBuf| PathBuf::from(format!("{} with {TEXT_NAME}", file.display()));
        name = Some(name.map_or_else(|| PathBuf::from(TEXT_NAME), joint));
    }
    convert(&name.unwrap_or_default(), &whole)
}

/// As [`load`], from text that came from `path`.
pub fn parse(path: &Path, text: &str) -> Result<Bootstrap, BootstrapErrors> {
    convert(path, &message(path, text)?)
}

/// The message that a text is: JSON when its file is named so or it begins with a brace, else YAML.
fn message(path: &Path, text: &str) -> Result<proto::Bootstrap, BootstrapErrors> {
    let is_json = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => true,
        Some("yaml" | "yml") => false,
        // YAML in its flow form begins with a brace too.
        _ => text.trim_start().starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(),
    };
    let message: Result<proto::Bootstrap, _> = if is_json { json::from_json(text) } else { json::from_yaml(text) };
    message.map_err(|error| BootstrapErrors {
        file: path.to_owned(),
        problems: error.rejections().into_iter().map(|r| Problem { path: r.path, reason: r.reason }).collect(),
    })
}

fn convert(path: &Path, message: &proto::Bootstrap) -> Result<Bootstrap, BootstrapErrors> {
    let mut reader = Reader { problems: Vec::new(), ignored: Vec::new() };
    let bootstrap = reader.bootstrap(message);
    if reader.problems.is_empty() {
        Ok(bootstrap)
    } else {
        Err(BootstrapErrors { file: path.to_owned(), problems: reader.problems })
    }
}

fn read(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "no such file; name an existing bootstrap file with -c".to_owned(),
        std::io::ErrorKind::PermissionDenied => "may not be read; check its permissions".to_owned(),
        _ => format!("cannot be opened: {error}"),
    })?;
    let mut text = String::new();
    let length = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => "is not UTF-8 text; write YAML or JSON".to_owned(),
        std::io::ErrorKind::IsADirectory => "is a folder; name the bootstrap file in it".to_owned(),
        _ => format!("cannot be read: {error}"),
    })?;
    if length as u64 > MAX_FILE_BYTES {
        return Err(format!("has more than {MAX_FILE_BYTES} bytes"));
    }
    Ok(text)
}

/// Collects problems on the way.
struct Reader {
    problems: Vec<Problem>,
    ignored: Vec<String>,
}

impl Reader {
    fn refuse(&mut self, path: impl Into<String>, reason: impl Into<String>) {
        let path = path.into();
        // A field that the reader and the support table refuse is told once.
        if !self.problems.iter().any(|problem| problem.path == path) {
            self.problems.push(Problem { path, reason: reason.into() });
        }
    }

    fn bootstrap(&mut self, message: &proto::Bootstrap) -> Bootstrap {
        let ads = self.ads(message);
        let resources = self.resources(message, ads.as_ref());
        if ads.is_some() {
            let node = message.node.clone().unwrap_or_default();
            if node.id.is_empty() {
                self.refuse("node.id", "is empty; the xDS server knows this proxy by it");
            }
        }
        let admin = self.admin(message.admin.as_ref());
        let (unserved, ignored) = convert::unsupported_in_bootstrap(message);
        unserved.into_iter().for_each(|reason| self.refuse(reason.path, reason.problem));
        self.ignored.extend(ignored);
        Bootstrap {
            node: node(message.node.clone().unwrap_or_default()),
            admin,
            resources,
            ads,
            ignored: std::mem::take(&mut self.ignored),
        }
    }

    fn admin(&mut self, admin: Option<&proto::Admin>) -> Option<SocketAddr> {
        let Some(admin) = admin else { return Some(DEFAULT_ADMIN) };
        admin.address.as_ref()?;
        self.take("admin.address", convert::address(admin.address.as_ref()))
    }

    fn resources(&mut self, message: &proto::Bootstrap, ads: Option<&AdsConfig>) -> Resources {
        let mut resources = Resources::default();
        let Some(given) = &message.static_resources else { return resources };
        let mut taken = HashMap::new();
        for (at, cluster) in given.clusters.iter().enumerate() {
            let path = format!("static_resources.clusters[{at}]");
            if ads.is_some_and(|ads| *ads.cluster == cluster.name) {
                continue;
            }
            let Some(config) = self.take(&path, convert::cluster(&cluster.encode_to_vec())) else { continue };
            if ads.is_none() && matches!(config.discovery, Discovery::Eds(_)) {
                self.refuse(format!("{path}.eds_cluster_config"), NO_ADS);
            }
            if resources.clusters.contains_key(&config.name) {
                self.refuse(format!("{path}.name"), format!("cluster {:?} is there twice", cluster.name));
            }
            resources.clusters.insert(config.name.clone(), Arc::new(config));
        }
        for (at, listener) in given.listeners.iter().enumerate() {
            let path = format!("static_resources.listeners[{at}]");
            let Some(config) = self.take(&path, convert::listener(&listener.encode_to_vec())) else { continue };
            if ads.is_none() && config.named_routes().next().is_some() {
                self.refuse(path.as_str(), format!("its routes come by ads; {NO_ADS}"));
            }
            for address in config.addresses.iter().filter(|address| address.port() != 0) {
                // What is handed to a listener takes nothing from one that is bound.
                if let Some(owner) = taken.insert((config.capture.is_bound, *address), config.name.clone()) {
                    self.refuse(format!("{path}.address"), format!("{address} is taken by listener {owner:?}"));
                }
            }
            if resources.listeners.contains_key(&config.name) {
                self.refuse(format!("{path}.name"), format!("listener {:?} is there twice", listener.name));
            }
            resources.listeners.insert(config.name.clone(), Arc::new(config));
        }
        if !given.secrets.is_empty() {
            self.refuse("static_resources.secrets", "TLS is not served; remove them");
        }
        resources
    }

    /// Takes over what a conversion found, below `path`.
    fn take<T>(&mut self, path: &str, converted: convert::Converted<T>) -> Option<T> {
        self.ignored.extend(converted.ignored);
        match converted.result {
            Ok(value) => Some(value),
            Err(rejection) => {
                for reason in rejection.reasons {
                    let joint = if reason.path.is_empty() { "" } else { "." };
                    self.refuse(format!("{path}{joint}{}", reason.path), reason.problem);
                }
                if rejection.left_out > 0 {
                    self.refuse(path, format!("and {} more problems", rejection.left_out));
                }
                None
            }
        }
    }
}

const NO_ADS: &str = "set dynamic_resources.ads_config, or give it statically";

fn node(message: core::Node) -> Node {
    let locality = message.locality.clone().unwrap_or_default();
    let locality = format!("{}/{}/{}", locality.region, locality.zone, locality.sub_zone);
    Node {
        id: message.id.as_str().into(),
        cluster: message.cluster.as_str().into(),
        locality: locality.trim_end_matches('/').into(),
        addresses: own::addresses(message.metadata.as_ref()),
        message,
    }
}
