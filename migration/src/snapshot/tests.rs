//! Snapshots on a real disk: written, read, damaged.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use godwit_uffd::page::{PageIndex, PageRun};
use tempfile::TempDir;
use uuid::Uuid;

use super::manifest::VERSION;
use super::*;
use crate::wire::{MemslotLayout, Section};

const PAGES: u32 = 200;

fn run(first: u32, count: u32) -> PageRun {
    PageRun { first: PageIndex(first), count }
}

fn facts() -> Facts {
    Facts {
        guest: Uuid::from_u128(7),
        generation: 3,
        created_unix_s: 1_800_000_000,
        memslots: vec![
            MemslotLayout { gpa: 0, bytes: 150 * 4096 },
            MemslotLayout { gpa: 1 << 32, bytes: 50 * 4096 },
        ],
        machine: serde_json::json!({ "cpus": 2, "devices": ["serial"] }),
    }
}

fn sections() -> Vec<Section> {
    let section = |id, bytes| Section { id, version: 1, bytes };
    vec![section(1, vec![5; 300]), section(4, Vec::new()), section(0x8001, vec![9; 17])]
}

/// Pages 3, 4 and 149 to 151 have contents; page 6 is lost.
fn write(target: &Path) -> Manifest {
    let mut writer = Writer::create(target, PAGES).unwrap();
    let mut contents = vec![0; 6 * 4096];
    contents[3 * 4096] = 1;
    contents[5 * 4096 - 1] = 2;
    writer.add(run(0, 6), &contents).unwrap();
    writer.add_lost(PageIndex(6));
    writer.add(run(149, 3), &[7; 3 * 4096]).unwrap();
    writer.finish(facts(), &sections()).unwrap()
}

struct Taken {
    folder: TempDir,
}

impl Taken {
    fn new() -> Taken {
        let folder = TempDir::new().unwrap();
        write(&folder.path().join("s"));
        Taken { folder }
    }

    fn dir(&self) -> std::path::PathBuf {
        self.folder.path().join("s")
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir().join(name)
    }

    /// What opening it says after `change` of a file.
    fn refused_after(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> SnapshotError {
        let whole = fs::read(self.file(name)).unwrap();
        let mut bytes = whole.clone();
        change(&mut bytes);
        fs::write(self.file(name), bytes).unwrap();
        let refused = Snapshot::open(&self.dir()).unwrap_err();
        fs::write(self.file(name), whole).unwrap();
        refused
    }
}

#[test]
fn what_was_written_is_read() {
    let taken = Taken::new();
    let snapshot = Snapshot::open(&taken.dir()).unwrap();
    assert_eq!((snapshot.manifest.facts, snapshot.sections), (facts(), sections()));
    let image = snapshot.image;
    let mut at = run(0, PAGES);
    let mut stretches = Vec::new();
    while at.count > 0 {
        let stretch = image.stretch(at);
        at = at.without(stretch.run().count);
        stretches.push(stretch);
    }
    use Stretch::{Data, Lost, Zero};
    let expected =
        [Zero(run(0, 3)), Data(run(3, 2)), Zero(run(5, 1)), Lost(run(6, 1)), Zero(run(7, 142))];
    assert_eq!(stretches[..5], expected);
    assert_eq!(stretches[5..], [Data(run(149, 3)), Zero(run(152, 48))]);
    let mut pages = vec![0; 2 * 4096];
    image.read(run(3, 2), &mut pages).unwrap();
    assert_eq!((pages[0], pages[8191]), (1, 2));
    assert!(image.matches(PageIndex(3), &pages[..4096]));
    assert!(!image.matches(PageIndex(4), &pages[..4096]));
}

#[test]
fn files_are_private_and_zero_pages_take_no_room() {
    let taken = Taken::new();
    for name in FILES {
        let mode = fs::metadata(taken.file(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert_eq!(fs::metadata(taken.dir()).unwrap().permissions().mode() & 0o777, 0o700);
    let memory = fs::metadata(taken.file(MEMORY_FILE)).unwrap();
    assert_eq!(memory.len(), u64::from(PAGES) * 4096);
    assert!(memory.blocks() * 512 <= 16 * 4096, "{} blocks", memory.blocks());
}

#[test]
fn the_manifest_is_json_for_other_tools() {
    let taken = Taken::new();
    let text = fs::read_to_string(taken.file(MANIFEST_FILE)).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["format"], "godwit-snapshot");
    assert_eq!(json["machine"]["cpus"], 2);
    assert_eq!(json["memslots"][1]["gpa"], 1u64 << 32);
    assert_eq!(json["crc32c"].as_str().unwrap().len(), 8);
}

/// Every byte of the manifest and of the state counts, and so do those of the page table.
#[test]
fn a_changed_byte_is_found_wherever_it_is() {
    let taken = Taken::new();
    for name in [MANIFEST_FILE, STATE_FILE, PAGES_FILE] {
        let length = fs::metadata(taken.file(name)).unwrap().len();
        // All of what is not a list of checksums.
        let step = |at| if name == PAGES_FILE && at > 120 { 41 } else { 1 };
        let next = |at: &usize| Some(at + step(*at));
        let length = usize::try_from(length).unwrap();
        for at in std::iter::successors(Some(0), next).take_while(|at| *at < length) {
            let error = taken.refused_after(name, |bytes| bytes[at] ^= 0x20);
            let damaged = matches!(error, SnapshotError::Damaged { .. });
            let other = matches!(error, SnapshotError::NotASnapshot { .. });
            assert!(damaged || other && name == MANIFEST_FILE, "{name} at {at}: {error}");
        }
    }
    Snapshot::open(&taken.dir()).unwrap();
}

#[test]
fn a_file_of_another_length_is_refused() {
    let taken = Taken::new();
    for name in FILES {
        for change in [
            |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 1),
            |bytes: &mut Vec<u8>| bytes.push(0),
        ] {
            let error = taken.refused_after(name, change);
            let manifest = name == MANIFEST_FILE;
            let expected = matches!(error, SnapshotError::Damaged { .. });
            assert!(expected || manifest, "{name}: {error}");
        }
        let error = taken.refused_after(name, Vec::clear);
        assert!(!matches!(error, SnapshotError::Io { .. }), "{name}: {error}");
    }
}

#[test]
fn a_file_of_another_snapshot_is_refused() {
    let (taken, other) = (Taken::new(), Taken::new());
    for name in [STATE_FILE, PAGES_FILE] {
        let foreign = fs::read(other.file(name)).unwrap();
        let error = taken.refused_after(name, |bytes| *bytes = foreign);
        assert!(matches!(error, SnapshotError::Foreign { .. }), "{name}: {error}");
    }
}

/// The manifest with `from` replaced by `to`, and a checksum that is right again.
fn forged(bytes: &mut Vec<u8>, from: &str, to: &str) {
    let text = String::from_utf8(std::mem::take(bytes)).unwrap();
    let (body, _) = text.rsplit_once(",\n  \"crc32c\"").unwrap();
    let body = body.replacen(from, to, 1);
    assert!(!text.starts_with(&body), "{from} is not there");
    let crc = crc32c::crc32c(body.as_bytes());
    *bytes = format!("{body},\n  \"crc32c\": \"{crc:08x}\"\n}}\n").into_bytes();
}

#[test]
fn a_newer_snapshot_is_told_from_a_damaged_one() {
    let taken = Taken::new();
    let error = taken.refused_after(MANIFEST_FILE, |bytes| {
        forged(bytes, "\"version\": 1", "\"version\": 2, \"since_version_2\": true");
    });
    let SnapshotError::Newer { version, known, .. } = error else { panic!("{error}") };
    assert_eq!((version, known), (2, VERSION));
    for name in [STATE_FILE, PAGES_FILE] {
        let error = taken.refused_after(name, |bytes| {
            bytes[8] = 2;
            // Behind the fields that both begin with and eight bytes more.
            let crc = crc32c::crc32c(&bytes[..40]).to_le_bytes();
            bytes[40..44].copy_from_slice(&crc);
        });
        assert!(matches!(error, SnapshotError::Newer { version: 2, .. }), "{name}: {error}");
    }
}

#[test]
fn numbers_that_cannot_be_are_refused_though_their_checksum_is_right() {
    let taken = Taken::new();
    let forgeries = [
        ("\"version\": 1", "\"version\": 0"),
        ("\"page_bytes\": 4096", "\"page_bytes\": 4095"),
        ("\"gpa\": 4294967296", "\"gpa\": 4096"),
        ("\"bytes\": 614400", "\"bytes\": 614401"),
        ("\"bytes\": 614400", "\"bytes\": 0"),
        ("\"memory\": 819200", "\"memory\": 819201"),
        ("\"pages\": ", "\"pages\": 1"),
        ("\"state\": ", "\"state\": 1"),
        ("\"guest\": \"0", "\"guest\": \"x"),
        ("\"generation\": 3", "\"generation\": -3"),
        ("\"created_unix_s\": ", "\"other\": "),
    ];
    for (from, to) in forgeries {
        let error = taken.refused_after(MANIFEST_FILE, |bytes| forged(bytes, from, to));
        assert!(matches!(error, SnapshotError::Damaged { .. }), "{to}: {error}");
    }
    let error = taken.refused_after(MANIFEST_FILE, |bytes| {
        forged(bytes, "godwit-snapshot", "other-snapshot");
    });
    assert!(matches!(error, SnapshotError::NotASnapshot { .. }), "{error}");
}

#[test]
fn what_is_not_a_snapshot_is_called_so() {
    let folder = TempDir::new().unwrap();
    let error = Snapshot::open(folder.path()).unwrap_err();
    assert!(matches!(error, SnapshotError::NotASnapshot { .. }), "{error}");
    let error = Snapshot::open(&folder.path().join("none")).unwrap_err();
    assert!(matches!(error, SnapshotError::Io { .. }), "{error}");
    fs::write(folder.path().join(MANIFEST_FILE), "{}").unwrap();
    let error = Snapshot::open(folder.path()).unwrap_err();
    assert!(matches!(error, SnapshotError::NotASnapshot { .. }), "{error}");
}

#[test]
fn an_interrupted_one_is_no_snapshot_and_in_nobodys_way() {
    let folder = TempDir::new().unwrap();
    let (target, partial) = (folder.path().join("s"), folder.path().join("s.partial"));
    let mut writer = Writer::create(&target, PAGES).unwrap();
    writer.add(run(0, 1), &[1; 4096]).unwrap();
    let error = Writer::create(&target, PAGES).unwrap_err();
    assert!(matches!(error, SnapshotError::Busy { .. }), "{error}");
    for dir in [&target, &partial] {
        let error = Snapshot::open(dir).unwrap_err();
        assert!(matches!(error, SnapshotError::Interrupted { .. }), "{error}");
    }
    drop(writer);
    assert!(!partial.exists(), "a writer that gives up leaves nothing");

    // As after the death of a process: nobody holds the lock, and files are there.
    fs::create_dir(&partial).unwrap();
    for name in [MEMORY_FILE, STATE_FILE] {
        fs::write(partial.join(name), "left over").unwrap();
    }
    write(&target);
    Snapshot::open(&target).unwrap();
    assert!(!partial.exists());
}

#[test]
fn nothing_is_overwritten() {
    let taken = Taken::new();
    let error = Writer::create(&taken.dir(), PAGES).unwrap_err();
    assert!(matches!(error, SnapshotError::Exists { .. }), "{error}");
    let other = taken.folder.path().join("other");
    let writer = Writer::create(&other, PAGES).unwrap();
    fs::create_dir(&other).unwrap();
    let error = writer.finish(facts(), &sections()).unwrap_err();
    assert!(matches!(error, SnapshotError::Exists { .. }), "{error}");
    assert_eq!(fs::read_dir(&other).unwrap().count(), 0);
}

#[test]
fn a_page_that_changed_on_the_disk_is_found_when_it_is_read() {
    let taken = Taken::new();
    let mut memory = fs::read(taken.file(MEMORY_FILE)).unwrap();
    memory[150 * 4096 + 9] ^= 1;
    fs::write(taken.file(MEMORY_FILE), memory).unwrap();
    let image = Snapshot::open(&taken.dir()).unwrap().image;
    let mut pages = vec![0; 3 * 4096];
    image.read(run(149, 3), &mut pages).unwrap();
    let right = pages.chunks(4096).zip(149..).map(|(b, page)| image.matches(PageIndex(page), b));
    assert_eq!(right.collect::<Vec<_>>(), [true, false, true]);
}

/// Pages with contents, one of zeros, one that is lost and one that is damaged.
fn recorded(taken: &Taken) -> (std::path::PathBuf, Snapshot, u32) {
    let path = taken.folder.path().join("set");
    let snapshot = Snapshot::open(&taken.dir()).unwrap();
    let touched = [150, 3, 9, 6, 149, 4].map(PageIndex);
    let pages = WorkingSet::write(&path, snapshot.manifest.id, &snapshot.image, &touched).unwrap();
    (path, snapshot, pages)
}

#[test]
fn a_working_set_has_the_pages_that_can_be_vouched_for_with_their_contents() {
    let taken = Taken::new();
    let mut memory = fs::read(taken.file(MEMORY_FILE)).unwrap();
    memory[4 * 4096] ^= 1;
    fs::write(taken.file(MEMORY_FILE), memory).unwrap();
    let (path, Snapshot { manifest, image, .. }, pages) = recorded(&taken);
    let set = WorkingSet::open(&path, manifest.id, &image).unwrap();
    assert_eq!((pages, set.pages()), (4, &[3, 9, 149, 150].map(PageIndex)[..]));
    let mut contents = vec![0; 2 * 4096];
    set.read(1, &mut contents).unwrap();
    assert_eq!(contents, [7; 2 * 4096]);
    set.read(0, &mut contents[..4096]).unwrap();
    assert!(image.matches(PageIndex(3), &contents[..4096]));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_working_set_that_is_not_this_snapshots_or_not_whole_is_refused() {
    let (taken, other) = (Taken::new(), Taken::new());
    let (path, Snapshot { manifest, image, .. }, _) = recorded(&taken);
    let id = manifest.id;
    let theirs = Snapshot::open(&other.dir()).unwrap();
    let error = WorkingSet::open(&path, theirs.manifest.id, &theirs.image).unwrap_err();
    assert!(matches!(error, SnapshotError::Foreign { .. }), "{error}");

    let whole = fs::read(&path).unwrap();
    // The head and the list; the contents are verified when they are read.
    for at in 0..44 + 5 * 4 {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        fs::write(&path, bytes).unwrap();
        let error = WorkingSet::open(&path, id, &image).unwrap_err();
        assert!(matches!(error, SnapshotError::Damaged { .. }), "at {at}: {error}");
    }
    for length in [0, 43, 60, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = WorkingSet::open(&path, id, &image).unwrap_err();
        assert!(matches!(error, SnapshotError::Damaged { .. }), "{length} bytes: {error}");
    }
    // Forged, with checksums that are right: pages of 2 MiB, a page twice, a page too many.
    let forge = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        let list = crc32c::crc32c(&bytes[44..44 + 5 * 4]).to_le_bytes();
        bytes[36..40].copy_from_slice(&list);
        let head = crc32c::crc32c(&bytes[..40]).to_le_bytes();
        bytes[40..44].copy_from_slice(&head);
        fs::write(&path, bytes).unwrap();
        WorkingSet::open(&path, id, &image).unwrap_err().to_string()
    };
    let said = [
        (forge(&|bytes| bytes[34] = 0x20), "pages of another size"),
        (forge(&|bytes| bytes.copy_within(44..48, 48)), "a page twice"),
        (forge(&|bytes| bytes[45] = 1), "a page that the guest does not have"),
        (forge(&|bytes| bytes[15] = 0x80), "more pages than can be recorded"),
        (forge(&|bytes| bytes[8] = 2), "newer godwit"),
    ];
    for (error, why) in said {
        assert!(error.contains(why), "{error}: not {why}");
    }
}
