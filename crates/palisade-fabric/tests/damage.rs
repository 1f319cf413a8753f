//! Whatever happens to the files of a journal: either everything acknowledged is there, or it is refused. Never is something
//! lost without a word.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use palisade_core::{ErrorKind, Result, Scheduler, Task, TaskId, TaskState, Tenant, block_on};
use palisade_fabric::{Clock, Journal, Kept, LocalScheduler, SchedulerOptions, SqliteJournal, TenantLimits};
use proptest::prelude::*;
use support::{request, success, task};

const NAME: &str = "journal";
const LOG: &str = "journal-wal";
const MARK: &str = "journal-mark";
const PAGE_BYTES: usize = 4096;
const LOG_HEADER_BYTES: usize = 32;
const FRAME_BYTES: usize = PAGE_BYTES + 24;

type Files = BTreeMap<String, Vec<u8>>;

/// What a journal holds, in a form that can be compared.
#[derive(Debug, PartialEq)]
struct Content {
    tasks: Vec<(Task, TaskState)>,
    limits: Vec<(Tenant, TenantLimits)>,
}

fn read(mut journal: SqliteJournal) -> Result<Content> {
    let mut content = Content { tasks: Vec::new(), limits: Vec::new() };
    journal.open(&mut |one| {
        match one {
            Kept::Task { task, status, .. } => content.tasks.push((*task, status.state)),
            Kept::Limits { tenant, limits } => content.limits.push((tenant, limits)),
        }
        Ok(())
    })?;
    Ok(content)
}

fn open(path: &Path) -> LocalScheduler {
    let mut options = SchedulerOptions::default();
    options.journal = Some(Box::new(SqliteJournal::new(path, 1 << 30).unwrap()));
    options.clock = Clock::manual();
    LocalScheduler::open(options).unwrap()
}

/// Submits some tasks and ends some, and sets the limits of a tenant.
fn work(scheduler: &LocalScheduler, from: u8, to: u8) {
    block_on(async {
        for number in from..to {
            scheduler.submit(task(vec![number; 900])).await.unwrap();
        }
        for lease in scheduler.lease(request(usize::from(to - from) / 3)).await.unwrap() {
            scheduler.complete(lease.task.id, lease.fence, success()).await.unwrap();
        }
        let limits = TenantLimits { tasks_max: Some(usize::from(to)), ..TenantLimits::default() };
        scheduler.set_tenant_limits(&Tenant(format!("tenant {to}")), Some(limits)).await.unwrap();
    });
}

fn files_in(folder: &Path) -> Files {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|one| (one.file_name().into_string().unwrap(), fs::read(one.path()).unwrap())).collect()
}

fn write_files(folder: &Path, files: &Files) {
    for name in [NAME, LOG, MARK] {
        let _ = fs::remove_file(folder.join(name));
    }
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// A journal that was killed, and what it had acknowledged: with everything in its log, or with most of it in the database.
fn killed(with_database: bool) -> (Files, Content) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(NAME);
    let mut scheduler = open(&path);
    if with_database {
        work(&scheduler, 0, 40);
        drop(scheduler);
        scheduler = open(&path);
    }
    work(&scheduler, 40, 52);
    let files = files_in(folder.path());
    drop(scheduler);
    assert!(files[LOG].len() > 10 * FRAME_BYTES, "the log holds something");
    let content = read(SqliteJournal::new(&path, 1 << 30).unwrap()).unwrap();
    (files, content)
}

/// One journal and a place to damage copies of it.
struct Patient {
    folder: tempfile::TempDir,
    files: Files,
    content: Content,
    refused: usize,
    whole: usize,
}

impl Patient {
    fn new(with_database: bool) -> Patient {
        let (files, content) = killed(with_database);
        Patient { folder: tempfile::tempdir().unwrap(), files, content, refused: 0, whole: 0 }
    }

    /// Opens it with this damage done.
    fn opened(&mut self, what: &str, damage: impl FnOnce(&mut Files)) -> Result<Content> {
        let mut files = self.files.clone();
        damage(&mut files);
        write_files(self.folder.path(), &files);
        let opened = SqliteJournal::new(self.folder.path().join(NAME), 1 << 30).and_then(read);
        match &opened {
            Ok(_) => self.whole += 1,
            Err(_) => {
                self.refused += 1;
                // But for a log that was gone, which is empty again.
                let mut left = files_in(self.folder.path());
                left.retain(|name, bytes| files.contains_key(name) || !bytes.is_empty());
                assert!(left == files, "{what}: what is refused is left as it is");
            }
        }
        opened
    }

    /// Whether the damage is noticed or harmless.
    fn bears(&mut self, what: &str, damage: impl FnOnce(&mut Files)) {
        match self.opened(what, damage) {
            Ok(content) => assert!(content == self.content, "{what} was not noticed"),
            Err(error) => {
                let known = [ErrorKind::Corrupt, ErrorKind::Unsupported, ErrorKind::Io];
                assert!(known.contains(&error.kind()), "{what}: {error:?}");
                assert!(error.help().is_some(), "{what}: {error:?}");
            }
        }
    }

    fn bears_flip(&mut self, name: &str, at: usize, mask: u8) {
        self.bears(&format!("byte {at} of {name} changed by {mask:#x}"), |files| {
            files.get_mut(name).unwrap()[at] ^= mask;
        });
    }

    fn len(&self, name: &str) -> usize {
        self.files[name].len()
    }
}

#[test]
fn what_is_whole_is_opened() {
    for with_database in [false, true] {
        let mut patient = Patient::new(with_database);
        let content = patient.opened("nothing", |_| ()).unwrap();
        assert_eq!(content, patient.content);
    }
}

#[test]
fn every_byte_of_a_header_is_noticed_or_does_no_harm() {
    for with_database in [false, true] {
        let mut patient = Patient::new(with_database);
        for at in 0..LOG_HEADER_BYTES {
            patient.bears_flip(LOG, at, 0x55);
        }
        let frames = (patient.len(LOG) - LOG_HEADER_BYTES) / FRAME_BYTES;
        // All of the first and the last, of the others one byte each in turn.
        for frame in 0..frames {
            let bytes = if frame == 0 || frame + 1 == frames { 0..24 } else { frame % 24..frame % 24 + 1 };
            for at in bytes {
                patient.bears_flip(LOG, LOG_HEADER_BYTES + frame * FRAME_BYTES + at, 0x55);
            }
        }
        for at in 0..100 {
            patient.bears_flip(NAME, at, 0x24);
        }
        for page in 1..patient.len(NAME) / PAGE_BYTES {
            for at in 0..8 {
                patient.bears_flip(NAME, page * PAGE_BYTES + at, 0x01);
            }
        }
        for at in 0..patient.len(MARK) {
            patient.bears_flip(MARK, at, 0x01);
        }
        assert!(patient.refused > LOG_HEADER_BYTES, "{} refused", patient.refused);
        assert!(patient.whole > 0, "what is in the log as well does no harm in the database");
    }
}

#[test]
fn every_truncation_is_noticed_or_does_no_harm() {
    for with_database in [false, true] {
        let mut patient = Patient::new(with_database);
        for name in [LOG, NAME, MARK] {
            let len = patient.len(name);
            let (head, every) = if name == NAME { (0, PAGE_BYTES) } else { (LOG_HEADER_BYTES, FRAME_BYTES) };
            let mut cuts: Vec<_> =
                (head..len).step_by(every).flat_map(|at| [at.saturating_sub(1), at, at + 1]).collect();
            cuts.extend((0..len).step_by(len / 13 + 1));
            if name == MARK {
                cuts = (0..len).collect();
            }
            for cut in cuts.into_iter().filter(|cut| *cut < len) {
                patient.bears(&format!("{name} cut to {cut} of {len} bytes"), |files| {
                    files.get_mut(name).unwrap().truncate(cut)
                });
            }
            patient.bears(&format!("{name} gone"), |files| drop(files.remove(name)));
            // The last pages of the database may be in the log as well.
            assert!(name == NAME || patient.whole == 0, "each of these takes something");
            patient.whole = 0;
        }
        patient.bears("log and mark gone", |files| files.retain(|name, _| name == NAME));
        patient.bears("all but the log gone", |files| files.retain(|name, _| name == LOG));
        patient.bears("all but the mark gone", |files| files.retain(|name, _| name == MARK));
        assert_eq!(patient.whole, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_disk_does_to_a_block_is_noticed_or_does_no_harm(
        with_database: bool,
        damages in prop::collection::vec((0..3usize, any::<prop::sample::Index>(), 1..=255u8, 0..3usize), 1..4),
    ) {
        thread_local! {
            static PATIENTS: std::cell::RefCell<[Patient; 2]> = [Patient::new(false), Patient::new(true)].into();
        }
        PATIENTS.with_borrow_mut(|patients| {
            patients[usize::from(with_database)].bears(&format!("{damages:?}"), |files| {
                for (file, at, mask, how) in &damages {
                    // The mark by itself is flipped elsewhere; a mark that says less and a log that has less is no damage.
                    let bytes = files.get_mut([LOG, NAME, LOG][*file]).unwrap();
                    let at = at.index(bytes.len());
                    let block = at / 512 * 512..(at / 512 * 512 + 512).min(bytes.len());
                    match how {
                        0 => bytes[at] ^= mask,
                        1 => bytes[block].fill(0),
                        _ => bytes.copy_within(0..block.len(), block.start),
                    }
                }
            });
        });
    }
}

/// Killed between a commit and its mark, or after a loss of power: the journal has more than its mark says.
#[test]
fn a_mark_that_says_less_is_no_damage() {
    let mut patient = Patient::new(true);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(NAME);
    write_files(folder.path(), &patient.files);
    drop(open(&path));
    let later = files_in(folder.path());
    assert!(later[MARK] != patient.files[MARK] && !later.contains_key(LOG));
    let earlier = patient.files[MARK].clone();
    patient.files = later;
    let content =
        patient.opened("a mark that says less", |files| drop(files.insert(MARK.to_owned(), earlier))).unwrap();
    assert_eq!(content.tasks.len(), patient.content.tasks.len());
}

#[test]
fn what_is_provable_is_recovered_when_asked_for() {
    let (files, content) = killed(false);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(NAME);
    let mut most = 0;
    for cut in (0..=20).map(|part| files[LOG].len() * part / 20) {
        let mut torn = files.clone();
        torn.get_mut(LOG).unwrap().truncate(cut);
        write_files(folder.path(), &torn);
        let whole = SqliteJournal::new(&path, 1 << 30).and_then(read);
        assert_eq!(whole.is_ok(), cut == files[LOG].len(), "cut to {cut}");
        write_files(folder.path(), &torn);
        let Ok(kept) = SqliteJournal::recover(&path, 1 << 30).and_then(read) else {
            assert!(cut < 10 * FRAME_BYTES, "the tables themselves are in the first frames");
            continue;
        };
        let ids: Vec<TaskId> = kept.tasks.iter().map(|(task, _)| task.id).collect();
        let expected: Vec<TaskId> = content.tasks.iter().take(ids.len()).map(|(task, _)| task.id).collect();
        assert_eq!(ids, expected, "a beginning is kept");
        assert!(ids.len() >= most, "more of the log never gives less");
        most = ids.len();
        read(SqliteJournal::new(&path, 1 << 30).unwrap()).expect("once recovered, it is whole");
    }
    assert_eq!(most, content.tasks.len());
    let mut without_mark = files.clone();
    without_mark.remove(MARK);
    write_files(folder.path(), &without_mark);
    assert_eq!(SqliteJournal::new(&path, 1 << 30).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(read(SqliteJournal::recover(&path, 1 << 30).unwrap()).unwrap(), content);
}

#[test]
fn the_files_are_their_owners_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(NAME);
    let scheduler = open(&path);
    work(&scheduler, 0, 3);
    for name in [NAME, LOG, MARK] {
        let mode = fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    drop(scheduler);
    for name in [NAME, MARK] {
        let file = folder.path().join(name);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let error = SqliteJournal::new(&path, 1 << 30).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
        assert!(error.to_string().contains("chmod 600"), "{error}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    drop(open(&path));
    // Whatever the umask.
    for umask in ["000", "277"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let output = child(&format!("umask {umask}"), &path);
        assert!(String::from_utf8_lossy(&output.stdout).contains("told Ok(1)"), "{output:?}");
        for name in [NAME, MARK] {
            let mode = fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name} with umask {umask}");
        }
    }
}

const PATH: &str = "JOURNAL_OF_THE_CHILD";

/// Opens the journal at `path` in a process of its own, in which the shell first did what is asked for.
fn child(first: &str, path: &Path) -> Output {
    let script = format!("{first}; exec \"$0\" --exact the_epoch_is_kept_before_it_is_told --nocapture");
    let mut child = Command::new("sh");
    child.args(["-c", &script]).arg(std::env::current_exe().unwrap()).env(PATH, path).stdin(Stdio::null());
    child.output().unwrap()
}

/// On a full disk a statement gives its row, and only the commit fails.
#[test]
fn the_epoch_is_kept_before_it_is_told() {
    if let Some(path) = std::env::var_os(PATH) {
        // As a child whose files may not grow.
        let told = SqliteJournal::new(path, 1 << 30).and_then(|mut journal| journal.open(&mut |_| Ok(())));
        println!("\ntold {told:?}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(NAME);
    let epoch = || SqliteJournal::new(&path, 1 << 30).unwrap().open(&mut |_| Ok(())).unwrap();
    assert_eq!((epoch(), epoch()), (1, 2));
    let whole = files_in(folder.path());
    for blocks in 0..12 {
        write_files(folder.path(), &whole);
        // In blocks of 1024 bytes, or of 512 in some shells; the limit is refused with an error, not with a signal.
        let output = child(&format!("trap '' XFSZ; ulimit -f {blocks}"), &path);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let told = said.lines().find_map(|line| line.strip_prefix("told ")).unwrap_or_else(|| panic!("{output:?}"));
        let again = epoch();
        match told {
            "Ok(3)" => assert_eq!(again, 4, "what was told was not kept, with {blocks} blocks"),
            _ => assert!(told.starts_with("Err(") && again == 3, "{told}, then {again}, with {blocks} blocks"),
        }
        if blocks == 0 {
            assert!(told.starts_with("Err("), "{told}: is the limit there?");
        }
    }
}
