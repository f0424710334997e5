//! Purpose: the shop's processes: a control plane, six applications, a sidecar beside each.
//!
//! Shape: an application starts on a free port, its sidecar on free ports beside it, then the application is told
//! where its sidecar is. A replica that was killed is started again on its old addresses, as a pod with a stable
//! address would be.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use outrigger_tests::world::process::{Launch, Process};
use outrigger_tests::world::proxy::sum_samples;
use outrigger_tests::world::{Control, Downstream, Io, Proxy, ProxySetup, downstream, resource};
use serde_json::{Value, json};

use crate::app::Role;

const NAMESPACE: &str = "shop";
const READY_WITHIN: Duration = Duration::from_secs(20);
const NOWHERE: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0));

/// One application as it is planned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Name of the replica.
    pub(crate) name: &'static str,
    role: Role,
    service: &'static str,
    release: &'static str,
}

/// The shop.
pub(crate) const PLANS: [Plan; 6] = [
    Plan { name: "payment", role: Role::Payment, service: "payment", release: "v1" },
    Plan { name: "stock", role: Role::Stock, service: "stock", release: "v1" },
    Plan { name: "orders-1", role: Role::Orders, service: "orders", release: "v1" },
    Plan { name: "orders-2", role: Role::Orders, service: "orders", release: "v1" },
    Plan { name: "orders-v2", role: Role::Orders, service: "orders", release: "v2" },
    Plan { name: "gateway", role: Role::Gateway, service: "gateway", release: "v1" },
];

/// Where a replica is.
#[derive(Debug, Clone, Copy)]
struct Place {
    app: SocketAddr,
    inbound: SocketAddr,
    outbound: SocketAddr,
}

/// An application and its sidecar.
#[derive(Debug)]
struct Replica {
    app: Process,
    sidecar: Proxy,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Mesh {
    /// The control plane.
    pub(crate) control: Control,
    io: Io,
    replicas: BTreeMap<&'static str, Replica>,
    places: BTreeMap<&'static str, Place>,
    /// Metrics of sidecars that are gone, so that counts go on over a kill.
    buried: String,
}

impl Mesh {
    /// Starts everything, without policy yet.
    pub(crate) fn start(io: Io) -> anyhow::Result<Self> {
        let control = Control::try_start().context("the control plane")?;
        let (replicas, places) = (BTreeMap::new(), BTreeMap::new());
        let mut mesh = Self { control, io, replicas, places, buried: String::new() };
        for plan in PLANS {
            mesh.start_replica(plan.name).with_context(|| format!("{} and its sidecar", plan.name))?;
        }
        Ok(mesh)
    }

    /// Starts an application and its sidecar, where they were before or on free ports.
    pub(crate) fn start_replica(&mut self, name: &str) -> anyhow::Result<()> {
        let plan = *PLANS.iter().find(|plan| plan.name == name).context("no such replica is planned")?;
        let old = self.places.get(name).copied();
        let old = old.unwrap_or(Place { app: NOWHERE, inbound: NOWHERE, outbound: NOWHERE });
        let (app, app_address) = start_app(&plan, old.app)?;
        let role = json!({
            "namespace": NAMESPACE, "outbound": old.outbound.to_string(),
            "inbound": { "listen": old.inbound.to_string(), "app": app_address.to_string(), "service": plan.service },
        });
        let bootstrap = resource::dynamic(plan.name, self.control.xds(), role);
        let sidecar = Proxy::try_start(&format!("sidecar of {name}"), &ProxySetup::new(self.io, bootstrap))?;
        let listener = |listener: &str| sidecar.listeners().get(listener).copied();
        let inbound = listener("inbound").context("the sidecar has no inbound listener")?;
        let outbound = listener("outbound").context("the sidecar has no outbound listener")?;
        tell_outbound(app_address, outbound).context("telling the application its outbound address")?;
        self.places.insert(plan.name, Place { app: app_address, inbound, outbound });
        self.replicas.insert(plan.name, Replica { app, sidecar });
        Ok(())
    }

    /// Kills a replica, application and sidecar, without a word.
    pub(crate) fn kill(&mut self, name: &str) -> anyhow::Result<(u32, u32)> {
        let mut replica = self.replicas.remove(name).context("no such replica runs")?;
        self.buried.push_str(&metrics_of(&replica.sidecar)?);
        let ids = (replica.app.id(), replica.sidecar.process().id());
        replica.app.kill();
        replica.sidecar.process().kill();
        Ok(ids)
    }

    /// Applies policy with this run's addresses and waits until every sidecar runs it.
    pub(crate) fn push(&self, yaml: &str, more: &[(&str, String)]) -> anyhow::Result<u64> {
        let mut text = yaml.to_owned();
        for (name, place) in &self.places {
            text = text.replace(&format!("${{{name}}}"), &place.inbound.to_string());
        }
        for (name, value) in more {
            text = text.replace(&format!("${{{name}}}"), value);
        }
        Ok(self.control.apply_and_wait(&text)?)
    }

    /// Where orders come in.
    pub(crate) fn front(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.places.get("gateway").context("there is no gateway")?.inbound)
    }

    /// The inbound address of a replica.
    pub(crate) fn inbound(&self, name: &str) -> anyhow::Result<SocketAddr> {
        Ok(self.places.get(name).context("no such replica")?.inbound)
    }

    /// Payment's books.
    pub(crate) fn ledger(&self) -> anyhow::Result<Value> {
        let place = self.places.get("payment").context("there is no payment")?;
        Ok(serde_json::from_slice(&downstream::get(place.app, "/ledger")?.body)?)
    }

    /// The sum of a metric over all sidecars of this run, those that were killed included.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
        let mut sum = sum_samples(&self.buried, name, labels);
        for replica in self.replicas.values() {
            sum += sum_samples(&metrics_of(&replica.sidecar)?, name, labels);
        }
        Ok(sum)
    }

    /// A metric of the gateway's sidecar, which balances over the orders.
    pub(crate) fn gateway_metric(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
        let gateway = self.replicas.get("gateway").context("there is no gateway")?;
        Ok(sum_samples(&metrics_of(&gateway.sidecar)?, name, labels))
    }

    /// Admin addresses by replica.
    pub(crate) fn admin_pages(&self) -> Vec<(&'static str, SocketAddr)> {
        self.replicas.iter().map(|(name, replica)| (*name, replica.sidecar.admin())).collect()
    }

    /// The drivers the sidecars run.
    pub(crate) fn drivers(&self) -> String {
        let mut drivers: Vec<&str> = self.replicas.values().map(|replica| replica.sidecar.io()).collect();
        drivers.sort_unstable();
        drivers.dedup();
        drivers.join(", ")
    }
}

fn metrics_of(sidecar: &Proxy) -> io::Result<String> {
    Ok(sidecar.admin_get("/stats/prometheus")?.text())
}

fn start_app(plan: &Plan, listen: SocketAddr) -> anyhow::Result<(Process, SocketAddr)> {
    let role = clap::ValueEnum::to_possible_value(&plan.role).context("every role has a name")?;
    let args = ["app", "--role", role.get_name(), "--name", plan.name, "--release", plan.release, "--listen"];
    let launch = Launch::built("outrigger-shop")?.args(args).args([listen.to_string()]);
    let mut app = Process::start(plan.name, &launch)?;
    let line = app.wait_line("outrigger-shop app ready ", READY_WITHIN)?;
    let address = line.split_whitespace().find_map(|word| word.strip_prefix("listen="));
    let address = address.and_then(|text| text.parse().ok()).context("the application says no address")?;
    Ok((app, address))
}

fn tell_outbound(app: SocketAddr, outbound: SocketAddr) -> anyhow::Result<()> {
    let body = outbound.to_string();
    let response = Downstream::connect(app)?.request("PUT", "/outbound", &[], body.as_bytes())?;
    anyhow::ensure!(response.status == 200, "status {}: {}", response.status, response.text());
    Ok(())
}
