//! A peer that speaks the protocol, message by message, and lies when the test wants.

use godwit_migration::page::Paging;
use std::io;

use godwit_migration::transport::Address;
use godwit_migration::wire::{
    self, Abort, Accept, BULK_HELLO_BYTES, BulkHello, Channel, HEADER_BYTES, Kind, Message, Offer,
    PREAMBLE_BYTES, Preamble, Section, encode,
};

use crate::peer::{Peer, PeerListener};
use crate::stage::{Machine, Stage};

/// What the bulk channels of our sessions say.
pub const SESSION: [u8; 16] = *b"a session of us.";

/// One channel of a migration, held by the test.
#[derive(Debug)]
pub struct Speaker {
    /// The connection, for what is no message.
    pub peer: Peer,
}

/// One frame that the other side has sent.
#[derive(Debug)]
pub struct Heard {
    bytes: Vec<u8>,
}

impl Speaker {
    /// Connects as a source does, and exchanges preambles.
    ///
    /// # Panics
    /// If nobody listens, or somebody who is not godwit.
    #[track_caller]
    pub fn dial(address: &Address, channel: Channel) -> Speaker {
        let mut peer = Peer::connect(address);
        peer.send(&Preamble::ours(channel).encode()).expect("takes a preamble");
        let preamble = peer.receive(PREAMBLE_BYTES).try_into().expect("as many");
        Preamble::decode(&preamble).expect("the preamble of a godwit");
        Speaker { peer }
    }

    /// Waits for a caller as a destination does, and exchanges preambles.
    ///
    /// # Panics
    /// If none calls, or it wants another channel.
    #[track_caller]
    pub fn accept(listener: &PeerListener, channel: Channel) -> Speaker {
        let mut peer = listener.accept();
        let preamble = peer.receive(PREAMBLE_BYTES).try_into().expect("as many");
        let theirs = Preamble::decode(&preamble).expect("the preamble of a godwit");
        assert_eq!(theirs.channel, channel);
        peer.send(&Preamble::ours(channel).encode()).expect("takes a preamble");
        Speaker { peer }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The other side has hung up.
    pub fn say(&mut self, message: &Message<'_>) -> io::Result<()> {
        let mut bytes = Vec::new();
        encode(message, &mut bytes);
        self.peer.send(&bytes)
    }

    /// The next frame that is not [`Kind::Alive`].
    ///
    /// # Panics
    /// If the other side hangs up, is silent, or sends what is no frame.
    #[track_caller]
    pub fn hear(&mut self) -> Heard {
        loop {
            let mut bytes = self.peer.receive(HEADER_BYTES);
            let length = u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes"));
            bytes.extend(self.peer.receive(length as usize));
            let heard = Heard { bytes };
            if heard.kind() != Kind::Alive {
                return heard;
            }
        }
    }

    /// The next frame, which is of this kind.
    ///
    /// # Panics
    /// If something else comes, or nothing.
    #[track_caller]
    pub fn expect(&mut self, kind: Kind) -> Heard {
        let heard = self.hear();
        assert_eq!(heard.kind(), kind, "{:?}", heard.message(u32::MAX));
        heard
    }

    /// The reason that the other side gives for ending the migration.
    ///
    /// # Panics
    /// If it gives none.
    #[track_caller]
    pub fn expect_abort(&mut self) -> String {
        match self.expect(Kind::Abort).message(0) {
            Message::Abort(Abort { reason }) => reason,
            other => panic!("not an abort: {other:?}"),
        }
    }
}

impl Heard {
    /// What it is.
    ///
    /// # Panics
    /// If it is no frame.
    #[track_caller]
    pub fn kind(&self) -> Kind {
        wire::decode(&self.bytes).expect("a frame").expect("all of it").kind
    }

    /// What it says, about a guest of `pages` pages.
    ///
    /// # Panics
    /// If that cannot be read.
    #[track_caller]
    pub fn message(&self, pages: u32) -> Message<'_> {
        let frame = wire::decode(&self.bytes).expect("a frame").expect("all of it");
        Message::read(&frame, Paging::base(pages)).expect("a message")
    }
}

/// What a real source says of a guest, to be said again with changes.
#[derive(Clone, Debug)]
pub struct Rehearsal {
    /// Its offer.
    pub offer: Offer,
    /// Its package.
    pub sections: Vec<Section>,
}

impl Rehearsal {
    /// Lets a real source begin a migration of `machine`, and gives up before the switchover.
    ///
    /// # Panics
    /// If the source does not do its part.
    #[track_caller]
    pub fn of(stage: &Stage, machine: &Machine<'_>) -> Rehearsal {
        let mut node = stage.launch_filled("rehearsal", machine);
        let listener = PeerListener::tcp();
        let mut migrate = stage.migrate(&node, &listener.address());
        let mut urgent = Speaker::accept(&listener, Channel::Urgent);
        let offer = match urgent.expect(Kind::Offer).message(0) {
            Message::Offer(offer) => offer,
            other => panic!("not an offer: {other:?}"),
        };
        urgent.say(&Message::Accept(Accept { session: SESSION })).expect("takes it");
        let _bulk = accept_bulk(&listener);
        let sections = match urgent.expect(Kind::Package).message(0) {
            Message::Package(sections) => sections,
            other => panic!("not a package: {other:?}"),
        };
        let reason = "only a rehearsal".to_owned();
        urgent.say(&Message::Abort(Abort { reason })).expect("takes it");
        migrate.wait_failure();
        node.process.kill();
        Rehearsal { offer, sections }
    }

    /// The number of pages of the guest.
    ///
    /// # Panics
    /// If its offer has none.
    pub fn pages(&self) -> u32 {
        self.offer.paging().expect("a real offer").count
    }

    /// Calls at `address` and makes this offer.
    ///
    /// # Panics
    /// If nobody is there.
    #[track_caller]
    pub fn offer(&self, address: &Address) -> Speaker {
        let mut urgent = Speaker::dial(address, Channel::Urgent);
        urgent.say(&Message::Offer(self.offer.clone())).expect("takes it");
        urgent
    }

    /// Makes the offer, which must be accepted, and connects the bulk channel.
    ///
    /// # Panics
    /// If it is not accepted.
    #[track_caller]
    pub fn both_channels(&self, address: &Address) -> (Speaker, Speaker) {
        let mut urgent = self.offer(address);
        let session = match urgent.expect(Kind::Accept).message(0) {
            Message::Accept(accept) => accept.session,
            other => panic!("not an accept: {other:?}"),
        };
        let mut bulk = Speaker::dial(address, Channel::Bulk);
        bulk.peer.send(&BulkHello { session, epoch: 0 }.encode()).expect("takes it");
        (urgent, bulk)
    }

    /// The same up to the answer to the package: only the grant is missing.
    ///
    /// # Panics
    /// If the package is not loaded.
    #[track_caller]
    pub fn until_loaded(&self, address: &Address) -> (Speaker, Speaker) {
        let (mut urgent, bulk) = self.both_channels(address);
        urgent.say(&Message::Package(self.sections.clone())).expect("takes it");
        urgent.expect(Kind::Loaded);
        (urgent, bulk)
    }
}

/// Waits for the first bulk channel of [`SESSION`].
///
/// # Panics
/// If it does not come, or names another session or a later time.
#[track_caller]
pub fn accept_bulk(listener: &PeerListener) -> Speaker {
    let mut bulk = Speaker::accept(listener, Channel::Bulk);
    let hello = bulk.peer.receive(BULK_HELLO_BYTES).try_into().expect("as many");
    assert_eq!(BulkHello::decode(&hello), BulkHello { session: SESSION, epoch: 0 });
    bulk
}
