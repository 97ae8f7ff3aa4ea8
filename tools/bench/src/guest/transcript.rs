//! What a guest has printed so far, collected while it runs and waited for by others.

use std::io::{self, BufReader, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::floor::tsc;
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
    /// By how much the host's TSC was ahead of a line's date when the line came: the difference of
    /// the counters, and the time that the line took. The least so far.
    tsc_ahead: Option<i64>,
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

    /// The guest's TSC when the host's is 0, which is 0 on hosts that show the guest their own.
    /// Else it is known to the time that the quickest line took, some tens of microseconds.
    pub fn tsc_offset(&self, tsc_khz: u64) -> i64 {
        let ahead = self.lock().tsc_ahead.unwrap_or_default();
        let is_delay = (0..tsc_khz.cast_signed() * DELAY_MS_MAX).contains(&ahead);
        if is_delay { 0 } else { ahead.wrapping_neg() }
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
        let Some(line) = Line::parse(text) else { return };
        let mut state = self.lock();
        if let Some(dated) = line.number("tsc").or_else(|| line.number("at")) {
            let ahead = tsc::now().wrapping_sub(dated).cast_signed();
            state.tsc_ahead = Some(state.tsc_ahead.map_or(ahead, |least| least.min(ahead)));
        }
        state.lines.push(line);
        drop(state);
        self.0.changed.notify_all();
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

/// The time in milliseconds that the quickest line of a guest may take at most.
const DELAY_MS_MAX: i64 = 1000;

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
    fn a_counter_of_the_guests_own_is_told_from_a_delay() {
        let khz = 2_000_000;
        let transcript = Transcript::default();
        let mut console = transcript.console();
        let mut print = |tsc: u64| {
            writeln!(console, "godwit-guest: filled pages=1 tsc={tsc}").unwrap();
            transcript.tsc_offset(khz)
        };
        assert_eq!(print(tsc::now()), 0);
        let behind = 3_600_000 * khz.cast_signed();
        let offset = print(tsc::now().wrapping_add(behind.cast_unsigned()));
        let error = offset - behind;
        assert!((-khz.cast_signed() * 1000..=0).contains(&error), "{error}");
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
