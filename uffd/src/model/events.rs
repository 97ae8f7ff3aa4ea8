//! Changes of an address space that its userfaultfds are told of: FORK, REMAP, REMOVE, UNMAP.
//!
//! Who changes the map announces the event first, which makes operations answer EAGAIN, and sleeps
//! until the message was read; the announcement ends when it runs on.

use std::collections::VecDeque;

use super::context::Context;
use super::register;
use super::sync::{Arc, Mutex};
use super::wait_queue::Sleeper;
use crate::abi::RawMessage;

/// What a message says.
#[derive(Clone, Debug)]
pub(super) enum EventMessage {
    /// The process has forked; the context of the child.
    Fork(Arc<Context>),
    /// A range has moved.
    Remap { from: u64, to: u64, len: u64 },
    /// Pages are being given up.
    Remove { start: u64, end: u64 },
    /// A range is no longer mapped.
    Unmap { start: u64, end: u64 },
}

impl EventMessage {
    /// The message as it is read. A fork's descriptor has the number of the context.
    pub(super) fn raw(&self) -> RawMessage {
        match *self {
            EventMessage::Fork(ref child) => RawMessage::Fork { fd: child.id.0 },
            EventMessage::Remap { from, to, len } => RawMessage::Remap { from, to, len },
            EventMessage::Remove { start, end } => RawMessage::Remove { start, end },
            EventMessage::Unmap { start, end } => RawMessage::Unmap { start, end },
        }
    }
}

#[derive(Debug)]
struct EventWaiter {
    sleeper: Arc<Sleeper>,
    message: EventMessage,
}

/// The event queue of a context.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    queue: Mutex<VecDeque<EventWaiter>>,
}

impl EventQueue {
    /// The oldest event; its thread goes on.
    pub(super) fn read(&self) -> Option<EventMessage> {
        let waiter = self.queue.lock().pop_front()?;
        waiter.sleeper.wake();
        Some(waiter.message)
    }

    /// Nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.lock().is_empty()
    }

    fn remove(&self, sleeper: &Arc<Sleeper>) {
        self.queue.lock().retain(|waiter| !Arc::ptr_eq(&waiter.sleeper, sleeper));
    }

    /// Everybody goes on unread. The children's contexts of forks that nobody will learn of.
    pub(super) fn abandon(&self) -> Vec<Arc<Context>> {
        let waiters: Vec<EventWaiter> = self.queue.lock().drain(..).collect();
        let mut children = Vec::new();
        for waiter in waiters {
            if let EventMessage::Fork(child) = waiter.message {
                children.push(child);
            }
            waiter.sleeper.wake();
        }
        children
    }
}

/// An event that was announced, to be delivered by the thread that caused it.
#[derive(Debug)]
pub(super) struct Announced {
    /// Who is told.
    pub(super) context: Arc<Context>,
    /// What.
    pub(super) message: EventMessage,
}

impl Announced {
    /// Announces an event: the context's operations answer EAGAIN from now on.
    pub(super) fn new(context: Arc<Context>, message: EventMessage) -> Announced {
        context.begin_change();
        Announced { context, message }
    }

    /// Queues the message and returns the sleep of its thread; `None` if nobody will read it.
    fn queue(&self) -> Option<Arc<Sleeper>> {
        let mut queue = self.context.events.queue.lock();
        if self.context.is_released() {
            return None;
        }
        let sleeper = Arc::new(Sleeper::default());
        queue.push_back(EventWaiter { sleeper: sleeper.clone(), message: self.message.clone() });
        drop(queue);
        self.context.news.ring();
        Some(sleeper)
    }

    /// The event is over without a reader.
    fn drop_unread(self) {
        if let EventMessage::Fork(child) = &self.message {
            register::forget(child);
        }
        self.context.end_change();
    }
}

/// The events that one thread has to deliver, one after the other.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    waiting: VecDeque<Announced>,
    current: Option<(Announced, Arc<Sleeper>)>,
}

impl Delivery {
    /// Events that were announced, in the order of their delivery.
    pub(super) fn new(events: Vec<Announced>) -> Delivery {
        Delivery { waiting: events.into(), current: None }
    }

    /// Goes on: ends the event that was read and queues the next. The sleep of the thread, or
    /// `None` when all are delivered.
    pub(super) fn step(&mut self) -> Option<Arc<Sleeper>> {
        if let Some((announced, sleeper)) = self.current.take() {
            if !sleeper.is_woken() {
                self.current = Some((announced, sleeper.clone()));
                return Some(sleeper);
            }
            announced.context.end_change();
        }
        while let Some(announced) = self.waiting.pop_front() {
            match announced.queue() {
                Some(sleeper) => {
                    self.current = Some((announced, sleeper.clone()));
                    return Some(sleeper);
                }
                None => announced.drop_unread(),
            }
        }
        None
    }

    /// The thread was killed: what was not read is dropped.
    pub(super) fn cancel(mut self) {
        if let Some((announced, sleeper)) = self.current.take() {
            announced.context.events.remove(&sleeper);
            if sleeper.is_woken() {
                announced.context.end_change();
            } else {
                announced.drop_unread();
            }
        }
        for announced in self.waiting.drain(..) {
            announced.drop_unread();
        }
    }
}
