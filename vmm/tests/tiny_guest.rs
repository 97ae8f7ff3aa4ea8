//! Guests of a few instructions, on real KVM: boot, devices, pause, save and restore.

mod common;

use std::io;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Protocol, Screen};
use godwit_vmm::boot::KernelImage;
use godwit_vmm::memory::Backing;
use godwit_vmm::vm::{GuestExit, Vm};

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

/// A bzImage of one setup sector whose 64-bit entry is `code`.
fn bzimage(code: &[u8]) -> KernelImage {
    let mut file = vec![0; 2 * 512 + 0x200];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: loaded high
    put(0x214, &0x10_0000_u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x236, &1_u16.to_le_bytes()); // xloadflags: has a 64-bit entry
    put(0x238, &255_u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x10_0000_u64.to_le_bytes()); // pref_address
    put(0x260, &0x20_0000_u32.to_le_bytes()); // init_size
    file.extend_from_slice(code);
    KernelImage::Embedded(file.leak())
}

fn half_word(vm: &Vm, at: u64) -> u64 {
    common::read(vm, at) & 0xffff_ffff
}

#[test]
fn bzimage_is_told_of_command_line_memory_and_initramfs() {
    if !common::have_kvm() {
        return;
    }
    let screen = Screen::default();
    let config = common::config(1, 16, Backing::Anon);
    let vm = Vm::create(&config, Box::new(screen.clone())).unwrap();
    let mut initramfs = tempfile::NamedTempFile::new().unwrap();
    initramfs.write_all(&[0x5a; 5000]).unwrap();
    let kernel = bzimage(HELLO);
    assert!(vm.boot(&kernel, None, &"x".repeat(256)).is_err());
    vm.boot(&kernel, Some(initramfs.path()), "quiet=1").unwrap();
    let place = half_word(&vm, ZERO_PAGE + 0x218);
    assert_eq!((place, half_word(&vm, ZERO_PAGE + 0x21c)), ((16 << 20) - 8192, 5000));
    assert_eq!(common::read(&vm, place), 0x5a5a_5a5a_5a5a_5a5a);
    let line = half_word(&vm, ZERO_PAGE + 0x228);
    assert_eq!(common::read(&vm, line).to_le_bytes(), *b"quiet=1\0");
    assert_eq!(common::read(&vm, ZERO_PAGE + 0x1e8) & 0xff, 3, "lines of the memory map");
    assert_eq!(common::read(&vm, ZERO_PAGE + 0x2d0 + 40), 0x10_0000);
    assert_eq!(common::read(&vm, ZERO_PAGE + 0x2d0 + 48), 15 << 20);
    assert_eq!(common::run(&vm, &screen).1, "hi\n");
}

#[test]
fn pvh_kernel_is_told_of_command_line_memory_and_initramfs() {
    if !common::have_kvm() {
        return;
    }
    let config = common::config(1, 16, Backing::Anon);
    let vm = Vm::create(&config, Box::new(Screen::default())).unwrap();
    let mut initramfs = tempfile::NamedTempFile::new().unwrap();
    initramfs.write_all(&[0x5a; 5000]).unwrap();
    let kernel = common::elf(HELLO, Protocol::Pvh);
    vm.boot(&kernel, Some(initramfs.path()), "quiet=1").unwrap();
    assert_eq!(half_word(&vm, START_INFO), 0x336e_c578);
    assert_eq!(half_word(&vm, START_INFO + 12), 1, "modules");
    let module = common::read(&vm, START_INFO + 16);
    assert_eq!(common::read(&vm, module + 8), 5000);
    let place = common::read(&vm, module);
    assert_eq!(common::read(&vm, place), 0x5a5a_5a5a_5a5a_5a5a);
    let line = common::read(&vm, START_INFO + 24);
    assert_eq!(common::read(&vm, line).to_le_bytes(), *b"quiet=1\0");
    assert_eq!(half_word(&vm, START_INFO + 48), 3, "lines of the memory map");
    let map = common::read(&vm, START_INFO + 40);
    assert_eq!(common::read(&vm, map + 48), 0x10_0000);
    assert_eq!(common::read(&vm, map + 56), 15 << 20);
}

const ZERO_PAGE: u64 = 0x7000;
const START_INFO: u64 = 0x6000;

/// Counts in memory at 2 MiB, for ever, in 64 bits.
const COUNT: &[u8] = &[
    0x48, 0xff, 0x04, 0x25, 0, 0, 0x20, 0, // inc qword [0x200000]
    0xeb, 0xf6, // jmp back
];

fn count(vm: &Vm) -> u64 {
    common::read(vm, 0x20_0000)
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

/// Sends back what it reads from the serial port, in 64 bits, and ends after a newline.
const ECHO: &[u8] = &[
    0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
    0xec, // again: in al, dx
    0xa8, 0x01, // test al, 1
    0x74, 0xfb, // jz again
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec, 0xee, // in al, dx; out dx, al
    0x3c, 0x0a, // cmp al, 10
    0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
    0x75, 0xed, // jne again
    0xb0, 0x2a, 0xe6, 0xf4, // mov al, 42; out 0xf4, al
    0xeb, 0xfe, // jmp .
];

#[test]
fn input_reaches_the_guest_also_across_a_move() {
    if !common::have_kvm() {
        return;
    }
    let (vm, _) = common::tiny_vm(ECHO, Protocol::Linux64);
    // More than the port's own 64 bytes, and nothing read yet.
    let text = format!("{}\n", "godwit ".repeat(40));
    let (before, after) = text.split_at(200);
    assert_eq!(vm.console_input(before.as_bytes()), before.len());
    let screen = Screen::default();
    let next = Vm::create(vm.config(), Box::new(screen.clone())).unwrap();
    common::copy_memory(&vm, &next);
    next.restore(&vm.save().unwrap()).unwrap();
    assert_eq!(next.console_input(after.as_bytes()), after.len());
    let (exit, echo) = common::run(&next, &screen);
    assert_eq!((exit, echo), (GuestExit::PowerOff { code: 42 }, text));
    assert!(next.console_input(&[0; 1 << 20]) < 1 << 20);
}

#[test]
fn guest_ends_by_reset_and_by_triple_fault() {
    if !common::have_kvm() {
        return;
    }
    let reset = &[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe]; // mov al, 0xfe; out 0x64, al; jmp .
    let (vm, screen) = common::tiny_vm(reset, Protocol::Linux64);
    assert_eq!(common::run(&vm, &screen).0, GuestExit::Reset);
    let undefined = &[0x0f, 0x0b]; // ud2, with no descriptor table for what follows
    let (vm, screen) = common::tiny_vm(undefined, Protocol::Linux64);
    let (exit, _) = common::run(&vm, &screen);
    let GuestExit::Crash(text) = exit else { panic!("{exit}") };
    assert!(text.contains("vcpu 0") && text.contains("rip 0x100000"), "{text}");
    // What has ended stays ended.
    vm.pause().unwrap();
    assert!(vm.is_paused());
    assert!(vm.resume().is_err());
    assert!(vm.save().is_err());
}

/// Writes to the serial port for ever, and counts the bytes in memory at 2 MiB.
const CHATTER: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'x', 0xee, // again: mov al, 'x'; out dx, al
    0x48, 0xff, 0x04, 0x25, 0, 0, 0x20, 0, // inc qword [0x200000]
    0xeb, 0xf3, // jmp again
];

/// A writer that nobody empties, as long as its lock is held.
struct Stalled(Arc<Mutex<usize>>);

impl Write for Stalled {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        *self.0.lock().unwrap() += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn stalled_console_delays_nobody_and_loses_nothing() {
    if !common::have_kvm() {
        return;
    }
    let written = Arc::new(Mutex::new(0));
    let stall = written.lock().unwrap();
    let config = common::config(1, 16, Backing::Anon);
    let vm = Vm::create(&config, Box::new(Stalled(Arc::clone(&written)))).unwrap();
    vm.boot(&common::elf(CHATTER, Protocol::Linux64), None, "").unwrap();
    vm.start();
    // The guest comes to a stop behind its full console.
    let mut last = 0;
    loop {
        last = count_on(&vm, last);
        if last > 1000 {
            break;
        }
    }
    vm.save().unwrap();
    assert!(!vm.drain_console(Duration::ZERO));
    drop(stall);
    assert!(vm.drain_console(Duration::from_secs(60)));
    // The instruction that wrote the last byte is complete, the one that counts may not be.
    let counted = usize::try_from(count(&vm)).unwrap();
    let written = *written.lock().unwrap();
    assert!(written == counted || written == counted + 1, "{written} of {counted}");
}
