//! One process of a host at a time may run a guest: the lock that says which.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// How often a file that vanishes between its opening and its locking is made again.
const ATTEMPTS_MAX: u32 = 100;

/// A lock file that this process holds. The kernel lets go of it when the process ends, however it
/// does; dropped, it is removed as well.
#[derive(Debug)]
pub(super) struct GuestLock {
    path: PathBuf,
    _file: File,
}

/// Somebody else holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Busy {
    /// The process, if it could be read.
    pub pid: Option<u32>,
}

impl GuestLock {
    /// Takes the lock at `path`, without waiting.
    ///
    /// # Errors
    /// The file cannot be made or locked.
    pub fn take(path: &Path) -> io::Result<Result<GuestLock, Busy>> {
        for _ in 0..ATTEMPTS_MAX {
            let options = File::options().read(true).write(true).create(true).clone();
            let mut file = options.open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&file, path) => {
                    // For whoever is refused; nothing is decided by it.
                    file.set_len(0)?;
                    write!(file, "{}", std::process::id())?;
                    return Ok(Ok(GuestLock { path: path.to_owned(), _file: file }));
                }
                // The holder before us removed it: what we have locked is in nobody's way.
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(Err(Busy { pid: holder(&mut file) })),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Err(Busy { pid: None }))
    }
}

impl Drop for GuestLock {
    fn drop(&mut self) {
        // Still locked, so nobody else's file goes. One that stays is no harm.
        let _ = fs::remove_file(&self.path);
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_the_lock_and_is_named_to_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = GuestLock::take(&path).unwrap().unwrap();
        let busy = GuestLock::take(&path).unwrap().unwrap_err();
        assert_eq!(busy.pid, Some(std::process::id()));
        drop(first);
        assert!(!path.exists());
        drop(GuestLock::take(&path).unwrap().unwrap());
    }

    #[test]
    fn the_file_of_a_dead_process_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        fs::write(&path, "123456789012345").unwrap();
        let lock = GuestLock::take(&path).unwrap().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), std::process::id().to_string());
        drop(lock);
    }
}
