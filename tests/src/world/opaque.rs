//! Purpose: a server of raw bytes: what it does with a connection is a closure on a thread of its own.
//!
//! Limits: no handle of a connection is kept here, so that a close or a reset is the closure's own. Reads and writes end
//! after [`OpaqueUpstream::PATIENCE`].

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The server.
#[derive(Debug)]
pub struct OpaqueUpstream {
    address: SocketAddr,
    state: Arc<State>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    is_stopped: AtomicBool,
    accepted: AtomicUsize,
}

impl OpaqueUpstream {
    /// The longest wait for a byte.
    pub const PATIENCE: Duration = Duration::from_secs(20);

    /// Starts one on a free port that gives each connection to `serve`.
    ///
    /// # Panics
    /// When loopback gives no port.
    pub fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = Arc::<State>::default();
        let acceptor = std::thread::spawn({
            let state = state.clone();
            move || accept_all(&listener, &state, &Arc::new(serve))
        });
        Self { address, state, acceptor: Some(acceptor) }
    }

    /// Sends back what comes, to the end.
    pub fn echo() -> Self {
        Self::start(|stream| {
            // An error is the other side's end of the connection.
            let _ = echo(&stream);
        })
    }

    /// Sends its greeting at once, then sends back what comes.
    pub fn greeting(text: &'static str) -> Self {
        Self::start(move |mut stream| {
            let _ = stream.write_all(text.as_bytes()).and_then(|()| echo(&stream));
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were accepted so far.
    pub fn connection_count(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for OpaqueUpstream {
    fn drop(&mut self) {
        self.state.is_stopped.store(true, Ordering::SeqCst);
        // Wakes the acceptor; a refused connect means that it has ended.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept_all(listener: &TcpListener, state: &State, serve: &Arc<impl Fn(TcpStream) + Send + Sync + 'static>) {
    while let Ok((stream, _)) = listener.accept() {
        if state.is_stopped.load(Ordering::SeqCst) {
            return;
        }
        state.accepted.fetch_add(1, Ordering::SeqCst);
        let serve = serve.clone();
        let patience = Some(OpaqueUpstream::PATIENCE);
        let is_ready = stream.set_nodelay(true).is_ok()
            && stream.set_read_timeout(patience).is_ok()
            && stream.set_write_timeout(patience).is_ok();
        if is_ready {
            std::thread::spawn(move || serve(stream));
        }
    }
}

fn echo(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut block = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut block)? {
            0 => return stream.shutdown(Shutdown::Write),
            count => stream.write_all(&block[..count])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::downstream::Downstream;
    use super::*;

    #[test]
    fn it_greets_and_sends_back_what_comes() {
        let upstream = OpaqueUpstream::greeting("hello\n");
        let mut client = Downstream::connect(upstream.address()).unwrap();
        assert_eq!(client.read_bytes(6).unwrap(), b"hello\n");
        client.send(b"echo").unwrap();
        client.finish_sending().unwrap();
        assert_eq!(client.read_to_end().unwrap(), b"echo");
        assert_eq!(upstream.connection_count(), 1);
    }
}
