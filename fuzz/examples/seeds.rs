//! Writes the seeds of a target into a directory: `seeds TARGET DIR`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, folder] = &arguments[..] else { return ExitCode::from(2) };
    let Some((_, _, seeds)) = palisade_fuzz::TARGETS.iter().find(|(known, ..)| known == name) else {
        return ExitCode::from(2);
    };
    let written = seeds()
        .iter()
        .enumerate()
        .try_for_each(|(number, seed)| std::fs::write(PathBuf::from(folder).join(format!("seed-{number}")), seed));
    ExitCode::from(u8::from(written.is_err()))
}
