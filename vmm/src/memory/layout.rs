//! Where guest memory lies: from zero, with a hole below 4 GiB for devices.

use godwit_uffd::page::{Gpa, PageSize};

use super::MemoryError;

/// The start of the hole; memory that does not fit below continues behind it.
pub const HOLE_START: u64 = 3 << 30;

/// The end of the hole.
pub const HOLE_END: u64 = 4 << 30;

/// The smallest guest: the low megabyte, a kernel and a little to work with.
pub const MEMORY_BYTES_MIN: u64 = 4 << 20;

/// The largest guest: page indices have 32 bits, and physical addresses on small hosts have 39.
pub const MEMORY_BYTES_MAX: u64 = 256 << 30;

/// A part of the guest's physical address space that is memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first address.
    pub gpa: Gpa,
    /// Its size in bytes.
    pub bytes: u64,
}

/// The ranges of a guest with `bytes` of memory in pages of `page_size`, in address order.
///
/// # Errors
/// [`MemoryError::Size`] if the size is impossible.
pub fn ranges(bytes: u64, page_size: PageSize) -> Result<Vec<Range>, MemoryError> {
    let possible = (MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&bytes);
    if !possible || page_size.pages_in(bytes).is_none() {
        return Err(MemoryError::Size { bytes, page_size });
    }
    let low = Range { gpa: Gpa(0), bytes: bytes.min(HOLE_START) };
    let mut ranges = vec![low];
    if bytes > HOLE_START {
        ranges.push(Range { gpa: Gpa(HOLE_END), bytes: bytes - HOLE_START });
    }
    Ok(ranges)
}

const _: () = assert!(MEMORY_BYTES_MAX / (PageSize::BASE.bytes() as u64) <= u32::MAX as u64);
const _: () = assert!(PageSize::HUGE.divides(HOLE_START) && PageSize::HUGE.divides(HOLE_END));

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(bytes: u64) -> Result<Vec<Range>, MemoryError> {
        super::ranges(bytes, PageSize::BASE)
    }

    #[test]
    fn small_guest_has_one_range() {
        let ranges = ranges(64 << 20).unwrap();
        assert_eq!(ranges, [Range { gpa: Gpa(0), bytes: 64 << 20 }]);
    }

    #[test]
    fn large_guest_continues_behind_the_hole() {
        let ranges = ranges(5 << 30).unwrap();
        assert_eq!(ranges[0], Range { gpa: Gpa(0), bytes: 3 << 30 });
        assert_eq!(ranges[1], Range { gpa: Gpa(4 << 30), bytes: 2 << 30 });
    }

    #[test]
    fn guest_that_just_fits_below_the_hole_has_one_range() {
        assert_eq!(ranges(HOLE_START).unwrap().len(), 1);
        assert_eq!(ranges(HOLE_START + 4096).unwrap().len(), 2);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for bytes in [0, 1, 4095, MEMORY_BYTES_MIN - 4096, (64 << 20) + 1, u64::MAX] {
            assert!(matches!(ranges(bytes), Err(MemoryError::Size { .. })), "{bytes}");
        }
    }

    #[test]
    fn huge_pages_are_whole_in_each_range() {
        let huge = PageSize::HUGE.bytes() as u64;
        for (bytes, whole) in [(HOLE_START + huge, true), (HOLE_START + 4096, false)] {
            assert_eq!(super::ranges(bytes, PageSize::HUGE).is_ok(), whole, "{bytes}");
        }
    }
}
