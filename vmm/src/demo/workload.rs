//! What the guest of a demo does, and what it has verified when all of its memory is.

use clap::ValueEnum;

/// The workloads of the bare guest that verify all of its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Verify each page and write its next generation, as fast as possible
    Dirty,
    /// Verify all pages in order, for ever
    Checksum,
    /// Verify the pages in a random order
    Random,
    /// Follow links from page to page and verify each
    Chase,
    /// Verify the pages with a stride
    Stride,
    /// Verify all pages in order (as checksum: for ever, so that there is an end at the
    /// destination)
    Touch,
    /// All vCPUs verify and write all pages in turns
    Smp,
    /// Sleep, and once a second verify everything on one vCPU
    Halt,
}

/// The guest's memory as it reported it at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arena {
    /// Pages that are verified.
    pub pages: u64,
    /// Of those, pages that were written; the others are verified to be zero.
    pub owned: u64,
}

impl Workload {
    /// The guest's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Dirty => "dirty",
            Workload::Checksum => "checksum",
            Workload::Random => "random",
            Workload::Chase => "chase",
            Workload::Stride => "stride",
            Workload::Touch => "touch",
            Workload::Smp => "smp",
            Workload::Halt => "halt",
        }
    }

    /// The command line that makes the guest do it for ever, with a verdict after each pass.
    pub fn command_line(self) -> String {
        let options = match self {
            Workload::Touch => " passes=0",
            // Latencies by window are for benches, and long on a slow serial port.
            Workload::Random | Workload::Chase => " windows=0",
            Workload::Halt => " timer=100",
            Workload::Dirty | Workload::Checksum | Workload::Stride | Workload::Smp => "",
        };
        format!("workload={}{options}", self.name())
    }

    /// How many of `vcpus` vCPUs report passes, the first ones.
    pub fn vcpus_at_work(self, vcpus: usize) -> usize {
        if self == Workload::Halt { 1 } else { vcpus }
    }

    /// The pages that `vcpu` of `vcpus` verifies in one pass.
    pub fn pages_of_a_pass(self, arena: Arena, vcpu: usize, vcpus: usize) -> u64 {
        let zero = share(arena.pages - arena.owned, vcpu, vcpus);
        match self {
            Workload::Halt if vcpu == 0 => arena.pages,
            Workload::Halt => 0,
            Workload::Smp => arena.owned + zero,
            _ => share(arena.owned, vcpu, vcpus) + zero,
        }
    }
}

/// How many of `count` pages belong to `vcpu`: the guest divides them so.
fn share(count: u64, vcpu: usize, vcpus: usize) -> u64 {
    let (vcpu, vcpus) = (vcpu as u64, vcpus as u64);
    count * (vcpu + 1) / vcpus - count * vcpu / vcpus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_passes_of_all_vcpus_cover_the_arena() {
        let arena = Arena { pages: 1001, owned: 700 };
        for workload in Workload::value_variants() {
            for vcpus in 1..5 {
                let pages = |vcpu| workload.pages_of_a_pass(arena, vcpu, vcpus);
                let all: u64 = (0..vcpus).map(pages).sum();
                let again = if *workload == Workload::Smp { vcpus as u64 - 1 } else { 0 };
                assert_eq!(all, arena.pages + again * arena.owned, "{workload:?}");
                assert!((workload.vcpus_at_work(vcpus)..vcpus).all(|vcpu| pages(vcpu) == 0));
            }
        }
    }
}
