//! Creation, handshake and negotiation (sections 1 and 6).

use godwit_uffd::abi::{Answer, Call, Out, RawMessage};

use super::setup::{Rig, answered, parked};
use super::words::*;
use crate::world::{
    Ability, Access, Advice, Backing, Door, Fd, Mapping, Outcome, Placement, Polled, Process, Step,
    Touch, World,
};

/// Every feature of 6.18.
const ALL_FEATURES: u64 = 0x1_ffff;
/// API, REGISTER and UNREGISTER.
const DESCRIPTOR_IOCTLS: u64 = 0x8000_0000_0000_0003;

/// A userfaultfd that has not shaken hands.
#[track_caller]
fn fresh(world: &mut dyn World) -> (Process, Fd) {
    let process = world.root();
    (process, world.open(process, Door::Call, O_NONBLOCK).expect("a userfaultfd"))
}

#[track_caller]
fn shake(world: &mut dyn World, (process, fd): (Process, Fd), call: Call) -> Answer {
    answered(world.ioctl(process, fd, call, Placement::Ordinary))
}

/// What a handshake that works tells; the newest kernel adds RWP, RWP_ASYNC and SET_MODE.
fn agreed(world: &mut dyn World) -> Answer {
    let newest = u64::from(world.can(Ability::Newest).is_ok());
    let features = ALL_FEATURES | (newest * (3 << 17));
    let ioctls = DESCRIPTOR_IOCTLS | (newest << 0xA);
    Answer { result: Ok(()), out: Out::Api { api: 0xAA, features, ioctls } }
}

pub fn row_001_register_before_the_handshake_is_refused(world: &mut dyn World) {
    let mut rig = Rig::new(world, 0);
    let start = rig.anonymous(4);
    rig.fd = rig.world.open(rig.process, Door::Call, O_NONBLOCK).expect("a userfaultfd");
    assert_eq!(rig.call(register(start, 4, MISSING)), untouched(EINVAL));
    // Nor is there any other call.
    assert_eq!(rig.call(unregister(start, 4)), untouched(EINVAL));
    assert_eq!(rig.call(wake(start, 4)), untouched(EINVAL));
    assert_eq!(rig.call(zeropage(start, 1)), untouched(EINVAL));
}

pub fn row_002_nothing_can_be_read_before_the_handshake(world: &mut dyn World) {
    let (_, fd) = fresh(world);
    assert_eq!(world.read(fd, 32), Err(EINVAL));
    assert_eq!(world.poll(fd), Polled::Err);
}

pub fn row_003_another_version_of_the_interface_is_refused(world: &mut dyn World) {
    let fresh = fresh(world);
    let call = Call::Api { api: 0xAB, features: 0 };
    assert_eq!(shake(world, fresh, call), zeroed(EINVAL));
}

pub fn row_004_an_unknown_feature_is_refused_and_another_try_works(world: &mut dyn World) {
    let fresh = fresh(world);
    assert_eq!(shake(world, fresh, api(1 << 40)), zeroed(EINVAL));
    assert_eq!(shake(world, fresh, api(0)), agreed(world));
}

pub fn row_005_the_handshake_tells_all_features_and_calls(world: &mut dyn World) {
    let fresh = fresh(world);
    assert_eq!(shake(world, fresh, api(0)), agreed(world));
    assert_eq!(world.poll(fresh.1), Polled::Idle);
}

pub fn row_006_a_second_handshake_is_refused(world: &mut dyn World) {
    let fresh = fresh(world);
    assert_eq!(shake(world, fresh, api(0)), agreed(world));
    assert_eq!(shake(world, fresh, api(0)), zeroed(EINVAL));
}

pub fn row_007_fork_events_without_privilege_are_refused_first(world: &mut dyn World) {
    let process = world.spawn(false);
    let flags = O_NONBLOCK | USER_MODE_ONLY;
    let fd = world.open(process, Door::Call, flags).expect("a userfaultfd for user faults");
    assert_eq!(shake(world, (process, fd), api(EVENT_FORK)), zeroed(EPERM));
    assert_eq!(shake(world, (process, fd), api(EVENT_FORK | 1 << 40)), zeroed(EPERM));
    assert_eq!(shake(world, (process, fd), api(0)), agreed(world));
}

pub fn row_008_async_protection_brings_unpopulated_along(world: &mut dyn World) {
    let rig = Rig::new(world, ASYNC);
    assert_eq!(rig.world.fd_info(rig.fd).features, ASYNC | UNPOPULATED);
}

pub fn row_009_poll_refuses_a_blocking_descriptor(world: &mut dyn World) {
    let process = world.root();
    let fd = world.open(process, Door::Call, O_CLOEXEC).expect("a userfaultfd");
    assert_eq!(shake(world, (process, fd), api(0)), agreed(world));
    assert_eq!(world.poll(fd), Polled::Err);
    world.set_nonblocking(fd, true);
    assert_eq!(world.poll(fd), Polled::Idle);
}

pub fn row_010_read_wants_room_for_a_message(world: &mut dyn World) {
    let rig = Rig::new(world, 0);
    assert_eq!(rig.world.read(rig.fd, 31), Err(EINVAL));
    assert_eq!(rig.world.read(rig.fd, 32), Err(EAGAIN));
}

pub fn row_011_permission_is_checked_before_flags(world: &mut dyn World) {
    let process = world.spawn(false);
    let mut open = |flags| world.open(process, Door::Call, flags).map(|_| ());
    assert_eq!(open(0), Err(EPERM));
    assert_eq!(open(USER_MODE_ONLY), Ok(()));
    assert_eq!(open(0x10), Err(EPERM));
    assert_eq!(open(0x10 | USER_MODE_ONLY), Err(EINVAL));
}

pub fn row_128_what_6_18_does_not_have_is_an_invalid_argument(world: &mut dyn World) {
    if world.can(Ability::Newest).is_ok() {
        // RWP is there, and RWP_ASYNC not without it.
        let (one, other) = (fresh(world), fresh(world));
        assert_eq!(shake(world, one, api(1 << 18)), zeroed(EINVAL));
        assert_eq!(shake(world, one, api(1 << 17)), agreed(world));
        assert_eq!(shake(world, other, api(3 << 17)), agreed(world));
        return;
    }
    for feature in [17, 18] {
        let fresh = fresh(world);
        assert_eq!(shake(world, fresh, api(1 << feature)), zeroed(EINVAL), "bit {feature}");
    }
    let mut rig = Rig::new(world, 0);
    let start = rig.anonymous(4);
    assert_eq!(rig.call(register(start, 4, 8)), untouched(EINVAL));
    assert_eq!(rig.call(Call::Other { number: 0x9 }), untouched(EINVAL));
    assert_eq!(rig.call(Call::Other { number: 0xA }), untouched(EINVAL));
}

pub fn row_201_flags_of_creation_that_do_not_exist_are_refused(world: &mut dyn World) {
    let process = world.root();
    for door in [Door::Call, Door::Device] {
        let opened = world.open(process, door, 0x10).map(|_| ());
        assert_eq!(opened, Err(EINVAL), "{door:?}");
        let flags = O_CLOEXEC | O_NONBLOCK | USER_MODE_ONLY;
        assert_eq!(world.open(process, door, flags).map(|_| ()), Ok(()), "{door:?}");
    }
}

pub fn row_202_an_inherited_device_serves_the_unprivileged(world: &mut dyn World) {
    let process = world.spawn(false);
    let fd = world.open(process, Door::InheritedDevice, O_NONBLOCK).expect("a userfaultfd");
    // It still takes privilege to follow a fork.
    assert_eq!(shake(world, (process, fd), api(EVENT_FORK)), zeroed(EPERM));
    assert_eq!(shake(world, (process, fd), api(0)), agreed(world));
    let access = Access::ReadWrite;
    let backing = Backing::Anonymous;
    let mapping = Mapping { pages: 4, backing, access, at: None };
    let start = world.map(process, mapping).expect("a mapping");
    assert_eq!(shake(world, (process, fd), register(start, 4, MISSING)), ioctls(0x13c));
    // Faults of the kernel wait as well.
    let ticket = parked(world.touch(process, start, Touch::KernelStore(7)));
    assert_eq!(world.read(fd, 32), Ok(vec![fault(WRITE, start)]));
    assert_eq!(shake(world, (process, fd), zeropage(start, 1)), done(1));
    assert_eq!(world.poll_ticket(ticket), Step::Done(Outcome::Returned(Ok(1))));
}

pub fn row_203_fdinfo_counts_faults_and_not_events(world: &mut dyn World) {
    let mut rig = Rig::new(world, EVENT_REMOVE);
    let start = rig.reg(MISSING);
    let counts = |rig: &mut Rig| {
        let info = rig.world.fd_info(rig.fd);
        (info.pending, info.total)
    };
    for page in 0..3 {
        rig.wait(start + page * PAGE, Touch::Load);
    }
    parked(rig.world.advise(rig.process, start + 4 * PAGE, 1, Advice::DontNeed));
    assert_eq!(counts(&mut rig), (3, 3));
    rig.says(fault(READ, start));
    assert_eq!(counts(&mut rig), (2, 3));
    // A call that fills waits for the event to be read; a wake does not.
    assert_eq!(rig.call(wake(start + 5 * PAGE, 1)), OK);
    assert_eq!(counts(&mut rig), (2, 3));
    rig.says(fault(READ, start + PAGE));
    rig.says(fault(READ, start + 2 * PAGE));
    assert_eq!(counts(&mut rig), (0, 3));
    let event = RawMessage::Remove { start: start + 4 * PAGE, end: start + 5 * PAGE };
    rig.says(event);
    rig.fill(start, 7);
    assert_eq!(counts(&mut rig), (0, 2));
}
