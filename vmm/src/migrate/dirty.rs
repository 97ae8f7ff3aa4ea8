//! A guest's writes, as the driver of its migration asks for them.

use godwit_migration::driver::{DirtyLog, DirtyTracking};
use godwit_migration::page::PageSet;

use super::in_full;
use crate::vm::Vm;

impl DirtyLog for Vm {
    fn start(&self, tracking: DirtyTracking) -> Result<(), String> {
        self.start_tracking(tracking).map_err(|e| in_full(&e))
    }

    fn collect(&self, dirty: &mut PageSet) -> Result<(), String> {
        self.collect_written(dirty).map_err(|e| in_full(&e))
    }

    fn stop(&self) {
        self.stop_tracking();
    }
}
