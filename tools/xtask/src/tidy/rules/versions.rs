//! A rule for dependencies: of each crate whose types go from hand to hand there is one version.

use std::collections::BTreeMap;

use super::super::Finding;
use super::super::tree::{File, Tree};

/// Crates of the rust-vmm project, and the one that shares userfaultfd's types.
const ONE_OF_EACH: [&str; 13] = [
    "acpi_tables",
    "event-manager",
    "kvm-bindings",
    "kvm-ioctls",
    "linux-loader",
    "userfaultfd",
    "vfio-bindings",
    "vhost",
    "virtio-bindings",
    "virtio-queue",
    "vm-memory",
    "vm-superio",
    "vmm-sys-util",
];

pub fn one_version_of_each(file: &File, _: &Tree) -> Vec<Finding> {
    if !file.path.ends_with("Cargo.lock") {
        return Vec::new();
    }
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    let mut found = Vec::new();
    for (line, name, version) in packages(&file.text) {
        if !ONE_OF_EACH.contains(&name) {
            continue;
        }
        if let Some(first) = seen.insert(name, version) {
            let message = format!(
                "{name} {first} and {version} are both in the tree; `cargo tree -i \
                 {name}@{version}` says who wants the second, pin them to one"
            );
            found.push(file.finding(line, message));
        }
    }
    found
}

/// The packages of a lock file: the line of the version (from 1), name and version.
fn packages(lock: &str) -> Vec<(usize, &str, &str)> {
    let mut name = None;
    let mut packages = Vec::new();
    for (n, line) in lock.lines().enumerate() {
        if line == "[[package]]" {
            name = None;
        } else if let Some(text) = quoted(line, "name = ") {
            name = Some(text);
        } else if let (Some(version), Some(name)) = (quoted(line, "version = "), name) {
            packages.push((n + 1, name, version));
        }
    }
    packages
}

fn quoted<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.strip_prefix(key)?.strip_prefix('"')?.strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(packages: &[(&str, &str)]) -> String {
        let entry = |(name, version): &(&str, &str)| {
            format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\nsource = \"x\"\n\n")
        };
        "version = 4\n\n".to_owned() + &packages.iter().map(entry).collect::<String>()
    }

    #[test]
    fn a_second_version_is_found_with_both_numbers() {
        let text = lock(&[("syn", "1.0.0"), ("vm-memory", "0.16.0"), ("vm-memory", "0.18.0")]);
        let tree = Tree::of(&[("Cargo.lock", &text)]);
        let found = one_version_of_each(&tree.files[0], &tree);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].line, 15);
        assert!(found[0].message.contains("vm-memory 0.16.0 and 0.18.0"), "{found:?}");
    }

    #[test]
    fn other_crates_may_have_many_versions() {
        let text = lock(&[("syn", "1.0.0"), ("syn", "2.0.0"), ("vm-memory", "0.18.0")]);
        let tree = Tree::of(&[("guest-images/bare/Cargo.lock", &text)]);
        assert_eq!(one_version_of_each(&tree.files[0], &tree), []);
    }
}
