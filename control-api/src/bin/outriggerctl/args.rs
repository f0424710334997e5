//! Purpose: the commands and their flags, with an example on each.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

const EXAMPLES: &str = "\
Examples:
  outriggerctl apply -f shop.yaml --wait
  outriggerctl get upstreams -n shop
  outriggerctl proxies

Exit codes: 0 fine, 1 failed while running (diff: there are differences), 2 refused its input";

/// Pushes policy to an Outrigger control plane and shows what runs.
#[derive(Debug, Parser)]
#[command(name = "outriggerctl", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Address of the control plane [default: $OUTRIGGER_SERVER, else http://127.0.0.1:15080].
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// File with the token to send [default: $OUTRIGGER_TOKEN_FILE].
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// One JSON value.
    Json,
    /// Aligned columns.
    Table,
    /// YAML documents that `apply` takes back.
    Yaml,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create or change objects, all or nothing.
    #[command(
        after_help = "Examples:\n  outriggerctl apply -f shop.yaml\n  outriggerctl apply -f shop.yaml --dry-run\n  cat shop.yaml | outriggerctl apply -f - --wait --timeout 10s"
    )]
    Apply {
        /// YAML or JSON file; - reads standard input. May be given several times.
        #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
        /// Only say what would change.
        #[arg(long)]
        dry_run: bool,
        /// Return when every connected proxy runs it.
        #[arg(long, conflicts_with = "dry_run")]
        wait: bool,
        /// How long to wait.
        #[arg(long, default_value = "30s", value_name = "DURATION", requires = "wait")]
        timeout: String,
    },
    /// Print a completion script for a shell.
    #[command(
        after_help = "Example:\n  outriggerctl completions bash > ~/.local/share/bash-completion/completions/outriggerctl"
    )]
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Print the definitions of our kinds for a Kubernetes cluster.
    #[command(after_help = "Example:\n  outriggerctl crds | kubectl apply --server-side -f -")]
    Crds,
    /// Take objects away, all or nothing.
    #[command(
        after_help = "Examples:\n  outriggerctl delete httproute orders -n shop\n  outriggerctl delete -f shop.yaml\n  outriggerctl delete upstream orders --force"
    )]
    Delete {
        /// Kind of the object.
        #[arg(required_unless_present = "files", conflicts_with = "files")]
        kind: Option<String>,
        /// Its name.
        #[arg(required_unless_present = "files", conflicts_with = "files")]
        name: Option<String>,
        /// Its namespace.
        #[arg(short = 'n', long, default_value = "default")]
        namespace: String,
        /// Delete the objects of this file instead.
        #[arg(short = 'f', long = "file", value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Delete even what others refer to; their requests are answered 503.
        #[arg(long)]
        force: bool,
    },
    /// Show how a file differs from what is stored; exit code 1 when it does.
    #[command(after_help = "Example:\n  outriggerctl diff -f shop.yaml")]
    Diff {
        /// YAML or JSON file; - reads standard input.
        #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
    },
    /// Show objects.
    #[command(
        after_help = "Examples:\n  outriggerctl get all\n  outriggerctl get httproutes -n shop\n  outriggerctl get upstream orders -o yaml"
    )]
    Get {
        /// AccessPolicy, GRPCRoute, HTTPRoute, MeshConfig, RateLimit, TrafficPolicy, Upstream (any case, singular or plural) or all.
        kind: String,
        /// Only this one.
        name: Option<String>,
        /// Namespace [default: all of them; with a name: default].
        #[arg(short = 'n', long)]
        namespace: Option<String>,
        /// How to print it.
        #[arg(short = 'o', long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Put sidecars into the workloads of a file, as the webhook does to their pods.
    #[command(
        after_help = "Examples:\n  outriggerctl inject -f deployment.yaml | kubectl apply -f -\n  kubectl get deploy orders -o yaml | outriggerctl inject -f -\n  outriggerctl inject --list-annotations"
    )]
    Inject {
        /// YAML or JSON file; - reads standard input. May be given several times.
        #[arg(short = 'f', long = "file", value_name = "FILE", required_unless_present = "list_annotations")]
        files: Vec<PathBuf>,
        /// The injector's configuration, as outrigger-control has it (key injector.yaml of the chart's ConfigMap).
        #[arg(long, value_name = "FILE")]
        injector_config: Option<PathBuf>,
        /// Namespace of objects that name none.
        #[arg(short = 'n', long, default_value = "default")]
        namespace: String,
        /// Print the annotations that pods can have, with their values, instead.
        #[arg(long, conflicts_with_all = ["files", "injector_config"])]
        list_annotations: bool,
        /// How to print it [default: yaml; of the list: table].
        #[arg(short = 'o', long, value_enum)]
        output: Option<Output>,
    },
    /// Show the connected proxies, what each runs and what it refused.
    #[command(after_help = "Examples:\n  outriggerctl proxies\n  outriggerctl proxies -o json")]
    Proxies {
        /// How to print it.
        #[arg(short = 'o', long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Wait until every connected proxy runs a revision.
    #[command(
        after_help = "Examples:\n  outriggerctl wait\n  outriggerctl wait --revision 12 --timeout 10s\n  outriggerctl wait --proxy gateway-0 --proxy orders-1"
    )]
    Wait {
        /// The revision [default: the newest].
        #[arg(long)]
        revision: Option<u64>,
        /// How long.
        #[arg(long, default_value = "30s", value_name = "DURATION")]
        timeout: String,
        /// Only this node, connected or not. May be given several times.
        #[arg(long = "proxy", value_name = "NODE")]
        proxies: Vec<String>,
    },
}
