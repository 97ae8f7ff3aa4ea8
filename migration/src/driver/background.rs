//! Threads that stand back for faults.

/// By how much bulk threads are nicer than those that run the guest and serve its faults. Each step
/// is about a tenth of the time of a core that both want. With 5, a drain beside busy vCPUs halves.
const NICENESS: i32 = 2;

/// Lets threads that somebody waits for come first, where there are not enough cores for all: the
/// fault loop, the thread that answers it, and the vCPUs. Anybody may be nicer, so this fails only
/// where a filter forbids the call, and then only costs time.
pub(super) fn stand_back() {
    let this = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(this), NICENESS) {
        tracing::debug!(%error, "a bulk thread has the priority of all others");
    }
}
