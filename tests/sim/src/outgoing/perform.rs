//! What the machine of a source wants done.

use crate::env::{Env, Me};
use crate::guest::{Values, page_of};
use crate::mutation::Mutation;
use crate::push::{Pushed, Pusher, Shared};
use crate::runs::{data_frame, zero_frame};
use crate::vm::Vm;
use godwit_migration::limits::REDIAL_TIMEOUT;
use godwit_migration::proto::{MigrationState, Outcome, Ownership, SourceInput, SourceOutput};
use godwit_migration::wire::{BulkHello, Channel, Message, ResumeHello};
use godwit_uffd::page::{PageIndex, PageRun};
use std::sync::Arc;
use std::time::Duration;

use super::{Blocked, Event, Outgoing};

impl Outgoing {
    pub(super) fn record(&mut self, env: &mut Env, me: Me, transfer: u64, ownership: Ownership) {
        let grant = ownership == Ownership::Granted;
        match env.begin_write(me, transfer, ownership) {
            Ok(write) if grant && env.plan.asynchronous => self.writes.push_back(write),
            Ok(write) => self.blocked = Some(Blocked::Recording { write, ownership }),
            Err(reason) if grant => self.input(env, SourceInput::GrantRecorded(Err(reason))),
            Err(_) => {}
        }
    }

    pub(super) fn perform(&mut self, env: &mut Env, me: Me, vm: &mut Vm, output: SourceOutput) {
        env.log(|| format!("host {} source: {output:?}", me.host));
        match output {
            SourceOutput::Send(message) => self.send(env, me, &message),
            SourceOutput::Serve(run) => self.serve(env, vm.plain(), run),
            SourceOutput::ConnectBulk { session, epoch } => {
                env.mark("source connects bulk");
                self.bulk.clear();
                self.want_bulk(BulkHello { session, epoch });
            }
            SourceOutput::StartTracking => {
                env.mark("source starts tracking");
                self.blocked = Some(Blocked::Tracking(env.now + env.rng.micros(1, 500)));
            }
            SourceOutput::Collect => {
                env.mark("source collects");
                self.blocked = Some(Blocked::Collecting(env.now + env.rng.micros(1, 500)));
            }
            SourceOutput::StopTracking => vm.tracking = false,
            SourceOutput::PauseAndSave => {
                env.mark("source pauses the guest");
                self.blocked = Some(Blocked::Pausing(env.now + env.rng.micros(1, 2000)));
            }
            SourceOutput::RecordGrant(transfer) => {
                env.mark("source records the grant");
                self.record(env, me, transfer, Ownership::Granted);
            }
            SourceOutput::RecordReclaimed(transfer) => {
                self.record(env, me, transfer, Ownership::Reclaimed);
            }
            SourceOutput::RecordReleased(transfer) => {
                if env.disk(me).ownership(transfer) == Some(Ownership::Granted) {
                    self.record(env, me, transfer, Ownership::Released);
                }
            }
            SourceOutput::StartPush => self.start_push(env),
            SourceOutput::StopPush => self.shared.stopped = true,
            SourceOutput::HangUp => self.hang_up(env),
            SourceOutput::Interrupted(reason) => self.interrupted(env, &reason),
            SourceOutput::Dial { session, epoch } => {
                env.mark("source dials");
                let (guest, transfer) = (self.offer.guest, self.offer.transfer);
                let hello = ResumeHello { guest, transfer, session, epoch };
                let hello = hello.encode().to_vec();
                self.want(Channel::Resume, hello, REDIAL_TIMEOUT, Some(epoch));
            }
            SourceOutput::Resume => vm.running = !env.guest.ended,
            SourceOutput::Reached(_) => {}
            SourceOutput::Finish(outcome) => self.finish(env, outcome),
        }
    }

    pub(super) fn send(&mut self, env: &mut Env, me: Me, message: &Message<'_>) {
        let Some(channel) = &mut self.channel else { return };
        channel.queue(message, env, me);
        match message {
            Message::Offer(_) => env.mark("source sends Offer"),
            Message::Round { .. } => env.mark("source sends Round"),
            Message::Package(_) => env.mark("source sends Package"),
            Message::Grant { .. } => env.mark("source sends Grant"),
            Message::Released => env.mark("source sends Released"),
            _ => {}
        }
    }

    pub(super) fn serve(&mut self, env: &mut Env, memory: &[Values], run: PageRun) {
        env.mark(if run.count > 1 { "source serves a window" } else { "source serves" });
        let Some(channel) = &mut self.channel else { return };
        self.shared.fault_at(run.first);
        let pages = &memory[run.first.0 as usize..][..run.count as usize];
        let is_zero = |values: &Values| *values == Values::default();
        let mut first = run.first;
        for pages in pages.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let run = PageRun { first, count: u32::try_from(pages.len()).expect("of the run") };
            let contents: Vec<u8> = pages.iter().flat_map(|&values| page_of(values)).collect();
            let zero = is_zero(&pages[0]);
            channel.queue_pages(if zero { zero_frame(run) } else { data_frame(run, &contents) });
            first = PageIndex(first.0 + run.count);
        }
    }

    pub(super) fn start_push(&mut self, env: &mut Env) {
        env.mark("source starts to push");
        let urgent = self.shared.urgent;
        let written = Arc::clone(self.machine().written_last());
        self.shared = Shared::new(&self.sent, written);
        if urgent {
            self.shared.urgent = true;
            self.shared.gate.enter();
        }
        self.pushers = self.bulk.iter().map(|&end| Pusher::new(end)).collect();
        self.running = self.pushers.len();
    }

    pub fn push_ready_at(&self, pusher: usize, env: &Env) -> Option<Duration> {
        self.pushers[pusher].ready_at(env, &self.shared)
    }

    /// The thread of a bulk channel goes on.
    pub fn step_push(&mut self, pusher: usize, env: &mut Env, vm: &Vm) {
        let what = (&*self.sent, vm.plain());
        let pushed = self.pushers[pusher].step(env, what, &mut self.shared);
        let epoch = self.machine().epoch();
        match pushed {
            Pushed::NotYet => return,
            Pushed::All => {
                self.running -= 1;
                if self.running == 0 {
                    self.events.push_back(Event::Pushed { epoch });
                }
            }
            Pushed::Closed => {}
            Pushed::Failed(error) => self.events.push_back(Event::PushFailed { epoch, error }),
        }
        self.pushers.remove(pusher);
    }

    /// Closes all channels; then no page is being sent.
    pub(super) fn hang_up(&mut self, env: &mut Env) {
        self.shared.gate.close();
        let urgent = self.channel.take().map(|channel| channel.end);
        for end in self.bulk.drain(..).chain(urgent) {
            env.net.close(end, env.now);
        }
        self.pushers.clear();
    }

    pub(super) fn interrupted(&mut self, env: &mut Env, reason: &str) {
        env.mark("source is interrupted");
        crate::check::accusation(env, reason);
        if env.is_mutated(Mutation::GrantTwice) && self.state() == MigrationState::PostcopyPaused {
            self.grants_again = true;
        }
    }

    pub(super) fn finish(&mut self, env: &mut Env, outcome: Outcome) {
        // The last words; whether they arrive changes nothing here.
        if let Some(channel) = &mut self.channel {
            let _ = channel.flush(env);
        }
        self.leave_gate();
        self.hang_up(env);
        self.outcome = Some(outcome);
    }
}
