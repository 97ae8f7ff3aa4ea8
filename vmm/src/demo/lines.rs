//! The guest's report lines: `godwit-guest: KIND key=value ...`, as far as the demo reads them.

use super::gaps::Gap;

/// What a line of the guest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// It has started; pages that it verifies, and those of them that it writes.
    Start {
        /// Pages that are verified.
        arena_pages: u64,
        /// Pages of those that are written.
        owned_pages: u64,
    },
    /// It has written all its pages once.
    Filled,
    /// A vCPU begins to verify its share.
    PassBegin {
        /// The vCPU.
        vcpu: usize,
        /// The number of the pass.
        number: u64,
        /// The TSC.
        tsc: u64,
    },
    /// A vCPU has verified its share.
    PassEnd {
        /// The vCPU.
        vcpu: usize,
        /// The number of the pass.
        number: u64,
        /// Pages verified.
        verified: u64,
        /// Pages that were wrong.
        corrupt: u64,
    },
    /// A page is wrong.
    Corrupt {
        /// The page, as the guest counts.
        page: u64,
    },
    /// The largest gaps of a vCPU since its last such line.
    Gaps {
        /// The vCPU.
        vcpu: usize,
        /// The TSC when the list was made.
        at: u64,
        /// The gaps, as many as the guest remembers or fewer.
        list: Vec<Gap>,
    },
    /// It cannot go on.
    Error,
}

/// What every report begins with.
const PREFIX: &str = "godwit-guest: ";

/// The report in a line, if there is one that the demo knows.
pub fn parse(line: &str) -> Option<Report> {
    let rest = line.strip_prefix(PREFIX)?;
    let (kind, fields) = rest.split_once(' ').unwrap_or((rest, ""));
    let number = |key| field(fields, key)?.parse::<u64>().ok();
    let vcpu = || usize::try_from(number("vcpu")?).ok();
    match kind {
        "start" => Some(Report::Start {
            arena_pages: number("arena_pages")?,
            owned_pages: number("owned_pages")?,
        }),
        "filled" => Some(Report::Filled),
        "pass" if has_word(fields, "begin") => {
            Some(Report::PassBegin { vcpu: vcpu()?, number: number("n")?, tsc: number("tsc")? })
        }
        "pass" if has_word(fields, "end") => Some(Report::PassEnd {
            vcpu: vcpu()?,
            number: number("n")?,
            verified: number("verified")?,
            corrupt: number("corrupt")?,
        }),
        "corrupt" => Some(Report::Corrupt { page: number("page")? }),
        "gaps" => {
            let list = field(fields, "list")?.split(',').filter(|gap| !gap.is_empty());
            let list = list.map(gap).collect::<Option<Vec<_>>>()?;
            Some(Report::Gaps { vcpu: vcpu()?, at: number("at")?, list })
        }
        "error" | "panic" => Some(Report::Error),
        _ => None,
    }
}

fn has_word(fields: &str, word: &str) -> bool {
    fields.split(' ').any(|field| field == word)
}

fn field<'a>(fields: &'a str, key: &str) -> Option<&'a str> {
    fields.split(' ').find_map(|field| field.strip_prefix(key)?.strip_prefix('='))
}

fn gap(text: &str) -> Option<Gap> {
    let (start, length) = text.split_once(':')?;
    Some(Gap { start: start.parse().ok()?, length: length.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Option<Report> {
        parse(&format!("godwit-guest: {text}"))
    }

    #[test]
    fn reports_are_read() {
        let start = "start workload=dirty vcpus=2 arena_pages=9 owned_pages=7 entry=pvh tsc=5";
        assert_eq!(report(start), Some(Report::Start { arena_pages: 9, owned_pages: 7 }));
        assert_eq!(report("filled pages=9 tsc=6"), Some(Report::Filled));
        let begin = Report::PassBegin { vcpu: 1, number: 3, tsc: 77 };
        assert_eq!(report("pass vcpu=1 n=3 begin tsc=77"), Some(begin));
        let end = "pass vcpu=1 n=3 end tsc=99 verified=5 zero=1 corrupt=2 generations=8 new=1";
        let wanted = Report::PassEnd { vcpu: 1, number: 3, verified: 5, corrupt: 2 };
        assert_eq!(report(end), Some(wanted));
        let corrupt = "corrupt vcpu=0 page=12 gpa=0x1000 expected_generation=1 offset=8";
        assert_eq!(report(corrupt), Some(Report::Corrupt { page: 12 }));
    }

    #[test]
    fn gaps_are_read_also_when_there_are_none() {
        let list = vec![Gap { start: 5, length: 20 }, Gap { start: 70, length: 3 }];
        let gaps = Report::Gaps { vcpu: 0, at: 90, list };
        assert_eq!(report("gaps vcpu=0 at=90 list=5:20,70:3"), Some(gaps));
        let none = Report::Gaps { vcpu: 1, at: 90, list: vec![] };
        assert_eq!(report("gaps vcpu=1 at=90 list="), Some(none));
        assert_eq!(report("gaps vcpu=1 at=90 list=5:2,7"), None);
    }

    #[test]
    fn pieces_and_strange_lines_are_no_reports() {
        for line in ["", "SeaBIOS", "godwit-guest: ", "dwit-guest: filled pages=1 tsc=1"] {
            assert_eq!(parse(line), None, "{line}");
        }
        assert_eq!(report("pass vcpu=0 n=3 en"), None);
        assert_eq!(report("pass vcpu=0 n=3 end tsc=1 verified=x corrupt=0"), None);
        assert_eq!(report("ticks n=100"), None);
    }
}
