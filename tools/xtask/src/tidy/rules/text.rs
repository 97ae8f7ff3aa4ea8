//! Rules for any text: characters, width, paths.

use super::super::Finding;
use super::super::mask::is_word;
use super::super::tree::{File, Tree};

/// The longest line of source, in columns.
const COLUMNS_MAX: usize = 100;

/// Endings of what is code. Prose is left to its author, and lock files to cargo.
const CODE: [&str; 5] = ["rs", "sh", "S", "yaml", "yml"];

/// Folders at the root of a file system that differ from machine to machine.
const MACHINE_FOLDERS: [&str; 5] = ["home", "root", "work", "Users", "mnt"];

pub fn is_ascii(file: &File, _: &Tree) -> Vec<Finding> {
    let wrong = |(n, line): (usize, &str)| {
        let c = line.chars().find(|c| !c.is_ascii())?;
        let code = u32::from(c);
        let message = format!("a character that is not ASCII (U+{code:04X}); write it in ASCII");
        Some(file.finding(n + 1, message))
    };
    file.text.lines().enumerate().filter_map(wrong).collect()
}

pub fn lines_are_short(file: &File, _: &Tree) -> Vec<Finding> {
    let is_code = CODE.contains(&file.ending()) || file.path.ends_with("Makefile");
    let wrong = |(n, line): (usize, &str)| {
        let columns = line.chars().count();
        let message =
            format!("{columns} columns, at most {COLUMNS_MAX} are allowed; break the line");
        (columns > COLUMNS_MAX).then(|| file.finding(n + 1, message))
    };
    file.text.lines().enumerate().filter(|_| is_code).filter_map(wrong).collect()
}

pub fn paths_are_not_of_one_machine(file: &File, _: &Tree) -> Vec<Finding> {
    let wrong = |(n, line): (usize, &str)| {
        let found = MACHINE_FOLDERS.into_iter().find(|folder| names_folder(line, folder))?;
        let message = format!(
            "`/{found}/` is a path of one machine; make it relative, or find it at run time"
        );
        Some(file.finding(n + 1, message))
    };
    file.text.lines().enumerate().filter_map(wrong).collect()
}

/// Whether `line` has an absolute path into `folder`.
fn names_folder(line: &str, folder: &str) -> bool {
    let path = format!("/{folder}/");
    line.match_indices(&path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| is_word(c) || ".-/~})]".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(rule: super::super::super::Rule, path: &str, text: &str) -> Vec<usize> {
        let tree = Tree::of(&[(path, text)]);
        rule(&tree.files[0], &tree).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn characters_beyond_ascii_are_found_in_code_and_prose() {
        let text = "plain\na long dash \u{2014}\n";
        assert_eq!(lines(is_ascii, "README.md", text), [2]);
        assert_eq!(lines(is_ascii, "uffd/src/lib.rs", text), [2]);
    }

    #[test]
    fn long_lines_are_found_in_code_only() {
        let text = format!("{}\n{}\n", "x".repeat(100), "x".repeat(101));
        assert_eq!(lines(lines_are_short, "uffd/src/lib.rs", &text), [2]);
        assert_eq!(lines(lines_are_short, "Makefile", &text), [2]);
        assert_eq!(lines(lines_are_short, "README.md", &text), [0; 0]);
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        let rule = paths_are_not_of_one_machine;
        for folder in MACHINE_FOLDERS {
            assert_eq!(lines(rule, "x.sh", &format!("cd /{folder}/me\n")), [1]);
        }
        assert_eq!(lines(rule, "x.sh", "cd ../work/me $HOME/work/me ~/work/x\n"), [0; 0]);
        assert_eq!(lines(rule, "x.md", "/usr/lib and /etc/x and https://x.org/home/x\n"), [0; 0]);
    }
}
