//! The files that rules look at.

use std::fs;
use std::io;
use std::path::Path;

use super::Finding;
use super::rust::Rust;

/// Folders that hold nothing of ours, wherever they are.
const SKIPPED: [&str; 3] = ["target", ".git", "out"];

/// Names without an ending that are text of ours.
const PLAIN: [&str; 4] = ["Makefile", "run", "LICENSE-APACHE", "LICENSE-BSD-3-CLAUSE"];

/// Endings of files that are text of ours.
const ENDINGS: [&str; 12] =
    ["rs", "md", "toml", "lock", "sh", "yaml", "yml", "S", "ld", "txt", "json", "py"];

/// A file of text.
#[derive(Debug)]
pub struct File {
    /// From the root, with `/`.
    pub path: String,
    pub text: String,
    /// For Rust, what the scanner made of it.
    pub rust: Option<Rust>,
}

impl File {
    pub fn new(path: &str, text: &str) -> File {
        let rust = path.ends_with(".rs").then(|| Rust::scan(text));
        File { path: path.to_owned(), text: text.to_owned(), rust }
    }

    /// A finding at `line`, counted from 1.
    pub fn finding(&self, line: usize, message: String) -> Finding {
        Finding { path: self.path.clone(), line, message }
    }

    /// The part of the path behind the last point; empty if there is none.
    pub fn ending(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or(&self.path);
        name.rsplit_once('.').map_or("", |(_, ending)| ending)
    }

    /// Whether the whole file is tests: `tests.rs`, what lies in a folder `tests` of a crate's
    /// sources, and the integration suite.
    pub fn is_test(&self) -> bool {
        let of_crate = self.path.split_once("/src/").map_or("", |(_, rest)| rest);
        of_crate.split('/').any(|part| part == "tests" || part == "tests.rs")
            || self.path.starts_with("tests/integration/suite/")
            || self.path.split('/').nth(1) == Some("tests")
    }
}

/// All files of the repository.
#[derive(Debug)]
pub struct Tree {
    pub files: Vec<File>,
}

impl Tree {
    /// Reads all text below `root`.
    pub fn read(root: &Path) -> io::Result<Tree> {
        let mut tree = Tree { files: Vec::new() };
        tree.read_folder(root, "")?;
        tree.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(tree)
    }

    fn read_folder(&mut self, folder: &Path, prefix: &str) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{prefix}{name}");
            let kind = entry.file_type()?;
            if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
                self.read_folder(&entry.path(), &format!("{path}/"))?;
            } else if kind.is_file() && is_text(&name) {
                let bytes = fs::read(entry.path())?;
                // What is not UTF-8 is not ASCII either, and the rule says so with its line.
                self.files.push(File::new(&path, &String::from_utf8_lossy(&bytes)));
            }
        }
        Ok(())
    }

    /// The file at `path`, if there is one.
    pub fn get(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    /// A tree of these files, for tests.
    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Tree {
        Tree { files: files.iter().map(|(path, text)| File::new(path, text)).collect() }
    }
}

fn is_text(name: &str) -> bool {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending);
    PLAIN.contains(&name) || ending.is_some_and(|ending| ENDINGS.contains(&ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_files_are_known_by_their_place() {
        let is_test = |path| File::new(path, "").is_test();
        assert!(is_test("uffd/src/kernel/tests.rs"));
        assert!(is_test("vmm/src/api/tests/server.rs"));
        assert!(is_test("uffd/tests/conformance.rs"));
        assert!(is_test("tests/integration/suite/main.rs"));
        assert!(!is_test("tests/integration/src/lib.rs"));
        assert!(!is_test("uffd/src/kernel/mod.rs"));
    }

    #[test]
    fn a_tree_has_its_text_files_and_not_what_was_built() {
        let root = std::env::temp_dir().join(format!("godwit-tidy-{}", std::process::id()));
        for folder in ["a/src", "target/debug"] {
            fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        for file in ["a/src/lib.rs", "Makefile", "target/debug/x.rs", "a/image.bin"] {
            fs::write(root.join(file), "//! x\n").expect("a file");
        }
        let tree = Tree::read(&root).expect("a tree");
        fs::remove_dir_all(&root).expect("removed");
        let paths: Vec<_> = tree.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["Makefile", "a/src/lib.rs"]);
    }
}
