//! The file behind a disk.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::super::DeviceError;
use super::lock::try_lock;
use crate::vm::DiskConfig;

/// A raw file or block device. It is open, and locked, only in the process that runs the guest.
pub(super) struct Image {
    config: DiskConfig,
    bytes: u64,
    file: Option<File>,
}

impl Image {
    /// Looks at the file, and leaves it alone.
    ///
    /// # Errors
    /// It cannot be opened as it will have to be, or is no disk.
    pub(super) fn look(config: &DiskConfig) -> Result<Image, DeviceError> {
        let (_, bytes) = open(config)?;
        Ok(Image { config: config.clone(), bytes, file: None })
    }

    /// The size that the guest knows.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Opens and locks the file. It is opened anew each time, so that on network storage nothing
    /// is seen that is older than the lock.
    ///
    /// # Errors
    /// It cannot be opened, is another one by now, or somebody else has it.
    pub(super) fn open(&mut self) -> Result<(), DeviceError> {
        let (file, found) = open(&self.config)?;
        let path = || self.config.path.clone();
        let locked = try_lock(&file, !self.config.readonly);
        if !locked.map_err(|source| DeviceError::Open { path: path(), source })? {
            return Err(DeviceError::InUse { path: path() });
        }
        if found != self.bytes {
            return Err(DeviceError::SizeChanged { path: path(), expected: self.bytes, found });
        }
        self.file = Some(file);
        Ok(())
    }

    /// Closes the file, which unlocks it.
    pub(super) fn close(&mut self) {
        self.file = None;
    }

    /// Sees to it that all that was written is in the file, whoever opens it where.
    ///
    /// # Errors
    /// The operating system's reason.
    pub(super) fn sync(&self) -> Result<(), DeviceError> {
        if self.config.readonly {
            return Ok(());
        }
        let synced = self.file.as_ref().map_or(Ok(()), File::sync_data);
        synced.map_err(|source| DeviceError::Sync { path: self.config.path.clone(), source })
    }

    /// Fills `bytes` from `offset` on; the range lies in the file.
    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.opened()?.read_exact_at(bytes, offset)
    }

    /// Writes `bytes` from `offset` on; the range lies in the file.
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.opened()?.write_all_at(bytes, offset)
    }

    /// Gives the range back to the file system where that can be done.
    pub(super) fn discard(&self, offset: u64, bytes: u64) -> std::io::Result<()> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(self.opened()?, hole, offset, bytes) {
            // The guest may not count on what it finds there, so doing nothing is an answer.
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the range read as zeros, and gives it back to the file system if `unmap`.
    pub(super) fn write_zeroes(&self, offset: u64, bytes: u64, unmap: bool) -> std::io::Result<()> {
        let how = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        let how = how | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(self.opened()?, how, offset, bytes) {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
        let zeros = [0; 64 << 10];
        let mut done = 0;
        while done < bytes {
            let part = usize::try_from(bytes - done).unwrap_or(usize::MAX).min(zeros.len());
            self.write(&zeros[..part], offset + done)?;
            done += part as u64;
        }
        Ok(())
    }

    fn opened(&self) -> std::io::Result<&File> {
        self.file.as_ref().ok_or_else(|| std::io::Error::other("the disk is not open"))
    }
}

/// Opens the file of a disk, and measures it.
fn open(config: &DiskConfig) -> Result<(File, u64), DeviceError> {
    let failed = |source| DeviceError::Open { path: config.path.clone(), source };
    let not_a_disk = |why| DeviceError::NotADisk { path: config.path.clone(), why };
    // Before it is opened: opening a pipe would wait for somebody at its other end.
    let kind = std::fs::metadata(&config.path).map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(not_a_disk("it is neither a file nor a block device"));
    }
    let opened = OpenOptions::new().read(true).write(!config.readonly).open(&config.path);
    let mut file = opened.map_err(failed)?;
    let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
    if bytes == 0 || !bytes.is_multiple_of(super::SECTOR_BYTES) {
        return Err(not_a_disk("its size is not a multiple of 512 bytes, or zero"));
    }
    Ok((file, bytes))
}
