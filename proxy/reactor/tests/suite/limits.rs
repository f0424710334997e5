//! Bounds: bytes ahead of a reader, blocks in the pool, descriptors, polls of one task.

use std::fs::File;
use std::io::{Read, Write};
use std::rc::Rc;
use std::time::Duration;

use outrigger_reactor::{
    AHEAD_BLOCKS, Buf, DriverKind, Options, TcpStream, counters, sleep, spawn, timeout, yield_now,
};

use super::{listen, pair, pair_of, pattern_bytes, recv_exact, run, run_with, until};

pub(crate) fn a_slow_reader_bounds_what_is_received(driver: DriverKind) {
    const BYTES: usize = 12 << 20;
    let options = Options::default();
    let bound = (AHEAD_BLOCKS * options.buffer_bytes) as u64;
    run_with(driver, &options, async {
        let (client, server) = pair().await;
        let sending = spawn(async move {
            client.queue(Buf::from(pattern_bytes(0, BYTES)));
            client.flush().await.unwrap();
            client
        });
        let mut read = 0usize;
        while read < BYTES {
            if read % (1 << 20) < 4096 {
                // Long enough for the driver to take all that it would.
                for _ in 0..20 {
                    sleep(Duration::from_millis(1)).await;
                    let ahead = counters().recv_bytes - read as u64;
                    assert!(ahead <= bound, "{ahead} bytes ahead of the reader, {bound} allowed");
                }
            }
            let bytes = server.recv().await.unwrap();
            assert_eq!(&*bytes, pattern_bytes(read, bytes.len()));
            read += bytes.len();
        }
        sending.await;
    });
}

pub(crate) fn small_messages_do_not_pile_up(driver: DriverKind) {
    run(driver, async {
        let (client, server) = pair().await;
        drop(super::give_up_after(1, server.recv()).await);
        for round in 0..200 {
            client.queue(Buf::from(vec![round; 10]));
            client.flush().await.unwrap();
            yield_now().await;
        }
        sleep(Duration::from_millis(20)).await;
        let held = counters().buffers_in_use;
        assert!(held <= AHEAD_BLOCKS as u64 + 2, "{held} blocks for one reader");
        let all = recv_exact(&server, 2000).await;
        assert!(all.chunks(10).enumerate().all(|(round, chunk)| chunk == [round as u8; 10]));
    });
}

pub(crate) fn an_idle_connection_holds_no_block(driver: DriverKind) {
    run(driver, async {
        let (listener, address) = listen();
        let mut pairs = Vec::new();
        for _ in 0..50 {
            let (client, server) = pair_of(&listener, address).await;
            drop(super::give_up_after(1, server.recv()).await);
            pairs.push((client, server));
        }
        sleep(Duration::from_millis(5)).await;
        assert_eq!(counters().buffers_in_use, 0);
        assert_eq!(counters().buffer_exhausted, 0);
    });
}

pub(crate) fn more_streams_than_blocks_still_get_on(driver: DriverKind) {
    const STREAMS: usize = 40;
    const BYTES: usize = 20_000;
    let options = Options { buffers: 3, buffers_max: 3, buffer_bytes: 512, entries: 16 };
    run_with(driver, &options, async {
        let (listener, address) = listen();
        let mut parts = Vec::new();
        for at in 0..STREAMS {
            let (client, server) = pair_of(&listener, address).await;
            parts.push(spawn(async move {
                client.queue(Buf::from(pattern_bytes(at, BYTES)));
                client.flush().await.unwrap();
                assert_eq!(recv_exact(&client, 4).await, b"done");
            }));
            parts.push(spawn(async move {
                assert_eq!(recv_exact(&server, BYTES).await, pattern_bytes(at, BYTES));
                server.queue(Buf::from_static(b"done"));
                server.flush().await.unwrap();
            }));
        }
        for part in parts {
            part.await;
        }
        assert_eq!(counters().buffers_in_use, 0);
    });
}

pub(crate) fn a_held_pool_parks_streams_until_a_block_returns(driver: DriverKind) {
    let options = Options { buffers: 2, buffers_max: 2, buffer_bytes: 512, entries: 16 };
    run_with(driver, &options, async {
        let (holder_client, holder) = pair().await;
        let (client, server) = pair().await;
        holder_client.queue(Buf::from(vec![1; 1024]));
        holder_client.flush().await.unwrap();
        let mut held = Vec::new();
        while held.iter().map(|bytes: &Buf| bytes.len()).sum::<usize>() < 1024 {
            held.push(holder.recv().await.unwrap());
        }
        assert_eq!(counters().buffers_in_use, 2);
        client.queue(Buf::from_static(b"patience"));
        client.flush().await.unwrap();
        let reading = spawn(async move { recv_exact(&server, 8).await });
        until("the reader found no block", || counters().buffer_exhausted > 0).await;
        let turns = counters().turns;
        sleep(Duration::from_millis(30)).await;
        assert!(!reading.is_finished());
        assert!(counters().turns - turns < 20, "parked streams do not spin: {} turns", counters().turns - turns);
        held.pop();
        assert_eq!(timeout(Duration::from_secs(5), reading).await.unwrap(), b"patience");
        drop(held);
    });
}

pub(crate) fn load_borrows_blocks_and_gives_them_back(driver: DriverKind) {
    let options = Options { buffers: 4, buffers_max: 400, buffer_bytes: 512, entries: 16 };
    run_with(driver, &options, async {
        let (listener, address) = listen();
        let mut streams = Vec::new();
        for _ in 0..60 {
            let (client, server) = pair_of(&listener, address).await;
            client.queue(Buf::from(vec![9; 400]));
            client.flush().await.unwrap();
            streams.push((client, server));
        }
        let mut held = Vec::new();
        for (_, server) in &streams {
            held.push(server.recv().await.unwrap());
        }
        assert_eq!(counters().buffers_in_use, 60);
        drop(held);
        assert_eq!(counters().buffers_in_use, 0);
    });
}

/// Runs this very test again as a process of its own, whose descriptor limit it may change.
pub(crate) fn out_of_descriptors_is_an_error_and_passes(driver: DriverKind) {
    const MARK: &str = "OUTRIGGER_TEST_DESCRIPTORS";
    if std::env::var_os(MARK).is_none() {
        let name = format!("{}::out_of_descriptors_is_an_error_and_passes", driver.as_str());
        let program = std::env::current_exe().unwrap();
        let child = std::process::Command::new(program)
            .args([&name, "--exact", "--nocapture"])
            .env(MARK, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        assert!(
            child.status.success() && text.contains("1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&child.stderr)
        );
        return;
    }
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: `limit` lives through the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    run(driver, async {
        let (listener, address) = listen();
        let mut clients: Vec<_> = (0..8).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let mut fillers = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            fillers.push(file);
        }
        for _ in 0..3 {
            let error = listener.accept().await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
            sleep(Duration::from_millis(1)).await;
        }
        drop(fillers);
        let mut servers = Vec::new();
        while servers.len() < clients.len() {
            match listener.accept().await {
                Ok((stream, _)) => servers.push(stream),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}"),
            }
        }
        for server in &servers {
            server.queue(Buf::from_static(b"late"));
            server.flush().await.unwrap();
        }
        for client in &mut clients {
            let mut bytes = [0; 4];
            client.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"late");
        }
    });
}

pub(crate) fn a_spinning_task_does_not_starve_io(driver: DriverKind) {
    run(driver, async {
        let (client, server) = pair().await;
        let spinning = spawn(async {
            loop {
                yield_now().await;
            }
        });
        let echoing = spawn(async move {
            for _ in 0..20 {
                let bytes = server.recv().await.unwrap();
                server.queue(bytes);
                server.flush().await.unwrap();
            }
        });
        for _ in 0..20 {
            client.queue(Buf::from_static(b"x"));
            client.flush().await.unwrap();
            assert_eq!(recv_exact(&client, 1).await, b"x");
        }
        sleep(Duration::from_millis(2)).await;
        echoing.await;
        drop(spinning);
    });
}

pub(crate) fn a_fast_sender_does_not_starve_the_rest(driver: DriverKind) {
    run(driver, async {
        let (listener, address) = listen();
        let flooding = std::thread::spawn(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            let block = vec![5; 1 << 16];
            while stream.write_all(&block).is_ok() {}
        });
        let (server, _) = listener.accept().await.unwrap();
        let server = Rc::new(server);
        let draining = spawn({
            let server = server.clone();
            async move { while !server.recv().await.unwrap().is_empty() {} }
        });
        for _ in 0..20 {
            timeout(Duration::from_secs(5), sleep(Duration::from_millis(1))).await.unwrap();
        }
        drop(draining);
        server.reset_on_close();
        drop(server);
        until("the flood's socket closed", || counters().sockets_open == 1).await;
        flooding.join().unwrap();
    });
}

pub(crate) fn a_small_submission_queue_is_enough(driver: DriverKind) {
    let options = Options { entries: 1, ..Options::default() };
    run_with(driver, &options, async {
        let (listener, address) = listen();
        let mut parts = Vec::new();
        for at in 0..100usize {
            let (client, server) = pair_of(&listener, address).await;
            parts.push(spawn(async move {
                for round in 0..10 {
                    client.queue(Buf::from(pattern_bytes(at + round, 300)));
                    client.flush().await.unwrap();
                }
                recv_exact(&client, 1).await
            }));
            parts.push(spawn(async move {
                for round in 0..10 {
                    assert_eq!(recv_exact(&server, 300).await, pattern_bytes(at + round, 300));
                }
                server.queue(Buf::from_static(b"."));
                server.flush().await.unwrap();
                Vec::new()
            }));
        }
        for part in parts {
            part.await;
        }
    });
}

pub(crate) fn connections_beyond_the_completion_queue_get_on(driver: DriverKind) {
    const CONNECTIONS: usize = 1500;
    let options = Options { entries: 1, ..Options::default() };
    run_with(driver, &options, async {
        let (listener, address) = listen();
        let mut pairs = Vec::new();
        for _ in 0..CONNECTIONS {
            let (client, server) = pair_of(&listener, address).await;
            drop(super::give_up_after(1, server.recv()).await);
            pairs.push((client, server));
        }
        // More completions in one turn than the queue of 1024 holds.
        for (client, _) in &pairs {
            client.queue(Buf::from_static(b"all at once"));
        }
        let flushing: Vec<_> = pairs
            .into_iter()
            .map(|(client, server)| {
                spawn(async move {
                    client.flush().await.unwrap();
                    assert_eq!(recv_exact(&server, 11).await, b"all at once");
                    drop(client);
                    assert!(server.recv().await.unwrap().is_empty());
                })
            })
            .collect();
        for part in flushing {
            part.await;
        }
        let _: Option<TcpStream> = None;
    });
}
