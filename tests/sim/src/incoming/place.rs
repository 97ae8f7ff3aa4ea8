//! How state is loaded, and pages are put in place and emptied.

use crate::env::Env;
use crate::guest::Access;
use crate::memory::{Memory, Waiting, loaded};
use crate::mutation::Mutation;
use crate::runs::Arrived;
use crate::take::{Install, Told};
use crate::vm::Vm;
use godwit_migration::proto::Outcome;
use godwit_migration::wire::{Message, Section};
use godwit_uffd::model::Progress;
use godwit_uffd::page::PageRun;
use std::time::Duration;

use super::{Event, Incoming, Loading};

impl Incoming {
    pub(super) fn load(&mut self, env: &mut Env, sections: &[Section]) {
        let pages = env.guest.pages();
        let touches = env.rng.below(4);
        let access = |_| Access { page: env.rng.page(pages), slot: 0, write: None };
        let left = (0..touches).map(access).collect();
        let state = sections.first().and_then(|s| s.bytes.first().copied()).unwrap_or(0);
        self.loaded_state = state;
        self.loading = Some(Loading { left, waiting: None, busy_until: Duration::ZERO });
    }

    /// What was loaded is what the guest has, now that it is known to stand still.
    pub(super) fn check_loaded(&mut self, env: &mut Env) {
        if self.loaded_state != env.guest.state() {
            env.wrong_contents("the state that is loaded is not the guest's");
        }
        for (access, read) in self.loaded_reads.drain(..) {
            if let Err(what) = env.guest.done(access, read) {
                env.wrong_contents(format!("loading: {what}"));
            }
        }
    }

    pub fn load_ready_at(&self) -> Option<Duration> {
        let loading = self.loading.as_ref()?;
        let waits = loading.waiting.as_ref().is_some_and(|w| !w.parked.is_woken());
        (!waits).then_some(loading.busy_until)
    }

    /// The thread that loads goes on.
    pub fn step_load(&mut self, env: &mut Env, vm: &Vm) {
        let loading = self.loading.as_mut().expect("it is ready");
        let Memory::Arriving(memory) = &vm.memory else { panic!("it has not arrived") };
        let (progress, access) = match loading.waiting.take() {
            Some(Waiting { parked, access }) => (parked.resume(), access),
            None => match loading.left.pop() {
                Some(access) => (memory.access(env.guest.cpus(), access), access),
                None => {
                    self.loading = None;
                    let fails = env.rng.chance(2) && !env.quiet;
                    let result = if fails { Err("a bad state".into()) } else { Ok(()) };
                    return self.events.push_back(Event::Loaded(result));
                }
            },
        };
        match progress {
            Progress::Parked(parked) => loading.waiting = Some(Waiting { parked, access }),
            Progress::Done(outcome) => self.loaded_reads.push((access, loaded(outcome))),
        }
    }

    pub(super) fn discard(&mut self, env: &mut Env, vm: &mut Option<Vm>, run: PageRun) {
        let room = self.room().clone();
        let too_early = env.is_mutated(Mutation::InstallBetweenDiscardAndEmptying);
        if too_early {
            room.claims.emptied(run);
            let class = godwit_migration::page::Class::Zero;
            let arrived = Arrived { run, class, bytes: Vec::new() };
            if let Ok(install) = Install::begin(env, &room, arrived) {
                let _ = install.step(env, &room);
            }
        }
        let Some(Vm { memory: Memory::Arriving(memory), .. }) = vm else {
            panic!("pages are discarded where none arrive")
        };
        memory.empty(run);
        if !too_early {
            room.claims.emptied(run);
        }
        for taker in &mut self.takers {
            taker.install_old(env, &room, run);
        }
    }

    /// The thread of a bulk channel goes on.
    pub fn step_take(&mut self, taker: usize, env: &mut Env) {
        let room = self.room().clone();
        let told = self.takers[taker].step(env, &room);
        self.tell(taker, told);
    }

    pub(super) fn tell(&mut self, taker: usize, told: Told) {
        let epoch = self.takers[taker].epoch;
        match told {
            Told::Nothing | Told::Gone => {}
            Told::AllInstalled => self.events.push_back(Event::AllInstalled),
            Told::Ended => self.events.push_back(Event::PushEnded { epoch }),
            Told::Failed(error) => self.events.push_back(Event::BulkFailed { epoch, error }),
        }
    }

    /// Closes all channels. Then nothing is installed from them any more; what was received may
    /// have been, until then.
    pub fn hang_up(&mut self, env: &mut Env) {
        if let Some(channel) = self.channel.take() {
            env.net.close(channel.end, env.now);
        }
        for index in 0..self.takers.len() {
            if env.rng.chance(50) {
                self.takers[index].receive_more(env);
            }
            env.net.close(self.takers[index].end, env.now);
            while !self.takers[index].is_over() {
                self.step_take(index, env);
            }
        }
        self.takers.clear();
    }

    pub(super) fn finish(&mut self, env: &mut Env, outcome: Outcome) {
        // The last words; whether they arrive changes nothing here.
        if let Some(channel) = &mut self.channel {
            let _ = channel.flush(env);
        }
        if outcome == Outcome::Completed {
            env.whole.insert(self.transfer);
        }
        self.outcome = Some(outcome);
    }

    /// What the source is told if it asks once more.
    pub fn last_words(&self, outcome: &Outcome) -> Option<Message<'static>> {
        self.machine.last_words(outcome)
    }
}
