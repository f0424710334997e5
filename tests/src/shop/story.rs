//! Purpose: the plot of the demo: weights shift, a limit trips, a replica dies and returns, and nobody notices.
//!
//! Shape: each step changes one thing over the policy API, waits until every sidecar runs it, and says what the
//! traffic did before and after, as measured by the buyers.
//!
//! Cancel: Ctrl-C ends the process at once; its children are tied to it and end with it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use outrigger_tests::world::scratch;

use crate::DemoArgs;
use crate::mesh::Mesh;
use crate::report::Report;
use crate::sale::{Count, Sale};

const SHOP: &str = include_str!("policy/shop.yaml");
const WEIGHTS_90_10: &str = include_str!("policy/orders-90-10.yaml");
const WEIGHTS_50_50: &str = include_str!("policy/orders-50-50.yaml");
const LIMIT: &str = include_str!("policy/limit.yaml");

/// How long the traffic is watched in one step.
const WATCHED: Duration = Duration::from_secs(3);
/// The sale closes by itself after this long, whatever the plot does.
const SALE_LIMIT: Duration = Duration::from_secs(55);
const STAY_LIMIT: Duration = Duration::from_secs(24 * 3_600);
const STAY_RATE: u32 = 50;
const EJECTED_WITHIN: Duration = Duration::from_secs(8);
const RETURNED_WITHIN: Duration = Duration::from_secs(15);
const VICTIM: &str = "orders-2";

/// Says what happens, with the time since the start.
#[derive(Debug)]
struct Narrator {
    start: Instant,
    is_quiet: bool,
}

impl Narrator {
    fn say(&self, text: &str) {
        let line = format!("{:>5.1}s  {text}", self.start.elapsed().as_secs_f64());
        self.print(&line);
    }

    fn print(&self, text: &str) {
        if self.is_quiet { eprintln!("{text}") } else { println!("{text}") }
    }
}

/// Runs the story; true when nothing was lost or doubled.
pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<bool> {
    end_on_interrupt()?;
    let narrator = Narrator { start: Instant::now(), is_quiet: args.json };
    narrator.say("starting a control plane, six applications and a sidecar beside each");
    let mut mesh = Mesh::start(args.io.into())?;
    narrator.say(&format!(
        "up: policy API http://{}, xDS {}, sidecars on {}",
        mesh.control.api(),
        mesh.control.xds(),
        mesh.drivers()
    ));
    mesh.push(&format!("{SHOP}\n---\n{WEIGHTS_90_10}"), &[])?;
    narrator.say("policy applied and running everywhere: gateway → orders (v1 ×2, v2) → stock, payment");
    let sale = Sale::open(mesh.front()?, args.rate, SALE_LIMIT);
    narrator.say(&format!("the sale opens: {} orders a second", args.rate));
    shift_weights(&narrator, &mesh, &sale)?;
    trip_the_limit(&narrator, &mesh, &sale, args.rate)?;
    lose_a_replica(&narrator, &mut mesh, &sale)?;
    let report = close(&mesh, sale)?;
    narrator.say("the sale closes");
    narrator.print(&format!("\n{}", report.to_table()));
    for failure in &report.failures {
        narrator.print(&format!("  lost: {failure}"));
    }
    if args.json {
        println!("{:#}", report.to_json());
    }
    if args.stay {
        stay(&narrator, &mesh)?;
    } else {
        narrator.print("Look inside while it runs: make run ARGS=--stay");
    }
    Ok(report.is_clean())
}

fn shift_weights(narrator: &Narrator, mesh: &Mesh, sale: &Sale) -> anyhow::Result<()> {
    let before = sale.watch(WATCHED);
    narrator.say(&format!("weights 90/10: {}", shares(before)));
    mesh.push(WEIGHTS_50_50, &[])?;
    let after = sale.watch(WATCHED);
    narrator.say(&format!("weights 50/50, pushed under load: {}", shares(after)));
    Ok(())
}

fn shares(count: Count) -> String {
    let (v1, v2) = count.shares();
    format!("v1 {v1:.1} %, v2 {v2:.1} % of {} orders", count.served())
}

fn trip_the_limit(narrator: &Narrator, mesh: &Mesh, sale: &Sale, rate: u32) -> anyhow::Result<()> {
    let limit = rate / 2;
    mesh.push(LIMIT, &[("limit", limit.to_string())])?;
    narrator.say(&format!("limit set: {limit} orders a second"));
    let limited = sale.watch(WATCHED);
    narrator.say(&format!("limited: {} served, {} refused with 429", limited.served(), limited.limited));
    if let Some(refusal) = sale.refusal() {
        narrator.say(&format!("  outrigger-fault: {refusal}"));
    }
    mesh.control.delete("ratelimit", "shop", "flash-sale")?;
    let revision = mesh.control.proxies()?["revision"].as_u64().context("the control plane tells its revision")?;
    mesh.control.wait(revision)?;
    let free = sale.watch(Duration::from_secs(1));
    narrator.say(&format!("limit removed: {} served, {} refused", free.served(), free.limited));
    Ok(())
}

fn lose_a_replica(narrator: &Narrator, mesh: &mut Mesh, sale: &Sale) -> anyhow::Result<()> {
    let endpoint = mesh.inbound(VICTIM)?.to_string();
    let labels = [("endpoint", endpoint.as_str())];
    let before = sale.count();
    let retries = mesh.metric("outrigger_cluster_retries_total", &[])?;
    let ejections = mesh.gateway_metric("outrigger_endpoint_ejections_total", &labels)?;
    let killed = Instant::now();
    let (app, sidecar) = mesh.kill(VICTIM)?;
    narrator.say(&format!("{VICTIM} killed: application pid {app}, sidecar pid {sidecar}"));
    wait_until("the ejection", EJECTED_WITHIN, || {
        Ok(mesh.gateway_metric("outrigger_endpoint_ejections_total", &labels)? > ejections)
    })?;
    narrator.say(&format!("{VICTIM} ejected {:.0} ms after its death", killed.elapsed().as_secs_f64() * 1_000.0));
    sale.watch(WATCHED);
    let during = sale.count().since(before);
    let retried = mesh.metric("outrigger_cluster_retries_total", &[])? - retries;
    narrator.say(&format!("{} orders since: {} lost, {retried:.0} retried elsewhere", during.sent, during.lost()));
    mesh.start_replica(VICTIM)?;
    narrator.say(&format!("{VICTIM} started again, where it was"));
    let served = sale.count().orders_2;
    let restarted = Instant::now();
    wait_until("its return", RETURNED_WITHIN, || Ok(sale.count().orders_2 > served))?;
    narrator.say(&format!("{VICTIM} serves again, {:.1} s after its start", restarted.elapsed().as_secs_f64()));
    let back = sale.watch(WATCHED);
    narrator.say(&format!("v1 is shared again: orders-1 {}, {VICTIM} {}", back.orders_1, back.orders_2));
    Ok(())
}

fn close(mesh: &Mesh, sale: Sale) -> anyhow::Result<Report> {
    let tally = sale.close();
    let ledger = mesh.ledger()?;
    let book = |name: &str| ledger[name].as_u64().with_context(|| format!("the ledger has no {name}"));
    Ok(Report {
        count: Count::from(&tally),
        retried: whole(mesh.metric("outrigger_cluster_retries_total", &[])?),
        ejected: whole(mesh.metric("outrigger_endpoint_ejections_total", &[])?),
        charges: book("charges")?,
        repeats: book("repeats")?,
        without_key: book("without_key")?,
        p50: tally.quantile(0.5),
        p99: tally.quantile(0.99),
        failures: tally.failures,
    })
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter read as text is a whole number")]
fn whole(counter: f64) -> u64 {
    counter as u64
}

fn stay(narrator: &Narrator, mesh: &Mesh) -> anyhow::Result<()> {
    let server = format!("http://{}", mesh.control.api());
    narrator.print(&format!("\nUp until Ctrl-C, under {STAY_RATE} orders a second. Live pages:"));
    for (name, admin) in mesh.admin_pages() {
        narrator.print(&format!("  {name:<10} http://{admin}/"));
    }
    narrator.print("Policy:");
    for command in ["proxies", "get all -n shop", "get httproute orders -n shop -o yaml"] {
        narrator.print(&format!("  outriggerctl --server {server} {command}"));
    }
    let sale = Sale::open(mesh.front()?, STAY_RATE, STAY_LIMIT);
    loop {
        sale.watch(Duration::from_secs(60));
    }
}

fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let end = Instant::now() + limit;
    while !condition()? {
        anyhow::ensure!(Instant::now() < end, "{what} did not come within {limit:?}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Ctrl-C and SIGTERM end the process at once; the kernel ends its children with it.
fn end_on_interrupt() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) =
        runtime.block_on(async { anyhow::Ok((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)) })?;
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        scratch::remove_all();
        std::process::exit(130);
    });
    Ok(())
}
