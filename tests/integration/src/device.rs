//! Which devices of the host a test may use.
//!
//! A device that is missing skips the test, with a line that says so. A device that is there and
//! cannot be used fails it: a suite that skips itself because of a wrong permission tests nothing
//! and looks as if it did.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;

use godwit_uffd::kernel::KernelUffd;
use kvm_ioctls::Kvm;
use rustix::io::Errno;

const KVM_NODE: &str = "/dev/kvm";
const UFFD_NODE: &str = "/dev/userfaultfd";
/// There if the kernel has userfaultfd, whether or not the node is.
const UFFD_SYSCTL: &str = "/proc/sys/vm/unprivileged_userfaultfd";

/// What opening a node says that has no driver behind it.
const NO_DRIVER: [Errno; 2] = [Errno::NODEV, Errno::NXIO];

/// What a device is to the tests.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Device {
    Usable,
    Missing { why: String },
    Broken { why: String },
}

/// Returns from the test, saying why, unless the host can run guests and move them.
///
/// # Panics
/// If `/dev/kvm` or userfaultfd exists and cannot be used.
#[macro_export]
macro_rules! require_kvm {
    () => {
        if !$crate::device::has_kvm_and_userfaultfd() {
            return;
        }
    };
}

/// Whether the host has both devices; if not, says on stderr which one the test is skipped for.
/// Tests use [`require_kvm!`](crate::require_kvm).
///
/// # Panics
/// If one of them exists and cannot be used.
pub fn has_kvm_and_userfaultfd() -> bool {
    static DEVICES: OnceLock<[Device; 2]> = OnceLock::new();
    let devices = DEVICES.get_or_init(|| [kvm(), userfaultfd()]);
    devices.iter().all(|device| match device {
        Device::Usable => true,
        Device::Missing { why } => {
            say_skipped(why);
            false
        }
        Device::Broken { why } => panic!("{why}"),
    })
}

/// Says that the test of this thread is skipped, and why: in one line, past the test harness's
/// capture, because a skip that nobody sees is a lie.
pub fn say_skipped(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // One write on a line of its own, whatever the test harness is in the middle of. Without a
    // stderr there is nobody to tell.
    let line = format!("\nskipped: {test}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn kvm() -> Device {
    if !Path::new(KVM_NODE).exists() {
        return Device::Missing { why: format!("there is no {KVM_NODE}") };
    }
    let made = Kvm::new().and_then(|kvm| kvm.create_vm());
    match made {
        Ok(_) => Device::Usable,
        Err(error) if NO_DRIVER.contains(&Errno::from_raw_os_error(error.errno())) => {
            Device::Missing { why: format!("nothing is behind {KVM_NODE}: {error}") }
        }
        Err(error) => Device::Broken { why: format!("{KVM_NODE} exists and is unusable: {error}") },
    }
}

fn userfaultfd() -> Device {
    let missing = || !Path::new(UFFD_NODE).exists() && !Path::new(UFFD_SYSCTL).exists();
    match KernelUffd::open() {
        Ok(_) => Device::Usable,
        Err(error) if missing() => Device::Missing { why: error.to_string() },
        Err(error) => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            Device::Broken { why: format!("userfaultfd exists and is unusable: {error}{cause}") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_needs_both_goes_on_only_with_both() {
        crate::require_kvm!();
        assert_eq!([kvm(), userfaultfd()], [Device::Usable, Device::Usable]);
    }

    #[test]
    fn a_device_is_missing_only_if_its_node_is() {
        let there = |node| Path::new(node).exists();
        if there(KVM_NODE) {
            assert_eq!(kvm(), Device::Usable);
        } else {
            assert!(matches!(kvm(), Device::Missing { .. }));
        }
        if there(UFFD_NODE) || there(UFFD_SYSCTL) {
            assert_eq!(userfaultfd(), Device::Usable);
        } else {
            assert!(matches!(userfaultfd(), Device::Missing { .. }));
        }
    }
}
