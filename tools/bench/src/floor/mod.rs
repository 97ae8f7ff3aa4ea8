//! Floors: what this machine can do at best, without any protocol.

pub mod fault;
pub mod load;
pub mod mapping;
pub mod receive;
pub mod server;
pub mod tsc;
