//! Guests of a few instructions, on real KVM: boot, devices, pause, save and restore.

mod common;

use common::Protocol;
use common::Screen;
use godwit_vmm::memory::Backing;
use godwit_vmm::vm::GuestExit;
use godwit_vmm::vm::Vm;

/// Writes "hi\n" to the serial port, byte by byte, and ends with code 42. The same bytes mean the
/// same in 32 and in 64 bits.
const HELLO: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'h', 0xee, // mov al, 'h'; out dx, al
    0xb0, b'i', 0xee, // mov al, 'i'; out dx, al
    0xb0, b'\n', 0xee, // mov al, '\n'; out dx, al
    0xb0, 42, 0xe6, 0xf4, // mov al, 42; out 0xf4, al
    0xeb, 0xfe, // jmp .
];

#[test]
fn guest_boots_by_both_protocols_and_says_hello() {
    if !common::have_kvm() {
        return;
    }
    for protocol in [Protocol::Pvh, Protocol::Linux64] {
        let (vm, screen) = common::tiny_vm(HELLO, protocol);
        let (exit, text) = common::run(&vm, &screen);
        assert_eq!(
            (exit, text.as_str()),
            (GuestExit::PowerOff { code: 42 }, "hi\n"),
            "{protocol:?}"
        );
    }
}

/// Counts in memory at 2 MiB, for ever, in 64 bits.
const COUNT: &[u8] = &[
    0x48, 0xff, 0x04, 0x25, 0, 0, 0x20, 0, // inc qword [0x200000]
    0xeb, 0xf6, // jmp back
];

fn count(vm: &Vm) -> u64 {
    use vm_memory::Bytes;
    vm.memory().inner().read_obj(vm_memory::GuestAddress(0x20_0000)).unwrap()
}

/// Pauses until the guest has counted on.
fn count_on(vm: &Vm, from: u64) -> u64 {
    loop {
        vm.resume().unwrap();
        vm.pause().unwrap();
        assert!(vm.is_paused());
        let now = count(vm);
        if now > from {
            return now;
        }
    }
}

#[test]
fn paused_guest_stands_still_and_goes_on() {
    if !common::have_kvm() {
        return;
    }
    let (vm, _) = common::tiny_vm(COUNT, Protocol::Linux64);
    vm.start();
    let mut last = 0;
    for _ in 0..300 {
        last = count_on(&vm, last);
        vm.pause().unwrap();
        assert_eq!(count(&vm), last);
    }
    assert_eq!(vm.exits().peek(), None);
}

#[test]
fn guest_goes_on_in_another_vm() {
    if !common::have_kvm() {
        return;
    }
    let (mut vm, _) = common::tiny_vm(COUNT, Protocol::Linux64);
    let mut last = 0;
    for round in 0..20 {
        last = count_on(&vm, last);
        let sections = vm.save().unwrap();
        let backing = if round % 2 == 0 { Backing::Memfd } else { Backing::Anon };
        let config = common::config(1, 16, backing);
        let next = Vm::create(&config, Box::new(Screen::default())).unwrap();
        Vm::check(&vm.requirements()).unwrap();
        common::copy_memory(&vm, &next);
        next.restore(&sections).unwrap();
        assert_eq!(next.save().unwrap().len(), sections.len());
        vm = next;
        assert_eq!(count(&vm), last);
    }
}
