//! Several workers: how many there are, and how evenly the connections lie on them.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_tests::world::resource;
use outrigger_tests::world::{Downstream, Io, Proxy, ProxySetup, wait_for};
use serde_json::{Value, json};

const CLIENTS: usize = 200;

/// Every request is answered by the proxy itself: no upstream has to bear a burst.
fn answering() -> Value {
    let answer = json!({ "direct_response": { "status": 200, "body": { "inline_string": "served" } } });
    resource::plain(vec![resource::route("/", answer)], Vec::new())
}

/// A proxy with two workers.
fn start(io: Io) -> Proxy {
    Proxy::start(&ProxySetup::new(io, answering()).workers(2))
}

/// Of each worker, a number that `/io` tells.
fn of_workers(proxy: &Proxy, field: &str) -> Vec<u64> {
    let told = proxy.admin_json("/io");
    let workers = told["workers"].as_array().unwrap_or_else(|| panic!("{told}"));
    workers.iter().map(|worker| worker[field].as_u64().unwrap_or_else(|| panic!("{field}: {told}"))).collect()
}

fn loads(proxy: &Proxy) -> Vec<u64> {
    of_workers(proxy, "connections")
}

/// All open connections are counted and each worker's part is within a tenth of even.
#[track_caller]
fn assert_even(proxy: &Proxy, clients: usize) {
    let loads = loads(proxy);
    assert_eq!(loads.iter().sum::<u64>(), clients as u64, "{loads:?}");
    let even = clients as f64 / loads.len() as f64;
    for load in &loads {
        assert!((*load as f64 - even).abs() <= even / 10.0, "{loads:?}, even would be {even}");
    }
}

fn served(client: &mut Downstream) {
    assert_eq!(client.get("/").unwrap().status, 200);
}

/// A served connection, and the worker it lies on.
fn placed(proxy: &Proxy) -> (Downstream, usize) {
    let before = loads(proxy);
    let mut client = proxy.connect();
    served(&mut client);
    let after = loads(proxy);
    let on: Vec<usize> = (0..after.len()).filter(|at| after[*at] == before[*at] + 1).collect();
    assert_eq!(on.len(), 1, "{before:?}, then {after:?}");
    (client, on[0])
}

/// Opens `count` connections from four threads at once, with a request on each.
fn burst(address: SocketAddr, count: usize) -> Vec<Downstream> {
    let open = move || {
        let clients = (0..count / 4).map(|_| {
            let mut client = Downstream::connect(address).unwrap();
            client.send_request("GET", "/", &[], b"").unwrap();
            client
        });
        clients.collect::<Vec<_>>()
    };
    let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(open)).collect();
    threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
}

/// Opens connections one by one, then closes those of the first worker; the others are returned.
fn lopsided(proxy: &Proxy, clients: usize) -> Vec<Downstream> {
    let all: Vec<_> = (0..clients).map(|_| placed(proxy)).collect();
    let (gone, left): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, worker)| *worker == 0);
    drop(gone);
    wait_for("the closed connections to be gone", Duration::from_secs(10), || {
        let loads = loads(proxy);
        if loads[0] == 0 { Ok(()) } else { Err(format!("{loads:?}")) }
    });
    left.into_iter().map(|(client, _)| client).collect()
}

on_both_drivers! {
    fn connections_opened_one_by_one_are_even(io) {
        let proxy = start(io);
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let mut client = proxy.connect();
            served(&mut client);
            clients.push(client);
        }
        assert_even(&proxy, CLIENTS);
        clients.iter_mut().for_each(served);
    }

    fn connections_opened_in_a_burst_are_even(io) {
        let proxy = start(io);
        let mut clients = burst(proxy.listener("main"), CLIENTS);
        for client in &mut clients {
            assert_eq!(client.read_response("GET").unwrap().status, 200);
        }
        assert_even(&proxy, CLIENTS);
        clients.iter_mut().for_each(served);
    }

    fn new_connections_go_to_the_emptier_worker(io) {
        let proxy = start(io);
        let mut clients = lopsided(&proxy, CLIENTS);
        let gone = CLIENTS - clients.len();
        assert!((80..=120).contains(&gone), "{gone} of {CLIENTS} lay on the first worker");
        let handed = of_workers(&proxy, "handed_over");
        let one_by_one = gone / 2;
        for _ in 0..one_by_one {
            let mut client = proxy.connect();
            served(&mut client);
            clients.push(client);
        }
        let rest = (gone - one_by_one) / 4 * 4;
        let mut sudden = burst(proxy.listener("main"), rest);
        for client in &mut sudden {
            assert_eq!(client.read_response("GET").unwrap().status, 200);
        }
        clients.append(&mut sudden);
        assert_even(&proxy, clients.len());
        let since = of_workers(&proxy, "handed_over");
        assert!(since[1] > handed[1], "the fuller worker handed connections over: {handed:?}, then {since:?}");
        clients.iter_mut().for_each(served);
    }

    fn a_drain_amid_hand_overs_loses_none(io) {
        let mut proxy = start(io);
        let kept = lopsided(&proxy, 60);
        // Whichever worker accepts these, most have to go to the first; the signal comes while they are on their way.
        let mut clients = burst(proxy.listener("main"), 100);
        proxy.interrupt();
        for client in &mut clients {
            let response = client.read_response("GET").unwrap();
            assert_eq!((response.status, response.text().as_str()), (200, "served"));
        }
        drop(kept);
        drop(clients);
        let status = proxy.process().wait_exit(Duration::from_secs(10)).unwrap();
        assert_eq!(status.code(), Some(0), "{:?}", proxy.log());
    }

    fn one_request_each_is_served_and_leaves_nothing_behind(io) {
        let proxy = start(io);
        let address = proxy.listener("main");
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(move || {
                    for _ in 0..250 {
                        let response = outrigger_tests::world::downstream::get(address, "/").unwrap();
                        assert_eq!(response.status, 200);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        wait_for("every connection to be gone", Duration::from_secs(10), || {
            let loads = loads(&proxy);
            if loads == [0, 0] { Ok(()) } else { Err(format!("{loads:?}")) }
        });
        // What comes and goes is evened by the next close: a hand-over would be for nothing.
        let handed = of_workers(&proxy, "handed_over");
        assert!(handed.iter().sum::<u64>() <= 150, "{handed:?}");
    }

    fn the_number_of_workers_is_told_with_its_reason(io) {
        let proxy = start(io);
        let told = proxy.admin_json("/io");
        assert_eq!((told["worker_count"].as_u64(), told["worker_reason"].as_str()), (Some(2), Some("--workers 2")));
        let auto = ProxySetup::new(io, answering()).workers(0);
        let auto = Proxy::start(&auto.args(&["--cpu-request-milli", "1000"]));
        let told = auto.admin_json("/io");
        let count = told["worker_count"].as_u64().unwrap();
        assert!(count >= 1 && count == told["workers"].as_array().unwrap().len() as u64, "{told}");
        let reason = told["worker_reason"].as_str().unwrap();
        assert!(reason.contains("CPUs"), "{told}");
        assert!(auto.log().iter().any(|line| line.contains(reason)), "{:?}", auto.log());
    }
}
