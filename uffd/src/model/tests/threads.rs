//! Real threads, which sleep where the core parks.

use std::sync::Arc;

use super::super::threads::{ModelUffd, touch};
use super::*;
use crate::abi::RawMessage;
use crate::page::Hva;
use crate::{Event, Installed, Range, Uffd, Wake};

fn uffd(rig: Rig) -> (Arc<Machine>, Process, ModelUffd) {
    let Rig { machine, process, caller, context } = rig;
    let machine = Arc::new(machine);
    (machine.clone(), process, ModelUffd::new(machine, caller, context))
}

#[test]
fn threads_sleep_until_their_pages_are_there() {
    within_deadline(|| {
        let rig = Rig::new(Profile::V6_18, 0);
        let (pages, threads) = (64, 4);
        let start = rig.armed(pages, MISSING);
        let (machine, process, uffd) = uffd(rig);
        let touchers: Vec<_> = (0..threads)
            .map(|_| {
                let machine = machine.clone();
                thread::spawn(move || {
                    let thread = machine.thread(process);
                    (0..pages).for_each(|page| {
                        let outcome = touch(&machine, thread, start + page * PAGE, Touch::Load);
                        assert_eq!(outcome, Outcome::Loaded(u8::try_from(page).expect("few")));
                    });
                })
            })
            .collect();
        let mut installed = 0;
        while installed < pages {
            for message in uffd.read_blocking(16).expect("messages") {
                let RawMessage::Pagefault { address, .. } = message else { panic!("{message:?}") };
                let page = u8::try_from((address - start) / PAGE).expect("few");
                let answer = uffd.copy_bytes(address, &vec![page; 4096], 0);
                match answer.result {
                    Ok(()) => installed += 1,
                    // Another thread's message about the page; that thread may sleep on.
                    Err(Errno::EEXIST) => {
                        let wake = Call::Wake { start: address, len: PAGE };
                        assert_eq!(uffd.call(wake).result, Ok(()));
                    }
                    Err(errno) => panic!("COPY: {errno:?}"),
                }
            }
        }
        // Whoever came between the last read and its COPY was woken by it.
        touchers.into_iter().for_each(|toucher| toucher.join().expect("no panic"));
    });
}

#[test]
fn the_trait_says_what_the_numbers_mean() {
    let rig = Rig::new(Profile::V6_18, 1 << 3);
    let start = rig.armed(4, MISSING);
    let (machine, process, uffd) = uffd(rig);
    let range = |page, count| Range { start: Hva(start + page * PAGE), bytes: count * PAGE };
    let page = vec![7; 4096];
    assert_eq!(uffd.copy(Hva(start + PAGE), &page, Wake::Now).ok(), Some(Installed::All));
    assert_eq!(uffd.zero(range(1, 1), Wake::Now).ok(), Some(Installed::AlreadyPresent));
    let partly = Installed::Partly { bytes: PAGE };
    assert_eq!(uffd.zero(range(0, 3), Wake::Later).ok(), Some(partly));
    let caller = machine.thread(process);
    let advice = sleeping(machine.advise(caller, start, PAGE, Advice::DontNeed));
    assert_eq!(uffd.zero(range(2, 1), Wake::Now).ok(), Some(Installed::EventsFirst));
    let mut events = Vec::new();
    uffd.read_events(&mut events).expect("events");
    assert_eq!(events, [Event::Remove { start: Hva(start), end: Hva(start + PAGE) }]);
    assert_eq!(ended(advice), Outcome::Returned(Ok(0)));
    uffd.unregister(range(0, 4)).expect("it is registered");
    assert!(uffd.zero(range(3, 1), Wake::Now).is_err());
}
