//! Purpose: flags and `control.yaml` → one value that is ready to run.
//! Shape: [`Args`] as typed, the file as a document walked with the path cursor; a flag wins over
//! the file, the file over the default.
//! Errors: [`SettingsError`], each with its place and a remedy; the program exits with 2.
//! Limits: beyond loopback the API needs a token, or the program does not start.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};

use crate::inject::InjectorConfig;
use crate::model::cursor::{Cursor, Report};
use crate::model::document::{Syntax, split_documents};
use crate::model::object::{LABEL_RULE, is_dns_label};
use crate::model::problem::Problem;
use crate::webhook::{WebhookArgs, WebhookSettings};

const TOKEN_BYTES_MIN: usize = 16;

const EXAMPLES: &str = "\
Examples:
  outrigger-control
      API on 127.0.0.1:15080, xDS on 127.0.0.1:15010, policy in the XDG state folder
  outrigger-control --api 127.0.0.1:0 --xds 127.0.0.1:0 --store ./policy.redb
      free ports; the line \"outrigger-control ready api=… xds=…\" says which
  outrigger-control --api 0.0.0.0:15080 --token-file /etc/outrigger/token
      beyond loopback, with a token

Exit codes: 0 stopped by a signal, 1 failed while running, 2 refused its input";

/// Outrigger's control plane: stores policy and pushes it to the proxies over xDS.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "outrigger-control", version, after_help = EXAMPLES)]
pub struct Args {
    /// Settings file (YAML); every flag below can be in it.
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the API listens [default: 127.0.0.1:15080].
    #[arg(long, value_name = "ADDR")]
    pub api: Option<SocketAddr>,
    /// Where proxies connect [default: 127.0.0.1:15010].
    #[arg(long, value_name = "ADDR")]
    pub xds: Option<SocketAddr>,
    /// Policy store: a file, or the word kubernetes for the cluster itself
    /// [default: outrigger/policy.redb in the XDG state folder].
    #[arg(long, value_name = "PATH|kubernetes")]
    pub store: Option<PathBuf>,
    /// Where Services come from beside stored policy; --store kubernetes has them anyway.
    #[arg(long, value_name = "REGISTRY")]
    pub registry: Option<Registry>,
    /// The control plane's own namespace in the cluster [default: the service account's].
    #[arg(long, value_name = "NAME")]
    pub kube_namespace: Option<String>,
    /// File with the token that API callers must send.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The injector's webhook.
    #[command(flatten)]
    pub webhook: WebhookArgs,
    /// What is logged: error, warn, info, debug, trace, or a filter such as info,h2=debug
    /// [default: info].
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// How it is logged [default: text].
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// Where Services come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Registry {
    /// Services and EndpointSlices of the cluster that we run in, or that KUBECONFIG names.
    Kubernetes,
}

/// Where policy is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreChoice {
    /// In a file of our own.
    File(PathBuf),
    /// In the cluster.
    Kubernetes,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Ready to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the API listens.
    pub api: SocketAddr,
    /// Where proxies connect.
    pub xds: SocketAddr,
    /// Where policy is kept.
    pub store: StoreChoice,
    /// Whether Services of the cluster are Upstreams.
    pub has_registry: bool,
    /// Our own namespace in the cluster, if it was told.
    pub kube_namespace: Option<String>,
    /// What API callers must send.
    pub token: Option<String>,
    /// The webhook, if there is one, and what it puts into pods.
    pub webhook: Option<(WebhookSettings, InjectorConfig)>,
    /// The log filter.
    pub log_level: String,
    /// How it is logged.
    pub log_format: LogFormat,
}

/// Why the settings were refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The API would be open to the network without a token.
    #[error(
        "--api {0} is beyond loopback and there is no token, so anybody there could change policy; \
         add --token-file FILE with a secret of {TOKEN_BYTES_MIN} characters or more, or listen on 127.0.0.1"
    )]
    OpenToAll(SocketAddr),
    /// A file could not be read.
    #[error("cannot read {}: {reason}; {remedy}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The settings file holds something wrong.
    #[error("{}", lines(path, problems))]
    Refused {
        /// Which file.
        path: PathBuf,
        /// Every problem.
        problems: Vec<Problem>,
    },
    /// The token is too easy to guess.
    #[error("{} holds a token of {length} characters; use {TOKEN_BYTES_MIN} or more", path.display())]
    WeakToken {
        /// Which file.
        path: PathBuf,
        /// How long it is.
        length: usize,
    },
    /// The webhook's flags contradict each other.
    #[error("{0}")]
    Webhook(String),
    /// There is no place for the store.
    #[error("neither XDG_STATE_HOME nor HOME is set; say where the store is with --store PATH")]
    NoStateFolder,
    /// The log filter does not parse.
    #[error("--log-level {0:?} is not a level or filter: use error, warn, info, debug or trace")]
    LogLevel(String),
}

fn lines(path: &Path, problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(|problem| format!("{}: {problem}", path.display())).collect();
    lines.join("\n")
}

impl Settings {
    /// Puts flags, file and defaults together. `variable` reads the environment.
    pub fn resolve(args: &Args, variable: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let file = match &args.config {
            Some(path) => read_file(path)?,
            None => Args::default(),
        };
        let api = args.api.or(file.api).unwrap_or(([127, 0, 0, 1], 15_080).into());
        let token_file = args.token_file.as_ref().or(file.token_file.as_ref());
        let token = token_file.map(|path| read_token(path)).transpose()?;
        if token.is_none() && !api.ip().is_loopback() {
            return Err(SettingsError::OpenToAll(api));
        }
        let store = match args.store.clone().or(file.store) {
            Some(path) if path == Path::new("kubernetes") => StoreChoice::Kubernetes,
            Some(path) => StoreChoice::File(path),
            None => StoreChoice::File(state_folder(variable)?.join("outrigger/policy.redb")),
        };
        let has_registry = store == StoreChoice::Kubernetes || args.registry.or(file.registry).is_some();
        let webhook = args.webhook.clone().or(file.webhook);
        let injector = webhook.injector.as_ref().map(|path| read_injector(path)).transpose()?.unwrap_or_default();
        let webhook = webhook.resolve().map_err(SettingsError::Webhook)?.map(|settings| (settings, injector));
        let log_level = args.log_level.clone().or(file.log_level).unwrap_or_else(|| "info".into());
        if !is_log_filter(&log_level) {
            return Err(SettingsError::LogLevel(log_level));
        }
        Ok(Self {
            api,
            xds: args.xds.or(file.xds).unwrap_or(([127, 0, 0, 1], 15_010).into()),
            store,
            has_registry,
            kube_namespace: args.kube_namespace.clone().or(file.kube_namespace),
            token,
            webhook,
            log_level,
            log_format: args.log_format.or(file.log_format).unwrap_or(LogFormat::Text),
        })
    }
}

/// A level, or a filter of `target=level` parts. The filter's own reader takes any word for a target.
pub(crate) fn is_log_filter(text: &str) -> bool {
    let is_level = |word: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&word);
    let parts = text.split(',').all(|part| match part.split_once('=') {
        Some((_, level)) => is_level(level),
        None => is_level(part),
    });
    parts && text.parse::<tracing_subscriber::filter::Targets>().is_ok()
}

fn state_folder(variable: impl Fn(&str) -> Option<String>) -> Result<PathBuf, SettingsError> {
    let set = |name: &str| variable(name).filter(|value| Path::new(value).is_absolute());
    if let Some(folder) = set("XDG_STATE_HOME") {
        return Ok(PathBuf::from(folder));
    }
    set("HOME").map(|home| Path::new(&home).join(".local/state")).ok_or(SettingsError::NoStateFolder)
}

fn read_text(path: &Path, remedy: &'static str) -> Result<String, SettingsError> {
    std::fs::read_to_string(path).map_err(|error| SettingsError::Unreadable {
        path: path.to_owned(),
        reason: error.to_string(),
        remedy,
    })
}

fn read_token(path: &Path) -> Result<String, SettingsError> {
    let text = read_text(path, "make it with: head -c 32 /dev/urandom | base64 > FILE")?;
    let token = text.trim();
    if token.len() < TOKEN_BYTES_MIN {
        return Err(SettingsError::WeakToken { path: path.to_owned(), length: token.len() });
    }
    Ok(token.to_owned())
}

/// Reads the injector's configuration.
pub fn read_injector(path: &Path) -> Result<InjectorConfig, SettingsError> {
    let text = read_text(path, "check the path given with --injector-config")?;
    InjectorConfig::parse(&text).map_err(|problems| SettingsError::Refused { path: path.to_owned(), problems })
}

fn read_file(path: &Path) -> Result<Args, SettingsError> {
    let text = read_text(path, "check the path given with -c")?;
    let refused = |problems| SettingsError::Refused { path: path.to_owned(), problems };
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Args::default());
    }
    let (documents, problems) = split_documents(&text, Syntax::Yaml);
    let [document] = documents.as_slice() else {
        let several = Problem { message: "must hold one document".into(), ..Problem::default() };
        return Err(refused(if problems.is_empty() { vec![several] } else { problems }));
    };
    let report = Report::new(None);
    let args = walk_file(&Cursor::root(&document.value, &report));
    let problems: Vec<Problem> = problems.into_iter().chain(report.into_problems()).collect();
    match args {
        Some(args) if problems.is_empty() => Ok(args),
        _ => Err(refused(problems)),
    }
}

fn walk_file(at: &Cursor<'_>) -> Option<Args> {
    let fields =
        at.fields(&["api", "xds", "store", "registry", "kubeNamespace", "tokenFile", "webhook", "injector", "log"])?;
    let path = |name: &str| fields.optional(name)?.string().map(PathBuf::from);
    let address = |name: &str| {
        let at = fields.optional(name)?;
        let address = at.string()?.parse().ok();
        if address.is_none() {
            at.refuse_with("must be an IP address and a port", "write it like \"127.0.0.1:15080\"");
        }
        address
    };
    let log = fields.optional("log").and_then(|at| at.fields(&["level", "format"]));
    let format = |at: Cursor<'_>| at.choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    Some(Args {
        config: None,
        api: address("api"),
        xds: address("xds"),
        store: path("store"),
        registry: fields.optional("registry").and_then(|at| at.choice(&[("kubernetes", Registry::Kubernetes)])),
        kube_namespace: fields.optional("kubeNamespace").and_then(|at| at.text(is_dns_label, LABEL_RULE)),
        token_file: path("tokenFile"),
        webhook: WebhookArgs::walk(fields.optional("webhook"), fields.optional("injector")),
        log_level: log.as_ref().and_then(|log| log.optional("level")?.string().map(str::to_owned)),
        log_format: log.as_ref().and_then(|log| log.optional("format")).and_then(format),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn beyond_loopback_without_a_token_it_does_not_start() {
        let args = Args::parse_from(["outrigger-control", "--api", "0.0.0.0:0", "--store", "x"]);
        let error = Settings::resolve(&args, nothing).expect_err("must not start");
        assert!(error.to_string().contains("--token-file"), "{error}");
    }

    #[test]
    fn the_store_is_in_the_state_folder() {
        let home = |name: &str| (name == "HOME").then(|| "/home/ops".to_owned());
        let settings = Settings::resolve(&Args::default(), home).expect("defaults");
        assert_eq!(settings.store, StoreChoice::File("/home/ops/.local/state/outrigger/policy.redb".into()));
        assert!(settings.api.ip().is_loopback() && settings.xds.ip().is_loopback());
        let error = Settings::resolve(&Args::default(), nothing).expect_err("no folder");
        assert!(error.to_string().contains("--store"), "{error}");
    }
}
