//! The model's threads in every order, or in many. Shuttle decides at each lock and each atomic
//! which thread goes on, so a claim here is one about orders and not about luck; where all sleep
//! it says so, which is how a lost waiter shows.
//!
//! Shuttle and not loom: the locks and atomics here are all sequentially consistent, so what loom
//! knows beyond orders is of no use, and a whole machine has too many steps for every order of
//! them. The queues alone are tried in all orders, whole machines in random ones.

use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, MaxSteps, Runner, thread};

use super::super::sync::{Arc, Mutex};
use super::super::threads::{ModelUffd, finish, touch};
use super::super::wait_queue::{FaultQueues, FaultWaiter, Sleeper};
use super::*;
use crate::abi::RawMessage;
use crate::model::HUGE;

/// Orders that are tried at random, half of them with few switches at bad moments.
const ORDERS: usize = 1_000;
/// Switches of the second half.
const SWITCHES: usize = 3;

/// Runs something in every order.
fn in_all_orders(work: impl Fn() + Send + Sync + 'static) {
    run(DfsScheduler::new(None, false), work);
}

/// Runs something in many orders.
fn in_many_orders(work: impl Fn() + Send + Sync + Clone + 'static) {
    run(RandomScheduler::new(ORDERS / 2), work.clone());
    run(PctScheduler::new(SWITCHES, ORDERS / 2), work);
}

fn run(scheduler: impl Scheduler + 'static, work: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    Runner::new(scheduler, config).run(work);
}

const STACK_BYTES: usize = 256 << 10;
/// Steps after which an order is held to have no end.
const STEPS_MAX: usize = 100_000;

fn waiter(address: u64) -> FaultWaiter {
    FaultWaiter { sleeper: Arc::new(Sleeper::default()), flags: 0, address, ptid: 0 }
}

fn rig(features: u64) -> Arc<Rig> {
    Arc::new(Rig::new(Profile::V6_18, features))
}

/// A thread that touches a byte and sleeps until it can.
fn toucher(rig: &Arc<Rig>, at: u64, how: Touch) -> thread::JoinHandle<Outcome> {
    let rig = rig.clone();
    thread::spawn(move || touch(&rig.machine, rig.machine.thread(rig.process), at, how))
}

// A resolver that wakes before it installs leaves the waiter asleep, and is found here.
#[test]
fn a_waiter_that_queues_while_a_resolver_installs_is_not_lost() {
    in_many_orders(|| {
        let rig = rig(0);
        let start = rig.armed(1, MISSING);
        let threads = [Touch::Load, Touch::Load].map(|how| toucher(&rig, start, how));
        rig.fill(start, 7);
        for thread in threads {
            assert_eq!(thread.join().expect("no panic"), Outcome::Loaded(7));
        }
        assert_eq!(rig.machine.fd_info(rig.context).total, 0);
    });
}

// So is one that looks at the count of waiters before it installs.
#[test]
fn a_waiter_that_counts_itself_and_looks_is_seen_or_sees() {
    in_all_orders(|| {
        let (queues, installed) = (Arc::new(FaultQueues::default()), Arc::new(Mutex::new(false)));
        let resolver = {
            let (queues, installed) = (queues.clone(), installed.clone());
            thread::spawn(move || {
                *installed.lock() = true;
                queues.wake(&(0x1000..0x2000));
            })
        };
        let own = waiter(0x1000);
        queues.push(own.clone());
        if *installed.lock() {
            queues.remove(&own.sleeper);
        } else {
            own.sleeper.wait();
        }
        resolver.join().expect("no panic");
        assert_eq!(queues.counts(), (0, 0));
    });
}

// A wake that takes all waiters out of the queues is found here.
#[test]
fn a_wake_of_one_range_leaves_another_asleep() {
    in_all_orders(|| {
        let queues = Arc::new(FaultQueues::default());
        let [near, far] = [waiter(0x1000), waiter(0x2000)];
        let queue = {
            let (queues, waiters) = (queues.clone(), [near.clone(), far.clone()]);
            thread::spawn(move || waiters.into_iter().for_each(|waiter| queues.push(waiter)))
        };
        queues.wake(&(0x1000..0x2000));
        queues.read();
        queue.join().expect("no panic");
        assert!(!far.sleeper.is_woken());
        let left = 2 - usize::from(near.sleeper.is_woken());
        assert_eq!(queues.counts().1, left);
        queues.wake(&(0x2000..0x3000));
        assert!(far.sleeper.is_woken());
    });
}

// A reader that waits for news without having counted them before it looked is found here.
#[test]
fn a_reader_that_sleeps_hears_of_each_fault() {
    in_many_orders(|| {
        let rig = Rig::new(Profile::V6_18, 0);
        let start = rig.armed(1, MISSING);
        let Rig { machine, process, caller, context } = rig;
        let machine = Arc::new(machine);
        let thread = {
            let machine = machine.clone();
            thread::spawn(move || touch(&machine, machine.thread(process), start, Touch::Load))
        };
        let uffd = ModelUffd::new(machine, caller, context);
        let messages = uffd.read_blocking(4).expect("a fault");
        let fault = RawMessage::Pagefault { flags: 0, address: start, ptid: 0 };
        assert_eq!(messages, [fault]);
        assert_eq!(uffd.call(zero(start, 1)), done(1));
        assert_eq!(thread.join().expect("no panic"), Outcome::Loaded(0));
    });
}

// Two tables that are locked source first are found here as a deadlock.
#[test]
fn moves_in_opposite_directions_lose_no_page() {
    in_many_orders(|| {
        let rig = rig(0);
        let (low, high) = (rig.armed(2, MISSING), rig.armed(2, MISSING));
        assert_ne!(low / HUGE, high / HUGE, "two tables");
        rig.fill(low, 1);
        rig.fill(high + PAGE, 2);
        let mover = {
            let rig = rig.clone();
            thread::spawn(move || rig.call(moving(high, low, 1)))
        };
        assert_eq!(rig.call(moving(low + PAGE, high + PAGE, 1)), done(1));
        assert_eq!(mover.join().expect("no panic"), done(1));
        assert_eq!((rig.load(high), rig.load(low + PAGE)), (1, 2));
        assert_eq!((rig.entry(low), rig.entry(high + PAGE)), (Observed::None, Observed::None));
    });
}

// A mover that waits for a page's lock with the page tables locked is found here.
#[test]
fn a_move_waits_for_a_page_that_another_has_locked() {
    in_many_orders(|| {
        let rig = rig(0);
        let (dst, src) = (rig.armed(1, MISSING), rig.armed(1, MISSING));
        rig.fill(src, 7);
        let holder = {
            let rig = rig.clone();
            let space = rig.machine.space(rig.process);
            let folio = match space.tables.get(src).lock().entry(src) {
                Some(super::super::page_table::Entry::Page(mapped)) => mapped.folio.clone(),
                other => panic!("no page: {other:?}"),
            };
            thread::spawn(move || {
                let held = folio.lock.try_lock();
                // Whoever holds it may want the tables.
                let seen = (rig.entry(src), rig.entry(dst));
                drop(held);
                seen
            })
        };
        assert_eq!(rig.call(moving(dst, src, 1)), done(1));
        let (from, to) = holder.join().expect("no panic");
        assert!(from == Observed::None || to == Observed::None, "one page in two places");
        assert_eq!((rig.load(dst), rig.entry(src)), (7, Observed::None));
    });
}

// An event that is announced without waiting for the fills in flight is found here, and so is a
// fill that looks for events before it says that it is in flight.
#[test]
fn an_event_waits_for_the_fill_in_flight() {
    in_many_orders(|| {
        let rig = rig(0);
        let start = rig.armed(1, MISSING);
        let filler = {
            let rig = rig.clone();
            thread::spawn(move || rig.call(zero(start, 1)))
        };
        let context = rig.machine.context(rig.context);
        context.begin_change();
        let filled = rig.entry(start);
        let answer = filler.join().expect("no panic");
        assert_eq!(rig.entry(start), filled, "filled after the event was announced");
        let late = filled == Observed::None;
        assert_eq!(answer, if late { refused(Errno::EAGAIN) } else { done(1) });
        context.end_change();
    });
}

// A registration that is taken away before its waiters are woken, or a close that wakes before
// new waiters are kept out, is found here.
#[test]
fn whoever_waits_goes_on_when_the_range_is_unregistered_or_the_descriptor_closed() {
    in_many_orders(|| {
        let rig = rig(0);
        let start = rig.armed(2, MISSING);
        let first = toucher(&rig, start, Touch::Load);
        let second = toucher(&rig, start + PAGE, Touch::Store(3));
        let unregister = Call::Unregister { start, len: PAGE };
        assert_eq!(rig.call(unregister).result, Ok(()));
        rig.machine.close(rig.context);
        assert_eq!(first.join().expect("no panic"), Outcome::Loaded(0));
        assert_eq!(second.join().expect("no panic"), Outcome::Stored);
    });
}

// An event that is queued without looking whether its userfaultfd was closed is found here.
#[test]
fn an_event_that_meets_a_close_is_over() {
    in_many_orders(|| {
        let rig = rig(1 << 3);
        let start = rig.armed(1, MISSING);
        rig.fill(start, 7);
        let adviser = {
            let rig = rig.clone();
            thread::spawn(move || {
                let thread = rig.machine.thread(rig.process);
                finish(rig.machine.advise(thread, start, PAGE, Advice::DontNeed))
            })
        };
        let context = rig.machine.context(rig.context);
        rig.machine.close(rig.context);
        assert_eq!(adviser.join().expect("no panic"), Outcome::Returned(Ok(0)));
        assert!(!context.is_changing());
        assert_eq!(rig.entry(start), Observed::None);
    });
}
