//! Faults strike.

use std::sync::atomic::Ordering;

use crate::chaos::{Fault, Streams};
use crate::env::Env;
use crate::incoming;
use crate::memory::Memory;
use crate::net::Stream;
use crate::outgoing::Command;
use crate::world::World;

impl World {
    /// Something goes wrong now.
    pub fn break_something(&mut self, fault: Fault) {
        self.env.log(|| format!("FAULT: {fault:?}"));
        let now = self.env.now;
        match fault {
            Fault::Crash { host, again } => self.kill(host, false, now + again),
            Fault::PowerOff { host, again } => self.kill(host, true, now + again),
            Fault::Freeze { host, time } => {
                if let Some(process) = &mut self.hosts[host].process {
                    process.frozen_until = now + time;
                }
            }
            Fault::Cut(streams) => {
                for stream in self.streams(streams) {
                    self.env.net.cut(stream, now, &mut self.env.rng);
                }
            }
            Fault::Silence(streams, ways) => {
                for stream in self.streams(streams) {
                    let Env { net, rng, .. } = &mut self.env;
                    match rng.chance(70) {
                        true => net.silence(stream, ways, now, rng),
                        false => net.swallow(stream, ways, rng),
                    }
                }
            }
            Fault::Stall(streams, way, time) => {
                for stream in self.streams(streams) {
                    self.env.net.stall(stream, way, now + time);
                }
            }
            Fault::Corrupt(streams, way) => {
                for stream in self.streams(streams) {
                    if self.env.net.corrupt(stream, way) {
                        self.env.honest = false;
                    }
                }
            }
            Fault::Apart(time) => {
                self.env.net.apart_until = now + time;
                for stream in self.streams(Streams::All) {
                    self.env.net.silence(stream, [true, true], now, &mut self.env.rng);
                }
            }
            Fault::Repeat { host } => self.env.repeat[host] = true,
            Fault::DiskFails { host, writes } => {
                let disk = self.env.plan.disk_of(host);
                self.env.disks[disk].failing = writes;
            }
            Fault::DiskSlow { host, time } => {
                let disk = self.env.plan.disk_of(host);
                self.env.disks[disk].slow = time;
            }
            Fault::InstallFails(_) | Fault::InstallPartly(_) | Fault::Kick => self.disturb(fault),
            _ => self.operator_does(fault),
        }
    }

    fn operator_does(&mut self, fault: Fault) {
        match fault {
            Fault::Cancel => self.command(Command::Cancel),
            Fault::SwitchNow => self.command(Command::SwitchNow),
            Fault::Recover { elsewhere } => {
                self.command(Command::Recover(elsewhere.then_some(2)));
            }
            Fault::GuestPowersOff => self.power_off(),
            Fault::Pause(paused) => self.env.guest.paused = paused,
            Fault::StopIncoming => {
                for host in 0..self.hosts.len() {
                    self.tell_incoming(host, incoming::Event::Stop);
                }
            }
            Fault::AbandonOutgoing => {
                let processes = self.hosts.iter().filter_map(|host| host.process.as_ref());
                if { processes }.any(|process| process.outgoing.is_some()) {
                    self.env.guest.may_be_lost.get_or_insert("the operator gave it up");
                }
                self.command(Command::Abandon);
            }
            other => unreachable!("{other:?} is nothing that an operator does"),
        }
    }

    /// The guest powers off, if it runs.
    fn power_off(&mut self) {
        for host in 0..self.hosts.len() {
            let Some(process) = &mut self.hosts[host].process else { continue };
            let Some(vm) = &mut process.vm else { continue };
            if !vm.running || self.env.guest.paused {
                continue;
            }
            vm.running = false;
            self.env.guest.ended = true;
            if process.incoming.is_some() {
                self.tell_incoming(host, incoming::Event::GuestEnded);
            }
            self.command(Command::GiveUp);
            return;
        }
    }

    fn disturb(&mut self, fault: Fault) {
        let processes = self.hosts.iter_mut().filter_map(|host| host.process.as_mut());
        for vm in processes.filter_map(|process| process.vm.as_mut()) {
            match (&vm.memory, fault) {
                (Memory::Arriving(memory), Fault::InstallFails(installs)) => {
                    memory.uffd.0.uffd().fail(installs);
                }
                (Memory::Arriving(memory), Fault::InstallPartly(installs)) => {
                    memory.uffd.0.uffd().partly.store(installs, Ordering::Relaxed);
                }
                (Memory::Arriving(_), _) => vm.kick(&mut self.env),
                (Memory::Plain(_), _) => {}
            }
        }
    }

    fn streams(&mut self, which: Streams) -> Vec<Stream> {
        let open = |bulk: Option<bool>| {
            self.env.net.open(|_, is_bulk| bulk.is_none_or(|wanted| wanted == is_bulk))
        };
        match which {
            Streams::All => open(None),
            Streams::Urgent => open(Some(false)),
            Streams::OneBulk => {
                let all = open(Some(true));
                match all.len() {
                    0 => Vec::new(),
                    count => vec![all[self.env.rng.below(count)]],
                }
            }
        }
    }
}
