//! What can go wrong with a measurement.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use thiserror::Error;

/// A measurement could not be made.
#[derive(Debug, Error)]
pub enum Error {
    /// A system call or a connection failed.
    #[error("{what} failed")]
    System {
        /// What was being done.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// userfaultfd failed.
    #[error("userfaultfd cannot be used")]
    Uffd(#[from] godwit_uffd::Error),
    /// A VM of ours failed.
    #[error("the VM failed")]
    Vm(#[from] godwit_vmm::Error),
    /// KVM failed.
    #[error("KVM cannot be used: {what} failed")]
    Kvm {
        /// What was being done.
        what: &'static str,
        /// The reason.
        source: kvm_ioctls::Error,
    },
    /// The guest did not print what was waited for.
    #[error(
        "the guest ended, or was silent for {patience:?}, before it reported {what}; \
         its last line was {last:?}"
    )]
    GuestSilent {
        /// What was waited for.
        what: &'static str,
        /// How long.
        patience: Duration,
        /// What it did report last.
        last: String,
    },
    /// The guest found wrong bytes, so its figures mean nothing.
    #[error("the guest found {pages} corrupt pages")]
    GuestCorrupt {
        /// The number of reports.
        pages: usize,
    },
    /// A program that is needed is not there.
    #[error("{program} is not installed")]
    Absent {
        /// Its name or path.
        program: String,
    },
    /// QEMU did something else than it was asked to.
    #[error("QEMU, asked to {asked}, answered {answer}")]
    Qemu {
        /// The command or what was waited for.
        asked: String,
        /// What it said instead.
        answer: String,
    },
    /// A program failed, ended too early or hung.
    #[error("{program}: {what}; the last that it said is {last:?}")]
    Program {
        /// Its name or path.
        program: String,
        /// What happened.
        what: String,
        /// The last line of its error output.
        last: String,
    },
    /// Some measurements of a run failed.
    #[error("{failed} measurements failed")]
    Incomplete {
        /// How many.
        failed: u32,
    },
    /// Something else printed what cannot be understood.
    #[error("{what} gave {text:?}, which is not understood")]
    NotUnderstood {
        /// Who printed it.
        what: &'static str,
        /// What it printed.
        text: String,
    },
}

impl Error {
    /// For `map_err`: names what was being done when a system call failed.
    pub fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::System { what, source: source.into() }
    }

    /// The error and all that caused it, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    /// For `map_err`: names what was being done when KVM failed.
    pub fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
        move |source| Error::Kvm { what, source }
    }
}
