//! Pages on their way to another frame: whoever touches one sleeps until it has arrived.

use super::Process;
use super::folio::Folio;
use super::machine::Machine;
use super::page_table::{Entry, Mapped, Migrating};
use super::sync::Arc;
use super::wait_queue::Sleeper;

/// A page that is being migrated.
#[derive(Debug)]
#[must_use]
pub struct Migration {
    folio: Arc<Folio>,
    index: u16,
}

impl Migration {
    fn is_of(&self, mapped: &Mapped) -> bool {
        Arc::ptr_eq(&self.folio, &mapped.folio) && self.index == mapped.index
    }
}

impl Machine {
    /// Begins to migrate the page at an address, wherever it is mapped.
    ///
    /// # Panics
    /// If there is no page.
    pub fn begin_migration(&self, process: Process, address: u64) -> Migration {
        let migration = self.with_entry(process, address, |entry| match entry {
            Entry::Page(mapped) => Migration { folio: mapped.folio.clone(), index: mapped.index },
            other => panic!("there is no page to migrate at {address:#x}: {other:?}"),
        });
        self.each_entry(|entry| match std::mem::take(entry) {
            Entry::Page(page) if migration.is_of(&page) => {
                let sleeper = Arc::new(Sleeper::default());
                *entry = Entry::Migration(Box::new(Migrating { page, sleeper }));
            }
            other => *entry = other,
        });
        migration
    }

    /// Ends a migration: the page is back wherever its entries are by now, in children that were
    /// forked meanwhile too, and whoever sleeps for it goes on.
    pub fn end_migration(&self, migration: &Migration) {
        self.each_entry(|entry| match std::mem::take(entry) {
            Entry::Migration(migrating) if migration.is_of(&migrating.page) => {
                let Migrating { page, sleeper } = *migrating;
                *entry = Entry::Page(page);
                sleeper.wake();
            }
            other => *entry = other,
        });
    }
}
