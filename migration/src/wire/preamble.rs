//! The first bytes of every connection, in both directions.

use super::WireError;

/// The newest version of the protocol that this code speaks.
pub const VERSION: u16 = 3;
/// The oldest version that it accepts: the one before the newest.
pub const VERSION_MIN: u16 = 2;
/// The first version that knows of a base.
pub const VERSION_WITH_BASE: u16 = 3;
/// Bytes of a preamble.
pub const PREAMBLE_BYTES: usize = 16;

const MAGIC: [u8; 8] = *b"\x89GODWIT\n";

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Set-up, switchover, requests and the pages that answer them.
    Urgent,
    /// Pages pushed unasked.
    Bulk,
    /// The urgent channel of a session that lost its own.
    Resume,
}

/// The first bytes of a connection: magic, versions, channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// The newest version that the sender speaks.
    pub version: u16,
    /// The oldest that it accepts.
    pub version_min: u16,
    /// What the connection is for.
    pub channel: Channel,
}

impl Preamble {
    /// The preamble that this code sends.
    pub fn ours(channel: Channel) -> Preamble {
        Preamble { version: VERSION, version_min: VERSION_MIN, channel }
    }

    /// The bytes to send.
    pub fn encode(self) -> [u8; PREAMBLE_BYTES] {
        let channel: u16 = match self.channel {
            Channel::Urgent => 0,
            Channel::Bulk => 1,
            Channel::Resume => 2,
        };
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.version_min.to_le_bytes());
        bytes[12..14].copy_from_slice(&channel.to_le_bytes());
        bytes
    }

    /// Reads a peer's preamble.
    ///
    /// # Errors
    /// A peer that is not godwit, or has no version in common, or wants an unknown channel.
    pub fn decode(bytes: &[u8; PREAMBLE_BYTES]) -> Result<Preamble, WireError> {
        let number = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let first: [u8; 8] = bytes[..8].try_into().expect("eight bytes");
        if first != MAGIC {
            return Err(WireError::NotGodwit { first });
        }
        let (version, version_min) = (number(8), number(10));
        if version < VERSION_MIN || version_min > VERSION {
            return Err(WireError::Version { min: version_min, max: version });
        }
        let channel = match number(12) {
            0 => Channel::Urgent,
            1 => Channel::Bulk,
            2 => Channel::Resume,
            _ => return Err(WireError::NotGodwit { first }),
        };
        Ok(Preamble { version, version_min, channel })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preamble_survives_the_wire() {
        for channel in [Channel::Urgent, Channel::Bulk, Channel::Resume] {
            let ours = Preamble::ours(channel);
            assert_eq!(Preamble::decode(&ours.encode()), Ok(ours));
        }
    }

    #[test]
    fn strangers_and_other_versions_are_told_apart() {
        let http = *b"GET / HTTP/1.1\r\n";
        assert!(matches!(Preamble::decode(&http), Err(WireError::NotGodwit { .. })));
        let newer = Preamble { version: 9, version_min: 8, channel: Channel::Urgent };
        assert_eq!(Preamble::decode(&newer.encode()), Err(WireError::Version { min: 8, max: 9 }));
    }
}
