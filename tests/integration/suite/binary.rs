//! The binary itself.

use crate::GODWIT;

#[test]
fn help_is_given_and_is_a_success() {
    GODWIT.start("godwit --help", &["--help"]).wait_success();
}
