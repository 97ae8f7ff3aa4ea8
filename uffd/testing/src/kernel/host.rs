//! What the host has, and what a test may switch on for itself: huge pages, swap, merging.
//!
//! These are settings of the whole machine. Whoever changes one holds a lock on the file that
//! shows it, so that tests of several threads and programs take turns, and the old value comes
//! back when the last world of the thread that changed it is gone.

// UNSAFETY: swapon, swapoff, and a first question to userfaultfd.
#![expect(unsafe_code)]

use std::cell::RefCell;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use godwit_uffd::abi::{API_VERSION, Call};

use super::descriptor::encode;
use super::files::USER_MODE_ONLY;
use super::{PAGE, errno};
use crate::world::NotHere;

const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const SWAPS: &str = "/proc/swaps";
const MERGING: &str = "/sys/kernel/mm/ksm";

/// Bytes of the private swap device.
const SWAP_BYTES: u64 = 64 << 20;

/// A setting that is changed for as long as this lives.
#[derive(Debug)]
pub(super) struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    fn change(path: &Path, value: &str) -> Result<Self, NotHere> {
        let before = read(path)?;
        fs::write(path, value).map_err(|error| not_here(path, &error))?;
        Ok(Self { path: path.to_owned(), before })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        // Nobody is left to tell if this fails; the next user sees a value that is not the old.
        let _ = fs::write(&self.path, self.before.trim());
    }
}

fn read(path: &Path) -> Result<String, NotHere> {
    fs::read_to_string(path).map_err(|error| not_here(path, &error))
}

fn not_here(what: &Path, error: &dyn std::fmt::Display) -> NotHere {
    NotHere(format!("{}: {error}", what.display()))
}

/// A pool of huge pages of this thread's own.
#[derive(Debug)]
pub(super) struct HugePages {
    // In this order: the pool shrinks before others may look at it.
    _size: Setting,
    _turn: File,
}

/// A swap device of this thread's own.
#[derive(Debug)]
pub(super) struct Swap {
    number: String,
    device: CString,
    _turn: File,
}

/// Merging of equal pages, for this thread.
#[derive(Debug)]
pub(super) struct Merging {
    _settings: [Setting; 3],
    _turn: File,
}

/// No huge pages in the background, for this thread.
#[derive(Debug)]
pub(super) struct Background {
    _sleep: Setting,
    _turn: File,
}

thread_local! {
    static BACKGROUND: RefCell<Weak<Background>> = const { RefCell::new(Weak::new()) };
    static HUGE: RefCell<Weak<HugePages>> = const { RefCell::new(Weak::new()) };
    static KSM: RefCell<Weak<Merging>> = const { RefCell::new(Weak::new()) };
}

/// Waits for the turn to change what `path` shows.
fn turn(path: &Path) -> Result<File, NotHere> {
    let file = File::open(path).map_err(|error| not_here(path, &error))?;
    file.lock().map_err(|error| not_here(path, &error))?;
    Ok(file)
}

/// A share in this thread's setting, made by `new` if it has none.
fn shared<T>(
    held: &'static std::thread::LocalKey<RefCell<Weak<T>>>,
    new: impl FnOnce() -> Result<T, NotHere>,
) -> Result<Rc<T>, NotHere> {
    if let Some(mine) = held.with_borrow(Weak::upgrade) {
        return Ok(mine);
    }
    let mine = Rc::new(new()?);
    held.set(Rc::downgrade(&mine));
    Ok(mine)
}

/// At least `pages` free huge pages. The first world of a thread that asks sets the pool's size
/// to just that, so that a test can use it up.
pub(super) fn huge_pages(pages: u32) -> Result<Rc<HugePages>, NotHere> {
    let folder = Path::new(HUGE_PAGES);
    let held = shared(&HUGE, || {
        let turn = turn(&folder.join("nr_hugepages"))?;
        let count = |name: &str| -> Result<u64, NotHere> {
            let path = folder.join(name);
            read(&path)?.trim().parse().map_err(|error| not_here(&path, &error))
        };
        let used = count("nr_hugepages")? - count("free_hugepages")? + count("resv_hugepages")?;
        let path = folder.join("nr_hugepages");
        let size = Setting::change(&path, &(used + u64::from(pages)).to_string())?;
        Ok(HugePages { _size: size, _turn: turn })
    })?;
    let free: u32 = read(&folder.join("free_hugepages"))?.trim().parse().unwrap_or(0);
    if free < pages {
        return Err(NotHere(format!("{free} free huge pages of {pages}")));
    }
    Ok(held)
}

/// Merging of equal pages within some tens of milliseconds.
pub(super) fn merging() -> Result<Rc<Merging>, NotHere> {
    shared(&KSM, || {
        let path = |name: &str| Path::new(MERGING).join(name);
        let turn = turn(&path("run"))?;
        let settings = [
            Setting::change(&path("sleep_millisecs"), "1")?,
            Setting::change(&path("pages_to_scan"), "10000")?,
            Setting::change(&path("run"), "1")?,
        ];
        Ok(Merging { _settings: settings, _turn: turn })
    })
}

/// Keeps the kernel's thread that makes huge pages in the background asleep, for this thread.
pub(super) fn without_background() -> Result<Rc<Background>, NotHere> {
    shared(&BACKGROUND, || {
        let path = Path::new("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs");
        let turn = turn(path)?;
        Ok(Background { _sleep: Setting::change(path, &u32::MAX.to_string())?, _turn: turn })
    })
}

/// Whether transparent huge pages may be had by advice, and whether they come without it.
pub(super) fn transparent() -> Result<bool, NotHere> {
    let path = Path::new("/sys/kernel/mm/transparent_hugepage/enabled");
    let modes = read(path)?;
    match modes.contains("[never]") {
        true => Err(NotHere(format!("{}: {}", path.display(), modes.trim()))),
        false => Ok(modes.contains("[always]")),
    }
}

/// A lock that is held while no swap device may come: the pages of a test stay where they are.
#[derive(Debug)]
pub(super) struct NoSwap(Option<File>);

thread_local! {
    static WORLDS: RefCell<u32> = const { RefCell::new(0) };
}

impl NoSwap {
    /// Waits until no other thread or program has a swap device for a test.
    pub(super) fn new() -> Self {
        WORLDS.with_borrow_mut(|count| *count += 1);
        let file = File::open(SWAPS).ok();
        Self(file.filter(|file| file.lock_shared().is_ok()))
    }

    /// Gives the lock back for a swap device of our own. The device's lock excludes all others,
    /// so the world needs this one no more.
    pub(super) fn swap(&mut self) -> Result<Swap, NotHere> {
        if WORLDS.with_borrow(|count| *count) > 1 {
            return Err(NotHere("swap with a second world of this thread".to_owned()));
        }
        self.0 = None;
        Swap::new()
    }
}

impl Drop for NoSwap {
    fn drop(&mut self) {
        WORLDS.with_borrow_mut(|count| *count -= 1);
    }
}

impl Swap {
    fn new() -> Result<Self, NotHere> {
        let turn = turn(Path::new(SWAPS))?;
        // Reading makes a device and says its number.
        let number = read(Path::new("/sys/class/zram-control/hot_add"))?.trim().to_owned();
        let path = PathBuf::from(format!("/dev/zram{number}"));
        let device = CString::new(path.to_string_lossy().as_bytes()).expect("no zero in a name");
        // From here on the device is removed however this ends.
        let swap = Self { number, device, _turn: turn };
        let size = PathBuf::from(format!("/sys/block/zram{}/disksize", swap.number));
        fs::write(&size, SWAP_BYTES.to_string()).map_err(|error| not_here(&size, &error))?;
        let written = wait_for(&path).and_then(|file| file.write_all_at(&header(), 0));
        written.map_err(|error| not_here(&path, &error))?;
        // SAFETY: the name ends in a zero and lives.
        if unsafe { libc::swapon(swap.device.as_ptr(), 0) } != 0 {
            return Err(not_here(&path, &std::io::Error::last_os_error()));
        }
        Ok(swap)
    }
}

/// The device's node appears a moment after the device.
fn wait_for(path: &Path) -> std::io::Result<File> {
    let since = Instant::now();
    loop {
        match File::options().write(true).open(path) {
            Err(error) if since.elapsed() > Duration::from_secs(5) => return Err(error),
            Err(_) => std::thread::yield_now(),
            Ok(file) => return Ok(file),
        }
    }
}

/// The first page of a swap device: the version and the last page after a kilobyte for a boot
/// sector, and the signature at the end.
fn header() -> Vec<u8> {
    const SIGNATURE: &[u8] = b"SWAPSPACE2";
    const FACTS: usize = 1024;
    let mut page = vec![0; usize::try_from(PAGE).expect("4096")];
    let last = u32::try_from(SWAP_BYTES / PAGE - 1).expect("a small device");
    page[FACTS..FACTS + 4].copy_from_slice(&1_u32.to_ne_bytes());
    page[FACTS + 4..FACTS + 8].copy_from_slice(&last.to_ne_bytes());
    let end = page.len();
    page[end - SIGNATURE.len()..].copy_from_slice(SIGNATURE);
    page
}

impl Drop for Swap {
    fn drop(&mut self) {
        // A device that was not switched on says so, and is removed all the same.
        // SAFETY: the name ends in a zero and lives.
        unsafe { libc::swapoff(self.device.as_ptr()) };
        let reset = format!("/sys/block/zram{}/reset", self.number);
        let _ = fs::write(reset, "1");
        let _ = fs::write("/sys/class/zram-control/hot_remove", &self.number);
    }
}

/// Whether processes without privilege may not have userfaultfds that handle the kernel's faults.
pub(super) fn unprivileged_is_refused() -> Result<(), NotHere> {
    let path = Path::new("/proc/sys/vm/unprivileged_userfaultfd");
    match read(path)?.trim() {
        "0" => Ok(()),
        other => Err(NotHere(format!("{} is {other}", path.display()))),
    }
}

/// The features that the kernel offers, asked by the driver.
pub(super) fn offered_features() -> Result<u64, NotHere> {
    let call = Call::Api { api: API_VERSION, features: 0 };
    let (number, mut structure) = encode(call);
    // SAFETY: the first call takes a number; the structure of the second lives through it and
    // has the size that the kernel expects.
    unsafe {
        let made = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY);
        let Ok(made @ 0..) = i32::try_from(made) else {
            return Err(NotHere(format!("userfaultfd: {:?}", errno())));
        };
        let made = OwnedFd::from_raw_fd(made);
        match libc::ioctl(made.as_raw_fd(), number, structure.as_mut_ptr()) {
            0 => Ok(structure[1]),
            _ => Err(NotHere(format!("UFFDIO_API: {:?}", errno()))),
        }
    }
}
