//! `docs/openapi.yaml` and the types say the same.

use std::collections::BTreeSet;

use serde_json::Value;

use super::guest::full_status;
use crate::api::route::ROUTES;
use crate::api::types::*;

const DOCUMENT: &str = include_str!("../../../../docs/openapi.yaml");

/// Every key in a JSON value, at any depth.
fn keys(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                into.insert(key.clone());
                keys(value, into);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| keys(item, into)),
        _ => {}
    }
}

fn word<T: serde::Serialize>(value: T) -> String {
    let text = serde_json::to_string(&value).expect("json");
    text.trim_matches('"').to_owned()
}

/// The words between the brackets of every `enum: [a, b]` in the document.
fn enum_words() -> BTreeSet<&'static str> {
    let lists = DOCUMENT.lines().filter_map(|line| line.trim().strip_prefix("enum: ["));
    lists.flat_map(|list| list.trim_end_matches(']').split(", ")).collect()
}

#[test]
fn the_document_has_every_path_with_its_method_and_no_other() {
    let paths: Vec<_> = DOCUMENT.lines().filter(|line| line.starts_with("  /")).collect();
    assert_eq!(paths.len(), ROUTES.len(), "{paths:?}");
    for (method, path, _) in ROUTES {
        let method = method.as_str().to_lowercase();
        let entry = format!("\n  {path}:\n    {method}:\n");
        assert!(DOCUMENT.contains(&entry), "docs/openapi.yaml lacks {method} {path}");
    }
}

#[test]
fn the_document_has_every_field() {
    let ping = Ping { name: String::new(), version: String::new(), pid: 1 };
    let request = MigrateRequest {
        bandwidth_bytes_per_s: Some(1 << 20),
        tls_dir: Some("/certificates".into()),
        ..MigrateRequest::new("unix:/s".parse().expect("an endpoint"), MigrationMode::Postcopy)
    };
    let problem = Problem::new("", "", Some(""));
    let samples = [
        serde_json::to_value(full_status()),
        serde_json::to_value(GuestState::PoweredOff { code: 0 }),
        serde_json::to_value(GuestState::Moved { to: String::new() }),
        serde_json::to_value(GuestState::Crashed { reason: String::new() }),
        serde_json::to_value(ping),
        serde_json::to_value(request),
        serde_json::to_value(ShutdownRequest { force: true }),
        serde_json::to_value(RecoverRequest { url: Some("unix:/s".parse().expect("one")) }),
        serde_json::to_value(SnapshotRequest { dir: "/s".into(), pause: true }),
        serde_json::to_value(ErrorBody { error: problem }),
    ];
    let mut wanted = BTreeSet::new();
    for sample in samples {
        keys(&sample.expect("json"), &mut wanted);
    }
    let documented: BTreeSet<String> = DOCUMENT
        .lines()
        .filter_map(|line| line.strip_prefix("        "))
        .filter_map(|line| line.split_once(':'))
        .map(|(key, _)| key.to_owned())
        .collect();
    let missing: Vec<_> = wanted.difference(&documented).collect();
    assert!(missing.is_empty(), "docs/openapi.yaml lacks the fields {missing:?}");
}

#[test]
fn the_document_has_every_word_and_no_other() {
    let mut ours: BTreeSet<String> =
        ["none", "created", "running", "paused"].map(str::to_owned).into();
    ours.extend(["powered-off", "moved", "crashed"].map(str::to_owned));
    ours.extend([Role::Run, Role::Receive, Role::Restore].map(word));
    ours.extend([MemoryBacking::Anon, MemoryBacking::Memfd].map(word));
    ours.extend([Direction::Outgoing, Direction::Incoming].map(word));
    use MigrationMode::{Hybrid, Postcopy, Precopy};
    ours.extend([Postcopy, Precopy, Hybrid].map(word));
    use TimeoutStrategy::{Cancel, Ignore, Switch};
    ours.extend([Cancel, Ignore, Switch].map(word));
    ours.extend(
        [DirtyTracking::KvmLog, DirtyTracking::WriteProtect, DirtyTracking::WriteFaults].map(word),
    );
    use MigrationState::{Active, Cancelled, PostcopyRecover, PostcopyRecoverSetup};
    ours.extend([Active, Cancelled, PostcopyRecover, PostcopyRecoverSetup].map(word));
    ours.extend([Compression::Auto, Compression::Lz4, Compression::None].map(word));
    ours.extend([MigrationState::Setup, MigrationState::Device].map(word));
    ours.extend([MigrationState::PostcopyActive, MigrationState::PostcopyPaused].map(word));
    ours.extend([MigrationState::Completed, MigrationState::Failed].map(word));
    use SnapshotState::{Active as Saving, Completed as Saved, Failed as NotSaved};
    ours.extend([Saving, Saved, NotSaved].map(word));
    use RestoreMode::{Copy, Mmap, Ondemand, Workingset};
    ours.extend([Copy, Mmap, Ondemand, Workingset].map(word));
    use RestoreState::{Failed, Loading, Mapped, Resident, Serving};
    ours.extend([Loading, Serving, Mapped, Resident, Failed].map(word));
    ours.insert("godwit".to_owned());
    let documented: BTreeSet<String> = enum_words().into_iter().map(str::to_owned).collect();
    assert_eq!(documented, ours);
}

#[test]
fn a_guest_is_told_by_its_state_and_what_belongs_to_it() {
    let json = |state| serde_json::to_value(state).expect("json").to_string();
    assert_eq!(json(GuestState::Running), r#"{"state":"running"}"#);
    assert_eq!(json(GuestState::PoweredOff { code: 3 }), r#"{"code":3,"state":"powered-off"}"#);
}

#[test]
fn a_mark_that_was_not_passed_may_be_left_out() {
    let timeline: Timeline = serde_json::from_str(r#"{"paused_us": 7}"#).expect("json");
    assert_eq!(timeline, Timeline { paused_us: Some(7), ..Timeline::default() });
}
