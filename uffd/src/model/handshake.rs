//! How a userfaultfd comes to be: the system call and the device node, and the handshake.

use super::context::{Context, FEATURE_RWP, FEATURE_RWP_ASYNC};
use super::faults::ThreadState;
use super::profile::Profile;
use crate::abi::{API_VERSION, Answer, Errno, Out};
use crate::features::Features;

/// How a userfaultfd is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// By the system call.
    Call,
    /// By the device node, opened by the caller.
    Device,
    /// By a device node that somebody else has opened.
    InheritedDevice,
}

/// The flags that a userfaultfd is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flags {
    /// `UFFD_USER_MODE_ONLY`.
    pub(super) user_mode_only: bool,
    /// `O_NONBLOCK`.
    pub(super) nonblocking: bool,
}

/// Whether a thread may make a userfaultfd, and with which flags. `anybody` is the sysctl
/// `vm.unprivileged_userfaultfd`.
pub(super) fn may_open(
    thread: &ThreadState,
    door: Door,
    flags: u32,
    anybody: bool,
) -> Result<Flags, Errno> {
    let user_mode_only = flags & USER_MODE_ONLY != 0;
    match door {
        // Permission comes before the flags are looked at.
        Door::Call if !user_mode_only && !anybody && !thread.privileged => {
            return Err(Errno::EPERM);
        }
        Door::Device if !thread.privileged => return Err(Errno::EACCES),
        Door::Call | Door::Device | Door::InheritedDevice => {}
    }
    if flags & !(USER_MODE_ONLY | O_NONBLOCK | O_CLOEXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(Flags { user_mode_only, nonblocking: flags & O_NONBLOCK != 0 })
}

/// The features that a kernel offers.
fn supported(profile: &Profile) -> u64 {
    let named = Features::MOVE.bits() * 2 - 1;
    if profile.read_write_protect { named | FEATURE_RWP | FEATURE_RWP_ASYNC } else { named }
}

/// The calls that work on the descriptor.
fn ioctls(profile: &Profile) -> u64 {
    let always = 1 << 0x00 | 1 << 0x01 | 1 << 0x3F;
    if profile.read_write_protect { always | 1 << 0x0A } else { always }
}

/// UFFDIO_API. A refusal leaves zeros in the whole structure, and the context as it was.
pub(super) fn handshake(
    context: &Context,
    thread: &ThreadState,
    api: u64,
    requested: u64,
    storable: bool,
) -> Answer {
    match negotiate(context, thread, api, requested) {
        _ if !storable => Answer { result: Err(Errno::EFAULT), out: Out::Untouched },
        Ok(features) => {
            let profile = context.space.profile();
            if !context.initialise(features) {
                return refused(Errno::EINVAL);
            }
            let (features, ioctls) = (supported(profile), ioctls(profile));
            Answer { result: Ok(()), out: Out::Api { api: API_VERSION, features, ioctls } }
        }
        Err(errno) => refused(errno),
    }
}

fn refused(errno: Errno) -> Answer {
    Answer { result: Err(errno), out: Out::Api { api: 0, features: 0, ioctls: 0 } }
}

fn negotiate(
    context: &Context,
    thread: &ThreadState,
    api: u64,
    requested: u64,
) -> Result<u64, Errno> {
    let profile = context.space.profile();
    if api != API_VERSION {
        return Err(Errno::EINVAL);
    }
    let mut features = Features::from_bits_retain(requested);
    if features.contains(Features::EVENT_FORK) && !thread.privileged {
        return Err(Errno::EPERM);
    }
    if features.contains(Features::WP_ASYNC) {
        features |= Features::WP_UNPOPULATED;
    }
    let lone_async = features.bits() & (FEATURE_RWP | FEATURE_RWP_ASYNC) == FEATURE_RWP_ASYNC;
    if features.bits() & !supported(profile) != 0 || lone_async {
        return Err(Errno::EINVAL);
    }
    Ok(features.bits())
}

const USER_MODE_ONLY: u32 = 1;
const O_NONBLOCK: u32 = libc::O_NONBLOCK.cast_unsigned();
const O_CLOEXEC: u32 = libc::O_CLOEXEC.cast_unsigned();
