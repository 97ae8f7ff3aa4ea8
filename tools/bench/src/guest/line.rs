//! One line that the bare guest prints: `godwit-guest: KIND key=value key=value ...`.

use std::fmt;

/// A line of the guest, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The first word.
    pub kind: String,
    fields: Vec<(String, String)>,
}

impl Line {
    /// Takes a line of console output apart, or `None` if it is not the guest's.
    pub fn parse(text: &str) -> Option<Line> {
        let mut words = text.trim_end().strip_prefix(PREFIX)?.split_ascii_whitespace();
        let kind = words.next()?.to_owned();
        let fields = words
            .filter_map(|word| word.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Some(Line { kind, fields })
    }

    /// The value of `key`.
    pub fn text(&self, key: &str) -> Option<&str> {
        let field = self.fields.iter().find(|(name, _)| name == key)?;
        Some(&field.1)
    }

    /// The value of `key` as a decimal number.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.text(key)?.parse().ok()
    }

    /// The value of `key` as pairs of numbers: `A:B,A:B`.
    pub fn pairs(&self, key: &str) -> Vec<(u64, u64)> {
        let pairs = self.text(key).unwrap_or_default().split(',');
        pairs
            .filter_map(|pair| pair.split_once(':'))
            .filter_map(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)))
            .collect()
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        self.fields.iter().try_for_each(|(key, value)| write!(f, " {key}={value}"))
    }
}

const PREFIX: &str = "godwit-guest: ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_guest_is_taken_apart() {
        let line = Line::parse("godwit-guest: gaps vcpu=1 at=9 list=3:4,5:6\r\n").unwrap();
        assert_eq!(line.kind, "gaps");
        assert_eq!(line.number("vcpu"), Some(1));
        assert_eq!(line.pairs("list"), [(3, 4), (5, 6)]);
        assert_eq!(line.number("list"), None);
        assert_eq!(line.text("other"), None);
    }

    #[test]
    fn other_output_is_not_a_line_of_the_guest() {
        assert_eq!(Line::parse("Linux version 6.12"), None);
        assert_eq!(Line::parse("godwit-guest: "), None);
    }
}
