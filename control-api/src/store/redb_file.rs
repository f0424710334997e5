//! Purpose: the policy on disk, in one redb file.
//! Shape: table `objects` (`kind/namespace/name` → JSON), table `history` ((revision, n) → JSON),
//! table `meta` (`revision`). One write transaction per apply, committed with fsync.
//! Errors: a full disk is told apart. redb refuses further writes after an I/O error until the file
//! is opened anew, so the database is dropped and opened again before the next write.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use super::change::{Objects, Plan, Record, parse_row, to_row};
use super::error::StoreError;
use crate::model::{Object, ObjectKey, PolicySet};

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const HISTORY: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("history");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
const FORMAT: &str = "format";
const FORMAT_NOW: u64 = 1;
const HISTORY_MAX: u64 = 1_000;

type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send>;

/// The policy on disk.
pub struct RedbFile {
    path: PathBuf,
    open: Opener,
    /// Absent after an I/O error, until the next write opens it again.
    database: Option<Database>,
}

impl fmt::Debug for RedbFile {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("RedbFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl RedbFile {
    /// Opens or creates the file and the folder it is in.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|error| StoreError::Failed(format!("cannot create {}: {error}", folder.display())))?;
        }
        let file = path.to_owned();
        Self::with_opener(path, Box::new(move || Database::create(&file)))
    }

    /// Opens a database in another way, for tests with a failing disk.
    pub fn with_opener(path: &Path, open: Opener) -> Result<Self, StoreError> {
        let mut file = Self { path: path.to_owned(), open, database: None };
        file.database()?;
        Ok(file)
    }

    /// Whether a write failed since the file was last read.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.database.is_none()
    }

    fn database(&mut self) -> Result<&Database, StoreError> {
        if self.database.is_none() {
            let opened = (self.open)().map_err(|error| match error {
                DatabaseError::DatabaseAlreadyOpen => StoreError::Locked(self.path.clone()),
                other => failure(&other.into(), &self.path),
            })?;
            self.database = Some(opened);
        }
        self.database.as_ref().ok_or_else(|| StoreError::Failed("not open".to_owned()))
    }

    /// Reads everything, as at the last commit.
    pub fn load(&mut self) -> Result<PolicySet, StoreError> {
        let path = self.path.clone();
        let rows = read_all(self.database()?).map_err(|error| failure(&error, &path))?;
        if rows.format > FORMAT_NOW {
            return Err(StoreError::Failed(format!(
                "{} was written by a newer version (format {}, this one reads {FORMAT_NOW})",
                path.display(),
                rows.format
            )));
        }
        let mut objects = Objects::new();
        for (key, bytes) in rows.objects {
            let parsed: Result<Object, String> =
                serde_json::from_slice(&bytes).map_err(|error| error.to_string()).and_then(|row| parse_row(&row));
            let object = parsed.map_err(|reason| StoreError::Unreadable { key, reason })?;
            objects.insert(object.key.clone(), Arc::new(object));
        }
        Ok(PolicySet { revision: rows.revision, objects, ..PolicySet::default() })
    }

    /// Writes a plan in one transaction; when it returns `Ok`, it is on the disk.
    pub fn write(&mut self, plan: &Plan) -> Result<(), StoreError> {
        let path = self.path.clone();
        let written = write_plan(self.database()?, plan);
        written.map_err(|error| {
            self.database = None;
            failure(&error, &path)
        })
    }

    /// The changes after `revision` up to `current`; `None` when some are no longer kept.
    pub fn history_since(&self, revision: u64, current: u64) -> Result<Option<Vec<Record>>, StoreError> {
        if revision >= current {
            return Ok(Some(Vec::new()));
        }
        let Some(database) = &self.database else { return Ok(None) };
        let rows = read_history(database, revision).map_err(|error| failure(&error, &self.path))?;
        let records: Vec<Record> = rows.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()).collect();
        let is_whole = records.first().is_some_and(|record| record.revision == revision + 1);
        Ok(is_whole.then_some(records))
    }
}

struct Rows {
    revision: u64,
    format: u64,
    objects: Vec<(String, Vec<u8>)>,
}

fn read_all(database: &Database) -> Result<Rows, redb::Error> {
    let transaction = database.begin_write()?;
    {
        transaction.open_table(OBJECTS)?;
        transaction.open_table(HISTORY)?;
        let mut meta = transaction.open_table(META)?;
        if meta.get(FORMAT)?.is_none() {
            meta.insert(FORMAT, FORMAT_NOW)?;
        }
    }
    transaction.commit()?;
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    let revision = meta.get(REVISION)?.map_or(0, |value| value.value());
    let format = meta.get(FORMAT)?.map_or(FORMAT_NOW, |value| value.value());
    let mut objects = Vec::new();
    for row in transaction.open_table(OBJECTS)?.iter()? {
        let (key, value) = row?;
        objects.push((key.value().to_owned(), value.value().to_vec()));
    }
    Ok(Rows { revision, format, objects })
}

fn write_plan(database: &Database, plan: &Plan) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut objects = transaction.open_table(OBJECTS)?;
        let mut history = transaction.open_table(HISTORY)?;
        for (index, (key, record)) in plan.records.iter().enumerate() {
            let row_key = row_key(key);
            match plan.set.objects.get(key) {
                Some(object) => {
                    objects.insert(row_key.as_str(), to_row(object).to_string().as_bytes())?;
                }
                None => {
                    objects.remove(row_key.as_str())?;
                }
            }
            let place = (record.revision, u32::try_from(index).unwrap_or(u32::MAX));
            let bytes = serde_json::to_vec(record).unwrap_or_default();
            history.insert(place, bytes.as_slice())?;
        }
        let oldest = plan.set.revision.saturating_sub(HISTORY_MAX);
        history.retain_in(..(oldest, 0), |_, _| false)?;
        transaction.open_table(META)?.insert(REVISION, plan.set.revision)?;
    }
    transaction.commit()?;
    Ok(())
}

fn read_history(database: &Database, after: u64) -> Result<Vec<Vec<u8>>, redb::Error> {
    let transaction = database.begin_read()?;
    let table = transaction.open_table(HISTORY)?;
    let rows = table.range((after + 1, 0)..)?;
    rows.map(|row| row.map(|(_, value)| value.value().to_vec()).map_err(Into::into)).collect()
}

fn row_key(key: &ObjectKey) -> String {
    format!("{}/{}/{}", key.kind, key.namespace, key.name)
}

fn failure(error: &redb::Error, path: &Path) -> StoreError {
    match error {
        redb::Error::Io(io) if io.kind() == std::io::ErrorKind::StorageFull => {
            StoreError::Full(format!("{}: {io}", path.display()))
        }
        other => StoreError::Failed(format!("{}: {other}", path.display())),
    }
}
