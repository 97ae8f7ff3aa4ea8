//! Page frames as they travel. What changes with the format of runs is here and nowhere else.

use godwit_migration::page::{Class, Contents, Paging};
use godwit_migration::wire::{
    Encoding, Kind, PushFrame, RUN_HEAD_BYTES, RunBuffer, RunHead, WireError, decode, unpack,
};
use godwit_uffd::page::{PageRun, PageSize};

/// Bytes of what comes before the contents of a run.
pub const HEAD_BYTES: usize = RUN_HEAD_BYTES;

/// The frame of a run of zero pages.
pub fn zero_frame(run: PageRun) -> Vec<u8> {
    PushFrame::Pages(RunHead::new(PageSize::BASE, run, Encoding::Zero, &[])).encode().to_vec()
}

/// The frame of a run with contents, packed where that makes it shorter for every other first page.
pub fn data_frame(run: PageRun, contents: &[u8]) -> Vec<u8> {
    let mut buffer = RunBuffer::new(PageSize::BASE);
    buffer.pages_mut(run.count).copy_from_slice(contents);
    buffer.frame(run, 0, run.first.0.is_multiple_of(2)).1.to_vec()
}

/// What a bulk channel brings next.
#[derive(Debug)]
pub enum Pushed {
    Run(Arrived),
    End,
}

/// A run that came whole.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub run: PageRun,
    pub class: Class,
    pub bytes: Vec<u8>,
}

impl Arrived {
    /// A run of the urgent channel.
    ///
    /// # Errors
    /// Contents that are not as they were sent.
    pub fn new(head: RunHead, contents: &[u8]) -> Result<Arrived, WireError> {
        head.verify(contents)?;
        let run = head.run;
        let (class, bytes) = match head.encoding {
            Encoding::Raw => (Class::Data, contents.to_vec()),
            Encoding::Zero => (Class::Zero, Vec::new()),
            Encoding::Poison => (Class::Poisoned, Vec::new()),
            Encoding::Same => {
                let what = "no guest here has a base";
                return Err(WireError::Damaged { kind: Kind::Pages, what });
            }
            Encoding::Word | Encoding::Lz4 => {
                let mut bytes = vec![0; head.page_bytes()];
                unpack(&head, contents, &mut bytes)?;
                (Class::Data, bytes)
            }
        };
        Ok(Arrived { run, class, bytes })
    }

    pub fn contents(&self) -> Contents<'_> {
        match self.class {
            Class::Zero => Contents::Zero,
            Class::Poisoned => Contents::Poison,
            Class::Data => Contents::Data(&self.bytes),
        }
    }
}

/// Takes the next frame of a bulk channel from `bytes`, if it is whole.
///
/// # Errors
/// Bytes that are none.
pub fn take_frame(bytes: &mut Vec<u8>, pages: u32) -> Result<Option<Pushed>, WireError> {
    let Some(head) = bytes.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    let PushFrame::Pages(head) = PushFrame::decode(head, Paging::base(pages))? else {
        bytes.drain(..HEAD_BYTES);
        return Ok(Some(Pushed::End));
    };
    let all = HEAD_BYTES + head.content_bytes();
    let Some(contents) = bytes.get(HEAD_BYTES..all) else { return Ok(None) };
    let arrived = Arrived::new(head, contents)?;
    bytes.drain(..all);
    Ok(Some(Pushed::Run(arrived)))
}

/// Whether [`take_frame`] takes a frame, or says that it is none.
pub fn has_frame(bytes: &[u8]) -> bool {
    bytes.len() >= HEAD_BYTES && !matches!(decode(bytes), Ok(None))
}

/// The frame that ends a push.
pub fn end_frame() -> Vec<u8> {
    PushFrame::End.encode().to_vec()
}
