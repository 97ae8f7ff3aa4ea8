//! Every bound of the protocol, by name, and how they depend on each other.

use std::time::Duration;

use godwit_uffd::page::PageSize;

/// Bytes of page contents in one frame, if a page is no longer than this: they stay in the cache of
/// the core that receives and installs them.
const RUN_BYTES: usize = 256 << 10;
/// Bytes of zero pages that a source has found and not sent, if a page is no longer than this.
const ZERO_BYTES_HELD: usize = 8 << 20;
/// Most pages in one frame of page contents, and in one request: 64 base pages, or one huge page.
pub const fn data_pages_per_run_max(size: PageSize) -> u32 {
    pages_in(RUN_BYTES, size)
}
/// Most bytes of page contents in one frame of a guest with pages of this size.
pub const fn run_bytes_max(size: PageSize) -> usize {
    size.length_of(data_pages_per_run_max(size))
}
/// Most bytes of page contents in one frame of any guest.
pub const RUN_BYTES_MAX: usize = run_bytes_max(PageSize::HUGE);
/// Most pages in one run of zero pages, which carries no contents.
pub const ZERO_PAGES_PER_RUN_MAX: u32 = 1 << 20;
/// Most zero pages that a source has found and not sent. A fault on one of them waits meanwhile, so
/// the number is that of pages looked at in about a millisecond.
pub const fn zero_pages_held_max(size: PageSize) -> u32 {
    pages_in(ZERO_BYTES_HELD, size)
}
/// Bytes of answers that a source gathers before it sends them, and one page more.
pub const ANSWERS_BYTES_MAX: usize = 1 << 20;
/// Most bytes of a control message: offer, accept, and so on.
pub const CONTROL_BYTES_MAX: usize = 1 << 20;
/// Most bytes of vCPU and device state of one guest.
pub const PACKAGE_BYTES_MAX: usize = 16 << 20;
/// Most bytes of text that a peer may give as a reason.
pub const REASON_BYTES_MAX: usize = 4096;
/// Most memslots of one guest.
pub const MEMSLOTS_MAX: usize = 64;
/// Most pages of one guest: 16 TiB of base pages. Page indexes are 32 bits wide.
pub const GUEST_PAGES_MAX: u64 = u32::MAX as u64;
/// Most bytes of one part of a bitmap of pages: 2 GiB of base pages.
pub const BITMAP_PART_BYTES_MAX: usize = 64 << 10;
/// Most bulk channels of one migration.
pub const CONNECTIONS_MAX: u8 = 32;
/// Most requests that a source keeps unanswered before it answers; a vCPU has one fault at a time.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 4096;

/// Most pages that one fault asks for: 64 KiB, which keep others waiting for half a millisecond on
/// a link of a gigabit a second, or one huge page.
pub const fn fault_window_pages_max(size: PageSize) -> u32 {
    pages_in(64 << 10, size)
}
/// Walks of the guest through its memory that its destination tells apart: a few vCPUs with a few
/// each.
pub const FAULT_WALKS_MAX: usize = 16;
/// Most pages that came unasked between two faults of one walk: they are looked at one by one.
pub const WALK_GAP_PAGES_MAX: u32 = 512;
/// Faults around which the push goes on, and that it takes in at once.
pub const PUSH_WALKS_MAX: usize = 8;
/// Groups of pages that the push is ahead of a guest that walks, before it sends what was written
/// last: 16 MiB of base pages, 128 MiB of huge ones.
pub const PUSH_AHEAD_GROUPS_MAX: u32 = 64;

/// Most bytes of pages that a destination has allocated ahead of the pages that come.
pub const STAGED_AHEAD_BYTES_MAX: usize = 1 << 30;
/// Bytes of pages that are allocated ahead in one step, between two looks at what is wanted.
pub const STAGING_STEP_BYTES: usize = 2 << 20;
/// Runs of lost pages that a log names: enough to find what they were, and no flood.
pub const LOST_RUNS_NAMED_MAX: u32 = 8;
/// Damaged pages of a snapshot that a log names: enough to see what happened, and no flood.
pub const DAMAGED_PAGES_NAMED_MAX: u32 = 8;
/// Most pages of a working set: 4 GiB of base pages.
pub const WORKING_SET_PAGES_MAX: u32 = 1 << 20;
/// The lowest cap on bandwidth, in bytes per second, of a guest with pages of this size: a full run
/// passes while the peer has patience.
pub const fn bandwidth_min(size: PageSize) -> u64 {
    run_bytes_max(size) as u64 / 4
}

/// How long either side waits for the next step of the set-up.
pub const SETUP_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a destination waits for its first pages to be allocated before it accepts a guest; it
/// then goes on without them.
pub const STAGING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the guest may stand still before the grant: then it runs on at the source.
pub const SWITCHOVER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a session that goes on may take to say what has arrived.
pub const RESUME_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a source waits before it dials a lost destination again, at first. Each failure doubles
/// it up to [`REDIAL_MAX`].
pub const REDIAL_MIN: Duration = Duration::from_millis(100);
/// How long a destination waits before it records again a refusal that could not be recorded.
pub const RECORD_RETRY: Duration = Duration::from_secs(1);
/// How long a lost destination may take to be connected to, each time.
pub const REDIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait between two dials.
pub const REDIAL_MAX: Duration = Duration::from_secs(5);
/// How long a connection may take to say what it is.
pub const PREAMBLE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a side that has nothing to say says that it is alive.
pub const ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a silent peer is waited for before its channel counts as lost.
pub const PEER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a destination to which pages are due waits for one, or for the end of the push, while
/// the source says that it is alive; as often as there are bulk channels.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Pages in `bytes` bytes, which are few, and at least one.
#[expect(clippy::cast_possible_truncation)]
const fn pages_in(bytes: usize, size: PageSize) -> u32 {
    let pages = (bytes / size.bytes()) as u32;
    if pages == 0 { 1 } else { pages }
}

const _: () = {
    let mut at = 0;
    while at < PageSize::ALL.len() {
        let size = PageSize::ALL[at];
        assert!(zero_pages_held_max(size) <= ZERO_PAGES_PER_RUN_MAX);
        assert!(zero_pages_held_max(size) >= data_pages_per_run_max(size));
        assert!(fault_window_pages_max(size) <= data_pages_per_run_max(size));
        // A push takes pages by words of a bitmap, or parts of them.
        assert!(u64::BITS.is_multiple_of(data_pages_per_run_max(size)));
        assert!(run_bytes_max(size) <= RUN_BYTES_MAX);
        assert!(run_bytes_max(size) as u64 / bandwidth_min(size) < PEER_TIMEOUT.as_secs());
        at += 1;
    }
};
const _: () = assert!(RUN_BYTES_MAX < PACKAGE_BYTES_MAX);
const _: () = assert!(BITMAP_PART_BYTES_MAX.is_multiple_of(8));
const _: () = assert!(RUN_BYTES_MAX <= STAGING_STEP_BYTES);
const _: () = assert!(STAGED_AHEAD_BYTES_MAX.is_multiple_of(STAGING_STEP_BYTES));
const _: () = assert!(STAGING_TIMEOUT.as_secs() * 4 < SETUP_TIMEOUT.as_secs());
const _: () = assert!(PACKAGE_BYTES_MAX < u32::MAX as usize);
const _: () = assert!(ALIVE_INTERVAL.as_secs() * 3 < PEER_TIMEOUT.as_secs());
const _: () = assert!(PEER_TIMEOUT.as_secs() < STALL_TIMEOUT.as_secs());
