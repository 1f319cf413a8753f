//! Every sentence of the contract is certified: each point under `# Behavior` names the requirements that say so.
//!
//! A point that is new or changed is not in the table, and this fails until somebody says what checks it.

use std::collections::BTreeSet;
use std::path::Path;

use palisade_conformance::catalog;

/// Files of the contract, and their points in order, each by how it begins, with the requirements it rests on.
type Table = &'static [(&'static str, &'static [(&'static str, u64, &'static [&'static str])])];

const TABLE: Table = &[
    (
        "sandbox.rs",
        &[
            ("Constant for", 0xdcbf_356f_8d74_851c, &["core.capabilities.constant"]),
            ("Everything declared", 0xa25f_546f_80dd_737f, &["core.policy.fail-closed"]),
            ("Runs no code", 0xd151_ca11_0c69_deeb, &["core.load.runs-nothing"]),
            ("Treats the artifact", 0x7526_114b_d507_8b8c, &["core.load.hostile-artifacts"]),
            ("The module does not", 0xdfa0_62e0_3c36_67e2, &["core.load.independent"]),
            (
                "Refuses whatever",
                0x4824_74d6_1dca_dcfd,
                &["core.policy.fail-closed", "core.load.hostile-artifacts", "core.host.unknown"],
            ),
            ("Directories are opened", 0xc4d9_c395_2afc_f8fa, &["isolation.files.opened-when-prepared"]),
            ("Of `host`", 0x250a_48fb_4848_b8a6, &["core.host.granted-only"]),
            (
                "Shares no state",
                0x7ea1_ee22_6b3e_a1e0,
                &["isolation.instance.fresh-state", "isolation.agents.agent-to-agent-isolation"],
            ),
            (
                "Runs no guest code",
                0x3508_5cbc_2c73_c18f,
                &["core.load.runs-nothing", "quota.time.wall-time", "quota.cpu.cpu-quota"],
            ),
            ("Dropping the instance", 0x0e45_60e4_f462_c1c6, &["core.lifecycle.resource-cleanup-on-termination"]),
            ("Whatever the guest", 0xa1ac_adac_f971_94cc, &["core.call.outcome", "core.usage.truthful"]),
            ("Wall time, CPU", 0xa920_4985_f8e4_2a4a, &["quota.reset.per-call"]),
            ("After an outcome", 0x776c_1a99_b237_ed3e, &["core.instance.stale", "core.drop.is-cancel"]),
            ("A [`CancelToken`]", 0x777a_6711_1969_934d, &["core.cancel.anywhere"]),
            ("A panic of a host", 0x2d42_a66b_a166_4e33, &["core.host.functions"]),
            ("Of a WebAssembly", 0x8690_cd6e_8550_83ce, &["core.call.initialize"]),
            ("Called in the order", 0x60cb_1140_7c4c_bf4a, &["core.sink.order"]),
        ],
    ),
    (
        "host_function.rs",
        &[
            (
                "The future is dropped",
                0xf5d2_c850_4622_87ad,
                &["core.drop.is-cancel", "core.cancel.anywhere", "quota.time.wall-time"],
            ),
            ("A panic ends", 0x1550_1bc6_76b1_1759, &["core.host.functions", "core.instance.stale"]),
            ("The time it takes", 0xd55d_c600_5d4d_b3a0, &["quota.time.wall-time"]),
        ],
    ),
    ("metrics.rs", &[("The same descriptor", 0xe5a2_d075_1e1f_44b4, &["metrics.register.handle"])]),
    (
        "scheduler.rs",
        &[
            ("When it returns", 0xa698_8c36_7462_d6c0, &["scheduler.submit.keeps"]),
            ("The same idempotency", 0x5a0a_36d6_ce87_3c3a, &["scheduler.submit.idempotent"]),
            (
                "Gives at least",
                0xf16d_0c20_e0f5_5abb,
                &[
                    "scheduler.lease.exclusive",
                    "scheduler.order.classes",
                    "scheduler.order.tenants",
                    "scheduler.order.first-come",
                ],
            ),
            ("Of a plugin", 0xfe5c_9827_dac7_499f, &["scheduler.lease.plugin-limits"]),
            ("A task is never", 0xc8b7_7201_2d8a_f6e1, &["scheduler.lease.exclusive", "scheduler.lease.ends"]),
            ("Dropping the future", 0x0821_c0ed_69ad_6c7e, &["scheduler.lease.waits"]),
            ("While the scheduler", 0x0295_86a4_5dee_6166, &["scheduler.mode.obeyed"]),
            ("May give less", 0xc432_ef0e_5225_9be2, &["scheduler.lease.ends", "scheduler.lease.waits"]),
            ("Compare-and-set", 0x36b1_9322_d7c3_a54e, &["scheduler.fence.newest", "scheduler.outcome.once"]),
            ("An outcome that", 0x57fc_2537_8b1d_3785, &["scheduler.retry.policy"]),
            ("A running task", 0xa66d_735e_29cd_57d0, &["scheduler.cancel.anywhere"]),
            ("Looks at a bounded", 0x9004_1b25_71f0_448c, &["scheduler.list.complete"]),
            ("Page after page", 0x9d75_8544_3065_d7ad, &["scheduler.list.complete"]),
        ],
    ),
];

/// The points under `# Behavior` in a source file, in order, each on one line.
fn points(source: &str) -> Vec<String> {
    let mut points: Vec<String> = Vec::new();
    let mut inside = false;
    for line in source.lines() {
        let Some(text) = line.trim_start().strip_prefix("///") else {
            inside = false;
            continue;
        };
        let text = text.trim();
        if text.starts_with("# ") {
            inside = text == "# Behavior";
        } else if inside && let Some(point) = text.strip_prefix("* ") {
            points.push(point.to_owned());
        } else if inside && let Some(last) = points.last_mut().filter(|_| !text.is_empty()) {
            last.push(' ');
            last.push_str(text);
        }
    }
    points
}

/// FNV-1a: enough to see that a text is not what it was.
fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn every_point_of_the_contract_rests_on_requirements() {
    let scheduler = catalog::scheduler::catalog();
    let metrics = catalog::metrics::catalog();
    let known: BTreeSet<_> = catalog::requirements()
        .chain(scheduler.requirements.iter().copied())
        .chain(metrics.requirements.iter().copied())
        .map(|requirement| requirement.id)
        .collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/palisade-core/src");
    let files = std::fs::read_dir(&folder).expect("the contract's sources");
    let mut wrong = Vec::new();
    for file in files.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        let source = std::fs::read_to_string(file.path()).expect("a source file");
        let found = points(&source);
        let table = TABLE.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, table)| *table);
        for point in &found {
            let line = fingerprint(point);
            match table.iter().find(|(begins, _, _)| point.starts_with(begins)) {
                None => wrong.push(format!("{name}: no requirement for \"{point}\" ({line:#018x})")),
                Some((_, known, _)) if *known != line => {
                    wrong.push(format!("{name}: look again, this changed: \"{point}\" ({line:#018x})"));
                }
                Some(_) => {}
            }
        }
        for (begins, _, requirements) in table {
            if !found.iter().any(|point| point.starts_with(begins)) {
                wrong.push(format!("{name}: \"{begins}\" is not there any more"));
            }
            if requirements.is_empty() {
                wrong.push(format!("{name}: nothing checks \"{begins}\""));
            }
            for id in requirements.iter().filter(|id| !known.contains(**id)) {
                wrong.push(format!("{name}: \"{begins}\" rests on {id}, which is no requirement"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(TABLE.iter().map(|(_, points)| points.len()).sum::<usize>() > 30, "the contract has shrunk");
}
