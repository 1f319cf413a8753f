//! The same few guests for every backend, and what runs them.

use std::sync::Arc;
use std::time::Duration;

use palisade::{Artifact, ArtifactKind, BackendOptions, Bytes, Clocks, HostFunctions, Policy, Sandbox};
use palisade_fabric::AgentTemplate;

/// Most instances alive at once: as many as the load test has agents, and room for those that end.
pub const INSTANCES_MAX: u32 = 10_100;

/// One 128 KiB memory, of which one page is touched, and a tiny function.
const NO_OP: &str = r#"
(module
  (global i64 (i64.const NUMBER))
  (global $counter (mut i32) (i32.const 0))
  (memory (export "memory") 2)
  (func (export "_start")
    (global.set $counter (i32.add (global.get $counter) (i32.const 1)))
    (i32.store (i32.const 1024) (global.get $counter))))
"#;

/// Calls the host function `wait`. The name is written by code: an image of the memory would take each module a file and
/// each instance a mapping, of which the kernel allows a process 65 530.
const WAITS: &str = r#"
(module
  (import "palisade" "host_call" (func $host_call (param i32 i32 i32 i32) (result i64)))
  (global i64 (i64.const NUMBER))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 0x74696177))
    (drop (call $host_call (i32.const 0) (i32.const 4) (i32.const 0) (i32.const 0)))))
"#;

/// Ends with the exit code that asks for another attempt.
const ASKS_AGAIN: &str = r#"
(module
  (global i64 (i64.const NUMBER))
  (memory (export "memory") 1)
  (func (export "_start") (result i32) (i32.const 75)))
"#;

/// Never ends by itself.
const SPINS: &str = r#"
(module
  (global i64 (i64.const NUMBER))
  (memory (export "memory") 1)
  (func (export "_start") (loop (br 0))))
"#;

/// What a guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// Touches its memory and ends.
    NoOp,
    /// Waits, by the host's timer or its own, and ends.
    Waits,
    /// Fails and asks for another attempt.
    AsksAgain,
    /// Takes all the CPU time it gets.
    Spins,
}

/// A real backend, and how its guests look.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Its name.
    pub name: &'static str,
    /// It itself.
    pub sandbox: Arc<dyn Sandbox>,
    native: bool,
}

impl Backend {
    /// The backends that this machine can have. One it cannot is named on the standard error.
    pub fn all() -> Vec<Backend> {
        ["wasmtime", "wasmer", "process"].into_iter().filter_map(Backend::open).collect()
    }

    /// One backend; `None`, with a line on the standard error, when this machine cannot have it.
    pub fn open(name: &'static str) -> Option<Backend> {
        let options = BackendOptions::new().instances_max(INSTANCES_MAX);
        match palisade::open(name, &options) {
            Ok(sandbox) => {
                let native = !sandbox.capabilities().artifacts.contains(&ArtifactKind::Wasm);
                Some(Backend { name, sandbox, native })
            }
            Err(error) => {
                eprintln!("without backend {name}: {error}");
                None
            }
        }
    }

    /// A guest. Those of different numbers are different artifacts, each to be loaded by itself.
    pub fn artifact(&self, guest: Guest, number: u64) -> Artifact {
        let wat = match guest {
            Guest::NoOp => NO_OP,
            Guest::Waits => WAITS,
            Guest::AsksAgain => ASKS_AGAIN,
            Guest::Spins => SPINS,
        };
        if !self.native {
            let wat = wat.replace("NUMBER", &number.to_string());
            return Artifact::wasm(wat::parse_str(wat).expect("the module is well-formed")).named("guest");
        }
        let script =
            |text: &str| Artifact::new(ArtifactKind::Script, format!("{text}\n# {number}\n")).named("guest.sh");
        let program = |name: &str| {
            let found = ["/usr/bin", "/bin"].iter().find_map(|folder| std::fs::read(format!("{folder}/{name}")).ok());
            let mut bytes = found.unwrap_or_else(|| panic!("{name} is not installed"));
            // Behind what the program's own headers speak of.
            bytes.extend_from_slice(&number.to_le_bytes());
            Artifact::new(ArtifactKind::Executable, bytes).named(name)
        };
        match guest {
            Guest::NoOp => program("true"),
            Guest::Waits => program("sleep"),
            Guest::AsksAgain => script("exit 75"),
            Guest::Spins => script("while :; do :; done"),
        }
    }

    /// Arguments with which a guest that waits does so for `time`.
    pub fn arguments(&self, guest: Guest, time: Duration) -> Vec<String> {
        if self.native && guest == Guest::Waits { vec![format!("{}", time.as_secs_f64())] } else { Vec::new() }
    }

    /// The most such a guest may use and reach: the defaults, with every quota the backend can keep.
    pub fn policy(&self, guest: Guest) -> Policy {
        let mut policy = Policy::default();
        policy.quota.cpu_time = Some(Duration::from_secs(10));
        if self.native {
            policy.grants.clocks = Clocks::Fine;
            // A grant that no program needs is refused to one.
            policy.grants.interpreter = matches!(guest, Guest::AsksAgain | Guest::Spins).then(|| "sh".to_owned());
        } else {
            policy.quota.fuel = Some(1 << 40);
            if guest == Guest::Waits {
                policy.grants.host_functions.insert("wait".to_owned());
            }
        }
        policy
    }

    /// An agent whose tasks are such guests.
    pub fn template(&self, name: impl Into<String>, guest: Guest, number: u64) -> AgentTemplate {
        let mut template = AgentTemplate::new(name, self.artifact(guest, number));
        template.policy = self.policy(guest);
        template
    }
}

/// The host's functions: `wait` takes `time`.
pub fn host(time: Duration) -> HostFunctions {
    HostFunctions::new().add("wait", move |_| async move {
        tokio::time::sleep(time).await;
        Ok(Bytes::new())
    })
}
