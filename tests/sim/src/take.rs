//! One bulk channel of the destination: what its thread does, step by step.

use std::sync::Arc;
use std::time::Duration;

use godwit_migration::page::{Claims, InstallError, Installing, Placed};
use godwit_migration::proto::PeerError;
use godwit_uffd::page::PageRun;

use crate::env::Env;
use crate::memory::GuestUffdBox;
use crate::mutation::Mutation;
use crate::net::{End, Received};
use crate::runs::{self, Arrived, take_frame};

/// Where received pages go.
#[derive(Clone, Debug)]
pub struct Room {
    pub claims: Arc<Claims>,
    pub uffd: Arc<GuestUffdBox>,
}

/// An install under way.
#[derive(Debug)]
pub struct Install {
    arrived: Arrived,
    installing: Installing,
}

impl Install {
    /// Claims the pages that arrived.
    pub fn begin(env: &mut Env, room: &Room, arrived: Arrived) -> Result<Install, PeerError> {
        env.log(|| format!("installs {}", arrived.run));
        let installing = Installing::begin(&room.claims, arrived.run)?;
        if env.is_mutated(Mutation::WakeBeforeInstall) {
            room.uffd.0.wake(arrived.run).expect("pages of the guest");
        }
        Ok(Install { arrived, installing })
    }

    /// Goes on. Whether the last page of the guest is in place, if this install is over.
    pub fn step(mut self, env: &Env, room: &Room) -> Result<Step, PeerError> {
        let placed = if env.is_mutated(Mutation::WakeBeforeInstall) {
            self.place_without_wake(room)
        } else {
            self.installing.step(&room.uffd.0, &mut self.arrived.contents())
        };
        match placed {
            Ok(Placed::All) => {
                let last = self.installing.finish(&room.claims, self.arrived.class, |_| {});
                Ok(Step::Over { last })
            }
            Ok(Placed::Some | Placed::EventsFirst) => Ok(Step::Goes(self)),
            Err(error) => {
                self.installing.release(&room.claims);
                Err(PeerError::Lost(format!("an install failed: {error}")))
            }
        }
    }

    fn place_without_wake(&self, room: &Room) -> Result<Placed, InstallError> {
        let (memory, run) = (&room.uffd.0, self.arrived.run);
        let later = godwit_uffd::Wake::Later;
        let filled = match self.arrived.contents() {
            godwit_migration::page::Contents::Data(bytes) => memory.copy(run, bytes, later),
            _ => memory.zero(run, later),
        };
        let kernel = |source| InstallError::Kernel { run, source };
        filled.map_err(kernel).map(|_| Placed::All)
    }
}

/// How far an install has come.
#[derive(Debug)]
pub enum Step {
    Goes(Install),
    Over { last: bool },
}

/// What the thread of a bulk channel tells the thread of the machine.
#[derive(Debug)]
pub enum Told {
    Nothing,
    AllInstalled,
    Ended,
    Failed(PeerError),
    /// It has nothing more to do.
    Gone,
}

/// The thread of one bulk channel.
#[derive(Debug)]
pub struct Taker {
    pub end: End,
    pub epoch: u32,
    received: Vec<u8>,
    at_end: bool,
    over: bool,
    install: Option<Install>,
    pub busy_until: Duration,
    /// A run that is installed too late, for a mistake that is made on purpose.
    old: Option<Arrived>,
}

impl Taker {
    pub fn new(end: End, epoch: u32, received: Vec<u8>) -> Taker {
        Taker {
            end,
            epoch,
            received,
            at_end: false,
            over: false,
            install: None,
            busy_until: Duration::ZERO,
            old: None,
        }
    }

    pub fn ready_at(&self, env: &Env) -> Option<Duration> {
        let work = self.install.is_some() || runs::has_frame(&self.received);
        let at = if work { Some(Duration::ZERO) } else { env.net.readable_at(self.end) };
        at.map(|at| at.max(self.busy_until))
    }

    /// Goes on.
    pub fn step(&mut self, env: &mut Env, room: &Room) -> Told {
        match self.try_step(env, room) {
            Ok(Told::Gone) => {
                self.over = true;
                Told::Gone
            }
            Ok(told) => told,
            Err(error) => {
                self.over = true;
                Told::Failed(error)
            }
        }
    }

    /// Takes in what has arrived, which a closed stream still gives.
    pub fn receive_more(&mut self, env: &mut Env) {
        while let Received::Bytes(bytes) = env.net.receive(self.end, env.now, &mut env.rng) {
            self.received.extend(bytes);
        }
    }

    /// It has nothing more to do.
    pub fn is_over(&self) -> bool {
        self.over
    }

    fn try_step(&mut self, env: &mut Env, room: &Room) -> Result<Told, PeerError> {
        if let Some(install) = self.install.take() {
            return match install.step(env, room)? {
                Step::Goes(install) => {
                    self.install = Some(install);
                    Ok(Told::Nothing)
                }
                Step::Over { last: true } => Ok(Told::AllInstalled),
                Step::Over { last: false } => Ok(Told::Nothing),
            };
        }
        if let Some(frame) = take_frame(&mut self.received, room.claims.page_count())? {
            return self.take(env, room, frame);
        }
        match env.net.receive(self.end, env.now, &mut env.rng) {
            Received::Bytes(bytes) => {
                self.received.extend(bytes);
                Ok(Told::Nothing)
            }
            Received::Nothing => Ok(Told::Nothing),
            Received::End if env.is_mutated(Mutation::EndOfStreamIsSuccess) && !self.over => {
                self.over = true;
                Ok(if self.at_end { Told::Gone } else { Told::Ended })
            }
            Received::End if self.at_end && self.received.is_empty() => Ok(Told::Gone),
            Received::End => Err(PeerError::Lost("bulk channel: it ended too early".into())),
            Received::Broken => Err(PeerError::Lost("bulk channel: it broke".into())),
        }
    }

    fn take(&mut self, env: &mut Env, room: &Room, frame: runs::Pushed) -> Result<Told, PeerError> {
        match frame {
            runs::Pushed::Run(arrived) => {
                self.at_end = false;
                if env.is_mutated(Mutation::InstallAfterDiscard) && self.old.is_none() {
                    // Told as installed, so that nothing waits for it.
                    self.old = Some(arrived.clone());
                }
                self.install = Some(Install::begin(env, room, arrived)?);
                Ok(Told::Nothing)
            }
            runs::Pushed::End => {
                self.at_end = true;
                Ok(Told::Ended)
            }
        }
    }

    /// Pages were discarded: the mistake is to install them once more as they were.
    pub fn install_old(&mut self, env: &mut Env, room: &Room, discarded: PageRun) {
        let Some(old) = self.old.take_if(|old| old.run.intersection(discarded).is_some()) else {
            return;
        };
        let Ok(install) = Install::begin(env, room, old) else { return };
        let mut step = install.step(env, room);
        while let Ok(Step::Goes(install)) = step {
            step = install.step(env, room);
        }
    }
}
