//! Bytes that serde treats as bytes, not as a sequence of numbers: one copy instead of a call each.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::StateError;

/// Bytes without a meaning of their own here: the kernel's layout of a chip or of extended state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl Blob {
    /// The bytes as an array.
    ///
    /// # Errors
    /// [`StateError::Length`].
    pub(crate) fn array<const N: usize>(&self, what: &'static str) -> Result<&[u8; N], StateError> {
        let bytes = self.0.len();
        self.0.as_slice().try_into().map_err(|_| StateError::Length { what, bytes, wanted: N })
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Blob, D::Error> {
        deserializer.deserialize_bytes(BlobVisitor)
    }
}

struct BlobVisitor;

impl Visitor<'_> for BlobVisitor {
    type Value = Blob;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Blob, E> {
        Ok(Blob(bytes.to_vec()))
    }
}
