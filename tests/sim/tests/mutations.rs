//! Six mistakes that are made on purpose: the simulator finds each, and says what it found.

use godwit_sim::{Mutation, run_all};

/// Seeds that a mistake has to show itself in.
const SEEDS: u64 = 600;

/// A mistake is found, by at least one of these violations.
fn is_found(mutation: Mutation, by: &[&str]) {
    std::panic::set_hook(Box::new(|_| {}));
    let violations = run_all(1, SEEDS, Some(mutation));
    let found = violations.iter().find(|v| by.iter().any(|text| v.what.contains(text)));
    let what: Vec<_> = violations.iter().take(10).map(|v| &v.what).collect();
    assert!(found.is_some(), "{mutation:?} is not found by {by:?}; found were {what:?}");
}

#[test]
fn waking_before_the_install_is_found() {
    is_found(Mutation::WakeBeforeInstall, &["sleeps beside"]);
}

#[test]
fn forgetting_a_page_on_reconnect_is_found() {
    is_found(Mutation::ForgetPageOnReconnect, &["never sent", "does not end"]);
}

#[test]
fn taking_the_end_of_a_stream_for_success_is_found() {
    is_found(
        Mutation::EndOfStreamIsSuccess,
        &["the source completes and the destination does not"],
    );
}

#[test]
fn granting_twice_is_found() {
    is_found(Mutation::GrantTwice, &["two hosts run the guest"]);
}

#[test]
fn installing_an_older_rounds_page_after_its_discard_is_found() {
    is_found(Mutation::InstallAfterDiscard, &["a read of page", "was sent twice"]);
}

#[test]
fn installing_between_a_discard_and_the_emptying_is_found() {
    let found = ["counts as installed and is not there", "was sent twice"];
    is_found(Mutation::InstallBetweenDiscardAndEmptying, &found);
}
