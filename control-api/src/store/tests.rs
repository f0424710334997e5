//! All or nothing, preconditions, history, and a disk that is full or fails.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::backends::InMemoryBackend;
use redb::{Database, StorageBackend};

use super::*;
use crate::model::document::Syntax;
use crate::model::{Kind, ObjectKey, parse_manifests};

fn put(text: &str) -> Changes {
    let manifests = parse_manifests(text, Syntax::Yaml).expect("test input is right");
    Changes { writes: manifests.into_iter().map(|one| Write::Put(Box::new(one))).collect(), ..Changes::default() }
}

fn upstream(name: &str, port: u16) -> String {
    format!(
        "---\napiVersion: outrigger.dev/v1\nkind: Upstream\nmetadata: {{name: {name}}}\n\
         spec: {{endpoints: [{{address: '10.0.0.1:{port}'}}]}}\n"
    )
}

fn route_to(name: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: shop}}\n\
         spec: {{parentRefs: [{{kind: Service, name: shop}}], rules: [{{backendRefs: [{{name: {name}}}]}}]}}\n"
    )
}

fn key(kind: Kind, name: &str) -> ObjectKey {
    ObjectKey::new(kind, "default", name)
}

fn delete(name: &str) -> Changes {
    let write = Write::Delete { key: key(Kind::Upstream, name), expected: None };
    Changes { writes: vec![write], ..Changes::default() }
}

/// A disk with so many bytes of room, which keeps its content when it is opened again.
#[derive(Debug, Clone)]
struct SmallDisk {
    bytes: Arc<InMemoryBackend>,
    room: Arc<AtomicU64>,
}

impl SmallDisk {
    fn new() -> Self {
        Self { bytes: Arc::new(InMemoryBackend::new()), room: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    fn store(&self) -> FileStore {
        let disk = self.clone();
        let open = move || Database::builder().create_with_backend(disk.clone());
        let file = RedbFile::with_opener(Path::new("memory"), Box::new(open)).expect("opens");
        FileStore::over(file).expect("loads")
    }
}

impl StorageBackend for SmallDisk {
    fn len(&self) -> std::io::Result<u64> {
        self.bytes.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.bytes.read(offset, out)
    }

    fn set_len(&self, length: u64) -> std::io::Result<()> {
        if length > self.bytes.len()?.max(self.room.load(Ordering::SeqCst)) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.bytes.set_len(length)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.bytes.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.bytes.write(offset, data)
    }
}

fn roomy() -> FileStore {
    SmallDisk::new().store()
}

#[test]
fn created_configured_unchanged_deleted() {
    let store = roomy();
    let changes = |outcome: &Outcome| outcome.changes.iter().map(|(_, change)| *change).collect::<Vec<_>>();
    let both = upstream("a", 80) + &upstream("b", 80);
    let first = store.commit(&put(&both)).expect("applies");
    assert_eq!((first.revision, changes(&first)), (1, vec![Change::Created, Change::Created]));
    let again = store.commit(&put(&both)).expect("applies");
    assert_eq!((again.revision, changes(&again)), (1, vec![Change::Unchanged, Change::Unchanged]));
    let moved = store.commit(&put(&(upstream("a", 81) + &upstream("b", 80)))).expect("applies");
    assert_eq!((moved.revision, changes(&moved)), (2, vec![Change::Configured, Change::Unchanged]));
    let object = store.current().objects[&key(Kind::Upstream, "a")].clone();
    assert_eq!((object.created, object.changed, object.generation), (1, 2, 2));
    let gone = store.commit(&delete("a")).expect("deletes");
    assert_eq!((gone.revision, changes(&gone)), (3, vec![Change::Deleted]));
    assert!(matches!(store.commit(&delete("a")), Err(StoreError::Missing(_))));
}

#[test]
fn one_bad_object_keeps_all_out() {
    let store = roomy();
    let refused = store.commit(&put(&(upstream("a", 80) + &route_to("nobody"))));
    let Err(StoreError::Contradiction(problems)) = refused else { panic!("{refused:?}") };
    let line = problems[0].to_string();
    for word in ["document 2", "HTTPRoute default/shop", "spec.rules[0].backendRefs[0].name", "nobody"] {
        assert!(line.contains(word), "{word} is not in {line}");
    }
    assert_eq!((store.current().revision, store.current().objects.len()), (0, 0));
    let together = store.commit(&put(&(route_to("a") + &upstream("a", 80)))).expect("order does not matter");
    assert_eq!(together.revision, 1);
}

#[test]
fn a_dry_run_changes_nothing() {
    let store = roomy();
    let changes = Changes { is_dry_run: true, ..put(&upstream("a", 80)) };
    let outcome = store.commit(&changes).expect("would apply");
    assert_eq!(outcome.changes[0].1, Change::Created);
    assert_eq!((store.current().revision, store.current().objects.len()), (0, 0));
}

#[test]
fn writers_that_saw_an_older_version_are_refused() {
    let store = roomy();
    store.commit(&put(&upstream("a", 80))).expect("applies");
    store.commit(&put(&upstream("a", 81))).expect("applies");
    let seen = |version: u64| upstream("a", 82).replace("name: a", &format!("name: a, resourceVersion: '{version}'"));
    let refused = store.commit(&put(&seen(1)));
    assert!(matches!(refused, Err(StoreError::Outdated { expected: 1, found: 2, .. })), "{refused:?}");
    assert!(store.commit(&put(&seen(2))).is_ok());
    let whole = Changes { expected_revision: Some(1), ..put(&upstream("b", 80)) };
    assert!(matches!(store.commit(&whole), Err(StoreError::RevisionMoved { expected: 1, found: 3 })));
}

#[test]
fn what_is_referred_to_stays_unless_forced() {
    let store = roomy();
    store.commit(&put(&(upstream("a", 80) + &route_to("a")))).expect("applies");
    let Err(StoreError::Referenced { by, .. }) = store.commit(&delete("a")) else { panic!("was deleted") };
    assert_eq!(by, [key(Kind::HttpRoute, "shop")]);
    let forced = Changes { is_forced: true, ..delete("a") };
    assert!(store.commit(&forced).is_ok());
    // The dangling route must not block what has nothing to do with it.
    assert!(store.commit(&put(&upstream("b", 80))).is_ok());
}

#[test]
fn two_writers_of_one_setting_are_refused() {
    let store = roomy();
    let limit = |name: &str| {
        format!(
            "---\napiVersion: outrigger.dev/v1\nkind: RateLimit\nmetadata: {{name: {name}}}\n\
             spec: {{targetRefs: [{{kind: Upstream, name: a}}], requests: 5}}\n"
        )
    };
    store.commit(&put(&(upstream("a", 80) + &limit("one")))).expect("applies");
    let Err(StoreError::Contradiction(problems)) = store.commit(&put(&limit("two"))) else { panic!("applied") };
    let line = problems[0].to_string();
    assert!(line.contains("also set by RateLimit default/one for Upstream default/a"), "{line}");
    let same_service = upstream("b", 80).replace("spec: {", "spec: {serviceName: a, ");
    let Err(StoreError::Contradiction(problems)) = store.commit(&put(&same_service)) else { panic!("applied") };
    assert!(problems[0].to_string().contains("already the service of Upstream default/a"), "{problems:?}");
}

#[test]
fn history_is_whole_or_absent() {
    let store = roomy();
    for port in 1..=5 {
        store.commit(&put(&(upstream("a", port) + &upstream("b", port)))).expect("applies");
    }
    let records = store.history_since(3).expect("reads").expect("kept");
    let revisions: Vec<u64> = records.iter().map(|record| record.revision).collect();
    assert_eq!(revisions, [4, 4, 5, 5]);
    assert!(store.history_since(5).expect("reads").expect("kept").is_empty());
    for port in 1..=1_005 {
        store.commit(&put(&upstream("a", 10_000 + port))).expect("applies");
    }
    assert!(store.history_since(3).expect("reads").is_none());
    assert_eq!(store.history_since(1_000).expect("reads").expect("kept").len(), 10);
}

#[test]
fn a_full_disk_is_said_and_loses_nothing() {
    let disk = SmallDisk::new();
    let store = disk.store();
    disk.room.store(0, Ordering::SeqCst);
    let wide = |index: u32| {
        let label = "x".repeat(10_000);
        upstream(&format!("u{index}"), 80)
            .replace("metadata: {", &format!("metadata: {{annotations: {{note: {label}}}, "))
    };
    let filled = (0..2_000).find_map(|index| store.commit(&put(&wide(index))).err().map(|error| (index, error)));
    let Some((count, StoreError::Full(reason))) = filled else { panic!("the disk never filled: {filled:?}") };
    assert!(count > 0 && reason.contains("memory"), "{count}: {reason}");
    let whole = |store: &FileStore| (store.current().revision, store.current().objects.len());
    let before = (u64::from(count), count as usize);
    assert_eq!(whole(&store), before);
    assert!(matches!(store.commit(&put(&wide(count))), Err(StoreError::Full(_))));
    assert_eq!(whole(&store), before);
    disk.room.store(u64::MAX, Ordering::SeqCst);
    store.commit(&put(&wide(count))).expect("there is room again");
    drop(store);
    assert_eq!(whole(&disk.store()), (before.0 + 1, before.1 + 1));
}

#[test]
fn a_reopened_file_holds_what_was_confirmed() {
    let folder = std::env::temp_dir().join(format!("outrigger-store-{}", std::process::id()));
    let path = folder.join("policy.redb");
    {
        let store = FileStore::open(&path).expect("opens");
        store.commit(&put(&(upstream("a", 80) + &route_to("a")))).expect("applies");
        let locked = FileStore::open(&path);
        assert!(matches!(locked, Err(StoreError::Locked(_))), "{locked:?}");
    }
    let store = FileStore::open(&path).expect("opens again");
    assert_eq!((store.current().revision, store.current().objects.len()), (1, 2));
    assert_eq!(store.history_since(0).expect("reads").expect("kept").len(), 2);
    drop(store);
    std::fs::remove_dir_all(&folder).expect("removes its folder");
}
