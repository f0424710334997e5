//! Programs of others: found, given their input, and asked how it went.

use std::env;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Where Debian and others keep such programs, whatever PATH an image sets.
const USUAL: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"];

/// The lock file of iptables-legacy, and places where it may lie when that one cannot be written: `/dev/shm` is writable
/// in containers whose root is not.
const LOCKS: [&str; 3] = ["/run/xtables.lock", "/dev/shm/outrigger-xtables.lock", "/tmp/outrigger-xtables.lock"];

/// A program that is there.
#[derive(Clone, Debug)]
pub(super) struct Program {
    path: PathBuf,
}

/// How a run failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("`{command}` {how}")]
pub(super) struct RunError {
    command: String,
    how: String,
}

impl Program {
    /// Looks in PATH, then in the usual places.
    pub(super) fn find(name: &str) -> Option<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = env::split_paths(&path).chain(USUAL.iter().map(PathBuf::from));
        let is_program =
            |file: &PathBuf| file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
        folders.map(|folder| folder.join(name)).find(is_program).map(|path| Self { path })
    }

    /// Runs it with `input`; what it printed.
    pub(super) fn run(&self, args: &[&str], input: &str) -> Result<String, RunError> {
        let failed = |how: String| {
            let name = self.path.file_name().unwrap_or_default().to_string_lossy();
            RunError { command: format!("{name} {}", args.join(" ")), how }
        };
        let mut command = Command::new(&self.path);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(lock) = writable_lock() {
            command.env("XTABLES_LOCKFILE", lock);
        }
        let mut child = command.spawn().map_err(|error| failed(format!("did not start: {error}")))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that ends before it read everything says why by its status.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().map_err(|error| failed(format!("was lost: {error}")))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(failed(format!("failed ({}): {}", output.status, gist(&String::from_utf8_lossy(&output.stderr)))))
    }
}

/// The lines that tell something, as one; nft repeats the input below each.
fn gist(text: &str) -> String {
    let tells = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('^');
    let lines: Vec<&str> = text.lines().filter(tells).map(str::trim).take(4).collect();
    if lines.is_empty() { "it said nothing".to_owned() } else { lines.join("; ") }
}

/// `None` where the usual place will do, or where no place will: then the program's own message tells.
fn writable_lock() -> Option<&'static str> {
    let opens = |path: &&&str| OpenOptions::new().append(true).create(true).open(path).is_ok();
    LOCKS.iter().find(opens).filter(|path| **path != LOCKS[0]).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_gets_its_input_and_gives_its_output() {
        let cat = Program::find("cat").unwrap();
        assert_eq!(cat.run(&[], "some\ntext\n").unwrap(), "some\ntext\n");
    }

    #[test]
    fn a_failure_says_what_the_program_said() {
        let sh = Program::find("sh").unwrap();
        let error = sh.run(&["-c", "echo 'no such chain' >&2; echo '  ^^^^' >&2; exit 3"], "").unwrap_err();
        assert_eq!(error.how, "failed (exit status: 3): no such chain");
        assert!(error.to_string().starts_with("`sh -c"), "{error}");
        assert!(sh.run(&["-c", "exit 1"], "").unwrap_err().how.ends_with("it said nothing"));
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        assert!(Program::find("no-such-program-of-outrigger").is_none());
        assert!(Program::find("").is_none(), "a folder is no program");
    }
}
