//! Hosts that are made up, and what the doctor says of them.

use super::facts::*;
use super::findings::Weight;
use super::*;

const OPERATIONS: [&str; 8] =
    ["WAKE", "COPY", "ZEROPAGE", "MOVE", "WRITEPROTECT", "CONTINUE", "POISON", "PAGEMAP_SCAN"];
const FEATURES: [&str; 5] =
    ["EVENT_REMOVE", "THREAD_ID", "EXACT_ADDRESS", "WP_UNPOPULATED", "WP_ASYNC"];
const CAPABILITIES: [&str; 4] = [
    "KVM_CAP_SYNC_MMU",
    "KVM_CAP_TSC_CONTROL",
    "KVM_CAP_XSAVE2",
    "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
];

fn memory(kind: &str) -> Memory {
    let operation =
        |name: &str| Operation { name: name.to_owned(), reported: true, tried: Tried::Works };
    Memory {
        kind: kind.to_owned(),
        unknown: None,
        modes: vec!["MISSING".to_owned(), "WRITE_PROTECT".to_owned()],
        operations: OPERATIONS.map(operation).into(),
    }
}

/// A host that lacks nothing.
fn perfect() -> Facts {
    let capability = |name: &str| Capability { name: name.to_owned(), value: 1 };
    let feature = |name: &str| Feature { name: name.to_owned(), offered: true };
    Facts {
        kernel: "6.18.0".to_owned(),
        kvm: Kvm {
            device: Access::Usable,
            version: Some(12),
            machine: Access::Usable,
            virtualisation: Virtualisation::Vmx,
            processor_has_it: true,
            capabilities: CAPABILITIES.map(capability).into(),
        },
        userfaultfd: Userfaultfd {
            device: Access::Usable,
            system_call: Access::Usable,
            user_mode_only: Access::Usable,
            unprivileged: Some(false),
            features: FEATURES.map(feature).into(),
            memory: ["anonymous", "memfd", "hugetlb", "hugetlb memfd"].map(memory).into(),
        },
        huge_pages: HugePages {
            pool_total: Some(16),
            pool_free: Some(16),
            transparent: Some("madvise".to_owned()),
            transparent_shared: Some("never".to_owned()),
        },
        limits: Limits {
            memory_available: Some(16 << 30),
            locked_memory: None,
            descriptors: Some(1024),
            descriptors_hard: None,
            mappings: Some(65530),
        },
    }
}

fn without(change: impl FnOnce(&mut Facts)) -> Report {
    let mut facts = perfect();
    change(&mut facts);
    Report::of(facts)
}

/// The report has exactly one finding, of this weight and with these words.
fn one(report: &Report, weight: Weight, words: [&str; 3]) {
    let [finding] = &report.findings[..] else { panic!("{:?}", report.findings) };
    assert_eq!(finding.weight, weight, "{finding:?}");
    let [what, cost, remedy] = words;
    assert!(finding.what.contains(what), "{finding:?}");
    assert!(finding.cost.contains(cost), "{finding:?}");
    assert!(finding.remedy.contains(remedy), "{finding:?}");
}

#[test]
fn a_host_that_lacks_nothing_has_no_findings() {
    let report = Report::of(perfect());
    assert_eq!(report.findings, []);
    assert_eq!((report.verdict, report.exit_code()), (Verdict::Ready, 0));
    let text = text::text(&report);
    assert!(text.ends_with("\nREADY: guests can run here, leave and come\n"), "{text}");
    assert!(!text.contains("what is missing"), "{text}");
}

#[test]
fn without_kvm_no_guest_runs() {
    let report = without(|facts| facts.kvm.device = Access::Missing);
    one(&report, Weight::Run, ["no /dev/kvm", "no guest can run", "modprobe"]);
    assert_eq!((report.verdict, report.exit_code()), (Verdict::CannotRun, CANNOT_RUN));
    let report = without(|facts| {
        facts.kvm.device = Access::Missing;
        facts.kvm.processor_has_it = false;
    });
    one(&report, Weight::Run, ["no /dev/kvm", "no guest can run", "firmware"]);
    let report = without(|facts| facts.kvm.device = Access::Forbidden);
    one(&report, Weight::Run, ["may not open", "no guest can run", "setfacl"]);
    let reason = "KVM_CREATE_VM failed".to_owned();
    let report = without(|facts| facts.kvm.machine = Access::Failing { reason });
    one(&report, Weight::Run, ["KVM_CREATE_VM failed", "no guest can run", "dmesg"]);
}

#[test]
fn one_door_to_userfaultfd_is_enough() {
    for access in [Access::Forbidden, Access::Missing] {
        let report = without(|facts| facts.userfaultfd.system_call = access.clone());
        assert_eq!(report.verdict, Verdict::Ready, "{access:?}");
        assert_eq!(report.findings, []);
    }
    let report = without(|facts| facts.userfaultfd.device = Access::Missing);
    assert_eq!(report.verdict, Verdict::Ready);
    one(&report, Weight::Cost, ["/dev/userfaultfd", "not to one user", "6.1"]);
}

#[test]
fn without_userfaultfd_for_the_kernels_faults_no_guest_comes() {
    let both = |facts: &mut Facts, access: Access| {
        facts.userfaultfd.device = access.clone();
        facts.userfaultfd.system_call = access;
    };
    let report = without(|facts| both(facts, Access::Forbidden));
    one(&report, Weight::Move, ["may not handle", "no guest can come", "setfacl"]);
    one(&report, Weight::Move, ["", "", "vm.unprivileged_userfaultfd=1"]);
    assert_eq!((report.verdict, report.exit_code()), (Verdict::CannotReceive, CANNOT_RECEIVE));
    let report = without(|facts| both(facts, Access::Missing));
    one(&report, Weight::Move, ["no userfaultfd", "no guest can come", "CONFIG_USERFAULTFD"]);
}

#[test]
fn software_virtualisation_is_told_with_its_price() {
    let report = without(|facts| facts.kvm.virtualisation = Virtualisation::Software);
    one(&report, Weight::Cost, ["kvm_pvm", "interpreted", "VMX or SVM"]);
    assert_eq!(report.verdict, Verdict::Ready);
}

#[test]
fn each_operation_that_is_lacking_says_what_stands_in_for_it() {
    for (name, cost, remedy) in [
        ("MOVE", "allocated", "6.8"),
        ("POISON", "marked", "6.6"),
        ("WRITEPROTECT", "live", "5.7"),
        ("PAGEMAP_SCAN", "KVM's log", "6.7"),
    ] {
        let report = without(|facts| {
            let operations = &mut facts.userfaultfd.memory[0].operations;
            let operation = operations.iter_mut().find(|had| had.name == name).unwrap();
            operation.tried = Tried::Fails { reason: "Invalid argument".to_owned() };
        });
        one(&report, Weight::Cost, [name, cost, remedy]);
    }
}

#[test]
fn the_ways_to_follow_writes_are_told() {
    // A paragraph: its first line, and those that are indented behind it.
    let line = |report: &Report| {
        let text = text::text(report);
        let mut lines = text.lines().skip_while(|line| !line.starts_with("writes "));
        let first = lines.next().unwrap();
        let rest = lines.take_while(|line| line.starts_with(' ')).map(str::trim);
        [first].into_iter().chain(rest).collect::<Vec<_>>().join(" ")
    };
    let all = line(&Report::of(perfect()));
    assert!(all.contains("KVM's log, cleared in parts"), "{all}");
    assert!(all.contains("write-protection: anonymous, memfd, hugetlb"), "{all}");
    let report = without(|facts| {
        facts.kvm.capabilities[3].value = 0;
        for memory in &mut facts.userfaultfd.memory {
            memory.operations[7].tried = Tried::Fails { reason: "Not supported".to_owned() };
        }
    });
    let none = line(&report);
    assert!(none.contains("cleared at once; by write-protection: no memory"), "{none}");
    let costs: Vec<_> = report.findings.iter().map(|finding| finding.cost.as_str()).collect();
    assert!(costs.iter().any(|cost| cost.contains("held up longer")), "{costs:?}");
    assert_eq!(costs.iter().filter(|cost| cost.contains("KVM's log tells")).count(), 2);
}

#[test]
fn what_is_not_in_the_nature_of_memory_is_not_missing() {
    let report = without(|facts| {
        let reason = "Invalid argument".to_owned();
        facts.userfaultfd.memory[0].operations[5].tried = Tried::Fails { reason: reason.clone() };
        facts.userfaultfd.memory[1].operations[3].tried = Tried::Fails { reason };
        for hugetlb in [2, 3] {
            facts.userfaultfd.memory[hugetlb].operations[2].tried = Tried::Untried;
        }
    });
    assert_eq!(report.findings, []);
    let text = text::text(&report);
    let row = |name: &str| text.lines().find(|line| line.trim_start().starts_with(name));
    let words = |name| row(name).unwrap().split_ascii_whitespace().collect::<Vec<_>>();
    assert_eq!(words("CONTINUE"), ["CONTINUE", "no", "works", "works", "works"]);
    assert_eq!(words("MOVE"), ["MOVE", "works", "no", "works", "works"]);
    assert_eq!(words("ZEROPAGE"), ["ZEROPAGE", "works", "works", "untried", "untried"]);
}

#[test]
fn memory_that_cannot_be_had_is_unknown_and_says_why() {
    let report = without(|facts| {
        facts.userfaultfd.memory[2] = Memory {
            unknown: Some("no hugetlb memory to try userfaultfd on".to_owned()),
            modes: Vec::new(),
            operations: Vec::new(),
            ..memory("hugetlb")
        };
    });
    assert_eq!(report.findings, []);
    let text = text::text(&report);
    assert!(text.contains("unknown") && text.contains("no hugetlb memory to try"), "{text}");
}

#[test]
fn a_host_that_cannot_try_what_guests_are_made_of_is_not_ready() {
    let report = without(|facts| {
        let anonymous = &mut facts.userfaultfd.memory[0];
        anonymous.unknown = Some("Cannot allocate memory".to_owned());
        anonymous.operations.clear();
    });
    one(&report, Weight::Move, ["Cannot allocate memory", "no guest can come", ""]);
    assert_eq!(report.exit_code(), 3);
    let report = without(|facts| facts.userfaultfd.memory[0].modes.clear());
    one(&report, Weight::Move, ["no missing pages", "no guest can come", ""]);
}

#[test]
fn tight_limits_and_small_pages_cost_something() {
    let report = without(|facts| facts.limits.memory_available = Some(512 << 20));
    one(&report, Weight::Cost, ["512 MiB", "twice", "--memory 256M"]);
    let report = without(|facts| facts.limits.descriptors = Some(64));
    one(&report, Weight::Cost, ["64 descriptors", "vCPU", "ulimit"]);
    let report = without(|facts| facts.limits.mappings = Some(100));
    one(&report, Weight::Cost, ["100 mappings", "part", "max_map_count"]);
    let report = without(|facts| facts.huge_pages.transparent = Some("never".to_owned()));
    one(&report, Weight::Cost, ["no huge pages", "page faults", "madvise"]);
    let report = without(|facts| facts.huge_pages.pool_free = Some(0));
    one(&report, Weight::Cost, ["pool", "cannot be tried", "nr_hugepages"]);
    assert_eq!(report.exit_code(), 0);
}

#[test]
fn what_matters_most_comes_first() {
    let report = without(|facts| {
        facts.userfaultfd.features[1].offered = false;
        facts.kvm.capabilities[0].value = 0;
        facts.kvm.capabilities[1].value = 0;
    });
    let weights: Vec<_> = report.findings.iter().map(|finding| finding.weight).collect();
    assert_eq!(weights, [Weight::Move, Weight::Cost, Weight::Cost]);
    assert!(report.findings[0].what.contains("KVM_CAP_SYNC_MMU"));
    let text = text::text(&report);
    assert!(text.contains("no SYNC_MMU") && text.contains("no THREAD_ID"), "{text}");
    assert!(text.contains("  ! KVM lacks KVM_CAP_SYNC_MMU\n      costs   "), "{text}");
}

#[test]
fn lines_fit_a_terminal() {
    let poor = without(|facts| {
        facts.kvm.virtualisation = Virtualisation::Software;
        facts.userfaultfd.device = Access::Forbidden;
        facts.userfaultfd.system_call = Access::Forbidden;
        facts.huge_pages.pool_free = None;
    });
    for report in [Report::of(perfect()), poor] {
        let text = text::text(&report);
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    }
}

#[test]
fn the_json_has_verdict_findings_and_facts() {
    let report = without(|facts| facts.kvm.device = Access::Missing);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["verdict"], "cannot-run");
    assert_eq!(json["findings"][0]["weight"], "run");
    assert_eq!(json["facts"]["kvm"]["device"]["state"], "missing");
    assert_eq!(json["facts"]["userfaultfd"]["memory"][0]["kind"], "anonymous");
    let operation = &json["facts"]["userfaultfd"]["memory"][0]["operations"][1];
    assert_eq!(
        (&operation["name"], &operation["tried"]["result"]),
        (&"COPY".into(), &"works".into())
    );
}
