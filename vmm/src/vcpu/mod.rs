//! vCPU threads: one per vCPU, which runs the guest, answers its exits and stops when told to.
//!
//! A thread is a small state machine (`thread`): parked, running, gone. `control` is how the rest
//! of the VM tells all threads what to do and waits until they do it.
//!
//! # Kicks and missing pages
//!
//! While guest memory is registered with userfaultfd, a vCPU can wait inside KVM_RUN for a page
//! that is still on another host. It must stop nevertheless when the guest is paused, so a signal
//! kicks it out. Where the processor runs the guest, that is harmless: the fault is raised again on
//! the next entry. Where KVM acts *for* the guest, it is not. KVM's instruction interpreter (which
//! runs all of ring 0 on hosts without VMX and SVM), its page-table walker and its copies to and
//! from guest memory get EFAULT instead of the page, and KVM draws the wrong conclusion:
//!
//! * from a failed read or write of an operand: there is no memory, so this must be a device, and it
//!   reports a memory-mapped access to an address that lies in RAM. The thread performs the access
//!   itself (`ram`), and completes the instruction as for a device.
//! * from a failed read of an instruction: it cannot be interpreted. The instruction has had no
//!   effect, so the thread enters the guest again. KVM would raise #UD in the guest as well, if
//!   KVM_CAP_EXIT_ON_EMULATION_FAILURE did not keep it from doing so; where the guest does use an
//!   instruction that KVM cannot interpret, we raise #UD instead.
//! * from a failed read of a page-table entry: it is not present, and a page fault is put in the
//!   guest's way. Delivery of it happens on the next entry, so the thread takes it back before. A
//!   page fault that the guest really has is raised again by the same instruction.
//! * from anything else: EFAULT, which is tried again too.
//!
//! "Again" is bounded: what fails many times in a row, or without a kick, is an error of the guest
//! or the host, and ends the guest with a message.

mod control;
mod ram;
mod report;
mod running;
mod thread;

pub(crate) use control::{Control, Wanted};
pub(crate) use thread::{CpuShared, spawn};
