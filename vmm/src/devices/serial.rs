//! The serial port COM1: the guest's console.

use std::collections::VecDeque;
use std::io;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kvm_ioctls::VmFd;
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};

use super::Console;
use super::bus::Device;
use crate::state::{StateError, check_count};
use crate::vm::GuestExit;

/// Input that waits for the guest to read it, in bytes; more is not taken.
pub const INPUT_BYTES_MAX: usize = 4096;

/// What a serial port holds at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SerialSnapshot {
    /// The registers and the receive FIFO.
    pub uart: SerialState,
    /// Input that did not fit the FIFO yet.
    pub input: Vec<u8>,
}

struct Inner {
    uart: Serial<Line, NoEvents, Output>,
    input: VecDeque<u8>,
}

/// A 16550 on interrupt line 4.
pub(crate) struct SerialPort {
    vm: Arc<VmFd>,
    console: Arc<Console>,
    inner: Mutex<Inner>,
}

impl SerialPort {
    pub(crate) fn new(vm: Arc<VmFd>, console: Arc<Console>) -> SerialPort {
        let uart = Serial::new(Line::default(), Output(Arc::clone(&console)));
        uart.interrupt_evt().connect(&vm);
        SerialPort { vm, console, inner: Mutex::new(Inner { uart, input: VecDeque::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues input for the guest. Returns how many bytes were taken.
    pub(crate) fn input(&self, bytes: &[u8]) -> usize {
        let mut inner = self.lock();
        let taken = bytes.len().min(INPUT_BYTES_MAX.saturating_sub(inner.input.len()));
        inner.input.extend(&bytes[..taken]);
        inner.feed();
        taken
    }

    pub(crate) fn save(&self) -> SerialSnapshot {
        let inner = self.lock();
        SerialSnapshot { uart: inner.uart.state(), input: inner.input.iter().copied().collect() }
    }

    /// Replaces the port by the one that was saved. Raises no interrupt: one that was pending is in
    /// the saved interrupt controllers.
    pub(crate) fn restore(&self, snapshot: &SerialSnapshot) -> Result<(), StateError> {
        check_count("the serial port's input", snapshot.input.len(), INPUT_BYTES_MAX)?;
        check_count("the serial port's fifo", snapshot.uart.in_buffer.len(), FIFO_BYTES)?;
        let output = Output(Arc::clone(&self.console));
        let uart = Serial::from_state(&snapshot.uart, Line::default(), NoEvents, output)
            .expect("the fifo is short enough, and a line that is not connected cannot fail");
        uart.interrupt_evt().connect(&self.vm);
        let mut inner = self.lock();
        inner.uart = uart;
        inner.input = snapshot.input.iter().copied().collect();
        Ok(())
    }
}

impl Inner {
    /// Moves waiting input into the FIFO as far as there is room.
    fn feed(&mut self) {
        while self.uart.fifo_capacity() > 0
            && let Some(byte) = self.input.pop_front()
        {
            // In loop-back mode nothing from outside arrives; an interrupt line that KVM refuses
            // to raise has no cure here.
            let _ = self.uart.enqueue_raw_bytes(&[byte]);
        }
    }
}

impl Device for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut inner = self.lock();
        data.fill(inner.uart.read(register(offset)));
        inner.feed();
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<GuestExit> {
        let mut inner = self.lock();
        for byte in data.iter().take(1) {
            // The console takes every byte; see `Inner::feed` for the interrupt line.
            let _ = inner.uart.write(register(offset), *byte);
        }
        None
    }
}

/// The bus hands out offsets inside the eight ports of the device.
fn register(offset: u64) -> u8 {
    u8::try_from(offset).unwrap_or(u8::MAX)
}

/// The interrupt line of the port. It is raised by a call and not by an irqfd, because KVM may
/// deliver an irqfd's interrupt later, from a work queue: saved state would miss it.
#[derive(Default)]
struct Line {
    /// Empty while a saved port is brought back.
    vm: OnceLock<Arc<VmFd>>,
}

impl Line {
    fn connect(&self, vm: &Arc<VmFd>) {
        self.vm.get_or_init(|| Arc::clone(vm));
    }
}

impl Trigger for Line {
    type E = vmm_sys_util::errno::Error;

    /// One edge.
    fn trigger(&self) -> Result<(), Self::E> {
        match self.vm.get() {
            Some(vm) => {
                vm.set_irq_line(INTERRUPT_LINE, true)?;
                vm.set_irq_line(INTERRUPT_LINE, false)
            }
            None => Ok(()),
        }
    }
}

/// The writer of the port.
struct Output(Arc<Console>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const INTERRUPT_LINE: u32 = 4;
const FIFO_BYTES: usize = 64;
