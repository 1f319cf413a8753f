//! Ten thousand runs leave nothing behind. The only test of its process, so that what it sees is its own.

use super::{generous, prepare};
use palisade_core::{Call, HostFunctions, PreparedExt, Sandbox};

const TOUCHES_MEMORY: &str = r#"(module (memory 8)
  (func (export "_start") (memory.fill (i32.const 0) (i32.const 0xaa) (i32.const 0x80000))))"#;

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has /proc");
    let pages: u64 =
        statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("statm has a second field");
    pages * rustix::param::page_size() as u64
}

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).expect("Linux has /proc").count()
}

/// Ten thousand fresh instances leave neither memory nor files nor threads behind. To be the only test of its process.
pub fn ten_thousand_fresh_runs_leave_nothing(sandbox: &dyn Sandbox) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let prepared = runtime.block_on(prepare(sandbox, TOUCHES_MEMORY, generous(), HostFunctions::new())).unwrap();
    let cycle = |runs: usize| {
        for _ in 0..runs {
            runtime.block_on(prepared.run(Call::new())).unwrap();
        }
    };
    cycle(1000);
    let (resident, files, threads) = (resident_bytes(), count("/proc/self/fd"), count("/proc/self/task"));
    cycle(10_000);
    let grown = resident_bytes().saturating_sub(resident);
    // A leak of 26 bytes per run would show.
    assert!(grown < 256 << 10, "resident memory grew by {grown} bytes");
    assert_eq!(count("/proc/self/fd"), files, "file descriptors were left behind");
    assert_eq!(count("/proc/self/task"), threads, "threads were left behind");
}
