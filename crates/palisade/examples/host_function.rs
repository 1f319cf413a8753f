//! Offers a host function to a plugin: `cargo run -p palisade --example host_function`.

use palisade::{Artifact, BackendOptions, Call, HostFunctions, Policy, PreparedExt, Result};

/// A reactor that calls the host function `greet` with its input and writes the answer as its output.
const PLUGIN: &str = r#"
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "host_call" (func $host_call (param i32 i32 i32 i32) (result i64)))
  (import "palisade" "host_result_read" (func $host_result_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output_write (param i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "greet")
  (func (export "run") (result i32)
    (local $len i32)
    (drop (call $input_read (i32.const 0) (i32.const 1024) (call $input_len)))
    (local.set $len (i32.wrap_i64
      (call $host_call (i32.const 0) (i32.const 5) (i32.const 1024) (call $input_len))))
    (drop (call $host_result_read (i32.const 0) (i32.const 2048) (local.get $len)))
    (call $output_write (i32.const 2048) (local.get $len))
    (i32.const 0)))
"#;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let functions = HostFunctions::new()
        .add("greet", |call| async move { Ok([b"Hello, ", &call.input[..], b"!"].concat().into()) });
    let mut policy = Policy::default();
    policy.grants.host_functions.insert("greet".into());

    let sandbox = palisade::open("wasmtime", &BackendOptions::new())?;
    let wasm = wat::parse_str(PLUGIN).expect("the plugin above is well-formed");
    let prepared = sandbox.load(Artifact::wasm(wasm)).await?.prepare(policy, functions)?;
    let execution = prepared.run(Call::new().entry("run").input("world")).await?;

    println!("{}: {}", execution.outcome, String::from_utf8_lossy(&execution.output));
    Ok(())
}
