//! A network link in software: a proxy between the two ends of a migration that limits the rate,
//! adds delay, and changes or breaks off the stream where it is told to.
//!
//! [`Proxy`] accepts connections and makes one to the destination for each. Bytes take half the
//! round-trip time each way. All connections share the rate, each direction by itself, and only the
//! bytes of the streams count: headers of packets and the handshake of TCP cost nothing. What is
//! under way is bounded, so a side that does not read stops the other, as on a real link.
//!
//! A [`Tap`] sees the bytes of one direction of one connection before they are sent on.

mod connection;
mod corrupt;
mod proxy;
mod queue;
mod tap;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

pub use corrupt::{Corrupted, Corrupter};
pub use proxy::{Options, Proxy};
pub use tap::{CutAt, Direction, Fate, MakeTap, Tap};

/// The rate and the delay of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Bits per second, in each direction.
    pub rate_bits_per_s: u64,
    /// From one end to the other and back.
    pub round_trip: Duration,
}

/// The slowest link: a frame of pages still passes within the patience of the protocol.
const RATE_MIN: u64 = 1_000_000;
/// The fastest; beyond it the proxy is the limit anyway.
const RATE_MAX: u64 = 1_000_000_000_000;
/// The longest round trip: the handshake of a migration takes several, and the protocol's patience
/// ends after ten seconds.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(2);

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Link, String> {
        let wrong = || format!("`{text}` is not RATE,RTT as in 1G,2ms or 100M,500us");
        let (rate, round_trip) = text.split_once(',').ok_or_else(wrong)?;
        let rate_bits_per_s = scaled(rate, &RATE_UNITS).ok_or_else(wrong)?;
        let round_trip = scaled(round_trip, &TIME_UNITS).ok_or_else(wrong)?;
        let round_trip = Duration::from_micros(round_trip);
        if !(RATE_MIN..=RATE_MAX).contains(&rate_bits_per_s) {
            return Err(format!("a rate of {rate} bits/s is not between 1M and 1000G"));
        }
        if round_trip > ROUND_TRIP_MAX {
            return Err(format!(
                "a round trip of {round_trip:?} is longer than {ROUND_TRIP_MAX:?}"
            ));
        }
        Ok(Link { rate_bits_per_s, round_trip })
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.rate_bits_per_s;
        let whole = RATE_UNITS.iter().find(|(_, unit)| rate.is_multiple_of(*unit));
        let (name, unit) = whole.unwrap_or(&("", 1));
        write!(f, "{}{name}bit/s, {:?} round trip", rate / unit, self.round_trip)
    }
}

/// Powers of 1000, as is the custom for bits per second.
const RATE_UNITS: [(&str, u64); 3] = [("G", 1_000_000_000), ("M", 1_000_000), ("K", 1_000)];
/// In microseconds; a unit that ends like another comes before it.
const TIME_UNITS: [(&str, u64); 3] = [("us", 1), ("ms", 1_000), ("s", 1_000_000)];

/// A whole number and one of `units`. A time without a unit means nothing; a rate is in bits.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let unit = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)));
    let bare = text == "0" || units == RATE_UNITS;
    let (digits, unit) = unit.or(bare.then_some((text, 1)))?;
    let number: u64 = digits.parse().ok().filter(|_| !digits.starts_with('+'))?;
    number.checked_mul(unit)
}
