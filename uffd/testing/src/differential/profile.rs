//! Which kernel is running, told by trial calls: a version number says nothing about backports.

use godwit_uffd::abi::{Answer, Call, Errno, Out};
use godwit_uffd::model::Profile;

use crate::world::{
    Ability, Access, Advice, BASE_PAGE, Backing, Door, Entry, Fd, FileKind, Mapping, Outcome,
    Placement, Process, Remap, Signal, Step, Touch, World,
};

const CLOEXEC_NONBLOCK: u32 = 0o200_4000;
const MISSING: u64 = 1;
const PROTECT: u64 = 2;
const MINOR: u64 = 4;
const EEXIST: Errno = Errno(17);
const EBUSY: Errno = Errno(16);

/// The profile of a world. It leaves memory and descriptors behind, so the world is not used for
/// anything else.
#[must_use]
pub fn of(world: &mut dyn World) -> Profile {
    let newest = world.can(Ability::Newest).is_ok();
    let base = if newest { Profile::NEWEST } else { Profile::V6_18 };
    let process = world.root();
    let mut trial = Trial { world, process };
    let respects = trial.fill_respects_guard();
    Profile {
        copy_notices_changed_map: trial.copy_notices_changed_map(),
        fill_respects_guard: respects,
        // The same change brought both, and this one shows in a race only.
        waits_on_guard: !respects,
        continue_past_end: trial.continue_past_end(),
        register_keeps_protection: trial.register_keeps_protection(),
        remap_clears_protection: trial.remap_clears_protection(),
        remembers_guards: trial.remembers_guards(),
        memory_failure: trial.memory_failure(),
        ..base
    }
}

struct Trial<'w> {
    world: &'w mut dyn World,
    process: Process,
}

impl Trial<'_> {
    fn map(&mut self, backing: Backing) -> u64 {
        let mapping = Mapping { pages: 4, backing, access: Access::ReadWrite, at: None };
        self.world.map(self.process, mapping).expect("a small mapping")
    }

    fn open(&mut self) -> Fd {
        let fd = self.world.open(self.process, Door::Call, CLOEXEC_NONBLOCK);
        let fd = fd.expect("a userfaultfd");
        assert_eq!(self.call(fd, Call::Api { api: 0xAA, features: 0 }).result, Ok(()));
        fd
    }

    fn call(&mut self, fd: Fd, call: Call) -> Answer {
        match self.world.ioctl(self.process, fd, call, Placement::Ordinary) {
            Step::Done(Outcome::Ioctl(answer)) => answer,
            other => panic!("{call:?} has come to {other:?}"),
        }
    }

    fn armed(&mut self, backing: Backing, mode: u64) -> (Fd, u64) {
        let (fd, start) = (self.open(), self.map(backing));
        let register = Call::Register { start, len: 4 * BASE_PAGE, mode };
        assert_eq!(self.call(fd, register).result, Ok(()));
        (fd, start)
    }

    fn copy(&mut self, fd: Fd, dst: u64) -> Answer {
        let src = self.map(Backing::Anonymous);
        self.call(fd, Call::Copy { dst, src, len: BASE_PAGE, mode: 0 })
    }

    fn fill_respects_guard(&mut self) -> bool {
        let (fd, start) = self.armed(Backing::Anonymous, MISSING);
        let guarded = self.world.advise(self.process, start, 1, Advice::GuardInstall);
        // A kernel without guards has none to respect.
        guarded == Step::Done(Outcome::Returned(Ok(0)))
            && self.copy(fd, start).result == Err(EEXIST)
    }

    fn continue_past_end(&mut self) -> Errno {
        let file = self.world.make_file(FileKind::Shmem, 4);
        let backing = Backing::File { file, page: 0, shared: true, read_only_descriptor: false };
        let (fd, start) = self.armed(backing, MINOR);
        self.world.file_truncate(file, 1);
        let start = start + 2 * BASE_PAGE;
        let answer = self.call(fd, Call::Continue { start, len: BASE_PAGE, mode: 0 });
        answer.result.expect_err("nothing is behind the end of a file")
    }

    fn register_keeps_protection(&mut self) -> bool {
        let (fd, start) = self.armed(Backing::Anonymous, PROTECT);
        let register = Call::Register { start, len: 4 * BASE_PAGE, mode: MISSING };
        self.call(fd, register).result == Err(EBUSY)
    }

    fn remap_clears_protection(&mut self) -> bool {
        let (fd, from) = self.armed(Backing::Anonymous, PROTECT);
        let _ = self.world.touch(self.process, from, Touch::Store(1));
        let protect = Call::WriteProtect { start: from, len: BASE_PAGE, mode: 1 };
        assert_eq!(self.call(fd, protect).result, Ok(()));
        let to = self.map(Backing::Anonymous);
        let (pages, new_pages) = (4, 4);
        let remap = Remap { from, pages, new_pages, to: Some(to), dont_unmap: false };
        assert_eq!(self.world.remap(self.process, remap), Step::Done(Outcome::Returned(Ok(to))));
        !matches!(self.world.entry(self.process, to), Entry::Anonymous { protected: true, .. })
    }

    fn remembers_guards(&mut self) -> bool {
        let (from, to) = (self.map(Backing::Anonymous), self.map(Backing::Anonymous));
        let guarded = self.world.advise(self.process, from, 1, Advice::GuardInstall);
        let remap = Remap { from, pages: 4, new_pages: 4, to: Some(to), dont_unmap: true };
        assert_eq!(self.world.remap(self.process, remap), Step::Done(Outcome::Returned(Ok(to))));
        // The zero page, which a child gets only with a copy of the page table.
        let _ = self.world.touch(self.process, from + BASE_PAGE, Touch::Load);
        let Step::Done(Outcome::Forked(child)) = self.world.fork(self.process) else {
            panic!("a fork that nobody is told of")
        };
        let copied = self.world.entry(child, from + BASE_PAGE) != Entry::None;
        self.world.exit(child);
        guarded == Step::Done(Outcome::Returned(Ok(0))) && copied
    }

    fn memory_failure(&mut self) -> bool {
        let (fd, start) = self.armed(Backing::Anonymous, MISSING);
        let poison = Call::Poison { start, len: BASE_PAGE, mode: 0 };
        let poisoned = self.call(fd, poison).out == Out::Done(BASE_PAGE.cast_signed());
        let touched = self.world.touch(self.process, start, Touch::Load);
        let broken = Step::Done(Outcome::Signal(Signal::BusPoison { address: start }));
        poisoned && touched == broken
    }

    fn copy_notices_changed_map(&mut self) -> bool {
        let (source, src) = self.armed(Backing::Anonymous, MISSING);
        let (fd, dst) = self.armed(Backing::Anonymous, MISSING);
        let copy = Call::Copy { dst, src, len: BASE_PAGE, mode: 0 };
        let step = self.world.ioctl(self.process, fd, copy, Placement::Ordinary);
        let Step::Parked(ticket) = step else { panic!("a COPY from a hole: {step:?}") };
        let mode = MISSING | PROTECT;
        let register = Call::Register { start: dst, len: 4 * BASE_PAGE, mode };
        assert_eq!(self.call(fd, register).result, Ok(()));
        assert_eq!(self.copy(source, src).result, Ok(()));
        match self.world.poll_ticket(ticket) {
            Step::Done(Outcome::Ioctl(answer)) => answer.result.is_err(),
            other => panic!("a COPY whose source has come: {other:?}"),
        }
    }
}
