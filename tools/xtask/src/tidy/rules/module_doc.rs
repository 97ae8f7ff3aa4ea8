//! A rule for the first line: what the file is for.

use super::super::Finding;
use super::super::tree::{File, Tree};

pub fn file_begins_with_its_doc(file: &File, _: &Tree) -> Vec<Finding> {
    if file.rust.is_none() || file.text.starts_with("//! ") {
        return Vec::new();
    }
    let message = "a file begins with its module doc; say in one `//!` line what it is for";
    vec![file.finding(1, message.to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_doc_is_found() {
        let tree = Tree::of(&[("a.rs", "use x;\n"), ("b.rs", "//! B.\n"), ("c.md", "x\n")]);
        let found: Vec<_> =
            tree.files.iter().flat_map(|file| file_begins_with_its_doc(file, &tree)).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, "a.rs");
    }
}
