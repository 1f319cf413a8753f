//! What the benches share: baselines written by hand against the engine, and a way to compare two things fairly.

pub mod baseline;
pub mod paired;
pub mod wasmer_baseline;
