//! Server and client together, on real sockets, with a guest that does what the test wants.

mod client;
mod document;
pub(super) mod guest;
mod server;
