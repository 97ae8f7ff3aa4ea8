//! The guest on one host: its memory, whether it runs, and its vCPUs that wait.

use std::time::Duration;

use godwit_migration::page::PageSet;
use godwit_uffd::model::Progress;
use godwit_uffd::page::PageIndex;

use crate::env::Env;
use crate::guest::Values;
use crate::memory::{Memory, Waiting, loaded};

/// The guest as one process has it.
#[derive(Debug)]
pub struct Vm {
    pub memory: Memory,
    pub running: bool,
    pub waiting: Vec<Option<Waiting>>,
    next_at: Vec<Duration>,
    /// Writes are noted.
    pub tracking: bool,
    pub dirty: PageSet,
}

impl Vm {
    pub fn new(memory: Memory, env: &Env) -> Vm {
        let cpus = env.guest.cpus();
        Vm {
            memory,
            running: false,
            waiting: (0..cpus).map(|_| None).collect(),
            next_at: vec![env.now; cpus],
            tracking: false,
            dirty: PageSet::empty(env.guest.pages()),
        }
    }

    /// All of memory, where the guest is at home.
    pub fn plain(&self) -> &[Values] {
        match &self.memory {
            Memory::Plain(values) => values,
            Memory::Arriving(_) => panic!("a guest leaves before it has arrived"),
        }
    }

    /// When a vCPU does something, if it does.
    pub fn cpu_ready_at(&self, cpu: usize, env: &Env) -> Option<Duration> {
        if !self.running || env.guest.paused {
            return None;
        }
        match &self.waiting[cpu] {
            Some(waiting) => waiting.parked.is_woken().then_some(Duration::ZERO),
            None => Some(self.next_at[cpu]),
        }
    }

    /// A vCPU goes on.
    pub fn step_cpu(&mut self, cpu: usize, env: &mut Env) {
        let (progress, access) = match self.waiting[cpu].take() {
            Some(Waiting { parked, access }) => (parked.resume(), access),
            None => {
                let access = env.guest.next_access(cpu, &mut env.rng);
                if let Memory::Plain(values) = &mut self.memory {
                    let value = &mut values[access.page as usize][access.slot];
                    let read = *value;
                    if let Some(written) = access.write {
                        *value = written;
                        if self.tracking {
                            self.dirty.insert(PageIndex(access.page));
                        }
                    }
                    return self.accessed(cpu, env, access, read);
                }
                let Memory::Arriving(memory) = &self.memory else { unreachable!() };
                (memory.access(cpu, access), access)
            }
        };
        match progress {
            Progress::Done(outcome) => self.accessed(cpu, env, access, loaded(outcome)),
            Progress::Parked(parked) => {
                env.log(|| format!("cpu {cpu} waits for page {}", access.page));
                self.waiting[cpu] = Some(Waiting { parked, access });
            }
        }
    }

    fn accessed(&mut self, cpu: usize, env: &mut Env, access: crate::guest::Access, read: u8) {
        if let Err(what) = env.guest.done(access, read) {
            env.wrong_contents(what);
        }
        self.next_at[cpu] = env.now + env.guest.think(cpu, &mut env.rng);
    }

    /// vCPUs are kicked out of their waits.
    pub fn kick(&mut self, env: &mut Env) {
        for cpu in 0..self.waiting.len() {
            let Some(Waiting { parked, access }) = self.waiting[cpu].take() else { continue };
            match parked.interrupt() {
                Progress::Done(outcome) => self.accessed(cpu, env, access, loaded(outcome)),
                Progress::Parked(parked) => self.waiting[cpu] = Some(Waiting { parked, access }),
            }
        }
    }

    /// All pages have arrived: the memory is ordinary again.
    pub fn settle(&mut self, env: &mut Env) {
        let Memory::Arriving(memory) = &self.memory else { return };
        let pages = env.guest.pages();
        if (0..pages).any(|page| !memory.has(PageIndex(page))) {
            return env.violated("a completed guest has a page that is not there");
        }
        memory.uffd.0.unregister_all().expect("it was registered");
        for cpu in 0..self.waiting.len() {
            if let Some(Waiting { parked, access }) = self.waiting[cpu].take() {
                match parked.resume() {
                    Progress::Done(outcome) => self.accessed(cpu, env, access, loaded(outcome)),
                    Progress::Parked(_) => env.violated("a vCPU sleeps in ordinary memory"),
                }
            }
        }
        let Memory::Arriving(memory) = &self.memory else { unreachable!() };
        // A page that the source has lost is there, and has nothing in it.
        let values = (0..pages).map(|page| memory.values(page).unwrap_or_default());
        self.memory = Memory::Plain(values.collect());
        if let Memory::Plain(values) = &self.memory
            && *values != env.guest.truth
        {
            env.wrong_contents("the memory of a completed guest is not what it wrote");
        }
    }
}
