//! The serial port.

use serde::{Deserialize, Serialize};

use super::Blob;
use crate::devices::SerialSnapshot;

/// The registers of a 16550, what it has received, and what waits to be received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the documentation; they are the registers'")]
pub struct SerialState {
    pub baud_divisor_low: u8,
    pub baud_divisor_high: u8,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    pub fifo: Blob,
    pub input: Blob,
}

impl From<SerialSnapshot> for SerialState {
    fn from(snapshot: SerialSnapshot) -> SerialState {
        let uart = snapshot.uart;
        SerialState {
            baud_divisor_low: uart.baud_divisor_low,
            baud_divisor_high: uart.baud_divisor_high,
            interrupt_enable: uart.interrupt_enable,
            interrupt_identification: uart.interrupt_identification,
            line_control: uart.line_control,
            line_status: uart.line_status,
            modem_control: uart.modem_control,
            modem_status: uart.modem_status,
            scratch: uart.scratch,
            fifo: Blob(uart.in_buffer),
            input: Blob(snapshot.input),
        }
    }
}

impl From<SerialState> for SerialSnapshot {
    fn from(state: SerialState) -> SerialSnapshot {
        let uart = vm_superio::serial::SerialState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.fifo.0,
        };
        SerialSnapshot { uart, input: state.input.0 }
    }
}
