//! The journal in an SQLite file.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use palisade_core::{Completion, Error, ErrorKind, Result, Task, TaskState, Tenant};
use rusqlite::ffi::ErrorCode;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Journal, JournalEntry, Kept, Status};

/// "PLSD", so that no other program's file is taken for a journal.
const APPLICATION_ID: i32 = 0x504c_5344;
/// Format 1 had no limits of tenants.
const FORMAT: i32 = 2;
const PAGE_BYTES: u64 = 4096;

// What never changes about a task and what does lie apart, so that many changes share a page.
const TABLES: &str = "
    CREATE TABLE epoch (id INTEGER PRIMARY KEY CHECK (id = 0), number INTEGER NOT NULL);
    INSERT INTO epoch VALUES (0, 0);
    CREATE TABLE task (seq INTEGER PRIMARY KEY, body BLOB NOT NULL, crc INTEGER NOT NULL);
    CREATE TABLE status (
        seq INTEGER PRIMARY KEY,
        state TEXT NOT NULL,
        submitted_at INTEGER NOT NULL,
        ready_at INTEGER NOT NULL,
        finished_at INTEGER NOT NULL,
        failures INTEGER NOT NULL,
        lost INTEGER NOT NULL,
        completion BLOB,
        crc INTEGER NOT NULL
    );
";

/// What format 2 added.
const TENANT_TABLE: &str = "
    CREATE TABLE tenant (name TEXT PRIMARY KEY, limits BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
";

/// A journal in one SQLite file: write-ahead log, flushed with every commit (`synchronous = FULL`).
///
/// The file is locked while it is in use. Tasks and tenants' limits are MessagePack with field names, each with a CRC-32, because SQLite
/// itself notices damage to its structure only.
pub struct SqliteJournal {
    connection: Connection,
    path: PathBuf,
}

impl fmt::Debug for SqliteJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteJournal").field("path", &self.path).finish_non_exhaustive()
    }
}

impl SqliteJournal {
    /// Opens the journal at `path`, or makes one. It may grow to `bytes_max`. One of an earlier format is brought to the
    /// present one, which earlier versions refuse.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] when the file is no journal or damaged, [`ErrorKind::Unsupported`] when a newer version
    /// wrote it, [`ErrorKind::Exhausted`] when another process uses it, else [`ErrorKind::Io`].
    pub fn new(path: impl AsRef<Path>, bytes_max: u64) -> Result<SqliteJournal> {
        let path = path.as_ref().to_owned();
        let failed = |error| failure("open", &path, error);
        let mut connection = Connection::open(&path).map_err(failed)?;
        connection.busy_timeout(Duration::ZERO).map_err(failed)?;
        let number = |connection: &Connection, pragma: &str| {
            connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0)).map_err(failed)
        };
        // Before the log: with an exclusive lock its index needs no shared memory.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(failed)?;
        let is_new = number(&connection, "schema_version")? == 0;
        let mut format = 0;
        if !is_new {
            if number(&connection, "application_id")? != APPLICATION_ID {
                return Err(corrupt(&path, "the file is a database, but no journal"));
            }
            format = number(&connection, "user_version")?;
            if !(1..=FORMAT).contains(&format) {
                let message = format!("the journal has format {format}; this version knows 1 to {FORMAT}");
                return Err(Error::new(ErrorKind::Unsupported, "open", message)
                    .context("journal", path.display())
                    .help("use the version of palisade that wrote it, or a later one"));
            }
        }
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        // A checkpoint holds up the commit that triggers it, so they are few: every 16 MiB.
        connection.pragma_update(None, "wal_autocheckpoint", 4096).map_err(failed)?;
        let pages = (bytes_max / PAGE_BYTES).max(16);
        connection.pragma_update(None, "max_page_count", i64::try_from(pages).unwrap_or(i64::MAX)).map_err(failed)?;
        if format != FORMAT {
            let transaction = connection.transaction().map_err(failed)?;
            if is_new {
                transaction.execute_batch(TABLES).map_err(failed)?;
                transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
            }
            transaction.execute_batch(TENANT_TABLE).map_err(failed)?;
            transaction.pragma_update(None, "user_version", FORMAT).map_err(failed)?;
            transaction.commit().map_err(failed)?;
        }
        Ok(SqliteJournal { connection, path })
    }

    fn read(&self, each: &mut dyn FnMut(Kept) -> Result<()>) -> Result<()> {
        let failed = |error| failure("open", &self.path, error);
        let orphans = "SELECT seq FROM status WHERE seq NOT IN (SELECT seq FROM task) LIMIT 1";
        let orphan = self.connection.query_row(orphans, [], |row| row.get::<_, i64>(0)).optional().map_err(failed)?;
        if let Some(seq) = orphan {
            return Err(corrupt(&self.path, &format!("task {seq} has a status and no body")));
        }
        let mut statement =
            self.connection.prepare("SELECT name, limits, crc FROM tenant ORDER BY name").map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            each(kept_limits(row).map_err(|problem| self.unreadable(problem))?)?;
        }
        let mut statement = self
            .connection
            .prepare(
                "SELECT seq, body, task.crc, state, submitted_at, ready_at, finished_at, failures, lost, completion,
                    status.crc FROM task LEFT JOIN status USING (seq) ORDER BY seq",
            )
            .map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            each(kept_task(row).map_err(|problem| self.unreadable(problem))?)?;
        }
        Ok(())
    }

    fn unreadable(&self, problem: Problem) -> Error {
        match problem {
            Problem::Sqlite(error) => failure("open", &self.path, error),
            Problem::Damaged(what) => corrupt(&self.path, what),
        }
    }
}

impl Journal for SqliteJournal {
    fn open(&mut self, each: &mut dyn FnMut(Kept) -> Result<()>) -> Result<u64> {
        self.read(each)?;
        let sql = "UPDATE epoch SET number = number + 1 RETURNING number";
        let epoch = self.connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        epoch.map(i64::cast_unsigned).map_err(|error| failure("open", &self.path, error))
    }

    fn commit(&mut self, batch: &[JournalEntry]) -> Result<()> {
        let path = &self.path;
        write(&mut self.connection, batch).map_err(|problem| match problem {
            Problem::Sqlite(error) => failure("commit", path, error),
            Problem::Damaged(what) => Error::new(ErrorKind::Internal, "commit", what),
        })
    }
}

enum Problem {
    Sqlite(rusqlite::Error),
    Damaged(&'static str),
}

impl From<rusqlite::Error> for Problem {
    fn from(error: rusqlite::Error) -> Self {
        Problem::Sqlite(error)
    }
}

fn write(connection: &mut Connection, batch: &[JournalEntry]) -> Result<(), Problem> {
    // Of several changes to one task the last one counts; those before it need not be written.
    let mut later = HashSet::with_capacity(batch.len());
    let mut is_needed = |entry: &&JournalEntry| seq(entry).is_none_or(|seq| later.insert(seq)) || is_body(entry);
    let mut needed: Vec<_> = batch.iter().rev().filter(&mut is_needed).collect();
    needed.reverse();
    let transaction = connection.transaction()?;
    {
        let mut insert = transaction.prepare_cached("INSERT INTO task VALUES (?1, ?2, ?3)")?;
        let mut insert_status =
            transaction.prepare_cached("INSERT INTO status VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
        let mut update_status = transaction.prepare_cached(
            "UPDATE status SET state = ?2, submitted_at = ?3, ready_at = ?4, finished_at = ?5, failures = ?6, lost = ?7,
                completion = ?8, crc = ?9 WHERE seq = ?1",
        )?;
        let mut delete_task = transaction.prepare_cached("DELETE FROM task WHERE seq = ?1")?;
        let mut delete_status = transaction.prepare_cached("DELETE FROM status WHERE seq = ?1")?;
        for entry in needed {
            match entry {
                JournalEntry::Submit { seq, task, status } => {
                    let body = encode(&**task)?;
                    insert.execute(params![seq.cast_signed(), body, body_crc(*seq, &body)])?;
                    keep(&mut insert_status, *seq, status)?;
                }
                JournalEntry::Update { seq, status } => keep(&mut update_status, *seq, status)?,
                JournalEntry::Forget { seq } => {
                    delete_task.execute([seq.cast_signed()])?;
                    delete_status.execute([seq.cast_signed()])?;
                }
                JournalEntry::Limits { tenant, limits: Some(limits) } => {
                    let limits = encode(limits)?;
                    let crc = limits_crc(&tenant.0, &limits);
                    transaction
                        .prepare_cached("INSERT OR REPLACE INTO tenant VALUES (?1, ?2, ?3)")?
                        .execute(params![tenant.0, limits, crc])?;
                }
                JournalEntry::Limits { tenant, limits: None } => {
                    transaction.prepare_cached("DELETE FROM tenant WHERE name = ?1")?.execute([&tenant.0])?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Inserts or updates a row of `status`.
fn keep(statement: &mut rusqlite::Statement<'_>, seq: u64, status: &Status) -> Result<(), Problem> {
    let completion = status.completion.as_deref().map(encode).transpose()?;
    let rows = statement.execute(params![
        seq.cast_signed(),
        state_name(status.state),
        status.submitted_at.cast_signed(),
        status.ready_at.cast_signed(),
        status.finished_at.cast_signed(),
        status.failures,
        status.lost,
        completion,
        status_crc(seq, status, completion.as_deref()),
    ])?;
    if rows == 1 { Ok(()) } else { Err(Problem::Damaged("a task that changed was never submitted")) }
}

/// The task that an entry is about.
fn seq(entry: &JournalEntry) -> Option<u64> {
    match entry {
        JournalEntry::Submit { seq, .. } | JournalEntry::Update { seq, .. } | JournalEntry::Forget { seq } => {
            Some(*seq)
        }
        JournalEntry::Limits { .. } => None,
    }
}

fn is_body(entry: &JournalEntry) -> bool {
    matches!(entry, JournalEntry::Submit { .. })
}

fn kept_limits(row: &rusqlite::Row<'_>) -> Result<Kept, Problem> {
    let name: String = row.get(0)?;
    let limits: &[u8] = row.get_ref(1)?.as_blob().map_err(|_| Problem::Damaged("a tenant's limits are no blob"))?;
    if row.get::<_, u32>(2)? != limits_crc(&name, limits) {
        return Err(Problem::Damaged("a tenant's limits do not match their checksum"));
    }
    Ok(Kept::Limits { limits: decode(limits)?, tenant: Tenant(name) })
}

fn kept_task(row: &rusqlite::Row<'_>) -> Result<Kept, Problem> {
    let seq = row.get::<_, i64>(0)?.cast_unsigned();
    let body: &[u8] = row.get_ref(1)?.as_blob().map_err(|_| Problem::Damaged("a task's body is no blob"))?;
    if row.get::<_, u32>(2)? != body_crc(seq, body) {
        return Err(Problem::Damaged("a task's body does not match its checksum"));
    }
    let state = row.get_ref(3)?.as_str().ok().and_then(state_named);
    let state = state.ok_or(Problem::Damaged("a task's state is missing or unknown"))?;
    let completion: Option<&[u8]> =
        row.get_ref(9)?.as_blob_or_null().map_err(|_| Problem::Damaged("a completion is no blob"))?;
    let mut status = Status {
        state,
        submitted_at: row.get::<_, i64>(4)?.cast_unsigned(),
        ready_at: row.get::<_, i64>(5)?.cast_unsigned(),
        finished_at: row.get::<_, i64>(6)?.cast_unsigned(),
        failures: row.get(7)?,
        lost: row.get(8)?,
        completion: None,
    };
    if row.get::<_, u32>(10)? != status_crc(seq, &status, completion) {
        return Err(Problem::Damaged("a task's status does not match its checksum"));
    }
    status.completion = completion.map(decode::<Completion>).transpose()?.map(Arc::new);
    Ok(Kept::Task { seq, task: Box::new(decode::<Task>(body)?), status })
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Problem> {
    rmp_serde::to_vec_named(value).map_err(|_| Problem::Damaged("what is to be kept cannot be encoded"))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    rmp_serde::from_slice(bytes).map_err(|_| Problem::Damaged("what was kept cannot be decoded"))
}

fn body_crc(seq: u64, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&seq.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

fn limits_crc(name: &str, limits: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    // Its length sets the name apart from what follows.
    hasher.update(&(name.len() as u64).to_le_bytes());
    hasher.update(name.as_bytes());
    hasher.update(limits);
    hasher.finalize()
}

fn status_crc(seq: u64, status: &Status, completion: Option<&[u8]>) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for number in [seq, status.submitted_at, status.ready_at, status.finished_at] {
        hasher.update(&number.to_le_bytes());
    }
    for number in [status.failures, status.lost] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(state_name(status.state).as_bytes());
    hasher.update(completion.unwrap_or_default());
    hasher.finalize()
}

const STATES: [(TaskState, &str); 7] = [
    (TaskState::Delayed, "delayed"),
    (TaskState::Queued, "queued"),
    (TaskState::Running, "running"),
    (TaskState::Completed, "completed"),
    (TaskState::Failed, "failed"),
    (TaskState::Cancelled, "cancelled"),
    (TaskState::DeadLettered, "dead_lettered"),
];

fn state_name(state: TaskState) -> &'static str {
    STATES.iter().find(|(known, _)| *known == state).map_or("unknown", |(_, name)| name)
}

fn state_named(name: &str) -> Option<TaskState> {
    STATES.iter().find(|(_, known)| *known == name).map(|(state, _)| *state)
}

fn corrupt(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, "open", format!("the journal is damaged: {what}"))
        .context("journal", path.display())
        .help("restore the file from a backup, or move it away to begin anew")
}

fn failure(operation: &'static str, path: &Path, error: rusqlite::Error) -> Error {
    let (kind, message, help) = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => (ErrorKind::Exhausted, "there is no room for the journal", "make room"),
        Some(ErrorCode::DatabaseCorrupt) => {
            (ErrorKind::Corrupt, "the journal is damaged", "restore the file from a backup, or move it away")
        }
        Some(ErrorCode::NotADatabase) => {
            (ErrorKind::Corrupt, "the journal is damaged: it is no SQLite file", "name another file, or move it away")
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            (ErrorKind::Exhausted, "another process uses the journal", "stop it, or name another file")
        }
        _ => (ErrorKind::Io, "the journal cannot be read or written", "look at the disk and the file's permissions"),
    };
    Error::new(kind, operation, message).context("journal", path.display()).help(help).source(error)
}
