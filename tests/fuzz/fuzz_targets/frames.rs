//! Any bytes are what comes on a channel, or an error.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| godwit_sim::fuzz::frames(bytes));
