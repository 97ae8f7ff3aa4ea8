//! Load beside a measurement: threads or vCPUs that do nothing but spin.

use std::hint;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use godwit_vmm::boot::KernelImage;
use godwit_vmm::memory::Backing;
use godwit_vmm::vm::{Vm, VmConfig};

use crate::error::Error;

/// Threads that spin until this is dropped.
pub struct BusyThreads {
    stop: Arc<AtomicBool>,
}

impl BusyThreads {
    /// Starts `count` threads.
    pub fn start(count: u8) -> BusyThreads {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..count {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    hint::spin_loop();
                }
            });
        }
        BusyThreads { stop }
    }
}

impl Drop for BusyThreads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A guest whose vCPUs look at the clock and nothing else, until this is dropped.
pub struct BusyVcpus {
    _vm: Option<Vm>,
}

impl BusyVcpus {
    /// Starts a guest with `count` vCPUs; none if that is 0.
    ///
    /// # Errors
    ///
    /// [`Error::Vm`] if there is no KVM.
    pub fn start(kernel: &KernelImage, count: u8) -> Result<BusyVcpus, Error> {
        if count == 0 {
            return Ok(BusyVcpus { _vm: None });
        }
        let config = VmConfig {
            cpus: count,
            memory_bytes: BUSY_GUEST_BYTES,
            backing: Backing::Anon,
            devices: Vec::new(),
        };
        let vm = Vm::create(&config, Box::new(io::sink()))?;
        vm.boot(kernel, None, &format!("workload=clock vcpus={count}"))?;
        vm.start();
        Ok(BusyVcpus { _vm: Some(vm) })
    }
}

const BUSY_GUEST_BYTES: u64 = 64 << 20;
