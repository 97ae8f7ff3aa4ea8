//! The outcome as a whole: what the JSON and the text say about made-up demos.

use clap::Parser;
use serde_json::Value;

use super::*;
use crate::api::types::Status;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    demo: Demo,
}

fn demo_args(words: &[&str]) -> Demo {
    Line::parse_from([&["demo"], words].concat()).demo
}

/// A status as a process tells it.
fn status(migration: &str) -> Status {
    let text = format!(
        r#"{{"id": null, "role": "run", "guest": {{"state": "running"}},
            "owner": {{"owns": true, "grant": 1, "record": null}},
            "vm": {{"cpus": 2, "memory_bytes": 4096, "backing": "anon", "tsc_khz": 2000000}},
            "migration": {{"state": "completed", "mode": "postcopy", "peer": "p", "error": null,
                "pages": {{"total": 20, "remaining": 0, "zero": 8, "data": 12, "requested": 3}},
                "bytes": 1, "drain_bytes_per_s": 777, {migration}}}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

fn source() -> Status {
    status(
        r#""direction": "outgoing", "faults": null, "blackout_us": 3500,
           "paused_tsc": [5000000000, 5000000100],
           "timeline": {"began_monotonic_us": 1000000, "paused_us": 1000, "granted_us": 3000,
                        "released_us": 90000}"#,
    )
}

fn destination() -> Status {
    status(
        r#""direction": "incoming", "blackout_us": null, "paused_tsc": null,
           "faults": {"count": 3, "outstanding": 0, "p50_us": 10, "p90_us": 20, "p99_us": 30,
                      "max_us": 40},
           "timeline": {"began_monotonic_us": 1000500, "first_instruction_us": 3900,
                        "last_page_us": 80000}"#,
    )
}

fn findings(args: &Demo, destination_lines: &[&str]) -> Findings {
    let mut witness = Witness::new(args.workload, args.cpus.into());
    let start = "godwit-guest: start arena_pages=10 owned_pages=10 tsc=1";
    witness.see(Side::Source, start);
    for line in destination_lines {
        witness.see(Side::Destination, &format!("godwit-guest: {line}"));
    }
    let (source, destination) = (Some(source()), Some(destination()));
    Findings { witness, source, destination, corrupted: Corrupted::default() }
}

const GOOD: [&str; 8] = [
    "gaps vcpu=0 at=5100000000 list=4999000000:9000000,4998000000:2000",
    "gaps vcpu=1 at=5100000000 list=4999990000:8000000,4998000000:2000",
    "pass vcpu=0 n=4 begin tsc=5200000000",
    "pass vcpu=1 n=5 begin tsc=5200000000",
    "pass vcpu=0 n=4 end tsc=6000000000 verified=5 zero=0 corrupt=0",
    "pass vcpu=1 n=5 end tsc=6000000000 verified=5 zero=0 corrupt=0",
    "gaps vcpu=0 at=7100000000 list=5300000000:400000",
    "gaps vcpu=1 at=7100000000 list=5400000000:500000",
];

fn json(report: &Report) -> Value {
    serde_json::to_value(report).unwrap()
}

#[test]
fn a_good_demo_has_all_its_figures() {
    let args = demo_args(&["--link", "1G,2ms"]);
    let report = Report::new(&args, &findings(&args, &GOOD), None);
    let json = json(&report);
    let wanted = serde_json::json!({
        "verdict": "verified", "error": null, "pages_verified": 10, "pages_corrupt": 0,
        "pages_to_verify": 10, "blackout_us": 3500, "guest_gap_us": 4500,
        "guest_gap_first_second_us": 250, "guest_gap_exact": true,
        "guest_gap_first_second_exact": true,
        "faults": {"count": 3, "p50_us": 10, "p90_us": 20, "p99_us": 30, "max_us": 40},
        "pages": {"total": 20, "zero": 8, "data": 12, "requested": 3},
        "drain_bytes_per_s": 777, "total_us": 90000, "vcpus": 2, "memory_bytes": 1 << 30,
        "memory_backing": "anon", "workload": "dirty", "page_changed": null, "complaints": [],
        "link": {"rate_bits_per_s": 1_000_000_000, "round_trip_us": 2000},
    });
    for (field, value) in wanted.as_object().unwrap() {
        assert_eq!(&json[field], value, "{field}");
    }
    let timeline = &json["timeline"];
    assert_eq!((&timeline["paused_us"], &timeline["released_us"]), (&1000.into(), &90000.into()));
    let there = (&timeline["first_instruction_us"], &timeline["last_page_us"]);
    assert_eq!(there, (&4400.into(), &80500.into()), "on the clock of the source");
}

#[test]
fn the_text_says_the_same() {
    let args = demo_args(&[]);
    let report = Report::new(&args, &findings(&args, &GOOD), None);
    let text = text::lines(&report, str::to_owned).join("\n");
    for part in [
        "4.400 ms  first instruction at the destination",
        "3.500 ms in which no vCPU ran anywhere",
        "4.500 ms: its largest gap across the switchover (vCPU 0 4.500, vCPU 1 4.000)",
        "3 served: p50 10 us, p90 20 us, p99 30 us, max 40 us",
        "8 zero and 12 data of 20; 3 of them",
        "VERIFIED     the guest verified 10 of its 10 pages at the destination, 0 corrupt",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

#[test]
fn a_complaint_is_the_verdict_even_if_all_was_verified() {
    let args = demo_args(&["--corrupt-page"]);
    let mut lines = GOOD.to_vec();
    lines.insert(2, "corrupt vcpu=1 page=7 gpa=0x7000 offset=8");
    let report = Report::new(&args, &findings(&args, &lines), None);
    let json = json(&report);
    assert_eq!((&json["verdict"], &json["pages_corrupt"]), (&"corrupt".into(), &1.into()));
    let message = conclude(&report).unwrap_err().to_string();
    assert!(message.contains("corrupt vcpu=1 page=7"), "{message}");
}

#[test]
fn a_change_that_nobody_noticed_is_a_failure() {
    let args = demo_args(&["--corrupt-page"]);
    let report = Report::new(&args, &findings(&args, &GOOD), None);
    assert_eq!(report.verdict, Verdict::Unnoticed);
    assert!(conclude(&report).is_err());
}

#[test]
fn without_every_vcpus_pass_there_is_no_verdict() {
    let args = demo_args(&[]);
    let report = Report::new(&args, &findings(&args, &GOOD[..5]), None);
    assert_eq!((report.verdict, report.pages_verified), (Verdict::None, 5));
    assert!(conclude(&report).is_err());
    let error = Some("the link broke".to_owned());
    let report = Report::new(&args, &findings(&args, &GOOD), error);
    assert_eq!(report.verdict, Verdict::None, "an error is no success");
}

#[test]
fn a_demo_that_did_not_start_still_has_every_field() {
    let args = demo_args(&[]);
    let witness = Witness::new(args.workload, 2);
    let corrupted = Corrupted::default();
    let findings = Findings { witness, source: None, destination: None, corrupted };
    let json = json(&Report::new(&args, &findings, Some("no /dev/kvm".to_owned())));
    assert_eq!(json["error"], "no /dev/kvm");
    for field in ["blackout_us", "guest_gap_us", "guest_gap_first_second_us", "total_us"] {
        assert!(json.as_object().unwrap()[field].is_null(), "{field}");
    }
    assert_eq!(json["faults"]["count"], 0);
}

#[test]
fn gaps_are_complete_when_the_second_after_the_switchover_is() {
    let args = demo_args(&[]);
    assert!(!report::gaps_are_known(&findings(&args, &GOOD[..7])));
    assert!(report::gaps_are_known(&findings(&args, &GOOD)));
}
