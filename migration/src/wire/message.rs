//! Messages of the urgent channel.

use godwit_uffd::page::{PageIndex, PageRun, PageSize};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::WireError;
use super::frame::{Frame, HEADER_BYTES, Kind, frame_header};
use super::run::{PushFrame, RunHead, run_head};
use crate::limits;
use crate::page::{PageSet, Paging};

/// Where a memslot is in guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemslotLayout {
    /// Its guest physical address.
    pub gpa: u64,
    /// Its size, in bytes.
    pub bytes: u64,
}

/// How a guest is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It changes hands first, and its memory follows while it runs there.
    Postcopy,
    /// Its memory goes first, in rounds while it runs here, and it changes hands at the end.
    Precopy,
    /// Rounds first; it changes hands when they stop to pay, and the rest follows.
    Hybrid,
}

/// A guest that wants to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Which guest.
    pub guest: Uuid,
    /// The number of the transfer that is asked for: one more than the last.
    pub transfer: u64,
    /// Bytes in a page.
    pub page_bytes: u32,
    /// How it is moved.
    pub mode: Mode,
    /// The number of bulk channels.
    pub connections: u8,
    /// Its memory, in address order; page indexes count over these.
    pub memslots: Vec<MemslotLayout>,
    /// How the machine is built; the VMM's own, opaque here.
    pub config: Vec<u8>,
    /// What a host must have to run it; the VMM's own, opaque here.
    pub requirements: Vec<u8>,
    /// The snapshot with which the guest comes: its pages that are in it are not sent. Behind all
    /// else in the frame, and only there: a peer of version 2 never sees one.
    #[serde(skip)]
    pub base: Option<Uuid>,
}

impl Offer {
    /// Whether the number of the transfer is one: the first is 1, and each has a next.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_transfer(&self) -> Result<(), &'static str> {
        match self.transfer {
            0 => Err("its transfer has no number"),
            u64::MAX => Err("its transfer is the last that can be counted"),
            _ => Ok(()),
        }
    }

    /// Whether the number of bulk channels is one that can be.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_connections(&self) -> Result<(), &'static str> {
        match self.connections {
            0 => Err("it has no bulk channel"),
            n if n > limits::CONNECTIONS_MAX => Err("it has too many bulk channels"),
            _ => Ok(()),
        }
    }

    /// The pages of the guest.
    ///
    /// # Errors
    /// What is wrong with the layout: pages of an unknown size, no memory, too much, not whole
    /// pages, or not in order.
    pub fn paging(&self) -> Result<Paging, &'static str> {
        paging_of(self.page_bytes, &self.memslots)
    }
}

/// The pages of a guest whose memory is `memslots`.
///
/// # Errors
/// What is wrong with the layout: pages of an unknown size, no memory, too much, not whole pages,
/// or not in order.
pub fn paging_of(page_bytes: u32, memslots: &[MemslotLayout]) -> Result<Paging, &'static str> {
    let size = PageSize::of(page_bytes.into());
    let size = size.ok_or("its memory has pages of a size that this version does not know")?;
    if memslots.is_empty() || memslots.len() > limits::MEMSLOTS_MAX {
        return Err("it has no memslots, or too many");
    }
    let (mut pages, mut end) = (0u64, 0u64);
    for slot in memslots {
        let whole = size.divides(slot.gpa) && size.divides(slot.bytes) && slot.bytes > 0;
        if !whole || slot.gpa < end {
            return Err("its memslots overlap, are not in order or not whole pages");
        }
        end = slot.gpa.checked_add(slot.bytes).ok_or("a memslot is beyond all addresses")?;
        pages += slot.bytes / u64::from(page_bytes);
    }
    match u32::try_from(pages) {
        Ok(count) if pages < limits::GUEST_PAGES_MAX => Ok(Paging { size, count }),
        _ => Err("it has more pages than an index can count"),
    }
}

/// The guest is welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// What its other channels say to belong to it.
    pub session: [u8; 16],
}

/// No migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abort {
    /// Why, for the operator.
    pub reason: String,
}

/// All pages are at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complete {
    /// Pages installed as zero.
    pub zero: u32,
    /// Pages installed with contents.
    pub data: u32,
    /// The guest ended at the destination; no more pages are needed.
    pub guest_ended: bool,
}

impl Complete {
    /// Of a guest that was all here and is elsewhere by now.
    pub fn moved_on() -> Complete {
        Complete { zero: 0, data: 0, guest_ended: true }
    }
}

/// A part of a set of pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapPart {
    /// The number of 64-page words before the part.
    pub first: u32,
    /// One bit a page, as in [`PageSet::words`].
    pub words: Vec<u64>,
}

impl BitmapPart {
    /// Most words in a part.
    const WORDS_MAX: usize = limits::BITMAP_PART_BYTES_MAX / size_of::<u64>();

    /// The parts of `set` in which pages are.
    pub fn of(set: &PageSet) -> impl Iterator<Item = BitmapPart> {
        let parts = set.words().chunks(BitmapPart::WORDS_MAX).enumerate();
        let parts = parts.filter(|(_, words)| words.iter().any(|&word| word != 0));
        parts.map(|(index, words)| {
            let first = u32::try_from(index * BitmapPart::WORDS_MAX).expect("a word of an index");
            BitmapPart { first, words: words.to_vec() }
        })
    }

    /// Puts the pages of the part into `set`, whose guest has its pages.
    pub fn add_to(&self, set: &mut PageSet) {
        for (word, &bits) in (self.first..).zip(&self.words) {
            set.insert_word(word, bits);
        }
    }

    fn encode(&self, kind: Kind, out: &mut Vec<u8>) {
        out.extend_from_slice(&frame_header(kind, 4 + self.words.len() * size_of::<u64>()));
        out.extend_from_slice(&self.first.to_le_bytes());
        for word in &self.words {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }

    fn read(kind: Kind, payload: &[u8], pages: u32) -> Result<BitmapPart, WireError> {
        let damaged = |what| WireError::Damaged { kind, what };
        let (first, rest) = payload.split_first_chunk().ok_or(damaged("shorter than its head"))?;
        let (words, left) = rest.as_chunks::<8>();
        if !left.is_empty() {
            return Err(damaged("not whole words"));
        }
        let first = u32::from_le_bytes(*first);
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let end = u64::from(first) + words.len() as u64;
        if end > u64::from(pages.div_ceil(u64::BITS)) {
            return Err(damaged("it reaches outside the guest"));
        }
        Ok(BitmapPart { first, words })
    }
}

/// One device's or vCPU's saved state: opaque here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// Whose state it is.
    pub id: u16,
    /// The version of its format.
    pub version: u16,
    /// The state.
    pub bytes: Vec<u8>,
}

/// A message of the urgent channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// See [`Kind::Offer`].
    Offer(Offer),
    /// See [`Kind::Accept`].
    Accept(Accept),
    /// See [`Kind::Package`].
    Package(Vec<Section>),
    /// See [`Kind::Loaded`].
    Loaded {
        /// The transfer.
        transfer: u64,
    },
    /// See [`Kind::Grant`].
    Grant {
        /// The transfer.
        transfer: u64,
    },
    /// See [`Kind::Owned`].
    Owned {
        /// The transfer.
        transfer: u64,
    },
    /// See [`Kind::Refused`].
    Refused {
        /// The transfer.
        transfer: u64,
        /// Why, for the operator.
        reason: String,
    },
    /// See [`Kind::Abort`].
    Abort(Abort),
    /// See [`Kind::Request`].
    Request(PageRun),
    /// See [`Kind::Pages`]: the head and the contents.
    Pages(RunHead, &'a [u8]),
    /// See [`Kind::Complete`].
    Complete(Complete),
    /// See [`Kind::Released`].
    Released,
    /// See [`Kind::Alive`].
    Alive,
    /// See [`Kind::Discard`].
    Discard(BitmapPart),
    /// See [`Kind::Round`].
    Round {
        /// Which round, from 1.
        number: u32,
    },
    /// See [`Kind::RoundReady`].
    RoundReady {
        /// Which round.
        number: u32,
    },
    /// See [`Kind::RoundDone`].
    RoundDone {
        /// Which round.
        number: u32,
    },
    /// See [`Kind::Received`].
    Received(BitmapPart),
    /// See [`Kind::Resumed`].
    Resumed {
        /// As in the hello that asked for it.
        epoch: u32,
    },
    /// See [`Kind::Gone`].
    Gone {
        /// The transfer.
        transfer: u64,
    },
}

#[derive(Serialize, Deserialize)]
struct Packed {
    sections: Vec<Section>,
    crc: u32,
}

fn sections_crc(sections: &[Section]) -> u32 {
    sections.iter().fold(0, |crc, section| crc32c::crc32c_append(crc, &section.bytes))
}

impl<'a> Message<'a> {
    /// The kind of frame that carries it.
    pub fn kind(&self) -> Kind {
        match self {
            Message::Offer(_) => Kind::Offer,
            Message::Accept(_) => Kind::Accept,
            Message::Package(_) => Kind::Package,
            Message::Loaded { .. } => Kind::Loaded,
            Message::Grant { .. } => Kind::Grant,
            Message::Owned { .. } => Kind::Owned,
            Message::Refused { .. } => Kind::Refused,
            Message::Abort(_) => Kind::Abort,
            Message::Request(_) => Kind::Request,
            Message::Pages(..) => Kind::Pages,
            Message::Complete(_) => Kind::Complete,
            Message::Released => Kind::Released,
            Message::Alive => Kind::Alive,
            Message::Discard(_) => Kind::Discard,
            Message::Round { .. } => Kind::Round,
            Message::RoundReady { .. } => Kind::RoundReady,
            Message::RoundDone { .. } => Kind::RoundDone,
            Message::Received(_) => Kind::Received,
            Message::Resumed { .. } => Kind::Resumed,
            Message::Gone { .. } => Kind::Gone,
        }
    }

    /// Reads a frame of the urgent channel of a guest of these pages (none while that is unknown).
    ///
    /// # Errors
    /// A frame whose payload is not what its kind says, or that has no place on this channel.
    pub fn read(frame: &Frame<'a>, paging: Paging) -> Result<Message<'a>, WireError> {
        let (payload, pages) = (frame.payload, paging.count);
        let kind = frame.kind;
        Ok(match kind {
            Kind::Offer => Message::Offer(unpack_offer(payload)?),
            Kind::Accept => Message::Accept(unpack(kind, payload)?),
            Kind::Package => Message::Package(unpack_package(payload)?),
            Kind::Loaded => Message::Loaded { transfer: unpack(kind, payload)? },
            Kind::Grant => Message::Grant { transfer: unpack(kind, payload)? },
            Kind::Owned => Message::Owned { transfer: unpack(kind, payload)? },
            Kind::Refused => {
                let (transfer, reason) = unpack(kind, payload)?;
                Message::Refused { transfer, reason }
            }
            Kind::Abort => Message::Abort(unpack(kind, payload)?),
            Kind::Request => Message::Request(read_request(payload, paging)?),
            Kind::Pages => {
                let (head, contents) = run_head(payload, paging)?;
                Message::Pages(head, contents)
            }
            Kind::Complete => Message::Complete(unpack(kind, payload)?),
            Kind::Released => Message::Released,
            Kind::Alive => Message::Alive,
            Kind::Discard => Message::Discard(BitmapPart::read(kind, payload, pages)?),
            Kind::Received => Message::Received(BitmapPart::read(kind, payload, pages)?),
            Kind::Round => Message::Round { number: unpack(kind, payload)? },
            Kind::RoundReady => Message::RoundReady { number: unpack(kind, payload)? },
            Kind::RoundDone => Message::RoundDone { number: unpack(kind, payload)? },
            Kind::Resumed => Message::Resumed { epoch: unpack(kind, payload)? },
            Kind::Gone => Message::Gone { transfer: unpack(kind, payload)? },
            Kind::PushEnd => {
                return Err(WireError::Damaged { kind, what: "not for the urgent channel" });
            }
        })
    }
}

fn unpack<'a, T: Deserialize<'a>>(kind: Kind, payload: &'a [u8]) -> Result<T, WireError> {
    let damaged = |what| WireError::Damaged { kind, what };
    match postcard::take_from_bytes(payload) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(damaged("bytes left over")),
        Err(_) => Err(damaged("cannot be decoded")),
    }
}

fn unpack_offer(payload: &[u8]) -> Result<Offer, WireError> {
    let damaged = |what| WireError::Damaged { kind: Kind::Offer, what };
    let taken = postcard::take_from_bytes::<Offer>(payload);
    let (offer, rest) = taken.map_err(|_| damaged("cannot be decoded"))?;
    let base = match (rest.is_empty(), <[u8; 16]>::try_from(rest)) {
        (true, _) => None,
        (_, Ok(id)) => Some(Uuid::from_bytes(id)),
        (_, Err(_)) => return Err(damaged("bytes left over")),
    };
    Ok(Offer { base, ..offer })
}

fn unpack_package(payload: &[u8]) -> Result<Vec<Section>, WireError> {
    let packed: Packed = unpack(Kind::Package, payload)?;
    if sections_crc(&packed.sections) != packed.crc {
        return Err(WireError::Damaged { kind: Kind::Package, what: "its checksum is wrong" });
    }
    Ok(packed.sections)
}

fn read_request(payload: &[u8], paging: Paging) -> Result<PageRun, WireError> {
    let Ok(words) = <[u8; 8]>::try_from(payload) else {
        return Err(WireError::Damaged { kind: Kind::Request, what: "not eight bytes" });
    };
    let number = |at| u32::from_le_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]);
    let run = PageRun { first: PageIndex(number(0)), count: number(4) };
    let (pages, limit) = (paging.count, limits::data_pages_per_run_max(paging.size));
    if run.count == 0 || run.count > limit || run.end() > u64::from(pages) {
        return Err(WireError::Run { first: run.first.0, end: run.end(), pages, limit });
    }
    Ok(run)
}

/// Appends `message` as one frame to `out`.
pub fn encode(message: &Message<'_>, out: &mut Vec<u8>) {
    match message {
        Message::Request(run) => {
            out.extend_from_slice(&frame_header(Kind::Request, 8));
            out.extend_from_slice(&run.first.0.to_le_bytes());
            out.extend_from_slice(&run.count.to_le_bytes());
        }
        Message::Pages(head, contents) => {
            assert_eq!(contents.len(), head.content_bytes());
            out.extend_from_slice(&PushFrame::Pages(*head).encode());
            out.extend_from_slice(contents);
        }
        Message::Offer(offer) => pack_offer(offer, out),
        Message::Accept(accept) => pack(Kind::Accept, accept, out),
        Message::Package(sections) => {
            let packed = Packed { sections: sections.clone(), crc: sections_crc(sections) };
            pack(Kind::Package, &packed, out);
        }
        Message::Loaded { transfer }
        | Message::Grant { transfer }
        | Message::Owned { transfer }
        | Message::Gone { transfer } => pack(message.kind(), transfer, out),
        Message::Round { number }
        | Message::RoundReady { number }
        | Message::RoundDone { number }
        | Message::Resumed { epoch: number } => pack(message.kind(), number, out),
        Message::Discard(part) | Message::Received(part) => part.encode(message.kind(), out),
        Message::Refused { transfer, reason } => {
            pack(Kind::Refused, &(transfer, shortened(reason)), out);
        }
        Message::Abort(abort) => {
            pack(Kind::Abort, &Abort { reason: shortened(&abort.reason).to_owned() }, out);
        }
        Message::Complete(complete) => pack(Kind::Complete, complete, out),
        Message::Released | Message::Alive => {
            out.extend_from_slice(&frame_header(message.kind(), 0));
        }
    }
}

fn pack_offer(offer: &Offer, out: &mut Vec<u8>) {
    let start = out.len();
    pack(Kind::Offer, offer, out);
    if let Some(base) = offer.base {
        out.extend_from_slice(base.as_bytes());
        let header = frame_header(Kind::Offer, out.len() - start - HEADER_BYTES);
        out[start..start + HEADER_BYTES].copy_from_slice(&header);
    }
}

fn pack<T: Serialize>(kind: Kind, value: &T, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    postcard::to_io(value, &mut *out).expect("a Vec takes everything, and our types serialize");
    let header = frame_header(kind, out.len() - start - HEADER_BYTES);
    out[start..start + HEADER_BYTES].copy_from_slice(&header);
}

fn shortened(reason: &str) -> &str {
    let mut end = reason.len().min(limits::REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{Encoding, decode};

    fn round_trip(message: &Message<'_>) {
        let mut bytes = Vec::new();
        encode(message, &mut bytes);
        let frame = decode(&bytes).unwrap().unwrap();
        assert_eq!(frame.wire_bytes(), bytes.len());
        assert_eq!(&Message::read(&frame, Paging::base(1000)).unwrap(), message);
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]).unwrap(), None);
        }
    }

    #[test]
    fn every_message_survives_the_wire() {
        let run = PageRun { first: PageIndex(7), count: 2 };
        let contents = vec![3u8; 8192];
        let offer = Offer {
            guest: Uuid::from_u128(5),
            transfer: 3,
            page_bytes: 4096,
            mode: Mode::Hybrid,
            connections: 4,
            memslots: vec![MemslotLayout { gpa: 0, bytes: 1 << 20 }],
            config: vec![1, 2],
            requirements: vec![],
            base: None,
        };
        let section = Section { id: 1, version: 2, bytes: vec![9; 30] };
        for message in [
            Message::Offer(Offer { base: Some(Uuid::from_u128(6)), ..offer.clone() }),
            Message::Offer(offer),
            Message::Accept(Accept { session: [4; 16] }),
            Message::Package(vec![section]),
            Message::Loaded { transfer: 3 },
            Message::Grant { transfer: 3 },
            Message::Owned { transfer: u64::MAX },
            Message::Refused { transfer: 3, reason: "disk full".into() },
            Message::Abort(Abort { reason: "no".into() }),
            Message::Request(run),
            Message::Pages(RunHead::new(PageSize::BASE, run, Encoding::Raw, &contents), &contents),
            Message::Complete(Complete { zero: 1, data: 2, guest_ended: false }),
            Message::Released,
            Message::Alive,
            Message::Discard(BitmapPart { first: 3, words: vec![1, u64::MAX] }),
            Message::Round { number: 1 },
            Message::RoundReady { number: u32::MAX },
            Message::RoundDone { number: 2 },
            Message::Received(BitmapPart { first: 0, words: vec![] }),
            Message::Resumed { epoch: 7 },
            Message::Gone { transfer: 3 },
        ] {
            round_trip(&message);
        }
    }

    #[test]
    fn a_set_survives_in_parts_and_a_part_outside_the_guest_is_refused() {
        let pages = u32::try_from(limits::BITMAP_PART_BYTES_MAX * 8 * 3 + 5).unwrap();
        let mut set = PageSet::empty(pages);
        for page in [0, 77, pages - 1] {
            set.insert(PageIndex(page));
        }
        let parts: Vec<BitmapPart> = BitmapPart::of(&set).collect();
        assert_eq!(parts.len(), 2);
        let mut again = PageSet::empty(pages);
        parts.iter().for_each(|part| part.add_to(&mut again));
        assert_eq!(again, set);
        let mut bytes = Vec::new();
        encode(&Message::Received(parts[1].clone()), &mut bytes);
        let frame = decode(&bytes).unwrap().unwrap();
        assert!(Message::read(&frame, Paging::base(pages)).is_ok());
        assert!(matches!(
            Message::read(&frame, Paging::base(pages - 64)),
            Err(WireError::Damaged { .. })
        ));
    }

    #[test]
    fn a_damaged_package_is_refused() {
        let section = Section { id: 1, version: 2, bytes: vec![9; 30] };
        let mut bytes = Vec::new();
        encode(&Message::Package(vec![section]), &mut bytes);
        bytes[20] ^= 1;
        let frame = decode(&bytes).unwrap().unwrap();
        assert!(matches!(Message::read(&frame, Paging::base(0)), Err(WireError::Damaged { .. })));
    }

    #[test]
    fn a_layout_must_be_ordered_whole_and_countable() {
        let offer = |page_bytes, slots: &[(u64, u64)]| Offer {
            guest: Uuid::nil(),
            transfer: 1,
            page_bytes,
            mode: Mode::Postcopy,
            connections: 1,
            memslots: slots.iter().map(|&(gpa, bytes)| MemslotLayout { gpa, bytes }).collect(),
            config: vec![],
            requirements: vec![],
            base: None,
        };
        let base = |slots: &[(u64, u64)]| offer(4096, slots).paging();
        assert_eq!(base(&[(0, 8192), (1 << 32, 4096)]), Ok(Paging::base(3)));
        assert!(base(&[]).is_err());
        assert!(base(&[(0, 8192), (4096, 4096)]).is_err());
        assert!(base(&[(0, 100)]).is_err());
        assert!(base(&[(0, 1 << 62)]).is_err());
        assert!(base(&[(u64::MAX - 4095, 4096)]).is_err());
        let huge = |slots: &[(u64, u64)]| offer(2 << 20, slots).paging();
        let two = Paging { size: PageSize::HUGE, count: 2 };
        assert_eq!(huge(&[(0, 2 << 20), (1 << 32, 2 << 20)]), Ok(two));
        assert!(huge(&[(0, 4096)]).is_err());
        assert!(huge(&[(4096, 2 << 20)]).is_err());
        for page_bytes in [0, 1, 2048, 4095, 8192, 1 << 30, u32::MAX] {
            assert!(offer(page_bytes, &[(0, 1 << 32)]).paging().is_err(), "{page_bytes}");
        }
    }

    proptest! {
        #[test]
        fn any_payload_is_read_or_refused(kind in 1u16..22, payload: Vec<u8>) {
            let mut bytes = vec![0; HEADER_BYTES];
            bytes[..2].copy_from_slice(&kind.to_le_bytes());
            bytes[4..8].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
            bytes.extend(payload);
            if let Ok(Some(frame)) = decode(&bytes) {
                let _ = Message::read(&frame, Paging::base(1000));
            }
        }
    }
}
