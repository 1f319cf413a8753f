//! The `palisade` command with this backend: two lines.

use palisade_wasmi as _;

fn main() -> std::process::ExitCode {
    palisade_cli::main()
}
