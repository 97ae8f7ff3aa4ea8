//! What a guest has printed so far, collected while it runs and waited for by others.

use std::io::{self, BufReader, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::guest::line::Line;

/// The lines of one guest, on all hosts that it has run on. Clones share them.
#[derive(Clone, Default)]
pub struct Transcript(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<Line>,
    /// Consoles on which the guest may still print.
    consoles: u32,
}

impl Transcript {
    /// A place for a VMM to write the guest's console to.
    pub fn console(&self) -> Console {
        self.lock().consoles += 1;
        Console { transcript: self.clone(), unfinished: Vec::new() }
    }

    /// Collects what a process prints until it ends. A guest that moves while it prints leaves
    /// half a line on either side, which are both ignored.
    pub fn collect(&self, output: impl Read + Send + 'static) {
        let mut console = self.console();
        // An output that cannot be read any more has ended.
        std::thread::spawn(move || io::copy(&mut BufReader::new(output), &mut console));
    }

    /// The lines so far.
    pub fn lines(&self) -> Vec<Line> {
        self.lock().lines.clone()
    }

    /// Waits until `enough` is true of the lines.
    ///
    /// # Errors
    ///
    /// [`Error::GuestSilent`] if that takes longer than `patience` or all output ends before.
    pub fn wait_until(
        &self,
        what: &'static str,
        patience: Duration,
        mut enough: impl FnMut(&[Line]) -> bool,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        while !enough(&state.lines) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.consoles == 0 {
                let last = state.lines.last().map(Line::to_string).unwrap_or_default();
                return Err(Error::GuestSilent { what, patience, last });
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    fn add(&self, text: &str) {
        if let Some(line) = Line::parse(text) {
            self.lock().lines.push(line);
            self.0.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A console that writes into a [`Transcript`], and has ended when dropped.
pub struct Console {
    transcript: Transcript,
    unfinished: Vec<u8>,
}

impl Drop for Console {
    fn drop(&mut self) {
        self.transcript.lock().consoles -= 1;
        self.transcript.0.changed.notify_all();
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unfinished.extend_from_slice(bytes);
        while let Some(end) = self.unfinished.iter().position(|byte| *byte == b'\n') {
            let text: Vec<u8> = self.unfinished.drain(..=end).collect();
            self.transcript.add(&String::from_utf8_lossy(&text));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_makes_lines_of_pieces() {
        let transcript = Transcript::default();
        let mut console = transcript.console();
        console.write_all(b"godwit-guest: filled pa").unwrap();
        assert_eq!(transcript.lines(), []);
        console.write_all(b"ges=7\ngodwit-guest: end cor").unwrap();
        let lines = transcript.lines();
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].number("pages"), Some(7));
    }

    #[test]
    fn output_that_ends_is_not_waited_for() {
        let transcript = Transcript::default();
        transcript.collect(&b"godwit-guest: start\n"[..]);
        let patience = Duration::from_secs(600);
        transcript.wait_until("the start", patience, |lines| lines.len() == 1).unwrap();
        let error = transcript.wait_until("more", patience, |lines| lines.len() == 2);
        assert!(matches!(error, Err(Error::GuestSilent { what: "more", .. })));
    }

    #[test]
    fn a_guest_that_moves_leaves_one_console_and_goes_on_on_the_other() {
        let transcript = Transcript::default();
        let mut source = transcript.console();
        let mut destination = transcript.console();
        source.write_all(b"godwit-guest: window start=12").unwrap();
        drop(source);
        destination.write_all(b"34\ngodwit-guest: ticks n=3\n").unwrap();
        let patience = Duration::from_secs(600);
        transcript.wait_until("ticks", patience, |lines| !lines.is_empty()).unwrap();
        assert_eq!(transcript.lines()[0].kind, "ticks");
    }
}
