//! Devices that wait for pages.

use std::time::{Duration, Instant};

use godwit_uffd::guest::GuestUffd;
use godwit_uffd::kernel::{KernelUffd, doors};
use godwit_uffd::page::{PageIndex, PageRun};
use godwit_uffd::{Event, Wake};
use rustix::event::{PollFd, PollFlags, poll};
use virtio_bindings::virtio_blk as blk;

use super::driver::{DATA, Driver, deadline, memory, until};
use super::{disk, file};

const PAGE: u64 = 4096;

fn have_userfaultfd() -> bool {
    let doors = doors();
    let have = doors.device.is_ok() || doors.system_call.is_ok();
    if !have {
        println!("skipped: no userfaultfd is to be had");
    }
    have
}

/// A disk whose driver has asked for a write from a page that is not there.
struct Waiting {
    driver: Driver,
    file: tempfile::NamedTempFile,
    pages: Option<GuestUffd<KernelUffd>>,
}

impl Waiting {
    fn create() -> Waiting {
        let (file, memory) = (file(), memory());
        let pages = memory.register_missing().unwrap();
        let low = PageRun { first: PageIndex(0), count: u32::try_from(DATA / PAGE).unwrap() };
        assert_eq!(pages.zero(low, Wake::Now).unwrap().pages_done(low), low.count);
        let mut driver = Driver::create(&disk(file.path(), false), memory);
        driver.device.run();
        driver.set_up(u64::MAX);
        driver.describe_disk(blk::VIRTIO_BLK_T_OUT, 1, 512);
        driver.ask(0);
        let waiting = Waiting { driver, file, pages: Some(pages) };
        assert_eq!(waiting.next_fault(), PageIndex(u32::try_from(DATA / PAGE).unwrap()));
        waiting
    }

    fn pages(&self) -> &GuestUffd<KernelUffd> {
        self.pages.as_ref().unwrap()
    }

    fn next_fault(&self) -> PageIndex {
        let mut fds = [PollFd::new(self.pages(), PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        let mut events = Vec::new();
        self.pages().read_events(&mut events).unwrap();
        match events.as_slice() {
            [Event::Fault(fault)] => self.pages().space().page_at(fault.address).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn disk_is_untouched(&self) -> bool {
        std::fs::read(self.file.path()).unwrap()[..1024] == [[0; 512], [1; 512]].concat()
    }
}

#[test]
fn a_device_that_waits_for_a_page_is_late_for_a_pause_and_ends_its_request() {
    if !have_userfaultfd() {
        return;
    }
    let waiting = Waiting::create();
    let driver = &waiting.driver;
    driver.device.park();
    assert!(!driver.device.wait_idle(Instant::now() + Duration::from_millis(20)));
    assert!(driver.device.is_busy());
    let page = PageIndex(u32::try_from(DATA / PAGE).unwrap());
    let run = PageRun::one(page);
    let filled = waiting.pages().copy(run, &[0xbb; 4096], Wake::Now).unwrap();
    assert_eq!(filled.pages_done(run), 1);
    assert!(driver.device.wait_idle(deadline()));
    assert_eq!((driver.used(), driver.disk_status()), (1, blk::VIRTIO_BLK_S_OK));
    assert_eq!(std::fs::read(waiting.file.path()).unwrap()[512..1024], [0xbb; 512]);
}

#[test]
fn bytes_of_a_guest_that_is_shut_down_never_reach_the_disk() {
    if !have_userfaultfd() {
        return;
    }
    for revoke in [false, true] {
        let mut waiting = Waiting::create();
        waiting.driver.device.dismiss();
        waiting.driver.device.join(Instant::now());
        // The page reads as zeros from here on.
        if revoke {
            waiting.driver.memory.revoke();
            waiting.pages = None;
        } else {
            waiting.pages().unregister_all().unwrap();
        }
        until(|| !waiting.driver.device.is_busy());
        assert!(waiting.disk_is_untouched());
        assert_eq!(waiting.driver.used(), 0);
    }
}
