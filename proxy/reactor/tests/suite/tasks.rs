//! Tasks, timers, wakes from other threads, and the end of a runtime.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{Read, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use outrigger_reactor::{
    Buf, DriverKind, Elapsed, Options, Runtime, TcpListener, TcpStream, counters, mailbox, now, sleep, sleep_until,
    spawn, timeout, yield_now,
};

use super::{Dice, listen, pair, recv_exact, run, until};

struct SetOnDrop(Rc<Cell<bool>>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

pub(crate) fn a_task_gives_its_output(driver: DriverKind) {
    run(driver, async {
        let task = spawn(async {
            yield_now().await;
            Box::new(42)
        });
        assert!(!task.is_finished());
        assert_eq!(counters().tasks_live, 1);
        assert_eq!(*task.await, 42);
        assert_eq!(counters().tasks_live, 0);
    });
}

pub(crate) fn dropping_a_task_aborts_it(driver: DriverKind) {
    run(driver, async {
        let is_dropped = Rc::new(Cell::new(false));
        let guard = SetOnDrop(is_dropped.clone());
        let task = spawn(async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        });
        yield_now().await;
        assert!(!is_dropped.get());
        drop(task);
        assert!(is_dropped.get(), "at once");
        assert_eq!(counters().tasks_live, 0);
    });
}

pub(crate) fn a_task_may_abort_itself(driver: DriverKind) {
    run(driver, async {
        let own: Rc<RefCell<Option<outrigger_reactor::Task<()>>>> = Rc::default();
        let is_dropped = Rc::new(Cell::new(false));
        let guard = SetOnDrop(is_dropped.clone());
        let task = spawn({
            let own = own.clone();
            async move {
                let _guard = guard;
                drop(own.borrow_mut().take());
                yield_now().await;
                unreachable!("it is not polled again");
            }
        });
        *own.borrow_mut() = Some(task);
        until("it is gone", || is_dropped.get()).await;
    });
}

pub(crate) fn a_detached_task_runs_on(driver: DriverKind) {
    run(driver, async {
        let is_done = Rc::new(Cell::new(false));
        let done = is_done.clone();
        spawn(async move {
            sleep(Duration::from_millis(2)).await;
            done.set(true);
        })
        .detach();
        until("it is done", || is_done.get()).await;
    });
}

pub(crate) fn tasks_of_an_ended_runtime_are_dropped_with_it(driver: DriverKind) {
    let is_dropped = Rc::new(Cell::new(false));
    let guard = SetOnDrop(is_dropped.clone());
    let mut runtime = Runtime::new(driver, &Options::default()).unwrap();
    runtime.block_on(async move {
        spawn(async move {
            let _guard = guard;
            sleep(Duration::from_secs(3600)).await;
        })
        .detach();
        yield_now().await;
    });
    assert!(!is_dropped.get());
    drop(runtime);
    assert!(is_dropped.get());
}

pub(crate) fn timers_keep_order_and_are_never_early(driver: DriverKind) {
    run(driver, async {
        let dice = Rc::new(Dice::new());
        let order: Rc<RefCell<Vec<u64>>> = Rc::default();
        let start = Instant::now();
        let tasks: Vec<_> = (0..200)
            .map(|_| {
                let (order, ms) = (order.clone(), dice.below(60) as u64);
                spawn(async move {
                    let deadline = start + Duration::from_millis(ms);
                    let mut nap = sleep_until(deadline);
                    let has_passed = poll_fn(|cx| Poll::Ready(Pin::new(&mut nap).poll_once(cx).is_ready())).await;
                    nap.await;
                    assert!(Instant::now() >= deadline, "{ms} ms timer was early");
                    assert!(now() >= deadline);
                    if !has_passed {
                        order.borrow_mut().push(ms);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        assert!(order.borrow().is_sorted(), "{order:?}");
        for us in [1, 10, 499, 999, 1001, 1500] {
            let span = Duration::from_micros(us);
            let before = Instant::now();
            sleep(span).await;
            assert!(before.elapsed() >= span, "{us} µs sleep was early");
        }
    });
}

pub(crate) fn ten_thousand_timers(driver: DriverKind) {
    run(driver, async {
        let dice = Dice::new();
        let fired = Rc::new(Cell::new(0));
        let start = Instant::now();
        for _ in 0..10_000 {
            let (fired, span) = (fired.clone(), Duration::from_micros(dice.below(50_000) as u64));
            spawn(async move {
                sleep_until(start + span).await;
                assert!(start.elapsed() >= span);
                fired.set(fired.get() + 1);
            })
            .detach();
        }
        yield_now().await;
        assert!(counters().timers_armed > 1000);
        until("all fired", || fired.get() == 10_000).await;
        assert!(counters().timers_armed <= 2, "{:?}", counters());
    });
}

pub(crate) fn a_sleep_can_be_reset_and_cancelled(driver: DriverKind) {
    run(driver, async {
        // The scenario's own deadline is armed once it has been pending.
        yield_now().await;
        let start = Instant::now();
        let mut nap = sleep_until(start + Duration::from_secs(3600));
        assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut nap).poll_once(cx))).await.is_pending());
        assert_eq!(counters().timers_armed, 2, "with the scenario's own deadline");
        nap.reset(start + Duration::from_millis(5));
        (&mut nap).await;
        assert!(start.elapsed() >= Duration::from_millis(5));
        nap.reset(Instant::now() + Duration::from_millis(5));
        let again = Instant::now();
        (&mut nap).await;
        assert!(again.elapsed() >= Duration::from_millis(4), "a fired sleep is armed again by a reset");
        let mut long = sleep(Duration::from_secs(3600));
        assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut long).poll_once(cx))).await.is_pending());
        drop(long);
        drop(nap);
        assert_eq!(counters().timers_armed, 1);
    });
}

trait PollOnce {
    fn poll_once(self, cx: &mut Context<'_>) -> Poll<()>;
}

impl<F: Future<Output = ()>> PollOnce for Pin<&mut F> {
    fn poll_once(self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll(cx)
    }
}

pub(crate) fn a_timeout_drops_what_it_waits_for(driver: DriverKind) {
    run(driver, async {
        let is_dropped = Rc::new(Cell::new(false));
        let guard = SetOnDrop(is_dropped.clone());
        let slow = async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        };
        assert_eq!(timeout(Duration::from_millis(3), slow).await, Err(Elapsed));
        assert!(is_dropped.get());
        assert_eq!(timeout(Duration::from_secs(5), async { 7 }).await, Ok(7));
        assert_eq!(timeout(Duration::ZERO, async { 7 }).await, Ok(7), "what is ready wins");
        assert_eq!(timeout(Duration::MAX, async { 7 }).await, Ok(7));
    });
}

pub(crate) fn a_mailbox_takes_storms_from_other_threads(driver: DriverKind) {
    const THREADS: u64 = 4;
    const VALUES: u64 = 20_000;
    run(driver, async {
        let (sender, mut inbox) = mailbox();
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let sender = sender.clone();
                thread::spawn(move || {
                    for value in 0..VALUES {
                        sender.send((thread, value)).unwrap();
                        if value % 1000 == 0 {
                            // Let the runtime fall asleep in between.
                            thread::park_timeout(Duration::from_micros(300));
                        }
                    }
                })
            })
            .collect();
        drop(sender);
        let mut next = [0; THREADS as usize];
        while let Some((thread, value)) = inbox.recv().await {
            assert_eq!(value, next[thread as usize], "values of one thread keep their order");
            next[thread as usize] += 1;
        }
        assert_eq!(next, [VALUES; THREADS as usize]);
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

pub(crate) fn a_gone_mailbox_gives_values_back(driver: DriverKind) {
    run(driver, async {
        let (sender, inbox) = mailbox::<u32>();
        drop(inbox);
        assert_eq!(sender.send(5), Err(5));
    });
}

pub(crate) fn wakers_work_from_other_threads(driver: DriverKind) {
    const ROUNDS: usize = 3000;
    run(driver, async {
        let shared: Arc<(Mutex<Option<Waker>>, AtomicUsize)> = Arc::default();
        let ringing = thread::spawn({
            let shared = shared.clone();
            move || {
                let mut rung = 0;
                while rung < ROUNDS {
                    if let Some(waker) = shared.0.lock().unwrap().take() {
                        shared.1.fetch_add(1, Ordering::SeqCst);
                        let again = waker.clone();
                        waker.wake();
                        again.wake();
                        rung += 1;
                    } else {
                        thread::yield_now();
                    }
                }
            }
        });
        for round in 1..=ROUNDS {
            poll_fn(|cx| {
                if shared.1.load(Ordering::SeqCst) >= round {
                    return Poll::Ready(());
                }
                *shared.0.lock().unwrap() = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
        }
        ringing.join().unwrap();
    });
}

pub(crate) fn a_late_wake_finds_nobody(driver: DriverKind) {
    let mut runtime = Runtime::new(driver, &Options::default()).unwrap();
    let waker = runtime.block_on(async {
        let task = spawn(poll_fn(|cx| Poll::Ready(cx.waker().clone())));
        task.await
    });
    waker.wake_by_ref();
    runtime.block_on(yield_now());
    drop(runtime);
    waker.wake_by_ref();
    thread::spawn(move || waker.wake()).join().unwrap();
}

pub(crate) fn sockets_and_bytes_may_outlive_the_runtime(driver: DriverKind) {
    let mut runtime = Runtime::new(driver, &Options::default()).unwrap();
    let (client, server, bytes, listener) = runtime.block_on(async {
        let (listener, address) = listen();
        let connecting = spawn(TcpStream::connect(address));
        let (server, _) = listener.accept().await.unwrap();
        let client = connecting.await.unwrap();
        client.queue(Buf::from_static(b"outlives"));
        client.flush().await.unwrap();
        let bytes = server.recv().await.unwrap();
        // Receives are armed and a send is blocked when the runtime ends.
        client.queue(Buf::from(vec![3; 8 << 20]));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(client.poll_flush(&mut cx).is_pending());
        assert!(client.poll_recv(&mut cx).is_pending());
        sleep(Duration::from_millis(5)).await;
        (client, server, bytes, listener)
    });
    drop(runtime);
    assert_eq!(&*bytes, b"outlives");
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(client.poll_flush(&mut cx), Poll::Ready(Err(_))));
    assert!(matches!(client.poll_recv(&mut cx), Poll::Ready(Err(_))));
    assert!(matches!(listener.poll_accept(&mut cx), Poll::Ready(Err(_))));
    drop((client, server, listener));
    drop(bytes);
}

pub(crate) fn a_runtime_can_run_again(driver: DriverKind) {
    let mut runtime = Runtime::new(driver, &Options::default()).unwrap();
    let (client, server) = runtime.block_on(pair());
    runtime.block_on(async {
        client.queue(Buf::from_static(b"again"));
        client.flush().await.unwrap();
        assert_eq!(recv_exact(&server, 5).await, b"again");
    });
}

pub(crate) fn a_panic_of_a_task_comes_out(driver: DriverKind) {
    let outcome = std::panic::catch_unwind(|| {
        run(driver, async {
            spawn(async { panic!("on purpose") }).await;
        });
    });
    assert!(outcome.is_err());
    run(driver, yield_now());
}

pub(crate) fn two_runtimes_share_a_listener(driver: DriverKind) {
    const CLIENTS: usize = 100;
    let bound = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = bound.local_addr().unwrap();
    let served: Arc<[AtomicUsize; 2]> = Arc::default();
    let (stops, workers): (Vec<_>, Vec<_>) = (0..2)
        .map(|worker| {
            let socket = bound.try_clone().unwrap();
            let served = served.clone();
            let (stop_sender, stop_receiver) = std::sync::mpsc::channel();
            let thread = thread::spawn(move || {
                run(driver, async move {
                    let (stop, mut stopped) = mailbox::<()>();
                    stop_sender.send(stop).unwrap();
                    let listener = TcpListener::from_std(socket).unwrap();
                    let serving = spawn(async move {
                        loop {
                            let (stream, _) = listener.accept().await.unwrap();
                            served[worker].fetch_add(1, Ordering::SeqCst);
                            spawn(async move {
                                let bytes = recv_exact(&stream, 4).await;
                                stream.queue(Buf::from(bytes));
                                stream.flush().await.unwrap();
                            })
                            .detach();
                        }
                    });
                    stopped.recv().await;
                    drop(serving);
                });
            });
            (stop_receiver.recv().unwrap(), thread)
        })
        .unzip();
    drop(bound);
    let ask = move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"ping").unwrap();
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ping");
    };
    let counts = |served: &[AtomicUsize; 2]| [0, 1].map(|worker| served[worker].load(Ordering::SeqCst));
    // Clients come one at a time: whoever stands at the head of the line would get them all. Either may start late.
    let mut asked = 0;
    while counts(&served).contains(&0) {
        ask();
        asked += 1;
        assert!(asked < 10_000, "one runtime gets everything: {:?}", counts(&served));
    }
    let before = counts(&served);
    for _ in 0..CLIENTS {
        ask();
    }
    let after = counts(&served);
    for worker in 0..2 {
        assert!(after[worker] - before[worker] >= CLIENTS / 4, "they do not take turns: {before:?} {after:?}");
    }
    // With one of them gone, the other serves alone.
    let mut stops = stops.into_iter();
    let mut workers = workers.into_iter();
    drop(stops.next());
    workers.next().unwrap().join().unwrap();
    for _ in 0..CLIENTS {
        ask();
    }
    assert_eq!(counts(&served)[1] - after[1], CLIENTS);
    drop(stops.next());
    workers.next().unwrap().join().unwrap();
}

pub(crate) fn counters_move(driver: DriverKind) {
    run(driver, async {
        let before = counters();
        let (client, server) = pair().await;
        client.queue(Buf::from_static(b"count me"));
        client.flush().await.unwrap();
        let bytes = server.recv().await.unwrap();
        let after = counters();
        assert!(after.turns > before.turns);
        assert!(after.syscalls > before.syscalls);
        assert!(after.completions > before.completions);
        assert_eq!(after.sent_bytes, 8);
        assert_eq!(after.recv_bytes, 8);
        assert_eq!(after.buffers_in_use, 1);
        assert_eq!(after.sockets_open, before.sockets_open + 2);
        drop(bytes);
        assert_eq!(counters().buffers_in_use, 0);
        match driver {
            DriverKind::Uring => assert!(after.submissions > before.submissions),
            DriverKind::Epoll => assert_eq!(after.submissions, 0),
        }
        drop(client);
        drop(server);
        until("sockets closed", || counters().sockets_open == before.sockets_open).await;
    });
}
