//! Guests that touch a poisoned page, on real KVM: they get a machine check, or are stopped with
//! the page named, and never spin. Those that do not touch it go on.
//!
//! A page is poisoned as it would be at a destination, by UFFDIO_POISON.

mod common;

use common::{Protocol, Screen, gate, read, write};
use godwit_uffd::Wake;
use godwit_uffd::guest::Filled;
use godwit_uffd::page::{PageIndex, PageRun};
use godwit_vmm::memory::Backing;
use godwit_vmm::vm::{GuestExit, Vm};

/// Goes to ring 3 and loads from an address. What it was given by the test, from `GIVEN` on, says
/// from which, whether machine checks are on, and whether the handler ends the guest or ignores
/// what it is told.
#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    0xb8, 0x00, 0x00, 0x40, 0x00, // mov eax,0x400000
    0x0f, 0x22, 0xd8, // mov cr3,rax
    0x0f, 0x01, 0x14, 0x25, 0x00, 0x10, 0x20, 0x00, // lgdt [0x201000]
    0x0f, 0x01, 0x1c, 0x25, 0x10, 0x10, 0x20, 0x00, // lidt [0x201010]
    0xb8, 0x38, 0x00, 0x00, 0x00, // mov eax,0x38
    0x0f, 0x00, 0xd8, // ltr ax
    0x0f, 0x20, 0xe1, // mov rcx,cr4
    0x48, 0x0b, 0x0c, 0x25, 0x00, 0x00, 0x20, 0x00, // or rcx,[0x200000]
    0x0f, 0x22, 0xe1, // mov cr4,rcx
    0xbc, 0x00, 0x00, 0x30, 0x00, // mov esp,0x300000
    0x6a, 0x2b, // push 0x2b
    0x68, 0x00, 0x00, 0x31, 0x00, // push 0x310000
    0x6a, 0x02, // push 0x2
    0x6a, 0x33, // push 0x33
    0x68, 0x45, 0x00, 0x10, 0x00, // push user
    0x48, 0xcf, // iretq
    // user:
    0x48, 0xff, 0x04, 0x25, 0x10, 0x00, 0x20, 0x00, // inc qword [0x200010]
    0x48, 0x8b, 0x3c, 0x25, 0x18, 0x00, 0x20, 0x00, // mov rdi,[0x200018]
    0x48, 0x8b, 0x07, // mov rax,[rdi]
    0x48, 0x89, 0x04, 0x25, 0x20, 0x00, 0x20, 0x00, // mov [0x200020],rax
    0x0f, 0x0b, // ud2
    // machine_check:
    0xb9, 0x25, 0x04, 0x00, 0x00, // mov ecx,0x425
    0x0f, 0x32, // rdmsr
    0x89, 0x04, 0x25, 0x28, 0x00, 0x20, 0x00, // mov [0x200028],eax
    0x89, 0x14, 0x25, 0x2c, 0x00, 0x20, 0x00, // mov [0x20002c],edx
    0xb9, 0x26, 0x04, 0x00, 0x00, // mov ecx,0x426
    0x0f, 0x32, // rdmsr
    0x89, 0x04, 0x25, 0x30, 0x00, 0x20, 0x00, // mov [0x200030],eax
    0x89, 0x14, 0x25, 0x34, 0x00, 0x20, 0x00, // mov [0x200034],edx
    0xb9, 0x7a, 0x01, 0x00, 0x00, // mov ecx,0x17a
    0x0f, 0x32, // rdmsr
    0x89, 0x04, 0x25, 0x38, 0x00, 0x20, 0x00, // mov [0x200038],eax
    0x48, 0x83, 0x3c, 0x25, 0x08, 0x00, 0x20, 0x00, 0x00, // cmp qword [0x200008],0
    0x75, 0x06, // jne ignore
    0xb0, 0x2a, // mov al,42
    0xe6, 0xf4, // out 0xf4,al
    0xeb, 0xfe, // jmp .
    // ignore:
    0x31, 0xc0, // xor eax,eax
    0x31, 0xd2, // xor edx,edx
    0x0f, 0x30, // wrmsr
    0xb9, 0x25, 0x04, 0x00, 0x00, // mov ecx,0x425
    0x0f, 0x30, // wrmsr
    0x48, 0xcf, // iretq
    // touched:
    0xb0, 0x2b, // mov al,43
    0xe6, 0xf4, // out 0xf4,al
    0xeb, 0xfe, // jmp .
    // other:
    0xb0, 0x2c, // mov al,44
    0xe6, 0xf4, // out 0xf4,al
    0xeb, 0xfe, // jmp .
];
const MACHINE_CHECK: u64 = common::ENTRY + 0x62;
const TOUCHED: u64 = common::ENTRY + 0xba;
const OTHER: u64 = common::ENTRY + 0xc0;

const GIVEN: u64 = 0x20_0000;
const BEGUN: u64 = 0x20_0010;
const LOADED: u64 = 0x20_0020;
const STATUS: u64 = 0x20_0028;
const ADDRESS: u64 = 0x20_0030;
const GLOBAL_STATUS: u64 = 0x20_0038;

const GDTR: u64 = 0x20_1000;
const IDTR: u64 = 0x20_1010;
const GDT: u64 = 0x20_2000;
const TASK: u64 = 0x20_3000;
const IDT: u64 = 0x20_4000;
const STACK: u64 = 0x20_8000;
const PAGE_TABLES: u64 = 0x40_0000;

const CR4_MCE: u64 = 1 << 6;

/// The page that is poisoned, and a place in it.
const POISONED: u64 = 0x60_0000;
const IN_POISONED: u64 = POISONED + 0x128;

/// A guest that will load from `place`.
fn program(cr4: u64, ignore: bool, place: u64, cpus: u8) -> Vm {
    let vm = Vm::create(&common::config(cpus, 16, Backing::Anon), Box::new(Screen::default()));
    let vm = vm.unwrap();
    vm.boot(&common::elf(PROGRAM, Protocol::Linux64), None, "").unwrap();
    write(&vm, GIVEN, &[cr4, ignore.into(), 0, place]);
    // 16 MiB for all rings, mapped to themselves.
    write(&vm, PAGE_TABLES, &[(PAGE_TABLES + 0x1000) | 7]);
    write(&vm, PAGE_TABLES + 0x1000, &[(PAGE_TABLES + 0x2000) | 7]);
    let tables: Vec<u64> =
        (0..8).map(|table| (PAGE_TABLES + 0x3000 + table * 0x1000) | 7).collect();
    write(&vm, PAGE_TABLES + 0x2000, &tables);
    let pages: Vec<u64> = (0..8 * 512).map(|page| (page << 12) | 7).collect();
    write(&vm, PAGE_TABLES + 0x3000, &pages);
    write(&vm, GDTR, &[(GDT << 16) | 0xff, GDT >> 48]);
    write(&vm, IDTR, &[(IDT << 16) | 0xfff, IDT >> 48]);
    let task = 0x67 | (TASK & 0xff_ffff) << 16 | 0x89 << 40 | (TASK >> 24 & 0xff) << 56;
    // Code and data of ring 0, data and code of ring 3, the task.
    let (code, data) = (0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff);
    let (user_data, user_code) = (0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff);
    write(&vm, GDT, &[0, 0, code, data, 0, user_data, user_code, task, 0]);
    // The stack of ring 0 is four bytes into the task.
    write(&vm, TASK, &[STACK << 32, STACK >> 32]);
    for vector in 0..32 {
        let handler = match vector {
            6 => TOUCHED,
            18 => MACHINE_CHECK,
            _ => OTHER,
        };
        write(&vm, IDT + vector * 16, &gate(handler));
    }
    vm
}

/// Poisons the page at `POISONED`. False where the kernel cannot.
fn poison(vm: &Vm) -> bool {
    let run = PageRun::one(PageIndex(u32::try_from(POISONED >> 12).unwrap()));
    vm.memory().empty(run).unwrap();
    let uffd = vm.memory().register_missing().unwrap();
    let poisoned = uffd.poison(run, Wake::Now);
    uffd.unregister_all().unwrap();
    vm.memory().set_complete().unwrap();
    match poisoned {
        Ok(filled) => assert_eq!(filled, Filled::All),
        Err(error) => {
            println!("skipped: {error}");
            return false;
        }
    }
    true
}

/// Runs a guest to its end.
fn end_of(vm: &Vm) -> GuestExit {
    vm.start();
    common::wait_for_end(vm)
}

/// What is said of a guest that was stopped; it names the page.
fn stopped(vm: &Vm) -> String {
    let GuestExit::Crash(text) = end_of(vm) else { panic!("not stopped") };
    let named = format!("page at guest address {POISONED:#x} is poisoned: it could not be read");
    assert!(text.contains(&named), "{text}");
    text
}

#[test]
fn a_guest_that_does_not_touch_the_page_goes_on() {
    if !common::have_kvm() {
        return;
    }
    let vm = program(CR4_MCE, false, POISONED - 8, 1);
    write(&vm, POISONED - 8, &[77]);
    if poison(&vm) {
        assert_eq!(end_of(&vm), GuestExit::PowerOff { code: 43 });
        assert_eq!((read(&vm, LOADED), read(&vm, BEGUN)), (77, 1));
    }
}

#[test]
fn a_guest_that_handles_machine_checks_gets_one() {
    if !common::have_kvm() {
        return;
    }
    let vm = program(CR4_MCE, false, IN_POISONED, 1);
    if poison(&vm) {
        assert_eq!(end_of(&vm), GuestExit::PowerOff { code: 42 });
        let status = read(&vm, STATUS);
        // Valid, uncorrected, enabled, with an address; no context was lost.
        assert_eq!(status >> 56 & 0xf6, 0xb4, "{status:#x}");
        assert_eq!(read(&vm, ADDRESS), POISONED);
        assert_eq!(read(&vm, GLOBAL_STATUS) & 7, 7);
        assert_eq!((read(&vm, LOADED), read(&vm, BEGUN)), (0, 1));
    }
}

#[test]
fn a_guest_that_comes_back_to_the_page_is_stopped() {
    if !common::have_kvm() {
        return;
    }
    let vm = program(CR4_MCE, true, IN_POISONED, 1);
    if poison(&vm) {
        let text = stopped(&vm);
        assert!(text.contains("again after a machine check"), "{text}");
        assert_eq!(read(&vm, ADDRESS), POISONED);
    }
}

#[test]
fn a_guest_that_takes_no_machine_checks_is_stopped() {
    if !common::have_kvm() {
        return;
    }
    let vm = program(0, false, IN_POISONED, 1);
    if poison(&vm) {
        let text = stopped(&vm);
        assert!(text.contains("CR4.MCE is clear"), "{text}");
        assert_eq!((read(&vm, LOADED), read(&vm, BEGUN)), (0, 1));
    }
}

#[test]
fn a_guest_with_several_vcpus_gets_one_or_is_stopped() {
    if !common::have_kvm() {
        return;
    }
    let vm = program(CR4_MCE, false, IN_POISONED, 2);
    if poison(&vm) {
        match end_of(&vm) {
            GuestExit::PowerOff { code } => assert_eq!(code, 42),
            GuestExit::Crash(text) => assert!(text.contains("on all vcpus at once"), "{text}"),
            exit => panic!("{exit}"),
        }
    }
}

/// Ring 0 touches the page by an instruction that KVM may have to interpret.
#[test]
fn a_kernel_that_touches_the_page_is_stopped_whatever_it_does() {
    if !common::have_kvm() {
        return;
    }
    let accesses: [&[u8]; 5] = [
        &[0x48, 0x8b, 0x04, 0x25, 0x28, 0x01, 0x60, 0x00], // mov rax,[0x600128]
        &[0x48, 0x89, 0x04, 0x25, 0x28, 0x01, 0x60, 0x00], // mov [0x600128],rax
        &[0xf0, 0x48, 0xff, 0x04, 0x25, 0x28, 0x01, 0x60, 0x00], // lock inc qword [0x600128]
        &[0xb8, 0x28, 0x01, 0x60, 0x00, 0xff, 0xe0],       // mov eax,0x600128; jmp rax
        &[0xbc, 0x30, 0x01, 0x60, 0x00, 0x50],             // mov esp,0x600130; push rax
    ];
    for access in accesses {
        // If it goes on: mov al,43; out 0xf4,al; jmp .
        let code = [access, &[0xb0, 43, 0xe6, 0xf4, 0xeb, 0xfe]].concat();
        let (vm, _) = common::tiny_vm(&code, Protocol::Linux64);
        if poison(&vm) {
            println!("{access:x?}: {}", stopped(&vm));
        }
    }
}
