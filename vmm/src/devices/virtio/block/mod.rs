//! The block device: a disk whose blocks are those of a file.
//!
//! Requests are done one after the other, in the order of the queue, through a buffer of our own:
//! the guest's memory is read or written by copies and never handed to the file system. So bytes
//! of a guest that is shut down while a page is missing never reach the disk, and the pages that
//! the device writes are noted like all writes of this process.

mod image;
mod lock;

use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::buffers::Chain;
use super::{Broken, DESCRIPTORS_MAX, DeviceError, VirtioDevice};
use crate::vm::DiskConfig;
use image::Image;

/// The unit in which drivers count.
const SECTOR_BYTES: u64 = 512;
/// What is copied at once.
const PART_BYTES: usize = 128 << 10;
/// The most data of one request. Drivers are told to stay below it.
const REQUEST_BYTES_MAX: u64 = 16 << 20;
const SEGMENT_BYTES_MAX: u32 = 128 << 10;
/// Two descriptors are the header and the status.
const SEGMENTS_MAX: u32 = DESCRIPTORS_MAX - 2;
const DISCARD_SECTORS_MAX: u32 = 1 << 22;
const DISCARD_SEGMENTS_MAX: u32 = 16;
/// Where the file system cannot do it, zeros are written.
const ZERO_SECTORS_MAX: u32 = 1 << 15;
const ZERO_SEGMENTS_MAX: u32 = 1;
const ID_BYTES: usize = 20;

const _: () = assert!(SEGMENTS_MAX as u64 * SEGMENT_BYTES_MAX as u64 <= REQUEST_BYTES_MAX);
const _: () = assert!(ZERO_SECTORS_MAX as u64 * SECTOR_BYTES <= REQUEST_BYTES_MAX);

/// A disk.
pub(super) struct Block {
    image: Image,
    name: String,
    readonly: bool,
    config: Vec<u8>,
    part: Vec<u8>,
}

/// Why a request fails; the driver learns no more than this.
enum Failure {
    /// It cannot be done.
    Io,
    /// This device never does it.
    Unsupported,
    /// There is no place to answer in.
    Broken(Broken),
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Failure {
        Failure::Broken(broken)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        tracing::warn!(%error, "a request to a disk fails");
        Failure::Io
    }
}

impl Block {
    /// Looks at the file of a disk.
    pub(super) fn new(config: &DiskConfig) -> Result<Block, DeviceError> {
        let image = Image::look(config)?;
        Ok(Block {
            config: configuration(image.bytes() / SECTOR_BYTES),
            image,
            name: format!("disk {}", config.path.display()),
            readonly: config.readonly,
            part: vec![0; PART_BYTES],
        })
    }

    fn answer(&mut self, features: u64, chain: &mut Chain<'_>) -> Result<(), Failure> {
        let mut header = [0; 16];
        chain.read(&mut header)?;
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        let writes = matches!(
            kind,
            blk::VIRTIO_BLK_T_OUT | blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES
        );
        if writes && self.readonly {
            return Err(Failure::Io);
        }
        match kind {
            blk::VIRTIO_BLK_T_IN => self.read(sector, chain)?,
            blk::VIRTIO_BLK_T_OUT => self.write(sector, chain)?,
            blk::VIRTIO_BLK_T_FLUSH => self.flush()?,
            blk::VIRTIO_BLK_T_GET_ID => self.identify(chain)?,
            blk::VIRTIO_BLK_T_DISCARD => self.discard(chain)?,
            blk::VIRTIO_BLK_T_WRITE_ZEROES => self.write_zeroes(chain)?,
            _ => return Err(Failure::Unsupported),
        }
        // A driver that cannot ask for a flush counts on each write as it is answered.
        if writes && features & 1 << blk::VIRTIO_BLK_F_FLUSH == 0 {
            self.flush()?;
        }
        Ok(())
    }

    /// The first byte of a request for `bytes` bytes at `sector`, if the disk has them all.
    fn range(&self, sector: u64, bytes: u64) -> Result<u64, Failure> {
        let start = sector.checked_mul(SECTOR_BYTES).ok_or(Failure::Io)?;
        let end = start.checked_add(bytes).ok_or(Failure::Io)?;
        let whole = bytes.is_multiple_of(SECTOR_BYTES);
        if whole && end <= self.image.bytes() { Ok(start) } else { Err(Failure::Io) }
    }

    fn read(&mut self, sector: u64, chain: &mut Chain<'_>) -> Result<(), Failure> {
        // The last byte is for the status.
        let bytes = chain.writable().saturating_sub(1);
        let start = self.range(sector, bytes)?;
        self.in_parts(start, bytes, |image, part, at| {
            image.read(part, at)?;
            Ok(chain.write(part)?)
        })
    }

    fn write(&mut self, sector: u64, chain: &mut Chain<'_>) -> Result<(), Failure> {
        let bytes = chain.readable();
        let start = self.range(sector, bytes)?;
        self.in_parts(start, bytes, |image, part, at| {
            chain.read(part)?;
            Ok(image.write(part, at)?)
        })
    }

    /// Calls `copy` with the buffer for each part of a range.
    fn in_parts(
        &mut self,
        start: u64,
        bytes: u64,
        mut copy: impl FnMut(&Image, &mut [u8], u64) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if bytes > REQUEST_BYTES_MAX {
            return Err(Failure::Io);
        }
        for done in (0..bytes).step_by(PART_BYTES) {
            let count = usize::try_from(bytes - done).unwrap_or(PART_BYTES).min(PART_BYTES);
            copy(&self.image, &mut self.part[..count], start + done)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), Failure> {
        self.image.sync().map_err(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "a flush fails");
            Failure::Io
        })
    }

    fn identify(&self, chain: &mut Chain<'_>) -> Result<(), Failure> {
        let file = self.name.rsplit('/').next().unwrap_or_default().as_bytes();
        let mut id = [0; ID_BYTES];
        let bytes = file.len().min(ID_BYTES);
        id[..bytes].copy_from_slice(&file[..bytes]);
        let room = usize::try_from(chain.writable().saturating_sub(1)).unwrap_or(ID_BYTES);
        Ok(chain.write(&id[..room.min(ID_BYTES)])?)
    }

    fn discard(&self, chain: &mut Chain<'_>) -> Result<(), Failure> {
        self.each_segment(chain, DISCARD_SEGMENTS_MAX, DISCARD_SECTORS_MAX, |at, bytes, flags| {
            if flags != 0 {
                return Err(Failure::Unsupported);
            }
            Ok(self.image.discard(at, bytes)?)
        })
    }

    fn write_zeroes(&self, chain: &mut Chain<'_>) -> Result<(), Failure> {
        self.each_segment(chain, ZERO_SEGMENTS_MAX, ZERO_SECTORS_MAX, |at, bytes, flags| {
            if flags & !blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
                return Err(Failure::Unsupported);
            }
            Ok(self.image.write_zeroes(at, bytes, flags != 0)?)
        })
    }

    /// Calls `act` with the ranges, in bytes, and the flags of a request that has many.
    fn each_segment(
        &self,
        chain: &mut Chain<'_>,
        segments_max: u32,
        sectors_max: u32,
        act: impl Fn(u64, u64, u32) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (bytes, each) = (chain.readable(), SEGMENT_BYTES as u64);
        if !bytes.is_multiple_of(each) || bytes / each > segments_max.into() {
            return Err(Failure::Io);
        }
        for _ in 0..bytes / each {
            let mut segment = [0; SEGMENT_BYTES];
            chain.read(&mut segment)?;
            let sector = u64::from_le_bytes(segment[..8].try_into().expect("eight bytes"));
            let sectors = u32::from_le_bytes(segment[8..12].try_into().expect("four bytes"));
            let flags = u32::from_le_bytes(segment[12..].try_into().expect("four bytes"));
            if sectors > sectors_max {
                return Err(Failure::Io);
            }
            let bytes = u64::from(sectors) * SECTOR_BYTES;
            let start = self.range(sector, bytes)?;
            if bytes > 0 {
                act(start, bytes, flags)?;
            }
        }
        Ok(())
    }
}

impl VirtioDevice for Block {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            blk::VIRTIO_BLK_F_SIZE_MAX,
            blk::VIRTIO_BLK_F_SEG_MAX,
            blk::VIRTIO_BLK_F_BLK_SIZE,
            blk::VIRTIO_BLK_F_FLUSH,
        ];
        bits.extend(match self.readonly {
            true => &[blk::VIRTIO_BLK_F_RO][..],
            false => &[blk::VIRTIO_BLK_F_DISCARD, blk::VIRTIO_BLK_F_WRITE_ZEROES],
        });
        bits.into_iter().fold(0, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[256]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn open(&mut self) -> Result<(), DeviceError> {
        self.image.open()
    }

    fn close(&mut self) {
        self.image.close();
    }

    fn settle(&mut self) -> Result<(), DeviceError> {
        self.image.sync()
    }

    fn handle(
        &mut self,
        _queue: usize,
        features: u64,
        chain: &mut Chain<'_>,
    ) -> Result<(), Broken> {
        if chain.writable() == 0 {
            return Err(Broken("a request to a disk has no room for its status"));
        }
        let status = match self.answer(features, chain) {
            Ok(()) => blk::VIRTIO_BLK_S_OK,
            Err(Failure::Io) => blk::VIRTIO_BLK_S_IOERR,
            Err(Failure::Unsupported) => blk::VIRTIO_BLK_S_UNSUPP,
            Err(Failure::Broken(broken)) => return Err(broken),
        };
        chain.write_last(u8::try_from(status).expect("the statuses are small numbers"))
    }
}

/// The configuration space of a disk, field by field as the standard has them.
fn configuration(sectors: u64) -> Vec<u8> {
    let mut config = Vec::new();
    config.extend_from_slice(&sectors.to_le_bytes());
    let word = |config: &mut Vec<u8>, word: u32| config.extend_from_slice(&word.to_le_bytes());
    word(&mut config, SEGMENT_BYTES_MAX);
    word(&mut config, SEGMENTS_MAX);
    word(&mut config, 0); // geometry
    word(&mut config, 512); // bytes of a block
    config.extend_from_slice(&[0; 8]); // topology
    config.extend_from_slice(&[0; 4]); // write-back, and the number of queues
    word(&mut config, DISCARD_SECTORS_MAX);
    word(&mut config, DISCARD_SEGMENTS_MAX);
    word(&mut config, 1); // alignment of discards in sectors
    word(&mut config, ZERO_SECTORS_MAX);
    word(&mut config, ZERO_SEGMENTS_MAX);
    config.extend_from_slice(&[1, 0, 0, 0]); // zeroing may unmap
    config
}

/// A range of a request to discard or zero: the first sector, their number, flags.
const SEGMENT_BYTES: usize = 16;
