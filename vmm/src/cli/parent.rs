//! A process that another godwit has started for itself, and that must not outlive it.

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::Failure;

/// Has the kernel end this process at once when process `parent`, which started it, ends.
///
/// A pipe that the parent holds open would do as well, but only for a process that gets as far as
/// watching it. The kernel goes by the thread that started this process: it must live as long.
pub fn end_with(parent: Option<u32>) -> Result<(), Failure> {
    let Some(parent) = parent else { return Ok(()) };
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| Failure::new(&e))?;
    // It may have ended before the kernel was told.
    let parent = i32::try_from(parent).ok().and_then(Pid::from_raw);
    if parent.is_none() || getppid() != parent {
        return Err(Failure::text("the process that this one was to end with is gone"));
    }
    Ok(())
}
