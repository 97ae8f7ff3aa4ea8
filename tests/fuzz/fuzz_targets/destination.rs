//! Any bytes are what a peer does to a destination, which keeps its promises.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| godwit_sim::fuzz::destination(bytes));
