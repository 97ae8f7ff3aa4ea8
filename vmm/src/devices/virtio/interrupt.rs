//! The interrupt line of a device, and why it was raised.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_ioctls::VmFd;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

/// Why the driver is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A request is done.
    Used = VIRTIO_MMIO_INT_VRING as isize,
    /// The device has changed: it must be reset.
    Changed = VIRTIO_MMIO_INT_CONFIG as isize,
}

/// One edge for each cause. The line is raised by a call and not by an irqfd: KVM hands an irqfd's
/// interrupt for a pin to a work queue, and state that is saved in between would miss it.
pub(super) struct Interrupt {
    vm: Option<Arc<VmFd>>,
    line: u32,
    status: AtomicU32,
}

impl Interrupt {
    /// A line that is low. Without a machine it leads nowhere.
    pub(super) fn new(vm: Option<Arc<VmFd>>, line: u32) -> Interrupt {
        Interrupt { vm, line, status: AtomicU32::new(0) }
    }

    /// Interrupts the driver.
    pub(super) fn raise(&self, cause: Cause) {
        self.status.fetch_or(cause as u32, Ordering::SeqCst);
        let Some(vm) = &self.vm else { return };
        let raised =
            vm.set_irq_line(self.line, true).and_then(|()| vm.set_irq_line(self.line, false));
        if let Err(error) = raised {
            tracing::error!(line = self.line, %error, "an interrupt is lost");
        }
    }

    /// The causes that the driver has not acknowledged.
    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver has seen these causes.
    pub(super) fn acknowledge(&self, causes: u32) {
        self.status.fetch_and(!causes, Ordering::SeqCst);
    }

    /// The causes are these, and the line is not touched: it is saved with the machine's chips.
    pub(super) fn restore(&self, status: u32) {
        self.status.store(status, Ordering::SeqCst);
    }
}
