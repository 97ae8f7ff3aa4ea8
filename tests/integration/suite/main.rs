//! Tests with real processes, sockets and guests. What they are made of is in `godwit_tests`.

mod after_switchover;
mod api;
mod bad_input;
mod base;
mod before_switchover;
mod binary;
mod cancel;
mod control;
mod demo;
mod disk;
mod doctor;
mod events;
mod granules;
mod half_open;
mod hostile;
mod hostile_destination;
mod hostile_pages;
mod hostile_source;
mod matrix;
mod modes;
mod moves;
mod moving;
mod no_device;
mod packing;
mod phases;
mod poison;
mod records;
mod recovery;
mod silence;
mod snapshot;
mod snapshot_refused;
mod tls;
mod windows;
mod working_set;

use godwit_tests::Godwit;

/// The binary that cargo has built for this suite.
const GODWIT: Godwit = Godwit::new(env!("CARGO_BIN_EXE_godwit"));
