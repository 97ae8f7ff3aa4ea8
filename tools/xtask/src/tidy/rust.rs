//! What rules ask of a Rust file: its lines, its words, its functions, its tests.

use super::mask::{Masked, is_word, mask};

/// A scanned Rust file.
#[derive(Debug)]
pub struct Rust {
    pub lines: Vec<Line>,
    pub functions: Vec<Function>,
}

/// One line of Rust.
#[derive(Debug)]
pub struct Line {
    /// The code, with strings and comments blanked.
    pub code: String,
    pub comment: String,
    /// It is part of an item under `#[cfg(test)]`.
    pub in_test: bool,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// The line of its `fn`, counted from 1.
    pub line: usize,
    /// From that line to the one with its closing brace.
    pub length: usize,
}

impl Rust {
    pub fn scan(source: &str) -> Rust {
        let lines: Vec<Line> = mask(source)
            .into_iter()
            .map(|Masked { code, comment }| Line { code, comment, in_test: false })
            .collect();
        let mut rust = Rust { lines, functions: Vec::new() };
        rust.find_tests();
        rust.find_functions();
        rust
    }

    /// The places of `word` in the code, as line (from 0) and byte.
    pub fn places<'a>(&'a self, word: &'a str) -> impl Iterator<Item = (usize, usize)> + 'a {
        let in_line =
            move |(n, line): (usize, &'a Line)| words_at(&line.code, word).map(move |at| (n, at));
        self.lines.iter().enumerate().flat_map(in_line)
    }

    /// The code behind the place `at` of line `from` (from 0), as characters with their lines.
    pub fn after(&self, from: usize, at: usize) -> impl Iterator<Item = (usize, char)> {
        let lines = self.lines[from..].iter().enumerate();
        lines.flat_map(move |(n, line)| {
            let skip = if n == 0 { at } else { 0 };
            let rest = line.code.get(skip..).unwrap_or("");
            rest.chars().chain(['\n']).map(move |c| (from + n, c))
        })
    }

    fn find_tests(&mut self) {
        let starts: Vec<usize> = self
            .lines
            .iter()
            .enumerate()
            .filter(|(_, line)| line.code.trim_start().starts_with("#[cfg(test)]"))
            .map(|(n, _)| n)
            .collect();
        for start in starts {
            let end = self.item_end(start, 0).unwrap_or(start);
            self.lines[start..=end].iter_mut().for_each(|line| line.in_test = true);
        }
    }

    fn find_functions(&mut self) {
        let places: Vec<_> = self.places("fn").collect();
        for (line, at) in places {
            let name: String = {
                let rest = self.after(line, at + 2).map(|(_, c)| c);
                rest.skip_while(|c| c.is_whitespace()).take_while(|c| is_word(*c)).collect()
            };
            // Without a name it is the type of a function.
            let Some(end) = self.body_end(line, at).filter(|_| !name.is_empty()) else {
                continue;
            };
            self.functions.push(Function { name, line: line + 1, length: end - line + 1 });
        }
    }

    /// The line with the end of the item at this place: its closing brace or its semicolon.
    fn item_end(&self, line: usize, at: usize) -> Option<usize> {
        self.end(line, at).map(|(end, _)| end)
    }

    /// The line with the closing brace of the item at this place, if it has a body.
    fn body_end(&self, line: usize, at: usize) -> Option<usize> {
        self.end(line, at).filter(|(_, body)| *body).map(|(end, _)| end)
    }

    /// Where the item ends, and whether with a brace.
    fn end(&self, line: usize, at: usize) -> Option<(usize, bool)> {
        let (mut braces, mut brackets) = (0usize, 0usize);
        for (n, c) in self.after(line, at) {
            match c {
                '(' | '[' => brackets += 1,
                ')' | ']' => brackets = brackets.saturating_sub(1),
                '{' => braces += 1,
                '}' if braces == 1 && brackets == 0 => return Some((n, true)),
                '}' => braces = braces.saturating_sub(1),
                ';' if braces == 0 && brackets == 0 => return Some((n, false)),
                _ => {}
            }
        }
        None
    }
}

/// Where `word` stands in `code` as a word of its own.
pub fn words_at<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = code[..*at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn functions(source: &str) -> Vec<(String, usize, usize)> {
        let scanned = Rust::scan(source);
        scanned.functions.into_iter().map(|f| (f.name, f.line, f.length)).collect()
    }

    #[test]
    fn functions_are_found_with_their_lengths() {
        let source = "\
trait T {
    fn no_body(&self) -> [u8; 4];
    fn body(
        &self,
    ) -> u8 {
        match 1 { _ => { \"}\" } };
        1
    }
}
fn one_line() {}
type F = fn(u8) -> u8;
";
        let found = functions(source);
        assert_eq!(found, [("body".to_owned(), 3, 6), ("one_line".to_owned(), 10, 1)]);
    }

    #[test]
    fn a_function_inside_another_is_counted_in_both() {
        let found = functions("fn outer() {\n    fn inner() {\n    }\n}\n");
        assert_eq!(found, [("outer".to_owned(), 1, 4), ("inner".to_owned(), 2, 2)]);
    }

    #[test]
    fn items_under_cfg_test_are_tests_and_what_follows_is_not() {
        let source = "\
fn a() {}
#[cfg(test)]
mod tests;
fn b() {}
#[cfg(test)]
mod more {
    fn t() {}
}
fn c() {}
";
        let in_test: Vec<_> = Rust::scan(source).lines.iter().map(|l| l.in_test).collect();
        assert_eq!(in_test, [false, true, true, false, true, true, true, true, false]);
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(words_at("fn f(fnord: fn())", "fn").collect::<Vec<_>>(), [0, 12]);
    }
}
