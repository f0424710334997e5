//! The dance, step by step, without a socket.

use std::sync::Arc;

use envoy_types::pb::google::rpc;

use super::*;
use crate::compile::{Inbound, Snapshot};
use crate::model::document::Syntax;
use crate::model::{Object, PolicySet, parse_manifests};

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::Endpoints;
const LDS: ResourceType = ResourceType::Listener;
const RDS: ResourceType = ResourceType::Routes;

fn role() -> NodeRole {
    NodeRole { outbound: Some(([127, 0, 0, 1], 15_001).into()), ..NodeRole::default() }
}

/// Upstreams `name=port`, compiled for the role.
fn resources(revision: u64, upstreams: &[(&str, u16)]) -> NodeResources {
    let text: String = upstreams
        .iter()
        .map(|(name, port)| {
            format!(
                "---\napiVersion: outrigger.dev/v1\nkind: Upstream\nmetadata: {{name: {name}}}\n\
                 spec: {{endpoints: [{{address: '10.0.0.1:{port}'}}]}}\n"
            )
        })
        .collect();
    let manifests = parse_manifests(&text, Syntax::Yaml).expect("test input is right");
    let objects = manifests.into_iter().map(|one| {
        let object =
            Object { key: one.key.clone(), spec: one.spec, body: one.body, created: 1, changed: 1, generation: 1 };
        (one.key, Arc::new(object))
    });
    let set = PolicySet { revision, objects: objects.collect(), ..PolicySet::default() };
    Snapshot::compile(Arc::new(set)).for_node(&role())
}

fn request(kind: ResourceType, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names: names.iter().map(ToString::to_string).collect(),
        ..DiscoveryRequest::default()
    }
}

/// A proxy that answers as told, and remembers its names.
struct Reader {
    dance: Dance,
    now: Instant,
    names: [Vec<String>; 4],
    nonces: [String; 4],
    versions: [String; 4],
}

impl Reader {
    fn new(resources: NodeResources) -> Self {
        Self {
            dance: Dance::new(&role(), resources),
            now: Instant::now(),
            names: Default::default(),
            nonces: Default::default(),
            versions: Default::default(),
        }
    }

    fn ask(&mut self, kind: ResourceType, names: &[&str]) {
        self.names[kind as usize] = names.iter().map(ToString::to_string).collect();
        let mut request = request(kind, names);
        request.version_info.clone_from(&self.versions[kind as usize]);
        request.response_nonce.clone_from(&self.nonces[kind as usize]);
        self.dance.take_request(&request).expect("taken");
    }

    fn push(&mut self) -> Option<(ResourceType, DiscoveryResponse)> {
        let response = self.dance.next_push(self.now)?;
        let kind = ResourceType::from_type_url(&response.type_url).expect("a type of ours");
        self.nonces[kind as usize].clone_from(&response.nonce);
        Some((kind, response))
    }

    fn expect(&mut self, wanted: ResourceType) -> DiscoveryResponse {
        let (kind, response) = self.push().unwrap_or_else(|| panic!("no push, {wanted:?} was expected"));
        assert_eq!(kind, wanted);
        response
    }

    fn answer(&mut self, response: &DiscoveryResponse, refusal: Option<&str>) -> Option<Refusal> {
        let kind = ResourceType::from_type_url(&response.type_url).expect("a type of ours");
        if refusal.is_none() {
            self.versions[kind as usize].clone_from(&response.version_info);
        }
        let request = DiscoveryRequest {
            version_info: self.versions[kind as usize].clone(),
            response_nonce: response.nonce.clone(),
            resource_names: self.names[kind as usize].clone(),
            error_detail: refusal.map(|message| rpc::Status { message: message.to_owned(), ..Default::default() }),
            ..request(kind, &[])
        };
        self.dance.take_request(&request).expect("taken")
    }

    fn ack(&mut self, wanted: ResourceType) -> DiscoveryResponse {
        let response = self.expect(wanted);
        assert_eq!(self.answer(&response, None), None);
        response
    }

    /// Takes everything there is, as Envoy does.
    fn settle(&mut self, clusters: &[&str]) {
        self.ask(CDS, &[]);
        self.ack(CDS);
        if !clusters.is_empty() {
            self.ask(EDS, clusters);
            self.ack(EDS);
        }
        self.ask(LDS, &[]);
        self.ack(LDS);
        self.ask(RDS, &["outbound"]);
        self.ack(RDS);
        assert!(self.push().is_none());
    }
}

fn names(response: &DiscoveryResponse) -> usize {
    response.resources.len()
}

#[test]
fn a_whole_dance_ends_running_the_revision() {
    let mut reader = Reader::new(resources(4, &[("a", 1), ("b", 2)]));
    assert!(reader.push().is_none(), "nothing is pushed unasked");
    reader.settle(&["a.default", "b.default"]);
    assert_eq!(reader.dance.running_revision(), Some(4));
}

#[test]
fn a_half_connected_proxy_does_not_count_as_running() {
    let mut reader = Reader::new(resources(4, &[("a", 1)]));
    reader.ask(CDS, &[]);
    reader.ack(CDS);
    assert_eq!(reader.dance.running_revision(), None);
}

#[test]
fn one_push_of_a_type_at_a_time_and_only_the_latest_after_it() {
    let mut reader = Reader::new(resources(1, &[("a", 1)]));
    reader.settle(&["a.default"]);
    reader.dance.desire(resources(2, &[("a", 2)]));
    let pending = reader.expect(EDS);
    for revision in 3..50 {
        reader.dance.desire(resources(revision, &[("a", 100 + u16::try_from(revision).expect("small"))]));
        assert!(reader.push().is_none(), "a second push while one is unanswered");
    }
    assert_eq!(reader.dance.running_revision(), Some(1));
    reader.answer(&pending, None);
    let last = reader.ack(EDS);
    assert!(reader.push().is_none());
    assert_ne!(pending.version_info, last.version_info);
    assert_eq!(reader.dance.running_revision(), Some(49));
}

#[test]
fn a_refused_version_is_not_sent_again_until_something_changes() {
    let mut reader = Reader::new(resources(1, &[("a", 1)]));
    reader.settle(&["a.default"]);
    reader.dance.desire(resources(2, &[("a", 2)]));
    let bad = reader.expect(EDS);
    let refusal = reader.answer(&bad, Some("cluster \"a\": port")).expect("is a refusal");
    assert_eq!(refusal.message, "cluster \"a\": port");
    assert!(reader.push().is_none());
    assert_eq!(reader.dance.running_revision(), Some(1));
    reader.dance.desire(resources(3, &[("a", 2)]));
    assert!(reader.push().is_none(), "the same content under a new revision is still refused");
    assert!(reader.dance.is_refusing(EDS));
    reader.dance.desire(resources(4, &[("a", 3)]));
    assert!(!reader.dance.is_refusing(EDS), "the new content was not refused yet");
    reader.ack(EDS);
    assert_eq!(reader.dance.running_revision(), Some(4));
    assert_eq!(reader.dance.subscription(EDS).expect("asked").refused, None);
    // Back to what it runs: nothing to send.
    reader.dance.desire(resources(5, &[("a", 3)]));
    assert!(reader.push().is_none());
    assert_eq!(reader.dance.running_revision(), Some(5));
}

#[test]
fn a_stale_nonce_changes_nothing() {
    let mut reader = Reader::new(resources(1, &[("a", 1)]));
    reader.settle(&["a.default"]);
    reader.dance.desire(resources(2, &[("a", 2)]));
    let first = reader.expect(EDS);
    let stale = DiscoveryRequest { response_nonce: "1".into(), ..request(EDS, &["other"]) };
    assert_eq!(reader.dance.take_request(&stale).expect("taken"), None);
    assert!(reader.dance.subscription(EDS).expect("asked").pending.is_some());
    reader.answer(&first, None);
    assert_eq!(reader.dance.running_revision(), Some(2));
}

#[test]
fn what_was_held_before_a_reconnect_is_not_sent_again() {
    let mut before = Reader::new(resources(1, &[("a", 1), ("b", 2)]));
    before.settle(&["a.default", "b.default"]);
    // Another server, compiled anew, at another revision, with the same content.
    let mut after = Reader::new(resources(9, &[("b", 2), ("a", 1)]));
    after.versions = before.versions.clone();
    for (kind, names) in [(CDS, vec![]), (EDS, vec!["b.default", "a.default"]), (LDS, vec![]), (RDS, vec!["outbound"])]
    {
        after.ask(kind, &names);
        assert!(after.push().is_none(), "{kind:?} was sent again");
    }
    assert_eq!(after.dance.running_revision(), Some(9));
}

#[test]
fn clusters_and_endpoints_go_before_routes() {
    let mut reader = Reader::new(resources(1, &[("a", 1)]));
    reader.settle(&["a.default"]);
    reader.dance.desire(resources(2, &[("a", 1), ("b", 2)]));
    let clusters = reader.expect(CDS);
    assert!(reader.push().is_none(), "routes must wait for the clusters");
    reader.answer(&clusters, None);
    assert!(reader.push().is_none(), "routes must wait for the endpoints of the new cluster");
    reader.ask(EDS, &["a.default", "b.default"]);
    let endpoints = reader.expect(EDS);
    assert!(reader.push().is_none(), "routes must wait for the endpoints");
    reader.answer(&endpoints, None);
    reader.ack(RDS);
    assert_eq!(reader.dance.running_revision(), Some(2));
}

#[test]
fn a_cluster_ack_that_waits_for_endpoints_gets_them() {
    let mut reader = Reader::new(resources(1, &[("a", 1)]));
    reader.settle(&["a.default"]);
    reader.dance.desire(resources(2, &[("a", 1), ("b", 2)]));
    let clusters = reader.expect(CDS);
    reader.ask(EDS, &["a.default", "b.default"]);
    let endpoints = reader.expect(EDS);
    assert_eq!(names(&endpoints), 2);
    reader.answer(&endpoints, None);
    reader.answer(&clusters, None);
    reader.ack(RDS);
    assert_eq!(reader.dance.running_revision(), Some(2));
}

#[test]
fn a_reader_that_never_asks_for_endpoints_gets_routes_after_the_hold() {
    let mut reader = Reader::new(resources(1, &[("a", 1)]));
    reader.ask(CDS, &[]);
    reader.ack(CDS);
    reader.ask(RDS, &["outbound"]);
    assert!(reader.push().is_none());
    assert_eq!(reader.dance.released_at(), Some(reader.now + HOLD_MAX));
    reader.now += HOLD_MAX;
    reader.ack(RDS);
    assert!(reader.push().is_none());
    assert_eq!(reader.dance.released_at(), None);
}

#[test]
fn a_removed_cluster_stays_until_the_routes_are_taken() {
    let mut reader = Reader::new(resources(1, &[("a", 1), ("b", 2)]));
    reader.settle(&["a.default", "b.default"]);
    reader.dance.desire(resources(2, &[("a", 1)]));
    reader.ack(EDS);
    let routes = reader.expect(RDS);
    assert!(reader.push().is_none(), "the cluster was removed before the routes were taken");
    reader.answer(&routes, None);
    let clusters = reader.ack(CDS);
    assert_eq!(names(&clusters), 1);
    assert_eq!(reader.dance.running_revision(), Some(2));
}

#[test]
fn refused_routes_keep_the_removed_cluster() {
    let mut reader = Reader::new(resources(1, &[("a", 1), ("b", 2)]));
    reader.settle(&["a.default", "b.default"]);
    reader.dance.desire(resources(2, &[("a", 1)]));
    reader.ack(EDS);
    let routes = reader.expect(RDS);
    reader.answer(&routes, Some("no"));
    assert!(reader.push().is_none(), "the running routes may still name the cluster");
}

#[test]
fn a_changed_cluster_gets_its_endpoints_again() {
    let mut reader = Reader::new(resources(1, &[("a", 1)]));
    let role = NodeRole {
        inbound: Some(Inbound {
            listen: ([127, 0, 0, 1], 1).into(),
            app: ([127, 0, 0, 1], 2).into(),
            service: "a".into(),
        }),
        ..role()
    };
    let compiled = |revision, app: u16| {
        let mut role = role.clone();
        role.inbound.as_mut().expect("set above").app.set_port(app);
        let set = PolicySet { revision, ..PolicySet::default() };
        Snapshot::compile(Arc::new(set)).for_node(&role)
    };
    reader.dance.desire(compiled(2, 2));
    reader.ask(CDS, &[]);
    reader.ack(CDS);
    reader.ask(EDS, &[]);
    reader.ack(EDS);
    reader.dance.desire(compiled(3, 3));
    reader.ack(CDS);
    reader.ack(EDS);
    assert!(reader.push().is_none());
}

#[test]
fn names_that_leave_are_no_reason_to_push() {
    let mut reader = Reader::new(resources(1, &[("a", 1), ("b", 2)]));
    reader.settle(&["a.default", "b.default"]);
    reader.ask(EDS, &["a.default"]);
    assert!(reader.push().is_none());
    reader.ask(EDS, &["a.default", "b.default"]);
    assert_eq!(names(&reader.ack(EDS)), 2);
}

#[test]
fn unknown_types_and_names_are_survived() {
    let mut reader = Reader::new(resources(1, &[("a", 1)]));
    let other = DiscoveryRequest { type_url: "type.googleapis.com/x.Y".into(), ..DiscoveryRequest::default() };
    assert_eq!(reader.dance.take_request(&other).expect("taken"), None);
    reader.ask(RDS, &["nobody"]);
    assert_eq!(names(&reader.ack(RDS)), 0);
    let many: Vec<String> = (0..=NAMES_MAX).map(|index| index.to_string()).collect();
    let flood = DiscoveryRequest { resource_names: many, ..request(EDS, &[]) };
    assert!(reader.dance.take_request(&flood).is_err());
}
