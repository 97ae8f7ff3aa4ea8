//! The bare guest: owns all memory behind its image and checks every byte of it, for ever.
//!
//! `ring0.S` starts each vCPU and leaves it in ring 3 in `start`. README.md has the command
//! line, the lines it prints and how to boot it.

#![no_std]
#![no_main]

mod console;
mod faults;
mod guest;
mod machine;
mod vcpu;
mod virtio;
mod workload;

use core::panic::PanicInfo;
use core::sync::atomic::Ordering::SeqCst;

use godwit_guest::clock::Clock;

use crate::console::Console;
use crate::guest::Guest;
use crate::machine::boot::Boot;
use crate::machine::once::Once;
use crate::machine::{cpus, timer};
use crate::vcpu::Vcpu;

/// What every vCPU does: its index, the address of what the loader left, and whether the loader
/// used the 64-bit Linux protocol.
fn start(index: u32, information: u64, linux64: bool) -> ! {
    if index == 0 {
        Console::prepare();
        let guest = match make_guest(information, linux64) {
            Ok(guest) => GUEST.set(guest),
            Err(error) => stop(EXIT_SETUP, format_args!("error {error}")),
        };
        if guest.config.timer_hz > 0 {
            timer::start(guest.config.timer_hz);
        }
        start_others(guest);
    }
    let guest = GUEST.get();
    guest.online.fetch_add(1, SeqCst);
    let mut vcpu = Vcpu::new(guest, index as usize);
    workload::run(&mut vcpu)
}

fn make_guest(information: u64, linux64: bool) -> Result<Guest, guest::Error> {
    let boot = Boot::read(information, linux64).ok_or(guest::Error::NoInformation)?;
    Guest::new(&boot)
}

/// Starts the other vCPUs one after the other, so that vCPU k is the one with APIC k.
fn start_others(guest: &'static Guest) {
    let vcpus = guest.config.vcpus as u32;
    if vcpus > 1 {
        cpus::prepare();
    }
    for index in 1..vcpus {
        cpus::start(index, guest.config.cycles(1));
        let deadline = machine::tsc() + guest.config.cycles(START_MS_MAX);
        while guest.online.load(SeqCst) < index {
            if machine::tsc() > deadline {
                stop(EXIT_SETUP, format_args!("error vcpu {index} did not start; see vcpus="));
            }
        }
    }
}

/// Prints a last line and ends the guest.
fn stop(code: u8, line: core::fmt::Arguments<'_>) -> ! {
    Console::line(&mut Clock::new(machine::tsc()), line);
    machine::exit(code)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    Console::release();
    match info.location() {
        Some(at) => stop(EXIT_PANIC, format_args!("panic at {}:{}", at.file(), at.line())),
        None => stop(EXIT_PANIC, format_args!("panic")),
    }
}

static GUEST: Once<Guest> = Once::new();

/// Exit codes; `ring0.S` has 3 for an exception.
const EXIT_SETUP: u8 = 2;
const EXIT_PANIC: u8 = 4;
/// Milliseconds that another vCPU may take to report that it runs.
const START_MS_MAX: u64 = 5_000;
