//! The queues of a device, and the device: one request after the other.

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueState, QueueT};

use super::buffers::Chain;
use super::gate::Gate;
use super::{Broken, VirtioDevice};
use crate::memory::GuestMemory;

/// The queues that a driver gave to a device, from `DRIVER_OK` to the reset.
struct Active {
    /// None for a queue that the driver does not use.
    queues: Vec<Option<Queue>>,
    features: u64,
    /// Which queue is looked at first.
    turn: usize,
}

/// A device and its queues.
pub(super) struct Engine {
    pub(super) device: Box<dyn VirtioDevice>,
    /// The device has what it needs.
    pub(super) open: bool,
    active: Option<Active>,
}

/// What one step did.
pub(super) enum Step {
    /// Something, and the driver wants to know of it if `interrupt`.
    Done { interrupt: bool },
    /// There is nothing to do until the driver notifies the device.
    Idle,
    /// A queue makes no sense.
    Broken(Broken),
}

impl Engine {
    pub(super) fn new(device: Box<dyn VirtioDevice>) -> Engine {
        Engine { device, open: false, active: None }
    }

    /// The driver is ready: these are its queues, by their numbers, and what it uses.
    ///
    /// # Errors
    /// They do not lie in memory, or not as they must.
    pub(super) fn activate(
        &mut self,
        memory: &GuestMemory,
        queues: &[QueueState],
        features: u64,
    ) -> Result<(), Broken> {
        let build = |state: &QueueState| {
            if !state.ready {
                return Ok(None);
            }
            let queue = Queue::try_from(*state).map_err(|_| MISPLACED)?;
            queue.is_valid(memory.inner()).then_some(Some(queue)).ok_or(MISPLACED)
        };
        let queues = queues.iter().map(build).collect::<Result<_, _>>()?;
        self.active = Some(Active { queues, features, turn: 0 });
        Ok(())
    }

    /// The driver has gone, or must: no request is begun.
    pub(super) fn deactivate(&mut self) {
        self.active = None;
    }

    /// How far a queue has come: the next position in its rings.
    pub(super) fn position(&self, queue: usize) -> Option<(u16, u16)> {
        let queue = self.active.as_ref()?.queues.get(queue)?.as_ref()?;
        Some((queue.next_avail(), queue.next_used()))
    }

    /// Does one request, if there is one.
    pub(super) fn step(&mut self, memory: &GuestMemory, gate: &Gate) -> Step {
        let Some(active) = &mut self.active else { return Step::Idle };
        match active.step(&mut *self.device, memory, gate) {
            Ok(step) => step,
            Err(broken) => {
                self.active = None;
                Step::Broken(broken)
            }
        }
    }
}

impl Active {
    fn step(
        &mut self,
        device: &mut dyn VirtioDevice,
        memory: &GuestMemory,
        gate: &Gate,
    ) -> Result<Step, Broken> {
        let count = self.queues.len();
        for number in (self.turn..self.turn + count).map(|number| number % count) {
            let Some(queue) = &mut self.queues[number] else { continue };
            let next = queue.iter(memory.inner()).map_err(why)?.next();
            let Some(descriptors) = next else { continue };
            self.turn = number + 1;
            let head = descriptors.head_index();
            let mut chain = Chain::of(memory, gate, descriptors)?;
            device.handle(number, self.features, &mut chain)?;
            queue.add_used(memory.inner(), head, chain.written()).map_err(why)?;
            let interrupt = queue.needs_notification(memory.inner()).map_err(why)?;
            return Ok(Step::Done { interrupt });
        }
        let mut more = false;
        for queue in self.queues.iter_mut().flatten() {
            more |= queue.enable_notification(memory.inner()).map_err(why)?;
        }
        Ok(if more { Step::Done { interrupt: false } } else { Step::Idle })
    }
}

/// Whether the driver says of each ring from where on it wants to hear.
pub(super) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

#[expect(clippy::needless_pass_by_value, reason = "it is the argument of map_err")]
fn why(error: QueueError) -> Broken {
    match error {
        QueueError::InvalidAvailRingIndex => Broken("a ring has more requests than it has room"),
        QueueError::InvalidDescriptorIndex => Broken("a request is not in the table"),
        QueueError::GuestMemory(_) | QueueError::AddressOverflow => MISPLACED,
        _ => Broken("a queue makes no sense"),
    }
}

const MISPLACED: Broken = Broken("a queue does not lie in memory as it must");
