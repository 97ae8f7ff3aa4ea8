//! Pages by how they travelled.

use serde::{Deserialize, Serialize};

/// The pages that have travelled, counted by how they did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classes {
    /// Pages of zeros, without contents.
    pub zero: ClassCount,
    /// Pages of one repeated word of eight bytes.
    pub word: ClassCount,
    /// Pages that were packed with lz4.
    pub lz4: ClassCount,
    /// Pages as they are.
    pub raw: ClassCount,
    /// Pages that the source could not read, without contents.
    pub poisoned: ClassCount,
    /// Pages that both sides have in their base, without contents.
    pub same: ClassCount,
}

/// What travelled in one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassCount {
    /// Pages.
    pub pages: u64,
    /// Bytes on the link, headers included.
    pub bytes: u64,
}
