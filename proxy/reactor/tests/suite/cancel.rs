//! Futures dropped at any point lose no byte, no connection and no descriptor.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use outrigger_reactor::{Buf, DriverKind, TcpStream, counters, sleep, spawn, timeout, yield_now};

use super::{Dice, give_up_after, listen, pair_of, pattern_bytes, run, until};

pub(crate) fn dropped_receives_and_flushes_lose_no_byte(driver: DriverKind) {
    const STREAMS: usize = 8;
    const BYTES: usize = 600_000;
    async fn send(stream: TcpStream, dice: Rc<Dice>) {
        let mut at = 0;
        while at < BYTES {
            let count = (1 + dice.below(20_000)).min(BYTES - at);
            stream.queue(Buf::from(pattern_bytes(at, count)));
            at += count;
            match dice.below(4) {
                0 => {}
                1 => drop(give_up_after(1 + dice.below(3), stream.flush()).await),
                2 => drop(timeout(Duration::from_millis(dice.below(2) as u64), stream.flush()).await),
                _ => stream.flush().await.unwrap(),
            }
        }
        stream.flush().await.unwrap();
        assert_eq!(stream.sent_bytes(), BYTES as u64);
        stream.shutdown_write().unwrap();
        // Closing with the FIN on its way would make the kernel drop nothing, but a close with a receive armed must
        // not cut the send either.
        drop(give_up_after(1, stream.recv()).await);
    }
    async fn recv(stream: TcpStream, dice: Rc<Dice>) {
        let mut at = 0;
        loop {
            let bytes = match dice.below(4) {
                0 => give_up_after(1 + dice.below(3), stream.recv()).await,
                1 => timeout(Duration::from_millis(dice.below(2) as u64), stream.recv()).await.ok(),
                2 => {
                    yield_now().await;
                    None
                }
                _ => Some(stream.recv().await),
            };
            let Some(bytes) = bytes else { continue };
            let mut bytes = bytes.unwrap();
            if bytes.is_empty() {
                break;
            }
            if dice.below(5) == 0 {
                let rest = bytes.slice(bytes.len() / 2..);
                bytes.truncate(bytes.len() / 2);
                stream.unread(rest);
            }
            assert_eq!(&*bytes, pattern_bytes(at, bytes.len()), "from byte {at}");
            at += bytes.len();
        }
        assert_eq!(at, BYTES);
    }
    run(driver, async {
        let dice = Rc::new(Dice::new());
        let (listener, address) = listen();
        let mut parts = Vec::new();
        for _ in 0..STREAMS {
            let (client, server) = pair_of(&listener, address).await;
            parts.push(spawn(send(client, dice.clone())));
            parts.push(spawn(recv(server, dice.clone())));
        }
        for part in parts {
            part.await;
        }
        until("only the listener is open", || counters().sockets_open == 1).await;
        assert_eq!(counters().buffers_in_use, 0);
    });
}

pub(crate) fn dropped_accepts_lose_no_connection(driver: DriverKind) {
    const CONNECTIONS: usize = 200;
    run(driver, async {
        let dice = Rc::new(Dice::new());
        let (listener, address) = listen();
        let accepting = spawn({
            let dice = dice.clone();
            async move {
                let mut accepted = Vec::new();
                while accepted.len() < CONNECTIONS {
                    let polls = 1 + dice.below(3);
                    if let Some(connection) = give_up_after(polls, listener.accept()).await {
                        accepted.push(connection.unwrap());
                    }
                    if dice.below(8) == 0 {
                        sleep(Duration::from_millis(1)).await;
                    }
                }
                for (stream, _) in &accepted {
                    stream.queue(Buf::from_static(b"hello"));
                    stream.flush().await.unwrap();
                }
                accepted.len()
            }
        });
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                spawn(async move {
                    let stream = TcpStream::connect(address).await.unwrap();
                    assert_eq!(super::recv_exact(&stream, 5).await, b"hello");
                })
            })
            .collect();
        for client in clients {
            client.await;
        }
        assert_eq!(accepting.await, CONNECTIONS);
    });
}

pub(crate) fn dropped_connects_close_their_sockets(driver: DriverKind) {
    run(driver, async {
        let dice = Dice::new();
        let (listener, address) = listen();
        let accepting = spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                spawn(async move { drop(stream.recv().await) }).detach();
            }
        });
        for _ in 0..200 {
            let connecting = TcpStream::connect(address);
            if let Some(stream) = give_up_after(dice.below(3), connecting).await {
                stream.unwrap();
            }
        }
        // A connect that nobody answers: cancelled while the handshake is open.
        let unanswered = TcpStream::connect("240.0.0.1:9".parse().unwrap());
        drop(give_up_after(2, unanswered).await);
        accepting.await_cancelled().await;
        until("every socket closed", || counters().sockets_open == 0).await;
    });
}

trait AwaitCancelled {
    async fn await_cancelled(self);
}

impl<T> AwaitCancelled for outrigger_reactor::Task<T> {
    /// Lets the task do what is ready, then aborts it.
    async fn await_cancelled(self) {
        sleep(Duration::from_millis(20)).await;
        drop(self);
    }
}

pub(crate) fn streams_dropped_in_flight_cross_no_bytes(driver: DriverKind) {
    const LANES: usize = 16;
    const ROUNDS: usize = 120;
    run(driver, async {
        let dice = Rc::new(Dice::new());
        let checked = Rc::new(Cell::new(0usize));
        let lanes: Vec<_> = (0..LANES)
            .map(|lane| {
                let (dice, checked) = (dice.clone(), checked.clone());
                spawn(async move {
                    let (listener, address) = listen();
                    for round in 0..ROUNDS {
                        let tag = (lane * ROUNDS + round) as u32;
                        let (client, server) = pair_of(&listener, address).await;
                        let bytes: Vec<u8> = tag.to_be_bytes().repeat(1 + dice.below(4000));
                        server.queue(Buf::from(bytes));
                        // A descriptor is freed here with a send and a receive in flight, and taken again next round.
                        drop(give_up_after(dice.below(3), server.flush()).await);
                        let mut at = 0usize;
                        for _ in 0..dice.below(4) {
                            let received = if dice.below(2) == 0 {
                                give_up_after(1 + dice.below(3), client.recv()).await
                            } else {
                                timeout(Duration::from_millis(1), client.recv()).await.ok()
                            };
                            let Some(Ok(bytes)) = received else { break };
                            for byte in &*bytes {
                                assert_eq!(*byte, tag.to_be_bytes()[at % 4], "lane {lane} round {round}");
                                at += 1;
                            }
                        }
                        checked.set(checked.get() + at);
                        if dice.below(2) == 0 {
                            client.reset_on_close();
                        }
                        if dice.below(2) == 0 {
                            drop(server);
                            drop(client);
                        } else {
                            drop(client);
                            drop(server);
                        }
                    }
                })
            })
            .collect();
        for lane in lanes {
            lane.await;
        }
        assert!(checked.get() > 0, "some bytes were looked at");
        until("every socket closed", || counters().sockets_open == 0).await;
        assert_eq!(counters().buffers_in_use, 0);
    });
}

pub(crate) fn a_stream_dropped_while_its_send_is_blocked_is_closed(driver: DriverKind) {
    const BYTES: usize = 16 << 20;
    run(driver, async {
        let (listener, address) = listen();
        let (client, server) = pair_of(&listener, address).await;
        client.queue(Buf::from(pattern_bytes(0, BYTES)));
        assert!(timeout(Duration::from_millis(20), client.flush()).await.is_err(), "nobody reads");
        assert!(client.queued_bytes() > 0 && client.sent_bytes() > 0);
        drop(client);
        let mut at = 0;
        loop {
            let bytes = server.recv().await.unwrap();
            if bytes.is_empty() {
                break;
            }
            assert_eq!(&*bytes, pattern_bytes(at, bytes.len()), "from byte {at}");
            at += bytes.len();
        }
        assert!(at < BYTES, "the rest was given up");
        until("only the listener and one stream are open", || counters().sockets_open == 2).await;
    });
}

pub(crate) fn a_dropped_flush_finishes_what_is_in_flight(driver: DriverKind) {
    const BYTES: usize = 4 << 20;
    run(driver, async {
        let (listener, address) = listen();
        let (client, server) = pair_of(&listener, address).await;
        client.queue(Buf::from(pattern_bytes(0, BYTES)));
        assert!(timeout(Duration::from_millis(5), client.flush()).await.is_err(), "nobody reads");
        client.queue(Buf::from(pattern_bytes(BYTES, 10)));
        let reading = spawn(async move { super::recv_exact(&server, BYTES + 10).await });
        client.flush().await.unwrap();
        assert_eq!(client.sent_bytes(), BYTES as u64 + 10);
        assert_eq!(reading.await, pattern_bytes(0, BYTES + 10));
    });
}

pub(crate) fn a_closed_stream_sends_its_fin_at_once(driver: DriverKind) {
    run(driver, async {
        let (listener, address) = listen();
        let (client, server) = pair_of(&listener, address).await;
        // The receive is armed when the stream is dropped.
        let is_pending = poll_fn(|cx| Poll::Ready(server.poll_recv(cx).is_pending())).await;
        assert!(is_pending);
        yield_now().await;
        drop(server);
        let end = timeout(Duration::from_secs(5), client.recv()).await;
        assert!(end.expect("FIN comes with no help of another event").unwrap().is_empty());
    });
}

pub(crate) fn a_closed_listener_hands_its_backlog_over(driver: DriverKind) {
    const CONNECTIONS: usize = 6;
    run(driver, async {
        let (listener, address) = listen();
        drop(give_up_after(2, listener.accept()).await);
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let handed = listener.close();
        assert_eq!(handed.len(), CONNECTIONS);
        for (stream, _) in &handed {
            stream.queue(Buf::from_static(b"served"));
            stream.flush().await.unwrap();
        }
        for client in &clients {
            assert_eq!(super::recv_exact(client, 6).await, b"served");
        }
        drop(handed);
        drop(clients);
        until("every socket closed", || counters().sockets_open == 0).await;
        assert!(TcpStream::connect(address).await.is_err(), "it listens no more");
    });
}
