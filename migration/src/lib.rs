//! The migration engine.
#![forbid(unsafe_code)]
