//! What a demo shows while it runs: on a terminal with colours and a progress bar, elsewhere as
//! plain lines, and next to JSON on stderr or not at all.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::termios::tcgetwinsize;

use super::Side;

/// Shows lines and progress.
#[derive(Debug)]
pub struct Show {
    to: To,
    colour: bool,
    bar: Option<ProgressBar>,
    /// The tenths of the present progress that have been told in plain lines.
    told: u64,
    broken: Option<io::Error>,
}

/// Where it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Stdout,
    Stderr,
    Nowhere,
}

const SPINNER: &str = "{spinner} {msg} ({elapsed})";
const BAR: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

impl Show {
    /// Shows on stdout, or with `json` on stderr if that is a terminal.
    pub fn new(json: bool) -> Show {
        let (to, terminal) = match json {
            false => (To::Stdout, io::stdout().is_terminal()),
            true if io::stderr().is_terminal() => (To::Stderr, true),
            true => (To::Nowhere, false),
        };
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let bar = terminal.then(|| {
            let target = match to {
                To::Stderr => ProgressDrawTarget::stderr(),
                To::Stdout | To::Nowhere => ProgressDrawTarget::stdout(),
            };
            ProgressBar::with_draw_target(None, target).with_style(style(SPINNER))
        });
        Show { to, colour: terminal && !no_colour, bar, told: 0, broken: None }
    }

    /// The error of the first line that could not be written.
    pub fn take_broken(&mut self) -> Option<io::Error> {
        self.broken.take()
    }

    /// A step of the demo begins.
    pub fn step(&mut self, text: &str) {
        let text = if self.colour { format!("{BOLD}{text}{PLAIN}") } else { text.to_owned() };
        self.line(&format!("demo        | {text}"));
    }

    /// A line of the guest's console; on a terminal what fits into one line of it.
    pub fn console(&mut self, side: Side, text: &str) {
        let mut line = format!("{side:<11} | {text}", side = side.to_string());
        if let Some(columns) = self.columns() {
            line = shortened(line, columns);
        }
        let line = if self.colour { format!("{DIM}{line}{PLAIN}") } else { line };
        self.line(&line);
    }

    /// Columns of the terminal, if it is one and knows them.
    fn columns(&self) -> Option<usize> {
        let size = match self.to {
            To::Stdout if self.bar.is_some() => tcgetwinsize(io::stdout()),
            To::Stderr if self.bar.is_some() => tcgetwinsize(io::stderr()),
            _ => return None,
        };
        size.ok().map(|size| size.ws_col.into()).filter(|&columns| columns > 0)
    }

    /// A line as it is.
    pub fn line(&mut self, text: &str) {
        let write = || match self.to {
            To::Stdout => writeln!(io::stdout(), "{text}"),
            To::Stderr => writeln!(io::stderr(), "{text}"),
            To::Nowhere => Ok(()),
        };
        let written = self.bar.as_ref().map_or_else(write, |bar| bar.suspend(write));
        if let Err(error) = written {
            self.broken.get_or_insert(error);
        }
    }

    /// Something takes a while, and nobody knows how long.
    pub fn wait(&mut self, what: &'static str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what);
            bar.set_style(style(SPINNER));
            bar.reset_elapsed();
        }
    }

    /// A drain of `total` bytes begins.
    pub fn begin_drain(&mut self, total: u64) {
        self.told = 0;
        if let Some(bar) = &self.bar {
            bar.set_message("drain");
            bar.set_length(total);
            bar.set_style(style(BAR));
            bar.reset();
        }
    }

    /// So much of it is done.
    pub fn drained(&mut self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            return bar.set_position(done);
        }
        let tenths = done * 10 / total.max(1);
        if tenths > self.told {
            self.told = tenths;
            let (done, total) = (done >> 20, total >> 20);
            self.step(&format!("drain {:3} %: {done} of {total} MiB", tenths * 10));
        }
    }

    /// Time passes: whatever turns, turns.
    pub fn tick(&self) {
        if let Some(bar) = &self.bar {
            bar.tick();
        }
    }

    /// Takes the bar away.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// A heading in the style of the output.
    pub fn heading(&self, text: &str) -> String {
        if self.colour { format!("{BOLD}{text}{PLAIN}") } else { text.to_owned() }
    }
}

/// The first `columns` characters of `line`, the last of them dots if something is missing.
fn shortened(line: String, columns: usize) -> String {
    if line.chars().count() <= columns {
        return line;
    }
    let kept = line.chars().take(columns.saturating_sub(3));
    kept.chain("...".chars()).collect()
}

fn style(template: &'static str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a constant template")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_ends_in_dots() {
        assert_eq!(shortened("abcdefgh".to_owned(), 8), "abcdefgh");
        assert_eq!(shortened("abcdefghi".to_owned(), 8), "abcde...");
    }
}
