//! Purpose: the network of a node: a namespace of its own with a bridge, and one namespace for each pod on it.
//!
//! Shape: made and deleted with `ip`; a thread that [`Place::enter`] moved, and whatever it starts, is in there. Names are
//! told by one hosts file, which every pod has as its own: it stands for the cluster's DNS.
//!
//! Errors: without root or `ip` it panics and says so.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::{io, thread};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::super::scratch::Scratch;

/// Addresses for benchmarks (RFC 2544): nothing outside of these namespaces has them.
const NET: [u8; 2] = [198, 18];

static NODES: AtomicU32 = AtomicU32::new(0);

/// A network namespace, by its name.
#[derive(Debug, Clone)]
pub struct Place {
    name: String,
    /// Its own address.
    pub address: Ipv4Addr,
}

impl Place {
    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Moves this thread into it, for good.
    ///
    /// # Panics
    /// When that is not allowed.
    pub fn enter(&self) {
        let path = self.path();
        let entered = File::open(&path)
            .and_then(|file| Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?));
        entered.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Runs `act` on a thread inside of it.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let enter_and_act = || {
            self.enter();
            act()
        };
        thread::scope(|scope| scope.spawn(enter_and_act).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// A node and the namespaces of its pods.
#[derive(Debug)]
pub struct Node {
    /// The node itself: where the kubelet is, and the API.
    pub place: Place,
    next: AtomicU32,
    scratch: Scratch,
    names: Mutex<BTreeMap<String, Ipv4Addr>>,
}

impl Node {
    /// Makes one.
    ///
    /// # Panics
    /// When namespaces cannot be made here.
    pub fn new() -> Self {
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        let name = format!("outrigger-{}-node{number}", process::id());
        ip(&format!("netns add {name}"));
        let [a, b] = NET;
        let place = Place { name, address: Ipv4Addr::new(a, b, 0, 1) };
        let scratch = Scratch::new("node").unwrap_or_else(|error| panic!("{error}"));
        let node = Self { place, next: AtomicU32::new(2), scratch, names: Mutex::default() };
        ip(&format!("-n {} link add pods type bridge", node.place.name));
        ip(&format!("-n {} addr add {}/16 dev pods", node.place.name, node.place.address));
        ip(&format!("-n {} link set pods up", node.place.name));
        ip(&format!("-n {} link set lo up", node.place.name));
        node.write_hosts();
        node
    }

    /// A namespace for a pod, with an address and a way to the others.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn add_pod(&self) -> Place {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let [high, low] = u16::try_from(number).expect("a test has few pods").to_be_bytes();
        let [a, b] = NET;
        let address = Ipv4Addr::new(a, b, high, low);
        let (own, node) = (format!("{}-pod{number}", self.place.name), &self.place.name);
        ip(&format!("netns add {own}"));
        let end = format!("pod{number}");
        ip(&format!("link add eth0 netns {own} type veth peer name {end} netns {node}"));
        ip(&format!("-n {node} link set {end} master pods up"));
        ip(&format!("-n {own} addr add {address}/16 dev eth0"));
        ip(&format!("-n {own} link set eth0 up"));
        ip(&format!("-n {own} link set lo up"));
        ip(&format!("-n {own} route add default via {}", self.place.address));
        Place { name: own, address }
    }

    /// Takes a pod's namespace away.
    pub fn remove_pod(&self, place: &Place) {
        // What is gone already needs no second end.
        let _ = Command::new("ip").args(["netns", "del", &place.name]).output();
    }

    /// Makes a name known to all pods.
    pub fn set_name(&self, name: &str, address: Ipv4Addr) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), address);
        self.write_hosts();
    }

    /// The hosts file of every pod; written in place, for it is mounted.
    pub fn hosts_file(&self) -> PathBuf {
        self.scratch.path().join("hosts")
    }

    fn write_hosts(&self) {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: String = names.iter().map(|(name, address)| format!("{address} {name}\n")).collect();
        let text = format!("127.0.0.1 localhost\n::1 localhost\n{lines}");
        let written: io::Result<()> = std::fs::write(self.hosts_file(), text);
        written.unwrap_or_else(|error| panic!("{}: {error}", self.hosts_file().display()));
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let pods = (2..self.next.load(Ordering::Relaxed)).map(|number| format!("{}-pod{number}", self.place.name));
        for name in pods.chain([self.place.name.clone()]) {
            // Pods that ended took theirs with them.
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output();
    let output = output.unwrap_or_else(|error| panic!("ip: {error}; `make interop` installs it"));
    assert!(
        output.status.success(),
        "ip {words}: {}; this test makes network namespaces, which takes root",
        String::from_utf8_lossy(&output.stderr)
    );
}
