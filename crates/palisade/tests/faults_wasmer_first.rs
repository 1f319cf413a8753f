//! Both Wasm engines in one process, Wasmer opened first: every fault becomes its own outcome. The only test of its
//! process, since engines set up their signal handlers once.

mod support;

#[test]
fn faults_of_two_engines_keep_apart() {
    support::faults_keep_apart(support::wasmer, support::wasmtime);
}
