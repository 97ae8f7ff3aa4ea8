//! What can be learnt from a userfaultfd's descriptor: messages, poll, fdinfo.

use super::context::Context;
use super::events::EventMessage;
use super::sync::{Arc, Ordering};
use crate::abi::{Errno, MESSAGE_BYTES, RawMessage};
use crate::features::Features;

/// What poll says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// Nothing to read.
    Idle,
    /// Something to read.
    In,
    /// The handshake was not done, or the descriptor blocks.
    Err,
    /// The last descriptor was closed.
    Hup,
}

/// What /proc/PID/fdinfo says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdInfo {
    /// Faults that were not read.
    pub pending: u64,
    /// Faults that were not resolved.
    pub total: u64,
    /// The negotiated features.
    pub features: Features,
}

/// One message, and the context that its reader gets a descriptor of.
pub(super) type Read = (RawMessage, Option<Arc<Context>>);

/// Reads as many messages as fit into `bytes` bytes: faults first, then events. Where a blocking
/// descriptor would sleep, EAGAIN.
pub(super) fn read(context: &Context, bytes: usize) -> Result<Vec<Read>, Errno> {
    if !context.is_initialised() || bytes < MESSAGE_BYTES {
        return Err(Errno::EINVAL);
    }
    let mut messages = Vec::new();
    while messages.len() < bytes / MESSAGE_BYTES {
        let Some(message) = next(context) else { break };
        messages.push(message);
    }
    if messages.is_empty() { Err(Errno::EAGAIN) } else { Ok(messages) }
}

fn next(context: &Context) -> Option<Read> {
    if let Some(fault) = context.faults.read() {
        return Some((fault, None));
    }
    let event = context.events.read()?;
    let raw = event.raw();
    let child = match event {
        EventMessage::Fork(child) => Some(child),
        _ => None,
    };
    Some((raw, child))
}

/// What poll says.
pub(super) fn poll(context: &Context) -> Polled {
    if context.is_released() {
        return Polled::Hup;
    }
    if !context.is_initialised() || !context.nonblocking.load(Ordering::SeqCst) {
        return Polled::Err;
    }
    let (unread, _) = context.faults.counts();
    if unread > 0 || !context.events.is_empty() { Polled::In } else { Polled::Idle }
}

/// What fdinfo says.
pub(super) fn fd_info(context: &Context) -> FdInfo {
    let (unread, total) = context.faults.counts();
    FdInfo { pending: unread as u64, total: total as u64, features: context.features() }
}
