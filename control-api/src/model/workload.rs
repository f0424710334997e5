//! Purpose: the pods of a cluster as selectors see them: who has which address, with which labels.
//! Shape: [`Workloads`] is a value, replaced whole; what selects pods asks it, by address or one by one.
//! Limits: an address that two pods claim belongs to the one that comes first by namespace and name: while a pod goes and the
//! next gets its address, the API server may tell of both.
//! Tests: foot.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Labels by key.
pub type Labels = BTreeMap<String, String>;

/// A pod, as selectors see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The service account that it runs as.
    pub service_account: String,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses, one a family.
    pub addresses: Vec<IpAddr>,
    /// What its node asks it to see whether it is well; those of plain HTTP and gRPC.
    pub probes: Vec<Probe>,
}

/// A request by which a node sees whether a pod is well.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// The pod's port.
    pub port: u16,
    /// The method.
    pub method: &'static str,
    /// The path, without a query.
    pub path: String,
}

/// The pods and namespaces of a cluster; empty where no registry tells of any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Workloads {
    is_followed: bool,
    /// In the order of namespace and name.
    all: Vec<Workload>,
    by_address: BTreeMap<IpAddr, usize>,
    namespaces: BTreeMap<String, Labels>,
}

impl Workloads {
    /// Of these pods and these namespaces' labels.
    #[must_use]
    pub fn new(workloads: impl IntoIterator<Item = Workload>, namespaces: BTreeMap<String, Labels>) -> Self {
        let mut all: Vec<Workload> = workloads.into_iter().collect();
        all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let mut by_address = BTreeMap::new();
        for (index, workload) in all.iter().enumerate() {
            for address in &workload.addresses {
                by_address.entry(*address).or_insert(index);
            }
        }
        Self { is_followed: true, all, by_address, namespaces }
    }

    /// Whether anybody tells of pods, be there any or none.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.is_followed
    }

    /// All of them, by namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = &Workload> {
        self.all.iter()
    }

    /// The pod that has an address.
    #[must_use]
    pub fn at(&self, address: IpAddr) -> Option<&Workload> {
        self.by_address.get(&address).map(|index| &self.all[*index])
    }

    /// The labels of a namespace.
    #[must_use]
    pub fn namespace_labels(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, name: &str, addresses: &[&str]) -> Workload {
        Workload {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: "default".to_owned(),
            labels: [("app".to_owned(), name.to_owned())].into(),
            addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
            probes: Vec::new(),
        }
    }

    #[test]
    fn a_pod_is_found_by_each_of_its_addresses() {
        let pods = [pod("shop", "b", &["10.0.0.2", "fd00::2"]), pod("shop", "a", &["10.0.0.1"]), pod("an", "z", &[])];
        let namespaces = [("shop".to_owned(), [("team".to_owned(), "shop".to_owned())].into())].into();
        let workloads = Workloads::new(pods, namespaces);
        let names: Vec<&str> = workloads.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["z", "a", "b"]);
        let name = |text: &str| workloads.at(text.parse().expect("an address")).map(|one| one.name.as_str());
        assert_eq!([name("10.0.0.1"), name("fd00::2"), name("10.0.0.3")], [Some("a"), Some("b"), None]);
        assert_eq!(workloads.namespace_labels("shop").and_then(|labels| labels.get("team")).unwrap(), "shop");
        assert_eq!(workloads.namespace_labels("an"), None);
    }

    #[test]
    fn the_first_keeps_an_address_that_two_claim() {
        let one = Workloads::new([pod("shop", "b", &["10.0.0.1"]), pod("shop", "a", &["10.0.0.1"])], BTreeMap::new());
        assert_eq!(one.at("10.0.0.1".parse().expect("an address")).expect("a pod").name, "a");
    }
}
