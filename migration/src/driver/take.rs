//! The bulk receiver: a thread that installs what the source pushes.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Instant;

use godwit_uffd::Uffd;
use godwit_uffd::guest::GuestUffd;

use super::background::stand_back;
use super::source::in_full;
use super::stage::Stage;
use crate::limits::RUN_BYTES_MAX;
use crate::metrics::Progress;
use crate::page::{Claims, Contents, InstallError, install};
use crate::proto::PeerError;
use crate::transport::Stream;
use crate::wire::{Encoding, PushFrame, RUN_HEAD_BYTES, RunHead};

/// Where received pages go.
pub(super) struct Installer<U> {
    pub claims: Arc<Claims>,
    pub memory: Arc<GuestUffd<U>>,
    pub progress: Arc<Progress>,
}

/// Why a page that came could not be installed, and whose fault that is.
#[derive(Debug)]
pub(super) enum Failed {
    Peer(PeerError),
    Here(InstallError),
}

impl<U> Clone for Installer<U> {
    fn clone(&self) -> Installer<U> {
        Installer {
            claims: Arc::clone(&self.claims),
            memory: Arc::clone(&self.memory),
            progress: Arc::clone(&self.progress),
        }
    }
}

impl<U: Uffd> Installer<U> {
    /// Installs the pages of `head`; true if they were the guest's last.
    pub fn install(&self, head: RunHead, contents: Contents<'_>) -> Result<bool, Failed> {
        self.progress.bytes(RUN_HEAD_BYTES + head.content_bytes());
        let faults = self.progress.faults();
        install(&self.claims, &self.memory, head.run, contents, |page| {
            faults.served(page, Instant::now());
        })
        .map_err(|error| match error {
            InstallError::Duplicate(duplicate) => Failed::Peer(duplicate.into()),
            here => Failed::Here(here),
        })
    }
}

impl Failed {
    /// One line for the operator and for the state machine, which treats both alike: what the
    /// source has not been able to place stays with it.
    pub fn into_peer_error(self) -> PeerError {
        match self {
            Failed::Peer(error) => error,
            Failed::Here(error) => PeerError::Lost(in_full(&error)),
        }
    }
}

/// Receives and installs until the channel is closed, which is in good order behind an end of the
/// push or of a round: `ended` is called at each. `last` is called after the guest's last page.
pub(super) fn take_pushed<U: Uffd>(
    stream: &Stream,
    installer: &Installer<U>,
    mut stage: Option<&mut Stage>,
    mut last: impl FnMut(),
    mut ended: impl FnMut(),
) -> Result<(), PeerError> {
    stand_back();
    let lost = |what: &str| PeerError::Lost(format!("bulk channel: {what}"));
    let mut head = [0; RUN_HEAD_BYTES];
    let mut buffer = vec![0; RUN_BYTES_MAX];
    let mut at_end = false;
    loop {
        match stream.receive_exact_or_end(&mut head).map_err(|e| lost(&e.to_string()))? {
            true => {}
            false if at_end => return Ok(()),
            false => return Err(lost("it ended before the push did")),
        }
        let head = match PushFrame::decode(&head, installer.claims.page_count())? {
            PushFrame::Pages(head) => head,
            PushFrame::End => {
                at_end = true;
                ended();
                continue;
            }
        };
        at_end = false;
        let bytes = head.content_bytes();
        // Contents that did not come whole are never installed.
        let receive = |bytes: &mut [u8]| {
            stream.receive_exact(bytes).map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => lost("it ended inside a run"),
                _ => lost(&error.to_string()),
            })
        };
        let contents = match head.encoding {
            Encoding::Zero => Contents::Zero,
            Encoding::Raw => match stage.as_mut().and_then(|stage| stage.take(bytes)) {
                Some(staged) => {
                    receive(staged)?;
                    Contents::Staged(staged)
                }
                None => {
                    receive(&mut buffer[..bytes])?;
                    Contents::Data(&buffer[..bytes])
                }
            },
        };
        if installer.install(head, contents).map_err(Failed::into_peer_error)? {
            last();
        }
    }
}
