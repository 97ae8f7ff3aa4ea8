//! Guests that move with a base: a snapshot that both hosts have.

use std::path::{Path, PathBuf};

use godwit_migration::snapshot::Base;
use godwit_migration::wire::{MemslotLayout, Offer};
use godwit_uffd::page::PageSize;
use uuid::Uuid;

use super::in_full;
use crate::api::ControlError;
use crate::api::types::Problem;

/// What guests that come in may bring.
#[derive(Debug, Default)]
pub struct Welcome {
    /// Where their disks may be: real names of directories.
    pub disk_dirs: Vec<PathBuf>,
    /// The size that the pages of their memory must have, if it is given.
    pub page_size: Option<PageSize>,
    /// The snapshot that they may come with.
    pub base: Option<Base>,
}

impl Welcome {
    /// The base with which the guest of `offer` comes; none if it comes without.
    ///
    /// # Errors
    /// It is not here, and what to do about it. Going on without it would be a surprise: somebody
    /// counts on it that little is sent.
    pub(super) fn base_of(&self, offer: &Offer) -> Result<Option<Base>, String> {
        let Some(id) = offer.base else { return Ok(None) };
        let found = self.base.as_ref().filter(|base| base.id == id);
        let base = found.ok_or_else(|| self.lacks(id))?;
        check(base, offer.page_bytes, &offer.memslots)?;
        Ok(Some(base.clone()))
    }

    fn lacks(&self, id: Uuid) -> String {
        let cure = "give the directory of that snapshot to `godwit receive --base`, or leave out \
                    --base of `godwit migrate`";
        match &self.base {
            Some(other) => {
                let (other, path) = (other.id, other.path());
                let path = path.display();
                format!("the guest comes with snapshot {id}, and {path} is of {other}: {cure}")
            }
            None => format!("the guest comes with snapshot {id}, which is not here: {cure}"),
        }
    }
}

/// Opens the base in `dir`, with which a guest is to leave.
///
/// # Errors
/// It is no snapshot, or not a whole one.
pub(super) fn open(dir: &Path) -> Result<Base, ControlError> {
    Base::open(dir).map_err(|error| wrong(&in_full(&error)))
}

/// The offer of a guest that leaves with `base`.
///
/// # Errors
/// It is of another memory.
pub(super) fn with(offer: Offer, base: &Base) -> Result<Offer, ControlError> {
    check(base, offer.page_bytes, &offer.memslots).map_err(|why| wrong(&why))?;
    Ok(Offer { base: Some(base.id), ..offer })
}

fn wrong(why: &str) -> ControlError {
    let hint = "the guest runs on here; nothing was sent";
    ControlError::BadRequest(Problem::new("migrate", why, Some(hint)))
}

/// Whether pages of `base` can be those of a guest with this memory.
fn check(base: &Base, page_bytes: u32, memslots: &[MemslotLayout]) -> Result<(), String> {
    let size = PageSize::of(page_bytes.into()).ok_or("its memory has pages of an unknown size")?;
    if size != PageSize::BASE {
        return Err(format!(
            "the guest's memory has pages of {size}, and snapshots are of guests with pages of \
             {}: leave out --base of `godwit migrate`",
            PageSize::BASE,
        ));
    }
    if base.memslots != memslots {
        let path = base.path();
        return Err(format!("the memory of the guest is not laid out as in {}", path.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use godwit_migration::snapshot::{Facts, Writer};
    use godwit_migration::wire::Mode;
    use tempfile::TempDir;

    use super::*;

    fn slots(bytes: u64) -> Vec<MemslotLayout> {
        vec![MemslotLayout { gpa: 0, bytes }]
    }

    fn offer(base: Option<Uuid>, bytes: u64) -> Offer {
        Offer {
            guest: Uuid::from_u128(1),
            transfer: 1,
            page_bytes: 4096,
            mode: Mode::Postcopy,
            connections: 1,
            memslots: slots(bytes),
            config: vec![],
            requirements: vec![],
            base,
        }
    }

    #[test]
    fn a_guest_comes_with_the_base_that_is_here_or_not_at_all() {
        let folder = TempDir::new().expect("a folder");
        let dir = folder.path().join("base");
        let facts = Facts {
            guest: Uuid::from_u128(1),
            generation: 0,
            created_unix_s: 0,
            memslots: slots(8192),
            machine: serde_json::Value::Null,
        };
        let writer = Writer::create(&dir, 2).expect("creates");
        writer.finish(facts, &[]).expect("writes");
        let base = Base::open(&dir).expect("opens");
        let id = base.id;
        let with = Welcome { base: Some(base), ..Welcome::default() };

        let came = with.base_of(&offer(Some(id), 8192)).expect("comes");
        assert_eq!(came.map(|base| base.id), Some(id));
        assert!(with.base_of(&offer(None, 8192)).expect("comes").is_none());
        let other = with.base_of(&offer(Some(Uuid::from_u128(7)), 8192)).expect_err("another");
        assert!(other.contains(&id.to_string()) && other.contains("--base"), "{other}");
        let layout = with.base_of(&offer(Some(id), 4096)).expect_err("another memory");
        assert!(layout.contains("not laid out"), "{layout}");
        let huge = Offer { page_bytes: 2 << 20, ..offer(Some(id), 8192) };
        let huge = with.base_of(&huge).expect_err("other pages");
        assert!(huge.contains("2 MiB") && huge.contains("leave out --base"), "{huge}");
        let without = Welcome::default().base_of(&offer(Some(id), 8192)).expect_err("not here");
        assert!(without.contains("not here") && without.contains("--base"), "{without}");
    }
}
