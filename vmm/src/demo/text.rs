//! The outcome of a demo as text.

use super::report::{Report, Verdict};

/// The report, line by line; `heading` styles a heading.
pub fn lines(report: &Report, heading: impl Fn(&str) -> String) -> Vec<String> {
    let mut lines =
        vec![String::new(), heading("timeline"), timeline_row(0, "the migration begins")];
    let marks = report.timeline.0.iter().filter_map(|mark| Some((mark.at_us?, mark.what)));
    let mut marks: Vec<_> = marks.collect();
    marks.sort_by_key(|(at_us, _)| *at_us);
    lines.extend(marks.into_iter().map(|(at_us, what)| timeline_row(at_us, what)));
    lines.push(heading("downtime"));
    lines.extend(downtime(report));
    lines.push(heading("memory"));
    lines.extend(memory(report));
    lines.push(heading("verdict"));
    lines.extend(verdict(report));
    lines
}

fn timeline_row(at_us: u64, what: &str) -> String {
    format!("{:>12} ms  {what}", milliseconds(at_us))
}

fn row(name: &str, text: &str) -> String {
    format!("  {name:<12} {text}")
}

fn downtime(report: &Report) -> Vec<String> {
    let ms = |us: Option<u64>| us.map_or("unknown".to_owned(), |us| milliseconds(us) + " ms");
    let bound = |exact| if exact { "" } else { ", or less" };
    let of_each: Vec<_> = report
        .vcpu_gaps
        .iter()
        .map(|gaps| format!("vCPU {} {}", gaps.vcpu, milliseconds(gaps.gap_us)))
        .collect();
    let of_each =
        if of_each.len() > 1 { format!(" ({})", of_each.join(", ")) } else { String::new() };
    vec![
        row("the VMMs", &format!("{} in which no vCPU ran anywhere", ms(report.blackout_us))),
        row(
            "the guest",
            &format!(
                "{}{}: its largest gap across the switchover{of_each}",
                ms(report.guest_gap_us),
                bound(report.guest_gap_exact)
            ),
        ),
        row(
            "",
            &format!(
                "{}{}: its largest gap in the second after it",
                ms(report.guest_gap_first_second_us),
                bound(report.guest_gap_first_second_exact)
            ),
        ),
    ]
}

fn memory(report: &Report) -> Vec<String> {
    let (faults, pages) = (&report.faults, &report.pages);
    let latencies = match faults.count {
        0 => String::new(),
        _ => format!(
            ": p50 {} us, p90 {} us, p99 {} us, max {} us",
            faults.p50_us, faults.p90_us, faults.p99_us, faults.max_us
        ),
    };
    let rate = report.drain_bytes_per_s.map_or("unknown".to_owned(), |rate| {
        format!("{} MiB/s from the switchover to the last page", rate >> 20)
    });
    vec![
        row("faults", &format!("{} served{latencies}", faults.count)),
        row(
            "pages",
            &format!(
                "{} zero and {} data of {}; {} of them because a fault asked",
                pages.zero, pages.data, pages.total, pages.requested
            ),
        ),
        row("throughput", &rate),
    ]
}

fn verdict(report: &Report) -> Vec<String> {
    let pages = report.pages_to_verify.map_or("unknown".to_owned(), |pages| pages.to_string());
    let (verified, corrupt) = (report.pages_verified, report.pages_corrupt);
    let counts = format!(
        "the guest verified {verified} of its {pages} pages at the destination, {corrupt} corrupt"
    );
    let mut lines: Vec<_> = report.complaints.iter().map(|line| format!("  {line}")).collect();
    lines.push(match report.verdict {
        Verdict::Verified => row("VERIFIED", &counts),
        Verdict::Corrupt => row("CORRUPT", &counts),
        Verdict::Unnoticed => row("UNNOTICED", &format!("{counts}, and a page was changed")),
        Verdict::None => row("NONE", &counts),
    });
    lines
}

fn milliseconds(us: u64) -> String {
    format!("{}.{:03}", us / 1000, us % 1000)
}
