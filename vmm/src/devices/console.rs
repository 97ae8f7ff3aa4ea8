//! The console: what the guest writes, on its way to somebody who may not be reading.
//!
//! The writer can block for as long as it likes (a pipe that nobody empties), so only a thread of
//! its own calls it. The guest's bytes wait in a queue. When the queue is full, the vCPU that wrote
//! last waits - after its byte has been taken, so that nothing is lost and no instruction is left
//! half done - until there is room, or until it is told to stop. So a console that stalls slows the
//! guest down, but neither pause, save, status nor shutdown waits for it.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

struct State {
    queue: Vec<u8>,
    /// Bytes that the thread has taken and not yet written.
    in_writing: bool,
    /// Do not wait for the end of the line.
    flush: bool,
    closed: bool,
}

/// The queue between the serial port and the writer.
pub struct Console {
    state: Mutex<State>,
    /// There is something to write, or nothing more will come.
    filled: Condvar,
    /// There is room again.
    drained: Condvar,
}

impl Console {
    /// Starts the thread that writes to `out`. It ends after [`Console::close`].
    ///
    /// # Errors
    /// The operating system's reason why there is no thread.
    pub fn create(out: Box<dyn Write + Send>) -> std::io::Result<Arc<Console>> {
        let state = State { queue: Vec::new(), in_writing: false, flush: false, closed: false };
        let console = Arc::new(Console {
            state: Mutex::new(state),
            filled: Condvar::new(),
            drained: Condvar::new(),
        });
        let writer = Arc::clone(&console);
        // Not joined: it may be blocked in the writer for ever.
        thread::Builder::new().name("console".to_owned()).spawn(move || writer.write_all(out))?;
        Ok(console)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes bytes of the guest, always. Lines are written whole; what is not ended by a newline
    /// is written after a short while.
    pub fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let was_empty = state.queue.is_empty();
        state.queue.extend_from_slice(bytes);
        if was_empty || bytes.contains(&b'\n') {
            self.filled.notify_one();
        }
    }

    /// Waits while the queue is full, but gives up as soon as `give_up` says so.
    pub fn wait_for_space(&self, give_up: impl Fn() -> bool) {
        let mut state = self.lock();
        while state.queue.len() >= QUEUE_BYTES_MAX && !state.closed && !give_up() {
            (state, _) = self
                .drained
                .wait_timeout(state, LOOK_UP_EVERY)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Has everything written now, line ended or not. Does not wait for that.
    pub fn flush(&self) {
        let mut state = self.lock();
        state.flush = true;
        self.filled.notify_one();
    }

    /// Waits until everything is written, at most for `limit`. Returns whether it is.
    pub fn drain(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        state.flush = true;
        self.filled.notify_one();
        while !state.queue.is_empty() || state.in_writing {
            let now = Instant::now();
            if now >= deadline {
                return false;
            }
            (state, _) = self
                .drained
                .wait_timeout(state, deadline - now)
                .unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// Lets the thread end when it has written what is there.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.filled.notify_one();
    }

    fn write_all(&self, mut out: Box<dyn Write + Send>) {
        let mut batch = Vec::new();
        while self.take(&mut batch) {
            // A reader that has gone away does not stop the guest; its output has no use any more.
            let _ = out.write_all(&batch);
            let _ = out.flush();
            batch.clear();
            self.lock().in_writing = false;
            self.drained.notify_all();
        }
    }

    /// Waits for a line, or for the rest of one that is old enough. Returns whether there is more.
    fn take(&self, batch: &mut Vec<u8>) -> bool {
        let mut state = self.lock();
        while state.queue.is_empty() {
            state.flush = false;
            if state.closed {
                return false;
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let deadline = Instant::now() + PARTIAL_LINE_AFTER;
        while !state.is_ready() {
            let now = Instant::now();
            if now >= deadline {
                break;
            }
            (state, _) = self
                .filled
                .wait_timeout(state, deadline - now)
                .unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(batch, &mut state.queue);
        state.in_writing = true;
        state.flush = false;
        true
    }
}

impl State {
    fn is_ready(&self) -> bool {
        self.flush || self.closed || self.queue.contains(&b'\n')
    }
}

/// Beyond this the guest waits for its reader.
const QUEUE_BYTES_MAX: usize = 64 << 10;

/// How long the beginning of a line waits for its end.
const PARTIAL_LINE_AFTER: Duration = Duration::from_millis(20);

/// How often a waiting vCPU looks whether it is to stop.
const LOOK_UP_EVERY: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::sync::mpsc::{Receiver, SyncSender};

    use super::*;

    /// A writer that blocks until each batch is received.
    struct Slow(SyncSender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(std::io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn slow_console() -> (Arc<Console>, Receiver<Vec<u8>>) {
        let (sender, receiver) = mpsc::sync_channel(0);
        (Console::create(Box::new(Slow(sender))).unwrap(), receiver)
    }

    #[test]
    fn line_arrives_whole() {
        let (console, receiver) = slow_console();
        for byte in b"hello\n" {
            console.push(&[*byte]);
        }
        assert_eq!(receiver.recv().unwrap(), b"hello\n");
        assert!(console.drain(Duration::from_secs(10)));
    }

    #[test]
    fn line_without_end_arrives_in_time_and_by_flush() {
        let (console, receiver) = slow_console();
        console.push(b"login: ");
        assert_eq!(receiver.recv().unwrap(), b"login: ");
        console.push(b"x");
        console.flush();
        assert_eq!(receiver.recv().unwrap(), b"x");
    }

    #[test]
    fn stalled_reader_stops_the_guest_but_not_its_pause() {
        let (console, receiver) = slow_console();
        console.push(&[b'.'; QUEUE_BYTES_MAX]);
        console.push(b"\n");
        // One batch is stuck in the writer, the next fills the queue again.
        console.push(&[b'.'; QUEUE_BYTES_MAX]);
        let asked = std::cell::Cell::new(0);
        console.wait_for_space(|| {
            asked.set(asked.get() + 1);
            asked.get() == 3
        });
        assert!(!console.drain(Duration::ZERO));
        console.close();
        let bytes: usize = receiver.iter().map(|batch| batch.len()).sum();
        assert_eq!(bytes, 2 * QUEUE_BYTES_MAX + 1);
    }

    #[test]
    fn reader_that_has_gone_does_not_stop_the_guest() {
        let (console, receiver) = slow_console();
        drop(receiver);
        console.push(&[b'\n'; 3 * QUEUE_BYTES_MAX]);
        console.wait_for_space(|| false);
        assert!(console.drain(Duration::from_secs(10)));
    }
}
