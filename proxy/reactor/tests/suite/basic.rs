//! The plain ways through.

use std::future::poll_fn;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use outrigger_reactor::{Buf, DriverKind, HANDED_BYTES, TcpStream, counters, sleep, spawn, timeout, yield_now};

use super::{listen, pair, pair_of, pattern_bytes, recv_exact, run, until};

async fn echo(stream: TcpStream) {
    loop {
        let bytes = stream.recv().await.unwrap();
        if bytes.is_empty() {
            return;
        }
        stream.queue(bytes);
        stream.flush().await.unwrap();
    }
}

pub(crate) fn echoes(driver: DriverKind) {
    run(driver, async {
        let (client, server) = pair().await;
        let echoing = spawn(echo(server));
        for round in 0..100 {
            let message = format!("round {round}").into_bytes();
            client.queue(Buf::from(message.clone()));
            client.flush().await.unwrap();
            assert_eq!(recv_exact(&client, message.len()).await, message);
        }
        client.shutdown_write().unwrap();
        assert!(client.recv().await.unwrap().is_empty());
        assert!(client.recv().await.unwrap().is_empty(), "the end stays");
        echoing.await;
    });
}

pub(crate) fn many_connections_at_once(driver: DriverKind) {
    const CONNECTIONS: usize = 500;
    run(driver, async {
        let (listener, address) = listen();
        let serving = spawn(async move {
            for _ in 0..CONNECTIONS {
                let (stream, peer) = listener.accept().await.unwrap();
                assert_eq!(stream.peer_addr(), peer);
                spawn(echo(stream)).detach();
            }
        });
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|id| {
                spawn(async move {
                    let stream = TcpStream::connect(address).await.unwrap();
                    assert_eq!(stream.peer_addr(), address);
                    for round in 0..5 {
                        let message = format!("{id}/{round}").into_bytes();
                        stream.queue(Buf::from(message.clone()));
                        stream.flush().await.unwrap();
                        assert_eq!(recv_exact(&stream, message.len()).await, message);
                    }
                })
            })
            .collect();
        for client in clients {
            client.await;
        }
        serving.await;
        until("every socket closed", || counters().sockets_open == 0).await;
        until("every task ended", || counters().tasks_live == 0).await;
        assert_eq!(counters().buffers_in_use, 0);
    });
}

pub(crate) fn gathers_more_slices_than_the_kernel_takes(driver: DriverKind) {
    const SLICES: usize = 5000;
    run(driver, async {
        let (client, server) = pair().await;
        let mut expected = Vec::new();
        for at in 0..SLICES {
            let bytes = pattern_bytes(at * 7, at % 13);
            expected.extend_from_slice(&bytes);
            client.queue(Buf::from(bytes));
        }
        assert_eq!(client.queued_bytes(), expected.len());
        assert_eq!(client.sent_bytes(), 0, "no byte leaves before a flush");
        client.flush().await.unwrap();
        assert_eq!(client.queued_bytes(), 0);
        assert_eq!(client.sent_bytes(), expected.len() as u64);
        assert_eq!(recv_exact(&server, expected.len()).await, expected);
    });
}

pub(crate) fn moves_much_both_ways(driver: DriverKind) {
    const BYTES: usize = 24 << 20;
    async fn send_all(stream: Rc<TcpStream>) {
        let mut at = 0;
        while at < BYTES {
            let count = (BYTES - at).min(100_000);
            stream.queue(Buf::from(pattern_bytes(at, count)));
            stream.flush().await.unwrap();
            at += count;
        }
        stream.shutdown_write().unwrap();
    }
    async fn recv_all(stream: Rc<TcpStream>) {
        let mut at = 0;
        loop {
            let bytes = stream.recv().await.unwrap();
            if bytes.is_empty() {
                break;
            }
            assert!(bytes.is_pooled());
            assert_eq!(&*bytes, pattern_bytes(at, bytes.len()), "from byte {at}");
            at += bytes.len();
        }
        assert_eq!(at, BYTES);
    }
    run(driver, async {
        let (client, server) = pair().await;
        let (client, server) = (Rc::new(client), Rc::new(server));
        let moving = [
            spawn(send_all(client.clone())),
            spawn(send_all(server.clone())),
            spawn(recv_all(client)),
            spawn(recv_all(server)),
        ];
        for part in moving {
            part.await;
        }
        let counters = counters();
        assert_eq!(counters.recv_bytes, 2 * BYTES as u64);
        assert_eq!(counters.sent_bytes, 2 * BYTES as u64);
    });
}

pub(crate) fn relays_the_received_slice(driver: DriverKind) {
    run(driver, async {
        let (client, inner) = pair().await;
        let (outer, server) = pair().await;
        client.queue(Buf::from_static(b"as it came"));
        client.flush().await.unwrap();
        let bytes = inner.recv().await.unwrap();
        let at = bytes.as_ptr();
        outer.queue(bytes.slice(3..));
        drop(bytes);
        outer.flush().await.unwrap();
        assert_eq!(recv_exact(&server, 7).await, b"it came");
        assert!(!at.is_null());
        until("the block back in the pool", || counters().buffers_in_use == 0).await;
    });
}

pub(crate) fn half_close_leaves_the_other_way_open(driver: DriverKind) {
    run(driver, async {
        let (client, server) = pair().await;
        client.queue(Buf::from_static(b"last words"));
        client.flush().await.unwrap();
        client.shutdown_write().unwrap();
        assert_eq!(recv_exact(&server, 10).await, b"last words");
        assert!(server.recv().await.unwrap().is_empty());
        server.queue(Buf::from(pattern_bytes(0, 300_000)));
        let reading = spawn(async move { recv_exact(&client, 300_000).await });
        server.flush().await.unwrap();
        assert_eq!(reading.await, pattern_bytes(0, 300_000));
    });
}

pub(crate) fn fin_follows_what_is_queued(driver: DriverKind) {
    run(driver, async {
        let (client, server) = pair().await;
        client.queue(Buf::from(pattern_bytes(0, 3_000_000)));
        let reading = spawn(async move {
            let all = recv_exact(&server, 3_000_000).await;
            (all, server.recv().await.unwrap())
        });
        client.shutdown_write().unwrap();
        client.flush().await.unwrap();
        let (all, end) = reading.await;
        assert_eq!(all, pattern_bytes(0, 3_000_000));
        assert!(end.is_empty());
    });
}

pub(crate) fn a_reset_is_an_error_on_both_sides(driver: DriverKind) {
    run(driver, async {
        let (client, server) = pair().await;
        client.reset_on_close();
        drop(client);
        let error = server.recv().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let again = server.recv().await.unwrap_err();
        assert_eq!(again.kind(), ErrorKind::ConnectionReset, "the error stays");
        server.queue(Buf::from_static(b"too late"));
        let error = server.flush().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
        assert_eq!(server.sent_bytes(), 0, "nothing of it left");
    });
}

pub(crate) fn a_reset_ends_a_blocked_flush(driver: DriverKind) {
    run(driver, async {
        let (client, server) = pair().await;
        client.queue(Buf::from(vec![7; 16 << 20]));
        let flushing = spawn(async move { client.flush().await.map_err(|error| error.kind()) });
        until("the kernel is full", || counters().sent_bytes > 0).await;
        server.reset_on_close();
        drop(server);
        let kind = flushing.await.unwrap_err();
        assert!(matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{kind}");
        until("its blocks are free", || counters().buffers_in_use == 0).await;
    });
}

pub(crate) fn a_refused_connect_says_so(driver: DriverKind) {
    run(driver, async {
        let closed = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let error = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        until("its socket is closed", || counters().sockets_open == 0).await;
    });
}

pub(crate) fn ipv6_works(driver: DriverKind) {
    run(driver, async {
        let Ok(bound) = std::net::TcpListener::bind(("::1", 0)) else {
            panic!("this machine has no IPv6 loopback");
        };
        let listener = outrigger_reactor::TcpListener::from_std(bound).unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = pair_of(&listener, address).await;
        assert!(client.peer_addr().is_ipv6());
        assert_eq!(client.local_addr(), server.peer_addr());
        client.queue(Buf::from_static(b"six"));
        client.flush().await.unwrap();
        assert_eq!(recv_exact(&server, 3).await, b"six");
    });
}

async fn is_readable(stream: &TcpStream) -> bool {
    poll_fn(|cx| Poll::Ready(stream.poll_readable(cx).is_ready())).await
}

pub(crate) fn readable_reports_bytes_fin_and_reset(driver: DriverKind) {
    run(driver, async {
        for event in ["bytes", "fin", "reset"] {
            let (client, server) = pair().await;
            assert!(!is_readable(&client).await, "quiet so far");
            sleep(Duration::from_millis(5)).await;
            assert!(!is_readable(&client).await, "still quiet");
            let server = match event {
                "bytes" => {
                    server.queue(Buf::from_static(b"unasked"));
                    server.flush().await.unwrap();
                    Some(server)
                }
                "fin" => {
                    server.shutdown_write().unwrap();
                    Some(server)
                }
                _ => {
                    server.reset_on_close();
                    drop(server);
                    None
                }
            };
            poll_fn(|cx| client.poll_readable(cx)).await;
            assert!(is_readable(&client).await, "it takes nothing");
            match event {
                "bytes" => assert_eq!(recv_exact(&client, 7).await, b"unasked"),
                "fin" => assert!(client.recv().await.unwrap().is_empty()),
                _ => assert!(client.recv().await.is_err()),
            }
            drop(server);
        }
    });
}

pub(crate) fn unread_bytes_come_first(driver: DriverKind) {
    run(driver, async {
        let (client, server) = pair().await;
        client.queue(Buf::from_static(b"first second"));
        client.flush().await.unwrap();
        let mut bytes = Buf::from(recv_exact(&server, 12).await);
        let first = bytes.split_to(6);
        server.unread(bytes);
        server.unread(first);
        assert!(is_readable(&server).await);
        assert_eq!(&*server.recv().await.unwrap(), b"first ");
        assert_eq!(&*server.recv().await.unwrap(), b"second");
    });
}

pub(crate) fn takes_std_sockets_over(driver: DriverKind) {
    run(driver, async {
        let bound = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address: SocketAddr = bound.local_addr().unwrap();
        let other = std::thread::spawn(move || {
            let (mut stream, _) = bound.accept().unwrap();
            let mut bytes = [0; 4];
            stream.read_exact(&mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
        });
        let stream = TcpStream::from_std(std::net::TcpStream::connect(address).unwrap()).unwrap();
        stream.queue(Buf::from_static(b"ping"));
        stream.flush().await.unwrap();
        assert_eq!(recv_exact(&stream, 4).await, b"ping");
        assert!(stream.recv().await.unwrap().is_empty());
        other.join().unwrap();
    });
}

pub(crate) fn queued_bytes_are_read_without_a_system_call(driver: DriverKind) {
    run(driver, async {
        let (client, server) = pair().await;
        client.queue(Buf::from_static(b"abc"));
        client.flush().await.unwrap();
        let bytes = server.recv().await.unwrap();
        server.unread(bytes);
        let before = counters().syscalls;
        assert_eq!(&*server.recv().await.unwrap(), b"abc");
        assert_eq!(counters().syscalls, before);
    });
}

/// What was handed over leaves by itself, also from a task that does nothing more, and beyond what the kernel had room
/// for; a flush behind it waits for all of it.
pub(crate) fn what_is_handed_over_leaves_by_itself(driver: DriverKind) {
    const PIECE: usize = 4096;
    run(driver, async {
        let (client, server) = pair().await;
        client.queue(Buf::from_static(b"small"));
        client.hand_over().await.unwrap();
        assert_eq!(recv_exact(&server, 5).await, b"small");

        // Until the kernel has room no more: then some bytes are still on their way when the hand-over is done.
        let mut sent = 0;
        while client.queued_bytes() == 0 || client.queued_bytes() + PIECE <= HANDED_BYTES {
            client.queue(Buf::from(pattern_bytes(sent, PIECE)));
            client.hand_over().await.unwrap();
            sent += PIECE;
            yield_now().await;
        }
        assert!(client.queued_bytes() <= HANDED_BYTES);
        assert!(recv_exact(&server, sent).await == pattern_bytes(0, sent));
        until("nothing is left", || client.queued_bytes() == 0).await;

        client.queue(Buf::from_static(b"first"));
        client.hand_over().await.unwrap();
        client.queue(Buf::from_static(b"second"));
        client.flush().await.unwrap();
        assert_eq!(client.queued_bytes(), 0);
        assert_eq!(recv_exact(&server, 11).await, b"firstsecond");
    });
}

/// The failure of bytes that were handed over comes with a later call.
pub(crate) fn a_failed_hand_over_shows_in_the_next_call(driver: DriverKind) {
    run(driver, async {
        let (client, server) = pair().await;
        server.reset_on_close();
        drop(server);
        let failed = timeout(Duration::from_secs(20), async {
            loop {
                client.queue(Buf::from_static(b"anybody?"));
                if client.hand_over().await.is_err() {
                    return;
                }
                sleep(Duration::from_millis(1)).await;
            }
        });
        assert!(failed.await.is_ok());
        assert!(client.flush().await.is_err());
    });
}

/// On the ring a message that is passed on costs one system call, which also waits for the next.
pub(crate) fn a_relayed_message_costs_few_system_calls(driver: DriverKind) {
    const MESSAGES: u64 = 200;
    run(driver, async {
        let (client, server) = pair().await;
        let echoing = spawn(async move {
            loop {
                let bytes = server.recv().await.unwrap();
                if bytes.is_empty() {
                    return;
                }
                server.queue(bytes);
                server.hand_over().await.unwrap();
            }
        });
        let before = counters().syscalls;
        for _ in 0..MESSAGES {
            client.queue(Buf::from_static(b"ping"));
            client.hand_over().await.unwrap();
            assert_eq!(recv_exact(&client, 4).await, b"ping");
        }
        let each = (counters().syscalls - before) as f64 / (2 * MESSAGES) as f64;
        // epoll: wait, receive, send. A receive is armed anew now and then, and timers are set.
        let bound = if driver == DriverKind::Uring { 1.2 } else { 3.2 };
        assert!(each <= bound, "{each} system calls a message");
        drop(client);
        echoing.await;
    });
}
