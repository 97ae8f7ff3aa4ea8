//! Whether the host has the memory that a guest wants.

use super::MemoryError;

/// Refuses a guest of `bytes` that this host cannot hold. A guest that is let in may still meet a
/// host that fills up later; this catches the mistake, not the race.
///
/// # Errors
/// [`MemoryError::NotAvailable`].
pub(super) fn check(bytes: u64) -> Result<(), MemoryError> {
    match available_bytes() {
        Some(available) if bytes > available => Err(MemoryError::NotAvailable {
            wanted_mib: bytes >> 20,
            available_mib: available >> 20,
        }),
        _ => Ok(()),
    }
}

/// MemAvailable of /proc/meminfo in bytes, or `None` where there is no such line.
pub fn available_bytes() -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_found_and_scaled() {
        assert_eq!(parse("MemFree: 1 kB\nMemAvailable:   24000 kB\n"), Some(24_576_000));
    }

    #[test]
    fn missing_or_odd_line_is_none() {
        assert_eq!(parse("MemFree: 1 kB\n"), None);
        assert_eq!(parse("MemAvailable: x kB\n"), None);
    }

    #[test]
    fn guest_larger_than_the_host_is_refused() {
        let error = check(u64::MAX).unwrap_err();
        assert!(error.to_string().contains("does not fit"), "{error}");
    }
}
