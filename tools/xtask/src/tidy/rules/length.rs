//! Rules for length: what does not fit a screen does not fit a head.

use super::super::Finding;
use super::super::tree::{File, Tree};

/// The longest file, in lines that are not tests.
const FILE_LINES_MAX: usize = 500;

/// The longest function, in lines from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;

pub fn files_are_short(file: &File, _: &Tree) -> Vec<Finding> {
    let Some(rust) = file.rust.as_ref().filter(|_| !file.is_test()) else {
        return Vec::new();
    };
    let lines = rust.lines.iter().filter(|line| !line.in_test).count();
    if lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    let message = format!(
        "{lines} lines without tests, at most {FILE_LINES_MAX} are allowed; move one concern to a \
         file of its own"
    );
    vec![file.finding(1, message)]
}

pub fn functions_are_short(file: &File, _: &Tree) -> Vec<Finding> {
    let functions = file.rust.iter().flat_map(|rust| &rust.functions);
    let long = functions.filter(|function| function.length > FUNCTION_LINES_MAX);
    long.map(|function| {
        let message = format!(
            "`{}` has {} lines, at most {FUNCTION_LINES_MAX} are allowed; give one of its steps a \
             name and a function",
            function.name, function.length
        );
        file.finding(function.line, message)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(lines: usize) -> String {
        format!("fn f() {{\n{}}}\n", "    g();\n".repeat(lines - 2))
    }

    #[test]
    fn a_function_of_the_limit_passes_and_one_more_line_does_not() {
        for (lines, expected) in [(FUNCTION_LINES_MAX, 0), (FUNCTION_LINES_MAX + 1, 1)] {
            let tree = Tree::of(&[("uffd/src/x.rs", &function(lines))]);
            assert_eq!(functions_are_short(&tree.files[0], &tree).len(), expected, "{lines}");
        }
    }

    #[test]
    fn a_file_of_the_limit_passes_and_one_more_line_does_not() {
        for (lines, expected) in [(FILE_LINES_MAX, 0), (FILE_LINES_MAX + 1, 1)] {
            let tree = Tree::of(&[("uffd/src/x.rs", &"const X: u8 = 1;\n".repeat(lines))]);
            assert_eq!(files_are_short(&tree.files[0], &tree).len(), expected, "{lines}");
        }
    }

    #[test]
    fn tests_do_not_count_into_the_length_of_a_file() {
        let code = "const X: u8 = 1;\n".repeat(FILE_LINES_MAX);
        let with_tests = format!("{code}#[cfg(test)]\nmod tests {{\n{code}}}\n");
        let tree = Tree::of(&[("uffd/src/x.rs", &with_tests), ("uffd/src/tests.rs", &with_tests)]);
        assert_eq!(files_are_short(&tree.files[0], &tree), []);
        assert_eq!(files_are_short(&tree.files[1], &tree), []);
    }
}
