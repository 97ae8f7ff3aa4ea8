//! Huge pages for a test: the pool is the host's, and there is only one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// A number of free huge pages, for as long as this lives. Others wait for their turn meanwhile,
/// also those of other processes that do it like this.
#[derive(Debug)]
pub struct HugePages {
    /// The size of the pool before.
    before: u64,
    _turn: File,
}

impl HugePages {
    /// Waits for the turn and makes just `pages` huge pages free. `None` where that cannot be had;
    /// the test is skipped then, and stderr says why.
    pub fn take(pages: u64) -> Option<HugePages> {
        let taken = HugePages::try_take(pages);
        taken.inspect_err(|why| skipped(&format!("no huge pages: {why}"))).ok()
    }

    fn try_take(pages: u64) -> Result<HugePages, String> {
        let turn = File::open(file("nr_hugepages")).map_err(|error| error.to_string())?;
        turn.lock().map_err(|error| error.to_string())?;
        let before = number("nr_hugepages")?;
        // From here on the size is restored however this ends.
        let taken = HugePages { before, _turn: turn };
        taken.leave_free(pages)?;
        Ok(taken)
    }

    /// How many are free now, and not reserved.
    ///
    /// # Errors
    /// Why that cannot be known.
    pub fn free() -> Result<u64, String> {
        Ok(number("free_hugepages")?.saturating_sub(number("resv_hugepages")?))
    }

    /// Makes just `pages` free, instead of as many as were asked for.
    ///
    /// # Errors
    /// Why the kernel does not.
    pub fn leave_free(&self, pages: u64) -> Result<(), String> {
        let (total, free) = (number("nr_hugepages")?, number("free_hugepages")?);
        let size = total - free + number("resv_hugepages")? + pages;
        set(size).map_err(|error| format!("vm.nr_hugepages={size}: {error}"))?;
        let free = HugePages::free()?;
        match free == pages {
            true => Ok(()),
            false => Err(format!("{free} are free of {pages} that were asked for")),
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // Nobody is left to tell if this fails; the next user sees a value that is not the old.
        let _ = set(self.before);
    }
}

fn file(name: &str) -> std::path::PathBuf {
    Path::new(POOL).join(name)
}

fn number(name: &str) -> Result<u64, String> {
    let said = |error: &dyn std::fmt::Display| format!("{name}: {error}");
    let text = fs::read_to_string(file(name)).map_err(|error| said(&error))?;
    text.trim().parse().map_err(|error| said(&error))
}

fn set(size: u64) -> io::Result<()> {
    fs::write(file("nr_hugepages"), size.to_string())
}

fn skipped(why: &str) {
    // Not by the macro: the harness would keep it from whoever runs the tests.
    let _ = writeln!(io::stderr(), "skipped: {why}");
}
