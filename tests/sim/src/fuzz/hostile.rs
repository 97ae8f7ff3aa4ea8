//! A destination as a whole, whose peer sends what it likes over as many channels as it likes.

mod speech;

use std::time::Duration;

use godwit_migration::limits::{CONNECTIONS_MAX, PEER_TIMEOUT, SETUP_TIMEOUT};
use godwit_migration::proto::MigrationState;
use godwit_migration::wire::{BulkHello, Channel, Preamble, ResumeHello, encode};
use godwit_uffd_testing::fuzz::Bytes;

use self::speech::{contents, message};
use super::words::number;
use crate::check;
use crate::disk::GUEST;
use crate::door::Greeting;
use crate::env::{Env, Me};
use crate::incoming;
use crate::net::End;
use crate::process::{Process, Task};

/// The host that receives.
const HERE: usize = 1;
/// Connections that a peer makes.
const CHANNELS_MAX: usize = CONNECTIONS_MAX as usize + 8;
/// Steps in which a destination that hears nothing any more comes to rest.
const STEPS_MAX: u32 = 50_000;
/// How long it may take for that, of its own time.
const REST_MAX: Duration = Duration::from_secs(300);

/// Reads bytes as what a peer does to a process that receives guests, which is then left alone.
///
/// # Panics
/// If the destination does what it never may: panics, installs outside guest memory, counts pages
/// that are not there, waits for ever without saying so.
pub fn destination(bytes: &[u8]) {
    let mut bytes = Bytes::new(bytes);
    let Some(mut scene) = Scene::new(&mut bytes) else { return };
    scene.play(&mut bytes);
}

struct Scene {
    env: Env,
    process: Process,
    channels: Vec<End>,
    /// The last session that there was.
    session: [u8; 16],
    tasks: Vec<(Duration, usize, Task)>,
    /// The peer stays connected when it has nothing to say any more.
    stays: bool,
    /// The states that a migration went through.
    states: Vec<MigrationState>,
}

impl Scene {
    fn new(bytes: &mut Bytes<'_>) -> Option<Scene> {
        // A fuzzer has no time for a trace; the test that repeats what it found does.
        let mut env = Env::new(number(bytes)?.into(), None, cfg!(test));
        // What goes wrong is what the peer does.
        (env.quiet, env.honest, env.hostile) = (true, false, true);
        (env.net.latency, env.net.per_kib) = (Duration::ZERO, Duration::ZERO);
        let me = Me { host: HERE, id: 1 };
        Some(Scene {
            env,
            process: Process::new(me.host, me.id),
            channels: Vec::new(),
            session: [0; 16],
            tasks: Vec::new(),
            stays: bytes.byte()?.is_multiple_of(2),
            states: Vec::new(),
        })
    }

    fn play(&mut self, bytes: &mut Bytes<'_>) {
        while self.act(bytes).is_some() {}
        self.end();
    }

    /// The next thing that the peer does, or that happens here.
    fn act(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        match bytes.below(12)? {
            0 => self.connect(bytes)?,
            1..=5 => {
                let message = message(bytes, self.env.guest.pages())?;
                let mut frame = Vec::new();
                encode(&message, &mut frame);
                self.send(bytes, &frame)?;
            }
            6 => {
                let frame = contents(bytes, self.env.guest.pages())?;
                self.send(bytes, &frame)?;
            }
            7 => {
                let length = usize::from(bytes.byte()?);
                let raw = bytes.some(length);
                self.send(bytes, raw)?;
            }
            8 => {
                let channel = self.channel(bytes)?;
                self.env.net.close(channel, self.env.now);
            }
            9 => self.steps(bytes.byte()?.into()),
            10 => {
                self.env.now += Duration::from_millis(number(bytes)?.into());
                self.steps(8);
            }
            _ => self.happen(bytes)?,
        }
        Some(())
    }

    fn connect(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        if self.channels.len() == CHANNELS_MAX {
            return Some(());
        }
        let stream = self.env.net.connect(0, HERE);
        let [theirs, ours] = [0, 1].map(|side| End { stream, side });
        self.channels.push(theirs);
        self.process.greetings.push(Greeting::new(ours, self.env.now));
        let session = if bytes.below(8)? == 0 { [7; 16] } else { self.session };
        let epoch = bytes.below(4)?.into();
        let begin = match bytes.below(4)? {
            0 => Preamble::ours(Channel::Urgent).encode().to_vec(),
            1 => {
                let hello = BulkHello { session, epoch }.encode();
                [&Preamble::ours(Channel::Bulk).encode()[..], &hello].concat()
            }
            2 => {
                let transfer = bytes.below(3)?.into();
                let hello = ResumeHello { guest: GUEST, transfer, session, epoch }.encode();
                [&Preamble::ours(Channel::Resume).encode()[..], &hello].concat()
            }
            _ => return Some(()),
        };
        let _ = self.env.net.send(theirs, self.env.now, &begin, false);
        self.steps(20);
        Some(())
    }

    /// One of the peer's channels, most of the time the first or the newest.
    fn channel(&self, bytes: &mut Bytes<'_>) -> Option<End> {
        let newest = self.channels.len().checked_sub(1)?;
        let at = match usize::from(bytes.byte()?) {
            0..100 => 0,
            100..200 => newest,
            other => other % (newest + 1),
        };
        Some(self.channels[at])
    }

    fn send(&mut self, bytes: &mut Bytes<'_>, what: &[u8]) -> Option<()> {
        if self.channels.is_empty() {
            return Some(());
        }
        let channel = self.channel(bytes)?;
        // A peer that was hung up on goes on all the same.
        let _ = self.env.net.send(channel, self.env.now, what, true);
        let steps = bytes.byte()?;
        self.steps(steps.into());
        Some(())
    }

    /// Something happens here.
    fn happen(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        match bytes.below(4)? {
            0 => self.env.disk(self.process.me).failing = bytes.below(3)?.into(),
            1 => self.stop(),
            2 => {
                let running = self.process.vm.as_mut().filter(|vm| vm.running);
                if let (Some(vm), Some(incoming)) = (running, &mut self.process.incoming) {
                    vm.running = false;
                    self.env.guest.ended = true;
                    incoming.events.push_back(incoming::Event::GuestEnded);
                }
            }
            _ => {
                if let Some(vm) = &mut self.process.vm {
                    vm.kick(&mut self.env);
                }
            }
        }
        Some(())
    }

    fn stop(&mut self) {
        if let Some(incoming) = &mut self.process.incoming {
            incoming.events.push_back(incoming::Event::Stop);
        }
    }

    /// Steps of those who can go on now; time does not pass.
    fn steps(&mut self, steps: u32) {
        for _ in 0..steps {
            if !self.step() {
                return;
            }
        }
    }

    /// One step. False if nobody can go on now.
    fn step(&mut self) -> bool {
        let (env, process) = (&mut self.env, &mut self.process);
        self.tasks.clear();
        process.tasks(env, &mut self.tasks);
        self.tasks.sort_by_key(|(at, ..)| *at);
        let ready = self.tasks.iter().filter(|(at, ..)| *at <= env.now).count();
        if ready == 0 {
            return false;
        }
        let (_, _, task) = self.tasks[env.rng.below(ready)];
        process.step(env, task);
        let state = process.incoming.as_ref().map(incoming::Incoming::state);
        self.states.extend(state.filter(|state| self.states.last() != Some(state)));
        self.session = process.door.session.unwrap_or(self.session);
        check::after_step(env, [&*process].into_iter(), true);
        if let Some(violation) = &env.violation {
            panic!("{violation}");
        }
        true
    }

    /// Goes on until `rests` is true, with nothing more from the peer.
    fn until(&mut self, what: &str, rests: impl Fn(&Process) -> bool) {
        let give_up = self.env.now + REST_MAX;
        for _ in 0..STEPS_MAX {
            if rests(&self.process) {
                return;
            }
            if !self.step() {
                let next = self.tasks.first().map(|(at, ..)| *at);
                let next = next.unwrap_or_else(|| panic!("{what}: nobody waits for anything"));
                self.env.now = self.env.now.max(next);
                assert!(self.env.now <= give_up, "{what}: {:?}", self.state());
            }
        }
        panic!("{what}: it goes on and on: {:?}", self.state());
    }

    fn state(&self) -> Option<MigrationState> {
        self.process.incoming.as_ref().map(incoming::Incoming::state)
    }

    /// The peer says nothing more. The destination says that it waits, or ends; and when it is
    /// told to stop, it does.
    fn end(&mut self) {
        if !self.stays {
            for channel in &self.channels {
                self.env.net.close(*channel, self.env.now);
            }
        }
        self.env.disk(self.process.me).failing = 0;
        self.until("a silent peer", |process| {
            let state = process.incoming.as_ref().map(incoming::Incoming::state);
            let waits = state.is_none_or(MigrationState::is_interrupted);
            waits && process.greetings.is_empty()
        });
        self.stop();
        self.until("the operator", |process| process.incoming.is_none());
    }
}

/// What happened before something went wrong.
impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.env.trace.iter().flatten().for_each(|line| eprintln!("    {line}"));
        }
    }
}

const _: () = assert!(REST_MAX.as_secs() > 2 * (SETUP_TIMEOUT.as_secs() + PEER_TIMEOUT.as_secs()));

#[cfg(test)]
mod tests {
    use super::*;

    /// A target that gets no further than the door finds nothing.
    #[test]
    fn kept_inputs_go_through_a_whole_migration() {
        use MigrationState::{Active, Completed, Device, PostcopyActive, PostcopyPaused, Setup};
        let states = |input: &[u8]| {
            let mut bytes = Bytes::new(input);
            let mut scene = Scene::new(&mut bytes).expect("a seed");
            scene.play(&mut bytes);
            scene.states.clone()
        };
        let comes = include_bytes!("../../../fuzz/regressions/destination/a-guest-that-comes");
        assert_eq!(states(comes), [Setup, Device, PostcopyActive, Completed]);
        let resumes =
            include_bytes!("../../../fuzz/regressions/destination/rounds-and-a-resumed-session");
        let expected =
            [Setup, Active, Device, PostcopyActive, PostcopyPaused, PostcopyActive, Completed];
        assert_eq!(states(resumes), expected);
    }
}
