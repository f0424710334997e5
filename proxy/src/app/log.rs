//! The log: to standard error, its level changed while running.

use std::sync::{Mutex, PoisonError};

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, reload};

use crate::bootstrap::LogFormat;

/// The level in use, and the way to change it.
#[derive(Debug)]
pub struct LogLevel {
    handle: reload::Handle<EnvFilter, Registry>,
    text: Mutex<String>,
}

impl LogLevel {
    /// Starts the log. To be called once a process.
    pub fn start(level: &str, format: LogFormat) -> Result<Self, String> {
        let (filter, handle) = reload::Layer::new(parse(level)?);
        let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
        let lines = match format {
            LogFormat::Json => lines.json().boxed(),
            LogFormat::Text => lines.with_ansi(false).boxed(),
        };
        tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|error| error.to_string())?;
        Ok(Self { handle, text: Mutex::new(level.to_owned()) })
    }

    /// Changes the level; the error says what is wrong with `level`.
    pub fn set(&self, level: &str) -> Result<(), String> {
        self.handle.reload(parse(level)?).map_err(|error| error.to_string())?;
        level.clone_into(&mut self.text.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    /// The level as it was set.
    pub fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn parse(level: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(level)
        .map_err(|error| format!("log level \"{level}\": {error}; use error, warn, info, debug, trace or target=level"))
}
