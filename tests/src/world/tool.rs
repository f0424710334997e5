//! Purpose: programs and files that are not ours, from `tests/tools/fetch.py`: on the PATH, kept from an earlier run, or
//! fetched or built now, which takes minutes once.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's folder.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// Where a tool is.
pub fn fetch(name: &str) -> io::Result<PathBuf> {
    let output = Command::new("python3").arg(root().join("tests/tools/fetch.py")).arg(name).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("tests/tools/fetch.py {name}: {}", said.trim())));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}
