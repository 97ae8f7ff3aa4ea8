//! Any bytes are messages of a userfaultfd, or an error.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| godwit_uffd_testing::fuzz::messages(bytes));
