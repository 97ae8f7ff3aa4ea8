//! vCPU threads: one per vCPU, which runs the guest, answers its exits and stops when told to.
//!
//! A thread is a small state machine (`thread`): parked, running, gone. `control` is how the rest
//! of the VM tells all threads what to do and waits until they do it.
//!
//! # Kicks and missing pages
//!
//! While guest memory is registered with userfaultfd, a vCPU can wait inside KVM_RUN for a page
//! that is still on another host. It must stop nevertheless when the guest is paused, so a signal
//! kicks it out. What that does depends on who waits:
//!
//! * The guest itself, in an instruction that the processor runs: KVM looks the page up on its
//!   behalf, the signal ends that (since Linux 6.2), KVM_RUN returns EINTR, and the next entry
//!   raises the fault again.
//! * KVM, in an access of its own: its instruction interpreter, which runs all of ring 0 on hosts
//!   without VMX and SVM, its walk through the guest's page tables, its copies to and from guest
//!   memory. x86 Linux lets only a fatal signal end such an access. The vCPU stays in KVM_RUN until
//!   the page comes, and leaves right after that access. It is *late*: it cannot do anything before
//!   the page is there, and not go on after. A pause does not wait for it (see
//!   `Control::park_all`), a save is refused, and a shutdown takes the memory away, which does end
//!   the access. (Measured: had the access failed instead, the operands of an instruction could be
//!   had another way, but software KVM answers a failed interrupt delivery with a triple fault.)
//!
//! # Poisoned pages
//!
//! A page that is lost (see [`crate::memory`]) cannot be reached at all, and a guest must not go on
//! with wrong data because of that. An instruction that the processor runs has had no effect yet
//! when it touches such a page: KVM sends its thread a SIGBUS with the address, and the guest gets
//! a machine check (`poison`). If it has not enabled them, or touches the page again - which it
//! would do for ever - it is ended, and told of with the address.
//!
//! KVM's own accesses it reports in strange ways. An operand: as an access to a device at an
//! address that lies in RAM; the thread makes that access itself, with a system call that can fail
//! (`ram`), and completes the instruction as for a device, or ends the guest. An instruction: as
//! one that cannot be interpreted. Anything else: as EFAULT. The last two are tried again when a
//! kick came at the same time, a bounded number of times, and end the guest otherwise. (KVM would
//! raise #UD in the guest as well if KVM_CAP_EXIT_ON_EMULATION_FAILURE did not keep it from that;
//! where a program of the guest does use an instruction that KVM cannot interpret, we raise #UD
//! instead.)

mod control;
mod poison;
mod ram;
mod report;
mod running;
mod thread;

pub(crate) use control::{Control, Wanted};
pub(crate) use thread::{CpuShared, spawn};
