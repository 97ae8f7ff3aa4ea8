//! The doctor on the host that the tests run on.

use std::path::Path;

use godwit_tests::{Stream, device};
use serde_json::Value;

use crate::GODWIT;

fn state<'a>(report: &'a Value, of: &[&str]) -> &'a str {
    let found = of.iter().fold(&report["facts"], |at, key| &at[*key]);
    found["state"].as_str().unwrap_or_else(|| panic!("no state of {of:?} in {report}"))
}

/// The report agrees with what is known of this host, and the exit status with the report.
#[test]
fn the_doctor_finds_what_the_tests_find() {
    let mut doctor = GODWIT.start("doctor", &["doctor", "--json"]);
    let status = doctor.wait();
    let report: Value = serde_json::from_str(&doctor.text(Stream::Stdout))
        .unwrap_or_else(|error| panic!("{}", doctor.failure(&format!("no JSON: {error}"))));
    let wanted = match report["verdict"].as_str() {
        Some("ready") => 0,
        Some("cannot-receive") => 3,
        Some("cannot-run") => 4,
        other => panic!("{}", doctor.failure(&format!("the verdict is {other:?}"))),
    };
    assert_eq!(status.code(), Some(wanted), "{}", doctor.failure("has another exit status"));
    if device::has_kvm_and_userfaultfd() {
        assert_eq!(report["verdict"], "ready", "{report}");
        assert_eq!(state(&report, &["kvm", "device"]), "usable");
        assert_eq!(state(&report, &["kvm", "machine"]), "usable");
        let memory = &report["facts"]["userfaultfd"]["memory"][0];
        assert_eq!(memory["kind"], "anonymous");
        let operations = memory["operations"].as_array().expect("operations");
        let copy = operations.iter().find(|operation| operation["name"] == "COPY");
        assert_eq!(copy.expect("COPY")["tried"]["result"], "works");
        let doors = ["device", "system_call"].map(|door| state(&report, &["userfaultfd", door]));
        assert!(doors.contains(&"usable"), "{doors:?}");
    }
    if !Path::new("/dev/kvm").exists() {
        assert_eq!(state(&report, &["kvm", "device"]), "missing");
    }
}

#[test]
fn the_doctor_speaks_to_people_and_ends_with_the_verdict() {
    let mut doctor = GODWIT.start("doctor", &["doctor"]);
    let status = doctor.wait();
    let text = doctor.text(Stream::Stdout);
    let verdict = text.lines().last().unwrap_or_default();
    assert_eq!(verdict.starts_with("READY"), status.success(), "{text}");
    for part in ["host ", "kvm ", "userfaultfd ", "huge pages ", "limits "] {
        assert!(text.lines().any(|line| line.starts_with(part)), "no {part:?} in {text}");
    }
    // A host may lack things and be ready; each says what it costs and how to get it.
    let count =
        |word: &str| text.lines().filter(|line| line.trim_start().starts_with(word)).count();
    assert_eq!(count("costs  "), count("get it "), "{text}");
}

#[test]
fn the_help_has_every_exit_status() {
    let mut help = GODWIT.start("doctor", &["doctor", "--help"]);
    help.wait_success();
    let text = help.text(Stream::Stdout);
    for status in ["0  guests can run here", "3  guests can run", "4  guests cannot run"] {
        assert!(text.contains(status), "{text}");
    }
}
