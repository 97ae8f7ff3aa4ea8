//! The rules of STYLE.md that a machine can check. Each says where it was broken and how to mend
//! it.
//!
//! Rust is not parsed but scanned: strings and comments are blanked ([`mask`]), and rules look at
//! words and braces. That is enough for what they ask, quick, and needs no dependency.

mod mask;
mod rules;
mod rust;
mod tree;

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use tree::{File, Tree};

/// One place that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    /// Counted from 1.
    line: usize,
    /// What is wrong and how to mend it.
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// A rule looks at one file, and at others if it must.
type Rule = fn(&File, &Tree) -> Vec<Finding>;

const RULES: [Rule; 11] = [
    rules::text::is_ascii,
    rules::text::lines_are_short,
    rules::text::paths_are_not_of_one_machine,
    rules::length::files_are_short,
    rules::length::functions_are_short,
    rules::module_doc::file_begins_with_its_doc,
    rules::placeholder::nothing_is_left_open,
    rules::unsafety::unsafe_is_where_it_may_be,
    rules::unsafety::unsafe_says_why,
    rules::layer::imports_point_down,
    rules::versions::one_version_of_each,
];

/// Checks all files below `root` and prints what it finds.
pub fn run(root: &Path) -> ExitCode {
    let tree = match Tree::read(root) {
        Ok(tree) => tree,
        Err(error) => {
            eprintln!("tidy: {error}");
            return ExitCode::from(2);
        }
    };
    let findings = check(&tree);
    for finding in &findings {
        eprintln!("{finding}");
    }
    let files = tree.files.len();
    if findings.is_empty() {
        println!("tidy: {files} files, nothing to mend");
        return ExitCode::SUCCESS;
    }
    eprintln!("tidy: {files} files, {} places to mend", findings.len());
    ExitCode::FAILURE
}

fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        tree.files.iter().flat_map(|file| RULES.iter().flat_map(|rule| rule(file, tree))).collect();
    findings.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_file_and_line() {
        let text = "//! A module.\n\nfn f() { todo!() }\n";
        let tree = Tree::of(&[("uffd/src/x.rs", text)]);
        let findings: Vec<_> = check(&tree).iter().map(Finding::to_string).collect();
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].starts_with("uffd/src/x.rs:3: `todo!`"), "{findings:?}");
    }
}
