//! A client of QEMU's monitor protocol: one JSON object a line, over a Unix socket.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use crate::error::Error;
use crate::floor::tsc;

/// A place that a QEMU connects to.
pub struct QmpListener(UnixListener);

/// A connection to one QEMU.
pub struct Qmp {
    stream: UnixStream,
    incoming: Receiver<Message>,
    events: VecDeque<Event>,
}

/// Something that happened in QEMU.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// What belongs to it; null if nothing does.
    pub data: Value,
    /// The TSC when it arrived here.
    pub tsc: u64,
}

struct Message {
    value: Value,
    tsc: u64,
}

impl QmpListener {
    /// Listens at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if that is not possible.
    pub fn bind(path: &Path) -> Result<QmpListener, Error> {
        UnixListener::bind(path).map(QmpListener).map_err(Error::system("listening for QEMU"))
    }

    /// Waits for the QEMU that was started to connect, and negotiates.
    ///
    /// # Errors
    ///
    /// [`Error::Qemu`] if it does not come.
    pub fn accept(&self) -> Result<Qmp, Error> {
        let waiting = "accepting QEMU's connection";
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
        if poll(&mut polled, Some(&patience)).map_err(Error::system(waiting))? == 0 {
            return Err(refused("connect", "nothing"));
        }
        let (stream, _) = self.0.accept().map_err(Error::system(waiting))?;
        let reading = stream.try_clone().map_err(Error::system(waiting))?;
        let mut qmp = Qmp { stream, incoming: receive(reading), events: VecDeque::new() };
        let greeting = qmp.next("greet", Instant::now() + PATIENCE)?;
        if greeting.value.get("QMP").is_none() {
            return Err(refused("greet", &greeting.value));
        }
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }
}

impl Qmp {
    /// Executes a command and returns its answer.
    ///
    /// # Errors
    ///
    /// [`Error::Qemu`] if QEMU refuses it or has gone.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, Error> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream, "{request}").map_err(Error::system("writing to QEMU"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut message = self.next(command, deadline)?;
            if let Some(answer) = message.value.get_mut("return") {
                return Ok(answer.take());
            }
            match event(&message) {
                Some(event) => self.events.push_back(event),
                None => return Err(refused(command, &message.value)),
            }
        }
    }

    /// Waits for an event that `wanted` is true of, also among those that have come before.
    ///
    /// # Errors
    ///
    /// [`Error::Qemu`] if it does not come or QEMU has gone.
    pub fn wait_for(
        &mut self,
        what: &str,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Event, Error> {
        if let Some(at) = self.events.iter().position(&wanted) {
            return Ok(self.events.swap_remove_back(at).expect("the position is inside"));
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = self.next(what, deadline)?;
            match event(&message) {
                Some(event) if wanted(&event) => return Ok(event),
                Some(event) => self.events.push_back(event),
                None => return Err(refused(what, &message.value)),
            }
        }
    }

    fn next(&mut self, asked: &str, deadline: Instant) -> Result<Message, Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.incoming.recv_timeout(left).map_err(|error| match error {
            RecvTimeoutError::Timeout => refused(asked, "nothing in time"),
            RecvTimeoutError::Disconnected => refused(asked, "by ending"),
        })
    }
}

/// Reads on its own thread, so that every event is dated when it arrives.
fn receive(stream: UnixStream) -> Receiver<Message> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let tsc = tsc::now();
            let Ok(value) = serde_json::from_str(&line) else { return };
            if sender.send(Message { value, tsc }).is_err() {
                return;
            }
        }
    });
    receiver
}

fn event(message: &Message) -> Option<Event> {
    let name = message.value.get("event")?.as_str()?.to_owned();
    let data = message.value.get("data").cloned().unwrap_or_default();
    Some(Event { name, data, tsc: message.tsc })
}

fn refused(asked: &str, answer: &(impl ToString + ?Sized)) -> Error {
    Error::Qemu { asked: asked.to_owned(), answer: answer.to_string() }
}

/// How long an answer or an event may take.
const PATIENCE: Duration = Duration::from_secs(60);
