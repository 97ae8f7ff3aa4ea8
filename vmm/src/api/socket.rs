//! A listening Unix socket that is nobody else's.
//!
//! A socket file outlives its process, so a path that is taken may be taken by nobody. Whether a
//! process listens is found out by connecting. Between finding that out and replacing the file a
//! second process could do the same, so both hold a lock on the folder meanwhile; the kernel drops
//! it with the descriptor, whatever becomes of the process.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

use super::ServerError;

/// The longest path of a socket: what `sockaddr_un` holds with its closing zero.
const PATH_BYTES_MAX: usize = 107;

/// How long another process may hold the lock on the folder; it takes it for a few system calls.
const LOCK_TIME_MAX: Duration = Duration::from_secs(2);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// The file of a listening socket; dropping it removes the file if it is still this one.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the control socket");
        }
    }
}

/// Listens on `path`, which only this user may open. A file that a dead process left is replaced.
pub(super) fn listen_on(path: &Path) -> Result<(UnixListener, SocketFile), ServerError> {
    let bytes = path.as_os_str().as_bytes().len();
    if bytes > PATH_BYTES_MAX {
        let path = path.to_owned();
        return Err(ServerError::PathTooLong { path, bytes, limit: PATH_BYTES_MAX });
    }
    let _lock = lock_folder(path)?;
    remove_if_stale(path)?;
    let fail = |step| move |source| ServerError::Socket { step, path: path.to_owned(), source };
    let socket = new_socket().map_err(|e| fail("make")(e.into()))?;
    let address = SocketAddrUnix::new(path).map_err(|e| fail("name")(e.into()))?;
    bind(&socket, &address).map_err(|e| fail("bind")(e.into()))?;
    let found = fs::symlink_metadata(path).map_err(fail("look at"))?;
    let file = SocketFile { path: path.to_owned(), device: found.dev(), inode: found.ino() };
    // Nobody can connect before `listen`, so the mode is in force before it matters.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(fail("close to others"))?;
    listen(&socket, BACKLOG).map_err(|e| fail("listen on")(e.into()))?;
    Ok((UnixListener::from(socket), file))
}

fn new_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Locks the folder of `path`, until the returned file is dropped.
fn lock_folder(path: &Path) -> Result<File, ServerError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let fail =
        |source| ServerError::Socket { step: "open the folder of", path: path.into(), source };
    let file = File::open(folder).map_err(fail)?;
    let begin = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) if begin.elapsed() < LOCK_TIME_MAX => {
                sleep(Duration::from_millis(10));
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                let waited_ms = begin.elapsed().as_millis();
                return Err(ServerError::FolderBusy { folder: folder.into(), waited_ms });
            }
            Err(error) => {
                let (step, path) = ("lock the folder of", path.to_owned());
                return Err(ServerError::Socket { step, path, source: error.into() });
            }
        }
    }
}

/// Removes the socket file at `path` if nobody listens on it.
fn remove_if_stale(path: &Path) -> Result<(), ServerError> {
    let fail = |step, source| ServerError::Socket { step, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => {
            return Err(ServerError::NotASocket { path: path.to_owned() });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail("look at", error)),
    }
    if is_listening(path).map_err(|error| fail("try", error))? {
        return Err(ServerError::InUse { path: path.to_owned() });
    }
    fs::remove_file(path).map_err(|error| fail("remove the stale", error))
}

/// Whether a process listens on the socket file at `path`. Never blocks.
fn is_listening(path: &Path) -> io::Result<bool> {
    let socket = new_socket()?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => {
            drop(UnixStream::from(socket));
            Ok(true)
        }
        // A full backlog: somebody listens, and is slow to accept.
        Err(Errno::AGAIN) => Ok(true),
        // A live socket of another kind answers that the kinds differ.
        Err(Errno::PROTOTYPE) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    #[test]
    fn only_the_owner_may_open_it() {
        let folder = folder();
        let path = folder.path().join("s");
        let (_listener, _file) = listen_on(&path).expect("listens");
        let mode = fs::metadata(&path).expect("exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_stale_file_is_replaced() {
        let folder = folder();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).expect("binds"));
        assert!(path.exists());
        let (_listener, _file) = listen_on(&path).expect("replaces it");
        UnixStream::connect(&path).expect("is answered");
    }

    #[test]
    fn a_live_socket_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("s");
        let (_listener, _file) = listen_on(&path).expect("listens");
        assert!(matches!(listen_on(&path), Err(ServerError::InUse { .. })));
        UnixStream::connect(&path).expect("still answers");
    }

    #[test]
    fn a_live_datagram_socket_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("s");
        let _other = std::os::unix::net::UnixDatagram::bind(&path).expect("binds");
        assert!(matches!(listen_on(&path), Err(ServerError::InUse { .. })));
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("s");
        fs::write(&path, "notes").expect("writes");
        assert!(matches!(listen_on(&path), Err(ServerError::NotASocket { .. })));
        assert_eq!(fs::read(&path).expect("reads"), b"notes");
    }

    #[test]
    fn dropping_removes_only_its_own_file() {
        let folder = folder();
        let path = folder.path().join("s");
        let (_listener, file) = listen_on(&path).expect("listens");
        fs::remove_file(&path).expect("removes");
        fs::write(&path, "another").expect("writes");
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused_with_its_length() {
        let path = Path::new("/tmp").join("s".repeat(200));
        let error = listen_on(&path).expect_err("too long");
        assert!(matches!(error, ServerError::PathTooLong { bytes: 205, .. }), "{error}");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = listen_on(Path::new("/nonexistent/s")).expect_err("no folder");
        assert!(error.to_string().contains("/nonexistent/s"), "{error}");
    }
}
