//! Floors: what this machine can do at best, without any protocol.

pub mod mapping;
pub mod receive;
pub mod server;
pub mod tsc;
