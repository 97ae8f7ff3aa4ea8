//! Where a peer listens: `tcp:HOST:PORT` or `unix:PATH`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a migration comes to or goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host (name, IPv4, or IPv6 in brackets) and a port, joined by a colon.
    Tcp(String),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// An address that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{given}` is not an address: write tcp:HOST:PORT, for example tcp:192.0.2.7:7070, or unix:PATH"
)]
pub struct AddressError {
    given: String,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(given: &str) -> Result<Address, AddressError> {
        let bad = || AddressError {
            given: given.to_owned(),
        };
        match given.split_once(':') {
            Some(("tcp", rest)) => match rest.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                    Ok(Address::Tcp(rest.to_owned()))
                }
                _ => Err(bad()),
            },
            Some(("unix", path)) if !path.is_empty() => Ok(Address::Unix(path.into())),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(at) => write!(f, "tcp:{at}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in [
            "tcp:127.0.0.1:7070",
            "tcp:[::1]:0",
            "tcp:host.example:80",
            "unix:/run/g.sock",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "7070",
            "tcp:host",
            "tcp:host:x",
            "tcp::1",
            "tcp:h:99999",
            "unix:",
            "udp:a:1",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
