//! What a fault asks for: a window where the guest walks through its memory, and one page where it
//! does not.

use std::sync::{Arc, Mutex};

use godwit_migration::limits::fault_window_pages_max;
use godwit_migration::page::Paging;
use godwit_migration::wire::{Kind, Message, decode};
use godwit_tests::proxy::{Fate, Passing, Proxy};
use godwit_tests::require_kvm;
use godwit_tests::stage::{Machine, SMALL, Stage, Transport};
use godwit_uffd::page::PageSize;
use godwit_vmm::api::types::MigrationState;

use crate::GODWIT;

/// Pages of the guest: 32 MiB.
const PAGES: u32 = 8192;

/// Pages that each request asks for, while the push sends next to nothing and the guest comes to
/// have all of its memory.
fn requests(cmdline: &str) -> Vec<u32> {
    let stage = Stage::new(GODWIT);
    let mut source = stage.launch_filled("source", &Machine { memory: "32M", cmdline, ..SMALL });
    let destination = stage.receive("destination", Transport::Tcp);
    let requests = Arc::new(Mutex::new(Vec::new()));
    let link = {
        let requests = Arc::clone(&requests);
        Proxy::start(destination.address(), move |passing| {
            requests.lock().expect("not poisoned").extend(request(passing));
            Fate::Forward
        })
    };
    let mut migrate = stage.migrate_with(&source, link.address(), &["--bandwidth", "64K"]);
    migrate.wait_success();
    source.process.wait_success();
    let status = destination.until_migration(MigrationState::Completed);
    let pages = status.migration.expect("just seen").pages;
    assert_eq!((pages.total, pages.remaining), (u64::from(PAGES), 0));
    assert_eq!(destination.verdict_from_now(1).corrupt, 0);
    let requests = std::mem::take(&mut *requests.lock().expect("not poisoned"));
    assert!(requests.iter().sum::<u32>() <= PAGES, "asked for a page twice: {requests:?}");
    requests
}

fn request(passing: &Passing<'_>) -> Option<u32> {
    if passing.kind != Kind::Request {
        return None;
    }
    let frame = decode(passing.bytes).expect("a frame").expect("a whole one");
    match Message::read(&frame, Paging::base(PAGES)).expect("a message") {
        Message::Request(run) => Some(run.count),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_that_walks_through_its_memory_asks_for_windows() {
    require_kvm!();
    let requests = requests("workload=touch passes=0");
    let most = fault_window_pages_max(PageSize::BASE);
    assert!(requests.iter().all(|&count| count <= most), "{requests:?}");
    let (count, pages) = (requests.len() as u64, requests.iter().sum::<u32>());
    assert!(pages > PAGES / 8, "{pages} pages were asked for: the push has sent too much");
    assert!(u64::from(pages) > 8 * count, "{pages} pages in {count} requests");
}

#[test]
fn a_guest_that_jumps_about_asks_for_single_pages() {
    require_kvm!();
    let requests = requests("workload=random windows=0 seed=11");
    let (count, pages) = (requests.len() as u64, requests.iter().sum::<u32>());
    assert!(count > 1000, "{count} requests");
    assert!(u64::from(pages) * 10 < count * 11, "{pages} pages in {count} requests");
}
