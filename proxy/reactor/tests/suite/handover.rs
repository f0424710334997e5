//! Connections accepted by one runtime and served by another.

use std::future::poll_fn;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use outrigger_reactor::{Accepted, Buf, DriverKind, Sender, TcpListener, counters, mailbox, spawn};

use super::{listen, recv_exact, run, until};

async fn accepted(listener: &TcpListener) -> Accepted {
    poll_fn(|cx| listener.poll_accepted(cx)).await.unwrap()
}

/// A client with a deadline, connected.
fn client(address: SocketAddr) -> std::net::TcpStream {
    let stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// A thread with a runtime that opens what it is sent and sends four bytes back, until its senders are gone.
fn echoing(driver: DriverKind) -> (Sender<Accepted>, thread::JoinHandle<usize>) {
    let (made, making) = mpsc::channel();
    let serving = thread::spawn(move || {
        run(driver, async move {
            let (sender, mut inbox) = mailbox::<Accepted>();
            made.send(sender).unwrap();
            let mut tasks = Vec::new();
            while let Some(accepted) = inbox.recv().await {
                let peer = accepted.peer_addr();
                let stream = accepted.open().unwrap();
                assert_eq!(stream.peer_addr(), peer);
                tasks.push(spawn(async move {
                    stream.queue(Buf::from(recv_exact(&stream, 4).await));
                    stream.flush().await.unwrap();
                }));
            }
            let served = tasks.len();
            for task in tasks {
                task.await;
            }
            served
        })
    });
    (making.recv().unwrap(), serving)
}

pub(crate) fn an_accepted_connection_is_served_by_another_runtime(driver: DriverKind) {
    const CLIENTS: usize = 50;
    let (sender, serving) = echoing(driver);
    run(driver, async move {
        let (listener, address) = listen();
        let asking = thread::spawn(move || {
            let mut clients: Vec<_> = (0..CLIENTS).map(|_| client(address)).collect();
            // Of each second one the bytes are here before it is accepted.
            for client in clients.iter_mut().step_by(2) {
                client.write_all(b"ping").unwrap();
            }
            for (at, client) in clients.iter_mut().enumerate() {
                if at % 2 == 1 {
                    client.write_all(b"ping").unwrap();
                }
                let mut bytes = [0; 4];
                client.read_exact(&mut bytes).unwrap();
                assert_eq!(&bytes, b"ping");
            }
        });
        let before = counters().sockets_open;
        for _ in 0..CLIENTS {
            assert!(sender.send(accepted(&listener).await).is_ok());
        }
        assert_eq!(counters().sockets_open, before, "this runtime's driver never had them");
        drop(sender);
        asking.join().unwrap();
    });
    assert_eq!(serving.join().unwrap(), CLIENTS);
}

pub(crate) fn an_accepted_connection_that_nobody_opens_is_closed(driver: DriverKind) {
    let kept = run(driver, async {
        let (listener, address) = listen();
        let mut dropped = client(address);
        drop(accepted(&listener).await);
        assert_eq!(dropped.read(&mut [0; 1]).unwrap(), 0);
        let client = client(address);
        let kept = accepted(&listener).await;
        assert_eq!(kept.peer_addr(), client.local_addr().unwrap());
        kept
    });
    // It outlives the runtime that accepted it; where no runtime is, it cannot be opened.
    assert_eq!(kept.open().unwrap_err().kind(), ErrorKind::Other);
}

pub(crate) fn accepts_of_both_sorts_share_one_line(driver: DriverKind) {
    run(driver, async {
        let (listener, address) = listen();
        let clients: Vec<_> = (0..20).map(|_| client(address)).collect();
        for (at, client) in clients.iter().enumerate() {
            let stream = if at % 3 == 0 {
                accepted(&listener).await.open().unwrap()
            } else {
                listener.accept().await.unwrap().0
            };
            assert_eq!(
                stream.peer_addr(),
                client.local_addr().unwrap(),
                "they come in the order of the kernel's queue"
            );
        }
        until("all are closed", || counters().sockets_open == 1).await;
    });
}

pub(crate) fn a_mailbox_closed_under_storm_loses_no_value(driver: DriverKind) {
    const THREADS: usize = 3;
    const VALUES: usize = 20_000;
    run(driver, async {
        for closed_after in [0, 1, 100, THREADS * VALUES / 2] {
            let (sender, mut inbox) = mailbox::<usize>();
            let given_back = Arc::<AtomicUsize>::default();
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    let (sender, given_back) = (sender.clone(), given_back.clone());
                    thread::spawn(move || {
                        for value in 0..VALUES {
                            if sender.send(value).is_err() {
                                given_back.fetch_add(1, Ordering::SeqCst);
                            }
                        }
                    })
                })
                .collect();
            let mut received = 0;
            while received < closed_after {
                inbox.recv().await.unwrap();
                received += 1;
            }
            let left = inbox.close().len();
            assert_eq!(inbox.recv().await, None, "nothing comes after the close");
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(received + left + given_back.load(Ordering::SeqCst), THREADS * VALUES);
            assert_eq!(sender.send(7), Err(7));
        }
    });
}
