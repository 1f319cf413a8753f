//! Programs people have, doing real work in their jails: each where it is installed, with the options that README names.
//!
//! Run by root, all of it runs once more as an ordinary user, who has no control groups.

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use common::fine;
use palisade_core::{
    Artifact, ArtifactKind, BackendOptions, Bytes, Call, DirectoryGrant, Execution, GrantKind, HostFunctions, Outcome,
    Policy, PreparedExt, Sandbox, block_on, units,
};
use palisade_process::ProcessSandbox;

/// Where programs of a system lie. Not the search path: that may begin with scripts that choose among versions.
const PLACES: [&str; 3] = ["/usr/bin", "/bin", "/usr/local/bin"];
/// A user and group that own nothing.
const NOBODY: u32 = 64_002;
/// Long enough for a Java on a busy machine.
const WALL_TIME: Duration = Duration::from_secs(120);

/// One kind of program.
struct Entry {
    /// As README's table names it.
    name: &'static str,
    /// What `palisade run` needs, as in README's table.
    needs: &'static str,
    /// It reserves more address space than that, and only a control group tells what is used from what is reserved.
    reserves: bool,
    /// Other programs that must be there.
    with: &'static [&'static str],
    work: fn(&Jail<'_>) -> Result<(), String>,
}

const ENTRIES: &[Entry] = &[
    Entry { name: "bash", needs: "--interpreter bash", reserves: false, with: &["bash"], work: bash },
    Entry {
        name: "bash starting programs",
        needs: "--interpreter bash --processes 16 --dir /usr::/usr --env PATH=/usr/bin --scratch /tmp",
        reserves: false,
        with: &["bash"],
        work: bash_with_programs,
    },
    Entry { name: "coreutils", needs: "", reserves: false, with: &["sort", "sha256sum", "tr"], work: coreutils },
    Entry { name: "grep", needs: "", reserves: false, with: &["grep"], work: grep },
    Entry { name: "xz", needs: "", reserves: false, with: &["xz"], work: xz },
    Entry { name: "tar", needs: "", reserves: false, with: &["tar"], work: tar },
    Entry { name: "sqlite3", needs: "--scratch /work", reserves: false, with: &["sqlite3"], work: sqlite },
    Entry {
        name: "git",
        needs: "--interpreter bash --processes 16 --dir /usr::/usr --env PATH=/usr/bin:/usr/local/bin --scratch /tmp --env HOME=/tmp",
        reserves: false,
        with: &["git", "bash"],
        work: git,
    },
    Entry { name: "python3", needs: "--interpreter python3", reserves: false, with: &["python3"], work: python },
    Entry {
        name: "python3: asyncio",
        needs: "--interpreter python3",
        reserves: false,
        with: &["python3"],
        work: python_asyncio,
    },
    Entry {
        name: "python3: threading",
        needs: "--interpreter python3 --threads 8",
        reserves: false,
        with: &["python3"],
        work: python_threads,
    },
    Entry {
        name: "python3: sqlite3",
        needs: "--interpreter python3 --scratch /work",
        reserves: false,
        with: &["python3"],
        work: python_sqlite,
    },
    Entry {
        name: "python3: zoneinfo",
        needs: "--interpreter python3",
        reserves: false,
        with: &["python3"],
        work: python_zones,
    },
    Entry {
        name: "python3: ctypes",
        needs: "--interpreter python3 --jit",
        reserves: false,
        with: &["python3"],
        work: python_ctypes,
    },
    Entry {
        name: "python3: subprocess",
        needs: "--interpreter python3 --processes 4",
        reserves: false,
        with: &["python3"],
        work: python_subprocess,
    },
    Entry {
        name: "python3: multiprocessing",
        needs: "--interpreter python3 --processes 8 --threads 8 --scratch /dev/shm",
        reserves: false,
        with: &["python3"],
        work: python_processes,
    },
    Entry {
        name: "python3: numpy of the system",
        needs: "--interpreter python3 --memory 512MiB --dir /usr::/usr --dir /etc/alternatives::/etc/alternatives --env OPENBLAS_NUM_THREADS=1",
        reserves: false,
        with: &["python3", "/usr/lib/python3/dist-packages/numpy"],
        work: numpy,
    },
    Entry {
        name: "node",
        needs: "--interpreter node --jit --threads 16 --memory 1GiB",
        reserves: false,
        with: &["node"],
        work: node,
    },
    Entry { name: "ruby", needs: "--interpreter ruby --threads 4", reserves: false, with: &["ruby"], work: ruby },
    Entry { name: "perl", needs: "--interpreter perl", reserves: false, with: &["perl"], work: perl },
    Entry { name: "lua", needs: "--interpreter lua5.4", reserves: false, with: &["lua5.4"], work: lua },
    Entry { name: "php", needs: "--interpreter php", reserves: false, with: &["php"], work: php },
    Entry { name: "tcl", needs: "--interpreter tclsh", reserves: false, with: &["tclsh"], work: tcl },
    Entry {
        name: "sbcl",
        needs: "--interpreter sbcl --jit --threads 4 --memory 1GiB --env HOME=/",
        reserves: true,
        with: &["sbcl"],
        work: sbcl,
    },
    Entry {
        name: "java",
        needs: "--interpreter java --jit --threads 64 --memory 1GiB --open-files 512",
        reserves: true,
        with: &["java", "javac"],
        work: java,
    },
    Entry { name: "Go program", needs: "--threads 32", reserves: true, with: &["go"], work: go },
    Entry { name: "Rust program", needs: "--threads 8", reserves: false, with: &["rustc"], work: rust },
    Entry { name: "C program of musl", needs: "--threads 8", reserves: false, with: &["musl-gcc"], work: musl },
    Entry {
        name: "gcc",
        needs: "--interpreter bash --processes 16 --dir /usr::/usr --env PATH=/usr/bin --scratch /tmp",
        reserves: false,
        with: &["gcc", "bash"],
        work: gcc,
    },
    Entry {
        name: "imagemagick",
        needs: "--threads 4 --dir /usr::/usr --dir /etc/ImageMagick-6::/etc/ImageMagick-6 --scratch /tmp",
        reserves: false,
        with: &["convert", "/etc/ImageMagick-6"],
        work: imagemagick,
    },
];

fn main() -> ExitCode {
    let only: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let root = rustix::process::geteuid().is_root();
    let who = if root { "root" } else { "an ordinary user" };
    let sandbox = match ProcessSandbox::open(&BackendOptions::new()) {
        Ok(sandbox) => sandbox,
        // Not every machine lets ordinary users make user namespaces.
        Err(error) if !root => {
            println!("programs run by {who}: none, for this machine says: {error}");
            return ExitCode::SUCCESS;
        }
        Err(error) => panic!("{error:?}"),
    };
    let (mut ran, mut missing, mut failed) = (0, Vec::new(), 0);
    for entry in ENTRIES.iter().filter(|entry| only.is_empty() || only.iter().any(|name| entry.name.contains(name))) {
        let jail = Jail { sandbox: &sandbox, entry };
        let told = match jail.absent() {
            Some(why) => {
                missing.push(entry.name);
                why
            }
            None => match (entry.work)(&jail) {
                Ok(()) => {
                    ran += 1;
                    "ran".to_owned()
                }
                Err(why) => {
                    failed += 1;
                    format!("FAILED: {why}")
                }
            },
        };
        println!("{:<28} {told}", entry.name);
    }
    failed += usize::from(only.is_empty() && !documented());
    println!("programs run by {who}: {ran} ran, {failed} failed, not here: {}\n", missing.join(", "));
    if root && !as_nobody() {
        failed += 1;
    }
    ExitCode::from(u8::from(failed > 0))
}

/// Whether README's table has each entry with what it needs.
fn documented() -> bool {
    // The ordinary user runs a copy, which does not see this checkout.
    let Ok(readme) = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")) else { return true };
    let row = |entry: &Entry| match entry.needs {
        "" => format!("| {} | nothing |", entry.name),
        needs => format!("| {} | `{needs}` |", entry.name),
    };
    let lost: Vec<_> = ENTRIES.iter().map(row).filter(|row| !readme.contains(row)).collect();
    lost.iter().for_each(|row| println!("README.md lacks this row: {row}"));
    lost.is_empty()
}

/// Runs a copy of this program as somebody who owns nothing. Whether all went well.
fn as_nobody() -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("a folder for everybody");
    let program = folder.path().join("matrix");
    fs::copy(std::env::current_exe().expect("this program"), &program).expect("a copy of this program");
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).current_dir(folder.path()).env("TMPDIR", folder.path());
    command.env("HOME", folder.path()).uid(NOBODY).gid(NOBODY);
    command.status().expect("the copy runs").success()
}

/// A program of this system.
fn installed(name: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        let mut begin = [0; 4];
        let read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut begin));
        read.is_ok() && (begin == *b"\x7fELF" || name == "musl-gcc")
    };
    PLACES.iter().map(|place| Path::new(place).join(name)).find(is_program)
}

/// Whether a program is installed, or something lies at a path. A compiler of a user's own is there when it runs.
fn is_there(name: &str) -> bool {
    match name {
        "rustc" => Command::new(RUSTC).arg("--version").output().is_ok_and(|said| said.status.success()),
        path if path.starts_with('/') => Path::new(path).exists(),
        name => installed(name).is_some(),
    }
}

const RUSTC: &str = match option_env!("RUSTC") {
    Some(path) => path,
    None => "rustc",
};

/// What an entry runs in.
struct Jail<'a> {
    sandbox: &'a ProcessSandbox,
    entry: &'a Entry,
}

impl Jail<'_> {
    /// Why the entry cannot run here.
    fn absent(&self) -> Option<String> {
        if let Some(name) = self.entry.with.iter().find(|name| !is_there(name)) {
            return Some(format!("not installed: {name}"));
        }
        let has = |kind| self.sandbox.capabilities().grants.contains(&kind);
        if self.entry.needs.contains("--processes") && !has(GrantKind::ChildProcesses) {
            return Some("needs control groups, for its child processes".to_owned());
        }
        if self.entry.reserves && !has(GrantKind::ChildProcesses) {
            return Some("needs control groups, or a bound on memory that holds all it reserves".to_owned());
        }
        None
    }

    fn policy(&self) -> Policy {
        let mut policy = fine();
        policy.quota.wall_time = Some(WALL_TIME);
        let mut words = self.entry.needs.split_whitespace();
        while let Some(option) = words.next() {
            if option == "--jit" {
                policy.grants.executable_memory = true;
                continue;
            }
            let value = words.next().unwrap_or_else(|| panic!("{option} has a value"));
            let number = || Some(units::parse_bytes(value).unwrap_or_else(|error| panic!("{option}: {error}")));
            match option {
                "--interpreter" => policy.grants.interpreter = Some(value.to_owned()),
                "--threads" => policy.quota.threads = number(),
                "--memory" => policy.quota.memory_bytes = number(),
                "--open-files" => policy.quota.open_files = number(),
                "--scratch" => policy.grants.scratch = Some(value.to_owned()),
                "--processes" => {
                    policy.grants.child_processes = true;
                    policy.quota.processes = number();
                }
                "--dir" => {
                    let (host, guest) = value.split_once("::").unwrap_or_else(|| panic!("{value}"));
                    policy.grants.directories.push(DirectoryGrant::read_only(host, guest));
                }
                "--env" => {
                    let (name, value) = value.split_once('=').unwrap_or_else(|| panic!("{value}"));
                    policy.grants.environment.insert(name.to_owned(), value.to_owned());
                }
                _ => panic!("{option} is none"),
            }
        }
        policy
    }

    fn run(&self, artifact: Artifact, policy: Policy, call: Call) -> Result<Execution, String> {
        let told = |error: palisade_core::Error| error.to_string();
        let module = block_on(self.sandbox.load(artifact)).map_err(told)?;
        let prepared = module.prepare(policy, HostFunctions::new()).map_err(told)?;
        block_on(prepared.run(call)).map_err(told)
    }

    /// What a program of this system prints.
    fn program(&self, name: &str, arguments: &[&str], input: impl Into<Bytes>) -> Result<Bytes, String> {
        self.program_with(self.policy(), name, arguments, input)
    }

    fn program_with(
        &self,
        policy: Policy,
        name: &str,
        arguments: &[&str],
        input: impl Into<Bytes>,
    ) -> Result<Bytes, String> {
        let bytes = fs::read(installed(name).ok_or("it vanished")?).map_err(|error| error.to_string())?;
        let artifact = Artifact::new(ArtifactKind::Executable, bytes).named(name);
        let call = Call::new().arguments(arguments.iter().copied()).input(input.into());
        printed(self.run(artifact, policy, call)?)
    }

    /// Requires that a script prints this.
    fn script(&self, script: &str, expected: &str) -> Result<(), String> {
        self.script_with(self.policy(), "script", script, expected)
    }

    fn script_with(&self, policy: Policy, name: &str, script: &str, expected: &str) -> Result<(), String> {
        let artifact = Artifact::new(ArtifactKind::Script, script.to_owned()).named(name);
        let said = printed(self.run(artifact, policy, Call::new())?)?;
        same(&said, expected)
    }
}

fn printed(execution: Execution) -> Result<Bytes, String> {
    match execution.outcome {
        Outcome::Completed => Ok(execution.output),
        outcome => Err(format!(
            "{outcome}; {} {}",
            String::from_utf8_lossy(&execution.output).trim(),
            String::from_utf8_lossy(&execution.error).trim()
        )),
    }
}

fn same(said: &[u8], expected: &str) -> Result<(), String> {
    match said == expected.as_bytes() {
        true => Ok(()),
        false => Err(format!("it printed {:?}", String::from_utf8_lossy(said))),
    }
}

fn bash(jail: &Jail<'_>) -> Result<(), String> {
    let script = "declare -A price=([pen]=2 [cup]=7)\nsum=0\nfor name in pen cup; do ((sum += price[$name])); done\n\
                  read -r line <<< \"from a string\"\nwords=($line)\nprintf '%s %s %s\\n' $sum ${#words[@]} \"${line^^}\"\n\
                  trap 'echo got it' USR1; kill -USR1 $$\nulimit -c 0 && echo lowered";
    jail.script(script, "9 3 FROM A STRING\ngot it\nlowered\n")
}

fn bash_with_programs(jail: &Jail<'_>) -> Result<(), String> {
    let script = "printf '%s\\n' pear apple fig | sort | head -n 2 | tr a-z A-Z\n\
                  n=$(seq 1 10 | awk '{s += $1} END {print s}' 2>/dev/null || echo 55); echo $n\n\
                  cd /tmp; for i in 1 2 3; do echo $i > $i; done; cat *; (exit 3); echo $?\n\
                  /bin/sh -c 'echo from sh'; wait; rm 1 2 3; ls | wc -l";
    jail.script(script, "APPLE\nFIG\n55\n1\n2\n3\n3\nfrom sh\n0\n")
}

fn coreutils(jail: &Jail<'_>) -> Result<(), String> {
    same(&jail.program("sort", &["-n"], "10\n9\n2\n")?, "2\n9\n10\n")?;
    same(&jail.program("tr", &["a-z", "A-Z"], "quiet")?, "QUIET")?;
    let said = jail.program("sha256sum", &[], "abc")?;
    same(&said, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  -\n")
}

fn grep(jail: &Jail<'_>) -> Result<(), String> {
    same(&jail.program("grep", &["-P", r"^(?!a)\w+\d$"], "a1\nb2\nc\n")?, "b2\n")
}

fn xz(jail: &Jail<'_>) -> Result<(), String> {
    let text = "a line of text that is there many times\n".repeat(5000);
    let packed = jail.program("xz", &["-c"], text.clone())?;
    if packed.len() > text.len() / 50 {
        return Err(format!("{} bytes", packed.len()));
    }
    same(&jail.program("xz", &["-dc"], packed)?, &text)
}

fn tar(jail: &Jail<'_>) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).map_err(|error| error.to_string())?;
    fs::write(folder.path().join("file"), "contents").map_err(|error| error.to_string())?;
    let mut policy = jail.policy();
    policy.grants.directories.push(DirectoryGrant::read_only(folder.path(), "/data"));
    let archive = jail.program_with(policy, "tar", &["-C", "/data", "-cf", "-", "file"], "")?;
    same(&jail.program("tar", &["-xOf", "-", "file"], archive)?, "contents")
}

fn sqlite(jail: &Jail<'_>) -> Result<(), String> {
    let questions = "create table item (name text, price int);\nbegin; insert into item values ('pen', 2), ('cup', 7); commit;\n\
                     create index by_price on item (price);\nselect sum(price) from item where price > 1;\n";
    same(&jail.program("sqlite3", &["/work/shop.db"], questions)?, "9\n")
}

fn git(jail: &Jail<'_>) -> Result<(), String> {
    let script = "set -e\ncd /tmp\ngit init -q -b main shop; cd shop\ngit config user.name A; git config user.email a@b\n\
                  echo pen > list; git add list; git commit -qm first\necho cup >> list; git commit -qam second\n\
                  git log --format=%s; git diff --stat HEAD~1 | tail -n 1";
    jail.script(script, "second\nfirst\n 1 file changed, 1 insertion(+)\n")
}

fn python(jail: &Jail<'_>) -> Result<(), String> {
    let script = "import hashlib, json, os, re, signal, socket, sys, tempfile, zlib\n\
                  a, b = socket.socketpair(); a.sendall(b'self'); print(b.recv(9).decode())\n\
                  r, w = os.pipe(); os.write(w, b'pipe'); print(os.read(r, 9).decode())\n\
                  signal.signal(signal.SIGTERM, lambda *_: print('handled')); os.kill(os.getpid(), signal.SIGTERM)\n\
                  print(json.dumps(re.findall(r'\\d+', 'a1b22')), hashlib.sha256(b'').hexdigest()[:8], len(zlib.compress(b'x' * 999)) < 200)";
    jail.script(script, "self\npipe\nhandled\n[\"1\", \"22\"] e3b0c442 True\n")
}

fn python_asyncio(jail: &Jail<'_>) -> Result<(), String> {
    let script = "import asyncio\nasync def one(n):\n    await asyncio.sleep(0.01)\n    return n * n\n\
                  async def main():\n    queue = asyncio.Queue()\n    asyncio.get_running_loop().call_later(0.01, queue.put_nowait, 1)\n    \
                  print(await queue.get() + sum(await asyncio.gather(*map(one, range(5)))))\nasyncio.run(main())";
    jail.script(script, "31\n")
}

fn python_threads(jail: &Jail<'_>) -> Result<(), String> {
    let script = "from concurrent.futures import ThreadPoolExecutor\nimport asyncio\n\
                  with ThreadPoolExecutor(4) as pool: print(sum(pool.map(lambda n: n * n, range(100))))\n\
                  print(asyncio.run(asyncio.to_thread(sum, [1, 2])))";
    jail.script(script, "328350\n3\n")
}

fn python_sqlite(jail: &Jail<'_>) -> Result<(), String> {
    let script = "import sqlite3\nfor mode in 'delete', 'wal':\n    c = sqlite3.connect('/work/' + mode)\n    \
                  print(c.execute('pragma journal_mode=' + mode).fetchone()[0])\n    \
                  c.execute('create table t (n int)')\n    \
                  with c: c.executemany('insert into t values (?)', [(n,) for n in range(100)])\n    c.close()\n    \
                  print(sqlite3.connect('/work/' + mode).execute('select sum(n) from t').fetchone()[0])";
    jail.script(script, "delete\n4950\nwal\n4950\n")
}

fn python_zones(jail: &Jail<'_>) -> Result<(), String> {
    let script = "from datetime import datetime\nfrom zoneinfo import ZoneInfo\n\
                  print(datetime(2024, 7, 1, tzinfo=ZoneInfo('Europe/Lisbon')).utcoffset())";
    jail.script(script, "1:00:00\n")
}

fn python_ctypes(jail: &Jail<'_>) -> Result<(), String> {
    let script = "import ctypes\nkind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))\n\
                  libc = ctypes.CDLL(None)\nnumbers = (ctypes.c_int * 4)(3, 1, 2, 0)\n\
                  libc.qsort(numbers, 4, 4, kind(lambda a, b: a[0] - b[0]))\nprint(list(numbers))";
    jail.script(script, "[0, 1, 2, 3]\n")?;
    // Without the grant a callback is refused where Python can see it, and the program goes on.
    let mut policy = jail.policy();
    policy.grants.executable_memory = false;
    let script = "import ctypes\ntry:\n    ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)\nexcept MemoryError:\n    pass\nprint('goes on')";
    jail.script_with(policy, "script", script, "goes on\n")
}

fn python_subprocess(jail: &Jail<'_>) -> Result<(), String> {
    let script = "import asyncio, subprocess, sys\n\
                  run = subprocess.run([sys.executable, '-c', 'import sys; print(sys.stdin.read()[::-1])'], input='abc', text=True, capture_output=True)\n\
                  print(run.returncode, run.stdout.strip())\n\
                  print(subprocess.run([sys.executable, '-c', 'import os; os.abort()'], stderr=subprocess.DEVNULL).returncode)";
    jail.script(script, "0 cba\n-6\n")
}

fn python_processes(jail: &Jail<'_>) -> Result<(), String> {
    let script = "import multiprocessing as mp\ndef square(n): return n * n\nif __name__ == '__main__':\n    \
                  with mp.Pool(3) as pool: print(sum(pool.map(square, range(10))))\n    \
                  lock, value = mp.Lock(), mp.Value('i', 0)\n    \
                  with lock, value.get_lock(): value.value += 1\n    print(value.value)";
    // Shared values lie in files of the directory for temporaries.
    let mut policy = jail.policy();
    policy.grants.environment.insert("TMPDIR".into(), "/dev/shm".into());
    jail.script_with(policy, "script", script, "285\n1\n")
}

fn numpy(jail: &Jail<'_>) -> Result<(), String> {
    let script = "import numpy\nm = numpy.arange(9.0).reshape(3, 3) + numpy.eye(3)\n\
                  print(round(float(numpy.linalg.det(m @ m))), numpy.fft.fft([1, 0, 0, 0]).real.tolist())";
    jail.script(script, "25 [1.0, 1.0, 1.0, 1.0]\n")
}

fn node(jail: &Jail<'_>) -> Result<(), String> {
    let script = "const { createHash } = require('crypto');\nconst later = n => new Promise(done => setTimeout(done, 5, n));\n\
                  (async () => {\n  const sum = (await Promise.all([1, 2, 3].map(later))).reduce((a, b) => a + b);\n  \
                  let n = 0; for (let i = 0; i < 1e6; i++) n += i % 7;\n  \
                  console.log(sum, n, createHash('sha256').update('').digest('hex').slice(0, 8));\n})();";
    jail.script(script, "6 2999997 e3b0c442\n")
}

fn ruby(jail: &Jail<'_>) -> Result<(), String> {
    let script = "require 'json'\nr, w = IO.pipe\nThread.new { w.puts [3, 1, 2].sort.to_json; w.close }\nputs r.read\n\
                  Signal.trap('USR1') { puts 'handled' }\nProcess.kill('USR1', Process.pid)\nsleep 0.05";
    jail.script(script, "[1,2,3]\nhandled\n")
}

fn perl(jail: &Jail<'_>) -> Result<(), String> {
    let script = "use strict; use List::Util 'sum'; use POSIX 'floor';\nmy %n = map { $_ => length } qw(one three);\n\
                  pipe(my $r, my $w); syswrite $w, 'pipe'; sysread $r, my $said, 9;\n\
                  print sum(values %n), \" $said \", floor(2.7), \"\\n\";";
    jail.script(script, "8 pipe 2\n")
}

fn lua(jail: &Jail<'_>) -> Result<(), String> {
    jail.script("local t = {}\nfor w in ('b a c'):gmatch('%a') do t[#t + 1] = w end\ntable.sort(t)\nprint(table.concat(t), 7 // 2)", "abc\t3\n")
}

fn php(jail: &Jail<'_>) -> Result<(), String> {
    let script = "<?php\ndate_default_timezone_set('Europe/Lisbon');\n\
                  echo date('T', 1720000000), ' ', preg_replace('/(\\d)/', '<$1>', 'a1'), ' ', json_encode(array_sum([1, 2])), \"\\n\";";
    jail.script(script, "WEST a<1> 3\n")
}

fn tcl(jail: &Jail<'_>) -> Result<(), String> {
    jail.script(
        "puts [lsort {b a c}]\nputs [expr {2 ** 70}]\nputs [clock format 0 -gmt 1 -format %Y]",
        "a b c\n1180591620717411303424\n1970\n",
    )
}

fn sbcl(jail: &Jail<'_>) -> Result<(), String> {
    let script = "#!/usr/bin/sbcl --script\n(defun f (n) (if (< n 2) n (+ (f (- n 1)) (f (- n 2)))))\n(format t \"~a~%\" (f 20))\n";
    jail.script(script, "6765\n")
}

fn java(jail: &Jail<'_>) -> Result<(), String> {
    let script = "import java.util.stream.*;\npublic class Main {\n  public static void main(String[] arguments) throws Exception {\n    \
                  var pool = java.util.concurrent.Executors.newFixedThreadPool(4);\n    \
                  System.out.println(pool.submit(() -> IntStream.range(0, 100).sum()).get());\n    pool.shutdown();\n    \
                  System.out.println(java.time.ZonedDateTime.of(2024, 7, 1, 0, 0, 0, 0, java.time.ZoneId.of(\"Europe/Lisbon\")).getOffset());\n  }\n}\n";
    jail.script_with(jail.policy(), "Main.java", script, "4950\n+01:00\n")
}

/// Has a compiler outside make a program of `source`, and runs that.
fn compiled(jail: &Jail<'_>, file: &str, source: &str, compiler: &[&str]) -> Result<Bytes, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    fs::write(folder.path().join(file), source).map_err(|error| error.to_string())?;
    let mut command = Command::new(installed(compiler[0]).unwrap_or_else(|| compiler[0].into()));
    command.args(&compiler[1..]).arg(file).current_dir(folder.path());
    command.env("GOCACHE", folder.path()).env("GO111MODULE", "off").env("CGO_ENABLED", "0");
    let made = command.output().map_err(|error| format!("{}: {error}", compiler[0]))?;
    if !made.status.success() {
        return Err(format!("{} outside: {}", compiler[0], String::from_utf8_lossy(&made.stderr)));
    }
    let program = fs::read(folder.path().join("program")).map_err(|error| error.to_string())?;
    let artifact = Artifact::new(ArtifactKind::Executable, program).named("program");
    printed(jail.run(artifact, jail.policy(), Call::new())?)
}

fn go(jail: &Jail<'_>) -> Result<(), String> {
    let source = "package main\nimport (\"fmt\"; \"sync\"; \"time\")\nfunc main() {\n\tvar all sync.WaitGroup\n\tsums := make(chan int, 8)\n\
                  \tfor i := 0; i < 8; i++ {\n\t\tall.Add(1)\n\t\tgo func(i int) { defer all.Done(); time.Sleep(time.Millisecond); sums <- i * i }(i)\n\t}\n\
                  \tall.Wait()\n\tclose(sums)\n\tsum := 0\n\tfor n := range sums {\n\t\tsum += n\n\t}\n\tfmt.Println(sum)\n}\n";
    same(&compiled(jail, "main.go", source, &["go", "build", "-o", "program"])?, "140\n")
}

fn rust(jail: &Jail<'_>) -> Result<(), String> {
    let source = "use std::sync::mpsc;\nfn main() {\n    let (sender, receiver) = mpsc::channel();\n    for n in 0..8u32 {\n        \
                  let sender = sender.clone();\n        std::thread::spawn(move || sender.send(n * n));\n    }\n    drop(sender);\n    \
                  println!(\"{}\", receiver.iter().sum::<u32>());\n}\n";
    same(&compiled(jail, "main.rs", source, &[RUSTC, "-o", "program"])?, "140\n")
}

fn musl(jail: &Jail<'_>) -> Result<(), String> {
    let source = "#include <pthread.h>\n#include <signal.h>\n#include <stdio.h>\nstatic int handled;\nstatic void count(int n) { handled += n; }\n\
                  static void *twice(void *n) { return (void *)(2 * (long)n); }\nint main(void) {\n  pthread_t t[4]; long sum = 0;\n  \
                  for (long i = 0; i < 4; i++) if (pthread_create(&t[i], 0, twice, (void *)i)) return 1;\n  \
                  for (int i = 0; i < 4; i++) { void *n; pthread_join(t[i], &n); sum += (long)n; }\n  \
                  signal(SIGUSR1, count); raise(SIGUSR1);\n  printf(\"%ld %d\\n\", sum, handled); }\n";
    same(&compiled(jail, "main.c", source, &["musl-gcc", "-static", "-o", "program"])?, "12 10\n")
}

fn gcc(jail: &Jail<'_>) -> Result<(), String> {
    let script = "set -e\ncd /tmp\nprintf '#include <stdio.h>\\nint main(void) { puts(\"hello\"); }\\n' > hello.c\n\
                  gcc -O1 -o hello hello.c\ncat hello";
    let artifact = Artifact::new(ArtifactKind::Script, script).named("script");
    let made = printed(jail.run(artifact, jail.policy(), Call::new())?)?;
    let program = Artifact::new(ArtifactKind::Executable, made).named("hello");
    same(&printed(jail.run(program, fine(), Call::new())?)?, "hello\n")
}

fn imagemagick(jail: &Jail<'_>) -> Result<(), String> {
    let picture = jail.program("convert", &["-size", "8x4", "xc:red", "-resize", "50%", "-depth", "8", "ppm:-"], "")?;
    match picture.starts_with(b"P6\n4 2\n255\n") && picture.len() == 11 + 24 {
        true => Ok(()),
        false => Err(format!("{} bytes", picture.len())),
    }
}
