//! Files of memory, worked on by the driver through their descriptors.

// UNSAFETY: memfds, and a short mapping where hugetlb has no other way in.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use godwit_uffd::abi::{API_VERSION, Call};

use super::descriptor::encode;
use super::{PAGE, errno};
use crate::world::FileKind;

/// Bytes of a huge page.
pub(super) const HUGE: u64 = 2 << 20;
/// `log2` of a huge page in the upper bits of the flags of memfd_create.
const HUGE_2MB: u32 = 21 << 26;

/// A file of the world.
#[derive(Debug)]
pub(super) struct MemoryFile {
    file: File,
    kind: FileKind,
}

impl MemoryFile {
    /// A file of holes.
    pub(super) fn new(kind: FileKind, pages: u64) -> io::Result<Self> {
        let file = match kind {
            FileKind::Shmem => memfd(0)?,
            FileKind::Hugetlb => memfd(libc::MFD_HUGETLB | HUGE_2MB)?,
            FileKind::Regular => regular()?,
        };
        file.set_len(pages * PAGE)?;
        Ok(Self { file, kind })
    }

    /// The descriptor, which all agents share.
    pub(super) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// A further descriptor that is open for reading only.
    pub(super) fn read_only(&self) -> io::Result<File> {
        File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Writes bytes at an offset of a memfd of shmem.
    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    /// Reads bytes at an offset.
    pub(super) fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    /// Stores a byte at the start of a page.
    pub(super) fn store(&self, page: u64, byte: u8) -> io::Result<()> {
        match self.kind {
            FileKind::Shmem | FileKind::Regular => self.file.write_all_at(&[byte], page * PAGE),
            // hugetlbfs has no write.
            FileKind::Hugetlb => with_huge_page(&self.file, page, |address| {
                // SAFETY: the address is in the mapping that lives now, and a byte of a file.
                unsafe { address.write_volatile(byte) };
            }),
        }
    }

    /// The byte at the start of a page, if the page is in the page cache or swapped out of it.
    pub(super) fn load(&self, page: u64) -> io::Result<Option<u8>> {
        let cached = match self.kind {
            FileKind::Shmem => self.has_data(page)?,
            FileKind::Hugetlb => huge_page_is_cached(&self.file, page)?,
            FileKind::Regular => self.is_cached(page)?,
        };
        if !cached {
            return Ok(None);
        }
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, page * PAGE)?;
        Ok(Some(byte[0]))
    }

    /// Whether a page of memory that is its own store is there.
    fn has_data(&self, page: u64) -> io::Result<bool> {
        let at = i64::try_from(page * PAGE).expect("a small file");
        // SAFETY: no memory is involved.
        let data = unsafe { libc::lseek(self.file.as_raw_fd(), at, libc::SEEK_DATA) };
        if data >= 0 {
            return Ok(data == at);
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(false),
            error => Err(error),
        }
    }

    /// Whether the page cache of a file with a store of its own has the page.
    fn is_cached(&self, page: u64) -> io::Result<bool> {
        let range = [page * PAGE, PAGE];
        let mut counts = [0_u64; 5];
        let (fd, range, counts_at) = (self.file.as_raw_fd(), range.as_ptr(), counts.as_mut_ptr());
        // SAFETY: both structures have the size that the kernel expects and live.
        match unsafe { libc::syscall(CACHESTAT, fd, range, counts_at, 0) } {
            0 => Ok(counts[0] != 0),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Sets the size.
    pub(super) fn truncate(&self, pages: u64) -> io::Result<()> {
        self.file.set_len(pages * PAGE)
    }

    /// Punches a hole of one page (of hugetlb: of one huge page).
    pub(super) fn punch(&self, page: u64) -> io::Result<()> {
        let bytes = if self.kind == FileKind::Hugetlb { HUGE } else { PAGE };
        let [at, bytes] = [page * PAGE, bytes].map(|number| number.cast_signed());
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: no memory is involved.
        match unsafe { libc::fallocate(self.file.as_raw_fd(), mode, at, bytes) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Seals against writes through mappings that are made from now on.
    pub(super) fn seal(&self) -> io::Result<()> {
        let seals = libc::F_SEAL_FUTURE_WRITE;
        // SAFETY: no memory is involved.
        match unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_ADD_SEALS, seals) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The number of the system call that counts cached pages.
const CACHESTAT: i64 = 451;

fn memfd(flags: u32) -> io::Result<File> {
    let flags = flags | libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a literal with its zero.
    let made = unsafe { libc::memfd_create(c"world".as_ptr(), flags) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nothing else owns it.
    Ok(unsafe { File::from_raw_fd(made) })
}

/// A file without a name, in the first of the usual places that is on a disk.
fn regular() -> io::Result<File> {
    let places = [std::env::temp_dir(), PathBuf::from("/var/tmp"), std::env::current_dir()?];
    for place in &places {
        let file = File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).open(place);
        if let Ok(file) = file
            && !is_tmpfs(&file)
        {
            return Ok(file);
        }
    }
    Err(io::Error::other(format!("no file system of files in {places:?}")))
}

fn is_tmpfs(file: &File) -> bool {
    // SAFETY: all zero is a valid value, which the kernel overwrites.
    let mut facts: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the structure lives and has the size that the kernel expects.
    let got = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut facts) };
    got != 0 || facts.f_type == libc::TMPFS_MAGIC
}

/// Whether the page cache has the huge page that `page` is in. No call tells directly; CONTINUE
/// in a mapping of our own does, and changes nothing.
fn huge_page_is_cached(file: &File, page: u64) -> io::Result<bool> {
    let flags = libc::O_CLOEXEC | USER_MODE_ONLY;
    // SAFETY: no memory is involved.
    let made = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    let made = i32::try_from(made).expect("a descriptor");
    // SAFETY: the kernel has just made it, and nothing else owns it.
    let context = unsafe { OwnedFd::from_raw_fd(made) };
    let mut found = false;
    with_huge_page(file, page, |address| {
        let start = address as u64 / HUGE * HUGE;
        let calls = [
            Call::Api { api: API_VERSION, features: 0 },
            Call::Register { start, len: HUGE, mode: MODE_MINOR },
            Call::Continue { start, len: HUGE, mode: 0 },
        ];
        found = calls.into_iter().all(|call| {
            let (number, mut structure) = encode(call);
            // SAFETY: the structure lives and is larger than each of these calls uses.
            unsafe { libc::ioctl(context.as_raw_fd(), number, structure.as_mut_ptr()) == 0 }
        });
    })?;
    Ok(found)
}

/// The flag of a userfaultfd that needs no privilege.
pub(super) const USER_MODE_ONLY: i32 = 1;
/// REGISTER's mode bit for pages that the page cache has.
const MODE_MINOR: u64 = 4;

/// Maps the huge page that `page` is in, for as long as `work` takes.
fn with_huge_page(file: &File, page: u64, work: impl FnOnce(*mut u8)) -> io::Result<()> {
    let bytes = usize::try_from(HUGE).expect("2 MiB");
    let offset = page * PAGE / HUGE * HUGE;
    let within = usize::try_from(page * PAGE - offset).expect("less than 2 MiB");
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
    let (fd, at) = (file.as_raw_fd(), offset.cast_signed());
    // SAFETY: a new mapping wherever there is room, given back below.
    unsafe {
        let start = libc::mmap(std::ptr::null_mut(), bytes, access, flags, fd, at);
        if start == libc::MAP_FAILED {
            return Err(io::Error::from_raw_os_error(errno().0));
        }
        work(start.cast::<u8>().add(within));
        libc::munmap(start, bytes);
    }
    Ok(())
}
