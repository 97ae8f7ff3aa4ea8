//! The safety invariants of the design, and progress.

use godwit_migration::proto::{Outcome, Ownership};
use godwit_uffd::page::PageIndex;

use crate::env::{Env, Me};
use crate::incoming::Incoming;
use crate::memory::Memory;
use crate::outgoing::Outgoing;
use crate::process::Process;
use crate::vm::Vm;

/// What one side says of the other when the other has broken the protocol.
const ACCUSATIONS: [&str; 7] = [
    "was sent twice",
    " message while ",
    "a message about transfer",
    "pages never sent",
    "were never sent to it",
    "a damaged",
    "of unknown kind",
];

/// Two honest sides never find the other to have broken the protocol.
pub fn accusation(env: &mut Env, reason: &str) {
    if env.honest && ACCUSATIONS.iter().any(|accusation| reason.contains(accusation)) {
        env.violated(format!("an honest peer is accused: {reason}"));
    }
}

/// Each step: at most one host runs the guest, nobody sleeps beside what it waits for, and now and
/// then, that what counts as installed is there.
pub fn after_step<'a>(env: &mut Env, processes: impl Iterator<Item = &'a Process>, all: bool) {
    let mut running = 0;
    for process in processes {
        let Some(vm) = &process.vm else { continue };
        running += usize::from(vm.running);
        let Memory::Arriving(memory) = &vm.memory else { continue };
        if memory.uffd.0.uffd().was_refused() {
            env.violated("an install was not one of pages of guest memory");
        }
        for waiting in vm.waiting.iter().flatten() {
            let page = PageIndex(waiting.access.page);
            if !waiting.parked.is_woken() && memory.has(page) && !memory.has_events() {
                let busy = process.incoming.as_ref().is_some_and(Incoming::has_work);
                if !busy {
                    env.violated(format!("a vCPU sleeps beside {page}, which is there"));
                }
            }
        }
        if let Some(room) = process.incoming.as_ref().and_then(|i| i.room.as_ref())
            && all
        {
            let received = room.claims.received();
            let pages = received.runs().flat_map(godwit_uffd::page::PageRun::pages);
            if let Some(page) = pages.into_iter().find(|&page| !memory.has(page)) {
                env.violated(format!("{page} counts as installed and is not there"));
            }
        }
    }
    if running > 1 {
        env.violated("two hosts run the guest");
    }
}

/// A migration to a host is over there.
pub fn incoming_has_ended(env: &mut Env, incoming: &Incoming, outcome: &Outcome, vm: Option<&Vm>) {
    let remaining = incoming.room.as_ref().map_or(0, |room| room.claims.remaining());
    let running = vm.is_some_and(|vm| vm.running);
    match outcome {
        Outcome::Completed if remaining > 0 && !env.guest.ended => {
            env.violated(format!("the destination completes with {remaining} pages missing"));
        }
        Outcome::Completed if !running && !env.guest.ended => {
            env.violated("the destination completes and does not run the guest");
        }
        Outcome::Aborted { reason } => {
            accusation(env, reason);
            if running {
                env.violated("the destination aborts with a running guest");
            }
        }
        _ => {}
    }
    if let Some(Memory::Arriving(memory)) = vm.map(|vm| &vm.memory)
        && memory.uffd.0.uffd().was_filled_twice()
    {
        env.violated("a page was installed twice");
    }
}

/// A migration from a host is over there.
pub fn outgoing_has_ended(
    env: &mut Env,
    me: Me,
    outgoing: &Outgoing,
    outcome: &Outcome,
    vm: Option<&Vm>,
) {
    let running = vm.is_some_and(|vm| vm.running);
    let recorded = env.disk(me).ownership(outgoing.transfer());
    match outcome {
        Outcome::Completed if !env.whole.contains(&outgoing.transfer()) => {
            env.violated("the source completes and the destination does not have all");
        }
        Outcome::Completed | Outcome::Lost { .. } if running => {
            env.violated("the source has let the guest go and runs it");
        }
        Outcome::Aborted { .. } | Outcome::Cancelled if !running && !env.guest.ended => {
            env.violated(format!("the guest does not run on at the source: {outcome:?}"));
        }
        Outcome::Lost { .. } if env.guest.may_be_lost.is_none() && !env.guest.ended => {
            env.violated(format!("the guest is lost for no reason: {outcome:?}"));
        }
        Outcome::Lost { .. } if recorded == Some(Ownership::Reclaimed) => {
            env.violated("a guest that was reclaimed is lost");
        }
        _ => {}
    }
    if let Outcome::Aborted { reason } = outcome {
        accusation(env, reason);
    }
}

/// At the end: the guest runs in one place, or there is a reason why it does not.
pub fn at_the_end<'a>(env: &mut Env, processes: impl Iterator<Item = &'a Process>) {
    let mut running = 0;
    for process in processes {
        running += usize::from(process.vm.as_ref().is_some_and(|vm| vm.running));
        if let Some(vm) = &process.vm
            && let Memory::Plain(values) = &vm.memory
            && *values != env.guest.truth
        {
            env.violated("guest memory is not what the guest wrote");
        }
    }
    if running == 0 && !env.guest.ended && env.guest.may_be_lost.is_none() {
        env.violated("nobody runs the guest, and nobody was killed");
    }
}
