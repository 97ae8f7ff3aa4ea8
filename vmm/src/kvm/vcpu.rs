//! One vCPU: KVM_RUN, and the state calls that `kvm-ioctls` lacks or marks unsafe.

// UNSAFETY: ioctls that fill or read structures of ours, and the page shared with the kernel.
#![expect(unsafe_code)]

use kvm_bindings::{
    CpuId, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_PAYLOAD,
    KVM_VCPUEVENT_VALID_SHADOW, KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVMIO, Xsave, kvm_cpuid_entry2,
    kvm_sregs2,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

use super::{Exit, ImmediateExit, KvmError, exit, failed};
use crate::memory::watch_touch;

/// `_IOR(KVMIO, 0xcc, struct kvm_sregs2)`
const KVM_GET_SREGS2: u64 = ioctl_number(2, 0xcc);

/// `_IOW(KVMIO, 0xcd, struct kvm_sregs2)`
const KVM_SET_SREGS2: u64 = ioctl_number(1, 0xcd);

const fn ioctl_number(direction: u64, nr: u64) -> u64 {
    direction << 30 | (size_of::<kvm_sregs2>() as u64) << 16 | (KVMIO as u64) << 8 | nr
}

/// A vCPU and its extended-state buffer, which is as large as this kernel wants it.
pub struct Vcpu {
    fd: VcpuFd,
    run_page_bytes: usize,
    xsave: Xsave,
    cpuid: Vec<kvm_cpuid_entry2>,
}

impl Vcpu {
    /// Creates vCPU `index`, whose extended state has `xsave_bytes` bytes.
    ///
    /// # Errors
    /// [`KvmError::Call`] if the kernel refuses it.
    pub fn create(vm: &VmFd, index: u8, xsave_bytes: usize) -> Result<Vcpu, KvmError> {
        let fd = vm.create_vcpu(index.into()).map_err(failed("KVM_CREATE_VCPU"))?;
        let extra_words = xsave_bytes.saturating_sub(XSAVE_BYTES_MIN).div_ceil(4);
        let xsave =
            Xsave::new(extra_words).expect("the length has no limit that an xsave area reaches");
        let vcpu = Vcpu { fd, run_page_bytes: vm.run_size(), xsave, cpuid: Vec::new() };
        vcpu.set_up_machine_checks(vm);
        Ok(vcpu)
    }

    /// The calls that are safe as they are.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Makes `immediate_exit` of this vCPU known to the signal handler of the current thread.
    ///
    /// # Safety
    /// The vCPU outlives the returned value, and only the current thread calls [`Vcpu::enter`].
    pub unsafe fn announce(&mut self) -> ImmediateExit {
        // SAFETY: the mapping lives as long as the vCPU, which the caller keeps.
        unsafe { ImmediateExit::announce(self.fd.get_kvm_run()) }
    }

    /// Runs the guest until something happens.
    ///
    /// # Errors
    /// [`KvmError::Call`] for an errno without a meaning for a running guest.
    pub fn enter(&mut self) -> Result<Exit<'_>, KvmError> {
        let page_bytes = self.run_page_bytes;
        let (result, touched) = watch_touch(|| match self.fd.run() {
            Ok(VcpuExit::MemoryFault { .. }) => Err(errno::Error::new(libc::EFAULT)),
            result => result.map(drop),
        });
        match (result, touched) {
            (Ok(()), _) => Ok(exit::decode(self.fd.get_kvm_run(), page_bytes)),
            (Err(_), Some(address)) => Ok(Exit::Poisoned(address)),
            (Err(errno), None) => match errno.errno() {
                libc::EINTR => Ok(Exit::Interrupted),
                libc::EAGAIN => Ok(Exit::Again),
                libc::EFAULT => Ok(Exit::Fault),
                _ => Err(failed("KVM_RUN")(errno)),
            },
        }
    }

    /// Gives the guest the bytes of the memory-mapped read that is under way.
    pub fn answer_mmio(&mut self, bytes: &[u8]) {
        exit::mmio_data(self.fd.get_kvm_run())[..bytes.len()].copy_from_slice(bytes);
    }

    /// The CPUID leaves that the vCPU was given. (KVM_GET_CPUID2 would answer with what KVM made of
    /// them: some hosts add features of their own, which the guest does not need on the next.)
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// Gives the vCPU its CPUID leaves.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    ///
    /// # Panics
    /// If there are more than KVM takes.
    pub fn set_cpuid(&mut self, entries: Vec<kvm_cpuid_entry2>) -> Result<(), KvmError> {
        let list = CpuId::from_entries(&entries).expect("no more leaves than KVM takes");
        self.fd.set_cpuid2(&list).map_err(failed("KVM_SET_CPUID2"))?;
        self.cpuid = entries;
        Ok(())
    }

    /// The segment, control and descriptor-table registers.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn get_sregs2(&self) -> Result<kvm_sregs2, KvmError> {
        let mut sregs = kvm_sregs2::default();
        // SAFETY: the kernel writes one `kvm_sregs2`, whose size is in the number of the ioctl.
        let result = unsafe { ioctl_with_mut_ref(&self.fd, KVM_GET_SREGS2, &mut sregs) };
        match result {
            0 => Ok(sregs),
            _ => Err(failed("KVM_GET_SREGS2")(errno::Error::last())),
        }
    }

    /// Sets the segment, control and descriptor-table registers.
    ///
    /// # Errors
    /// [`KvmError::Call`], for example if they contradict each other.
    pub fn set_sregs2(&self, sregs: &kvm_sregs2) -> Result<(), KvmError> {
        // SAFETY: the kernel reads one `kvm_sregs2`, whose size is in the number of the ioctl.
        let result = unsafe { ioctl_with_ref(&self.fd, KVM_SET_SREGS2, sregs) };
        match result {
            0 => Ok(()),
            _ => Err(failed("KVM_SET_SREGS2")(errno::Error::last())),
        }
    }

    /// The extended state (x87, SSE, AVX and so on) as bytes.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn get_xsave(&mut self) -> Result<Vec<u8>, KvmError> {
        if self.xsave.as_slice().is_empty() {
            let xsave = self.fd.get_xsave().map_err(failed("KVM_GET_XSAVE"))?;
            return Ok(xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect());
        }
        // SAFETY: the buffer is as large as KVM_CAP_XSAVE2 of this VM says.
        unsafe { self.fd.get_xsave2(&mut self.xsave) }.map_err(failed("KVM_GET_XSAVE2"))?;
        let region = &self.xsave.as_fam_struct_ref().xsave.region;
        let words = region.iter().chain(self.xsave.as_slice());
        Ok(words.flat_map(|word| word.to_le_bytes()).collect())
    }

    /// Sets the extended state. What `bytes` does not cover is zero.
    ///
    /// # Errors
    /// [`KvmError::Call`], for example if the state uses features that this host lacks.
    ///
    /// # Panics
    /// If `bytes` is longer than [`Vcpu::xsave_bytes`].
    pub fn set_xsave(&mut self, bytes: &[u8]) -> Result<(), KvmError> {
        assert!(bytes.len() <= self.xsave_bytes());
        let (words, rest) = bytes.as_chunks::<4>();
        assert!(rest.is_empty());
        let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
        // SAFETY: the length of the flexible array is not changed.
        let area = unsafe { self.xsave.as_mut_fam_struct() };
        for word in &mut area.xsave.region {
            *word = words.next().unwrap_or(0);
        }
        for word in self.xsave.as_mut_slice() {
            *word = words.next().unwrap_or(0);
        }
        // SAFETY: the buffer is as large as KVM_CAP_XSAVE2 of this VM says, so the kernel does not
        // read past its end.
        unsafe { self.fd.set_xsave2(&self.xsave) }.map_err(failed("KVM_SET_XSAVE"))
    }

    /// Bytes of the extended state here.
    pub fn xsave_bytes(&self) -> usize {
        XSAVE_BYTES_MIN + 4 * self.xsave.as_slice().len()
    }

    /// Raises an invalid-opcode exception at the current instruction.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn raise_invalid_opcode(&self) -> Result<(), KvmError> {
        let mut events = self.fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?;
        events.exception.injected = 1;
        events.exception.pending = 0;
        events.exception.nr = INVALID_OPCODE;
        events.exception.has_error_code = 0;
        events.exception_has_payload = 0;
        self.fd.set_vcpu_events(&events).map_err(failed("KVM_SET_VCPU_EVENTS"))
    }
}

/// The parts of `kvm_vcpu_events` that we save and restore. SMM is not among them: guests of this
/// machine have none.
pub const VCPU_EVENTS_FLAGS_KNOWN: u32 = KVM_VCPUEVENT_VALID_NMI_PENDING
    | KVM_VCPUEVENT_VALID_SIPI_VECTOR
    | KVM_VCPUEVENT_VALID_SHADOW
    | KVM_VCPUEVENT_VALID_PAYLOAD;

const XSAVE_BYTES_MIN: usize = 4096;
const INVALID_OPCODE: u8 = 6;

const _: () = assert!(size_of::<kvm_sregs2>() == 320);
const _: () = assert!(KVM_GET_SREGS2 == 0x8140_aecc);
const _: () = assert!(KVM_SET_SREGS2 == 0x4140_aecd);
