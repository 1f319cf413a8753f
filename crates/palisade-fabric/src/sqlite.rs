//! The journal in an SQLite file.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, fs};

use palisade_core::{Completion, Error, ErrorKind, Result, Task, TaskState, Tenant};
use rusqlite::config::DbConfig;
use rusqlite::ffi::ErrorCode;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::mark::{self, Mark, Said};
use crate::{Journal, JournalEntry, Kept, Status, private};

/// "PLSD", so that no other program's file is taken for a journal.
const APPLICATION_ID: i32 = 0x504c_5344;
/// Format 1 had no limits of tenants, format 2 did not count its commits.
const FORMAT: i32 = 3;
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

/// What format 3 added. Each commit leaves its number in a row that it writes anyway, or in the epoch's.
const COMMITS: &str = "
    ALTER TABLE status ADD COLUMN commits INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE epoch ADD COLUMN commits INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE epoch ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
";

/// A journal in one SQLite file: write-ahead log, flushed with every commit (`synchronous = FULL`).
///
/// The file is locked while it is in use. Tasks and tenants' limits are MessagePack with field names, each with a CRC-32, because SQLite
/// itself notices damage to its structure only.
///
/// SQLite takes a log that is damaged, short or gone as one that ends there. So the journal counts its commits, and the number
/// of those that were acknowledged is in a file of its own beside it (`NAME-mark`): one with fewer is refused, before anything
/// is changed. What a loss of power may leave is no damage, and is opened.
///
/// The files are made for their owner only (0600); others' rights to them are refused.
pub struct SqliteJournal {
    connection: Connection,
    path: PathBuf,
    mark: Mark,
    /// Commits that are safe.
    commits: u64,
    /// How many it must have at least, until it was opened.
    commits_min: u64,
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
    /// wrote it, [`ErrorKind::Exhausted`] when another process uses it, [`ErrorKind::InvalidInput`] when others may read
    /// it, else [`ErrorKind::Io`].
    pub fn new(path: impl AsRef<Path>, bytes_max: u64) -> Result<SqliteJournal> {
        SqliteJournal::with(path.as_ref(), bytes_max, false)
    }

    /// As [`SqliteJournal::new`], also when commits are missing or its mark is gone: takes what there is up to the damage, of
    /// which each part is still checked. What is missing is lost, and a warning says how much that is.
    ///
    /// # Errors
    ///
    /// As [`SqliteJournal::new`]; [`ErrorKind::Corrupt`] when what is left is damaged itself.
    pub fn recover(path: impl AsRef<Path>, bytes_max: u64) -> Result<SqliteJournal> {
        SqliteJournal::with(path.as_ref(), bytes_max, true)
    }

    fn with(path: &Path, bytes_max: u64, recovers: bool) -> Result<SqliteJournal> {
        let path = path.to_owned();
        let failed = |error| failure("open", &path, error);
        let io_failed = |error| io_failure("open", &path, error);
        let mark_path = mark::path_of(&path);
        let log_path = beside(&path, "-wal");
        for file in [&path, &log_path, &beside(&path, "-journal"), &mark_path] {
            private::check(file, "open")?;
        }
        let said = mark::read(&mark_path).map_err(io_failed)?;
        // Asked, not opened: closing a file lets go of all locks this process has on it. And asked before SQLite sees it,
        // which deletes the log of an empty file. One that was being made may be cut short, with neither.
        let is_empty = bytes_of(&path) < PAGE_BYTES;
        if is_empty && bytes_of(&log_path) > 0 {
            return Err(corrupt(&path, "its log is there, and the file itself is gone or cut short"));
        }
        if is_empty && !matches!(said, Said::Nothing | Said::Commits(0)) {
            return Err(corrupt(&path, "its mark is there, and the file itself is gone or cut short"));
        }
        if is_empty {
            Mark::open(&mark_path).map_err(io_failed)?;
            // SQLite gives the log the rights of the file.
            match private::create_new(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(io_failed(error)),
                _ => {}
            }
        }
        let mut connection = Connection::open(&path).map_err(failed)?;
        connection.busy_timeout(Duration::ZERO).map_err(failed)?;
        // Until it is known to be whole, closing it changes nothing.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed)?;
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
                    .with_context("journal", path.display())
                    .with_help("use the version of palisade that wrote it, or a later one"));
            }
        }
        let commits_min = match said {
            Said::Commits(commits) if !recovers => commits,
            _ if recovers || format < FORMAT && said == Said::Nothing => 0,
            Said::Damaged => return Err(corrupt(&path, "its mark, which says how much it has, is damaged")),
            _ => return Err(corrupt(&path, "its mark, which says how much it has, is gone")),
        };
        if format < FORMAT && commits_min > 0 {
            return Err(corrupt(&path, "it is older than its mark"));
        }
        connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        let pages = (bytes_max / PAGE_BYTES).max(16);
        connection.pragma_update(None, "max_page_count", i64::try_from(pages).unwrap_or(i64::MAX)).map_err(failed)?;
        // Before the format that must have one.
        let mark = Mark::open(&mark_path).map_err(io_failed)?;
        if format != FORMAT {
            let transaction = connection.transaction().map_err(failed)?;
            if is_new {
                transaction.execute_batch(TABLES).map_err(failed)?;
                transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
            }
            if format < 2 {
                transaction.execute_batch(TENANT_TABLE).map_err(failed)?;
            }
            transaction.execute_batch(COMMITS).map_err(failed)?;
            let number = epoch_of(&transaction).map_err(failed)?.0;
            keep_epoch(&transaction, number, 0).map_err(failed)?;
            transaction.pragma_update(None, "user_version", FORMAT).map_err(failed)?;
            transaction.commit().map_err(failed)?;
        }
        // A new one's tables are in the file itself by now, without a log; those of an earlier format are brought there. So
        // the file always says that there must be a mark.
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        if !is_new && format != FORMAT {
            let busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i32>(0));
            if busy.map_err(failed)? != 0 {
                return Err(Error::new(ErrorKind::Internal, "open", "the log cannot be written back"));
            }
        }
        // A checkpoint holds up the commit that triggers it, so they are few: every 16 MiB.
        connection.pragma_update(None, "wal_autocheckpoint", 4096).map_err(failed)?;
        Ok(SqliteJournal { connection, path, mark, commits: commits_min, commits_min })
    }

    /// Gives everything back. Gives the epoch, and how many commits it has.
    fn read(&self, each: &mut dyn FnMut(Kept) -> Result<()>) -> Result<(i64, u64)> {
        let failed = |error| failure("open", &self.path, error);
        // What SQLite knows of its own structure; what is in the rows has checksums of ours.
        let verdict = self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        let verdict = verdict.map_err(failed)?;
        if verdict != "ok" {
            return Err(corrupt(&self.path, &verdict));
        }
        let (epoch, mut commits, crc) = epoch_of(&self.connection).map_err(failed)?;
        if crc != epoch_crc(epoch, commits) {
            return Err(corrupt(&self.path, "the epoch does not match its checksum"));
        }
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
                    status.crc, commits FROM task LEFT JOIN status USING (seq) ORDER BY seq",
            )
            .map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let (one, commit) = kept_task(row).map_err(|problem| self.unreadable(problem))?;
            commits = commits.max(commit);
            each(one)?;
        }
        Ok((epoch, commits))
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
        let (epoch, commits) = self.read(each)?;
        if commits < self.commits_min {
            let missing = self.commits_min - commits;
            let what =
                format!("the latest {missing} of {} commits are missing; its log is damaged or gone", self.commits_min);
            return Err(corrupt(&self.path, &what));
        }
        let (Some(epoch), Some(commits)) = (epoch.checked_add(1), commits.checked_add(1)) else {
            return Err(corrupt(&self.path, "the epoch or the count of commits is beyond what there can be"));
        };
        let failed = |error| failure("open", &self.path, error);
        // Committed before it is told: a statement that returns rows gives them before.
        let transaction = self.connection.transaction().map_err(failed)?;
        keep_epoch(&transaction, epoch, commits).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        self.mark.begin(commits).map_err(|error| io_failure("open", &self.path, error))?;
        self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(failed)?;
        (self.commits, self.commits_min) = (commits, 0);
        Ok(epoch.cast_unsigned())
    }

    fn commit(&mut self, batch: &[JournalEntry]) -> Result<()> {
        let path = &self.path;
        let commits = self.commits + 1;
        write(&mut self.connection, batch, commits).map_err(|problem| match problem {
            Problem::Sqlite(error) => failure("commit", path, error),
            Problem::Damaged(what) => Error::new(ErrorKind::Internal, "commit", what),
        })?;
        self.commits = commits;
        self.mark.note(commits).map_err(|error| io_failure("commit", path, error))
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

fn write(connection: &mut Connection, batch: &[JournalEntry], commits: u64) -> Result<(), Problem> {
    // Of several changes to one task the last one counts; those before it need not be written.
    let mut later = HashSet::with_capacity(batch.len());
    let mut leaves_its_number = false;
    let mut is_needed = |entry: &&JournalEntry| {
        let is_last = seq(entry).is_none_or(|seq| later.insert(seq));
        leaves_its_number |= is_last && matches!(entry, JournalEntry::Submit { .. } | JournalEntry::Update { .. });
        is_last || is_body(entry)
    };
    let mut needed: Vec<_> = batch.iter().rev().filter(&mut is_needed).collect();
    needed.reverse();
    let transaction = connection.transaction()?;
    {
        let mut insert = transaction.prepare_cached("INSERT INTO task VALUES (?1, ?2, ?3)")?;
        let mut insert_status =
            transaction.prepare_cached("INSERT INTO status VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?;
        let mut update_status = transaction.prepare_cached(
            "UPDATE status SET state = ?2, submitted_at = ?3, ready_at = ?4, finished_at = ?5, failures = ?6, lost = ?7,
                completion = ?8, crc = ?9, commits = ?10 WHERE seq = ?1",
        )?;
        let mut delete_task = transaction.prepare_cached("DELETE FROM task WHERE seq = ?1")?;
        let mut delete_status = transaction.prepare_cached("DELETE FROM status WHERE seq = ?1")?;
        for entry in needed {
            match entry {
                JournalEntry::Submit { seq, task, status } => {
                    let body = encode(&**task)?;
                    insert.execute(params![seq.cast_signed(), body, body_crc(*seq, &body)])?;
                    keep(&mut insert_status, *seq, status, commits)?;
                }
                JournalEntry::Update { seq, status } => keep(&mut update_status, *seq, status, commits)?,
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
    if !leaves_its_number {
        let number = epoch_of(&transaction)?.0;
        keep_epoch(&transaction, number, commits)?;
    }
    transaction.commit()?;
    Ok(())
}

/// The epoch's number, the number of the commit that wrote it, and its checksum.
fn epoch_of(connection: &Connection) -> rusqlite::Result<(i64, u64, u32)> {
    let mut statement = connection.prepare_cached("SELECT number, commits, crc FROM epoch")?;
    statement.query_row([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned(), row.get(2)?)))
}

fn keep_epoch(connection: &Connection, number: i64, commits: u64) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached("UPDATE epoch SET number = ?1, commits = ?2, crc = ?3")?;
    statement.execute(params![number, commits.cast_signed(), epoch_crc(number, commits)]).map(drop)
}

/// Inserts or updates a row of `status`.
fn keep(statement: &mut rusqlite::Statement<'_>, seq: u64, status: &Status, commits: u64) -> Result<(), Problem> {
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
        status_crc(seq, status, completion.as_deref(), commits),
        commits.cast_signed(),
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

/// A task, and the number of the commit that wrote it last.
fn kept_task(row: &rusqlite::Row<'_>) -> Result<(Kept, u64), Problem> {
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
    let commits = row.get::<_, i64>(11)?.cast_unsigned();
    if row.get::<_, u32>(10)? != status_crc(seq, &status, completion, commits) {
        return Err(Problem::Damaged("a task's status does not match its checksum"));
    }
    status.completion = completion.map(decode::<Completion>).transpose()?.map(Arc::new);
    Ok((Kept::Task { seq, task: Box::new(decode::<Task>(body)?), status }, commits))
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

fn epoch_crc(number: i64, commits: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(&commits.to_le_bytes());
    hasher.finalize()
}

fn status_crc(seq: u64, status: &Status, completion: Option<&[u8]>, commits: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for number in [seq, status.submitted_at, status.ready_at, status.finished_at] {
        hasher.update(&number.to_le_bytes());
    }
    for number in [status.failures, status.lost] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(state_name(status.state).as_bytes());
    hasher.update(completion.unwrap_or_default());
    // Rows of earlier formats have no number.
    if commits > 0 {
        hasher.update(&commits.to_le_bytes());
    }
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

/// The file of a journal whose name ends like this.
fn beside(journal: &Path, ending: &str) -> PathBuf {
    let mut path = journal.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

/// How large a file is; 0 when it is not there.
fn bytes_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn corrupt(path: &Path, what: &str) -> Error {
    let name = path.display();
    let help = format!("nothing was changed; restore {name}* together from a backup, or move them away to begin anew");
    Error::new(ErrorKind::Corrupt, "open", format!("the journal is damaged: {what}"))
        .with_context("journal", name)
        .with_help(help)
}

fn io_failure(operation: &'static str, path: &Path, error: std::io::Error) -> Error {
    let (kind, message, help) = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => NO_ROOM,
        _ => CANNOT,
    };
    Error::new(kind, operation, message).with_context("journal", path.display()).with_help(help).with_source(error)
}

/// Kind, message and help of an error.
type Told = (ErrorKind, &'static str, &'static str);

const NO_ROOM: Told = (ErrorKind::Exhausted, "there is no room for the journal", "make room");
const CANNOT: Told =
    (ErrorKind::Io, "the journal cannot be read or written", "look at the disk and the file's permissions");

fn failure(operation: &'static str, path: &Path, error: rusqlite::Error) -> Error {
    let (kind, message, help) = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => NO_ROOM,
        Some(ErrorCode::DatabaseCorrupt) => {
            (ErrorKind::Corrupt, "the journal is damaged", "restore the file from a backup, or move it away")
        }
        Some(ErrorCode::NotADatabase) => {
            (ErrorKind::Corrupt, "the journal is damaged: it is no SQLite file", "name another file, or move it away")
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            (ErrorKind::Exhausted, "another process uses the journal", "stop it, or name another file")
        }
        _ => CANNOT,
    };
    Error::new(kind, operation, message).with_context("journal", path.display()).with_help(help).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_broken_one_whoever_meets_it() {
        let path = Path::new("journal");
        for (error, kind) in [
            (std::io::ErrorKind::StorageFull, ErrorKind::Exhausted),
            (std::io::ErrorKind::QuotaExceeded, ErrorKind::Exhausted),
            (std::io::ErrorKind::PermissionDenied, ErrorKind::Io),
        ] {
            assert_eq!(io_failure("open", path, error.into()).kind(), kind);
        }
        let full = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL), None);
        assert_eq!(failure("commit", path, full).kind(), ErrorKind::Exhausted);
    }
}
