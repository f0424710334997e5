//! Why a bootstrap file was refused.

use std::fmt;
use std::path::{Path, PathBuf};

/// One place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `static_resources.clusters[0].connect_timeout`; empty when it concerns the whole file.
    pub path: String,
    /// What is wrong, what is allowed, and the remedy.
    pub reason: String,
}

/// Everything that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootstrapErrors {
    /// The file.
    pub file: PathBuf,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl BootstrapErrors {
    pub(super) fn one(file: &Path, path: &str, reason: impl Into<String>) -> Self {
        Self { file: file.to_owned(), problems: vec![Problem { path: path.to_owned(), reason: reason.into() }] }
    }
}

impl fmt::Display for BootstrapErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}: ", self.file.display())?;
            if !problem.path.is_empty() {
                write!(f, "{}: ", problem.path)?;
            }
            f.write_str(&problem.reason)?;
        }
        Ok(())
    }
}

impl std::error::Error for BootstrapErrors {}
