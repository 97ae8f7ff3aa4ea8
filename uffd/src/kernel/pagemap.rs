//! The calling process's pagemap, which tells the pages that were written while they were
//! asynchronously protected, and protects them again in the same step: PAGEMAP_SCAN (Linux 6.7).

// UNSAFETY: an ioctl that fills memory of ours.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::ioctl::last_errno;
use crate::abi::Errno;
use crate::page::{Hva, PageSize};
use crate::uffd::Range;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Argument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_max: u64,
    pages_max: u64,
    inverted: u64,
    wanted: u64,
    any_of: u64,
    returned: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

impl Region {
    /// A call for each would cost more than the faults on the pages between them.
    fn is_near(&self, next: &Region) -> bool {
        next.start - self.end <= NEAR_BYTES
    }
}

/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: u64 = 3 << 30 | (size_of::<Argument>() as u64) << 16 | (b'f' as u64) << 8 | 16;

const _: () = assert!(PAGEMAP_SCAN == 0xC060_6610);
const _: () = assert!(size_of::<Region>() == 24);

/// PM_SCAN_WP_MATCHING: protect what is reported.
const PROTECT: u64 = 1;
/// PM_SCAN_CHECK_WPASYNC: memory that is not asynchronously protected is an error.
const CHECK: u64 = 2;
/// PAGE_IS_WRITTEN: the page is not protected.
const WRITTEN: u64 = 2;

/// Runs of pages that one call tells at most; the kernel keeps as many words for them meanwhile.
const REGIONS_MAX: usize = 512;

/// What may lie between two runs that are taken by one call: four pages.
const NEAR_BYTES: u64 = 4 * PageSize::BASE.bytes() as u64;

/// `/proc/self/pagemap`.
#[derive(Debug)]
pub(super) struct Pagemap(File);

impl Pagemap {
    pub fn open() -> io::Result<Pagemap> {
        File::open("/proc/self/pagemap").map(Pagemap)
    }

    /// Calls `each` for the pages of a range that were written since they were protected, and
    /// protects them. After an error it is called for all pages that are left: some of them may be
    /// protected again, and nothing else remembers which.
    ///
    /// A call that protects makes KVM forget its own mappings of the whole range that it is given,
    /// so that a guest faults on each page of it again, written or not. (Measured: a guest that
    /// reads 256 MiB over and over, with a call every 20 ms, was ten times slower.) So a look that
    /// changes nothing finds the written pages, and only they are protected.
    pub fn take_written(&self, range: Range, each: &mut dyn FnMut(Range)) -> Result<(), Errno> {
        let mut regions = [Region::default(); REGIONS_MAX];
        let mut rest = range;
        while rest.bytes > 0 {
            let looked = self.scan(rest, CHECK, &mut regions);
            let (found, stopped) = looked.inspect_err(|_| each(rest))?;
            for near in found.chunk_by(Region::is_near) {
                let (start, end) = (near[0].start, near[near.len() - 1].end);
                let left = rest.behind(start - rest.start.0);
                self.take_part(left.first(end - start), each)
                    .inspect_err(|_| each(left.behind(end - start)))?;
            }
            rest = rest.behind(stopped.0 - rest.start.0);
        }
        Ok(())
    }

    /// Takes all written pages of a range, by calls that protect.
    fn take_part(&self, range: Range, each: &mut dyn FnMut(Range)) -> Result<(), Errno> {
        let mut regions = [Region::default(); REGIONS_MAX];
        let mut rest = range;
        while rest.bytes > 0 {
            let scanned = self.scan(rest, PROTECT | CHECK, &mut regions);
            let (found, stopped) = scanned.inspect_err(|_| each(rest))?;
            for run in found {
                each(Range { start: Hva(run.start), bytes: run.end - run.start });
            }
            rest = rest.behind(stopped.0 - rest.start.0);
        }
        Ok(())
    }

    /// Finds the runs of written pages at the start of a range, and where it stopped.
    fn scan<'a>(
        &self,
        range: Range,
        flags: u64,
        regions: &'a mut [Region],
    ) -> Result<(&'a [Region], Hva), Errno> {
        let (start, end) = (range.start.0, range.start.0 + range.bytes);
        let mut argument = Argument {
            size: size_of::<Argument>() as u64,
            flags,
            start,
            end,
            regions: regions.as_mut_ptr() as u64,
            regions_max: regions.len() as u64,
            wanted: WRITTEN,
            returned: WRITTEN,
            ..Argument::default()
        };
        // SAFETY: the structure and the room for regions that it names live through the call. The
        // call changes protections of registered memory, and no bytes.
        let count = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
        let count = usize::try_from(count).map_err(|_| last_errno())?;
        let stopped = argument.walk_end;
        // A scan that gets nowhere would be repeated for ever.
        if stopped <= start || stopped > end || count > regions.len() {
            return Err(Errno(libc::EIO));
        }
        Ok((&regions[..count], Hva(stopped)))
    }
}
