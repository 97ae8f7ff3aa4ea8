//! The wait queues: whom a range wakes, what a signal and a kill do to a sleeper.

use super::super::wait_queue::{FaultQueues, FaultWaiter, Sleeper};
use super::*;
use crate::abi::RawMessage;
use std::sync::Arc;

fn waiter(address: u64) -> FaultWaiter {
    FaultWaiter { sleeper: Arc::new(Sleeper::default()), flags: 0, address, ptid: 0 }
}

#[test]
fn a_range_wakes_from_its_first_byte_to_the_byte_before_its_end() {
    let queues = FaultQueues::default();
    let waiters = [0x0FFF, 0x1000, 0x1FFF, 0x2000].map(waiter);
    waiters.iter().for_each(|waiter| queues.push(waiter.clone()));
    queues.wake(&(0x1000..0x2000));
    let woken = waiters.map(|waiter| waiter.sleeper.is_woken());
    assert_eq!(woken, [false, true, true, false]);
    assert_eq!(queues.counts(), (2, 2));
}

#[test]
fn waiters_are_woken_whether_their_message_was_read_or_not() {
    let queues = FaultQueues::default();
    let (read, unread) = (waiter(0x1000), waiter(0x1000));
    queues.push(read.clone());
    assert!(matches!(queues.read(), Some(RawMessage::Pagefault { address: 0x1000, .. })));
    queues.push(unread.clone());
    assert_eq!(queues.counts(), (1, 2));
    queues.wake(&(0x1000..0x1001));
    assert!(read.sleeper.is_woken() && unread.sleeper.is_woken());
    assert_eq!((queues.counts(), queues.read()), ((0, 0), None));
}

#[test]
fn a_waiter_is_removed_once() {
    let queues = FaultQueues::default();
    let one = waiter(0x1000);
    queues.push(one.clone());
    assert!(queues.remove(&one.sleeper));
    assert!(!queues.remove(&one.sleeper));
    queues.wake_all();
    assert!(!one.sleeper.is_woken(), "who has left is not woken");
}

#[test]
fn a_signal_withdraws_the_message_and_raises_a_new_one() {
    let rig = Rig::new(Profile::V6_18, 0);
    let start = rig.armed(1, MISSING);
    let parked = sleeping(rig.touch(start, Touch::Load));
    assert!(!parked.is_woken());
    let parked = sleeping(parked.interrupt());
    assert_eq!(rig.machine.fd_info(rig.context).total, 1, "the first message is gone");
    rig.fill(start, 7);
    assert_eq!(ended(parked), Outcome::Loaded(7));
}

#[test]
fn a_killed_thread_leaves_its_queue() {
    let rig = Rig::new(Profile::V6_18, 0);
    let start = rig.armed(1, MISSING);
    sleeping(rig.touch(start, Touch::Load)).cancel();
    assert_eq!(rig.machine.read(rig.context, 32), Err(Errno::EAGAIN));
}

#[test]
fn a_thread_that_dies_while_its_event_waits_ends_the_change() {
    let rig = Rig::new(Profile::V6_18, 1 << 3);
    let start = rig.armed(2, MISSING);
    let advice = rig.machine.advise(rig.caller, start, PAGE, Advice::DontNeed);
    let advice = sleeping(advice);
    assert_eq!(rig.call(zero(start, 1)), refused(Errno::EAGAIN));
    advice.cancel();
    // The killed thread counts as dying; another one makes the call.
    let rig = Rig { caller: rig.machine.thread(rig.process), ..rig };
    assert_eq!(rig.call(zero(start, 1)), done(1));
    assert_eq!(rig.machine.read(rig.context, 32), Err(Errno::EAGAIN));
}

#[test]
fn each_context_of_an_unmapped_range_is_told_in_turn() {
    let rig = Rig::new(Profile::V6_18, 1 << 6);
    let start = rig.map(2);
    let other = rig.another(1 << 6);
    rig.arm(rig.context, start, 1, MISSING);
    rig.arm(other, start + PAGE, 1, MISSING);
    let unmapping = sleeping(rig.machine.unmap(rig.caller, start, 2 * PAGE));
    let message = RawMessage::Unmap { start, end: start + 2 * PAGE };
    // Both are changing from the start; the second hears of it when the first has read.
    assert_eq!(rig.machine.read(other, 32), Err(Errno::EAGAIN));
    assert_eq!(rig.call_on(other, zero(start, 1)), refused(Errno::EAGAIN));
    assert_eq!(rig.machine.read(rig.context, 32), Ok(vec![message]));
    let unmapping = sleeping(unmapping.resume());
    assert_eq!(rig.call(zero(start, 1)), refused(Errno::ENOENT), "its own change is over");
    assert_eq!(rig.machine.read(other, 32), Ok(vec![message]));
    assert_eq!(ended(unmapping), Outcome::Returned(Ok(0)));
}

#[test]
fn a_fork_that_nobody_reads_leaves_the_child_unregistered() {
    let rig = Rig::new(Profile::V6_18, 1 << 1);
    let start = rig.armed(1, MISSING);
    let forking = sleeping(rig.machine.fork(rig.caller));
    rig.machine.close(rig.context);
    let Outcome::Forked(child) = ended(forking) else { panic!("no child") };
    let progress = rig.machine.access(rig.machine.thread(child), start, Touch::Load);
    assert!(matches!(progress, Progress::Done(Outcome::Loaded(0))), "{progress:?}");
}

#[test]
fn a_vcpu_raises_one_message_and_fails_where_a_user_would_be_signalled() {
    let rig = Rig::new(Profile::V6_18, 0);
    let start = rig.armed(2, MISSING);
    let vcpu = rig.machine.thread(rig.process);
    let parked = sleeping(rig.machine.guest_access(vcpu, start, Touch::Store(1)));
    assert_eq!(rig.machine.fd_info(rig.context).pending, 1, "the first try was silent");
    rig.fill(start, 7);
    assert_eq!(ended(parked), Outcome::Stored);

    let rig = Rig::new(Profile::V6_18, 1 << 7);
    let start = rig.armed(1, MISSING);
    let vcpu = rig.machine.thread(rig.process);
    let failed = rig.machine.guest_access(vcpu, start, Touch::Load);
    let expected = Outcome::Returned(Err(Errno::EFAULT));
    assert!(matches!(failed, Progress::Done(outcome) if outcome == expected));
}
