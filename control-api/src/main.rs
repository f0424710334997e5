//! `outrigger-control`: flags → settings → app → run.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use outrigger_control::app::{App, start_logging, wait_for_signal};
use outrigger_control::settings::{Args, Settings};

const REFUSED: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    let settings = match Settings::resolve(&args, |name| std::env::var(name).ok()) {
        Ok(settings) => settings,
        Err(error) => return report(&error.into(), REFUSED),
    };
    start_logging(&settings);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime.context("cannot start the runtime") {
        Ok(runtime) => runtime,
        Err(error) => return report(&error, 1),
    };
    let code = runtime.block_on(async {
        match App::start(&settings).await {
            Err(error) => {
                let code = if error.is_refusal() { REFUSED } else { 1 };
                report(&error.into(), code)
            }
            Ok(app) => match app.run(wait_for_signal()).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => report(&error.into(), 1),
            },
        }
    });
    // A disk that hangs must not keep a stopped process alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    code
}

fn report(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("outrigger-control: {error:#}");
    ExitCode::from(code)
}
