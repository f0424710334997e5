//! What the probe says here, and under a seccomp filter that forbids io_uring.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::process::CommandExt;
use std::process::Command;

use outrigger_reactor::{Buf, DriverKind, IoChoice, Options, Runtime, TcpListener, TcpStream, probe, spawn};

#[test]
fn this_machine_allows_io_uring() {
    for choice in [IoChoice::Auto, IoChoice::Uring] {
        let found = probe(choice).unwrap();
        assert_eq!(found.driver, DriverKind::Uring, "{found:?}");
        assert_eq!(found.checks.len(), 3);
        assert!(found.checks.iter().all(|check| check.passed), "{found:?}");
        assert!(!found.kernel.is_empty());
    }
}

#[test]
fn epoll_is_taken_when_asked_for() {
    let found = probe(IoChoice::Epoll).unwrap();
    assert_eq!(found.driver, DriverKind::Epoll);
    assert!(found.checks.is_empty(), "io_uring is not even tried");
}

#[test]
fn the_probe_works_inside_a_runtime() {
    let mut runtime = Runtime::new(DriverKind::Epoll, &Options::default()).unwrap();
    let found = runtime.block_on(async { probe(IoChoice::Auto).unwrap() });
    assert_eq!(found.driver, DriverKind::Uring);
}

/// Fails the system calls `first..=last` with EPERM, as the default profiles of container runtimes do.
fn forbid(first: libc::c_long, last: libc::c_long) -> std::io::Result<()> {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let deny = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut program = [
        libc::sock_filter { code: LOAD_NUMBER, jt: 0, jf: 0, k: 0 },
        libc::sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 2, k: first as u32 },
        libc::sock_filter { code: JUMP_IF_AT_LEAST, jt: 1, jf: 0, k: last as u32 + 1 },
        libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: deny },
        libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the first call takes numbers only; the second reads `filter` and the program it points to, which both
    // live through it.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0
    };
    if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Runs the test `name` again as a process under a filter; true in that process.
fn runs_under_filter(name: &str, first: libc::c_long, last: libc::c_long) -> bool {
    const MARK: &str = "OUTRIGGER_TEST_SECCOMP";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture"]).env(MARK, "1");
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(move || forbid(first, last)) };
    let child = command.output().unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&child.stderr));
    false
}

#[test]
fn a_filter_on_enter_alone_is_found_too() {
    let enter = libc::SYS_io_uring_enter;
    if !runs_under_filter("a_filter_on_enter_alone_is_found_too", enter, enter) {
        return;
    }
    let found = probe(IoChoice::Auto).unwrap();
    assert_eq!(found.driver, DriverKind::Epoll);
    assert!(found.reason.starts_with("io_uring_setup: io_uring_enter: EPERM"), "{}", found.reason);
}

#[test]
fn under_seccomp_it_falls_back_and_says_why() {
    let (first, last) = (libc::SYS_io_uring_setup, libc::SYS_io_uring_register);
    if !runs_under_filter("under_seccomp_it_falls_back_and_says_why", first, last) {
        return;
    }
    let found = probe(IoChoice::Auto).unwrap();
    assert_eq!(found.driver, DriverKind::Epoll);
    let expected = "io_uring_setup: EPERM: blocked by seccomp or the kernel.io_uring_disabled sysctl";
    assert_eq!(found.reason, expected);
    let refused = probe(IoChoice::Uring).unwrap_err();
    assert_eq!(refused.probe.driver, DriverKind::Epoll, "what would work");
    let text = refused.to_string();
    assert!(text.contains(expected) && text.contains("use --io auto"), "{text}");
    assert!(Runtime::new(DriverKind::Uring, &Options::default()).is_err());
    let mut runtime = Runtime::new(found.driver, &Options::default()).unwrap();
    runtime.block_on(async {
        let bound = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let listener = TcpListener::from_std(bound).unwrap();
        let connecting = spawn(TcpStream::connect(listener.local_addr().unwrap()));
        let (server, _) = listener.accept().await.unwrap();
        let client = connecting.await.unwrap();
        client.queue(Buf::from_static(b"over epoll"));
        client.flush().await.unwrap();
        assert_eq!(&*server.recv().await.unwrap(), b"over epoll");
    });
}

#[test]
fn sizes_out_of_range_are_named() {
    let wrong = Options { buffer_bytes: 1, ..Options::default() };
    let error = Runtime::new(DriverKind::Epoll, &wrong).unwrap_err();
    assert_eq!(error.to_string(), "reactor option buffer_bytes: 1 not in 64..=1048576");
}
