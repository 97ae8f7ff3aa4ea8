//! A disk that is soon full.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::device::say_skipped;

/// A file system in memory that takes so many bytes, as long as this lives.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one of `mib` MiB at `path`, which is made. None if this user may not mount, which is
    /// said on stderr.
    ///
    /// # Panics
    /// If the directory cannot be made, or root may not mount.
    #[track_caller]
    pub fn mount(path: PathBuf, mib: u32) -> Option<SmallDisk> {
        if !rustix::process::geteuid().is_root() {
            say_skipped("only root can mount a small file system");
            return None;
        }
        std::fs::create_dir(&path).expect("a directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}M"), "godwit-test"]).arg(&path);
        let mounted = mount.status().expect("mount(8)");
        assert!(mounted.success(), "mount: {mounted}");
        Some(SmallDisk { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process of a test that has failed may still be in it.
        let mut unmount = Command::new("umount");
        let _ = unmount.arg("-l").arg(&self.path).stderr(Stdio::null()).status();
    }
}
