//! A rule against what was left open.

use super::super::Finding;
use super::super::tree::{File, Tree};

/// Macros that mark unfinished work, with what to do instead.
const PLACEHOLDERS: [(&str, &str); 3] = [
    ("todo", "finish it, or leave the path out until it is finished"),
    ("unimplemented", "finish it, or return an error that names what is not supported"),
    ("dbg", "remove it, or log with `tracing`"),
];

pub fn nothing_is_left_open(file: &File, _: &Tree) -> Vec<Finding> {
    let Some(rust) = &file.rust else { return Vec::new() };
    let mut found = Vec::new();
    for (name, advice) in PLACEHOLDERS {
        for (line, at) in rust.places(name) {
            if rust.lines[line].code[at + name.len()..].starts_with('!') {
                found.push(file.finding(line + 1, format!("`{name}!` is left here; {advice}")));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_found_in_code_and_not_in_text() {
        let text = "\
//! No todo!() here.
fn a() { todo!() }
fn b() { unimplemented!(\"x\") }
fn c() { dbg!(1); not_todo!(); let todo = \"dbg!\"; }
";
        let tree = Tree::of(&[("uffd/src/x.rs", text)]);
        let found = nothing_is_left_open(&tree.files[0], &tree);
        let lines: Vec<_> = found.iter().map(|finding| finding.line).collect();
        assert_eq!(lines, [2, 3, 4]);
    }
}
