//! Where a migration goes to or comes from: `tcp:HOST:PORT` or `unix:PATH`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The address of one end of a migration, as users write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// `tcp:HOST:PORT`; an IPv6 address stands in brackets.
    Tcp {
        /// A name or an address, without brackets.
        host: String,
        /// The port; 0 lets the kernel choose when listening.
        port: u16,
    },
    /// `unix:PATH`.
    Unix(PathBuf),
}

/// Why a text is not an address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither `tcp:` nor `unix:`.
    #[error("`{text}` does not begin with `tcp:` or `unix:`")]
    Scheme {
        /// What was written.
        text: String,
    },
    /// No host, or an IPv6 address without brackets.
    #[error("`{text}` is not `tcp:HOST:PORT`, with an IPv6 address in brackets")]
    Host {
        /// What was written.
        text: String,
    },
    /// No port, or not a number.
    #[error("`{text}` has no port between 0 and 65535")]
    Port {
        /// What was written.
        text: String,
    },
    /// `unix:` and nothing more, or a zero byte in the path.
    #[error("`{text}` names no path")]
    Path {
        /// What was written.
        text: String,
    },
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let owned = || text.to_owned();
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() || path.contains('\0') {
                return Err(AddressError::Path { text: owned() });
            }
            return Ok(Address::Unix(PathBuf::from(path)));
        }
        let Some(rest) = text.strip_prefix("tcp:") else {
            return Err(AddressError::Scheme { text: owned() });
        };
        let Some((host, port)) = rest.rsplit_once(':') else {
            return Err(AddressError::Port { text: owned() });
        };
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits);
        let port = port.ok_or_else(|| AddressError::Port { text: owned() })?;
        let host = bare_host(host).ok_or_else(|| AddressError::Host { text: owned() })?;
        Ok(Address::Tcp { host: host.to_owned(), port })
    }
}

/// The host without its brackets; `None` if it is empty or its brackets are wrong.
fn bare_host(host: &str) -> Option<&str> {
    let inside = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    match inside {
        Some(inside) if inside.contains(':') => Some(inside),
        Some(_) => None,
        None if host.is_empty() || host.contains([':', '[', ']']) => None,
        None => Some(host),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Address, AddressError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> String {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_shown() {
        for text in ["tcp:host-2:7070", "tcp:10.0.0.1:0", "tcp:[::1]:65535", "unix:/run/a:b"] {
            assert_eq!(text.parse::<Address>().map(|e| e.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        let error = |text: &str| text.parse::<Address>().expect_err(text);
        assert!(matches!(error("host:7070"), AddressError::Scheme { .. }));
        assert!(matches!(error("tcp:host"), AddressError::Port { .. }));
        assert!(matches!(error("tcp:host:+7"), AddressError::Port { .. }));
        assert!(matches!(error("tcp:host:65536"), AddressError::Port { .. }));
        assert!(matches!(error("tcp::7070"), AddressError::Host { .. }));
        assert!(matches!(error("tcp:::1:7070"), AddressError::Host { .. }));
        assert!(matches!(error("tcp:[host]:7070"), AddressError::Host { .. }));
        assert!(matches!(error("unix:"), AddressError::Path { .. }));
    }
}
