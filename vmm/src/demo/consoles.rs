//! The guest's console across the switchover: a line may begin on one side and end on the other.

use super::Side;
use super::process::Text;

/// Puts the pieces of the line that the switchover cut together again.
#[derive(Debug, Default)]
pub struct Consoles {
    /// What the source wrote of its last line, once it has ended.
    tail: Option<String>,
    /// What the destination wrote first, if no line begins so.
    head: Option<String>,
    destination_spoke: bool,
}

/// What every report of the guest begins with.
const PREFIX: &str = "godwit-guest: ";

impl Consoles {
    /// Takes what a side wrote; gives a whole line and the side on which it began, if there is one.
    pub fn take(&mut self, side: Side, text: &Text) -> Option<(Side, String)> {
        match (side, text) {
            (Side::Source, Text::Line(line)) => Some((side, line.clone())),
            (Side::Source, Text::End(tail)) => {
                self.tail = Some(tail.clone());
                self.joined()
            }
            (Side::Destination, Text::Line(line)) => {
                let first = !std::mem::replace(&mut self.destination_spoke, true);
                if first && !line.starts_with(PREFIX) {
                    self.head = Some(line.clone());
                    return self.joined();
                }
                Some((side, line.clone()))
            }
            (Side::Destination, Text::End(_)) => None,
        }
    }

    fn joined(&mut self) -> Option<(Side, String)> {
        let (tail, head) = (self.tail.as_ref()?, self.head.as_ref()?);
        let whole = format!("{tail}{head}");
        self.head = None;
        Some((Side::Source, whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Text {
        Text::Line(text.to_owned())
    }

    #[test]
    fn a_line_that_the_switchover_cut_is_whole_again_in_either_order() {
        let (tail, head) = (Text::End("godwit-guest: corr".into()), line("upt page=7"));
        let whole = Some((Side::Source, "godwit-guest: corrupt page=7".to_owned()));
        let mut consoles = Consoles::default();
        assert_eq!(consoles.take(Side::Destination, &head), None);
        assert_eq!(consoles.take(Side::Source, &tail), whole);
        let mut consoles = Consoles::default();
        assert_eq!(consoles.take(Side::Source, &tail), None);
        assert_eq!(consoles.take(Side::Destination, &head), whole);
        let later = consoles.take(Side::Destination, &head);
        assert_eq!(later, Some((Side::Destination, "upt page=7".to_owned())));
    }

    #[test]
    fn a_console_that_was_not_cut_needs_no_waiting() {
        let mut consoles = Consoles::default();
        let whole = line("godwit-guest: filled pages=1");
        let told = consoles.take(Side::Destination, &whole);
        assert_eq!(told, Some((Side::Destination, "godwit-guest: filled pages=1".to_owned())));
        assert_eq!(consoles.take(Side::Source, &Text::End(String::new())), None);
    }
}
