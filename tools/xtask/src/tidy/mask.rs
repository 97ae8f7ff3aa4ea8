//! Rust source with its comments and the insides of its strings blanked, line by line.

/// One line of source, split.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masked {
    /// The code, with blanks for comments and for what is inside of strings and characters.
    pub code: String,
    /// The text of the comments, with their marks.
    pub comment: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Code,
    LineComment,
    /// Block comments nest.
    BlockComment {
        depth: usize,
    },
    Text,
    RawText {
        hashes: usize,
    },
}

/// Splits `source` into lines of code and comment.
pub fn mask(source: &str) -> Vec<Masked> {
    let mut masker = Masker {
        chars: source.chars().collect(),
        at: 0,
        state: State::Code,
        line: Masked::default(),
        lines: Vec::new(),
    };
    while masker.at < masker.chars.len() {
        masker.step();
    }
    if masker.line != Masked::default() {
        masker.end_line();
    }
    masker.lines
}

struct Masker {
    chars: Vec<char>,
    at: usize,
    state: State,
    line: Masked,
    lines: Vec<Masked>,
}

impl Masker {
    fn step(&mut self) {
        if self.chars[self.at] == '\n' {
            self.at += 1;
            self.end_line();
            return;
        }
        match self.state {
            State::Code => self.in_code(),
            State::LineComment => self.comment(1),
            State::BlockComment { depth } => self.in_block_comment(depth),
            State::Text => self.in_text(),
            State::RawText { hashes } => self.in_raw_text(hashes),
        }
    }

    fn end_line(&mut self) {
        self.lines.push(std::mem::take(&mut self.line));
        if self.state == State::LineComment {
            self.state = State::Code;
        }
    }

    fn in_code(&mut self) {
        if self.sees("//") {
            self.state = State::LineComment;
            self.comment(2);
        } else if self.sees("/*") {
            self.state = State::BlockComment { depth: 1 };
            self.comment(2);
        } else if let Some((length, hashes)) = self.raw_text_start() {
            self.state = State::RawText { hashes };
            self.code(length);
        } else if self.sees("\"") {
            self.state = State::Text;
            self.code(1);
        } else if let Some(length) = self.character_length() {
            self.code(1);
            self.blank(length - 2);
            self.code(1);
        } else {
            self.code(1);
        }
    }

    fn in_block_comment(&mut self, depth: usize) {
        if self.sees("*/") {
            self.comment(2);
            let deeper = depth > 1;
            self.state =
                if deeper { State::BlockComment { depth: depth - 1 } } else { State::Code };
        } else if self.sees("/*") {
            self.comment(2);
            self.state = State::BlockComment { depth: depth + 1 };
        } else {
            self.comment(1);
        }
    }

    fn in_text(&mut self) {
        if self.sees("\\") && self.peek(1) != Some('\n') {
            self.blank(2);
        } else if self.sees("\"") {
            self.state = State::Code;
            self.code(1);
        } else {
            self.blank(1);
        }
    }

    fn in_raw_text(&mut self, hashes: usize) {
        let closes = self.sees("\"") && (1..=hashes).all(|i| self.peek(i) == Some('#'));
        if closes {
            self.state = State::Code;
            self.code(1 + hashes);
        } else {
            self.blank(1);
        }
    }

    /// The length of `r"`, `br#"` and the like at this place, and how many `#` they have.
    fn raw_text_start(&self) -> Option<(usize, usize)> {
        if self.at > 0 && is_word(self.chars[self.at - 1]) {
            return None;
        }
        let prefix = ["r", "br", "cr"].into_iter().find(|prefix| {
            let after = self.peek(prefix.len());
            self.sees(prefix) && matches!(after, Some('"' | '#'))
        })?;
        let hashes = (prefix.len()..).take_while(|i| self.peek(*i) == Some('#')).count();
        let length = prefix.len() + hashes + 1;
        (self.peek(length - 1) == Some('"')).then_some((length, hashes))
    }

    /// The length of a character literal at this place; a lifetime is none.
    fn character_length(&self) -> Option<usize> {
        if !self.sees("'") {
            return None;
        }
        if self.peek(1) == Some('\\') {
            // The escaped character may be a quote itself.
            let close = (3..12).find(|i| self.peek(*i) == Some('\''))?;
            return Some(close + 1);
        }
        (self.peek(2) == Some('\'')).then_some(3)
    }

    fn sees(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(i, c)| self.peek(i) == Some(c))
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn code(&mut self, count: usize) {
        self.line.code.extend(&self.chars[self.at..self.at + count]);
        self.at += count;
    }

    fn comment(&mut self, count: usize) {
        self.line.comment.extend(&self.chars[self.at..self.at + count]);
        self.line.code.extend(std::iter::repeat_n(' ', count));
        self.at += count;
    }

    fn blank(&mut self, count: usize) {
        let count = count.min(self.chars.len() - self.at);
        self.line.code.extend(std::iter::repeat_n(' ', count));
        self.at += count;
    }
}

/// Whether `c` can be part of a name.
pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(source: &str) -> Vec<String> {
        mask(source).into_iter().map(|line| line.code.trim_end().to_owned()).collect()
    }

    #[test]
    fn comments_are_set_apart() {
        let lines = mask("a(); // why {\n/* one\n/* two */ } */ b();\n");
        assert_eq!(lines[0].code.trim_end(), "a();");
        assert_eq!(lines[0].comment, "// why {");
        assert_eq!(lines[1].code.trim_end(), "");
        assert_eq!(lines[2].code.trim(), "b();");
        assert_eq!(lines[2].comment, "/* two */ } */");
    }

    #[test]
    fn strings_lose_their_insides_and_keep_their_lines() {
        assert_eq!(code(r#"f("a { \" // b", x)"#), [r#"f("           ", x)"#]);
        assert_eq!(code("f(\"a {\n  } b\")"), ["f(\"", "     \")"]);
        assert_eq!(code("f(\"a \\\n  } b\")"), ["f(\"", "     \")"]);
    }

    #[test]
    fn raw_strings_end_at_their_own_mark() {
        let source = "f(r#\"a \" { \"#, br\"\\\", r#type, for\"x\")";
        assert_eq!(code(source), ["f(r#\"      \"#, br\" \", r#type, for\" \")"]);
    }

    #[test]
    fn characters_are_told_from_lifetimes() {
        let source = "f::<'a>('{', '\\'', '\\u{7d}', b'\"', 'b')";
        assert_eq!(code(source), ["f::<'a>(' ', '  ', '      ', b' ', ' ')"]);
    }
}
