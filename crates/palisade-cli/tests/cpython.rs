//! A real program under limits: CPython.
//!
//! It is not part of this repository: `PALISADE_GUESTS` names the folder of guests, with `python/python-3.11.3.wasm` and
//! `python/lib.tar.gz`. Without it, one line says that nothing was run.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;
use support::{Ended, Palisade, assert_exceeded};

/// A script that never ends, and says when it has begun.
const SPIN: &str = "print('begun', flush=True)\nwhile True: pass";

/// CPython in a place of its own, with its standard library and a cache that all tests share: compiling it takes
/// seconds.
struct Python {
    palisade: Palisade,
    wasm: PathBuf,
    /// The report of the first start, which compiled it.
    first: Value,
}

impl Python {
    fn new(guests: &Path) -> Python {
        let palisade = Palisade::new();
        let library = guests.join("python/lib.tar.gz");
        let unpacked = Command::new("tar").arg("-xzf").arg(&library).arg("-C").arg(palisade.folder()).status();
        assert!(unpacked.expect("tar runs").success(), "{} cannot be unpacked", library.display());
        let mut python = Python { palisade, wasm: guests.join("python/python-3.11.3.wasm"), first: Value::Null };
        python.first = python.run("pass", &["--json"]).report(0);
        python
    }

    /// Runs a script, with the standard library granted read-only. Not as `/usr`: this build carries a copy of the
    /// library under that name inside itself, which hides what is granted there.
    fn run(&self, script: &str, options: &[&str]) -> Ended {
        let mut command = self.palisade.command();
        command
            .args(["run", "--quiet", "--dir", "usr::/library:ro", "--env", "PYTHONHOME=/library/local"])
            .args(options)
            .arg(&self.wasm)
            .args(["--", "-c", script]);
        support::Running::start(&mut command).finish()
    }
}

type Check = fn(&Python);

const CHECKS: &[(&str, Check)] = &[
    ("a_script_prints_its_result", |python| {
        let ended = python.run("print(6*7)", &[]);
        assert_eq!((ended.code, ended.text(), ended.stderr.as_str()), (0, "42\n", ""));
    }),
    ("the_other_engine_runs_it_and_stops_it_too", |python| {
        let ended = python.run("print(6*7)", &["--backend", "wasmer"]);
        assert_eq!((ended.code, ended.text()), (0, "42\n"), "{ended:?}");
        let ended = python.run(SPIN, &["--backend", "wasmer", "--json", "--wall-time", "3s"]);
        assert_exceeded(&ended.report(124), "wall_time", 3_000_000_000, "running");
    }),
    ("a_script_computes_with_the_standard_library", |python| {
        let script = "import json, hashlib, fractions\n\
            assert json.__file__.startswith('/library/'), json.__file__\n\
            primes = [n for n in range(2, 2000) if all(n % d for d in range(2, int(n ** 0.5) + 1))]\n\
            print(json.dumps([len(primes), sum(primes), str(sum(map(fractions.Fraction, [0.5, 0.25])))]))\n\
            print(hashlib.sha256(b'abc').hexdigest()[:8])";
        let ended = python.run(script, &[]);
        // 303 primes below 2000, with the sum 277050 (OEIS A000720 and A034387); the hash is a vector of FIPS 180-2.
        assert_eq!((ended.code, ended.text()), (0, "[303, 277050, \"3/4\"]\nba7816bf\n"), "{ended:?}");
    }),
    ("a_script_reads_its_standard_input", |python| {
        let ended = python.run("import sys; print(sys.stdin.read()[::-1])", &["-i", "palisade"]);
        assert_eq!((ended.code, ended.text()), (0, "edasilap\n"), "{ended:?}");
    }),
    ("a_scripts_exit_code_is_the_commands", |python| {
        let report = python.run("import sys; sys.exit(7)", &["--json"]).report(7);
        assert_eq!(report["outcome"]["kind"], "failed", "{report:#}");
    }),
    ("an_exception_is_told_on_standard_error", |python| {
        let ended = python.run("1/0", &[]);
        assert_eq!((ended.code, ended.text()), (1, ""));
        assert!(ended.stderr.contains("ZeroDivisionError"), "{ended:?}");
    }),
    ("the_wall_time_stops_it", |python| {
        let report = python.run(SPIN, &["--json", "--wall-time", "3s"]).report(124);
        assert_exceeded(&report, "wall_time", 3_000_000_000, "running");
        assert_eq!(report["output"], "begun\n", "{report:#}");
    }),
    ("fuel_stops_it", |python| {
        // Twice what it takes to start.
        let fuel = python.first["usage"]["fuel"].as_u64().expect("the fuel of a start") * 2;
        let report = python.run(SPIN, &["--json", "--fuel", &fuel.to_string()]).report(124);
        assert_exceeded(&report, "fuel", fuel, "running");
        assert_eq!(report["output"], "begun\n", "{report:#}");
    }),
    ("the_memory_quota_stops_it", |python| {
        let report =
            python.run("print('begun', flush=True)\nx = bytearray(200 << 20)", &["--json", "--memory", "64MiB"]);
        let report = report.report(137);
        assert_exceeded(&report, "memory_bytes", 64 << 20, "running");
        assert_eq!(report["output"], "begun\n", "{report:#}");
        assert!(report["usage"]["memory_peak_bytes"].as_u64() <= Some(64 << 20), "{report:#}");
    }),
    ("memory_within_the_quota_is_its_own", |python| {
        let ended = python.run("x = bytearray(200 << 20); print(len(x))", &["--memory", "256MiB"]);
        assert_eq!((ended.code, ended.text()), (0, "209715200\n"), "{ended:?}");
    }),
    ("the_output_limit_stops_it", |python| {
        let ended = python.run("while True: print('x' * 99)", &["--output-limit", "100050"]);
        assert_eq!(ended.code, 122, "{ended:?}");
        let whole = format!("{}\n", "x".repeat(99)).repeat(1001);
        assert_eq!(ended.text(), &whole[..100_050]);
    }),
    ("the_standard_library_is_read_only", |python| {
        // An open for reading and writing succeeds, as C libraries for WASI ask for the rights there are; the write fails.
        let script = "import os\n\
            library = '/library/local/lib/python311.zip'\n\
            def overwrite():\n\
            \x20   with open(library, 'r+b', buffering=0) as file: file.write(b'x')\n\
            for attempt in (overwrite, lambda: open(library, 'ab'), lambda: open('/library/new', 'w'),\n\
            \x20       lambda: os.remove(library), lambda: os.mkdir('/library/new'),\n\
            \x20       lambda: os.rename(library, '/library/new'), lambda: os.truncate(library, 0)):\n\
            \x20   try: attempt(); print('done')\n\
            \x20   except OSError: print('refused')";
        let library = python.palisade.folder().join("usr/local/lib/python311.zip");
        let before = std::fs::read(&library).expect("the library");
        let ended = python.run(script, &[]);
        assert_eq!((ended.code, ended.text()), (0, "refused\n".repeat(7).as_str()), "{ended:?}");
        assert!(std::fs::read(&library).expect("the library") == before, "the library was changed");
        assert!(!python.palisade.folder().join("usr/new").exists());
    }),
    ("nothing_else_of_the_host_is_there", |python| {
        let script = "import os\n\
            print(os.listdir('/library'), dict(os.environ))\n\
            try: open('/etc/passwd')\n\
            except OSError: print('refused')";
        let ended = python.run(script, &[]);
        assert_eq!(
            (ended.code, ended.text()),
            (0, "['local'] {'PYTHONHOME': '/library/local'}\nrefused\n"),
            "{ended:?}"
        );
    }),
    ("the_second_start_uses_the_code_of_the_first", |python| {
        assert_eq!(python.first["module"]["cached"], false);
        let second = python.run("pass", &["--json"]).report(0);
        assert_eq!(second["module"]["cached"], true);
        let time = |report: &Value| report["module"]["load_time_ns"].as_u64().expect("the time to load");
        assert!(time(&second) * 4 < time(&python.first), "{} of {} ns", time(&second), time(&python.first));
    }),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let Some(guests) = std::env::var_os("PALISADE_GUESTS").map(PathBuf::from) else {
        println!("NOT RUN: CPython under limits; set PALISADE_GUESTS to the folder of guests to run it");
        return ExitCode::SUCCESS;
    };
    // Listing must not take seconds.
    let python = (!arguments.list).then(|| Arc::new(Python::new(&guests)));
    let trials = CHECKS.iter().map(|(name, check)| {
        let python = python.clone();
        Trial::test(*name, move || python.as_deref().map(check).ok_or_else(|| Failed::from("tests are only listed")))
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
