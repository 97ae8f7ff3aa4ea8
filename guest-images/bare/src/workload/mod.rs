//! The workloads: what a vCPU does from its start to the end.

mod chase;
mod clock;
mod dirty;
mod disk;
mod halt;
mod random;
mod sequential;
mod smp;
mod timed;

use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use godwit_guest::config::Workload;
use godwit_guest::page::{self, Content};

use crate::machine::{self, ring0, tsc};
use crate::vcpu::Vcpu;

/// Fills this vCPU's share, then does what the command line says.
pub fn run(vcpu: &mut Vcpu) -> ! {
    if vcpu.index == 0 {
        print_start(vcpu);
    }
    fill(vcpu);
    vcpu.wait_for_all(&vcpu.guest.filled);
    if vcpu.index == 0 {
        vcpu.line(format_args!("filled pages={} tsc={}", vcpu.guest.owned_pages, tsc()));
    }
    match vcpu.guest.config.workload {
        Workload::Halt => halt::run(vcpu),
        Workload::Touch | Workload::Checksum => sequential::run(vcpu, 1),
        Workload::Stride => sequential::run(vcpu, vcpu.guest.config.stride_pages),
        Workload::Random => random::run(vcpu),
        Workload::Chase => chase::run(vcpu),
        Workload::Dirty => dirty::run(vcpu),
        Workload::Disk => disk::run(vcpu),
        Workload::Smp => smp::run(vcpu),
        Workload::Clock => clock::run(vcpu),
    }
    finish(vcpu)
}

fn print_start(vcpu: &mut Vcpu) {
    let guest = vcpu.guest;
    vcpu.line(format_args!(
        "start workload={} vcpus={} arena_pages={} owned_pages={} entry={} tsc={}",
        guest.config.workload.name(),
        guest.config.vcpus,
        guest.arena_pages,
        guest.owned_pages,
        guest.protocol.name(),
        tsc(),
    ));
}

/// Writes generation 1 of all owned pages of this vCPU, and damages those that the command line
/// names.
fn fill(vcpu: &mut Vcpu) {
    if vcpu.guest.config.workload == Workload::Chase {
        chase::chain(vcpu).for_each(|(index, link)| fill_page(vcpu, index, link));
    } else {
        vcpu.owned_share().for_each(|index| fill_page(vcpu, index, 0));
    }
    let mine =
        |index: &u64| vcpu.owned_share().contains(index) || vcpu.zero_share().contains(index);
    if let Some(index) = vcpu.guest.config.corrupt.filter(mine) {
        vcpu.guest.page(index)[DAMAGED_WORD].fetch_xor(DAMAGE, Relaxed);
    }
    if let Some(index) = vcpu.guest.config.stale.filter(mine) {
        page::write(vcpu.guest.page(index), &vcpu.content(index, 0));
    }
}

fn fill_page(vcpu: &mut Vcpu, index: u64, link: u64) {
    let content = Content { link, ..vcpu.content(index, 1) };
    page::write(vcpu.guest.page(index), &content);
    vcpu.guest.set_generation(index, 1);
    vcpu.step();
}

/// All passes are done: the last vCPU says so and ends the guest if told to.
fn finish(vcpu: &mut Vcpu) -> ! {
    let guest = vcpu.guest;
    let before = guest.finished.fetch_add(1, AcqRel);
    if before as usize + 1 == guest.config.vcpus {
        let corrupt = guest.corrupt.load(Relaxed);
        let verified = guest.verified.load(Relaxed);
        vcpu.line(format_args!("end corrupt={corrupt} verified={verified}"));
        if let Some(code) = guest.config.exit {
            machine::exit(if corrupt == 0 { code } else { EXIT_CORRUPT });
        }
    }
    ring0::sleep_for_ever()
}

const EXIT_CORRUPT: u8 = 1;
/// The byte at offset 803 of the page that `corrupt=` names is wrong in one bit.
const DAMAGED_WORD: usize = 100;
const DAMAGE: u64 = 1 << 24;
