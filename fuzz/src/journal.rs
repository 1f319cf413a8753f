//! The files of a journal, whatever happened to them.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use palisade::{Artifact, ArtifactKind, ErrorKind, Result, Task, TaskState, Tenant};
use palisade_fabric::{Journal, JournalEntry, SqliteJournal, Status, TenantLimits};

/// The file, its log and its mark.
const NAMES: [&str; 3] = ["journal", "journal-wal", "journal-mark"];
const BYTES_MAX: u64 = 16 << 20;

/// The contents of the three files.
type Files = [Vec<u8>; 3];

/// A journal of a process that was killed, and what it had acknowledged.
struct Killed {
    files: Files,
    kept: String,
}

/// The first byte says what is hostile: one of the three files as a whole, which is the bytes that follow, or places in them,
/// each of which the following bytes name and change. The journal is opened or refused with the right error; one that is
/// damaged in a single place is whole or refused; one that is opened can be written, and opened again.
pub fn journal(data: &[u8]) {
    static KILLED: OnceLock<Killed> = OnceLock::new();
    let killed = KILLED.get_or_init(|| killed().expect("a journal in a folder of its own"));
    let Some((kind, rest)) = data.split_first() else { return };
    let mut files = killed.files.clone();
    let is_mild = match usize::from(*kind) % 4 {
        3 => {
            let changes: Vec<&[u8]> = rest.chunks(6).collect();
            changes.iter().for_each(|change| damage(&mut files, change));
            changes.len() == 1
        }
        which => {
            files[which] = rest.to_vec();
            // Nobody can tell what a whole file of somebody else's should have held.
            false
        }
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(NAMES[0]);
    for (name, bytes) in NAMES.iter().zip(&files) {
        write(&folder.path().join(name), bytes);
    }
    match opened(&path) {
        Err(error) => assert!(
            matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::Exhausted | ErrorKind::Io),
            "{error}"
        ),
        Ok((kept, mut journal)) => {
            assert!(!is_mild || kept == killed.kept, "something acknowledged was lost without a word");
            // What looked well may turn out not to be when its pages are written: then it says so.
            if journal.commit(&[limits("later")]).is_ok() {
                drop(journal);
                let (again, _) = opened(&path).expect("what was written can be read");
                assert!(again.contains("later"));
            }
        }
    }
}

/// One change: which file and how, at which place, and a byte.
fn damage(files: &mut Files, change: &[u8]) {
    let mut bytes = [0; 6];
    bytes[..change.len()].copy_from_slice(change);
    let [how, low, middle, high, byte, more] = bytes;
    let file = &mut files[usize::from(how & 3) % 3];
    if file.is_empty() {
        return;
    }
    let at = u32::from_le_bytes([low, middle, high, 0]) as usize % file.len();
    match how >> 2 & 3 {
        0 => file[at] = byte,
        1 => file[at] ^= 1 << (byte & 7),
        2 => file.truncate(at),
        _ => {
            let end = (at + usize::from(byte)).min(file.len());
            file[at..end].fill(more);
        }
    }
}

/// What it holds, as text that can be compared, and the journal.
fn opened(path: &Path) -> Result<(String, SqliteJournal)> {
    let mut journal = SqliteJournal::new(path, BYTES_MAX)?;
    let mut kept = String::new();
    journal.open(&mut |one| {
        kept.push_str(&format!("{one:?}\n"));
        Ok(())
    })?;
    Ok((kept, journal))
}

fn limits(tenant: &str) -> JournalEntry {
    let limits = TenantLimits { tasks_max: Some(7), ..TenantLimits::default() };
    JournalEntry::Limits { tenant: Tenant(tenant.into()), limits: Some(limits) }
}

fn status(state: TaskState) -> Status {
    Status { state, submitted_at: 1, ready_at: 2, finished_at: 3, failures: 0, lost: 1, completion: None }
}

/// Some commits in the file itself, and some in the log.
fn killed() -> Result<Killed> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(NAMES[0]);
    let submit = |seq| {
        let task = Task::new(Artifact::new(ArtifactKind::Wasm, vec![1; 100]).hash());
        JournalEntry::Submit { seq, task: Arc::new(task), status: status(TaskState::Queued) }
    };
    let (_, mut journal) = opened(&path)?;
    journal.commit(&(1..8).map(submit).collect::<Vec<_>>())?;
    drop(journal);
    let (_, mut journal) = opened(&path)?;
    journal.commit(&[limits("early"), submit(8)])?;
    journal.commit(&[JournalEntry::Update { seq: 2, status: status(TaskState::Completed) }])?;
    journal.commit(&[JournalEntry::Forget { seq: 3 }])?;
    let files = NAMES.map(|name| fs::read(folder.path().join(name)).unwrap_or_default());
    drop(journal);
    Ok(Killed { files, kept: opened(&path)?.0 })
}

fn write(path: &Path, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes)).expect("a file");
}

/// Each file as it was, and changes of each kind.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let killed = killed().expect("a journal in a folder of its own");
    let wholes = killed.files.iter().zip(0..).map(|(file, which): (&Vec<u8>, u8)| [&[which], &file[..]].concat());
    let changes = (0..16).map(|how| vec![3, how, 24, 0, 0, 9, 0]);
    let several = (0..16).map(|how| [3, how, 99, 3, 0, 255, 0, how + 1, 18, 20, 0, 3, 0, how, 60, 0, 0, 1, 2].to_vec());
    wholes.chain(changes).chain(several).collect()
}
