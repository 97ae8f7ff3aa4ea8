//! Page tables as a privileged observer sees them: pagemap and PAGEMAP_SCAN.

// UNSAFETY: the PAGEMAP_SCAN ioctl.
#![expect(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use godwit_uffd::abi::Errno;

use super::{PAGE, errno};
use crate::world::{Entry, Scan, ScanRegion};

/// Bits of a pagemap entry.
mod bit {
    pub(super) const FRAME: u64 = (1 << 55) - 1;
    pub(super) const EXCLUSIVE: u64 = 1 << 56;
    pub(super) const PROTECTED: u64 = 1 << 57;
    pub(super) const GUARD: u64 = 1 << 58;
    pub(super) const FILE: u64 = 1 << 61;
    pub(super) const SWAP: u64 = 1 << 62;
    pub(super) const PRESENT: u64 = 1 << 63;
}

/// Categories of a scan.
mod category {
    pub(super) const ZERO: u64 = 0x20;
    pub(super) const HUGE: u64 = 0x40;
    pub(super) const GUARD: u64 = 0x100;
    /// All that any kernel knows but the guard, which is new.
    pub(super) const OLD: u64 = 0xFF;
}

/// The type of a swap entry, in the lowest bits of the frame number, that markers have: the last.
const MARKER: u64 = 31;
/// The types above all swap devices up to the markers are pages on their way elsewhere.
const FIRST_SPECIAL: u64 = 24;
/// Bits of a swap entry's type.
const TYPE_BITS: u32 = 5;
/// Bits of a marker behind its type.
const MARKER_PROTECT: u64 = 1;
const MARKER_POISON: u64 = 2;

/// `struct pm_scan_arg`.
#[derive(Debug, Default)]
#[repr(C)]
struct Argument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_count: u64,
    max_pages: u64,
    inverted: u64,
    mask: u64,
    any_of: u64,
    returned: u64,
}

const PAGEMAP_SCAN: u64 = (3 << 30) | ((size_of::<Argument>() as u64) << 16) | (0x66 << 8) | 16;
const _: () = assert!(PAGEMAP_SCAN == 0xC060_6610);

/// The raw entries of a range of pages.
pub(super) fn raw(pagemap: &File, start: u64, pages: usize) -> Vec<u64> {
    let mut bytes = vec![0; pages * 8];
    let got = pagemap.read_at(&mut bytes, start / PAGE * 8).expect("pagemap");
    assert_eq!(got, bytes.len(), "pagemap ends at {start:#x}");
    bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("8"))).collect()
}

/// The entries of a range of pages, looked at without touching them.
pub(super) fn entries(pagemap: &File, start: u64, pages: usize) -> Vec<Entry> {
    let mut words = raw(pagemap, start, pages);
    while words.iter().any(|word| on_its_way(*word)) {
        std::thread::yield_now();
        words = raw(pagemap, start, pages);
    }
    let zero = zero_frame();
    // Only a scan tells a huge page from a small one, and knows the huge zero page, which pagemap
    // takes for a page of a file.
    let mut huge = vec![0; pages];
    if words.iter().any(|word| word & bit::PRESENT != 0 && word & bit::FRAME != zero) {
        let end = start + pages as u64 * PAGE;
        let all = Scan { start, end, flags: 0, mask: 0 };
        for region in scan(pagemap, all).expect("a scan of mapped memory") {
            let first = usize::try_from((region.start - start) / PAGE).expect("a short range");
            let last = usize::try_from((region.end - start) / PAGE).expect("a short range");
            huge[first..last].fill(region.categories);
        }
    }
    words.iter().zip(huge).map(|(word, categories)| decode(*word, categories, zero)).collect()
}

/// Whether a page is being migrated; it comes back by itself.
fn on_its_way(word: u64) -> bool {
    let kind = word & ((1 << TYPE_BITS) - 1);
    let swap = word & bit::SWAP != 0 && word & bit::PRESENT == 0;
    swap && (FIRST_SPECIAL..MARKER).contains(&kind)
}

fn decode(word: u64, categories: u64, zero: u64) -> Entry {
    let protected = word & bit::PROTECTED != 0;
    if word & bit::PRESENT != 0 {
        if word & bit::FRAME == zero || categories & category::ZERO != 0 {
            return Entry::Zero { protected };
        }
        if word & bit::FILE != 0 {
            return Entry::File { protected };
        }
        let exclusive = word & bit::EXCLUSIVE != 0;
        return Entry::Anonymous { exclusive, protected, huge: categories & category::HUGE != 0 };
    }
    if word & bit::GUARD != 0 {
        return Entry::GuardMarker;
    }
    if word & bit::SWAP == 0 {
        // Hugetlb shows its markers without the bit of swap.
        return if protected { Entry::ProtectMarker } else { Entry::None };
    }
    let frame = word & bit::FRAME;
    if frame & ((1 << TYPE_BITS) - 1) != MARKER {
        return Entry::Swap { protected };
    }
    match frame >> TYPE_BITS {
        MARKER_PROTECT => Entry::ProtectMarker,
        MARKER_POISON => Entry::PoisonMarker,
        other => panic!("a marker with the bits {other:#x}"),
    }
}

/// The frame of the shared zero page.
fn zero_frame() -> u64 {
    static FRAME: OnceLock<u64> = OnceLock::new();
    *FRAME.get_or_init(|| {
        let bytes = usize::try_from(PAGE).expect("4096");
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping wherever there is room; it is only read, then given back.
        let word = unsafe {
            let page = libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, flags, -1, 0);
            assert!(page != libc::MAP_FAILED, "mmap: {:?}", errno());
            page.cast::<u8>().read_volatile();
            let pagemap = File::open("/proc/self/pagemap").expect("pagemap");
            let word = raw(&pagemap, page as u64, 1)[0];
            libc::munmap(page, bytes);
            word
        };
        let frame = word & bit::FRAME;
        assert_ne!(frame, 0, "pagemap shows frames to the privileged only, and this is not");
        frame
    })
}

/// PAGEMAP_SCAN with all categories that the kernel knows.
pub(super) fn scan(pagemap: &File, scan: Scan) -> Result<Vec<ScanRegion>, Errno> {
    match scan_for(pagemap, scan, category::OLD | category::GUARD) {
        Err(Errno(libc::EINVAL)) => scan_for(pagemap, scan, category::OLD),
        other => other,
    }
}

fn scan_for(pagemap: &File, scan: Scan, returned: u64) -> Result<Vec<ScanRegion>, Errno> {
    let room = usize::try_from(scan.end.saturating_sub(scan.start) / PAGE).expect("a short range");
    let mut regions: Vec<[u64; 3]> = vec![[0; 3]; room.max(1)];
    let mut argument = Argument {
        size: size_of::<Argument>() as u64,
        flags: scan.flags,
        start: scan.start,
        end: scan.end,
        regions: regions.as_mut_ptr() as u64,
        regions_count: regions.len() as u64,
        mask: scan.mask,
        returned,
        ..Argument::default()
    };
    // SAFETY: the structure and the room for regions that it names live through the call.
    let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
    let count = usize::try_from(count).map_err(|_| errno())?;
    let found = regions[..count].iter();
    Ok(found.map(|&[start, end, categories]| ScanRegion { start, end, categories }).collect())
}
