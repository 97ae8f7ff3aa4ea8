//! What the bare guest does that needs no machine: page contents, orders, clocks, the command line.
//!
//! The image itself is `main.rs`. This half has no unsafe code and ordinary unit tests.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod clock;
pub mod config;
pub mod histogram;
pub mod order;
pub mod page;
pub mod ram;
