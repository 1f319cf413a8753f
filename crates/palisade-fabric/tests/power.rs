//! The power goes at any moment: everything acknowledged was really flushed by then.
//!
//! A child uses a scheduler until it is killed. A small library (`support/record_writes.c`) records what it asks of the
//! files of its journal, and what it says. From that, the folder is rebuilt as a loss of power may leave it at any point:
//! what was flushed is there, and of what was written later, any part, torn at sectors. The scheduler is opened on each
//! such image, and everything that was acknowledged by then must be in it. The last image of a child is where the next one
//! goes on.

mod support;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use palisade_core::{Scheduler, block_on};
use palisade_fabric::{Journal, Restored, SqliteJournal};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use support::load::{self, Told};

/// Children, each killed or closed at some moment.
const RUNS: usize = 10;
/// Images looked at of each.
const IMAGES: usize = 14;
/// A child is killed after it said this many lines at most.
const LINES_MAX: usize = 1500;
/// What a disk writes as a whole.
const SECTOR_BYTES: usize = 512;
const JOURNAL: &str = "journal";

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("child") => load::run(Path::new(&arguments[2])),
        // Closing writes the log back into the database and removes it.
        Some("close") => drop(load::open(Path::new(&arguments[2]))),
        Some("--list") => println!("what_was_flushed_is_enough: test"),
        _ => {
            let begun = Instant::now();
            let told = what_was_flushed_is_enough();
            println!("test what_was_flushed_is_enough ... ok ({told}, {:?})", begun.elapsed());
        }
    }
}

fn what_was_flushed_is_enough() -> String {
    let seed = getrandom::u64().expect("randomness");
    println!("seed {seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let folder = tempfile::tempdir().expect("a folder");
    let recorder = compile_recorder(folder.path());
    let mut told = Told::default();
    let mut base = Files::default();
    let (mut images, mut flushes, mut lost_without_flushes, mut in_checkpoints) = (0, 0, 0, 0);
    for run in 0..RUNS {
        let closes = run % 3 == 2;
        let records = record(folder.path(), &recorder, &base, closes, random.next_u64() as usize % LINES_MAX);
        flushes += records.iter().filter(|record| record.kind == 'f').count();
        // Anywhere, and in particular while the database itself is written, which happens rarely.
        let anywhere: Vec<_> = (0..=records.len()).collect();
        let in_database = places_in_database(&records);
        let mut cuts: Vec<_> = (1..IMAGES)
            .map(|number| match number % 2 == 0 && !in_database.is_empty() {
                true => any(&in_database, &mut random),
                false => any(&anywhere, &mut random),
            })
            .collect();
        in_checkpoints += cuts.iter().filter(|cut| in_database.contains(cut)).count();
        cuts.push(records.len());
        let (mut after, mut left) = (told.clone(), BTreeMap::new());
        for cut in cuts {
            let (disk, heard) = replay(&base, &told, &records[..cut], true);
            let how = format!("run {run}, after {cut} of {} records, seed {seed}", records.len());
            left = disk.after_power_loss(&mut random);
            let lost = look_at(&folder.path().join("image"), &left, &heard, &how);
            assert_eq!(lost, Vec::<String>::new(), "{how}");
            images += 1;
            after = heard;
        }
        // That nothing is lost means something only if it would be without the flushes.
        let (disk, heard) = replay(&base, &told, &records, false);
        let nothing_later = disk.flushed();
        let how = format!("run {run} without flushes");
        lost_without_flushes += look_at(&folder.path().join("image"), &nothing_later, &heard, &how).len();
        (base, told) = (Files::of(left), after);
    }
    assert!(images >= 50 && in_checkpoints > 10, "{images} images, {in_checkpoints} of them in checkpoints");
    assert!(flushes > RUNS * 10, "{flushes} flushes: is the recorder loaded?");
    assert!(lost_without_flushes > 100, "{lost_without_flushes} lost by a disk that ignores flushes");
    let path = folder.path().join("end");
    write_files(&path, &base.content);
    let acknowledged = told.acknowledged.len();
    let counted = told.check_to_the_end(&load::open(&path.join(JOURNAL)));
    format!(
        "{images} images of {RUNS} runs, {in_checkpoints} in checkpoints, {acknowledged} acknowledged, {flushes} flushes; \
            without them {lost_without_flushes} lost; {counted:?}"
    )
}

fn any(places: &[usize], random: &mut ChaCha8Rng) -> usize {
    places[random.next_u64() as usize % places.len()]
}

/// Compiles the recorder, with the compiler that SQLite was compiled with.
fn compile_recorder(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/record_writes.c");
    let library = folder.join("record_writes.so");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(compiler);
    command.args(["-shared", "-fPIC", "-O1", "-U_FORTIFY_SOURCE", "-pthread", "-o"]).arg(&library).arg(source);
    let output = command.output().unwrap_or_else(|error| panic!("no C compiler: {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library
}

/// Something that a process asked of its files, or said.
#[derive(Debug)]
struct Record {
    kind: char,
    file: i32,
    offset: usize,
    bytes: Vec<u8>,
}

/// Runs a child on these files, which are on disk, and gives what it did.
fn record(folder: &Path, recorder: &Path, base: &Files, closes: bool, lines: usize) -> Vec<Record> {
    let (data, log) = (folder.join("data"), folder.join("log"));
    write_files(&data, &base.content);
    let _ = fs::remove_file(&log);
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.arg(if closes { "close" } else { "child" }).arg(data.join(JOURNAL)).stdout(Stdio::piped());
    command.env("LD_PRELOAD", recorder).env("RECORD_FOLDER", &data).env("RECORD_LOG", &log);
    let mut child = command.spawn().expect("the child starts");
    let mut said = BufReader::new(child.stdout.take().expect("its output")).lines();
    if closes {
        assert!(child.wait().expect("it ends").success());
    } else {
        let heard = said.by_ref().take(lines + 1).filter(Result::is_ok).count();
        assert_eq!(heard, lines + 1, "the child ended by itself");
        child.kill().expect("it is killed");
        child.wait().expect("it is gone");
    }
    let mut bytes = &fs::read(&log).expect("what was recorded")[..];
    let mut records = Vec::new();
    // The last one may be cut short.
    while let Some((head, rest)) = bytes.split_at_checked(24) {
        let number = |at: usize| u64::from_ne_bytes(head[at..at + 8].try_into().expect("eight bytes")) as usize;
        let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let Some((content, rest)) = rest.split_at_checked(number(16)) else { break };
        records.push(Record {
            kind: char::from_u32(word(0)).expect("a kind"),
            file: word(4).cast_signed(),
            offset: number(8),
            bytes: content.to_vec(),
        });
        bytes = rest;
    }
    records
}

/// Places where the database itself is written and perhaps not flushed.
fn places_in_database(records: &[Record]) -> Vec<usize> {
    let mut database = HashSet::new();
    let mut places = Vec::new();
    let mut written = false;
    for (at, record) in records.iter().enumerate() {
        match record.kind {
            'c' | 'o' if record.bytes == JOURNAL.as_bytes() => drop(database.insert(record.file)),
            'c' | 'o' | 'x' => drop(database.remove(&record.file)),
            'w' | 't' if database.contains(&record.file) => written = true,
            'f' if database.contains(&record.file) => written = false,
            _ => {}
        }
        if written {
            places.push(at + 1);
        }
    }
    places
}

type Content = BTreeMap<String, Vec<u8>>;

/// Files as they are on disk.
#[derive(Debug, Clone, Default)]
struct Files {
    content: Content,
}

impl Files {
    fn of(content: Content) -> Files {
        Files { content }
    }
}

/// A folder on a disk that may lose power.
#[derive(Debug, Default)]
struct Disk {
    files: Vec<File>,
    /// What is in the folder for sure, and what changed since.
    names: BTreeMap<String, usize>,
    later: Vec<(String, Option<usize>)>,
}

#[derive(Debug, Default)]
struct File {
    flushed: Vec<u8>,
    later: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate { len: usize },
}

/// Does what was recorded on a disk with these files, as far as nothing was lost, and hears what was said.
fn replay(base: &Files, told: &Told, records: &[Record], flushes: bool) -> (Disk, Told) {
    let (mut disk, mut told) = (Disk::default(), told.clone());
    for (name, content) in &base.content {
        disk.names.insert(name.clone(), disk.files.len());
        disk.files.push(File { flushed: content.clone(), later: Vec::new() });
    }
    // `None` is the folder itself.
    let mut open: HashMap<i32, Option<usize>> = HashMap::new();
    let mut line = String::new();
    for record in records {
        let name = || String::from_utf8(record.bytes.clone()).expect("a name of ours");
        match record.kind {
            's' => {
                line += std::str::from_utf8(&record.bytes).expect("text");
                while let Some((one, rest)) = line.split_once('\n') {
                    told.hear(one);
                    line = rest.to_owned();
                }
            }
            'c' => {
                disk.later.push((name(), Some(disk.files.len())));
                open.insert(record.file, Some(disk.files.len()));
                disk.files.push(File::default());
            }
            'o' if record.bytes == b"." => drop(open.insert(record.file, None)),
            'o' => drop(open.insert(record.file, Some(disk.find(&name()).expect("a file that was made")))),
            'x' => drop(open.remove(&record.file)),
            'u' => disk.later.push((name(), None)),
            'f' if !flushes => {}
            'f' => match open[&record.file] {
                Some(file) => disk.files[file].flush(),
                None => disk.flush_names(),
            },
            'w' => {
                let file = open[&record.file].expect("no folder is written to");
                let (offset, bytes) = (record.offset, record.bytes.clone());
                disk.files[file].later.push(Change::Write { offset, bytes });
            }
            't' => {
                let file = open[&record.file].expect("no folder is truncated");
                disk.files[file].later.push(Change::Truncate { len: record.offset });
            }
            other => panic!("a record of kind {other}"),
        }
    }
    (disk, told)
}

impl Disk {
    fn find(&self, name: &str) -> Option<usize> {
        let later = self.later.iter().rev().find(|(changed, _)| changed == name);
        later.map_or_else(|| self.names.get(name).copied(), |(_, file)| *file)
    }

    fn flush_names(&mut self) {
        let later = std::mem::take(&mut self.later);
        self.names = names_after(&self.names, &later);
    }

    /// Only what was flushed.
    fn flushed(&self) -> Content {
        self.names.iter().map(|(name, file)| (name.clone(), self.files[*file].flushed.clone())).collect()
    }

    /// What the power's loss may leave: names change in their order, content in any.
    fn after_power_loss(&self, random: &mut ChaCha8Rng) -> Content {
        let names = names_after(&self.names, &self.later[..random.next_u64() as usize % (self.later.len() + 1)]);
        // Of 16 parts that were not flushed, so many come to the disk.
        let kept = [0, 1, 8, 15, 16][random.next_u64() as usize % 5];
        names.into_iter().map(|(name, file)| (name, self.files[file].torn(kept, random))).collect()
    }
}

fn names_after(names: &BTreeMap<String, usize>, changes: &[(String, Option<usize>)]) -> BTreeMap<String, usize> {
    let mut names = names.clone();
    for (name, file) in changes {
        match file {
            Some(file) => names.insert(name.clone(), *file),
            None => names.remove(name),
        };
    }
    names
}

impl File {
    fn flush(&mut self) {
        for change in self.later.drain(..) {
            match change {
                Change::Write { offset, bytes } => put(&mut self.flushed, offset, &bytes),
                Change::Truncate { len } => self.flushed.resize(len, 0),
            }
        }
    }

    fn torn(&self, kept: u64, random: &mut ChaCha8Rng) -> Vec<u8> {
        let mut content = self.flushed.clone();
        let mut is_kept = || random.next_u64() % 16 < kept;
        for change in &self.later {
            match change {
                Change::Truncate { len } if is_kept() => content.resize(*len, 0),
                Change::Truncate { .. } => {}
                Change::Write { offset, bytes } => {
                    let mut at = 0;
                    while at < bytes.len() {
                        let end = bytes.len().min(at + SECTOR_BYTES - (offset + at) % SECTOR_BYTES);
                        if is_kept() {
                            put(&mut content, offset + at, &bytes[at..end]);
                        }
                        at = end;
                    }
                }
            }
        }
        content
    }
}

fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    content.resize(content.len().max(offset + bytes.len()), 0);
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Makes a folder with these files and no others.
fn write_files(folder: &Path, content: &Content) {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir(folder).expect("a folder");
    for (name, bytes) in content {
        fs::write(folder.join(name), bytes).expect("a file");
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o600)).expect("its owner's only");
    }
}

/// Opens the scheduler on an image, and says what is missing or other than it was told.
fn look_at(folder: &Path, content: &Content, told: &Told, how: &str) -> Vec<String> {
    write_files(folder, content);
    let path = folder.join(JOURNAL);
    let mut journal = SqliteJournal::new(&path, 1 << 32).unwrap_or_else(|error| panic!("{how}: {error:?}"));
    let mut ids = HashSet::new();
    let opened = journal.open(&mut |kept| {
        if let Restored::Task { task, .. } = kept {
            assert!(ids.insert(task.id), "{how}: {} is there twice", task.id);
        }
        Ok(())
    });
    opened.unwrap_or_else(|error| panic!("{how}: {error:?}"));
    drop(journal);
    let scheduler = load::open(&path);
    let mut wrong = Vec::new();
    if !told.has_limit(&scheduler) {
        wrong.push(format!("a tenant's limit of {} is lost", told.limit));
    }
    for (id, waited) in &told.acknowledged {
        let state = match block_on(scheduler.get(*id)) {
            Ok(record) => format!("{:?}", record.state),
            Err(error) => {
                wrong.push(format!("{id} is lost: {error}"));
                continue;
            }
        };
        for earlier in [waited.as_ref(), told.done.get(id)].into_iter().flatten() {
            if *earlier != state {
                wrong.push(format!("{id} was {earlier} and is {state}"));
            }
        }
    }
    wrong
}
