//! Creation, handshake and negotiation (sections 1 and 6).

use godwit_uffd::abi::{Answer, Call, Out};

use super::setup::{Rig, answered};
use super::words::*;
use crate::world::{Door, Fd, Placement, Polled, Process, World};

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

fn agreed() -> Answer {
    let out = Out::Api { api: 0xAA, features: ALL_FEATURES, ioctls: DESCRIPTOR_IOCTLS };
    Answer { result: Ok(()), out }
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
    assert_eq!(shake(world, fresh, api(0)), agreed());
}

pub fn row_005_the_handshake_tells_all_features_and_calls(world: &mut dyn World) {
    let fresh = fresh(world);
    assert_eq!(shake(world, fresh, api(0)), agreed());
    assert_eq!(world.poll(fresh.1), Polled::Idle);
}

pub fn row_006_a_second_handshake_is_refused(world: &mut dyn World) {
    let fresh = fresh(world);
    assert_eq!(shake(world, fresh, api(0)), agreed());
    assert_eq!(shake(world, fresh, api(0)), zeroed(EINVAL));
}

pub fn row_007_fork_events_without_privilege_are_refused_first(world: &mut dyn World) {
    let process = world.spawn(false);
    let flags = O_NONBLOCK | USER_MODE_ONLY;
    let fd = world.open(process, Door::Call, flags).expect("a userfaultfd for user faults");
    assert_eq!(shake(world, (process, fd), api(EVENT_FORK)), zeroed(EPERM));
    assert_eq!(shake(world, (process, fd), api(EVENT_FORK | 1 << 40)), zeroed(EPERM));
    assert_eq!(shake(world, (process, fd), api(0)), agreed());
}

pub fn row_008_async_protection_brings_unpopulated_along(world: &mut dyn World) {
    let rig = Rig::new(world, ASYNC);
    assert_eq!(rig.world.fd_info(rig.fd).features, ASYNC | UNPOPULATED);
}

pub fn row_009_poll_refuses_a_blocking_descriptor(world: &mut dyn World) {
    let process = world.root();
    let fd = world.open(process, Door::Call, O_CLOEXEC).expect("a userfaultfd");
    assert_eq!(shake(world, (process, fd), api(0)), agreed());
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
