//! Bytes that stay in the kernel.

use std::future::poll_fn;
use std::rc::Rc;

use outrigger_reactor::{
    Buf, DriverKind, PIPE_BYTES, Splice, SpliceFault, Spliced, TcpStream, counters, spawn, timeout,
};

use super::{Dice, pair, pattern_bytes, recv_exact, run, until};

/// Splices until something else than moved bytes comes of it.
async fn splice_all(from: &TcpStream, to: &TcpStream, limit: u64) -> (u64, Result<Spliced, SpliceFault>) {
    let mut splice = Splice::default();
    let mut moved = 0;
    while moved < limit {
        match poll_fn(|cx| splice.poll_move(from, to, limit - moved, cx)).await {
            Ok(Spliced::Moved(bytes)) => moved += bytes,
            Ok(Spliced::Received) => {
                to.queue(from.recv().await.unwrap());
                moved += to.queued_bytes() as u64;
                to.flush().await.unwrap();
            }
            other => return (moved, other),
        }
    }
    assert_eq!(splice.held(), 0);
    (moved, Ok(Spliced::Moved(0)))
}

/// Receives once and queues at most `limit` bytes of it; gives how many.
async fn pass_received(from: &TcpStream, to: &TcpStream, limit: u64) -> u64 {
    let mut bytes = from.recv().await.unwrap();
    if bytes.len() as u64 > limit {
        let body = bytes.split_to(limit as usize);
        from.unread(bytes);
        bytes = body;
    }
    let passed = bytes.len() as u64;
    to.queue(bytes);
    passed
}

/// Sends `bytes` of the pattern in pieces of random sizes.
async fn send_pattern(stream: &TcpStream, bytes: usize, dice: &Dice) {
    let mut sent = 0;
    while sent < bytes {
        let piece = (dice.below(200_000) + 1).min(bytes - sent);
        stream.queue(Buf::from(pattern_bytes(sent, piece)));
        stream.flush().await.unwrap();
        sent += piece;
    }
}

pub(crate) fn splices_without_receiving(driver: DriverKind) {
    const BYTES: usize = 8 << 20;
    run(driver, async {
        let (source, from) = pair().await;
        let (to, sink) = pair().await;
        let before = counters();
        let sending = spawn(async move {
            send_pattern(&source, BYTES, &Dice::new()).await;
            source.shutdown_write().unwrap();
            source
        });
        let splicing = spawn(async move {
            let (moved, end) = splice_all(&from, &to, u64::MAX).await;
            assert!(matches!(end, Ok(Spliced::End)), "{end:?}");
            to.shutdown_write().unwrap();
            (moved, from, to)
        });
        assert!(recv_exact(&sink, BYTES).await == pattern_bytes(0, BYTES));
        assert!(sink.recv().await.unwrap().is_empty());
        let (moved, _from, _to) = splicing.await;
        drop(sending.await);
        assert_eq!(moved, BYTES as u64);
        let after = counters();
        assert_eq!(after.spliced_bytes - before.spliced_bytes, BYTES as u64);
        // What the sink received; the relay itself received and sent nothing.
        assert_eq!(after.recv_bytes - before.recv_bytes, BYTES as u64);
        assert_eq!(after.sent_bytes - before.sent_bytes, BYTES as u64);
    });
}

/// Received ahead at first, then spliced up to a limit, then received again, over and over on the same connections.
pub(crate) fn splices_between_receives(driver: DriverKind) {
    const BODY: usize = 3 * PIPE_BYTES / 2 + 17;
    run(driver, async {
        let (source, from) = pair().await;
        let (to, sink) = pair().await;
        let spawned = spawn(async move {
            for round in 0..20 {
                source.queue(Buf::from(format!("head{round:04}").into_bytes()));
                source.queue(Buf::from(pattern_bytes(0, BODY)));
                source.queue(Buf::from_static(b"tail"));
                source.flush().await.unwrap();
                assert_eq!(recv_exact(&source, 2).await, b"ok");
            }
            source
        });
        let relaying = spawn(async move {
            let from = Rc::new(from);
            for round in 0..20 {
                assert_eq!(recv_exact(&from, 8).await, format!("head{round:04}").into_bytes());
                let mut left = BODY as u64;
                while from.has_received() && left > 0 {
                    left -= pass_received(&from, &to, left).await;
                }
                poll_fn(|cx| to.poll_flush_now(cx)).await.unwrap();
                let mut splice = Splice::default();
                while left > 0 {
                    match poll_fn(|cx| splice.poll_move(&from, &to, left, cx)).await.unwrap() {
                        Spliced::Moved(bytes) => left -= bytes,
                        Spliced::Received => {
                            left -= pass_received(&from, &to, left).await;
                            poll_fn(|cx| to.poll_flush_now(cx)).await.unwrap();
                        }
                        Spliced::End => panic!("the source is open"),
                    }
                }
                assert_eq!(recv_exact(&from, 4).await, b"tail");
                from.queue(Buf::from_static(b"ok"));
                from.hand_over().await.unwrap();
            }
            (from, to)
        });
        for _ in 0..20 {
            assert!(recv_exact(&sink, BODY).await == pattern_bytes(0, BODY));
        }
        drop(spawned.await);
        drop(relaying.await);
        assert!(counters().spliced_bytes > 10 * BODY as u64, "{:?}", counters());
    });
}

/// The first message after bulk is taken as a head may be, with a long body behind it; the next, since that one was short, is
/// taken whole.
pub(crate) fn what_follows_a_splice_is_received_as_a_head(driver: DriverKind) {
    const BODY: usize = 100_000;
    const MESSAGE: usize = 3_000;
    run(driver, async {
        let (source, from) = pair().await;
        let (to, sink) = pair().await;
        let reading = spawn(async move { recv_exact(&sink, BODY).await });
        source.queue(Buf::from(pattern_bytes(0, BODY)));
        source.flush().await.unwrap();
        assert_eq!(splice_all(&from, &to, BODY as u64).await.0, BODY as u64);
        assert!(reading.await == pattern_bytes(0, BODY));
        for expected in [&[1024, MESSAGE - 1024][..], &[MESSAGE]] {
            source.queue(Buf::from(pattern_bytes(0, MESSAGE)));
            source.flush().await.unwrap();
            let mut received = Vec::new();
            let mut sizes = Vec::new();
            while received.len() < MESSAGE {
                let bytes = from.recv().await.unwrap();
                sizes.push(bytes.len());
                received.extend_from_slice(&bytes);
            }
            assert_eq!(sizes, expected);
            assert!(received == pattern_bytes(0, MESSAGE));
        }
    });
}

pub(crate) fn a_splice_into_a_slow_sink_waits(driver: DriverKind) {
    const BYTES: usize = 32 << 20;
    run(driver, async {
        let (source, from) = pair().await;
        let (to, sink) = pair().await;
        let sending = spawn(async move {
            send_pattern(&source, BYTES, &Dice::new()).await;
            source
        });
        let splicing = spawn(async move { splice_all(&from, &to, BYTES as u64).await });
        // The pipe and both sockets' buffers fill up; then nothing moves until the sink is read.
        let mut last = 0;
        until("the splice stands still", || {
            let now = counters().spliced_bytes;
            std::mem::replace(&mut last, now) == now && now > 0
        })
        .await;
        assert!(!splicing.is_finished());
        assert!(recv_exact(&sink, BYTES).await == pattern_bytes(0, BYTES));
        assert_eq!(splicing.await.0, BYTES as u64);
        drop(sending.await);
    });
}

pub(crate) fn a_splice_tells_its_ends_apart(driver: DriverKind) {
    run(driver, async {
        let (source, from) = pair().await;
        let (to, _sink) = pair().await;
        source.reset_on_close();
        let splicing = spawn(async move { splice_all(&from, &to, u64::MAX).await.1 });
        source.queue(Buf::from(pattern_bytes(0, 100_000)));
        source.flush().await.unwrap();
        until("some of it is moved", || counters().spliced_bytes > 0).await;
        drop(source);
        assert!(matches!(splicing.await, Err(SpliceFault::Source(_))));

        let (source, from) = pair().await;
        let (to, sink) = pair().await;
        sink.reset_on_close();
        drop(sink);
        let splicing = spawn(async move { splice_all(&from, &to, u64::MAX).await.1 });
        let sending = spawn(async move {
            loop {
                source.queue(Buf::from(pattern_bytes(0, 100_000)));
                if source.flush().await.is_err() {
                    return;
                }
            }
        });
        assert!(matches!(splicing.await, Err(SpliceFault::Sink(_))));
        sending.await;
    });
}

/// Streams dropped in the middle: no pipe with another connection's bytes in it is used again.
pub(crate) fn a_dropped_splice_crosses_no_bytes(driver: DriverKind) {
    run(driver, async {
        for round in 0..50u8 {
            let (source, from) = pair().await;
            let (to, sink) = pair().await;
            source.queue(Buf::from(vec![round; 300_000]));
            let mut splice = Splice::default();
            let moving = async {
                source.flush().await.unwrap();
                poll_fn(|cx| splice.poll_move(&from, &to, u64::MAX, cx)).await
            };
            // Most sinks are not read to the end: their splice is given up with bytes in its pipe.
            let _ = timeout(std::time::Duration::from_millis(2), moving).await;
            drop(splice);
            drop(to);
            loop {
                match sink.recv().await {
                    Ok(bytes) if bytes.is_empty() => break,
                    Ok(bytes) => assert!(bytes.iter().all(|byte| *byte == round)),
                    Err(_) => break,
                }
            }
        }
    });
}
