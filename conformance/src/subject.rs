//! The backend under test.

use std::sync::Arc;

use palisade_core::{Artifact, Result, Sandbox};

/// The backend under test: facts, and how to make a fresh one.
#[derive(Debug, Clone, Copy)]
pub struct Subject {
    /// Name, as on the certificate.
    pub name: &'static str,
    /// Version, as on the certificate.
    pub version: &'static str,
    /// Opens a fresh sandbox; called once for each check.
    pub open: fn() -> Result<Arc<dyn Sandbox>>,
    /// The probe program for a verb, in a form this backend loads: [`probe::wasm`](crate::probe::wasm) for a Wasm
    /// backend.
    pub probe: fn(verb: &str) -> Artifact,
    /// Text of the backend's `CONFORMANCE.toml`.
    pub expectations: &'static str,
}
