//! A vCPU as the one who touches: a virtual machine whose memory is an agent's.
//!
//! The agent owns the machine, because KVM takes its calls from the process that made it alone.
//! The guest is three bytes of real-mode code: one access through DS, whose base is the page that
//! is touched, and a halt. There is no interrupt controller, so KVM takes faults in the thread
//! that runs the vCPU.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use godwit_uffd::abi::Errno;

use super::agents::Agents;
use super::mailbox::{BUFFER_WORDS, operation};
use super::memory::WINDOW;
use super::syscall::checked;
use super::ticket::Kind;
use super::{KernelWorld, PAGE, owned};
use crate::world::{
    Access, Backing, File, FileKind, Mapping, NotHere, Outcome, Process, Step, Touch, World,
};

/// Numbers of the calls.
mod call {
    pub(super) const CREATE_VM: u64 = 0xAE01;
    pub(super) const CHECK_EXTENSION: u64 = 0xAE03;
    pub(super) const CREATE_VCPU: u64 = 0xAE41;
    pub(super) const SET_USER_MEMORY_REGION: u64 = 0x4020_AE46;
    pub(super) const RUN: u64 = 0xAE80;
    pub(super) const GET_REGS: u64 = 0x8090_AE81;
    pub(super) const SET_REGS: u64 = 0x4090_AE82;
    pub(super) const GET_SREGS: u64 = 0x8138_AE83;
    pub(super) const SET_SREGS: u64 = 0x4138_AE84;
    pub(super) const CREATE_GUEST_MEMFD: u64 = 0xC040_AED4;
}

/// The capability that says which flags guest memory files have.
const CAP_GUEST_MEMFD_FLAGS: u64 = 244;
/// `MMAP | INIT_SHARED`.
const MAPPED_AND_SHARED: u64 = 3;

/// `mov al, [bx]; hlt` and `mov [bx], al; hlt`, and where each begins.
const CODE: [u8; 6] = [0x8A, 0x07, 0xF4, 0x88, 0x07, 0xF4];
const LOAD: u64 = 0;
const STORE: u64 = 3;
/// Bytes of each, up to where the halt leaves the instruction pointer.
const LENGTH: u64 = 3;

/// Where the window of the test's mappings begins for the guest, and where it must end: the
/// addresses of real mode have 32 bits, and devices are at their end.
const GUEST_WINDOW: u64 = 1 << 30;
const GUEST_END: u64 = 3 << 30;
/// Memory is given to the guest in pieces of this size.
const PIECE: u64 = 2 << 20;

/// Words of `struct kvm_regs` and `struct kvm_sregs`.
const REGS_WORDS: usize = 18;
const SREGS_WORDS: usize = 39;
/// Where the words that matter are.
const RAX: usize = 0;
const RIP: usize = 16;
const RFLAGS: usize = 17;
const CS_BASE: usize = 0;
const CS_SELECTOR: usize = 1;
const DS_BASE: usize = 3;

/// The machine of one agent.
#[derive(Debug)]
pub(super) struct Guest {
    machine: OwnedFd,
    /// The first page is code for the guest, the second is for structures.
    file: File,
    mapped_at: u64,
    vcpus: Vec<Vcpu>,
    pieces: BTreeSet<u64>,
}

#[derive(Debug)]
struct Vcpu {
    descriptor: OwnedFd,
    /// It is in the middle of an access, or stuck in one.
    busy: bool,
}

fn ioctl(agents: &mut Agents, at: usize, fd: RawFd, number: u64, word: u64) -> Result<u64, Errno> {
    let fd = u64::from(fd.cast_unsigned());
    checked(agents.call(at, libc::SYS_ioctl, [fd, number, word, 0, 0, 0]))
}

impl KernelWorld {
    /// Whether vCPUs can be had.
    pub(super) fn has_guests(&mut self) -> Result<(), NotHere> {
        self.guest(0).map(drop)
    }

    /// Whether guest memory files can be had that user code may map.
    pub(super) fn has_guest_files(&mut self) -> Result<(), NotHere> {
        let machine = self.guest(0)?.machine.as_raw_fd();
        let flags =
            ioctl(&mut self.agents, 0, machine, call::CHECK_EXTENSION, CAP_GUEST_MEMFD_FLAGS);
        match flags {
            Ok(flags) if flags & MAPPED_AND_SHARED == MAPPED_AND_SHARED => Ok(()),
            other => Err(NotHere(format!("flags of guest memory files: {other:?}"))),
        }
    }

    /// The machine of an agent, made when it is first asked for.
    fn guest(&mut self, at: usize) -> Result<&mut Guest, NotHere> {
        if !self.guests.contains_key(&at) {
            let guest = self.new_guest(at)?;
            self.guests.insert(at, guest);
        }
        Ok(self.guests.get_mut(&at).expect("just made"))
    }

    fn new_guest(&mut self, at: usize) -> Result<Guest, NotHere> {
        let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
        let kvm = kvm.map_err(|error| NotHere(format!("/dev/kvm: {error}")))?;
        let machine = ioctl(&mut self.agents, at, kvm.as_raw_fd(), call::CREATE_VM, 0);
        let machine = owned(machine.expect("a virtual machine"));
        let file = self.make_file(FileKind::Shmem, 2);
        self.file(file).write(0, &CODE).expect("code");
        let process = self.process_of(at);
        let backing = Backing::File { file, page: 0, shared: true, read_only_descriptor: false };
        let mapping = Mapping { pages: 2, backing, access: Access::ReadWrite, at: None };
        let mapped_at = self.map_memory(process, mapping).expect("memory for the guest's code");
        let guest = Guest { machine, file, mapped_at, vcpus: Vec::new(), pieces: BTreeSet::new() };
        self.give(at, &guest, 0, [0, PAGE, mapped_at]);
        Ok(guest)
    }

    /// Gives the guest memory: its address there, the length, the address in the agent.
    fn give(&mut self, at: usize, guest: &Guest, slot: u64, [gpa, length, hva]: [u64; 3]) {
        let mut words = [0; BUFFER_WORDS];
        words[..4].copy_from_slice(&[slot, gpa, length, hva]);
        let machine = u64::from(guest.machine.as_raw_fd().cast_unsigned());
        let region = |words_at| [machine, call::SET_USER_MEMORY_REGION, words_at, 0, 0, 0];
        let given = self.agents.call_with(at, libc::SYS_ioctl, words, region);
        assert_eq!(given, 0, "memory of the guest");
    }

    pub(super) fn touch_by_guest(&mut self, process: Process, address: u64, touch: Touch) -> Step {
        let at = self.agent(process);
        let (code, byte) = match touch {
            Touch::Load => (LOAD, 0),
            Touch::Store(byte) => (STORE, byte),
            other => panic!("a guest has no {other:?}"),
        };
        self.guest(at).expect("asked before");
        let mut guest = self.guests.remove(&at).expect("just made");
        let gpa = self.cover(at, &mut guest, address);
        let vcpu = self.idle_vcpu(at, &mut guest);
        let fd = guest.vcpus[vcpu].descriptor.as_raw_fd();
        let mut special = self.get::<SREGS_WORDS>(at, &guest, fd, call::GET_SREGS);
        special[CS_BASE] = 0;
        special[CS_SELECTOR] &= !(0xFFFF << 32);
        special[DS_BASE] = gpa;
        self.set(at, &guest, fd, call::SET_SREGS, special);
        let mut registers = [0; REGS_WORDS];
        registers[RAX] = byte.into();
        registers[RIP] = code;
        registers[RFLAGS] = 2;
        self.set(at, &guest, fd, call::SET_REGS, registers);
        self.guests.insert(at, guest);
        let kind = Kind::Guest { vcpu, end: code + LENGTH, store: code == STORE };
        let (number, fd) = (libc::SYS_ioctl.cast_unsigned(), u64::from(fd.cast_unsigned()));
        self.begin(at, kind, operation::CALL, [number, fd, call::RUN, 0, 0, 0, 0])
    }

    /// What an access came to. One that ends anywhere but behind the halt was not served: KVM
    /// calls it a fault, or takes it for an access to a device.
    pub(super) fn outcome_of_guest(
        &mut self,
        at: usize,
        result: Result<u64, Errno>,
        (vcpu, end, store): (usize, u64, bool),
    ) -> Outcome {
        let mut guest = self.guests.remove(&at).expect("it has run");
        let fd = guest.vcpus[vcpu].descriptor.as_raw_fd();
        let registers = self.get::<REGS_WORDS>(at, &guest, fd, call::GET_REGS);
        // KVM would complete an access to a device first, so such a vCPU is used no more.
        guest.vcpus[vcpu].busy = registers[RIP] != end;
        self.guests.insert(at, guest);
        match result {
            Err(errno) => Outcome::Returned(Err(errno)),
            Ok(_) if registers[RIP] != end => Outcome::Returned(Err(Errno(libc::EFAULT))),
            Ok(_) if store => Outcome::Stored,
            Ok(_) => Outcome::Loaded(registers[RAX].to_le_bytes()[0]),
        }
    }

    /// Gives the guest the piece of memory that an address is in; the address for the guest.
    fn cover(&mut self, at: usize, guest: &mut Guest, address: u64) -> u64 {
        let gpa = address - WINDOW + GUEST_WINDOW;
        assert!(gpa < GUEST_END, "{address:#x} is out of a guest's reach");
        let piece = gpa / PIECE;
        if guest.pieces.insert(piece) {
            let slot = guest.pieces.len() as u64;
            self.give(at, guest, slot, [piece * PIECE, PIECE, address / PIECE * PIECE]);
        }
        gpa
    }

    fn idle_vcpu(&mut self, at: usize, guest: &mut Guest) -> usize {
        let idle = guest.vcpus.iter().position(|vcpu| !vcpu.busy).unwrap_or_else(|| {
            let (machine, number) = (guest.machine.as_raw_fd(), guest.vcpus.len() as u64);
            let made = ioctl(&mut self.agents, at, machine, call::CREATE_VCPU, number);
            let descriptor = owned(made.expect("a vCPU"));
            guest.vcpus.push(Vcpu { descriptor, busy: false });
            guest.vcpus.len() - 1
        });
        guest.vcpus[idle].busy = true;
        idle
    }

    fn get<const WORDS: usize>(
        &mut self,
        at: usize,
        guest: &Guest,
        fd: RawFd,
        number: u64,
    ) -> [u64; WORDS] {
        let structure = guest.mapped_at + PAGE;
        let got = ioctl(&mut self.agents, at, fd, number, structure);
        assert_eq!(got, Ok(0), "registers");
        let mut bytes = vec![0; WORDS * 8];
        self.file(guest.file).read(PAGE, &mut bytes).expect("registers");
        let word = |at: usize| bytes[at * 8..][..8].try_into().expect("8");
        std::array::from_fn(|at| u64::from_ne_bytes(word(at)))
    }

    fn set<const WORDS: usize>(
        &mut self,
        at: usize,
        guest: &Guest,
        fd: RawFd,
        number: u64,
        words: [u64; WORDS],
    ) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.file(guest.file).write(PAGE, &bytes).expect("registers");
        let set = ioctl(&mut self.agents, at, fd, number, guest.mapped_at + PAGE);
        assert_eq!(set, Ok(0), "registers");
    }

    /// Maps a fresh guest memory file, shared.
    pub(super) fn map_guest_file(&mut self, process: Process, pages: u64) -> u64 {
        let at = self.agent(process);
        let machine = self.guest(at).expect("asked before").machine.as_raw_fd();
        let machine = u64::from(machine.cast_unsigned());
        let mut words = [0; BUFFER_WORDS];
        words[..2].copy_from_slice(&[pages * PAGE, MAPPED_AND_SHARED]);
        let create = |words_at| [machine, call::CREATE_GUEST_MEMFD, words_at, 0, 0, 0];
        let made = checked(self.agents.call_with(at, libc::SYS_ioctl, words, create));
        let file = owned(made.expect("a guest memory file"));
        let place = self.place_for(pages * PAGE);
        let flags = u64::from((libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE).cast_unsigned());
        let access = super::memory::protection(Access::ReadWrite);
        let fd = u64::from(file.as_raw_fd().cast_unsigned());
        let words = [place, pages * PAGE, access, flags, fd, 0];
        checked(self.agents.call(at, libc::SYS_mmap, words)).expect("a mapping")
    }
}
