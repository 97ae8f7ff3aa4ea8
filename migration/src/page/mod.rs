//! The state of each page: what the destination has claimed, what the source has sent.

mod claims;
mod install;
mod paging;
mod sent;
mod set;

pub use claims::{Claims, Class, Duplicate, Requested};
pub use install::{Contents, InstallError, Installing, Placed, install};
pub use paging::Paging;
pub use sent::Sent;
pub use set::PageSet;
