//! Random numbers for the guest: the host's.

use std::fs::File;
use std::io::Read;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::buffers::Chain;
use super::{Broken, DeviceError, VirtioDevice};

/// A source of random numbers.
pub(super) struct Rng {
    source: File,
}

impl Rng {
    pub(super) fn new() -> Result<Rng, DeviceError> {
        Ok(Rng { source: File::open("/dev/urandom").map_err(DeviceError::Random)? })
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn name(&self) -> String {
        "rng".to_owned()
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn open(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn close(&mut self) {}

    fn settle(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn handle(
        &mut self,
        _queue: usize,
        _features: u64,
        chain: &mut Chain<'_>,
    ) -> Result<(), Broken> {
        let room = usize::try_from(chain.writable()).unwrap_or(BYTES_MAX).min(BYTES_MAX);
        let mut bytes = vec![0; room];
        if let Err(error) = self.source.read_exact(&mut bytes) {
            tracing::error!(%error, "/dev/urandom gives nothing");
            return Ok(());
        }
        chain.write(&bytes)
    }
}

/// The most that one request gets; fewer bytes than asked for are an answer.
const BYTES_MAX: usize = 64 << 10;
