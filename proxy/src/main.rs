//! The sidecar: reads its settings and bootstrap, chooses its I/O driver, and runs.

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};
use outrigger_proxy::app::{self, Failure};
use outrigger_proxy::bootstrap::{self, Settings};
use outrigger_proxy::intercept::{self, Intercept, InterceptError};

#[global_allocator]
static ALLOCATOR: outrigger_reactor::Allocator = outrigger_reactor::Allocator;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Refused(reason)) => {
            eprintln!("outrigger-proxy: {reason}");
            ExitCode::from(2)
        }
        Err(Failure::Broke(reason)) => {
            eprintln!("outrigger-proxy: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// The proxy, or the sub-command that captures connections for it: the same image serves both.
fn run() -> Result<(), Failure> {
    let command = Settings::command()
        .subcommand(Intercept::command())
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true)
        .disable_help_subcommand(true);
    let matches = command.get_matches();
    if let Some((_, matches)) = matches.subcommand() {
        let wanted = Intercept::from_arg_matches(matches).unwrap_or_else(|error| error.exit());
        return intercept::run(&wanted).map_err(|error| match error {
            InterceptError::Broke(reason) => Failure::Broke(reason),
            InterceptError::Refused(reason) => Failure::Refused(reason),
        });
    }
    start(&Settings::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()))
}

fn start(settings: &Settings) -> Result<(), Failure> {
    let refused = |error: &dyn std::fmt::Display| Failure::Refused(error.to_string());
    let log = app::LogLevel::start(&settings.log_level, settings.log_format).map_err(|error| refused(&error))?;
    let (file, text) = (settings.config.as_deref(), settings.config_yaml.as_deref());
    let bootstrap = bootstrap::load(file, text).map_err(|errors| refused(&errors))?;
    if settings.check {
        let name = file.map_or_else(|| "--config-yaml".to_owned(), |file| file.display().to_string());
        println!("{name}: configuration is fine");
        return Ok(());
    }
    let probe = outrigger_reactor::probe(app::io_choice(settings.io)).map_err(|error| refused(&error))?;
    tracing::info!(driver = probe.driver.as_str(), kernel = %probe.kernel, "I/O driver: {}", probe.reason);
    app::run(settings, bootstrap, probe, log)
}
