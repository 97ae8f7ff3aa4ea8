//! A guest's writes, as the driver of its migration asks for them.

use std::sync::Arc;

use godwit_migration::driver::{DirtyLog, DirtyTracking, WriteGuard};
use godwit_migration::page::PageSet;
use godwit_uffd::page::{PageIndex, PageRun};

use super::in_full;
use crate::memory::HeldWrites;
use crate::vm::Vm;

impl DirtyLog for Vm {
    fn start(&self, tracking: DirtyTracking) -> Result<Option<Arc<dyn WriteGuard>>, String> {
        let held = self.start_tracking(tracking).map_err(|e| in_full(&e))?;
        Ok(held.map(|held| Arc::new(held) as Arc<dyn WriteGuard>))
    }

    fn collect(&self, dirty: &mut PageSet) -> Result<(), String> {
        self.collect_written(dirty).map_err(|e| in_full(&e))
    }

    fn stop(&self) {
        self.stop_tracking();
    }
}

impl WriteGuard for HeldWrites {
    fn waiting(&self, into: &mut Vec<PageIndex>) -> Result<(), String> {
        HeldWrites::waiting(self, into).map_err(|e| in_full(&e))
    }

    fn allow(&self, run: PageRun) -> Result<(), String> {
        HeldWrites::allow(self, run).map_err(|e| in_full(&e))
    }

    fn hold(&self, run: PageRun) -> Result<(), String> {
        HeldWrites::hold(self, run).map_err(|e| in_full(&e))
    }
}
