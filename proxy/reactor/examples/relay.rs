//! A byte relay on the reactor, one connection upstream for each one downstream: `relay LISTEN UPSTREAM uring|epoll`.
//!
//! It is the floor that a proxy on this crate can reach; the measurements in the design were made with relays like it.
#![allow(clippy::print_stderr, reason = "a program for the terminal")]

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::task::Poll;

use outrigger_reactor::{DriverKind, Options, Runtime, TcpListener, TcpStream, spawn};

/// Bytes gathered before a flush.
const GATHER_BYTES: usize = 64 * 1024;

/// Moves bytes one way until FIN, which is passed on. What is there already leaves in one gathered send.
async fn pump(from: Rc<TcpStream>, to: Rc<TcpStream>) -> io::Result<()> {
    loop {
        let first = from.recv().await?;
        let mut is_end = first.is_empty();
        to.queue(first);
        while !is_end && to.queued_bytes() < GATHER_BYTES {
            let Poll::Ready(more) = poll_fn(|cx| Poll::Ready(from.poll_recv(cx))).await else { break };
            let more = more?;
            is_end = more.is_empty();
            to.queue(more);
        }
        to.hand_over().await?;
        if is_end {
            return to.shutdown_write();
        }
    }
}

async fn relay(downstream: TcpStream, upstream: SocketAddr) -> io::Result<()> {
    let downstream = Rc::new(downstream);
    let upstream = Rc::new(TcpStream::connect(upstream).await?);
    let back = spawn(pump(upstream.clone(), downstream.clone()));
    pump(downstream, upstream).await?;
    back.await
}

async fn serve(listen: SocketAddr, upstream: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::from_std(std::net::TcpListener::bind(listen)?)?;
    loop {
        let (downstream, peer) = listener.accept().await?;
        let relaying = async move {
            if let Err(error) = relay(downstream, upstream).await {
                eprintln!("{peer}: {error}");
            }
        };
        spawn(relaying).detach();
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let parsed = match &arguments[..] {
        [listen, upstream, driver] => match (listen.parse(), upstream.parse(), driver.as_str()) {
            (Ok(listen), Ok(upstream), "uring") => Some((listen, upstream, DriverKind::Uring)),
            (Ok(listen), Ok(upstream), "epoll") => Some((listen, upstream, DriverKind::Epoll)),
            _ => None,
        },
        _ => None,
    };
    let Some((listen, upstream, driver)) = parsed else {
        eprintln!("usage: relay LISTEN_ADDRESS UPSTREAM_ADDRESS uring|epoll");
        return ExitCode::from(2);
    };
    let run =
        Runtime::new(driver, &Options::default()).and_then(|mut runtime| runtime.block_on(serve(listen, upstream)));
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("relay: {error}");
            ExitCode::FAILURE
        }
    }
}
