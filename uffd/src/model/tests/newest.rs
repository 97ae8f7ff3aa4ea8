//! RWPROTECT and SET_MODE, which no kernel here has; the specification read them in the source.

use super::*;
use crate::abi::RawMessage;

const RWP: u64 = 1 << 17;
const RWP_ASYNC: u64 = 1 << 18;
const MODE_RWP: u64 = 8;

fn armed_page(rig: &Rig) -> u64 {
    let start = rig.armed(2, MODE_RWP);
    rig.fill(start, 7);
    assert_eq!(rig.machine.read_write_protect(rig.context, start, 2 * PAGE, 1), Ok(()));
    start
}

#[test]
fn any_access_of_an_armed_page_is_told() {
    let rig = Rig::new(Profile::NEWEST, RWP);
    let start = armed_page(&rig);
    for (touch, flags) in [(Touch::Load, 8), (Touch::Store(8), 9)] {
        let parked = sleeping(rig.touch(start, touch));
        let message = RawMessage::Pagefault { flags, address: start, ptid: 0 };
        assert_eq!(rig.machine.read(rig.context, 32), Ok(vec![message]));
        assert_eq!(rig.machine.read_write_protect(rig.context, start, PAGE, 0), Ok(()));
        ended(parked);
        assert_eq!(rig.machine.read_write_protect(rig.context, start, PAGE, 1), Ok(()));
    }
    assert_eq!(rig.load(start + PAGE), 0, "a hole is not armed");
    assert_eq!(rig.call(Call::Unregister { start, len: 2 * PAGE }).result, Ok(()));
    assert_eq!(rig.load(start), 8);
}

#[test]
fn the_asynchronous_mode_comes_and_goes() {
    let rig = Rig::new(Profile::NEWEST, RWP);
    let start = armed_page(&rig);
    let parked = sleeping(rig.touch(start, Touch::Load));
    let set = |enable, disable| rig.machine.set_mode(rig.context, enable, disable);
    assert_eq!(set(RWP_ASYNC, RWP_ASYNC), Err(Errno::EINVAL));
    assert_eq!(set(RWP, 0), Err(Errno::EINVAL));
    assert_eq!(set(RWP_ASYNC, 0), Ok(()));
    assert_eq!(ended(parked), Outcome::Loaded(7));
    assert_eq!(rig.machine.read_write_protect(rig.context, start, PAGE, 1), Ok(()));
    assert_eq!(rig.load(start), 7);
    assert_eq!(set(0, RWP_ASYNC), Ok(()));
    assert_eq!(rig.machine.read_write_protect(rig.context, start, PAGE, 1), Ok(()));
    sleeping(rig.touch(start, Touch::Load)).cancel();
}

#[test]
fn the_range_is_checked_before_anything_is_armed() {
    let rig = Rig::new(Profile::NEWEST, RWP);
    let start = rig.map(2);
    rig.arm(rig.context, start, 1, MODE_RWP);
    rig.fill(start, 7);
    let arm = |at, len, mode| rig.machine.read_write_protect(rig.context, at, len, mode);
    assert_eq!(arm(start, 2 * PAGE, 1), Err(Errno::ENOENT));
    assert_eq!(rig.load(start), 7);
    assert_eq!(arm(start, PAGE, 3), Err(Errno::EINVAL));
    assert_eq!(arm(start + 4 * PAGE, PAGE, 1), Err(Errno::ENOENT));
    let both = Call::Register { start, len: PAGE, mode: MODE_RWP | WP };
    assert_eq!(rig.call(both).result, Err(Errno::EINVAL));
}

#[test]
fn a_page_that_moves_to_armed_memory_is_armed() {
    let rig = Rig::new(Profile::NEWEST, RWP);
    let (dst, src) = (rig.armed(2, MISSING | MODE_RWP), rig.armed(2, MISSING));
    rig.fill(src, 7);
    assert_eq!(rig.call(zero(src + PAGE, 1)), done(1));
    assert_eq!(rig.call(moving(dst, src, 2)), done(2));
    sleeping(rig.touch(dst, Touch::Load)).cancel();
    sleeping(rig.touch(dst + PAGE, Touch::Load)).cancel();
}

#[test]
fn a_kernel_without_the_call_refuses_it() {
    let rig = Rig::new(Profile::V6_18, 0);
    let start = rig.armed(1, MISSING);
    let refused = Err(Errno::EINVAL);
    assert_eq!(rig.machine.read_write_protect(rig.context, start, PAGE, 1), refused);
    assert_eq!(rig.machine.set_mode(rig.context, 0, 0), refused);
}
