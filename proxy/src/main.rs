//! The sidecar: reads its settings and bootstrap, chooses its I/O driver, and runs.

use std::process::ExitCode;

use clap::Parser as _;
use outrigger_proxy::app::{self, Failure};
use outrigger_proxy::bootstrap::{self, Settings};

fn main() -> ExitCode {
    let settings = Settings::parse();
    match start(&settings) {
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

fn start(settings: &Settings) -> Result<(), Failure> {
    let refused = |error: &dyn std::fmt::Display| Failure::Refused(error.to_string());
    let log = app::LogLevel::start(&settings.log_level, settings.log_format).map_err(|error| refused(&error))?;
    let bootstrap = bootstrap::load(&settings.config).map_err(|errors| refused(&errors))?;
    if settings.check {
        println!("{}: configuration is fine", settings.config.display());
        return Ok(());
    }
    let probe = outrigger_reactor::probe(app::io_choice(settings.io)).map_err(|error| refused(&error))?;
    tracing::info!(driver = probe.driver.as_str(), kernel = %probe.kernel, "I/O driver: {}", probe.reason);
    app::run(settings, bootstrap, probe, log)
}
