//! Any bytes are the first of a connection, or it is closed.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| godwit_sim::fuzz::handshake(bytes));
