//! Video format in the header of an FFV1 stream (RFC 9043).

use vitscope_core::error::{Error, Result};

/// Storage format of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) is_rgb: bool,
    pub(super) bits: u32,
    pub(super) has_colors: bool,
    /// Base-2 logarithms of the horizontal and vertical chroma subsampling factors.
    pub(super) shifts: (u32, u32),
    pub(super) has_alpha: bool,
}

impl Format {
    /// Reads the configuration record (section 4.3), which streams of version 3 have.
    pub(super) fn of_record(record: &[u8]) -> Option<Self> {
        Coded::new(record)?.parameters()
    }

    /// Reads the first frame of a stream without a record, of version 0 or 1 (section 4.4).
    pub(super) fn of_frame(frame: &[u8]) -> Option<Self> {
        let mut coded = Coded::new(frame)?;
        let is_key_frame = coded.bit(&mut 128);
        is_key_frame.then(|| coded.parameters())?
    }

    /// Fails if GStreamer cannot decode the format.
    pub(super) fn check(self) -> Result<()> {
        if self.is_decodable() {
            return Ok(());
        }
        let colors = match (self.is_rgb, self.has_colors, self.shifts) {
            (true, ..) => "RGB",
            (false, false, _) => "grayscale",
            (_, _, (0, 0)) => "4:4:4",
            (_, _, (1, 0)) => "4:2:2",
            (_, _, (1, 1)) => "4:2:0",
            (_, _, (0, 1)) => "4:4:0",
            _ => "in an unusual layout",
        };
        let alpha = if self.has_alpha {
            " and an alpha channel"
        } else {
            ""
        };
        Err(Error::Media(format!(
            "the video is {colors} with {} bits per sample{alpha}, which GStreamer cannot decode",
            self.bits
        )))
    }

    /// True if GStreamer's decoder (gst-libav 1.22) supports the format; otherwise it crashes.
    pub(super) fn is_decodable(self) -> bool {
        let usual = matches!(self.shifts, (0 | 1, 0) | (1, 1));
        match (self.is_rgb, self.has_colors, self.has_alpha, self.bits) {
            (true, ..) => matches!(self.bits, 8 | 10 | 12),
            (false, false, has_alpha, bits) => !has_alpha && matches!(bits, 8 | 16),
            (_, _, false, 8) => usual || matches!(self.shifts, (2, 0 | 2)),
            (_, _, false, bits) => usual && matches!(bits, 10 | 12),
            (_, _, true, 8) => self.shifts == (1, 1),
            (_, _, true, bits) => usual && bits == 10,
        }
    }
}

/// Decoder for range-coded bits (section 3.8.1).
struct Coded<'a> {
    bytes: &'a [u8],
    low: u32,
    range: u32,
    /// State transitions after a one bit.
    after_one: [u8; 256],
}

impl<'a> Coded<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk()?;
        Some(Self {
            bytes: rest,
            low: u16::from_be_bytes(*head).into(),
            range: 0xff00,
            after_one: default_transitions(),
        })
    }

    fn bit(&mut self, state: &mut u8) -> bool {
        let share_of_one = (self.range * u32::from(*state)) >> 8;
        self.range -= share_of_one;
        let is_one = self.low >= self.range;
        if is_one {
            self.low -= self.range;
            self.range = share_of_one;
            *state = self.after(*state);
        } else {
            *state = 0_u8.wrapping_sub(self.after(0_u8.wrapping_sub(*state)));
        }
        while self.range < 0x100 {
            let (first, rest) = self.bytes.split_first().unwrap_or((&0, &[]));
            self.bytes = rest;
            self.range <<= 8;
            self.low = self.low << 8 | u32::from(*first);
            if self.range == 0 {
                break;
            }
        }
        is_one
    }

    fn after(&self, state: u8) -> u8 {
        self.after_one.get(usize::from(state)).copied().unwrap_or(0)
    }

    /// Reads a number: whether it is zero, its length in bits, its bits, and its sign (section 3.8.1.2).
    fn number(&mut self, states: &mut [u8; 32], is_signed: bool) -> Option<u32> {
        let [zero, rest @ ..] = states;
        if self.bit(zero) {
            return Some(0);
        }
        let (lengths, rest) = rest.split_at_mut(10);
        let (signs, bits) = rest.split_at_mut(11);
        let mut n_bits = 0;
        while self.bit(lengths.get_mut(n_bits.min(9))?) {
            n_bits += 1;
            if n_bits > 31 {
                return None;
            }
        }
        let mut number = 1_u32;
        for idx in (0..n_bits).rev() {
            let bit = self.bit(bits.get_mut(idx.min(9))?);
            number = number << 1 | u32::from(bit);
        }
        if is_signed {
            self.bit(signs.get_mut(n_bits.min(10))?);
        }
        Some(number)
    }

    /// Reads the parameters of section 4.2, up to the alpha plane.
    fn parameters(&mut self) -> Option<Format> {
        let states = &mut [128; 32];
        let version = self.number(states, false)?;
        if version > 2 {
            let _micro_version = self.number(states, false)?;
        }
        let coder = self.number(states, false)?;
        if coder > 1 {
            for _ in 1..256 {
                self.number(states, true)?;
            }
        }
        let color_space = self.number(states, false)?;
        let bits = match version {
            0 => 8,
            _ => self.number(states, false)?,
        };
        let has_colors = self.bit(&mut states[0]);
        let shifts = (self.number(states, false)?, self.number(states, false)?);
        Some(Format {
            is_rgb: color_space == 1,
            bits: if bits == 0 { 8 } else { bits },
            has_colors,
            shifts,
            has_alpha: self.bit(&mut states[0]),
        })
    }
}

/// Computes the table of section 3.8.1.4 from its generating rule: a state is the probability of a one in 1/256, each
/// one takes a twentieth of the remainder, and no state is visited twice on the way.
fn default_transitions() -> [u8; 256] {
    const ONE: i64 = 1 << 32;
    const TWENTIETH: i64 = ONE / 20;
    const MOST: i64 = 256 - 8;
    let grown =
        |probability: i64| probability + (((ONE - probability) * TWENTIETH + ONE / 2) >> 32);
    let in_256 = |probability: i64| (256 * probability + ONE / 2) >> 32;
    let mut after = [0_u8; 256];
    let mut set = |from: i64, to: i64| {
        let place = usize::try_from(from)
            .ok()
            .and_then(|idx| after.get_mut(idx));
        if let (Some(place), Ok(to)) = (place.filter(|place| **place == 0), u8::try_from(to)) {
            *place = to;
        }
    };
    let (mut probability, mut last) = (ONE / 2, 0);
    for _ in 0..128 {
        let state = in_256(probability).max(last + 1);
        if last > 0 && state <= MOST {
            set(last, state);
        }
        probability = grown(probability);
        last = state;
    }
    for state in 256 - MOST..=MOST {
        let next = in_256(grown((state * ONE + 128) >> 8));
        set(state, next.max(state + 1).min(MOST));
    }
    after
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn formats_are_those_that_ffmpeg_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let format = |bits, shifts, has_colors, has_alpha, is_rgb| Format {
            is_rgb,
            bits,
            has_colors,
            shifts,
            has_alpha,
        };
        let cases = [
            ("yuv420p", format(8, (1, 1), true, false, false), true),
            ("yuv410p", format(8, (2, 2), true, false, false), true),
            ("yuv440p", format(8, (0, 1), true, false, false), false),
            ("yuv422p10le", format(10, (1, 0), true, false, false), true),
            ("yuv420p16le", format(16, (1, 1), true, false, false), false),
            ("yuva444p10le", format(10, (0, 0), true, true, false), true),
            ("yuva444p", format(8, (0, 0), true, true, false), false),
            ("gbrp12le", format(12, (0, 0), true, false, true), true),
            ("gbrp14le", format(14, (0, 0), true, false, true), false),
        ];
        for (name, expected, is_decodable) in cases {
            // Each stream of version 3 has a record, at the end of the track header in an AVI file.
            for level in ["1", "3"] {
                let path = folder.path().join(format!("{name}.{level}.avi"));
                let input = format!(
                    "-f lavfi -i testsrc2=size=64x64:rate=25:duration=0.04 -pix_fmt {name} -c:v ffv1 -level {level}"
                );
                let made = Command::new("ffmpeg")
                    .args(["-v", "error", "-nostdin"])
                    .args(input.split_whitespace())
                    .arg(&path)
                    .status();
                assert!(made.unwrap().success(), "{name}");
                let bytes = std::fs::read(&path).unwrap();
                let chunk = |kind: &[u8], from: &[u8], header_len: usize| {
                    let place = |kind: &[u8], from| {
                        let mut windows = bytes[from..].windows(4);
                        from + windows.position(|window| window == kind).unwrap()
                    };
                    let at = place(kind, place(from, 0));
                    let len = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap());
                    bytes[at + 8 + header_len..at + 8 + len as usize].to_vec()
                };
                let record = chunk(b"strf", b"strh", 40);
                let found = match record.len() {
                    0..8 => Format::of_frame(&chunk(b"00dc", b"movi", 0)),
                    _ => Format::of_record(&record),
                };
                assert_eq!(found, Some(expected), "{name} at level {level}");
                assert_eq!(expected.is_decodable(), is_decodable, "{name}");
            }
        }
    }

    #[test]
    fn any_bytes_are_read() {
        for seed in 0..2000_u32 {
            let bytes: Vec<u8> = (0..seed % 40)
                .map(|idx| (seed.wrapping_mul(2_654_435_761) >> (idx % 24)) as u8)
                .collect();
            // Any result is fine except a panic or an endless loop.
            let _ = (Format::of_record(&bytes), Format::of_frame(&bytes));
        }
    }
}
