//! `outriggerctl`: push policy, see what runs, wait until it does.

mod args;
mod client;
mod commands;
mod inject;
mod lines;
mod table;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    match commands::run(&args) {
        Ok(code) => code,
        Err(failure) => {
            for line in failure.lines {
                eprintln!("outriggerctl: {line}");
            }
            ExitCode::from(failure.code)
        }
    }
}
