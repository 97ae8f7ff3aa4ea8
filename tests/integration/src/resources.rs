//! What a process holds: to see that many moves and many failures leave nothing behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What a process holds at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads, the main one included.
    pub threads: usize,
    /// Memory in RAM, shared or not, in bytes.
    pub resident_bytes: u64,
}

impl Resources {
    /// What process `pid` holds now.
    ///
    /// # Panics
    /// If there is no such process.
    #[track_caller]
    pub fn of(pid: u32) -> Resources {
        let of = Path::new("/proc").join(pid.to_string());
        let count = |what: &str| fs::read_dir(of.join(what)).map(Iterator::count);
        let status = fs::read_to_string(of.join("status"));
        match (count("fd"), count("task"), status) {
            (Ok(descriptors), Ok(threads), Ok(status)) => {
                Resources { descriptors, threads, resident_bytes: resident_bytes(&status) }
            }
            (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => {
                panic!("cannot look at process {pid}: {error}")
            }
        }
    }
}

/// What the descriptors of `pid` are, with how many there are of each: for the message of a test
/// that found too many.
pub fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    for target in entries.flatten().flat_map(|entry| fs::read_link(entry.path())) {
        // socket:[1234] and pipe:[1234] differ only in a number.
        let target = target.to_string_lossy();
        let kind = target.split_once(":[").map_or(&*target, |(kind, _)| kind);
        *kinds.entry(kind.to_owned()).or_insert(0) += 1;
    }
    kinds
}

/// VmRSS in the text of `/proc/PID/status`. A process that has ended and was not reaped has none.
fn resident_bytes(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{Process, Stream};

    #[test]
    fn descriptors_are_counted_by_kind() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec 8</dev/zero 9</dev/zero; echo ready; exec sleep 1000"]);
        let process = Process::start("shell", command);
        process.wait_line(Stream::Stdout, "ready", |l| l == "ready");
        let kinds = descriptors(process.pid());
        assert_eq!(kinds.get("/dev/zero"), Some(&2), "{kinds:?}");
        // Whoever started this test may have left it more of them, as make does.
        assert!(kinds.get("pipe").is_some_and(|pipes| *pipes >= 2), "{kinds:?}");
        assert!(Resources::of(process.pid()).descriptors >= 5);
    }

    #[test]
    fn this_process_has_at_least_what_a_process_needs() {
        let ours = Resources::of(std::process::id());
        assert!(ours.descriptors >= 3 && ours.threads >= 2, "{ours:?}");
        assert!(ours.resident_bytes > 1 << 16, "{ours:?}");
    }

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t     123 kB\nThreads:\t1\n"), 123 * 1024);
        assert_eq!(resident_bytes("Name:\tx\n"), 0);
    }
}
