//! Sections: the parts in which saved state travels.

pub use godwit_migration::wire::Section;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The sections of a guest. Each is there once, but for the vCPUs and the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Kind {
    /// What the guest is made of.
    Machine = 1,
    /// Interrupt controllers, timer and clock.
    Chips = 2,
    /// The serial port.
    Serial = 3,
    /// A vCPU; one section for each, in order.
    Vcpu = 4,
    /// A virtio device; one section for each, in order.
    Virtio = 5,
}

/// Why saved state, or the requirements of a guest, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A section that this build does not know.
    #[error(
        "saved state has a section {id} that this build does not know; it comes from a newer godwit"
    )]
    UnknownSection {
        /// The number of the section.
        id: u16,
    },
    /// A version that this build does not know.
    #[error(
        "{what} of the saved state has version {version}, and this build knows versions up to \
         {known}; it comes from a newer godwit"
    )]
    Version {
        /// The section.
        what: &'static str,
        /// The version found.
        version: u16,
        /// The newest version known.
        known: u16,
    },
    /// A section is missing, or there twice.
    #[error("saved state has {found} sections for {what}, and {wanted} are needed")]
    Count {
        /// The section.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there must be.
        wanted: usize,
    },
    /// The bytes cannot be read.
    #[error("{what} of the saved state is damaged ({bytes} bytes)")]
    Damaged {
        /// The section.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// Where reading failed.
        source: postcard::Error,
    },
    /// There is something behind the end.
    #[error("{what} of the saved state is damaged: {bytes} bytes are left over")]
    LeftOver {
        /// The section.
        what: &'static str,
        /// How many bytes are too many.
        bytes: usize,
    },
    /// A field is too long.
    #[error("{what} in the saved state has {bytes} bytes or entries; at most {limit} are possible")]
    TooLong {
        /// The field.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A field has the wrong length.
    #[error("{what} in the saved state has {bytes} bytes or entries, and {wanted} are needed")]
    Length {
        /// The field.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The length it must have.
        wanted: usize,
    },
    /// The state is for a guest of another shape.
    #[error("saved state is for a guest with {what} {saved}, and this one has {here}")]
    Shape {
        /// What differs.
        what: &'static str,
        /// In the saved state.
        saved: u64,
        /// In this guest.
        here: u64,
    },
    /// The guest uses processor features that this host lacks.
    #[error("this host cannot run the guest: it lacks CPUID {missing}")]
    MissingFeatures {
        /// The bits, with their names.
        missing: String,
    },
    /// The guest uses MSRs that this host lacks.
    #[error("this host cannot run the guest: it lacks MSR {missing}")]
    MissingMsrs {
        /// The indices.
        missing: String,
    },
    /// An MSR has a value that this host refuses.
    #[error("this host refuses the guest's value {value:#x} for MSR {index:#x}")]
    MsrRefused {
        /// The MSR.
        index: u32,
        /// The value.
        value: u64,
    },
    /// The guest's extended state does not fit.
    #[error(
        "this host cannot run the guest: the guest's extended processor state has {guest} bytes, \
         and this host's has {here}"
    )]
    XsaveTooLarge {
        /// Bytes in the guest.
        guest: usize,
        /// Bytes here.
        here: usize,
    },
    /// The state of a device does not fit the device.
    #[error("the saved state of {device} does not fit: {what}")]
    Device {
        /// The device.
        device: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The guest's time stamp counter has another frequency, which cannot be set here.
    #[error(
        "this host cannot run the guest: the guest's time stamp counter runs at {guest_khz} kHz, \
         this host's at {here_khz} kHz, and it cannot be scaled"
    )]
    TscFrequency {
        /// In the guest.
        guest_khz: u32,
        /// Here.
        here_khz: u32,
    },
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 5] = [Kind::Machine, Kind::Chips, Kind::Serial, Kind::Vcpu, Kind::Virtio];

    /// The newest version that this build writes and reads.
    pub const fn version(self) -> u16 {
        match self {
            Kind::Machine | Kind::Chips | Kind::Serial | Kind::Vcpu | Kind::Virtio => 1,
        }
    }

    /// The section's name for messages.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Machine => "the machine",
            Kind::Chips => "the interrupt controllers",
            Kind::Serial => "the serial port",
            Kind::Vcpu => "a vcpu",
            Kind::Virtio => "a virtio device",
        }
    }

    /// The kind of a section.
    ///
    /// # Errors
    /// [`StateError::UnknownSection`], [`StateError::Version`].
    pub fn of(section: &Section) -> Result<Kind, StateError> {
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u16 == section.id);
        let kind = kind.ok_or(StateError::UnknownSection { id: section.id })?;
        let (version, known) = (section.version, kind.version());
        // Version 0 was never written by anybody.
        if version == 0 || version > known {
            return Err(StateError::Version { what: kind.name(), version, known });
        }
        Ok(kind)
    }
}

/// Writes a section.
///
/// # Panics
/// Never: the types of this module can all be written.
pub(crate) fn encode(kind: Kind, value: &impl Serialize) -> Section {
    let bytes = postcard::to_stdvec(value).expect("saved types are made of numbers and bytes");
    Section { id: kind as u16, version: kind.version(), bytes }
}

/// Reads the bytes of something called `what`.
///
/// # Errors
/// [`StateError::Damaged`], [`StateError::LeftOver`].
pub(crate) fn decode<T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
) -> Result<T, StateError> {
    let damaged = |source| StateError::Damaged { what, bytes: bytes.len(), source };
    let (value, rest) = postcard::take_from_bytes(bytes).map_err(damaged)?;
    match rest.len() {
        0 => Ok(value),
        bytes => Err(StateError::LeftOver { what, bytes }),
    }
}
