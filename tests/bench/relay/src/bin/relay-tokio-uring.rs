//! Purpose: the same relay on tokio-uring: what the runtime that was not taken would have cost.
//!
//! Shape: two tasks for each pair, one buffer each, COOP_TASKRUN as its authors advise. An end that closes takes the
//! other with it.

use std::io;
use std::net::Shutdown;
use std::process::ExitCode;
use std::rc::Rc;

use outrigger_bench_relay::{READ_BYTES, Route};
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::{TcpListener, TcpStream};

/// Submission queue entries.
const RING_ENTRIES: u32 = 1024;

async fn pump(from: Rc<TcpStream>, to: Rc<TcpStream>) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let (read, filled) = from.read(buffer).await;
        let Ok(length @ 1..) = read else { break };
        let (written, slice) = to.write_all(filled.slice(..length)).await;
        if written.is_err() {
            break;
        }
        buffer = slice.into_inner();
    }
    // Wakes the other direction's read; an end that is gone already needs no word.
    for end in [&from, &to] {
        drop(end.shutdown(Shutdown::Both));
    }
}

async fn join(downstream: TcpStream, route: Route) -> io::Result<()> {
    let upstream = TcpStream::connect(route.upstream).await?;
    downstream.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    let (downstream, upstream) = (Rc::new(downstream), Rc::new(upstream));
    tokio_uring::spawn(pump(upstream.clone(), downstream.clone()));
    pump(downstream, upstream).await;
    Ok(())
}

async fn serve(route: Route) -> io::Result<()> {
    let listener = TcpListener::bind(route.listen)?;
    loop {
        let (downstream, peer) = listener.accept().await?;
        tokio_uring::spawn(async move {
            if let Err(error) = join(downstream, route).await {
                eprintln!("{peer}: {error}");
            }
        });
    }
}

fn main() -> ExitCode {
    let run = Route::from_command_line().and_then(|route| {
        tokio_uring::builder()
            .entries(RING_ENTRIES)
            .uring_builder(tokio_uring::uring_builder().setup_coop_taskrun())
            .start(serve(route))
            .map_err(|error| error.to_string())
    });
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
