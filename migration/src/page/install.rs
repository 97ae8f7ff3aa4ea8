//! Installing a run of pages: claim, fill, wake, finish.

use godwit_uffd::guest::{Filled, GuestUffd};
use godwit_uffd::page::{PageIndex, PageRun};
use godwit_uffd::{Uffd, Wake};

use super::{Claims, Class, Duplicate};

/// How often an install is tried again because events wait to be read, before it counts as failed.
/// The fault loop reads events all the time; a thousand refusals mean that it does not.
const EVENTS_RETRIES_MAX: u32 = 1000;

/// Why a run was not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The peer's mistake.
    #[error(transparent)]
    Duplicate(#[from] Duplicate),
    /// This host's kernel refused.
    #[error("cannot install {run}")]
    Kernel {
        /// The pages.
        run: PageRun,
        /// What the kernel said.
        source: godwit_uffd::Error,
    },
    /// Events of the userfaultfd are not being read.
    #[error(
        "cannot install {run}: the kernel wants its events read first, {EVENTS_RETRIES_MAX} times"
    )]
    Events {
        /// The pages.
        run: PageRun,
    },
}

/// What the pages of a run are.
#[derive(Debug)]
pub enum Contents<'a> {
    /// Zero.
    Zero,
    /// Lost: nobody can read them.
    Poison,
    /// These bytes.
    Data(&'a [u8]),
    /// The bytes of these pages, which may become the guest's.
    Staged(&'a mut [u8]),
}

impl Contents<'_> {
    fn class(&self) -> Class {
        match self {
            Contents::Zero => Class::Zero,
            Contents::Poison => Class::Poisoned,
            Contents::Data(_) | Contents::Staged(_) => Class::Data,
        }
    }
}

/// Installs `run` and wakes its waiters; true if these were the guest's last pages. Calls
/// `was_requested` for each page that a fault had asked for.
///
/// # Errors
/// See [`InstallError`]. After `Duplicate` nothing has changed.
pub fn install<U: Uffd>(
    claims: &Claims,
    memory: &GuestUffd<U>,
    run: PageRun,
    mut contents: Contents<'_>,
    was_requested: impl FnMut(PageIndex),
) -> Result<bool, InstallError> {
    claims.begin(run)?;
    let class = contents.class();
    match place(memory, run, &mut contents) {
        Ok(()) => Ok(claims.finish(run, class, was_requested)),
        Err(error) => {
            // They may be sent again. Those that are in place by now are found to be so then.
            claims.release(run);
            Err(error)
        }
    }
}

/// Puts the pages of `run` in place, all or, on failure, some.
fn place<U: Uffd>(
    memory: &GuestUffd<U>,
    run: PageRun,
    contents: &mut Contents<'_>,
) -> Result<(), InstallError> {
    let mut rest = run;
    let mut retries = 0;
    while rest.count > 0 {
        let filled = fill(memory, run, rest, contents)
            .map_err(|source| InstallError::Kernel { run: rest, source })?;
        let done = match filled {
            Filled::All => rest.count,
            // Somebody was first, and their page stands; whoever waits for it needs the wake.
            Filled::AlreadyPresent { done } => {
                let present = PageIndex(rest.first.0 + done);
                memory
                    .wake(PageRun::one(present))
                    .map_err(|source| InstallError::Kernel { run: rest, source })?;
                done + 1
            }
            Filled::EventsFirst { done } => {
                retries += 1;
                if retries > EVENTS_RETRIES_MAX {
                    return Err(InstallError::Events { run: rest });
                }
                std::thread::yield_now();
                done
            }
        };
        rest = PageRun { first: PageIndex(rest.first.0 + done), count: rest.count - done };
    }
    Ok(())
}

fn fill<U: Uffd>(
    memory: &GuestUffd<U>,
    run: PageRun,
    rest: PageRun,
    contents: &mut Contents<'_>,
) -> Result<Filled, godwit_uffd::Error> {
    let done = memory.space().page_size().bytes_of(rest.first.0 - run.first.0);
    let done = usize::try_from(done).expect("inside the run's bytes");
    match contents {
        Contents::Zero => memory.zero(rest, Wake::Now),
        // Where the kernel cannot, this fails: nothing else keeps a lost page from being read.
        Contents::Poison => memory.poison(rest, Wake::Now),
        Contents::Data(bytes) => memory.copy(rest, &bytes[done..], Wake::Now),
        Contents::Staged(bytes) => fill_staged(memory, rest, &mut bytes[done..]),
    }
}

/// Moves staged pages in. A page that something holds on to, or a mapping that differs, is no
/// reason to fail: its bytes can be copied. Those that were moved before it are present by then,
/// and no copy replaces what is present. After any other error there may be nothing to copy.
fn fill_staged<U: Uffd>(
    memory: &GuestUffd<U>,
    run: PageRun,
    staged: &mut [u8],
) -> Result<Filled, godwit_uffd::Error> {
    match memory.move_in(run, staged, Wake::Now) {
        Err(error) if error.is_move_refused() => {
            let filled = memory.copy(run, staged, Wake::Now);
            // What was copied is not kept twice.
            if let Ok(Filled::All) = filled {
                memory.uffd().give_up(staged);
            }
            filled
        }
        moved => moved,
    }
}
