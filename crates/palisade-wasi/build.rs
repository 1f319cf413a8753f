//! Lets a build leave protections out, to see which checks notice. Never for use: see `tests/ablation.rs` of the backends.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PALISADE_ABLATION");
    if std::env::var_os("PALISADE_ABLATION").is_some_and(|on| on == "1") {
        println!("cargo::rustc-cfg=palisade_ablation");
    }
}
