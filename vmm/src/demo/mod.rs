//! `godwit demo`.
use crate::cli::{Demo, Failure};
/// A link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link;
impl std::str::FromStr for Link {
    type Err = String;
    fn from_str(_: &str) -> Result<Link, String> {
        Ok(Link)
    }
}
/// Demo
pub fn demo(_: &Demo) -> Result<std::process::ExitCode, Failure> {
    Err(Failure::text("not yet"))
}
