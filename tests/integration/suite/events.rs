//! The log of events that `--events` asks for, at both sides.

use std::path::Path;

use godwit_migration::wire::Kind;
use godwit_tests::proxy::{Proxy, cuts_at};
use godwit_tests::require_kvm;
use godwit_tests::stage::{SMALL, Stage, Transport};
use serde_json::Value;

use crate::GODWIT;

fn events(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("a log of events");
    text.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

/// The values of `field` in the events of `kind`, in their order.
fn told<'a>(events: &'a [Value], kind: &str, field: &str) -> Vec<&'a str> {
    let wanted = events.iter().filter(|event| event["event"] == kind);
    wanted.map(|event| event[field].as_str().expect("a word")).collect()
}

/// That `wanted` are among `told`, in this order.
fn in_order(told: &[&str], wanted: &[&str]) {
    let mut rest = told.iter();
    let found = wanted.iter().all(|word| rest.any(|told| told == word));
    assert!(found, "{wanted:?} in {told:?}");
}

#[test]
fn both_sides_tell_of_rounds_the_switchover_a_loss_and_the_end() {
    require_kvm!();
    let stage = Stage::new(GODWIT);
    let [left, came] = ["left.events", "came.events"].map(|name| stage.folder().path(name));
    let [here, there] = [&left, &came].map(|path| path.display().to_string());
    let mut source = stage.launch_with("source", &SMALL, &["--events", &here]);
    source.wait_report("filled");
    let options = ["--events", &there];
    let mut destination = stage.receive_with("destination", Transport::Unix, &options);
    // The link breaks when the guest has just changed hands, with pages on their way.
    let link = Proxy::start(destination.address(), cuts_at(&[(Kind::Owned, 1)]));
    stage.migrate_with(&source, link.address(), &["--mode", "hybrid"]).wait_success();
    source.process.wait_success();
    stage.control("shutdown", &destination, &[]).wait_success();
    destination.process.wait_success();

    let (left, came) = (events(&left), events(&came));
    let states = told(&left, "state", "state");
    let lost = ["postcopy-paused", "postcopy-recover-setup", "postcopy-recover"];
    in_order(&states, &["setup", "active", "device"]);
    in_order(&states, &lost);
    in_order(&states, &["postcopy-recover", "postcopy-active", "completed"]);
    assert_eq!(states.last(), Some(&"completed"));
    in_order(&told(&came, "state", "state"), &["setup", "active", "device", "postcopy-active"]);
    in_order(&told(&came, "state", "state"), &["postcopy-paused", "postcopy-active", "completed"]);
    for (events, before) in [(&left, "paused"), (&came, "loaded")] {
        let phases = ["started", before, "granted", "pushed", "released"];
        in_order(&told(events, "phase", "phase"), &phases);
        let round = events.iter().find(|event| event["event"] == "round").expect("a round");
        assert_eq!(round["round"], 1);
        let end = events.last().expect("an end");
        assert_eq!((&end["pages_remaining"], &end["transfer"]), (&0.into(), &1.into()));
        assert_eq!((&end["pages_total"], &end["page_bytes"]), (&(64 << 8).into(), &4096.into()));
        // Who comes is not known before the offer.
        let is_of = |event: &Value| event["guest"].is_null() || event["guest"] == end["guest"];
        assert!(end["guest"].is_string() && events.iter().all(is_of), "{events:?}");
        assert!(end["interruptions"].as_u64() >= Some(1), "{end}");
        let why = events.iter().find(|event| event["state"] == "postcopy-paused");
        assert!(why.is_some_and(|event| event["error"].is_string()), "{why:?}");
    }
    assert!(left.iter().all(|event| event["direction"] == "outgoing"));
    assert!(came.iter().all(|event| event["direction"] == "incoming"));
}
