//! Timers that were set before a move ring after it.

mod common;

use common::{Protocol, Screen};
use godwit_vmm::boot::KernelImage;
use godwit_vmm::guest_image::BARE;
use godwit_vmm::memory::Backing;
use godwit_vmm::vm::{GuestExit, Vm};

/// Sets the APIC's timer to a deadline that is 2^30 cycles away, says so in memory, and halts. The
/// interrupt ends the guest.
#[rustfmt::skip]
const DEADLINE: &[u8] = &[
    0x0f, 0x01, 0x1c, 0x25, 0x00, 0x10, 0x20, 0x00, // lidt [0x201000]
    0xbc, 0x00, 0x00, 0x30, 0x00, // mov esp, 0x300000
    0xb8, 0x00, 0x00, 0xe0, 0xfe, // mov eax, 0xfee00000
    0xc7, 0x80, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00, // mov dword [rax + 0xf0], 0x1ff
    0xc7, 0x80, 0x20, 0x03, 0x00, 0x00, 0x21, 0x00, 0x04, 0x00, // mov dword [rax + 0x320], 0x40021
    0x0f, 0x31, // rdtsc
    0x48, 0xc1, 0xe2, 0x20, // shl rdx, 32
    0x48, 0x09, 0xd0, // or rax, rdx
    0x48, 0x05, 0x00, 0x00, 0x00, 0x40, // add rax, 0x40000000
    0x48, 0x89, 0xc2, // mov rdx, rax
    0x48, 0xc1, 0xea, 0x20, // shr rdx, 32
    0xb9, 0xe0, 0x06, 0x00, 0x00, // mov ecx, 0x6e0
    0x0f, 0x30, // wrmsr
    0xc6, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, 0x01, // mov byte [0x200000], 1
    0xfb, // sti
    0xf4, // again: hlt
    0xeb, 0xfd, // jmp again
    0xb0, 0x2a, // handler: mov al, 42
    0xe6, 0xf4, // out 0xf4, al
    0xeb, 0xfe, // jmp .
];

const HANDLER: u64 = common::ENTRY + 0x4f;
const ARMED: u64 = 0x20_0000;
const IDTR: u64 = 0x20_1000;
const IDT: u64 = 0x20_2000;
const VECTOR: u64 = 0x21;

/// Moves the guest, at rest, to a new VM.
fn moved(vm: &Vm, screen: &Screen) -> Vm {
    let next = Vm::create(vm.config(), Box::new(screen.clone())).unwrap();
    common::copy_memory(vm, &next);
    next.restore(&vm.save().unwrap()).unwrap();
    next
}

#[test]
fn deadline_of_the_apic_timer_survives_a_move() {
    if !common::have_kvm() {
        return;
    }
    let (vm, screen) = common::tiny_vm(DEADLINE, Protocol::Linux64);
    common::write(&vm, IDTR, &[(IDT << 16) | 0xfff, IDT >> 48]);
    common::write(&vm, IDT + VECTOR * 16, &common::gate(HANDLER));
    loop {
        vm.resume().unwrap();
        vm.pause().unwrap();
        if common::read(&vm, ARMED) != 0 {
            break;
        }
    }
    let next = moved(&vm, &screen);
    let next = moved(&next, &screen);
    assert_eq!(common::run(&next, &screen).0, GuestExit::PowerOff { code: 42 });
}

#[test]
fn halted_guest_is_woken_by_its_timer_after_each_move() {
    if !common::have_kvm() {
        return;
    }
    let screen = Screen::default();
    let config = common::config(2, 32, Backing::Anon);
    let mut vm = Vm::create(&config, Box::new(screen.clone())).unwrap();
    let line = "workload=halt vcpus=2 timer=100 passes=4 exit=9";
    vm.boot(&KernelImage::Embedded(BARE), None, line).unwrap();
    vm.start();
    let ended = |vm: &Vm| vm.exits().peek().is_some();
    while !screen.text().contains("halted") && !ended(&vm) {
        std::thread::yield_now();
    }
    for round in 1..=3 {
        vm.pause().unwrap();
        vm = moved(&vm, &screen);
        vm.start();
        while !screen.text().contains(&format!("n={round} end")) && !ended(&vm) {
            std::thread::yield_now();
        }
    }
    assert_eq!(common::wait_for_end(&vm), GuestExit::PowerOff { code: 9 }, "{}", screen.text());
}
