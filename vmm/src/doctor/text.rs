//! The report for people.

use super::Report;
use super::facts::{
    Access, Capability, Facts, Kvm, Memory, Operation, Tried, Userfaultfd, Virtualisation,
};
use super::findings::{Finding, Verdict, Weight};

/// The whole report, as lines.
pub fn text(report: &Report) -> String {
    let facts = &report.facts;
    let mut lines = vec![
        format!("host         Linux {}, {}", facts.kernel, memory_available(facts)),
        format!("kvm          {}", kvm(&facts.kvm)),
    ];
    lines.extend(capabilities(&facts.kvm));
    lines.extend(userfaultfd(&facts.userfaultfd));
    lines.extend(table(&facts.userfaultfd.memory));
    lines.push(writes(facts));
    lines.push(huge_pages(facts));
    lines.push(limits(facts));
    if !report.findings.is_empty() {
        lines.push(String::new());
        lines.push("what is missing".to_owned());
        lines.extend(report.findings.iter().flat_map(finding));
    }
    lines.push(String::new());
    lines.push(verdict(report.verdict).to_owned());
    lines.join("\n") + "\n"
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ready => "READY: guests can run here, leave and come",
        Verdict::CannotReceive => "NOT READY: guests can run here and leave, and none can come",
        Verdict::CannotRun => "NOT READY: guests cannot run here",
    }
}

fn finding(finding: &Finding) -> Vec<String> {
    let mark = match finding.weight {
        Weight::Run | Weight::Move => "  ! ",
        Weight::Cost => "  - ",
    };
    let mut lines = prose(mark, &finding.what);
    lines.extend(prose("      costs   ", &finding.cost));
    lines.extend(prose("      get it  ", &finding.remedy));
    lines
}

/// A text in lines that begin under its first word.
fn prose(label: &str, text: &str) -> Vec<String> {
    let indent = " ".repeat(label.len());
    let mut lines = Vec::new();
    let mut line = label.to_owned();
    for word in text.split_ascii_whitespace() {
        if line.len() + word.len() > COLUMNS && line.len() > label.len() {
            lines.push(line.trim_end().to_owned());
            line.clone_from(&indent);
        }
        line.push_str(word);
        line.push(' ');
    }
    lines.push(line.trim_end().to_owned());
    lines
}

fn memory_available(facts: &Facts) -> String {
    match facts.limits.memory_available {
        Some(bytes) => format!("{} MiB of memory available", bytes >> 20),
        None => "available memory unknown".to_owned(),
    }
}

fn kvm(kvm: &Kvm) -> String {
    let behind = match kvm.virtualisation {
        Virtualisation::Vmx => "by the processor (VMX, kvm_intel)",
        Virtualisation::Svm => "by the processor (SVM, kvm_amd)",
        Virtualisation::Software => "by software (kvm_pvm)",
        Virtualisation::Unknown => "by no module that we know",
    };
    let version = kvm.version.map_or(String::new(), |version| format!(", version {version}"));
    let device = access(&kvm.device);
    format!("/dev/kvm {device}{version}, {behind}; a machine: {}", access(&kvm.machine))
}

fn capabilities(kvm: &Kvm) -> Vec<String> {
    let words = kvm.capabilities.iter().map(|capability| {
        let name = capability.name.trim_start_matches("KVM_CAP_");
        match capability.value {
            ..=0 => format!("no {name}"),
            1 => name.to_owned(),
            value => format!("{name} {value}"),
        }
    });
    wrapped(words.collect())
}

fn userfaultfd(uffd: &Userfaultfd) -> Vec<String> {
    let sysctl = match uffd.unprivileged {
        Some(true) => "1: everybody may",
        Some(false) => "0: privileged users, or the device node",
        None => "not there",
    };
    let mut lines = vec![
        format!("userfaultfd  /dev/userfaultfd {}", access(&uffd.device)),
        format!("             system call {}", access(&uffd.system_call)),
        format!("             system call, user faults only, {}", access(&uffd.user_mode_only)),
        format!("             vm.unprivileged_userfaultfd {sysctl}"),
    ];
    let features = uffd.features.iter().map(|feature| {
        let no = if feature.offered { "" } else { "no " };
        format!("{no}{}", feature.name)
    });
    lines.extend(wrapped(features.collect()));
    lines
}

fn access(access: &Access) -> String {
    match access {
        Access::Usable => "usable".to_owned(),
        Access::Missing => "missing".to_owned(),
        Access::Forbidden => "forbidden".to_owned(),
        Access::Failing { reason } => format!("fails: {reason}"),
    }
}

/// Modes and operations, with a column for each kind of memory.
fn table(memory: &[Memory]) -> Vec<String> {
    let row = |name: &str, cells: Vec<String>| {
        let cells: String = cells.iter().map(|cell| format!(" {cell:<15}")).collect();
        format!("    {name:<14}{cells}").trim_end().to_owned()
    };
    let mut lines = vec![row("", memory.iter().map(|memory| memory.kind.clone()).collect())];
    for mode in ["MISSING", "WRITE_PROTECT", "MINOR"] {
        let cell = |memory: &Memory| match memory.unknown {
            Some(_) => "unknown".to_owned(),
            None if memory.modes.iter().any(|had| had == mode) => "yes".to_owned(),
            None => "no".to_owned(),
        };
        lines.push(row(mode, memory.iter().map(cell).collect()));
    }
    let names = memory.iter().find(|memory| !memory.operations.is_empty());
    for name in names.iter().flat_map(|memory| &memory.operations).map(|had| &had.name) {
        let cell = |memory: &Memory| {
            let operation = memory.operations.iter().find(|had| had.name == *name);
            operation.map_or("unknown", |operation| match (&operation.tried, operation.reported) {
                (Tried::Works, _) => "works",
                (Tried::Fails { .. }, _) => "no",
                (Tried::Untried, true) => "untried",
                (Tried::Untried, false) => "no, untried",
            })
        };
        lines.push(row(name, memory.iter().map(|memory| cell(memory).to_owned()).collect()));
    }
    let unknown = memory.iter().filter_map(|memory| {
        let reason = memory.unknown.as_ref()?;
        Some(format!("    {} memory: {reason}", memory.kind))
    });
    lines.extend(unknown);
    lines
}

/// How the pages that a guest writes while it runs can be found out.
fn writes(facts: &Facts) -> String {
    let manual = |capability: &&Capability| capability.name == "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2";
    let log = match facts.kvm.capabilities.iter().find(manual) {
        Some(Capability { value: 1.., .. }) => "by KVM's log, cleared in parts",
        Some(_) => "by KVM's log, cleared at once",
        None => "not by KVM's log",
    };
    let works = |memory: &&Memory| {
        let scans = |had: &Operation| had.name == "PAGEMAP_SCAN" && had.tried == Tried::Works;
        memory.operations.iter().any(scans)
    };
    let kinds = facts.userfaultfd.memory.iter().filter(works);
    let kinds: Vec<&str> = kinds.map(|memory| memory.kind.as_str()).collect();
    let kinds = if kinds.is_empty() { "no memory".to_owned() } else { kinds.join(", ") };
    format!("writes       followed {log};\n             by write-protection: {kinds}")
}

fn huge_pages(facts: &Facts) -> String {
    let pages = &facts.huge_pages;
    let pool = match (pages.pool_free, pages.pool_total) {
        (Some(free), Some(total)) => format!("{free} of {total} free"),
        _ => "none".to_owned(),
    };
    let setting = |setting: &Option<String>| setting.clone().unwrap_or_else(|| "none".to_owned());
    let (transparent, shared) = (setting(&pages.transparent), setting(&pages.transparent_shared));
    format!(
        "huge pages   pool of 2 MiB: {pool}; transparent: {transparent}, shared memory {shared}"
    )
}

fn limits(facts: &Facts) -> String {
    let limits = &facts.limits;
    let number =
        |limit: Option<u64>| limit.map_or("no limit".to_owned(), |limit| limit.to_string());
    format!(
        "limits       descriptors {} (up to {}), mappings {}, locked bytes {}",
        number(limits.descriptors),
        number(limits.descriptors_hard),
        number(limits.mappings),
        number(limits.locked_memory)
    )
}

/// Words in lines under the second column.
fn wrapped(words: Vec<String>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() + 2 <= COLUMNS => {
                line.push_str(", ");
                line.push_str(&word);
            }
            Some(line) => {
                line.push(',');
                lines.push(format!("    {word}"));
            }
            None => lines.push(format!("    {word}")),
        }
    }
    lines
}

const COLUMNS: usize = 99;
