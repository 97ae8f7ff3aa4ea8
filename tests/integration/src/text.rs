//! What a process has written to one of its streams.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

/// The lines that a process has written to one stream, and the part of the next.
#[derive(Debug, Default)]
pub(crate) struct Text {
    pub lines: Vec<String>,
    /// What was written after the last line end.
    pub unfinished: Vec<u8>,
    /// Nobody can write to the stream any more.
    pub ended: bool,
}

impl Text {
    fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.unfinished.extend_from_slice(piece);
            if self.unfinished.last() == Some(&b'\n') {
                self.unfinished.pop();
                let line = String::from_utf8_lossy(&self.unfinished);
                self.lines.push(line.trim_end_matches('\r').to_owned());
                self.unfinished.clear();
            }
        }
    }

    /// All of it, as written but for carriage returns at line ends.
    pub fn whole(&self) -> String {
        let mut whole = self.lines.iter().fold(String::new(), |text, line| text + line + "\n");
        whole.push_str(&String::from_utf8_lossy(&self.unfinished));
        whole
    }
}

/// A [`Text`] that a thread fills from a pipe while others read it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Capture {
    shared: Arc<(Mutex<Text>, Condvar)>,
}

impl Capture {
    /// Reads `from` to its end on a thread of its own, which ends with the last writer.
    pub fn start(mut from: impl Read + Send + 'static) -> Capture {
        let capture = Capture::default();
        let into = capture.clone();
        thread::spawn(move || {
            let mut buffer = [0; 8192];
            loop {
                let count = match from.read(&mut buffer) {
                    Ok(count) => count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(_) => 0,
                };
                let mut text = into.text();
                text.push(&buffer[..count]);
                text.ended = count == 0;
                into.shared.1.notify_all();
                if text.ended {
                    return;
                }
            }
        });
        capture
    }

    /// The text so far.
    pub fn text(&self) -> MutexGuard<'_, Text> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done` is true of the text, the text has ended, or `deadline` has come; returns
    /// what `done` last said.
    pub fn wait(&self, deadline: Instant, mut done: impl FnMut(&Text) -> bool) -> bool {
        let mut text = self.text();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if done(&text) {
                return true;
            }
            if text.ended || left.is_zero() {
                return false;
            }
            let waited = self.shared.1.wait_timeout(text, left);
            text = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_where_they_end_and_not_where_reads_do() {
        let mut text = Text::default();
        for bytes in [&b"one\r\ntw"[..], b"o\n", b"\nthr", b"ee"] {
            text.push(bytes);
        }
        assert_eq!(text.lines, ["one", "two", ""]);
        assert_eq!(text.unfinished, b"three");
        assert_eq!(text.whole(), "one\ntwo\n\nthree");
    }
}
