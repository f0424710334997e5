//! Purpose: pods that come and go: a rollout under load, and a Job that ends.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use outrigger_tests::world::Downstream;
use outrigger_tests::world::kubelet::Phase;

use super::SHOP;
use super::mesh::{self, Setup};

const PODS: usize = 20;
const AT_ONCE: usize = 4;
const GRACE: Duration = Duration::from_secs(30);

#[test]
#[ignore = "runs pods: make interop"]
fn a_rollout_of_twenty_pods_under_load_fails_no_request() {
    mesh::with(&Setup { installs_profile: true }, |mesh| {
        mesh.kube.namespace(SHOP, &[("outrigger.dev/inject", "enabled")]).unwrap();
        let address = mesh.service(SHOP, "orders", 80, 8080);
        let shopper = mesh.server(SHOP, "shopper", "shopper");
        shopper.wait_ready();
        let mut old: Vec<_> = (0..PODS).map(|number| mesh.server(SHOP, "orders", &format!("old-{number}"))).collect();
        old.iter().for_each(|pod| pod.wait_ready());
        mesh.wait_served(&shopper, address);

        let (is_over, served) = (AtomicBool::new(false), AtomicU64::new(0));
        let failures = std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                shopper.place.enter();
                let mut failures = Vec::new();
                let mut client = Downstream::connect(address).unwrap();
                while !is_over.load(Ordering::Relaxed) {
                    match client.get("/health") {
                        Ok(answer) if answer.status == 200 => {
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(answer) => failures.push(format!("{answer:?}")),
                        Err(error) => {
                            failures.push(error.to_string());
                            client = Downstream::connect(address).unwrap();
                        }
                    }
                }
                failures
            });
            // As a Deployment does: some new ones, then as many old ones fewer.
            let mut new = Vec::new();
            while !old.is_empty() {
                let from = new.len();
                new.extend((from..from + AT_ONCE).map(|number| mesh.server(SHOP, "orders", &format!("new-{number}"))));
                new[from..].iter().for_each(|pod| pod.wait_ready());
                let leaving: Vec<_> = old.drain(..AT_ONCE).collect();
                leaving.iter().for_each(|pod| pod.delete(GRACE));
                for pod in &leaving {
                    let state = pod.wait("to be over", GRACE + Duration::from_secs(10), |state| state.is_over);
                    assert_eq!(state.exits.get("outrigger-proxy"), Some(&0), "{state:#?}");
                    mesh.forget(&pod.name);
                }
            }
            is_over.store(true, Ordering::Relaxed);
            load.join().unwrap()
        });
        let served = served.into_inner();
        println!("{PODS} pods replaced, {served} requests served, {} failed", failures.len());
        assert!(served > 100, "{served}");
        assert_eq!(failures, Vec::<String>::new());
    });
}

#[test]
#[ignore = "runs pods: make interop"]
fn a_jobs_pod_ends_by_itself() {
    mesh::with(&Setup { installs_profile: true }, |mesh| {
        mesh.kube.namespace(SHOP, &[("outrigger.dev/inject", "enabled")]).unwrap();
        let address = mesh.service(SHOP, "orders", 80, 8080);
        let orders = mesh.server(SHOP, "orders", "orders-1");
        orders.wait_ready();
        for (name, script, phase) in [
            (
                "done",
                format!("curl -sf --retry 20 --retry-delay 1 --retry-all-errors http://{address}/health"),
                Phase::Succeeded,
            ),
            ("failed", "exit 3".to_owned(), Phase::Failed),
        ] {
            let job = mesh.job(SHOP, name, &script);
            let state = job.wait("to be over", Duration::from_secs(60), |state| state.is_over);
            assert_eq!((state.phase, state.exits.get("outrigger-proxy")), (phase, Some(&0)), "{state:#?}");
        }
    });
}
