//! Any bytes are operations on a set of pages, which stays one.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| godwit_sim::fuzz::bitmap(bytes));
