//! The conformance suite: each numbered row of the specification as code against any world.
//!
//! A row is a claim. It starts in a world of its own and panics where the world disagrees. The
//! rows from 201 on are facts that the specification has in its prose.

mod continuing;
mod copy;
mod copy_unlocked;
mod delivery;
mod edges;
mod events;
mod handshake;
mod hugetlb;
mod kvm;
mod moving;
mod poison;
mod protecting;
mod reasons;
mod register;
mod scanning;
mod setup;
mod table;
mod tables;
mod waiting;
mod words;
mod zeropage;

pub use table::ROWS;

use crate::world::{Ability, World};

/// The rows of the specification's table.
pub const SPECIFIED: u32 = 130;

/// One claim about userfaultfd.
pub struct Row {
    /// `row_043_copy_into_a_hole`: the number, and what is claimed.
    pub name: &'static str,
    /// What a world must be able to do.
    pub needs: &'static [Ability],
    /// Panics if the claim does not hold.
    pub run: fn(&mut dyn World),
}

impl Row {
    /// Its number in the specification; from 201 on it is our own.
    #[must_use]
    pub const fn number(&self) -> u32 {
        let name = self.name.as_bytes();
        let mut number = 0;
        let mut at = "row_".len();
        while name[at].is_ascii_digit() {
            number = number * 10 + (name[at] - b'0') as u32;
            at += 1;
        }
        number
    }

    /// What it claims, in words.
    #[must_use]
    pub fn claim(&self) -> String {
        self.name["row_000_".len()..].replace('_', " ")
    }
}
