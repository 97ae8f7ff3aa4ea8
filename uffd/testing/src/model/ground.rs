//! Memory of the model to measure calls on.

use std::sync::Arc;

use godwit_uffd::abi::{API_VERSION, Answer, Call};
use godwit_uffd::memory::MemoryKind;
use godwit_uffd::model::threads::{finish, touch};
use godwit_uffd::model::{
    self, FileKind, Machine, MapRequest, Material, ModelUffd, PAGES_PER_HUGE, Profile, Setup,
    Thread, Touch,
};

use super::convert;
use crate::costs::{Ground, HUGE_PLACE_PAGES, Layout, modes, place_bytes, source_bytes};
use crate::world::{Advice, BASE_PAGE};

/// Memory of a machine of the model.
#[derive(Debug)]
pub struct ModelGround {
    machine: Arc<Machine>,
    thread: Thread,
    uffd: ModelUffd,
    layout: Layout,
}

impl ModelGround {
    /// A machine with memory of a kind.
    ///
    /// # Panics
    ///
    /// If the model refuses any of it.
    #[must_use]
    pub fn new(kind: MemoryKind) -> ModelGround {
        let setup = Setup {
            profile: Profile::NEWEST,
            hugetlb_pages: HUGE_PLACE_PAGES,
            unprivileged_userfaultfd: false,
        };
        let machine = Arc::new(Machine::new(setup));
        let process = machine.spawn(true);
        let thread = machine.thread(process);
        let context = machine.open(thread, model::Door::Call, 0).expect("a userfaultfd");
        let uffd = ModelUffd::new(Arc::clone(&machine), thread, context);
        let bytes = place_bytes(kind);
        let map = |len, material| map(&machine, thread, len, material);
        let source = map(source_bytes(kind), Material::Anonymous { huge: false });
        let place = map(bytes, material(&machine, kind));
        let other = (kind == MemoryKind::Anonymous).then(|| map(bytes, material(&machine, kind)));
        let layout = Layout { kind, place, other, source };
        let ground = ModelGround { machine, thread, uffd, layout };
        ground.store_into(source, source_bytes(kind));
        ground.made(Call::Api { api: API_VERSION, features: 0 });
        let mode = modes(kind).bits();
        for start in std::iter::once(place).chain(other) {
            ground.made(Call::Register { start, len: bytes, mode });
        }
        ground
    }

    /// Bytes that are not zero: a page of zeros takes no memory here, and copies faster.
    fn store_into(&self, start: u64, bytes: u64) {
        for address in (start..start + bytes).step_by(PAGE_BYTES) {
            let stored = touch(&self.machine, self.thread, address, Touch::Store(1));
            assert_eq!(stored, model::Outcome::Stored, "at {address:#x}");
        }
    }

    fn made(&self, call: Call) {
        let answer = self.uffd.call(call);
        assert_eq!(answer.result, Ok(()), "{call:?}");
    }
}

impl Ground for ModelGround {
    fn layout(&self) -> Layout {
        self.layout
    }

    fn call(&self, call: Call) -> Answer {
        self.uffd.call(call)
    }

    fn advise(&self, start: u64, bytes: u64, advice: Advice) {
        let advised = self.machine.advise(self.thread, start, bytes, convert::advice(advice));
        assert_eq!(finish(advised), model::Outcome::Returned(Ok(0)), "{advice:?}");
    }
}

fn material(machine: &Machine, kind: MemoryKind) -> Material {
    let file_kind = match kind {
        MemoryKind::Anonymous => return Material::Anonymous { huge: false },
        MemoryKind::HugetlbAnonymous => return Material::Hugetlb,
        MemoryKind::Memfd => FileKind::Shmem,
        MemoryKind::HugetlbMemfd => FileKind::Hugetlb,
    };
    let file = machine.make_file(file_kind, place_bytes(kind) / BASE_PAGE);
    Material::File { file, page: 0, shared: true, read_only: false }
}

fn map(machine: &Machine, thread: Thread, len: u64, material: Material) -> u64 {
    let request = MapRequest { len, material, access: model::Access::ReadWrite, at: None };
    match finish(machine.map(thread, request)) {
        model::Outcome::Returned(Ok(address)) => {
            let aligned = address.is_multiple_of(PAGES_PER_HUGE * BASE_PAGE);
            assert!(aligned, "a place of its own page tables, not {address:#x}");
            address
        }
        other => panic!("mmap has come to {other:?}"),
    }
}

const PAGE_BYTES: usize = 4096;
