//! The words of a world and those of the model, each way.

use godwit_uffd::model::{self, Categories, FileId, MapRequest, Material, Observed, PAGE};

use crate::world::{
    Access, Advice, Backing, Door, Entry, FileKind, Mapping, Outcome, Placement, Polled, Process,
    Remap, Scan, ScanRegion, Signal, Touch,
};

pub(super) fn outcome(outcome: &model::Outcome) -> Outcome {
    match *outcome {
        model::Outcome::Ioctl(answer) => Outcome::Ioctl(answer),
        model::Outcome::Loaded(byte) => Outcome::Loaded(byte),
        model::Outcome::Stored => Outcome::Stored,
        model::Outcome::Signal(raised) => Outcome::Signal(signal(raised)),
        model::Outcome::Returned(result) => Outcome::Returned(result),
        model::Outcome::Forked(child) => Outcome::Forked(Process(child.0)),
    }
}

fn signal(signal: model::Signal) -> Signal {
    match signal {
        model::Signal::Segv { address } => Signal::Segv { address },
        model::Signal::BusAddress { address } => Signal::BusAddress { address },
        model::Signal::BusPoison { address } => Signal::BusPoison { address },
    }
}

pub(super) fn file_kind(kind: FileKind) -> model::FileKind {
    match kind {
        FileKind::Shmem => model::FileKind::Shmem,
        FileKind::Hugetlb => model::FileKind::Hugetlb,
        FileKind::Regular => model::FileKind::Regular,
    }
}

pub(super) fn access(access: Access) -> model::Access {
    match access {
        Access::None => model::Access::None,
        Access::Read => model::Access::Read,
        Access::ReadWrite => model::Access::ReadWrite,
    }
}

pub(super) fn mapping(mapping: &Mapping) -> MapRequest {
    let material = match mapping.backing {
        Backing::Anonymous => Material::Anonymous { huge: false },
        Backing::TransparentHuge => Material::Anonymous { huge: true },
        Backing::SharedAnonymous => Material::SharedAnonymous,
        Backing::Hugetlb => Material::Hugetlb,
        Backing::File { file, page, shared, read_only_descriptor } => {
            Material::File { file: FileId(file.0), page, shared, read_only: read_only_descriptor }
        }
    };
    let access = access(mapping.access);
    MapRequest { len: mapping.pages * PAGE, material, access, at: mapping.at }
}

pub(super) fn advice(advice: Advice) -> model::Advice {
    match advice {
        Advice::DontNeed => model::Advice::DontNeed,
        Advice::Free => model::Advice::Free,
        Advice::Remove => model::Advice::Remove,
        Advice::PageOut => model::Advice::PageOut,
        Advice::GuardInstall => model::Advice::GuardInstall,
        Advice::GuardRemove => model::Advice::GuardRemove,
        Advice::NoHugePage => model::Advice::NoHugePage,
        Advice::HugePage => model::Advice::HugePage,
        Advice::Collapse => model::Advice::Collapse,
        Advice::Mergeable => model::Advice::Mergeable,
        Advice::PopulateRead => model::Advice::PopulateRead,
        Advice::PopulateWrite => model::Advice::PopulateWrite,
    }
}

pub(super) fn remap(remap: &Remap) -> model::Remap {
    model::Remap {
        from: remap.from,
        len: remap.pages * PAGE,
        new_len: remap.new_pages * PAGE,
        to: remap.to,
        dont_unmap: remap.dont_unmap,
    }
}

pub(super) fn door(door: Door) -> model::Door {
    match door {
        Door::Call => model::Door::Call,
        Door::Device => model::Door::Device,
        Door::InheritedDevice => model::Door::InheritedDevice,
    }
}

pub(super) fn placement(placement: Placement) -> model::Placement {
    match placement {
        Placement::Ordinary => model::Placement::Ordinary,
        Placement::ReadOnly => model::Placement::ReadOnly,
        Placement::Unmapped => model::Placement::Unmapped,
    }
}

pub(super) fn polled(polled: model::Polled) -> Polled {
    match polled {
        model::Polled::Idle => Polled::Idle,
        model::Polled::In => Polled::In,
        model::Polled::Err => Polled::Err,
        model::Polled::Hup => Polled::Hup,
    }
}

pub(super) fn touch(touch: Touch) -> model::Touch {
    match touch {
        Touch::Load => model::Touch::Load,
        Touch::Store(byte) => model::Touch::Store(byte),
        Touch::KernelLoad => model::Touch::KernelLoad,
        Touch::KernelStore(byte) => model::Touch::KernelStore(byte),
    }
}

pub(super) fn entry(observed: Observed) -> Entry {
    match observed {
        Observed::None => Entry::None,
        Observed::Anonymous { exclusive, protected, huge } => {
            Entry::Anonymous { exclusive, protected, huge }
        }
        Observed::Zero { protected } => Entry::Zero { protected },
        Observed::File { protected } => Entry::File { protected },
        Observed::ProtectMarker => Entry::ProtectMarker,
        Observed::PoisonMarker => Entry::PoisonMarker,
        Observed::GuardMarker => Entry::GuardMarker,
        Observed::Swap { protected } => Entry::Swap { protected },
        Observed::Migration => unreachable!("a world does not begin migrations"),
    }
}

pub(super) fn scan(scan: &Scan) -> model::Scan {
    model::Scan {
        start: scan.start,
        end: scan.end,
        protect: scan.flags & SCAN_WP_MATCHING != 0,
        check_async: scan.flags & SCAN_CHECK_WPASYNC != 0,
        mask: Categories::from_bits_retain(scan.mask),
    }
}

pub(super) fn region(region: model::Region) -> ScanRegion {
    let (start, end) = (region.start, region.end);
    ScanRegion { start, end, categories: region.categories.bits() }
}

const SCAN_WP_MATCHING: u64 = 1;
const SCAN_CHECK_WPASYNC: u64 = 2;
