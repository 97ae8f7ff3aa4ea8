//! The running state: enter the guest, answer what it exits for, stop when told to.

use std::error::Error;
use std::sync::{MutexGuard, PoisonError};

use godwit_uffd::page::{Gpa, Hva};

use super::poison::Poison;
use super::ram::{Ferry, RamAccess};
use super::thread::CpuShared;
use super::{Wanted, poison, report};
use crate::kvm::{Exit, ImmediateExit, Vcpu};
use crate::vm::GuestExit;

/// What a vCPU thread works with.
pub(super) struct Tools {
    pub(super) immediate_exit: ImmediateExit,
    pub(super) ferry: Ferry,
    pub(super) poison: Poison,
}

/// In the guest, or about to be.
pub(super) struct Running<'a> {
    shared: &'a CpuShared,
    vcpu: MutexGuard<'a, Vcpu>,
    /// The instruction that caused the last exit ends when the guest is entered again.
    completing: bool,
    /// Failures in a row that a kick may have caused.
    failures: u32,
}

/// What an exit leads to.
enum After {
    /// A device was asked; the instruction ends on the next entry.
    Answered,
    /// Memory must be accessed for KVM; then the instruction ends on the next entry.
    Ram(RamAccess),
    /// KVM stopped in good order.
    Interrupted,
    /// KVM could not reach memory.
    Fault,
    /// The page at this address is poisoned.
    Poisoned(Hva),
    /// KVM could not interpret an instruction.
    EmulationFailed,
    /// The guest is at its end.
    End(GuestExit),
    /// The guest cannot go on.
    Crash(String),
}

impl<'a> Running<'a> {
    /// Takes the vCPU.
    pub(super) fn begin(shared: &'a CpuShared) -> Running<'a> {
        let vcpu = shared.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        Running { shared, vcpu, completing: false, failures: 0 }
    }

    /// Runs the guest until something else is wanted, and leaves it between two instructions.
    pub(super) fn step(mut self, tools: &mut Tools) {
        loop {
            // In this order: a kick that comes in between sets the byte again.
            tools.immediate_exit.clear();
            if self.wanted() != Wanted::Running {
                break;
            }
            self.turn(tools);
        }
        for _ in 0..COMPLETIONS_MAX {
            if !self.completing || self.wanted() == Wanted::Gone {
                break;
            }
            tools.immediate_exit.set();
            self.turn(tools);
        }
    }

    /// One entry and what it leads to.
    fn turn(&mut self, tools: &mut Tools) {
        let after = enter(self.shared, &mut self.vcpu);
        self.completing = matches!(after, After::Answered);
        if !matches!(after, After::Fault | After::EmulationFailed) {
            self.failures = 0;
        }
        match after {
            After::Answered => {
                let shared = self.shared;
                shared.devices.wait_for_console(|| shared.control.wanted() != Wanted::Running);
            }
            After::Ram(access) => self.access_ram(tools, access),
            After::Interrupted => {}
            After::Fault => self.retry(tools, "KVM cannot reach guest memory"),
            After::Poisoned(address) => {
                let touched = tools.poison.touched(self.shared, &self.vcpu, address);
                touched.unwrap_or_else(|what| self.crash(&what));
            }
            After::EmulationFailed => self.emulation_failed(tools),
            After::End(exit) => {
                self.completing = true;
                self.end(exit);
            }
            After::Crash(what) => self.crash(&what),
        }
    }

    /// Makes an access to memory that KVM took for a device.
    fn access_ram(&mut self, tools: &mut Tools, mut access: RamAccess) {
        match tools.ferry.carry(&self.shared.memory, &mut access) {
            Ok(()) => {
                if !access.write {
                    self.vcpu.answer_mmio(&access.data[..access.bytes]);
                }
                self.completing = true;
            }
            Err(_) => self.crash(&self.why_unreachable(Gpa(access.gpa))),
        }
    }

    fn why_unreachable(&self, gpa: Gpa) -> String {
        // Memory that was taken away is not asked for: nobody hears the answer.
        let here = self.wanted() != Wanted::Gone;
        match here.then(|| self.shared.memory.poisoned_page(gpa)).flatten() {
            Some(page) => poison::stopped(page, poison::IN_THE_MIDDLE),
            None => format!("guest memory at {:#x} cannot be reached", gpa.0),
        }
    }

    /// Enters the guest again after a failure that a kick may explain, but not for ever.
    fn retry(&mut self, tools: &Tools, what: &str) {
        self.failures += 1;
        if !tools.immediate_exit.is_set() || self.failures > FAILURES_MAX {
            self.crash(what);
        }
    }

    fn emulation_failed(&mut self, tools: &Tools) {
        if let Some(page) = poison::poisoned_code(self.shared, &self.vcpu) {
            return self.crash(&poison::stopped(page, poison::IN_THE_MIDDLE));
        }
        let in_user_mode = self.vcpu.get_sregs2().is_ok_and(|sregs| sregs.ss.dpl == 3);
        if tools.immediate_exit.is_set() || !in_user_mode {
            return self.retry(tools, "KVM cannot interpret the instruction");
        }
        // What KVM does by itself when it is not asked to report the failure.
        if let Err(error) = self.vcpu.raise_invalid_opcode() {
            self.crash(&describe(&error));
        }
    }

    fn wanted(&self) -> Wanted {
        self.shared.control.wanted()
    }

    fn crash(&self, what: &str) {
        self.end(GuestExit::Crash(report::crash(self.shared.index, &self.vcpu, what)));
    }

    fn end(&self, exit: GuestExit) {
        self.shared.devices.flush_console();
        self.shared.exits.post(exit);
        self.shared.control.end();
    }
}

/// Runs the guest once and asks the devices if it exits for one.
fn enter(shared: &CpuShared, vcpu: &mut Vcpu) -> After {
    let exit = match vcpu.enter() {
        // The memory may have been taken away: what the guest does now means nothing.
        _ if shared.control.wanted() == Wanted::Gone => return After::Interrupted,
        Ok(exit) => exit,
        Err(error) => return After::Crash(describe(&error)),
    };
    let ended = match exit {
        Exit::Io { port, size, direction, data } => {
            shared.devices.port_io(port, size, direction, data)
        }
        Exit::Mmio { gpa, write, data } => {
            if shared.memory.contains(Gpa(gpa), data.len() as u64) {
                return After::Ram(ram_access(gpa, write, data));
            }
            shared.devices.mmio(gpa, write, data)
        }
        Exit::Interrupted | Exit::Again => return After::Interrupted,
        Exit::Fault => return After::Fault,
        Exit::Poisoned(address) => return After::Poisoned(address),
        Exit::EmulationFailed => return After::EmulationFailed,
        Exit::Shutdown => return After::Crash("the guest gave up (triple fault)".to_owned()),
        Exit::Halted => return After::Crash("the guest halted without interrupts".to_owned()),
        Exit::Unexpected(what) => return After::Crash(what),
    };
    ended.map_or(After::Answered, After::End)
}

fn ram_access(gpa: u64, write: bool, bytes: &[u8]) -> RamAccess {
    let mut data = [0; 8];
    data[..bytes.len()].copy_from_slice(bytes);
    RamAccess { gpa, write, data, bytes: bytes.len() }
}

/// An error and its causes on one line.
pub(super) fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Entries to finish one instruction: as many as it has operands in pages of its own, with room.
const COMPLETIONS_MAX: u32 = 64;

/// Failures in a row that kicks may explain.
const FAILURES_MAX: u32 = 1_000;
