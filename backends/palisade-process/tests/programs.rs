//! Programs in their jails.

mod common;

use common::*;
use palisade_core::*;

#[test]
fn a_program_reads_its_input_and_writes_its_output() {
    let execution = run(&program("cat"), &fine(), Call::new().input("hello"));
    assert_eq!(execution.outcome, Outcome::Completed, "{execution:?}");
    assert_eq!(&execution.output[..], b"hello");
}
