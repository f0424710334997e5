//! Where io_uring is forbidden, as under container runtimes' seccomp profiles, the proxy serves over epoll and says why.

use std::time::Duration;

use outrigger_tests::world::{Io, Proxy, ProxySetup, Upstream, resource};

fn denied(io: Io, upstream: &Upstream) -> ProxySetup {
    let mut setup = ProxySetup::new(io, resource::forwarding(&[upstream.address()]));
    setup.denies_io_uring = true;
    setup
}

#[test]
fn without_io_uring_it_serves_over_epoll_and_says_why() {
    let upstream = Upstream::named("over epoll");
    let proxy = Proxy::start(&denied(Io::Auto, &upstream));
    assert_eq!(proxy.io(), "epoll");
    assert_eq!(proxy.get("/").unwrap().text(), "over epoll");
    let told = proxy.admin_json("/io");
    assert_eq!(told["driver"], "epoll", "{told}");
    let reason = told["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("EPERM") || reason.contains("not permitted"), "the reason names the refusal: {told}");
    assert!(proxy.log().iter().any(|line| line.contains("epoll") && line.contains(&reason)), "{:?}", proxy.log());
    assert_eq!(proxy.metric("outrigger_io_driver", &[("driver", "epoll")]) as u64, 1);
}

#[test]
fn told_to_use_io_uring_it_refuses_to_start_without() {
    let upstream = Upstream::named("never");
    let (mut process, _scratch) = Proxy::spawn("proxy", &denied(Io::Uring, &upstream)).unwrap();
    process.is_loud = false;
    let status = process.wait_exit(Duration::from_secs(10)).unwrap();
    let log = process.log().join("\n");
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("--io"), "it names the setting: {log}");
}

#[test]
fn where_the_kernel_allows_it_auto_takes_io_uring() {
    let upstream = Upstream::named("over uring");
    let proxy = Proxy::start(&ProxySetup::new(Io::Auto, resource::forwarding(&[upstream.address()])));
    assert_eq!(proxy.io(), "uring", "this machine runs the scenarios on both drivers: {:?}", proxy.log());
    assert_eq!(proxy.get("/").unwrap().text(), "over uring");
}
