//! Which pages of a guest were written while they were asynchronously protected.

use crate::error::Error;
use crate::features::RegisterMode;
use crate::guest::memory::GuestUffd;
use crate::guest::protect::Protected;
use crate::page::{Hva, PageIndex, PageRun};
use crate::uffd::{Installed, Uffd};

impl<U: Uffd> GuestUffd<U> {
    /// Calls `each` for the pages of `run` that were written since they were protected, in the
    /// order of their numbers, and protects them again in the same step. The userfaultfd was opened
    /// with [`WP_ASYNC`](crate::Features::WP_ASYNC): writes to protected pages do not wait.
    ///
    /// # Errors
    ///
    /// As [`protect`](GuestUffd::protect). A page that was protected again was told, whatever comes
    /// then: of the piece that failed, all pages are told.
    pub fn take_written(
        &self,
        run: PageRun,
        mut each: impl FnMut(PageRun),
    ) -> Result<Protected, Error> {
        self.check_mode(run, RegisterMode::WRITE_PROTECT)?;
        let walked = self.walk(&self.snapshot(), run, |piece| {
            let unit = piece.space.page_size();
            let index = |at: Hva| unit.index_at(at.0 - piece.range.start.0);
            self.uffd().take_written(piece.range, &mut |written| {
                let inside = index(written.start).expect("inside of the piece");
                let count = unit.pages_in(written.bytes).expect("whole pages of the piece");
                let first = PageIndex(run.first.0 + piece.pages.start + inside);
                each(PageRun { first, count });
            })?;
            Ok(Installed::All)
        })?;
        Ok(walked.into())
    }
}
