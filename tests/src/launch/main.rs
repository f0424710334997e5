//! Purpose: `outrigger-launch [--deny-io-uring] PROGRAM ARGS…` becomes PROGRAM, in a process that dies with its parent
//! and, when asked, cannot use io_uring (the system calls fail with EPERM, as under a container's seccomp profile).
//!
//! Shape: both settings are made here and survive `exec`, so the tests need no code between fork and exec.
//!
//! Errors: exit code 127 when PROGRAM cannot be started, 125 when a setting cannot be made.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

const SETTING_FAILED: u8 = 125;
const NOT_STARTED: u8 = 127;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    let denies_io_uring = args.next_if(|arg| arg == "--deny-io-uring").is_some();
    let Some(program) = args.next() else {
        eprintln!("usage: outrigger-launch [--deny-io-uring] PROGRAM ARGS…");
        return ExitCode::from(2);
    };
    let parent = getppid();
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("outrigger-launch: cannot tie the process to its parent: {error}");
        return ExitCode::from(SETTING_FAILED);
    }
    if getppid() != parent {
        return ExitCode::from(SETTING_FAILED);
    }
    if denies_io_uring && let Err(error) = deny_io_uring() {
        eprintln!("outrigger-launch: cannot install the seccomp filter: {error}");
        return ExitCode::from(SETTING_FAILED);
    }
    let error = Command::new(&program).args(args).exec();
    eprintln!("outrigger-launch: {}: {error}", program.display());
    ExitCode::from(NOT_STARTED)
}

fn deny_io_uring() -> Result<(), Box<dyn Error>> {
    let calls = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
    let rules: BTreeMap<_, _> = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, denied, TargetArch::try_from(std::env::consts::ARCH)?)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)?;
    Ok(())
}
