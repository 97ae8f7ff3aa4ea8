//! Threads that stand back for faults.

/// By how much threads that fill memory from a snapshot are nicer than those that run the guest and
/// serve its faults. Each step is about a tenth of the time of a core that both want. A migration's
/// bulk threads are not nicer: as measured, faults are no faster for it, and a drain beside busy
/// vCPUs is slower by a quarter, while the source keeps its memory for longer.
const NICENESS: i32 = 2;

/// Lets threads that somebody waits for come first, where there are not enough cores for all: the
/// fault loop and the vCPUs. Anybody may be nicer, so this fails only where a filter forbids the
/// call, and then only costs time.
pub(super) fn stand_back() {
    let this = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(this), NICENESS) {
        tracing::debug!(%error, "a bulk thread has the priority of all others");
    }
}
