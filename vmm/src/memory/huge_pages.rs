//! The host's pool of huge pages.

use std::path::Path;

use godwit_uffd::page::PageSize;

use super::MemoryError;

/// Where the kernel tells about the pool of 2 MiB pages.
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// The pool of 2 MiB pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pool {
    /// Pages in it: vm.nr_hugepages.
    total: u64,
    /// Pages that can be had: those that nobody has and nobody has reserved, and those that the
    /// kernel may add to the pool when they are asked for.
    free: u64,
}

impl Pool {
    /// What the files in `folder` say; `None` if there is no pool.
    fn read(folder: &Path) -> Option<Pool> {
        let number = |name| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok();
        let or_none = |name| number(name).unwrap_or(0u64);
        let (total, free) = (number("nr_hugepages")?, number("free_hugepages")?);
        let more = or_none("nr_overcommit_hugepages").saturating_sub(or_none("surplus_hugepages"));
        let free = (free + more).saturating_sub(or_none("resv_hugepages"));
        Some(Pool { total, free })
    }
}

/// Refuses a guest of `bytes` of huge pages that this host does not have. Mapping the memory
/// reserves its pages, so a guest that is let in has them.
///
/// # Errors
/// [`MemoryError::HugePages`], [`MemoryError::NoHugePages`].
pub(super) fn check(bytes: u64) -> Result<(), MemoryError> {
    check_in(Pool::read(Path::new(POOL)), bytes)
}

fn check_in(pool: Option<Pool>, bytes: u64) -> Result<(), MemoryError> {
    let pool = pool.ok_or(MemoryError::NoHugePages)?;
    if wanted(bytes) > pool.free { Err(too_few(pool, bytes)) } else { Ok(()) }
}

/// The same of a guest whose memory the kernel has just refused.
pub(super) fn lacking(bytes: u64) -> MemoryError {
    Pool::read(Path::new(POOL)).map_or(MemoryError::NoHugePages, |pool| too_few(pool, bytes))
}

fn wanted(bytes: u64) -> u64 {
    bytes.div_ceil(PageSize::HUGE.bytes() as u64)
}

fn too_few(pool: Pool, bytes: u64) -> MemoryError {
    let (wanted, free) = (wanted(bytes), pool.free);
    MemoryError::HugePages { wanted, free, pool: pool.total + wanted.saturating_sub(free) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(files: &[(&str, u64)]) -> Option<Pool> {
        let folder = tempfile::tempdir().unwrap();
        for (name, number) in files {
            std::fs::write(folder.path().join(name), format!("{number}\n")).unwrap();
        }
        Pool::read(folder.path())
    }

    #[test]
    fn reserved_pages_are_not_free_and_those_that_may_be_added_are() {
        let files = [("nr_hugepages", 52), ("free_hugepages", 52), ("resv_hugepages", 50)];
        assert_eq!(pool(&files), Some(Pool { total: 52, free: 2 }));
        let more = [("nr_overcommit_hugepages", 10), ("surplus_hugepages", 4)];
        let free = pool(&[&files[..], &more].concat()).map(|pool| pool.free);
        assert_eq!(free, Some(8));
        assert_eq!(pool(&[]), None);
    }

    #[test]
    fn a_guest_that_does_not_fit_is_told_how_large_the_pool_must_be() {
        let pool = Some(Pool { total: 52, free: 2 });
        check_in(pool, 4 << 20).unwrap();
        let error = check_in(pool, 64 << 20).unwrap_err().to_string();
        assert!(error.contains("32 huge pages") && error.contains("2 are free"), "{error}");
        assert!(error.contains("vm.nr_hugepages=82"), "{error}");
        let error = check_in(None, 4 << 20).unwrap_err();
        assert!(matches!(error, MemoryError::NoHugePages), "{error}");
    }
}
