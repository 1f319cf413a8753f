//! The disk is full: submissions are refused and say so, nothing acknowledged is lost, and with room again it goes on.

mod support;

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use palisade::TaskId;
use serde_json::{Value, json};
use support::daemon::{Daemon, PATIENCE, call, connect, exchange, socket};
use support::{Palisade, repository};

/// Size of the disk.
const DISK_BYTES: usize = 6 << 20;
/// Size of what is removed to make room.
const BALLAST_BYTES: usize = 3 << 20;

/// A disk that only one shell and what it starts can see: a file system in memory, in namespaces of their own.
struct Disk {
    shell: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Disk {
    /// # Errors
    ///
    /// Why this machine does not allow it.
    fn new(palisade: &Palisade) -> Result<Disk, String> {
        std::fs::create_dir(palisade.folder().join("disk")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "sh"]);
        // At home there, as the command is.
        command.envs(palisade.command().get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.current_dir(palisade.folder()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut shell = command.spawn().map_err(|error| format!("unshare: {error}"))?;
        let (orders, answers) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
        let mut disk = Disk { shell, orders, answers };
        let mount = format!("mount -t tmpfs -o size={DISK_BYTES} palisade-test disk");
        match disk.run(&mount).as_deref() {
            Some("0") => Ok(disk),
            other => Err(format!("`{mount}` in a namespace of its own: {other:?}")),
        }
    }

    /// Runs a command of the shell and gives its exit code; `None` when there is no shell.
    fn run(&mut self, command: &str) -> Option<String> {
        writeln!(self.orders, "{command}\necho $?").ok()?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).ok()?;
        answer.strip_suffix('\n').map(str::to_owned)
    }

    /// Writes a file of this size, or until the disk is full.
    fn fill(&mut self, bytes: usize) {
        self.run(&format!("head -c {bytes} /dev/zero >> disk/ballast 2>/dev/null")).expect("a shell");
    }

    fn make_room(&mut self) {
        assert_eq!(self.run("rm disk/ballast").as_deref(), Some("0"));
    }

    /// Starts a daemon with this folder of the disk, which lives until it is killed or the disk is gone.
    ///
    /// # Errors
    ///
    /// What it says when it does not start.
    fn serve(&mut self, palisade: &Palisade, data: &str) -> Result<(), String> {
        let said = palisade.folder().join("said");
        std::fs::write(&said, "").unwrap();
        let socket = daemon_socket(palisade).display().to_string();
        let serve = "\"$PALISADE\" serve --workers 2 --backend wasmtime";
        let serve = format!("{serve} --data disk/{data} --socket '{socket}'");
        self.run(&format!("{serve} 2>said >/dev/null &")).expect("a shell");
        let begun = Instant::now();
        loop {
            let text = std::fs::read_to_string(&said).unwrap();
            if text.contains("palisade: ready on ") {
                return Ok(());
            }
            if text.contains("palisade: error: ") && text.ends_with('\n') {
                self.run("wait $!");
                return Err(text);
            }
            assert!(begun.elapsed() < PATIENCE, "the daemon is not ready: {text}");
            std::thread::yield_now();
        }
    }

    fn kill_daemon(&mut self) {
        self.run("kill -9 $!").expect("a shell");
        self.run("wait $! 2>/dev/null").expect("a shell");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // With the first process of its namespace all others end.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// Where clients look for a daemon that was told nothing else.
fn daemon_socket(palisade: &Palisade) -> PathBuf {
    let path = socket(palisade);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    path
}

/// Submits tasks until one is refused. Those that were acknowledged, the one that was not, and the error.
fn submit_until_refused(palisade: &Palisade) -> (HashSet<String>, String, Value) {
    let mut acknowledged = HashSet::new();
    // In base64, so that it is long and yet valid.
    let input = "QUJD".repeat(4096);
    loop {
        let id = TaskId::new().to_string();
        let params = json!({ "plugin": "hello.wat", "input": input, "task": id });
        let answer = call(palisade, "tasks.submit", params);
        if answer["error"].is_object() {
            return (acknowledged, id, answer["error"].clone());
        }
        acknowledged.insert(id);
        assert!(acknowledged.len() < 5000, "the disk is full by now");
    }
}

fn health(palisade: &Palisade) -> (u16, Value) {
    let (status, _) = exchange(&mut connect(palisade), "GET /healthz HTTP/1.1", b"");
    (status, call(palisade, "health", json!({}))["result"]["journal_error"].clone())
}

fn metric(palisade: &Palisade, name: &str) -> f64 {
    let (_, text) = exchange(&mut connect(palisade), "GET /metrics HTTP/1.1", b"");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("{} "));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// Waits for each task's outcome, and checks that no task is there twice.
fn check_outcomes(palisade: &Palisade, tasks: &HashSet<String>) {
    for task in tasks {
        let ended = call(palisade, "tasks.wait", json!({ "task": task }));
        assert_eq!(ended["result"]["state"], "completed", "{ended:#}");
    }
    let mut seen = HashSet::new();
    let mut before = Value::Null;
    loop {
        let mut params = json!({ "tasks_max": 1000 });
        if !before.is_null() {
            params["before"] = before;
        }
        let page = call(palisade, "tasks.list", params)["result"].clone();
        for task in page["tasks"].as_array().unwrap() {
            assert!(seen.insert(task["task"].as_str().unwrap().to_owned()), "twice: {task:#}");
        }
        before = page["next"].clone();
        if before.is_null() {
            break;
        }
    }
    assert!(tasks.is_subset(&seen));
}

fn install(palisade: &Palisade) {
    let hello = repository("plugins").join("hello/hello.wat").display().to_string();
    let ended = palisade.run(["submit", &hello, "--wait"]);
    assert_eq!(ended.code, 0, "{ended:?}");
}

#[test]
fn a_full_disk_refuses_loses_nothing_and_goes_on_with_room() {
    let palisade = Palisade::new();
    let mut disk = match Disk::new(&palisade) {
        Ok(disk) => disk,
        Err(error) => {
            // The other test is the same with files that may not grow, which needs no rights.
            eprintln!("no disk of its own on this machine ({error}); see `files_that_may_not_grow`");
            return files_that_may_not_grow();
        }
    };
    disk.fill(BALLAST_BYTES);
    disk.serve(&palisade, "data").unwrap();
    install(&palisade);
    assert_eq!((health(&palisade), metric(&palisade, "palisade_journal_failing")), ((200, Value::Null), 0.0));

    let (mut tasks, refused, error) = submit_until_refused(&palisade);
    assert!(tasks.len() > 20, "{}", tasks.len());
    assert_eq!((&error["data"]["kind"], &error["data"]["retry_after_ms"]), (&json!("exhausted"), &json!(1000)));
    assert!(error["message"].as_str().unwrap().contains("no room for the journal"), "{error:#}");
    let (status, why) = health(&palisade);
    assert!(status == 503 && why.as_str().unwrap().contains("make room"), "{status} {why}");
    assert_eq!(metric(&palisade, "palisade_journal_failing"), 1.0);
    assert!(metric(&palisade, "palisade_journal_failures_total") >= 1.0);
    palisade.run(["submit", "hello.wat"]).assert_error(125, &["no room for the journal", "make room"]);
    let shown = palisade.run(["top", "--once"]);
    assert!(shown.text().contains("the journal failed"), "{shown:?}");

    // It goes on by itself.
    disk.make_room();
    let begun = Instant::now();
    while health(&palisade) != (200, Value::Null) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", health(&palisade));
        std::thread::yield_now();
    }
    assert_eq!(metric(&palisade, "palisade_journal_failing"), 0.0);
    // Whether it was kept or not, it is there once after it was submitted again.
    let input = "QUJD".repeat(4096);
    let again = call(&palisade, "tasks.submit", json!({ "plugin": "hello.wat", "input": input, "task": refused }));
    assert_eq!(again["result"]["task"], refused, "{again:#}");
    tasks.insert(refused);
    check_outcomes(&palisade, &tasks);

    // Killed while it is full, and started while it is full. In the log may be room for a little.
    disk.fill(DISK_BYTES);
    let (more, _, error) = submit_until_refused(&palisade);
    assert_eq!(error["data"]["kind"], "exhausted", "{error:#}");
    tasks.extend(more);
    disk.kill_daemon();
    let refuses = |said: String| {
        assert!(said.contains("no room for the journal") && said.contains("; make room"), "{said}");
    };
    match disk.serve(&palisade, "data") {
        Ok(()) => {
            let (more, _, error) = submit_until_refused(&palisade);
            assert_eq!(error["data"]["kind"], "exhausted", "{error:#}");
            tasks.extend(more);
            disk.kill_daemon();
        }
        Err(said) => refuses(said),
    }
    refuses(disk.serve(&palisade, "another").unwrap_err());
    disk.make_room();
    disk.serve(&palisade, "data").unwrap();
    check_outcomes(&palisade, &tasks);
}

/// The same with files that may not grow, which is an error that does not go away: the daemon is started again.
#[test]
fn files_that_may_not_grow() {
    let palisade = Palisade::new();
    let mut command = Command::new("sh");
    // 2 or 4 MiB, by the shell's idea of a block.
    let limited = "trap '' XFSZ; ulimit -f 4096; exec \"$PALISADE\" serve --workers 2 --backend wasmtime";
    command.args(["-c", limited]).current_dir(palisade.folder());
    command.envs(palisade.command().get_envs().filter_map(|(name, value)| Some((name, value?))));
    let daemon = Daemon::spawn(&mut command);
    install(&palisade);
    let (tasks, _, error) = submit_until_refused(&palisade);
    assert!(tasks.len() > 20, "{}", tasks.len());
    assert_eq!(error["data"]["kind"], "io", "{error:#}");
    assert!(error["message"].as_str().unwrap().contains("the journal failed"), "{error:#}");
    let (status, why) = health(&palisade);
    assert!(status == 503 && why.as_str().unwrap().contains("check the disk"), "{status} {why}");
    assert_eq!(metric(&palisade, "palisade_journal_failing"), 1.0);
    daemon.kill();
    let _daemon = Daemon::start(&palisade, &[]);
    check_outcomes(&palisade, &tasks);
}
