//! Reading of numbers from byte slices that may be too short.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;

/// Reads the `len` bytes at `at` as one big-endian number; at most 8 bytes.
pub(super) fn be(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(len)?)?;
    let number = bytes
        .iter()
        .fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
    (len <= 8).then_some(number)
}

pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    be(bytes, at, 2).map(|number| number as u16)
}

pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    be(bytes, at, 4).map(|number| number as u32)
}

/// Computes the digest of one packet.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
