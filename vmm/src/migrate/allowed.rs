//! Which files a guest that comes in may have opened for it.
//!
//! The source says where the guest's disks are, and this process may be able to open much more than
//! those who may send it a guest. So the operator of this host says in which directories disks are.

use std::path::{Path, PathBuf};

use crate::vm::DeviceConfig;

/// Refuses disks whose files are not in one of `dirs`, which are real names of directories.
///
/// # Errors
/// Which disk, and what to do about it.
pub(super) fn check(devices: &[DeviceConfig], dirs: &[PathBuf]) -> Result<(), String> {
    devices.iter().try_for_each(|device| match device {
        DeviceConfig::Disk(disk) => check_disk(&disk.path, dirs),
        DeviceConfig::Rng => Ok(()),
    })
}

fn check_disk(path: &Path, dirs: &[PathBuf]) -> Result<(), String> {
    let name = path.display();
    if !path.is_absolute() {
        return Err(format!("the path of the disk {name} does not begin with /"));
    }
    // Links and `..` lead where they lead; only what it really is counts.
    let real = std::fs::canonicalize(path)
        .map_err(|error| format!("the disk {name} is not to be had at this host: {error}"))?;
    if dirs.iter().any(|dir| real.starts_with(dir)) {
        return Ok(());
    }
    Err(format!(
        "the guest brings the disk {name}, and this host lets in none there; start \
         `godwit receive` with --disk-dir and its directory"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_files_in_the_directories_are_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (inside, outside) = (root.join("in"), root.join("out"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(inside.join("disk"), [0; 512]).unwrap();
        std::fs::write(outside.join("secret"), [0; 512]).unwrap();
        std::os::unix::fs::symlink(outside.join("secret"), inside.join("link")).unwrap();
        let dirs = [inside.clone()];
        check_disk(&inside.join("disk"), &dirs).unwrap();
        check_disk(&outside.join("../in/disk"), &dirs).unwrap();
        for path in ["link", "../out/secret", "none"] {
            check_disk(&inside.join(path), &dirs).unwrap_err();
        }
        check_disk(&inside.join("disk"), &[]).unwrap_err();
        check_disk(Path::new("disk"), &dirs).unwrap_err();
    }
}
