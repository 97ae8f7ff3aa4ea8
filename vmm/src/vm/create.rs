//! Making a VM: memory, memslots, interrupt controllers, vCPUs, devices, threads.

use std::io::Write;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use super::machine::lock;
use super::save::profile;
use super::{CPU_COUNT_MAX, Exits, Vm, VmConfig};
use crate::arch::x86_64::cpuid;
use crate::devices::Devices;
use crate::kvm::{Capabilities, Machine, Vcpu};
use crate::memory::{GuestMemory, MemoryError, install_poison_handler};
use crate::vcpu::{Control, CpuShared};
use crate::{Error, kvm, vcpu};

impl Vm {
    /// Makes a guest with empty memory. The guest's console goes to `console`, which may block.
    ///
    /// # Errors
    /// [`Error::Kvm`] and [`Error::Memory`] say what the host lacks and what to do about it;
    /// [`Error::CpuCount`], [`Error::Device`].
    pub fn create(config: &VmConfig, console: Box<dyn Write + Send>) -> Result<Vm, Error> {
        let memory = || GuestMemory::create(config.memory_bytes, config.backing);
        Vm::create_on(config, memory, console)
    }

    /// Makes a guest with the memory that `memory` makes, which is as `config` has it.
    ///
    /// # Errors
    /// As [`Vm::create`].
    pub fn create_on(
        config: &VmConfig,
        memory: impl FnOnce() -> Result<GuestMemory, MemoryError>,
        console: Box<dyn Write + Send>,
    ) -> Result<Vm, Error> {
        kvm::install_kick_handler().map_err(Error::Event)?;
        install_poison_handler().map_err(Error::Event)?;
        let Machine { kvm, vm, capabilities } = Machine::create()?;
        check_cpu_count(config.cpus, &capabilities)?;
        let memory = Arc::new(memory()?);
        kvm::add_memory(&vm, &memory)?;
        let fd = Arc::new(vm);
        let cpuid = cpuid::for_guest(&kvm, &capabilities, config.cpus)?;
        let devices = Devices::create(&fd, &memory, &config.devices, console)?;
        let parts = Parts {
            memory,
            devices: Arc::new(devices),
            control: Arc::new(Control::new(config.cpus.into())),
            exits: Arc::new(Exits::new()?),
        };
        let mut cpus = Vec::new();
        for index in 0..config.cpus {
            let mut vcpu = Vcpu::create(&fd, index, capabilities.xsave_bytes)?;
            cpuid.apply(&mut vcpu, index)?;
            cpus.push(parts.share(index, config.cpus, vcpu));
        }
        let profile = profile(&kvm, &capabilities, &cpuid, &lock(&cpus[0].vcpu))?;
        let Parts { memory, devices, control, exits } = parts;
        let vm = Vm {
            config: config.clone(),
            capabilities,
            fd,
            memory,
            devices,
            control,
            exits,
            cpus,
            profile: Mutex::new(profile),
            threads: Mutex::new(Vec::new()),
            started: AtomicBool::new(false),
            tracker: Mutex::new(None),
        };
        vm.spawn_threads()?;
        Ok(vm)
    }

    /// The threads exist from the beginning, parked, so that a start costs no time.
    fn spawn_threads(&self) -> Result<(), Error> {
        for cpu in &self.cpus {
            let thread = vcpu::spawn(Arc::clone(cpu));
            let thread = match thread {
                Ok(thread) => thread,
                Err(source) => {
                    // The vCPUs without a thread count as gone, for the shutdown on drop.
                    self.cpus.iter().skip(cpu.index).for_each(|cpu| self.control.leave(cpu.index));
                    return Err(Error::Thread { what: "a vcpu", source });
                }
            };
            self.threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(thread);
        }
        Ok(())
    }
}

struct Parts {
    memory: Arc<GuestMemory>,
    devices: Arc<Devices>,
    control: Arc<Control>,
    exits: Arc<Exits>,
}

impl Parts {
    fn share(&self, index: u8, count: u8, vcpu: Vcpu) -> Arc<CpuShared> {
        Arc::new(CpuShared {
            index: index.into(),
            count: count.into(),
            vcpu: Mutex::new(vcpu),
            control: Arc::clone(&self.control),
            memory: Arc::clone(&self.memory),
            devices: Arc::clone(&self.devices),
            exits: Arc::clone(&self.exits),
        })
    }
}

fn check_cpu_count(wanted: u8, capabilities: &Capabilities) -> Result<(), Error> {
    let host = u8::try_from(capabilities.cpus_max).unwrap_or(u8::MAX);
    let limit = host.min(CPU_COUNT_MAX);
    if (1..=limit).contains(&wanted) { Ok(()) } else { Err(Error::CpuCount { wanted, limit }) }
}
