//! Durations of Vorbis packets, which no container states for each packet (Vorbis I specification, sections 4.2 and
//! 4.3).
//!
//! A packet yields a quarter of its block and of the previous one. Its mode determines which of the two lengths its
//! block has. The modes are at the end of the setup header, whose other parts can only be skipped by parsing all of
//! them, so the modes are read backwards from the end.

use std::time::Duration;

use gstreamer as gst;

/// Bits of one mode: long-block flag, window and transform types, which are zero, and mapping.
const MODE_LEN: usize = 1 + 16 + 16 + 8;
/// Bits of the number of modes.
const COUNT_LEN: usize = 6;

/// Lengths of consecutive packets of a stream.
#[derive(Debug)]
pub(super) struct Lengths {
    rate: u32,
    /// Samples of short and of long blocks.
    blocks: [u32; 2],
    /// Whether the block of each mode is long.
    is_long: Vec<bool>,
    /// Samples of the previous packet's block.
    previous: Option<u32>,
}

impl Lengths {
    /// Creates the state for a stream with these caps; `None` if it is not Vorbis with its headers.
    pub(super) fn of_caps(caps: &gst::CapsRef) -> Option<Self> {
        let fields = caps.structure(0)?;
        if fields.name() != "audio/x-vorbis" {
            return None;
        }
        let headers = fields.get::<gst::Array>("streamheader").ok()?;
        let header = |header_idx: usize| {
            let header = headers.get(header_idx)?.get::<gst::Buffer>().ok()?;
            Some(header.map_readable().ok()?.to_vec())
        };
        Self::of_headers(&header(0)?, &header(2)?)
    }

    fn of_headers(identification: &[u8], setup: &[u8]) -> Option<Self> {
        let rate = identification.get(12..16)?.try_into().ok()?;
        let rate = u32::from_le_bytes(rate);
        let exponents = *identification.get(28)?;
        let blocks = [exponents & 0xf, exponents >> 4].map(|exponent| 1 << exponent);
        (rate > 0).then_some(())?;
        Some(Self {
            rate,
            blocks,
            is_long: modes(setup)?,
            previous: None,
        })
    }

    /// Returns the duration of the next packet; `None` if it is not an audio packet.
    pub(super) fn next(&mut self, packet: &[u8]) -> Option<Duration> {
        let first = u32::from(*packet.first()?);
        if first & 1 == 1 {
            return None;
        }
        let n_bits = usize::BITS - (self.is_long.len() - 1).leading_zeros();
        let mode = (first >> 1) & ((1 << n_bits) - 1);
        let is_long = *self.is_long.get(mode as usize)?;
        let block = self.blocks[usize::from(is_long)];
        let previous = self.previous.replace(block).unwrap_or(block);
        let samples = u64::from(previous) / 4 + u64::from(block) / 4;
        Some(Duration::from_nanos(
            samples * 1_000_000_000 / u64::from(self.rate),
        ))
    }
}

/// Returns whether the block of each mode of a setup header is long.
fn modes(setup: &[u8]) -> Option<Vec<bool>> {
    let bit = |at: usize| setup.get(at / 8).map(|byte| byte >> (at % 8) & 1 == 1);
    // The last set bit is the framing bit.
    let end = (0..8 * setup.len())
        .rev()
        .find(|&at| bit(at) == Some(true))?;
    let count_before = |at: usize| -> Option<usize> {
        let start = at.checked_sub(COUNT_LEN)?;
        let count = (0..COUNT_LEN).filter(|&place| bit(start + place) == Some(true));
        Some(count.map(|place| 1 << place).sum::<usize>() + 1)
    };
    let mut start = end;
    let mut found = None;
    let mut is_long = Vec::new();
    while let Some(at) = start.checked_sub(MODE_LEN)
        && (at + 1..at + 33).all(|place| bit(place) == Some(false))
        && is_long.len() < 1 << COUNT_LEN
    {
        start = at;
        is_long.push(bit(at) == Some(true));
        // Data before the modes may look like one, so the longest list that matches its own stated length counts.
        if count_before(at) == Some(is_long.len()) {
            found = Some(is_long.len());
        }
    }
    is_long.truncate(found?);
    is_long.reverse();
    Some(is_long)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Packs bits into bytes, lowest bit first.
    fn bytes(bits: &[bool]) -> Vec<u8> {
        let byte = |bits: &[bool]| {
            let places = bits.iter().enumerate();
            places.fold(0, |sum, (place, bit)| sum | u8::from(*bit) << place)
        };
        bits.chunks(8).map(byte).collect()
    }

    fn setup(before: &[bool], modes: &[bool]) -> Vec<u8> {
        let mut bits = before.to_vec();
        bits.extend((0..COUNT_LEN).map(|place| (modes.len() - 1) >> place & 1 == 1));
        for (mode_idx, is_long) in modes.iter().enumerate() {
            bits.push(*is_long);
            bits.extend([false; 32]);
            bits.extend((0..8).map(|place| mode_idx >> place & 1 == 1));
        }
        bits.push(true);
        bytes(&bits)
    }

    proptest! {
        #[test]
        fn modes_are_read_from_the_end(
            before in prop::collection::vec(any::<bool>(), 60..200),
            modes in prop::collection::vec(any::<bool>(), 1..6),
        ) {
            // The modes are preceded by data that is not a mode.
            let before = [before, vec![true; 60]].concat();
            prop_assert_eq!(super::modes(&setup(&before, &modes)), Some(modes));
        }

        #[test]
        fn broken_headers_and_packets_are_no_panic(
            identification in prop::collection::vec(any::<u8>(), 0..40),
            setup in prop::collection::vec(any::<u8>(), 0..60),
            packet in prop::collection::vec(any::<u8>(), 0..4),
        ) {
            if let Some(mut lengths) = Lengths::of_headers(&identification, &setup) {
                lengths.next(&packet);
            }
        }
    }

    #[test]
    fn a_packet_is_as_long_as_half_of_two_blocks() {
        let mut identification = vec![0; 30];
        identification[12..16].copy_from_slice(&48_000_u32.to_le_bytes());
        identification[28] = 8 | 11 << 4;
        let setup = setup(&[true; 100], &[false, true]);
        let mut lengths = Lengths::of_headers(&identification, &setup).unwrap();
        let (short, long) = ([0b00], [0b10]);
        let samples = |length: Option<Duration>| (length.unwrap().as_secs_f64() * 48e3).round();
        let got =
            [&short, &short, &long, &long, &short].map(|packet| samples(lengths.next(packet)));
        assert_eq!(got, [128.0, 128.0, 576.0, 1024.0, 576.0]);
        assert_eq!(lengths.next(&[1]), None);
        assert_eq!(lengths.next(&[]), None);
    }
}
