//! What hostile peers of both kinds say.

use godwit_migration::wire::{Channel, Preamble};

/// What a web server answers to what it does not understand.
pub const HTTP_ANSWER: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nServer: none\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// What a web browser begins with.
pub const HTTP_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n";

/// A godwit of other versions of the protocol.
pub fn other_version(version_min: u16, version: u16) -> Preamble {
    Preamble { version, version_min, channel: Channel::Urgent }
}

/// A frame of this kind whose header says `length`, whatever follows it.
pub fn frame(kind: u16, length: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(length.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}
