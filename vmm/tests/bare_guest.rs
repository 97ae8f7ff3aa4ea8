//! The bare guest, whose programs run at native speed in ring 3 and check every byte they own:
//! booted by both protocols, paused, and carried from one VM to the next.

mod common;

use std::time::Duration;

use common::Screen;
use godwit_vmm::boot::KernelImage;
use godwit_vmm::guest_image::BARE;
use godwit_vmm::memory::Backing;
use godwit_vmm::vm::{GuestExit, Vm};

/// The guest's image without its PVH note, so that only the 64-bit protocol is left.
fn without_note() -> KernelImage {
    let mut image = BARE.to_vec();
    let note = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0";
    let at = image.windows(note.len()).position(|bytes| bytes == note);
    let at = at.or_else(|| {
        let note = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";
        image.windows(note.len()).position(|bytes| bytes == note)
    });
    image[at.expect("the image has a PVH note") + 8] = 0x7f;
    KernelImage::Embedded(image.leak())
}

/// A guest of `cpus` vCPUs and 64 MiB, booted and not started.
fn bare(kernel: &KernelImage, cpus: u8, command_line: &str) -> (Vm, Screen) {
    let screen = Screen::default();
    let config = common::config(cpus, 64, Backing::Anon);
    let vm = Vm::create(&config, Box::new(screen.clone())).unwrap();
    let command_line = format!("vcpus={cpus} timer=100 {command_line}");
    vm.boot(kernel, None, &command_line).unwrap();
    (vm, screen)
}

#[test]
fn guest_boots_by_both_protocols_and_verifies_its_memory() {
    if !common::have_kvm() {
        return;
    }
    for (kernel, entry) in [(KernelImage::Embedded(BARE), "pvh"), (without_note(), "linux64")] {
        for cpus in [1, 2] {
            let line = "workload=checksum passes=2 seed=7 exit=0";
            let (vm, screen) = bare(&kernel, cpus, line);
            let (exit, text) = common::run(&vm, &screen);
            assert_eq!(exit, GuestExit::PowerOff { code: 0 }, "{text}");
            assert!(text.contains(&format!("entry={entry}")), "{text}");
            assert!(text.contains(&format!("vcpus={cpus}")), "{text}");
        }
    }
}

/// Lets the guest run until it has written something new.
fn run_until_it_speaks(vm: &Vm, screen: &Screen) {
    let before = screen.text().len();
    while screen.text().len() == before && vm.exits().peek().is_none() {
        if vm.resume().is_err() {
            return;
        }
        vm.pause().unwrap();
        assert!(vm.drain_console(Duration::from_secs(10)));
    }
}

#[test]
fn guest_is_paused_hundreds_of_times() {
    if !common::have_kvm() {
        return;
    }
    let kernel = KernelImage::Embedded(BARE);
    let (vm, screen) = bare(&kernel, 2, "workload=smp passes=5 seed=3 exit=0");
    vm.start();
    for _ in 0..500 {
        vm.pause().unwrap();
        assert!(vm.is_paused());
        if vm.resume().is_err() {
            break;
        }
    }
    assert_eq!(common::wait_for_end(&vm), GuestExit::PowerOff { code: 0 }, "{}", screen.text());
}

#[test]
fn guest_is_carried_from_vm_to_vm() {
    if !common::have_kvm() {
        return;
    }
    let kernel = KernelImage::Embedded(BARE);
    for workload in ["dirty", "smp"] {
        let line = format!("workload={workload} passes=20 seed=5 exit=0");
        let (mut vm, mut screen) = bare(&kernel, 2, &line);
        vm.start();
        for round in 0..20 {
            run_until_it_speaks(&vm, &screen);
            if vm.exits().peek().is_some() {
                break;
            }
            let sections = vm.save().unwrap();
            let backing = if round % 2 == 0 { Backing::Memfd } else { Backing::Anon };
            let config = common::config(2, 64, backing);
            let next = Vm::create(&config, Box::new(screen.clone())).unwrap();
            common::copy_memory(&vm, &next);
            next.restore(&sections).unwrap();
            vm = next;
        }
        vm.start();
        let exit = common::wait_for_end(&vm);
        assert!(vm.drain_console(Duration::from_secs(10)));
        let text = std::mem::take(&mut screen).text();
        assert_eq!(exit, GuestExit::PowerOff { code: 0 }, "{text}");
        assert!(!text.contains("corrupt vcpu"), "{text}");
    }
}
