//! Any bytes are operations on the model, and it keeps its promises.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| godwit_uffd_testing::fuzz::operations(bytes));
