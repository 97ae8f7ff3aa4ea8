//! A virtio device.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;

use super::Blob;

/// A virtio device: its registers, and how far its queues have come. No request is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the documentation; they are the standard's")]
pub struct VirtioState {
    pub id: u32,
    /// What the driver has read, or may read, of the configuration space.
    pub config: Blob,
    pub status: u32,
    pub device_features_select: u32,
    pub driver_features_select: u32,
    pub driver_features: u64,
    pub queue_select: u32,
    pub interrupt_status: u32,
    pub needs_reset: bool,
    pub queues: Vec<VirtioQueueState>,
}

/// One queue: where it is, and the next position in each of its rings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the documentation; they are the standard's")]
pub struct VirtioQueueState {
    pub size: u16,
    pub ready: bool,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub next_available: u16,
    pub next_used: u16,
}

impl From<&QueueState> for VirtioQueueState {
    fn from(queue: &QueueState) -> VirtioQueueState {
        VirtioQueueState {
            size: queue.size,
            ready: queue.ready,
            descriptors: queue.desc_table,
            available: queue.avail_ring,
            used: queue.used_ring,
            next_available: queue.next_avail,
            next_used: queue.next_used,
        }
    }
}

impl VirtioQueueState {
    /// The queue that was saved, of a device whose queue has at most `max_size` entries. Nothing in
    /// it has been checked.
    pub(crate) fn with(&self, max_size: u16, event_idx_enabled: bool) -> QueueState {
        QueueState {
            max_size,
            next_avail: self.next_available,
            next_used: self.next_used,
            event_idx_enabled,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        }
    }
}
