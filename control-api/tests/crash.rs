//! ATTACKS 49: the control plane is killed with -9 in the middle of applies; what was confirmed is
//! there afterwards, and each apply is there whole or not at all.

mod world;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;
use world::{Control, Folder, send_signal, upstream};

const ROUNDS: u16 = 8;
const OBJECTS: u16 = 20;

/// Twenty upstreams that all carry one port: a mix of two ports is half an apply.
fn generation(port: u16) -> String {
    (0..OBJECTS).map(|index| upstream(&format!("u{index}"), port)).collect()
}

fn stored_ports(control: &Control) -> Vec<u16> {
    let (status, list) = control.send("GET", "/v1/Upstream", "");
    assert_eq!(status, 200);
    let port_of = |item: &Value| {
        let address = item["spec"]["endpoints"][0]["address"].as_str().expect("an address");
        address.rsplit(':').next().expect("a port").parse().expect("a number")
    };
    list["items"].as_array().expect("a list").iter().map(port_of).collect()
}

#[test]
fn killed_in_the_middle_it_holds_all_of_the_old_or_all_of_the_new() {
    let folder = Folder::new("crash");
    let store = folder.file("policy.redb");
    let mut port = 1;
    let mut confirmed = 0;
    for round in 0..ROUNDS {
        let control = Control::start(&store);
        let found = stored_ports(&control);
        if let Some(first) = found.first() {
            assert_eq!(found.len(), usize::from(OBJECTS), "round {round}");
            assert!(found.iter().all(|port| port == first), "round {round}: half an apply: {found:?}");
            assert!(*first >= confirmed, "round {round}: {confirmed} was confirmed, {first} is stored");
        } else {
            assert_eq!(confirmed, 0, "round {round}: what was confirmed is gone");
        }
        let is_dead = AtomicBool::new(false);
        let applied = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // The kill lands somewhere inside an apply; each round a few applies later.
                let wanted = u64::from(round) * 2 + 1;
                while applied.load(Ordering::SeqCst) < wanted {
                    std::thread::yield_now();
                }
                send_signal(control.process_id(), "KILL");
                is_dead.store(true, Ordering::SeqCst);
            });
            loop {
                match control.try_send("POST", "/v1/apply", &generation(port), &[]) {
                    Ok((200, _)) => {
                        confirmed = port;
                        applied.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok((status, answer)) => panic!("{status}: {answer:#}"),
                    Err(_) => break,
                }
                port += 1;
            }
            port += 1;
        });
        assert!(is_dead.load(Ordering::SeqCst), "it broke off before it was killed");
    }
    assert!(confirmed >= ROUNDS, "too few applies to mean anything: {confirmed}");
}
