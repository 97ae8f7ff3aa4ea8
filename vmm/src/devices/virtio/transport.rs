//! The registers of a device: virtio over MMIO, version 2.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as register;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::EventFd;

use super::engine::EVENT_IDX;
use super::gate::Wanted;
use super::interrupt::{Cause, Interrupt};
use super::worker::{Shared, spawn};
use super::{DeviceError, VirtioDevice};
use crate::devices::bus::Device;
use crate::memory::GuestMemory;
use crate::state::{Blob, StateError, VirtioQueueState, VirtioState};
use crate::vm::GuestExit;

/// What a driver has written.
#[derive(Clone, Debug)]
struct Registers {
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    /// Their positions are in the engine while the device runs.
    queues: Vec<QueueState>,
}

/// A device as its driver and its machine see it.
pub(crate) struct Transport {
    id: u32,
    features: u64,
    queue_sizes: &'static [u16],
    config: Vec<u8>,
    /// Taken before the engine.
    registers: Mutex<Registers>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Transport {
    /// Puts registers and a thread to a device. The thread waits until it is told to run.
    ///
    /// # Errors
    /// No descriptor or thread to be had.
    pub(super) fn create(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        interrupt: Interrupt,
    ) -> io::Result<Transport> {
        let queue_sizes = device.queue_sizes();
        let transport = Transport {
            id: device.id(),
            features: device.features() | OF_EACH_DEVICE,
            queue_sizes,
            config: device.config().to_vec(),
            registers: Mutex::new(Registers::at_reset(queue_sizes)),
            shared: Arc::new(Shared::new(device, memory, interrupt)?),
            thread: Mutex::new(None),
        };
        *transport.thread() = Some(spawn(&transport.shared)?);
        Ok(transport)
    }

    /// The device's name for messages.
    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    /// What a write to the register of notifications should wake.
    pub(crate) fn notification(&self) -> (&EventFd, u64) {
        (&self.shared.notify, register::VIRTIO_MMIO_QUEUE_NOTIFY.into())
    }

    /// Lets requests be served.
    pub(crate) fn run(&self) {
        self.shared.want(Wanted::Running);
    }

    /// Begins no more requests. Does not wait for one under way.
    pub(crate) fn park(&self) {
        self.shared.want(Wanted::Parked);
    }

    /// Waits until no request is under way. Returns whether that was so before the deadline.
    pub(crate) fn wait_idle(&self, deadline: Instant) -> bool {
        self.shared.gate.wait_idle(deadline)
    }

    /// Whether a request is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.shared.gate.is_busy()
    }

    /// The thread is to end. From now on nothing that is read from guest memory has an effect.
    pub(crate) fn dismiss(&self) {
        self.shared.want(Wanted::Gone);
    }

    /// Waits for the end of the thread, at most until the deadline.
    pub(crate) fn join(&self, deadline: Instant) {
        let Some(thread) = self.thread().take() else { return };
        if self.shared.gate.wait_ended(deadline) {
            let _ = thread.join();
        } else {
            // It waits for a page, and ends when nobody can bring one any more.
            tracing::debug!(device = self.name(), "its thread is left behind");
        }
    }

    /// Takes what only one process may have.
    ///
    /// # Errors
    /// Somebody else has it, or it is not there.
    pub(crate) fn open(&self) -> Result<(), DeviceError> {
        let mut engine = self.shared.engine();
        if !engine.open {
            engine.device.open()?;
            engine.open = true;
        }
        Ok(())
    }

    /// Gives that back. The device must be parked; when it runs again, it takes it again.
    pub(crate) fn close(&self) {
        let mut engine = self.shared.engine();
        if std::mem::take(&mut engine.open) {
            engine.device.close();
        }
    }

    /// Sees to it that what the guest was told is done is there for the next host.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn settle(&self) -> Result<(), DeviceError> {
        let mut engine = self.shared.engine();
        if engine.open { engine.device.settle() } else { Ok(()) }
    }

    /// What a driver and the device have come to. The device must be parked.
    pub(crate) fn save(&self) -> VirtioState {
        let registers = self.registers();
        let engine = self.shared.engine();
        let queues = registers.queues.iter().enumerate().map(|(number, queue)| {
            let (next_avail, next_used) = engine.position(number).unwrap_or_default();
            VirtioQueueState::from(&QueueState { next_avail, next_used, ..*queue })
        });
        VirtioState {
            id: self.id,
            config: Blob(self.config.clone()),
            status: registers.status,
            device_features_select: registers.device_features_select,
            driver_features_select: registers.driver_features_select,
            driver_features: registers.driver_features,
            queue_select: registers.queue_select,
            interrupt_status: self.shared.interrupt.status(),
            needs_reset: self.shared.broken.load(Ordering::SeqCst),
            queues: queues.collect(),
        }
    }

    /// Puts back what was saved. Touches no guest memory.
    ///
    /// # Errors
    /// It is the state of another device, or of none.
    pub(crate) fn restore(&self, state: &VirtioState) -> Result<(), StateError> {
        let misfit = |what| StateError::Device { device: self.name().to_owned(), what };
        if state.id != self.id {
            return Err(misfit("it is of another kind of device"));
        }
        if state.config.0 != self.config {
            return Err(misfit("the device was another one, for example a disk of another size"));
        }
        if state.queues.len() != self.queue_sizes.len() {
            return Err(misfit("it has another number of queues"));
        }
        if state.driver_features & !self.features != 0 {
            return Err(misfit("its driver uses what this device does not offer"));
        }
        let event_idx = state.driver_features & EVENT_IDX != 0;
        let restored = state.queues.iter().zip(self.queue_sizes);
        let restored: Vec<QueueState> =
            restored.map(|(queue, max)| queue.with(*max, event_idx)).collect();
        let mut registers = self.registers();
        let mut engine = self.shared.engine();
        if state.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !state.needs_reset {
            let activated = engine.activate(&self.shared.memory, &restored, state.driver_features);
            activated.map_err(|broken| misfit(broken.0))?;
        }
        let at_rest = |queue| QueueState { next_avail: 0, next_used: 0, ..queue };
        *registers = Registers {
            status: state.status,
            device_features_select: state.device_features_select,
            driver_features_select: state.driver_features_select,
            driver_features: state.driver_features,
            queue_select: state.queue_select,
            queues: restored.into_iter().map(at_rest).collect(),
        };
        self.shared.interrupt.restore(state.interrupt_status);
        self.shared.broken.store(state.needs_reset, Ordering::SeqCst);
        Ok(())
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn thread(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, offset: u32) -> u32 {
        let registers = self.registers();
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => u32::from_le_bytes(*b"virt"),
            register::VIRTIO_MMIO_VERSION => 2,
            register::VIRTIO_MMIO_DEVICE_ID => self.id,
            register::VIRTIO_MMIO_VENDOR_ID => u32::from_le_bytes(*b"GDWT"),
            register::VIRTIO_MMIO_DEVICE_FEATURES => {
                half(self.features, registers.device_features_select)
            }
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => {
                let size = self.queue_sizes.get(registers.queue_select as usize);
                size.copied().unwrap_or(0).into()
            }
            register::VIRTIO_MMIO_QUEUE_READY => {
                registers.selected_queue().is_some_and(|queue| queue.ready).into()
            }
            register::VIRTIO_MMIO_INTERRUPT_STATUS => self.shared.interrupt.status(),
            register::VIRTIO_MMIO_STATUS => {
                let broken = self.shared.broken.load(Ordering::SeqCst);
                registers.status | if broken { VIRTIO_CONFIG_S_NEEDS_RESET } else { 0 }
            }
            // There is no shared memory: each region has the impossible length.
            register::VIRTIO_MMIO_SHM_LEN_LOW..=register::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        let mut registers = self.registers();
        match offset {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.device_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES if !registers.features_are_settled() => {
                let half = registers.driver_features_select;
                set_half(&mut registers.driver_features, half, value);
            }
            register::VIRTIO_MMIO_QUEUE_SEL => registers.queue_select = value,
            // The machine has an ioeventfd for it; without one this is as good.
            register::VIRTIO_MMIO_QUEUE_NOTIFY => self.shared.wake(),
            register::VIRTIO_MMIO_INTERRUPT_ACK => self.shared.interrupt.acknowledge(value),
            register::VIRTIO_MMIO_STATUS => self.set_status(&mut registers, value),
            _ => registers.set_up_queue(offset, value),
        }
    }

    fn set_status(&self, registers: &mut Registers, status: u32) {
        if status == 0 {
            // A request under way is waited for, so that nothing is written any more to memory
            // that the driver takes back.
            self.shared.engine().deactivate();
            *registers = Registers::at_reset(self.queue_sizes);
            self.shared.broken.store(false, Ordering::SeqCst);
            self.shared.interrupt.restore(0);
            return;
        }
        let before = registers.status;
        // A driver takes nothing back but by a reset.
        let mut status = status & !VIRTIO_CONFIG_S_NEEDS_RESET | before;
        registers.status = status;
        if status & !before & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.takes(registers) {
            // The driver reads it back and sees that its choice is refused.
            status &= !VIRTIO_CONFIG_S_FEATURES_OK;
            registers.status = status;
        }
        if status & !before & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.activate(registers);
        }
    }

    /// Whether the driver's choice of features is one that the device can do.
    fn takes(&self, registers: &Registers) -> bool {
        let chosen = registers.driver_features;
        chosen & !self.features == 0 && chosen & VERSION_1 != 0
    }

    fn activate(&self, registers: &mut Registers) {
        let features = registers.driver_features;
        for queue in &mut registers.queues {
            queue.event_idx_enabled = features & EVENT_IDX != 0;
        }
        let settled = registers.features_are_settled() && self.takes(registers);
        let activated =
            self.shared.engine().activate(&self.shared.memory, &registers.queues, features);
        if !settled || activated.is_err() {
            tracing::warn!(device = self.name(), "its driver gave it queues that make no sense");
            self.shared.engine().deactivate();
            self.shared.broken.store(true, Ordering::SeqCst);
            return self.shared.interrupt.raise(Cause::Changed);
        }
        self.shared.wake();
    }
}

impl Device for Transport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(start) = offset.checked_sub(CONFIG_START) {
            let start = usize::try_from(start).unwrap_or(usize::MAX);
            let rest = self.config.get(start..).unwrap_or_default();
            let bytes = rest.len().min(data.len());
            data[..bytes].copy_from_slice(&rest[..bytes]);
        } else if let (Ok(offset), 4) = (u32::try_from(offset), data.len()) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<GuestExit> {
        // Nothing in the configuration of any device can be written.
        if let (true, Ok(value)) = (offset < CONFIG_START, data.try_into()) {
            let offset = u32::try_from(offset).expect("it is below the configuration");
            self.write_register(offset, u32::from_le_bytes(value));
        }
        None
    }
}

impl Registers {
    fn at_reset(queue_sizes: &[u16]) -> Registers {
        let queue = |size: &u16| QueueState { max_size: *size, size: *size, ..Default::default() };
        Registers {
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: queue_sizes.iter().map(queue).collect(),
        }
    }

    fn features_are_settled(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0
    }

    fn selected_queue(&self) -> Option<&QueueState> {
        self.queues.get(self.queue_select as usize)
    }

    /// Writes a register of the selected queue. After `DRIVER_OK` only a reset changes anything.
    fn set_up_queue(&mut self, offset: u32, value: u32) {
        let runs = self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        let Some(queue) = self.queues.get_mut(self.queue_select as usize).filter(|_| !runs) else {
            return;
        };
        match offset {
            // A size that does not fit is none, and none makes no queue.
            register::VIRTIO_MMIO_QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
            register::VIRTIO_MMIO_QUEUE_READY => queue.ready = value & 1 != 0,
            register::VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut queue.desc_table, 0, value),
            register::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut queue.desc_table, 1, value),
            register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut queue.avail_ring, 0, value),
            register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut queue.avail_ring, 1, value),
            register::VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut queue.used_ring, 0, value),
            register::VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut queue.used_ring, 1, value),
            _ => {}
        }
    }
}

/// The lower half of a number, or the upper one; there are no others.
#[expect(clippy::cast_possible_truncation, reason = "a half is what is wanted")]
fn half(number: u64, which: u32) -> u32 {
    match which {
        0 => number as u32,
        1 => (number >> 32) as u32,
        _ => 0,
    }
}

fn set_half(number: &mut u64, which: u32, value: u32) {
    match which {
        0 => *number = *number & !u64::from(u32::MAX) | u64::from(value),
        1 => *number = *number & u64::from(u32::MAX) | u64::from(value) << 32,
        _ => {}
    }
}

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const OF_EACH_DEVICE: u64 = VERSION_1 | EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
const CONFIG_START: u64 = register::VIRTIO_MMIO_CONFIG as u64;
