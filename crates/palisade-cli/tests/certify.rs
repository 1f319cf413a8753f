//! `palisade certify`, from the run to the certificate and its verification.

mod support;

use support::Palisade;

#[test]
fn a_backend_is_certified_and_its_certificate_verified() {
    let palisade = Palisade::new();
    let ended = palisade.run(["certify", "--backend", "wasmtime", "--report-dir", "out", "core.call"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.text().contains("palisade-wasmtime ") && ended.text().contains(" 0 failed"), "{ended:?}");
    assert!(ended.text().contains("not certified: the run was filtered"), "{ended:?}");
    let out = palisade.folder().join("out");
    for file in ["report.json", "junit.xml", "report.html", "certificate.json", "badge.json"] {
        assert!(out.join(file).metadata().is_ok_and(|file| file.len() > 0), "{file}");
    }
    let verify = ["certify", "--verify", "out/certificate.json", "--report", "out/report.json"];
    let ended = palisade.run(verify);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.text().contains("It certifies of palisade-wasmtime") && ended.text().contains(": nothing."));
    // Whoever needs a profile asks for it.
    let ended = palisade.run(verify.iter().chain(&["--profile", "core"]));
    assert_eq!(ended.code, 1, "{ended:?}");

    let certificate = std::fs::read_to_string(out.join("certificate.json")).expect("the certificate");
    let mut forged: serde_json::Value = serde_json::from_str(&certificate).expect("JSON");
    forged["profiles"]["core"] = "certified".into();
    palisade.file("out/certificate.json", forged.to_string());
    let ended = palisade.run(verify);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.text().contains("profile `core`"), "{ended:?}");

    palisade.file("out/certificate.json", certificate);
    let report = std::fs::read_to_string(out.join("report.json")).expect("the report");
    palisade.file("out/report.json", report.replacen("\"holds\": true", "\"holds\": false", 1));
    let ended = palisade.run(verify.iter().chain(&["--json"]));
    assert_eq!(ended.code, 1, "{ended:?}");
    assert_eq!(ended.json()["valid"], false);
    assert!(ended.json()["errors"][0].as_str().is_some_and(|error| error.contains("digest")), "{ended:?}");
}

#[test]
fn the_daemons_schedulers_and_sink_are_certified_too() {
    let palisade = Palisade::new();
    for (name, profile) in [("scheduler", "scheduler"), ("scheduler-durable", "scheduler"), ("prometheus", "metrics")] {
        let ended = palisade.run(["certify", "--component", name, "--report-dir", "out"]);
        assert_eq!(ended.code, 0, "{ended:?}");
        assert!(ended.text().contains("palisade-fabric, ") && ended.text().contains(" 0 failed"), "{ended:?}");
        let ended = palisade.run([
            "certify",
            "--verify",
            "out/certificate.json",
            "--report",
            "out/report.json",
            "--profile",
            profile,
        ]);
        assert_eq!(ended.code, 0, "{ended:?}");
        // A check that was cut out of the report is missed, in this catalog as in that of backends.
        let report = std::fs::read_to_string(palisade.folder().join("out/report.json")).expect("the report");
        let mut report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
        report["checks"].as_array_mut().expect("checks").pop();
        palisade.file("out/report.json", report.to_string());
        let ended = palisade.run(["certify", "--verify", "out/certificate.json", "--report", "out/report.json"]);
        assert!(ended.code == 1 && ended.text().contains("did not run"), "{ended:?}");
    }
    // A profile runs on whatever it is about, and alone certifies nothing, be it all there is.
    let ended = palisade.run(["certify", "--all", "--profile", "metrics", "--json"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let list = ended.json();
    assert_eq!((list.as_array().map(Vec::len), &list[0]["component"]), (Some(1), &"prometheus".into()));
    assert!(list[0]["certificate"]["profiles"]["metrics"]["not_certified"].is_array(), "{list}");
}

#[test]
fn wrong_requests_say_what_is_right() {
    let palisade = Palisade::new();
    palisade.run(["certify", "--backend", "wasmtime", "--profile", "quotas"]).assert_error(125, &["`quotas`", "core"]);
    palisade.run(["certify", "--backend", "wasmtime", "no-such-check"]).assert_error(125, &["nothing to certify"]);
    palisade.run(["certify", "--backend", "none"]).assert_error(125, &["`none`", "wasmtime"]);
    palisade.run(["certify", "--component", "sink"]).assert_error(125, &["`sink`", "scheduler-durable"]);
    palisade
        .run(["certify", "--component", "scheduler", "--profile", "quota"])
        .assert_error(125, &["nothing to certify"]);
    palisade.run(["certify"]).assert_error(125, &["--backend"]);
    palisade.run(["certify", "--verify", "certificate.json"]).assert_error(125, &["--report"]);
}
