//! The load test runs, shows figures, and fails when something grows.

use std::process::{Command, Output};

fn load(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_load")).args(arguments).output().expect("it starts");
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn a_short_run_shows_figures_of_each_number_of_agents() {
    let output = load(&["--agents", "5,20", "--hogs", "2", "--wait", "5ms", "--time", "700ms"]);
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rows: Vec<Vec<f64>> = text
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().map(|figure| figure.parse().expect("a number")).collect())
        .collect();
    assert_eq!(rows.iter().map(|row| row[0]).collect::<Vec<_>>(), [5.0, 20.0]);
    for row in &rows {
        let [_, hogs, rate, p50, p90, p99, max, _, memory, files, threads] = row[..] else { panic!("{row:?}") };
        assert!(hogs == 2.0 && rate > 0.0 && memory > 1.0 && files > 2.0 && threads >= 3.0, "{row:?}");
        assert!(p50 <= p90 && p90 <= p99 && p99 <= max, "{row:?}");
    }
}

#[test]
fn a_soak_fails_when_a_slope_is_beyond_its_bound() {
    let folder = tempfile::tempdir().expect("a folder");
    let samples = folder.path().join("samples.csv");
    let soak = ["--agents", "10", "--hogs", "0", "--wait", "5ms", "--soak", "1s", "--loss-max", "1e12"];
    let wide = ["--memory-slope-max", "1e12", "--count-slope-max", "1e12", "--samples"];
    let output = load(&[&soak[..], &wide[..], &[samples.to_str().expect("a name")]].concat());
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(["memory", "files", "threads", "tasks/s"].iter().all(|figure| text.contains(figure)), "{text}");
    assert!(text.contains("kept") && !text.contains("EXCEEDED"), "{text}");
    let rows = std::fs::read_to_string(samples).expect("the samples are written");
    assert_eq!(rows.lines().count(), 241, "{rows}");

    let output = load(&[&soak[..], &["--memory-slope-max", "1e12", "--count-slope-max=-1e12"]].concat());
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let verdict = |figure: &str| text.lines().find(|line| line.starts_with(figure)).expect("a line").to_owned();
    assert!(verdict("files").ends_with("EXCEEDED") && verdict("memory").ends_with("kept"), "{text}");
}
