//! Server and client together, on real sockets, with a guest that does what the test wants.

mod client;
mod document;
mod guest;
mod server;
