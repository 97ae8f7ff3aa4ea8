//! Saving a guest, restoring it, and what it needs from a host.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use kvm_bindings::{kvm_clock_data, kvm_irqchip, kvm_pit_state2};
use kvm_ioctls::Kvm;
use serde::de::DeserializeOwned;

use super::machine::lock;
use super::save_vcpu::{check_vcpu, restore_vcpu, save_vcpu};
use super::{CPU_COUNT_MAX, Vm};
use crate::arch::x86_64::cpuid::GuestCpuid;
use crate::arch::x86_64::{cpuid, msr};
use crate::devices::SerialSnapshot;
use crate::kvm::{Capabilities, KvmError, Machine, Vcpu, failed};
use crate::state::chips::CHIP_COUNT;
use crate::state::{
    ChipsState, Kind, Leaf, MachineState, Requirements, Section, SerialState, StateError,
    VcpuState, VirtioState, chips,
};
use crate::{Error, state};

impl Vm {
    /// The state of everything but memory. The guest must be paused; its console and its disks have
    /// everything that it has written.
    ///
    /// # Errors
    /// [`Error::NotPaused`], [`Error::Ended`], [`Error::AccessUnfinished`],
    /// [`Error::DeviceUnfinished`], [`Error::Device`], [`Error::Kvm`].
    pub fn save(&self) -> Result<Vec<Section>, Error> {
        self.require_paused()?;
        if self.control.has_ended() {
            return Err(self.ended());
        }
        if let Some(cpu) = self.control.first_running() {
            return Err(Error::AccessUnfinished { cpu });
        }
        if let Some(device) = self.devices.virtio().first_busy() {
            return Err(Error::DeviceUnfinished { device });
        }
        self.devices.virtio().settle()?;
        self.devices.flush_console();
        let mut sections = vec![state::encode(Kind::Machine, &self.machine_state())];
        let msrs = self.saved_msrs();
        for cpu in &self.cpus {
            let vcpu = save_vcpu(&mut lock(&cpu.vcpu), &msrs)?;
            sections.push(state::encode(Kind::Vcpu, &vcpu));
        }
        // After the vCPUs: reading a local APIC can still move an interrupt.
        sections.push(state::encode(Kind::Chips, &self.save_chips()?));
        let serial = SerialState::from(self.devices.save_serial());
        sections.push(state::encode(Kind::Serial, &serial));
        let devices = self.devices.virtio().save();
        sections.extend(devices.iter().map(|device| state::encode(Kind::Virtio, device)));
        Ok(sections)
    }

    /// Puts saved state into a guest that has not run. Guest memory may be touched, and may be
    /// missing: another thread has to resolve the faults. Nothing outside the process changes.
    ///
    /// # Errors
    /// [`Error::State`] if the sections are damaged, unknown, or for another guest;
    /// [`Error::AlreadyStarted`], [`Error::Kvm`].
    pub fn restore(&self, sections: &[Section]) -> Result<(), Error> {
        if self.started.load(Ordering::Acquire) {
            return Err(Error::AlreadyStarted);
        }
        let saved = Saved::read(sections, self.cpus.len(), self.devices.virtio().count())?;
        saved.machine.check_fits(&self.machine_state())?;
        saved.vcpus.iter().try_for_each(|state| check_vcpu(state, &self.capabilities))?;
        (0..CHIP_COUNT).try_for_each(|index| saved.chips.chip(index).map(drop))?;
        self.devices.restore_serial(&saved.serial)?;
        self.devices.virtio().restore(&saved.devices)?;
        self.restore_chips(&saved.chips)?;
        for (cpu, state) in self.cpus.iter().zip(&saved.vcpus) {
            restore_vcpu(&mut lock(&cpu.vcpu), state, saved.machine.tsc_khz)?;
        }
        self.adopt_profile(&saved);
        Ok(())
    }

    /// What a destination must offer, as bytes for [`Vm::check`].
    pub fn requirements(&self) -> Vec<u8> {
        let profile = self.profile.lock().unwrap_or_else(PoisonError::into_inner);
        postcard::to_stdvec(&*profile).expect("requirements are made of numbers")
    }

    /// Whether this host can run a guest with these requirements. Makes and drops an empty virtual
    /// machine; needs no guest.
    ///
    /// # Errors
    /// [`Error::State`] names what is missing; [`Error::Kvm`].
    pub fn check(requirements: &[u8]) -> Result<(), Error> {
        let guest: Requirements = state::decode("the list of requirements", requirements)?;
        guest.check_limits()?;
        let Machine { kvm, vm, capabilities } = Machine::create()?;
        let cpuid = cpuid::for_guest(&kvm, &capabilities, CPU_COUNT_MAX)?;
        let mut vcpu = Vcpu::create(&vm, 0, capabilities.xsave_bytes)?;
        cpuid.apply(&mut vcpu, 0)?;
        let host = profile(&kvm, &capabilities, &cpuid, &vcpu)?;
        Ok(guest.check_against(&host, capabilities.tsc_control)?)
    }

    /// Whether this guest, which has not run and holds no state yet, offers what a guest with these
    /// requirements needs. As [`Vm::check`], for a machine that is there already.
    ///
    /// # Errors
    /// [`Error::State`] names what is missing.
    pub fn check_here(&self, requirements: &[u8]) -> Result<(), Error> {
        let guest: Requirements = state::decode("the list of requirements", requirements)?;
        guest.check_limits()?;
        let host = self.profile.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(guest.check_against(&host, self.capabilities.tsc_control)?)
    }

    /// The processor features that the guest sees, by name.
    pub fn features(&self) -> Vec<String> {
        self.profile.lock().unwrap_or_else(PoisonError::into_inner).features()
    }

    fn saved_msrs(&self) -> Vec<u32> {
        self.profile.lock().unwrap_or_else(PoisonError::into_inner).msrs.clone()
    }

    /// The guest keeps the leaves and the frequency it came with, also on its next move.
    fn adopt_profile(&self, saved: &Saved) {
        let mut profile = self.profile.lock().unwrap_or_else(PoisonError::into_inner);
        profile.tsc_khz = saved.machine.tsc_khz;
        if let Some(first) = saved.vcpus.first() {
            profile.cpuid.clone_from(&first.cpuid);
        }
    }

    fn machine_state(&self) -> MachineState {
        MachineState {
            cpus: self.config.cpus,
            memory_bytes: self.config.memory_bytes,
            tsc_khz: self.tsc_khz(),
        }
    }

    fn save_chips(&self) -> Result<ChipsState, KvmError> {
        let mut saved = Vec::new();
        for chip_id in 0..CHIP_COUNT {
            let chip_id = u32::try_from(chip_id).expect("there are three");
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            self.fd.get_irqchip(&mut chip).map_err(failed("KVM_GET_IRQCHIP"))?;
            saved.push(chips::chip_bytes(&chip));
        }
        let pit = self.fd.get_pit2().map_err(failed("KVM_GET_PIT2"))?;
        let clock = self.fd.get_clock().map_err(failed("KVM_GET_CLOCK"))?;
        Ok(ChipsState { chips: saved, pit: (&pit).into(), clock: (&clock).into() })
    }

    fn restore_chips(&self, state: &ChipsState) -> Result<(), Error> {
        for index in 0..CHIP_COUNT {
            self.fd.set_irqchip(&state.chip(index)?).map_err(failed("KVM_SET_IRQCHIP"))?;
        }
        let pit = kvm_pit_state2::from(&state.pit);
        self.fd.set_pit2(&pit).map_err(failed("KVM_SET_PIT2"))?;
        let clock = kvm_clock_data::from(&state.clock);
        self.fd.set_clock(&clock).map_err(failed("KVM_SET_CLOCK"))?;
        Ok(())
    }
}

/// What a guest with these leaves needs from a host, or what the host has.
pub(super) fn profile(
    kvm: &Kvm,
    capabilities: &Capabilities,
    cpuid: &GuestCpuid,
    vcpu: &Vcpu,
) -> Result<Requirements, KvmError> {
    Ok(Requirements {
        version: state::REQUIREMENTS_VERSION,
        cpuid: cpuid.entries().iter().map(Leaf::from).collect(),
        msrs: msr::saved_indices(kvm, vcpu)?,
        xsave_bytes: u32::try_from(capabilities.xsave_bytes).unwrap_or(u32::MAX),
        tsc_khz: msr::tsc_khz(vcpu)?,
    })
}

/// The sections of a guest, read and counted.
struct Saved {
    machine: MachineState,
    chips: ChipsState,
    serial: SerialSnapshot,
    vcpus: Vec<VcpuState>,
    devices: Vec<VirtioState>,
}

impl Saved {
    fn read(
        sections: &[Section],
        cpu_count: usize,
        device_count: usize,
    ) -> Result<Saved, StateError> {
        // Versions and counts first, so that the message is about them.
        let mut counts = [0; Kind::ALL.len()];
        for section in sections {
            let kind = Kind::of(section)?;
            let at = Kind::ALL.iter().position(|other| *other == kind);
            counts[at.expect("every kind is in the list")] += 1;
        }
        for (kind, found) in Kind::ALL.into_iter().zip(counts) {
            let wanted = match kind {
                Kind::Vcpu => cpu_count,
                Kind::Virtio => device_count,
                _ => 1,
            };
            if found != wanted {
                return Err(StateError::Count { what: kind.name(), found, wanted });
            }
        }
        let serial: SerialState = read_one(sections, Kind::Serial)?;
        Ok(Saved {
            machine: read_one(sections, Kind::Machine)?,
            chips: read_one(sections, Kind::Chips)?,
            serial: serial.into(),
            vcpus: read_all(sections, Kind::Vcpu)?,
            devices: read_all(sections, Kind::Virtio)?,
        })
    }
}

fn read_one<T: DeserializeOwned>(sections: &[Section], kind: Kind) -> Result<T, StateError> {
    let mut all = read_all(sections, kind)?;
    let found = all.len();
    all.pop().ok_or(StateError::Count { what: kind.name(), found, wanted: 1 })
}

fn read_all<T: DeserializeOwned>(sections: &[Section], kind: Kind) -> Result<Vec<T>, StateError> {
    let mine = sections.iter().filter(|section| section.id == kind as u16);
    mine.map(|section| state::decode(kind.name(), &section.bytes)).collect()
}
