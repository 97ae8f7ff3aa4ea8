//! The bulk receiver: a thread that installs what the source pushes.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Instant;

use godwit_uffd::Uffd;
use godwit_uffd::guest::GuestUffd;

use super::stage::Stage;
use super::text::in_full;
use crate::limits::run_bytes_max;
use crate::metrics::Progress;
use crate::page::{Claims, Contents, InstallError, Paging, install};
use crate::proto::PeerError;
use crate::snapshot::Base;
use crate::transport::Stream;
use crate::wire::{Encoding, Kind, PushFrame, RUN_HEAD_BYTES, RunHead, WireError, unpack};

/// Where received pages go.
pub(super) struct Installer<U> {
    pub claims: Arc<Claims>,
    pub memory: Arc<GuestUffd<U>>,
    pub progress: Arc<Progress>,
    /// What the guest may come with.
    pub base: Option<Base>,
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
            base: self.base.clone(),
        }
    }
}

impl<U: Uffd> Installer<U> {
    /// Installs the pages of `head`; true if they were the guest's last.
    pub fn install(&self, head: &RunHead, contents: Contents<'_>) -> Result<bool, Failed> {
        self.progress.run(head, |page| self.memory.space().gpa_of(page));
        self.progress.bytes(head.wire_bytes());
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
    paging: Paging,
    installer: &Installer<U>,
    mut stage: Option<&mut Stage>,
    mut last: impl FnMut(),
    mut ended: impl FnMut(),
) -> Result<(), PeerError> {
    let lost = |what: &str| PeerError::Lost(format!("bulk channel: {what}"));
    let mut head = [0; RUN_HEAD_BYTES];
    let room = || vec![0; run_bytes_max(paging.size)];
    let mut buffers = Buffers { packed: room(), pages: room() };
    let mut at_end = false;
    loop {
        match stream.receive_exact_or_end(&mut head).map_err(|e| lost(&e.to_string()))? {
            true => {}
            false if at_end => return Ok(()),
            false => return Err(lost("it ended before the push did")),
        }
        let head = match PushFrame::decode(&head, paging)? {
            PushFrame::Pages(head) => head,
            PushFrame::End => {
                at_end = true;
                ended();
                continue;
            }
        };
        at_end = false;
        // Contents that did not come whole, or not as they were sent, are never installed.
        let receive = |bytes: &mut [u8]| {
            stream.receive_exact(bytes).map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => lost("it ended inside a run"),
                _ => lost(&error.to_string()),
            })?;
            Ok(head.verify(bytes)?)
        };
        let (stage, base) = (stage.as_deref_mut(), installer.base.as_ref());
        let contents = match head.encoding {
            Encoding::Same => take_from_base(&head, stage, &mut buffers, base)?,
            _ => take_contents(&head, stage, &mut buffers, receive)?,
        };
        if installer.install(&head, contents).map_err(Failed::into_peer_error)? {
            last();
        }
    }
}

/// Room for one run: as it travels if that is not as it is, and as it is if it is not staged.
struct Buffers {
    packed: Vec<u8>,
    pages: Vec<u8>,
}

/// Receives the contents of a run, into staged pages if there are, and unpacks them.
fn take_contents<'a>(
    head: &RunHead,
    stage: Option<&'a mut Stage>,
    buffers: &'a mut Buffers,
    receive: impl FnOnce(&mut [u8]) -> Result<(), PeerError>,
) -> Result<Contents<'a>, PeerError> {
    let packs = match head.encoding {
        Encoding::Zero => return receive(&mut []).map(|()| Contents::Zero),
        Encoding::Poison => return receive(&mut []).map(|()| Contents::Poison),
        Encoding::Word | Encoding::Lz4 => true,
        Encoding::Raw => false,
        Encoding::Same => unreachable!("taken from the base"),
    };
    let bytes = head.page_bytes();
    let fill = |pages: &mut [u8]| {
        if !packs {
            return receive(pages);
        }
        let packed = &mut buffers.packed[..head.content_bytes()];
        receive(packed)?;
        Ok(unpack(head, packed, pages)?)
    };
    fill_pages(stage, &mut buffers.pages[..bytes], fill)
}

/// The pages of a run that are those of the base, if they are.
fn take_from_base<'a>(
    head: &RunHead,
    stage: Option<&'a mut Stage>,
    buffers: &'a mut Buffers,
    base: Option<&Base>,
) -> Result<Contents<'a>, PeerError> {
    let what = "pages of a base that was not offered";
    let base = base.ok_or(WireError::Damaged { kind: Kind::Pages, what })?;
    let path = base.path().display().to_string();
    let read = |pages: &mut [u8]| {
        let read = base.read(head.run, pages);
        read.map_err(|error| PeerError::Lost(format!("cannot read {path}: {error}")))?;
        let (first, end) = (head.run.first.0, head.run.end());
        head.verify(pages).map_err(|_| PeerError::Base { first, end, path: path.clone() })
    };
    fill_pages(stage, &mut buffers.pages[..head.page_bytes()], read)
}

/// Fills staged pages if there are any, and others as many as `pages` are.
fn fill_pages<'a>(
    stage: Option<&'a mut Stage>,
    pages: &'a mut [u8],
    fill: impl FnOnce(&mut [u8]) -> Result<(), PeerError>,
) -> Result<Contents<'a>, PeerError> {
    match stage.and_then(|stage| stage.take(pages.len())) {
        Some(staged) => fill(staged).map(|()| Contents::Staged(staged)),
        None => fill(pages).map(|()| Contents::Data(pages)),
    }
}

/// The contents of a run that came whole and verified, unpacked into `room` if they are packed.
pub(super) fn open<'a>(
    head: &RunHead,
    contents: &'a [u8],
    room: &'a mut Vec<u8>,
) -> Result<Contents<'a>, WireError> {
    Ok(match head.encoding {
        Encoding::Zero => Contents::Zero,
        Encoding::Poison => Contents::Poison,
        Encoding::Raw => Contents::Data(contents),
        Encoding::Same => unreachable!("not on the urgent channel"),
        Encoding::Word | Encoding::Lz4 => {
            room.resize(head.page_bytes(), 0);
            unpack(head, contents, room)?;
            Contents::Data(room)
        }
    })
}
