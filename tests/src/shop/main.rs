//! Purpose: the flash sale of `make run`: `outrigger-shop demo` builds a mesh of real processes on loopback, sells
//! under load while policy changes and a replica dies, and says what became of every order;
//! `outrigger-shop app` is one of the shop's applications.
//!
//! Shape: `app` the applications · `mesh` the processes · `sale` the load and its count · `story` the plot ·
//! `report` the table.
//!
//! Errors: exit code 0 when nothing was lost, 1 when something was or a part failed, 2 for a wrong command line.

#![forbid(unsafe_code)]

mod app;
mod mesh;
mod report;
mod sale;
mod story;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use outrigger_tests::world::Io;

/// The flash-sale shop: a service mesh on this machine, under load.
#[derive(Debug, Parser)]
#[command(name = "outrigger-shop", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one application of the shop.
    App(AppArgs),
    /// Run the whole shop and its story.
    Demo(DemoArgs),
}

/// One application.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct AppArgs {
    /// What it does.
    #[arg(long, value_enum)]
    role: app::Role,
    /// Name of this replica.
    #[arg(long)]
    name: String,
    /// Version it says it has.
    #[arg(long, default_value = "v1")]
    release: String,
    /// Where it listens.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

/// The story.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DemoArgs {
    /// Orders offered a second.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(50..=2000))]
    rate: u32,
    /// I/O driver of the sidecars.
    #[arg(long, value_enum, default_value = "auto")]
    io: IoChoice,
    /// Keep everything up afterwards, under a little load, until Ctrl-C.
    #[arg(long)]
    stay: bool,
    /// Print the result as one JSON object; the story goes to standard error.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum IoChoice {
    Auto,
    Epoll,
    Uring,
}

impl From<IoChoice> for Io {
    fn from(choice: IoChoice) -> Self {
        match choice {
            IoChoice::Auto => Self::Auto,
            IoChoice::Epoll => Self::Epoll,
            IoChoice::Uring => Self::Uring,
        }
    }
}

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::App(args) => app::run(&args).map(|()| true),
        Command::Demo(args) => story::run(&args),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("outrigger-shop: {error:#}");
            ExitCode::FAILURE
        }
    }
}
