//! What cannot be done is refused with a message that says why: hosts, guests, kernels, state.

mod common;

use std::io::Write;
use std::path::Path;

use common::{Prng, Protocol, Screen};
use godwit_vmm::Error;
use godwit_vmm::boot::{BootError, KernelImage};
use godwit_vmm::memory::{Backing, MemoryError};
use godwit_vmm::state::Section;
use godwit_vmm::vm::Vm;

/// jmp .
const SPIN: &[u8] = &[0xeb, 0xfe];

fn create(cpus: u8, memory_mib: u64) -> Result<Vm, Error> {
    Vm::create(&common::config(cpus, memory_mib, Backing::Anon), Box::new(Screen::default()))
}

#[test]
fn impossible_guests_are_refused() {
    if !common::have_kvm() {
        return;
    }
    let error = create(0, 16).err().unwrap();
    assert!(matches!(error, Error::CpuCount { wanted: 0, .. }), "{error}");
    let error = create(255, 16).err().unwrap();
    assert!(error.to_string().contains("255 vCPUs"), "{error}");
    let error = create(1, 1).err().unwrap();
    assert!(matches!(error, Error::Memory(MemoryError::Size { .. })), "{error}");
    let error = create(1, 200 << 10).err().unwrap();
    assert!(error.to_string().contains("does not fit"), "{error}");
}

fn boot_file(content: &[u8], initramfs: Option<&Path>, line: &str) -> Result<(), Error> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    let vm = create(1, 16).unwrap();
    vm.boot(&KernelImage::File(file.path().to_owned()), initramfs, line)
}

fn kernel() -> Vec<u8> {
    match common::elf(SPIN, Protocol::Linux64) {
        KernelImage::Embedded(bytes) => bytes.to_vec(),
        KernelImage::File(_) => unreachable!(),
    }
}

#[test]
fn file_that_is_no_kernel_is_refused_by_name() {
    if !common::have_kvm() {
        return;
    }
    for content in [&b""[..], b"#!/bin/sh\n", b"\x7fELF", &[0x1f, 0x8b, 8, 0]] {
        let error = boot_file(content, None, "").unwrap_err();
        assert!(matches!(error, Error::Boot(BootError::NotAKernel { .. })), "{error}");
        assert!(error.to_string().starts_with("/tmp/"), "{error}");
    }
    for path in ["/nonexistent/kernel", "/proc/self/exe", "/dev/zero", "/tmp"] {
        let vm = create(1, 16).unwrap();
        let error = vm.boot(&KernelImage::File(path.into()), None, "").unwrap_err();
        assert!(error.to_string().contains(path), "{error}");
    }
}

#[test]
fn damaged_kernels_are_refused() {
    if !common::have_kvm() {
        return;
    }
    let good = kernel();
    boot_file(&good, None, "").unwrap();
    for length in 64..good.len() {
        boot_file(&good[..length], None, "").unwrap_err();
    }
    // An offset, an address and a length that lead nowhere.
    for at in [64 + 8, 64 + 24, 64 + 32] {
        let mut bad = good.clone();
        bad[at..at + 8].fill(0xff);
        let error = boot_file(&bad, None, "").unwrap_err();
        assert!(matches!(error, Error::Boot(BootError::Load { .. })), "{error}");
    }
}

#[test]
fn command_line_and_initramfs_have_limits() {
    if !common::have_kvm() {
        return;
    }
    boot_file(&kernel(), None, &"x".repeat(4095)).unwrap();
    let error = boot_file(&kernel(), None, &"x".repeat(4096)).unwrap_err();
    assert!(error.to_string().contains("4096 bytes; at most 4095"), "{error}");
    boot_file(&kernel(), None, "a\0b").unwrap_err();

    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[1; 8192]).unwrap();
    boot_file(&kernel(), Some(file.path()), "").unwrap();
    file.as_file().set_len(16 << 20).unwrap();
    let error = boot_file(&kernel(), Some(file.path()), "").unwrap_err();
    assert!(matches!(error, Error::Boot(BootError::InitramfsTooLarge { .. })), "{error}");
}

#[test]
fn operations_at_the_wrong_time_are_refused() {
    if !common::have_kvm() {
        return;
    }
    let (vm, _) = common::tiny_vm(SPIN, Protocol::Linux64);
    let sections = vm.save().unwrap();
    vm.start();
    assert!(matches!(vm.save(), Err(Error::NotPaused)));
    assert!(matches!(vm.guest_tsc(), Err(Error::NotPaused)));
    assert!(matches!(vm.restore(&sections), Err(Error::AlreadyStarted)));
    vm.pause().unwrap();
    assert!(matches!(vm.restore(&sections), Err(Error::AlreadyStarted)));
    assert_eq!(vm.guest_tsc().unwrap().len(), 1);
    vm.shutdown();
    assert!(matches!(vm.resume(), Err(Error::ShutDown)));
    vm.pause().unwrap();
}

#[test]
fn state_of_another_guest_is_refused() {
    if !common::have_kvm() {
        return;
    }
    let (vm, _) = common::tiny_vm(SPIN, Protocol::Linux64);
    let sections = vm.save().unwrap();
    let error = create(1, 32).unwrap().restore(&sections).unwrap_err();
    assert!(error.to_string().contains("memory bytes 16777216"), "{error}");
    let error = create(2, 16).unwrap().restore(&sections).unwrap_err();
    assert!(error.to_string().contains("1 sections for a vcpu, and 2"), "{error}");
    let other = create(1, 16).unwrap();
    for left_out in 0..sections.len() {
        let mut some = sections.clone();
        let repeated = some.remove(left_out);
        other.restore(&some).unwrap_err();
        some.push(repeated.clone());
        some.push(repeated);
        other.restore(&some).unwrap_err();
    }
    let mut newer = sections.clone();
    newer[0].version += 1;
    let error = other.restore(&newer).unwrap_err();
    assert!(error.to_string().contains("newer godwit"), "{error}");
    other.restore(&sections).unwrap();
}

fn garble(sections: &mut [Section], prng: &mut Prng) {
    let bytes = &mut sections[prng.index(sections.len())].bytes;
    if prng.below(4) == 0 {
        bytes.truncate(prng.index(bytes.len()));
        return;
    }
    for _ in 0..=prng.below(4) {
        let at = prng.index(bytes.len());
        bytes[at] = prng.below(256).to_le_bytes()[0];
    }
}

#[test]
fn garbled_state_never_harms_the_process() {
    if !common::have_kvm() {
        return;
    }
    let (vm, _) = common::tiny_vm(SPIN, Protocol::Linux64);
    let sections = vm.save().unwrap();
    let mut refused = 0;
    for seed in 0..20 {
        let other = create(1, 16).unwrap();
        let mut prng = Prng(seed);
        for _ in 0..20 {
            let mut garbled = sections.clone();
            garble(&mut garbled, &mut prng);
            refused += usize::from(other.restore(&garbled).is_err());
        }
    }
    assert!(refused > 0);
    let last = create(1, 16).unwrap();
    last.restore(&sections).unwrap();
    last.start();
    last.pause().unwrap();
    last.save().unwrap();
}

#[test]
fn requirements_from_a_stranger_are_an_error() {
    if !common::have_kvm() {
        return;
    }
    let good = create(1, 16).unwrap().requirements();
    Vm::check(&good).unwrap();
    for length in 0..good.len() {
        assert!(matches!(Vm::check(&good[..length]), Err(Error::State(_))));
    }
}
