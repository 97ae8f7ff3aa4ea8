//! Poison: pages that cannot be read any more, because the hardware lost them or because they were
//! lost before the guest came here.
//!
//! The kernel tells a thread that touches one with SIGBUS. Two of ours may: the one that copies the
//! guest away, which then leaves the page out, and a vCPU thread inside KVM_RUN, which then decides
//! what the guest gets to know. Everybody else dies of it, as they would without the handler here.
//! KVM says BUS_MCEERR_AR; so does the kernel for a plain load, but only if it was built with
//! CONFIG_MEMORY_FAILURE, and BUS_ADRERR otherwise.
//!
//! Reading by a system call that returns an error (process_vm_readv, /proc/self/mem) is no way out:
//! it costs twice to four times as much, and the kernel itself dies of an error of the hardware
//! that nobody has met before. A plain load does not.

// UNSAFETY: a signal handler, which changes where a thread goes on, and a copy in assembly.
#![expect(unsafe_code)]

use std::arch::naked_asm;
use std::cell::Cell;
use std::io;
use std::mem::{MaybeUninit, transmute};
use std::ptr::{null_mut, with_exposed_provenance};
use std::sync::OnceLock;

use godwit_migration::provider::GuestSlice;
use godwit_uffd::page::{Gpa, Hva, PageSize};
use libc::{c_int, c_void, sigaction, siginfo_t, ucontext_t};

use super::{GuestMemory, Region, advice};

/// Copies `bytes` bytes and returns how many are left: none, or those from an unreadable page on.
///
/// The first instruction is the copy, so that the handler knows its address.
///
/// # Safety
/// Both ranges are mapped, and nobody else uses the one that is written.
#[unsafe(naked)]
unsafe extern "sysv64" fn copy(to: *mut u8, from: *const u8, _: usize, bytes: usize) -> usize {
    // `rep movsb`, whose operands are where the calling convention puts the arguments; it also
    // says that the direction is upwards. If the handler ends the copy, rcx has what is left.
    naked_asm!(".byte 0xf3, 0xa4", "mov rax, rcx", "ret")
}

const PAGE: u64 = PageSize::BASE.bytes() as u64;

/// The start of the page of an address, or of an offset from the start of a page.
fn page_start(address: u64) -> u64 {
    address - address % PAGE
}

/// Bytes of the copy's first instruction.
const COPY_INSTRUCTION_BYTES: i64 = 2;

/// Copies guest memory to `out`, which is as long, up to the first page that cannot be read.
/// Returns how many bytes were copied. Waits for a missing page.
pub fn copy_readable(from: &GuestSlice<'_>, out: &mut [u8]) -> usize {
    assert_eq!(from.len(), out.len());
    let source = from.ptr_guard();
    // SAFETY: the slice is guest memory, which is mapped and which nobody has references to; `out`
    // is ours alone, and as long.
    let left = unsafe { copy(out.as_mut_ptr(), source.as_ptr(), 0, out.len()) };
    out.len() - left
}

thread_local! {
    /// What this thread does about poison.
    static TOUCH: Cell<Touch> = const { Cell::new(Touch::Fatal) };
}

/// What a thread does about poison outside of [`copy`].
#[derive(Clone, Copy)]
enum Touch {
    /// It dies.
    Fatal,
    /// It is in KVM_RUN and wants to know.
    Watched,
    /// It has touched this address in KVM_RUN.
    At(Hva),
}

/// Calls `run`, which enters the guest and touches no guest memory otherwise, and returns what it
/// does with the address of the lost page that the guest touched, if it did.
pub(crate) fn watch_touch<T>(run: impl FnOnce() -> T) -> (T, Option<Hva>) {
    TOUCH.set(Touch::Watched);
    let result = run();
    match TOUCH.replace(Touch::Fatal) {
        Touch::At(address) => (result, Some(address)),
        Touch::Fatal | Touch::Watched => (result, None),
    }
}

impl GuestMemory {
    /// Where the guest sees the page at `hva`, an address of this process.
    pub(crate) fn page_at(&self, hva: Hva) -> Option<Gpa> {
        self.regions().iter().find_map(|region| {
            let offset = hva.0.checked_sub(region.hva.0).filter(|&at| at < region.bytes)?;
            Some(Gpa(region.gpa.0 + page_start(offset)))
        })
    }

    /// The page that `gpa` lies in, if it is poisoned. Waits if it is missing.
    pub(crate) fn poisoned_page(&self, gpa: Gpa) -> Option<Gpa> {
        let inside = |region: &&Region| gpa.0.wrapping_sub(region.gpa.0) < region.bytes;
        let region = self.regions().iter().find(inside)?;
        let offset = page_start(gpa.0 - region.gpa.0);
        let read = advice::populate(region, offset, PAGE);
        (read == Err(rustix::io::Errno::HWPOISON)).then_some(Gpa(region.gpa.0 + offset))
    }
}

/// Installs the handler of SIGBUS for the process, once.
///
/// # Errors
/// The kernel's reason.
pub(crate) fn install_poison_handler() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let install = || {
        // The handler reads it, so it is there before.
        let before = action(null_mut())?;
        BEFORE.get_or_init(|| before);
        let mut ours = before;
        ours.sa_sigaction = on_sigbus as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        action(&raw mut ours).map(drop)
    };
    INSTALLED.get_or_init(install).map_err(io::Error::from_raw_os_error)
}

/// Who handled SIGBUS before us.
static BEFORE: OnceLock<sigaction> = OnceLock::new();

/// Sets what SIGBUS does, unless `new` is null, and returns what it did.
fn action(new: *mut sigaction) -> Result<sigaction, i32> {
    let mut old = MaybeUninit::<sigaction>::uninit();
    // SAFETY: `new` is null or an action whose handler is async-signal-safe; `old` has room.
    let result = unsafe { libc::sigaction(libc::SIGBUS, new, old.as_mut_ptr()) };
    match result {
        // SAFETY: the kernel has filled it.
        0 => Ok(unsafe { old.assume_init() }),
        _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
    }
}

/// Runs on the thread that touched the page. Changes its registers or a cell of its own, and
/// allocates nothing.
extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes both to a handler with SA_SIGINFO, and nobody else has them now.
    let (reason, thread) = unsafe { (&*info, &mut *context.cast::<ucontext_t>()) };
    if [libc::BUS_MCEERR_AR, libc::BUS_ADRERR].contains(&reason.si_code) {
        // SAFETY: a SIGBUS with these codes has an address.
        let address = unsafe { reason.si_addr() } as u64;
        if leave_copy(address, &mut thread.uc_mcontext.gregs) {
            return;
        }
        // An address that was not taken yet is touched by ourselves: nobody would ever handle it.
        let by_kvm = reason.si_code == libc::BUS_MCEERR_AR;
        if by_kvm && matches!(TOUCH.get(), Touch::Watched) {
            return TOUCH.set(Touch::At(Hva(address)));
        }
    }
    hand_on(signal, info, context);
}

/// Ends [`copy`] if that is where the thread touched `address`, and this is what it reads.
fn leave_copy(address: u64, registers: &mut [libc::greg_t; 23]) -> bool {
    let [rip, from, left] = [libc::REG_RIP, libc::REG_RSI, libc::REG_RCX]
        .map(|register| usize::try_from(register).expect("an index"));
    if registers[rip] != copy as *const () as i64 {
        return false;
    }
    let (first, bytes) = (registers[from].cast_unsigned(), registers[left].cast_unsigned());
    let reads = page_start(first) <= address && address < first + bytes;
    if reads {
        registers[rip] += COPY_INSTRUCTION_BYTES;
    }
    reads
}

/// A handler with SA_SIGINFO, and one without.
type Action = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
type Handler = extern "C" fn(c_int);

/// Does what would have been done without our handler.
fn hand_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let before = BEFORE.get().expect("it is set before the handler is installed");
    match before.sa_sigaction {
        // The fault repeats, and nobody is there to handle it; a signal that was sent is sent on.
        libc::SIG_DFL | libc::SIG_IGN => {
            let mut default = *before;
            default.sa_sigaction = libc::SIG_DFL;
            let _ = action(&raw mut default);
            // SAFETY: it is delivered when this handler returns.
            unsafe { libc::raise(signal) };
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            let handler = with_exposed_provenance::<()>(handler);
            // SAFETY: whoever installed it said by SA_SIGINFO that it is such a function.
            let handler = unsafe { transmute::<*const (), Action>(handler) };
            handler(signal, info, context);
        }
        handler => {
            let handler = with_exposed_provenance::<()>(handler);
            // SAFETY: as above, without SA_SIGINFO.
            let handler = unsafe { transmute::<*const (), Handler>(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use godwit_uffd::Wake;
    use godwit_uffd::guest::Filled;
    use godwit_uffd::page::{PageIndex, PageRun};
    use vm_memory::{
        Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress,
    };

    use super::*;
    use crate::memory::Backing;

    /// Memory of which `pages` are poisoned and the others hold their number; nothing where the
    /// kernel cannot do that.
    fn poisoned(backing: Backing, pages: &[u32]) -> Option<GuestMemory> {
        install_poison_handler().unwrap();
        let memory = GuestMemory::create(4 << 20, backing).unwrap();
        let uffd = match memory.register_missing() {
            Ok(uffd) => uffd,
            Err(error) if !std::path::Path::new("/dev/userfaultfd").exists() => {
                println!("skipped: {error}");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        for page in 0..memory.page_count() {
            let run = PageRun::one(PageIndex(page));
            let bytes = [u8::try_from(page % 251).unwrap(); PageSize::BASE.bytes()];
            let filled = match pages.contains(&page) {
                true => uffd.poison(run, Wake::Now),
                false => uffd.copy(run, &bytes, Wake::Now),
            };
            match filled {
                Ok(filled) => assert_eq!(filled, Filled::All),
                Err(error) => {
                    println!("skipped: {error}");
                    return None;
                }
            }
        }
        uffd.unregister_all().unwrap();
        memory.set_complete().unwrap();
        Some(memory)
    }

    fn copied(memory: &GuestMemory, first: u64, bytes: usize) -> (usize, Vec<u8>) {
        let region = memory.inner().iter().next().unwrap();
        let slice = region.get_slice(MemoryRegionAddress(first), bytes).unwrap();
        let mut out = vec![0xee; bytes];
        (copy_readable(&slice, &mut out), out)
    }

    #[test]
    fn a_copy_stops_before_a_poisoned_page_and_nowhere_else() {
        for backing in [Backing::Anon, Backing::Memfd] {
            let Some(memory) = poisoned(backing, &[3, 64, 65]) else { return };
            let (bytes, out) = copied(&memory, 0, 8 << 12);
            assert_eq!(bytes, 3 << 12);
            for (page, bytes) in out.chunks(PageSize::BASE.bytes()).enumerate() {
                let wanted = if page < 3 { u8::try_from(page).unwrap() } else { 0xee };
                assert!(bytes.iter().all(|&byte| byte == wanted), "page {page}");
            }
            // From the middle of a page, and from inside the poisoned one itself.
            assert_eq!(copied(&memory, 0x2800, 0x1000).0, 0x800);
            assert_eq!(copied(&memory, 0x3ff8, 0x1000).0, 0);
            assert_eq!(copied(&memory, 0x4000, 60 << 12).0, 60 << 12);
            assert_eq!(copied(&memory, 65 << 12, 1).0, 0);
            assert_eq!(copied(&memory, 66 << 12, 0).0, 0);
        }
    }

    #[test]
    fn poisoned_pages_are_told_from_others() {
        let Some(memory) = poisoned(Backing::Anon, &[3]) else { return };
        let found =
            [0x2fff, 0x3000, 0x3fff, 0x4000, 1 << 40].map(|gpa| memory.poisoned_page(Gpa(gpa)));
        assert_eq!(found, [None, Some(Gpa(0x3000)), Some(Gpa(0x3000)), None, None]);
        let hva = memory.regions()[0].hva.0;
        assert_eq!(memory.page_at(Hva(hva + 0x3123)), Some(Gpa(0x3000)));
        assert_eq!(memory.page_at(Hva(hva - 1)), None);
        assert_eq!(memory.page_at(Hva(hva + (4 << 20))), None);
    }

    /// Runs the test of this name alone in a process of its own, with a word for it.
    fn in_a_process(name: &str) -> std::process::ExitStatus {
        let this = std::env::current_exe().unwrap();
        let mut command = std::process::Command::new(this);
        let path = format!("memory::poison::tests::{name}");
        let command = command.args([&path, "--exact", "--nocapture"]).env(IN_A_PROCESS, "1");
        command.output().unwrap().status
    }

    const IN_A_PROCESS: &str = "GODWIT_TEST_IN_A_PROCESS";

    #[test]
    fn whoever_else_touches_poison_dies_of_it() {
        use std::os::unix::process::ExitStatusExt;

        if std::env::var_os(IN_A_PROCESS).is_none() {
            let status = in_a_process("whoever_else_touches_poison_dies_of_it");
            assert!([Some(libc::SIGBUS), None].contains(&status.signal()), "{status}");
            // Without poison there is nothing to die of.
            let skipped = status.success() && poisoned(Backing::Anon, &[3]).is_none();
            assert!(status.signal().is_some() || skipped, "{status}");
            return;
        }
        let Some(memory) = poisoned(Backing::Anon, &[3]) else { return };
        // Even in a thread that watches: this is not KVM.
        let (_, touched) = watch_touch(|| memory.inner().read_obj::<u64>(GuestAddress(0x3000)));
        unreachable!("survived a touch of {touched:?}");
    }
}
