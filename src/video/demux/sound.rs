//! Headers of audio packets: the end of a packet in a stream without lengths, and its duration.

use super::bytes::be16;
use super::nanos;

/// Contents of one packet's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Length in bytes, including the header.
    pub(super) len: usize,
    /// Length of the leading framing in bytes, which other containers omit.
    pub(super) framing: usize,
    pub(super) duration_nanos: i64,
}

/// Framing of audio in a transport stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// AAC with ADTS headers (ISO/IEC 13818-7, 6.2).
    Adts,
    /// MPEG audio of layer 1, 2 or 3.
    MpegAudio,
    /// AC-3 and E-AC-3 (ETSI TS 102 366).
    Ac3,
    /// DTS core, in 16-bit big-endian words (ETSI TS 102 114).
    Dts,
    /// Opus with control headers (ETSI TS 103 491).
    Opus,
}

impl Framing {
    /// Parses the packet at the start of `bytes`; `None` if there is no header.
    pub(super) fn frame(self, bytes: &[u8]) -> Option<Frame> {
        match self {
            Self::Adts => adts(bytes),
            Self::MpegAudio => mpeg_audio(bytes),
            Self::Ac3 => ac3(bytes),
            Self::Dts => dts(bytes),
            Self::Opus => opus(bytes),
        }
    }
}

/// Returns the name of AAC with this decoder config (ISO/IEC 14496-3, 1.6.2.1): transport streams support only channel
/// layouts with a three-bit number.
pub(super) fn aac(decoder_config: &[u8]) -> &'static str {
    let configuration = be16(decoder_config, 0).map(|head| head >> 3 & 15);
    match configuration {
        Some(0 | 8..) => "AAC of a layout without a number",
        _ => "AAC",
    }
}

/// Returns the nanoseconds that the decoder discards according to Opus's own header (RFC 7845, 5.1); `None` for other
/// headers.
pub(super) fn opus_left_out(header: &[u8]) -> Option<i64> {
    let n_samples = header.strip_prefix(b"OpusHead")?.get(2..4)?;
    let n_samples = u16::from_le_bytes(n_samples.try_into().ok()?);
    Some(nanos(n_samples.into(), OPUS_RATE))
}

/// Sample rate of Opus in samples per second, whatever the rate of its source.
pub(super) const OPUS_RATE: u32 = 48_000;

/// Maximum length of a header in bytes, except for Opus, whose header counts in steps of 255.
pub(super) const LONGEST_HEADER: usize = 300;

fn duration(samples: u64, rate: u64) -> i64 {
    i64::try_from(samples * 1_000_000_000 / rate.max(1)).unwrap_or(0)
}

fn adts(bytes: &[u8]) -> Option<Frame> {
    const RATES: [u64; 13] = [
        96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025,
        8_000, 7_350,
    ];
    let head = bytes.get(..7)?;
    let [sync, flags, rate, low, middle, high, blocks] = head else {
        return None;
    };
    if *sync != 0xff || flags & 0xf6 != 0xf0 {
        return None;
    }
    let rate = *RATES.get(usize::from((rate >> 2) & 15))?;
    let len = usize::from(low & 3) << 11 | usize::from(*middle) << 3 | usize::from(high >> 5);
    let framing = if flags & 1 == 1 { 7 } else { 9 };
    let samples = 1024 * (u64::from(blocks & 3) + 1);
    (len > framing).then_some(Frame {
        len,
        framing,
        duration_nanos: duration(samples, rate),
    })
}

fn mpeg_audio(bytes: &[u8]) -> Option<Frame> {
    // Kilobits per second, by version 1 or 2 and by layer.
    const V1_L1: [u64; 14] = [
        32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448,
    ];
    const V1_L2: [u64; 14] = [
        32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384,
    ];
    const V1_L3: [u64; 14] = [
        32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320,
    ];
    const V2_L1: [u64; 14] = [
        32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256,
    ];
    const V2_L23: [u64; 14] = [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160];
    let head = be16(bytes, 0)?;
    let rates = *bytes.get(2)?;
    if head & 0xffe0 != 0xffe0 {
        return None;
    }
    let version = (head >> 3) & 3;
    let layer = 4 - ((head >> 1) & 3);
    let halvings = match version {
        3 => 0,
        2 => 1,
        0 => 2,
        _ => return None,
    };
    let rate = [44_100_u64, 48_000, 32_000].get(usize::from((rates >> 2) & 3))? >> halvings;
    let kilobits = match (halvings, layer) {
        (0, 1) => V1_L1,
        (0, 2) => V1_L2,
        (0, 3) => V1_L3,
        (_, 1) => V2_L1,
        (_, 2 | 3) => V2_L23,
        _ => return None,
    };
    // Zero is the free format, whose packets do not state their length.
    let kilobits = kilobits.get(usize::from(rates >> 4).checked_sub(1)?)?;
    let padding = u64::from((rates >> 1) & 1);
    let (samples, len) = match layer {
        1 => (384, (12 * kilobits * 1000 / rate + padding) * 4),
        3 if halvings > 0 => (576, 72 * kilobits * 1000 / rate + padding),
        _ => (1152, 144 * kilobits * 1000 / rate + padding),
    };
    Some(Frame {
        len: usize::try_from(len).ok()?,
        framing: 0,
        duration_nanos: duration(samples, rate),
    })
}

fn ac3(bytes: &[u8]) -> Option<Frame> {
    const KILOBITS: [u64; 19] = [
        32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640,
    ];
    const RATES: [u64; 3] = [48_000, 44_100, 32_000];
    if be16(bytes, 0)? != 0x0b77 {
        return None;
    }
    let version = bytes.get(5)? >> 3;
    let code = *bytes.get(4)?;
    if version <= 10 {
        let rate = *RATES.get(usize::from(code >> 6))?;
        let kilobits = KILOBITS.get(usize::from((code & 63) >> 1))?;
        let words = match rate {
            48_000 => kilobits * 2,
            32_000 => kilobits * 3,
            _ => kilobits * 96_000 / rate + u64::from(code & 1),
        };
        return Some(Frame {
            len: usize::try_from(words * 2).ok()?,
            framing: 0,
            duration_nanos: duration(1536, rate),
        });
    }
    let len = (usize::from(be16(bytes, 2)? & 0x7ff) + 1) * 2;
    let (rate, blocks) = match code >> 6 {
        3 => (RATES.get(usize::from((code >> 4) & 3))? / 2, 6),
        rate => (
            *RATES.get(usize::from(rate))?,
            *[1, 2, 3, 6].get(usize::from((code >> 4) & 3))?,
        ),
    };
    Some(Frame {
        len,
        framing: 0,
        duration_nanos: duration(256 * blocks, rate),
    })
}

fn dts(bytes: &[u8]) -> Option<Frame> {
    // 0 is reserved.
    const RATES: [u64; 16] = [
        0, 8_000, 16_000, 32_000, 0, 0, 11_025, 22_050, 44_100, 0, 0, 12_000, 24_000, 48_000, 0, 0,
    ];
    if (be16(bytes, 0)?, be16(bytes, 2)?) != (0x7ffe, 0x8001) {
        return None;
    }
    // Bits from the fifth byte on: 7 of flags, 7 of blocks, 14 of length, 6 of channels, 4 of the rate.
    let (high, low) = (u32::from(be16(bytes, 4)?), u32::from(be16(bytes, 6)?));
    let bits = high << 16 | low;
    let n_blocks = u64::from(bits >> 18 & 0x7f) + 1;
    let len = (bits >> 4 & 0x3fff) as usize + 1;
    let rate = *RATES.get(usize::from(bytes.get(8)? >> 2 & 15))?;
    (rate > 0 && len > 8).then_some(Frame {
        len,
        framing: 0,
        duration_nanos: duration(32 * n_blocks, rate),
    })
}

fn opus(bytes: &[u8]) -> Option<Frame> {
    let head = be16(bytes, 0)?;
    if head & 0xffe0 != 0x7fe0 {
        return None;
    }
    let mut at = 2;
    let mut payload = 0;
    loop {
        let byte = *bytes.get(at)?;
        at += 1;
        payload += usize::from(byte);
        if byte < 255 {
            break;
        }
    }
    at += if head & 0x10 != 0 { 2 } else { 0 };
    at += if head & 0x08 != 0 { 2 } else { 0 };
    if head & 0x04 != 0 {
        at += 1 + usize::from(*bytes.get(at)?);
    }
    Some(Frame {
        len: at + payload,
        framing: at,
        duration_nanos: bytes.get(at..).and_then(opus_duration).unwrap_or(0),
    })
}

/// Returns the duration of an Opus packet in nanoseconds (RFC 6716, section 3.1).
pub(super) fn opus_duration(packet: &[u8]) -> Option<i64> {
    let first = *packet.first()?;
    let config = first >> 3;
    let micros: i64 = match config {
        0..=11 => *[10_000, 20_000, 40_000, 60_000].get(usize::from(config & 3))?,
        12..=15 => *[10_000, 20_000].get(usize::from(config & 1))?,
        _ => *[2_500, 5_000, 10_000, 20_000].get(usize::from(config & 3))?,
    };
    let n_frames = match first & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => i64::from(packet.get(1)? & 63),
    };
    Some(micros * n_frames * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_length_and_duration() {
        // From the standards' tables: 48 kHz, 7 bytes of header, 519 bytes in all.
        let adts = [0xff, 0xf1, 0x4c, 0x80, 0x40, 0xff, 0xfc];
        let frame = Framing::Adts.frame(&adts).unwrap();
        assert_eq!((frame.len, frame.framing), (519, 7));
        assert_eq!(frame.duration_nanos, 21_333_333);
        // MPEG-1 layer 3, 128 kbit/s at 44.1 kHz with padding: 418 bytes; layer 2, 384 kbit/s at 48 kHz: 1152.
        let mp3 = Framing::MpegAudio.frame(&[0xff, 0xfb, 0x92, 0]).unwrap();
        assert_eq!((mp3.len, mp3.duration_nanos), (418, 26_122_448));
        let mp2 = Framing::MpegAudio.frame(&[0xff, 0xfd, 0xe4, 0]).unwrap();
        assert_eq!((mp2.len, mp2.duration_nanos), (1152, 24_000_000));
        // AC-3, 192 kbit/s at 48 kHz: 768 bytes, 32 ms.
        let ac3 = Framing::Ac3.frame(&[0x0b, 0x77, 0, 0, 0x14, 0x40]).unwrap();
        assert_eq!((ac3.len, ac3.duration_nanos), (768, 32_000_000));
        // DTS, 16 blocks of 32 samples at 48 kHz: 1884 bytes, as reported by ffprobe for ffmpeg's output.
        let dts = [0x7f, 0xfe, 0x80, 0x01, 0xfc, 0x3c, 0x75, 0xb0, 0x36];
        let dts = Framing::Dts.frame(&dts).unwrap();
        assert_eq!((dts.len, dts.duration_nanos), (1884, 10_666_666));
    }

    #[test]
    fn opus_packets_say_how_long_they_play() {
        assert_eq!(opus_duration(&[0xfc]), Some(20_000_000));
        assert_eq!(opus_duration(&[0xfd]), Some(40_000_000));
        assert_eq!(opus_duration(&[0xff, 3]), Some(60_000_000));
        assert_eq!(opus_duration(&[]), None);
        let framed = Framing::Opus.frame(&[0x7f, 0xe0, 255, 1, 0xfc]).unwrap();
        assert_eq!((framed.len, framed.framing), (260, 4));
    }
}
