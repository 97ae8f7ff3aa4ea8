//! What the bare guests report on their console: lines `godwit-guest: KIND key=value ...`.

use std::str::FromStr;

/// What every report begins with.
const PREFIX: &str = "godwit-guest: ";

/// One report of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it is about: `start`, `pass`, `corrupt`, `gaps`, `window`, `ticks`, `end`.
    pub kind: String,
    /// The words after the kind that have no `=`, in order.
    pub words: Vec<String>,
    line: String,
    fields: Vec<(String, String)>,
}

impl Report {
    /// The report in a line of the console; `None` if it is something else.
    pub fn parse(line: &str) -> Option<Report> {
        let mut rest = line.strip_prefix(PREFIX)?.split_ascii_whitespace();
        let kind = rest.next()?.to_owned();
        let mut report = Report { kind, words: vec![], line: line.to_owned(), fields: vec![] };
        for word in rest {
            match word.split_once('=') {
                Some((key, value)) => report.fields.push((key.to_owned(), value.to_owned())),
                None => report.words.push(word.to_owned()),
            }
        }
        Some(report)
    }

    /// The value of `key`, if the report has it.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.fields.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The value of `key` as a number, decimal or 0x.
    ///
    /// # Panics
    /// If the report has no such key or its value is no number.
    #[track_caller]
    pub fn number(&self, key: &str) -> u64 {
        let value = self.get(key).unwrap_or_else(|| panic!("no `{key}` in: {}", self.line));
        number(value).unwrap_or_else(|| panic!("`{key}` is no number in: {}", self.line))
    }

    /// The value of `key` as pairs `A:B,C:D`: the gaps of `list`, the buckets of `h`. An empty
    /// value is an empty list.
    ///
    /// # Panics
    /// If the report has no such key or its value is something else.
    #[track_caller]
    pub fn pairs(&self, key: &str) -> Vec<(u64, u64)> {
        let value = self.get(key).unwrap_or_else(|| panic!("no `{key}` in: {}", self.line));
        let pairs = value.split(',').filter(|pair| !pair.is_empty()).map(|pair| {
            let (a, b) = pair.split_once(':')?;
            Some((number(a)?, number(b)?))
        });
        let pairs: Option<Vec<_>> = pairs.collect();
        pairs.unwrap_or_else(|| panic!("`{key}` is no list of pairs in: {}", self.line))
    }

    /// Whether it is the end of a pass: `pass ... end ...`.
    pub fn ends_pass(&self) -> bool {
        self.kind == "pass" && self.words.iter().any(|word| word == "end")
    }
}

/// The reports in a console's text. A guest that moves may begin a line at the source and end it
/// at the destination: give both texts, joined. A line without its end is left out.
pub fn reports(console: &str) -> Vec<Report> {
    let whole = console.rfind('\n').map_or("", |end| &console[..end]);
    whole.lines().filter_map(Report::parse).collect()
}

/// What a guest says about its own memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Passes that were finished, over all vCPUs.
    pub passes: u64,
    /// Pages verified in those, each as often as it was.
    pub verified: u64,
    /// Pages found corrupt, by `corrupt` lines or by the counts of passes, whichever are more.
    pub corrupt: u64,
}

impl Verdict {
    /// The verdict of these reports.
    ///
    /// # Panics
    /// If a pass ends without saying how many pages it verified and found corrupt.
    #[track_caller]
    pub fn of<'a>(reports: impl IntoIterator<Item = &'a Report>) -> Verdict {
        let (mut verdict, mut lines, mut counted) = (Verdict::default(), 0, 0);
        for report in reports {
            if report.ends_pass() {
                verdict.passes += 1;
                verdict.verified += report.number("verified");
                counted += report.number("corrupt");
            } else if report.kind == "corrupt" {
                lines += 1;
            }
        }
        verdict.corrupt = lines.max(counted);
        verdict
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => u64::from_str(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "\
        SeaBIOS\n\
        godwit-guest: start workload=dirty vcpus=2 arena_pages=9 entry=pvh tsc=77\n\
        godwit-guest: pass vcpu=0 n=3 begin tsc=100\n\
        godwit-guest: pass vcpu=0 n=3 end tsc=200 verified=5 zero=1 corrupt=0\n\
        godwit-guest: pass vcpu=1 n=3 end tsc=201 verified=4 zero=0 corrupt=1\n\
        godwit-guest: corrupt vcpu=1 page=7 gpa=0x1007000 offset=8\n\
        godwit-guest: gaps vcpu=0 at=900 list=100:20,500:7\n\
        godwit-guest: gaps vcpu=1 at=900 list=\n\
        godwit-guest: pass vcpu=0 n=4 e";

    #[test]
    fn only_whole_reports_are_read() {
        let reports = reports(CONSOLE);
        let kinds: Vec<_> = reports.iter().map(|r| r.kind.as_str()).collect();
        assert_eq!(kinds, ["start", "pass", "pass", "pass", "corrupt", "gaps", "gaps"]);
        assert_eq!(reports[0].get("workload"), Some("dirty"));
        assert_eq!(reports[0].get("colour"), None);
        assert_eq!(reports[4].number("gpa"), 0x100_7000);
        assert_eq!(reports[5].pairs("list"), [(100, 20), (500, 7)]);
        assert_eq!(reports[6].pairs("list"), []);
    }

    #[test]
    fn a_line_cut_by_the_switchover_is_whole_again() {
        let destination = "nd tsc=300 verified=5 zero=1 corrupt=0\n";
        let reports = reports(&(CONSOLE.to_owned() + destination));
        assert!(reports.last().is_some_and(|r| r.ends_pass() && r.number("n") == 4));
    }

    #[test]
    fn the_verdict_counts_passes_that_ended_and_pages() {
        let verdict = Verdict::of(&reports(CONSOLE));
        assert_eq!(verdict, Verdict { passes: 2, verified: 9, corrupt: 1 });
    }

    #[test]
    #[should_panic(expected = "no `vcpus` in: godwit-guest: end")]
    fn a_missing_field_is_named_with_its_line() {
        Report::parse("godwit-guest: end corrupt=0").expect("a report").number("vcpus");
    }
}
