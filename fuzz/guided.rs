//! The program of `run`: libFuzzer over the target that `PALISADE_FUZZ_TARGET` names.
//!
//! `--list` prints the targets, `--seeds DIR` writes the seeds of the one that is named.
#![no_main]

use std::path::Path;
use std::process::exit;
use std::sync::OnceLock;

use palisade_fuzz::{TARGETS, Target};

fn target() -> &'static Target {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("PALISADE_FUZZ_TARGET").unwrap_or_default();
        TARGETS.iter().find(|(known, ..)| *known == name).unwrap_or_else(|| panic!("there is no target `{name}`"))
    })
}

/// What is asked of this program besides fuzzing.
fn begin() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--list") => {
            TARGETS.iter().for_each(|(name, ..)| println!("{name}"));
            exit(0);
        }
        Some("--seeds") => {
            let folder = Path::new(arguments.get(1).expect("which folder?"));
            for (number, seed) in (target().2)().iter().enumerate() {
                std::fs::write(folder.join(format!("seed-{number}")), seed).expect("the folder can be written");
            }
            exit(0);
        }
        _ => _ = target(),
    }
}

libfuzzer_sys::fuzz_target!(init: begin(), |data: &[u8]| (target().1)(data));
