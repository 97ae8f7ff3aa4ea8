//! Tiny guests made of a few instructions, and what the tests share.

#![allow(dead_code, reason = "each test file uses a part of this")]

pub mod puppet;

use std::io;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use godwit_vmm::boot::KernelImage;
use godwit_vmm::memory::Backing;
use godwit_vmm::vm::{GuestExit, Vm, VmConfig};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Where tiny guests are loaded and begin.
pub const ENTRY: u64 = 0x10_0000;

/// Whether the test can run. Prints why not; fails where the device is there but does not work.
pub fn have_kvm() -> bool {
    if std::path::Path::new("/dev/kvm").exists() {
        return true;
    }
    println!("skipped: there is no /dev/kvm");
    false
}

/// A console that the test can read.
#[derive(Clone, Default)]
pub struct Screen(Arc<Mutex<Vec<u8>>>);

impl Screen {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The protocol by which a tiny guest is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Pvh,
    Linux64,
}

/// An ELF file that loads `code` at [`ENTRY`] and begins there.
pub fn elf(code: &[u8], protocol: Protocol) -> KernelImage {
    let mut note = Vec::new();
    for word in [4_u32, 4, 18] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&u32::try_from(ENTRY).unwrap().to_le_bytes());
    let header_count: u16 = if protocol == Protocol::Pvh { 2 } else { 1 };
    let note_at = 64 + 56 * u64::from(header_count);
    let code_at = note_at + note.len() as u64;

    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [ENTRY, 64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    for half in [0, 0, 64, 56, header_count, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    program_header(&mut file, 1, code_at, ENTRY, code.len() as u64);
    if protocol == Protocol::Pvh {
        program_header(&mut file, 4, note_at, 0, note.len() as u64);
    }
    file.extend_from_slice(&note);
    file.extend_from_slice(code);
    KernelImage::Embedded(file.leak())
}

fn program_header(file: &mut Vec<u8>, kind: u32, offset: u64, address: u64, bytes: u64) {
    file.extend_from_slice(&kind.to_le_bytes());
    file.extend_from_slice(&7_u32.to_le_bytes());
    for word in [offset, address, address, bytes, bytes, 4] {
        file.extend_from_slice(&word.to_le_bytes());
    }
}

pub fn config(cpus: u8, memory_mib: u64, backing: Backing) -> VmConfig {
    VmConfig { cpus, memory_bytes: memory_mib << 20, backing, devices: Vec::new() }
}

/// A guest with one vCPU and 16 MiB, booted and not started, and its console.
pub fn tiny_vm(code: &[u8], protocol: Protocol) -> (Vm, Screen) {
    let screen = Screen::default();
    let vm = Vm::create(&config(1, 16, Backing::Anon), Box::new(screen.clone())).unwrap();
    vm.boot(&elf(code, protocol), None, "hello").unwrap();
    (vm, screen)
}

/// Waits for the end of a guest.
pub fn wait_for_end(vm: &Vm) -> GuestExit {
    assert!(ends_within(vm, Duration::from_secs(120)), "the guest did not end");
    vm.exits().take().unwrap()
}

/// Waits for the end of a guest, at most for `limit`. Returns whether it has ended.
pub fn ends_within(vm: &Vm, limit: Duration) -> bool {
    let mut fds = [PollFd::new(vm.exits(), PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::try_from(limit).unwrap())).unwrap() == 1
}

/// Runs a guest to its end and returns it with all that the guest wrote.
pub fn run(vm: &Vm, screen: &Screen) -> (GuestExit, String) {
    vm.start();
    let exit = wait_for_end(vm);
    assert!(vm.drain_console(Duration::from_secs(10)));
    (exit, screen.text())
}

/// Copies all memory of one guest to another of the same shape.
pub fn copy_memory(from: &Vm, to: &Vm) {
    use vm_memory::{Bytes, GuestAddress};

    const STEP: usize = 1 << 20;
    let mut buffer = vec![0; STEP];
    for region in from.memory().regions() {
        for offset in (0..region.bytes).step_by(STEP) {
            let bytes = STEP.min(usize::try_from(region.bytes - offset).unwrap());
            let gpa = GuestAddress(region.gpa.0 + offset);
            from.memory().inner().read_slice(&mut buffer[..bytes], gpa).unwrap();
            if buffer[..bytes].iter().any(|byte| *byte != 0) {
                to.memory().inner().write_slice(&buffer[..bytes], gpa).unwrap();
            }
        }
    }
}

/// Writes words to guest memory.
pub fn write(vm: &Vm, at: u64, words: &[u64]) {
    use vm_memory::Bytes;

    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    vm.memory().inner().write_slice(&bytes, vm_memory::GuestAddress(at)).unwrap();
}

/// Reads a word of guest memory.
pub fn read(vm: &Vm, at: u64) -> u64 {
    use vm_memory::Bytes;

    vm.memory().inner().read_obj(vm_memory::GuestAddress(at)).unwrap()
}

/// An interrupt gate to 64-bit code at `handler`.
pub fn gate(handler: u64) -> [u64; 2] {
    const CODE_SEGMENT: u64 = 0x10;
    const INTERRUPT_GATE: u64 = 0x8e00;
    let low = handler & 0xffff;
    let middle = (handler >> 16) & 0xffff;
    [low | (CODE_SEGMENT << 16) | (INTERRUPT_GATE << 32) | (middle << 48), handler >> 32]
}

/// SplitMix64.
pub struct Prng(pub u64);

impl Prng {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    /// An index into something of `count` parts.
    pub fn index(&mut self, count: usize) -> usize {
        usize::try_from(self.below(u64::try_from(count).unwrap())).unwrap()
    }

    /// Passes a random time without giving up the processor.
    pub fn dawdle(&mut self, most: u64) {
        for _ in 0..self.below(most) {
            std::hint::spin_loop();
        }
    }
}
