//! Purpose: where the built binaries are: in the folders of `OUTRIGGER_BIN_DIR`, written as in `PATH`, else beside the
//! running executable.
//!
//! Errors: a binary that is not there names the command that builds it; a scenario never skips itself.

use std::env;
use std::io;
use std::path::PathBuf;

/// The path of a built binary of this workspace.
pub fn find(name: &str) -> io::Result<PathBuf> {
    let folders: Vec<_> = match env::var_os("OUTRIGGER_BIN_DIR") {
        Some(folders) => env::split_paths(&folders).collect(),
        None => {
            let own = env::current_exe()?;
            own.ancestors().skip(1).take(2).map(PathBuf::from).collect()
        }
    };
    folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("{name} is not built: run `cargo build --workspace --bins`, or set OUTRIGGER_BIN_DIR"),
        )
    })
}
