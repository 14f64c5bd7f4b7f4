//! Demuxer of Matroska and WebM blocks, including laced ones (RFC 9559).

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::Hasher;
use std::io::{BufReader, Read, Seek, SeekFrom};

use super::bytes::{be, hash};
use super::sound::{self, opus_duration};
use super::{Contents, Format, Kind, MOST_PACKETS, Packet, Track, Unreadable, complete, first_key};

const SEGMENT: u32 = 0x1853_8067;
const INFO: u32 = 0x1549_a966;
const TIMESTAMP_SCALE: u32 = 0x2a_d7b1;
const DURATION: u32 = 0x4489;
const TRACKS: u32 = 0x1654_ae6b;
const TRACK_ENTRY: u32 = 0xae;
const TRACK_NUMBER: u32 = 0xd7;
const TRACK_TYPE: u32 = 0x83;
const CODEC_ID: u32 = 0x86;
const CODEC_PRIVATE: u32 = 0x63a2;
const CODEC_DELAY: u32 = 0x56aa;
const DEFAULT_DURATION: u32 = 0x23_e383;
const AUDIO: u32 = 0xe1;
const SAMPLING_FREQUENCY: u32 = 0xb5;
const CHANNELS: u32 = 0x9f;
const BIT_DEPTH: u32 = 0x6264;
const ENCODINGS: u32 = 0x6d80;
const ENCODING: u32 = 0x6240;
const COMPRESSION: u32 = 0x5034;
const COMPRESSION_ALGORITHM: u32 = 0x4254;
const COMPRESSION_SETTINGS: u32 = 0x4255;
const ENCRYPTION: u32 = 0x5035;
const CLUSTER: u32 = 0x1f43_b675;
const CLUSTER_TIMESTAMP: u32 = 0xe7;
const BLOCK_GROUP: u32 = 0xa0;
const BLOCK: u32 = 0xa1;
const SIMPLE_BLOCK: u32 = 0xa3;
const BLOCK_DURATION: u32 = 0x9b;

/// Exceeds the size of any list of tracks or audio block.
const LARGEST_READ: u64 = 64 << 20;

/// Number of bytes that contain a block's track, timestamp, lacing, and the show flag of a VP8 frame.
const BLOCK_HEAD: u64 = 12;

/// Reads the blocks of `file`.
pub(super) fn read(file: File) -> Result<Contents, Unreadable> {
    let mut input = Input::new(file)?;
    let mut segment = Segment::default();
    while let Some(element) = input.element()? {
        if !segment.take(&element, &mut input)? {
            break;
        }
    }
    segment.contents()
}

/// Input file, read once from beginning to end.
struct Input {
    reader: BufReader<File>,
    at: u64,
    len: u64,
}

struct Element {
    id: u32,
    /// `None` for an unknown size.
    len: Option<u64>,
}

impl Input {
    fn new(mut file: File) -> Result<Self, Unreadable> {
        let len = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Self {
            reader: BufReader::with_capacity(64 << 10, file),
            at: 0,
            len,
        })
    }

    fn byte(&mut self) -> Result<Option<u8>, Unreadable> {
        let mut byte = [0];
        let n = self.reader.read(&mut byte)?;
        self.at += n as u64;
        Ok((n == 1).then_some(byte[0]))
    }

    /// Reads a number whose leading zero bits encode its length; if `marked`, the marker bit after them is kept.
    fn number(&mut self, longest: u32, marked: bool) -> Result<Option<(u64, u32)>, Unreadable> {
        let Some(first) = self.byte()? else {
            return Ok(None);
        };
        let n_more = first.leading_zeros();
        if n_more >= longest {
            return Ok(None);
        }
        let mut number = u64::from(match marked {
            true => first,
            false => first & (0x7f >> n_more),
        });
        for _ in 0..n_more {
            match self.byte()? {
                Some(byte) => number = number << 8 | u64::from(byte),
                None => return Ok(None),
            }
        }
        Ok(Some((number, n_more + 1)))
    }

    /// Reads the header of the next element; damaged data is skipped up to the next cluster.
    fn element(&mut self) -> Result<Option<Element>, Unreadable> {
        if self.at >= self.len {
            return Ok(None);
        }
        if let Some((id, _)) = self.number(4, true)? {
            let Some((len, n_bytes)) = self.number(8, false)? else {
                return self.next_cluster();
            };
            let unknown = len == (1 << (7 * n_bytes)) - 1;
            return Ok(Some(Element {
                id: id as u32,
                len: (!unknown).then_some(len),
            }));
        }
        self.next_cluster()
    }

    fn next_cluster(&mut self) -> Result<Option<Element>, Unreadable> {
        let mut last = 0_u32;
        while let Some(byte) = self.byte()? {
            last = last << 8 | u32::from(byte);
            if last == CLUSTER
                && let Some((len, _)) = self.number(8, false)?
            {
                return Ok(Some(Element {
                    id: CLUSTER,
                    len: Some(len),
                }));
            }
        }
        Ok(None)
    }

    /// Reads the next `len` bytes, or fewer at the end of the file.
    fn bytes(&mut self, len: u64) -> Result<Vec<u8>, Unreadable> {
        let mut bytes = Vec::new();
        (&mut self.reader).take(len).read_to_end(&mut bytes)?;
        self.at += bytes.len() as u64;
        Ok(bytes)
    }

    fn skip(&mut self, len: u64) -> Result<(), Unreadable> {
        if len > self.len.saturating_sub(self.at) {
            self.at = self.len;
            self.reader.seek(SeekFrom::End(0))?;
            return Ok(());
        }
        self.at += len;
        self.reader.seek_relative(i64::try_from(len).unwrap_or(0))?;
        Ok(())
    }
}

/// Entry of the list of tracks.
#[derive(Default)]
struct Entry {
    number: u64,
    kind: u64,
    codec_id: String,
    codec_private: Vec<u8>,
    codec_delay: i64,
    default_duration: i64,
    /// Samples per second, or zero.
    rate: f64,
    channels: u64,
    bits_per_sample: u64,
    /// Bytes at the start of every packet that are stripped from the file.
    stripped: Vec<u8>,
    unknown: Option<&'static str>,
    packets: Vec<Packet>,
    breaks_off: bool,
    digest: DefaultHasher,
}

/// Contents of the file's single segment.
struct Segment {
    step_nanos: i64,
    duration_steps: Option<f64>,
    entries: Vec<Entry>,
    cluster_time: i64,
    /// Entry and first packet of the last block, for a duration that follows it.
    last_block: Option<(usize, usize)>,
    /// Ticks of a duration that precedes the block of its group; muxers write them in either order.
    duration_ahead: Option<i64>,
    n_packets: usize,
}

impl Default for Segment {
    fn default() -> Self {
        Self {
            step_nanos: 1_000_000,
            duration_steps: None,
            duration_ahead: None,
            entries: Vec::new(),
            cluster_time: 0,
            last_block: None,
            n_packets: 0,
        }
    }
}

impl Segment {
    /// Processes one element or descends into it; returns false if nothing more can be read.
    fn take(&mut self, element: &Element, input: &mut Input) -> Result<bool, Unreadable> {
        // IDs differ between all levels, so levels need not be tracked.
        if matches!(element.id, SEGMENT | CLUSTER | BLOCK_GROUP) {
            (self.last_block, self.duration_ahead) = (None, None);
            return Ok(true);
        }
        let Some(len) = element.len else {
            return Ok(false);
        };
        match element.id {
            INFO => {
                let info = input.bytes(len.min(LARGEST_READ))?;
                self.take_info(&info);
            }
            TRACKS if self.entries.is_empty() => {
                if len > LARGEST_READ {
                    return Err(Unreadable::new(
                        "a Matroska file with a list of tracks larger than 64 MB",
                    ));
                }
                let tracks = input.bytes(len)?;
                self.entries = Elements(&tracks)
                    .filter(|(id, _)| *id == TRACK_ENTRY)
                    .map(|(_, entry)| Entry::read(entry))
                    .collect();
            }
            CLUSTER_TIMESTAMP => {
                let time = input.bytes(len.min(8))?;
                self.cluster_time = unsigned(&time).cast_signed();
            }
            SIMPLE_BLOCK | BLOCK => {
                if input.at.saturating_add(len) > input.len {
                    let number = input.number(8, false)?.map(|(number, _)| number);
                    let mut entries = self.entries.iter_mut();
                    if let Some(entry) = entries.find(|entry| Some(entry.number) == number) {
                        entry.breaks_off = true;
                    }
                    return Ok(false);
                }
                self.take_block(element.id == SIMPLE_BLOCK, len, input)?;
                if let Some(steps) = self.duration_ahead.take() {
                    self.take_duration(steps);
                }
            }
            BLOCK_DURATION => {
                let steps = input.bytes(len.min(8))?;
                let steps = unsigned(&steps).cast_signed();
                match self.last_block {
                    Some(_) => self.take_duration(steps),
                    None => self.duration_ahead = Some(steps),
                }
            }
            _ => input.skip(len)?,
        }
        Ok(true)
    }

    fn take_info(&mut self, info: &[u8]) {
        for (id, content) in Elements(info) {
            match id {
                TIMESTAMP_SCALE => {
                    self.step_nanos = unsigned(content).clamp(1, 1 << 40).cast_signed()
                }
                DURATION => {
                    self.duration_steps = float(content);
                }
                _ => {}
            }
        }
    }

    fn take_block(&mut self, simple: bool, len: u64, input: &mut Input) -> Result<(), Unreadable> {
        self.last_block = None;
        let mut block = input.bytes(len.min(BLOCK_HEAD))?;
        let rest = len - block.len() as u64;
        let head = vint(&block).and_then(|(number, at)| {
            let steps = be(&block, at, 2)? as u16;
            let flags = *block.get(at + 2)?;
            Some((number, at + 3, i64::from(steps.cast_signed()), flags))
        });
        let found = head.and_then(|head| {
            let entry_idx = self
                .entries
                .iter()
                .position(|entry| entry.number == head.0)?;
            Some((head, entry_idx))
        });
        let Some(((_, payload_at, steps, flags), entry_idx)) = found else {
            return input.skip(rest);
        };
        let entry = &mut self.entries[entry_idx];
        let lacing = flags & 0x06;
        let is_sound = entry.kind() == Kind::Sound;
        if rest > LARGEST_READ || !is_sound && lacing == 0 {
            input.skip(rest)?;
        } else {
            block.extend(input.bytes(rest)?);
        }
        let payload = block.get(payload_at..).unwrap_or_default();
        let invisible = simple && flags & 0x08 != 0;
        if entry.kind() == Kind::Picture
            && (invisible || entry.codec_id == "V_VP8" && super::is_hidden_vp8(payload))
        {
            return Ok(());
        }
        let frames = match lacing {
            0 => vec![payload],
            lacing => match laced(lacing, payload) {
                Some(frames) => frames,
                None => {
                    entry.unknown = Some("its lacing is damaged");
                    Vec::new()
                }
            },
        };
        self.n_packets += frames.len();
        if self.n_packets > MOST_PACKETS {
            return Err(Unreadable::new(
                "a Matroska file with more than 20 million packets",
            ));
        }
        self.last_block = Some((entry_idx, entry.packets.len()));
        let time = self
            .cluster_time
            .saturating_add(steps)
            .saturating_mul(self.step_nanos)
            .saturating_sub(entry.codec_delay);
        for (frame_idx, frame) in frames.into_iter().enumerate() {
            let mut packet = Packet {
                time,
                duration: entry.default_duration,
                hash: 0,
                is_guess: frame_idx > 0 && entry.codec_id == "A_VORBIS",
                is_behind: frame_idx > 0,
            };
            if is_sound {
                let whole = [entry.stripped.as_slice(), frame].concat();
                if let Some(duration) = entry.duration_of(&whole) {
                    packet.duration = duration;
                }
                packet.hash = hash(&whole);
                entry.digest.write(&whole);
            }
            entry.packets.push(packet);
        }
        Ok(())
    }

    /// Applies a duration to the last block, whose packets share it.
    fn take_duration(&mut self, steps: i64) {
        let Some((entry_idx, first)) = self.last_block.take() else {
            return;
        };
        let Some(entry) = self.entries.get_mut(entry_idx) else {
            return;
        };
        let is_picture = entry.kind() == Kind::Picture;
        let packets = entry.packets.get_mut(first..);
        let duration = steps.saturating_mul(self.step_nanos);
        if let Some(packets) = packets
            && !packets.is_empty()
        {
            let share = duration / packets.len() as i64;
            for packet in packets {
                // The duration from an audio codec is more precise; a video frame may be shown for longer than its
                // track's default duration.
                if is_picture || packet.duration == 0 {
                    packet.duration = share;
                }
            }
        }
    }

    fn contents(self) -> Result<Contents, Unreadable> {
        if self.entries.is_empty() {
            return Err(Unreadable::new("a Matroska file without a list of tracks"));
        }
        let step_nanos = self.step_nanos as f64;
        let tracks = self.entries.into_iter().map(|mut entry| {
            let kind = entry.kind();
            let first_key = first_key(kind, &entry.packets);
            complete(kind, &mut entry.packets);
            Track {
                kind,
                codec: codec(&entry.codec_id, &entry.codec_private),
                packets: entry.packets,
                first_key,
                first_refresh: None,
                breaks_off: entry.breaks_off,
                n_untimed: 0,
                left_out: sound::opus_left_out(&entry.codec_private),
                bytes_hash: Some(entry.digest.finish()),
                unknown: entry.unknown,
            }
        });
        Ok(Contents {
            format: Format::Matroska,
            tracks: tracks.collect(),
            claimed_end: self
                .duration_steps
                .map(|steps| (steps * step_nanos) as i64)
                .filter(|claimed| *claimed > 0),
            has_edit_lists: false,
            n_cut_off: 0,
        })
    }
}

impl Entry {
    fn read(content: &[u8]) -> Self {
        let mut entry = Self::default();
        for (id, content) in Elements(content) {
            let number = || i64::try_from(unsigned(content)).unwrap_or(0);
            match id {
                TRACK_NUMBER => entry.number = unsigned(content),
                TRACK_TYPE => entry.kind = unsigned(content),
                CODEC_ID => {
                    let id = String::from_utf8_lossy(content);
                    entry.codec_id = id.trim_end_matches('\0').to_owned();
                }
                CODEC_PRIVATE => entry.codec_private = content.to_vec(),
                CODEC_DELAY => entry.codec_delay = number(),
                DEFAULT_DURATION => entry.default_duration = number(),
                AUDIO => entry.read_audio(content),
                ENCODINGS => {
                    let encodings = Elements(content).filter(|(id, _)| *id == ENCODING);
                    encodings.for_each(|(_, encoding)| entry.read_encoding(encoding));
                }
                _ => {}
            }
        }
        entry
    }

    fn read_audio(&mut self, audio: &[u8]) {
        for (id, content) in Elements(audio) {
            match id {
                SAMPLING_FREQUENCY => self.rate = float(content).unwrap_or(0.0),
                CHANNELS => self.channels = unsigned(content),
                BIT_DEPTH => self.bits_per_sample = unsigned(content),
                _ => {}
            }
        }
    }

    /// Returns the duration of an audio packet, if the packet states it.
    fn duration_of(&self, packet: &[u8]) -> Option<i64> {
        let n_samples = match self.codec_id.as_str() {
            "A_OPUS" => return opus_duration(packet),
            // The first field of what Matroska keeps of a block's header.
            "A_WAVPACK4" => u32::from_le_bytes(*packet.first_chunk()?).into(),
            id if id.starts_with("A_PCM/") => {
                // Muxers leave out what is the default: one channel.
                let bits = self.channels.max(1).checked_mul(self.bits_per_sample)?;
                (packet.len() as u64 * 8).checked_div(bits)?
            }
            _ => return None,
        };
        let nanos = n_samples as f64 * 1e9 / self.rate;
        (self.rate > 0.0).then_some(nanos.round() as i64)
    }

    fn read_encoding(&mut self, encoding: &[u8]) {
        for (id, content) in Elements(encoding) {
            match id {
                ENCRYPTION => self.unknown = Some("it is encrypted"),
                COMPRESSION => {
                    let child = |wanted| Elements(content).find(|(id, _)| *id == wanted);
                    let algorithm = child(COMPRESSION_ALGORITHM).map_or(0, |(_, a)| unsigned(a));
                    if algorithm == 3 {
                        let stripped = child(COMPRESSION_SETTINGS).map_or(&[][..], |(_, s)| s);
                        self.stripped = stripped.to_vec();
                    } else if self.kind() == Kind::Sound {
                        self.unknown = Some("its packets are compressed");
                    }
                }
                _ => {}
            }
        }
    }

    fn kind(&self) -> Kind {
        match self.kind {
            1 => Kind::Picture,
            2 => Kind::Sound,
            _ => Kind::Other,
        }
    }
}

/// Splits a laced block into its packets (RFC 9559, section 10.3).
fn laced(lacing: u8, payload: &[u8]) -> Option<Vec<&[u8]>> {
    let (n_more, mut rest) = payload.split_first()?;
    let n_more = usize::from(*n_more);
    let mut lens = Vec::with_capacity(n_more);
    match lacing {
        0x02 => {
            for _ in 0..n_more {
                let mut len = 0;
                loop {
                    let (byte, after) = rest.split_first()?;
                    rest = after;
                    len += usize::from(*byte);
                    if *byte < 255 {
                        break;
                    }
                }
                lens.push(len);
            }
        }
        0x06 => {
            let mut len = 0_i64;
            for frame_idx in 0..n_more {
                let (number, n_bytes) = vint(rest)?;
                rest = rest.get(n_bytes..)?;
                let number = i64::try_from(number).ok()?;
                // The first number is a length; every other one is a difference from the previous length, biased to the
                // middle of its range.
                len = match frame_idx {
                    0 => number,
                    _ => len + number - ((1 << (7 * n_bytes - 1)) - 1),
                };
                lens.push(usize::try_from(len).ok()?);
            }
        }
        _ => {
            let len = rest.len() / (n_more + 1);
            lens.resize(n_more, len);
        }
    }
    let mut frames = Vec::with_capacity(n_more + 1);
    for len in lens {
        let (frame, after) = rest.split_at_checked(len)?;
        frames.push(frame);
        rest = after;
    }
    frames.push(rest);
    Some(frames)
}

/// Reads a number whose leading zero bits encode its length; returns it without the marker bit, together with that
/// length.
fn vint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let len = first.leading_zeros() as usize + 1;
    if len > 8 {
        return None;
    }
    let number = be(bytes, 0, len)?;
    Some((number & !(1 << (7 * len)), len))
}

fn unsigned(content: &[u8]) -> u64 {
    be(content, 0, content.len()).unwrap_or(0)
}

/// Iterator over the elements in an element, as pairs of ID and content. Ends at the first element that does not fit.
struct Elements<'a>(&'a [u8]);

impl<'a> Iterator for Elements<'a> {
    type Item = (u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let id_len = self.0.first()?.leading_zeros() as usize + 1;
        if id_len > 4 {
            return None;
        }
        let id = be(self.0, 0, id_len)? as u32;
        let (len, n_bytes) = vint(self.0.get(id_len..)?)?;
        let rest = self.0.get(id_len + n_bytes..)?;
        let (content, after) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = after;
        Some((id, content))
    }
}

fn float(content: &[u8]) -> Option<f64> {
    match content.len() {
        4 => be(content, 0, 4).map(|bits| f64::from(f32::from_bits(bits as u32))),
        8 => be(content, 0, 8).map(f64::from_bits),
        _ => None,
    }
}

/// Returns the codec for a Matroska codec ID and the private data of its decoder.
fn codec(id: &str, private: &[u8]) -> String {
    let name = match id {
        "V_MPEG4/ISO/AVC" => "H.264",
        "V_MPEGH/ISO/HEVC" => "H.265",
        "V_VP8" => "VP8",
        "V_VP9" => "VP9",
        "V_AV1" => "AV1",
        "A_OPUS" => "Opus",
        "A_VORBIS" => "Vorbis",
        "A_FLAC" => "FLAC",
        "A_ALAC" => "ALAC",
        "A_AC3" => "AC-3",
        "A_EAC3" => "E-AC-3",
        "A_DTS" => "DTS",
        // Windows codec number: PCM, and telephony codecs.
        "A_MS/ACM" if matches!(private, [1 | 3 | 6 | 7, 0, ..]) => "PCM",
        // Without the number of bits per sample, no decoder opens it.
        "A_MS/ACM" if matches!(private, [2 | 0x11, 0, ..]) => match private.get(14..16) {
            Some([0, 0]) => "ADPCM of no bits",
            _ => "ADPCM",
        },
        _ if id.starts_with("A_AAC") => sound::aac(private),
        _ if id.starts_with("A_AC3") => "AC-3",
        _ if id.starts_with("A_MPEG/L") => "MPEG audio",
        _ if id.starts_with("A_PCM") => "PCM",
        other => other,
    };
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_lacings_give_all_packets() {
        let lens = |lacing, payload: &[u8]| -> Vec<usize> {
            let frames = laced(lacing, payload).unwrap();
            frames.iter().map(|frame| frame.len()).collect()
        };
        // Example of RFC 9559, section 10.3: 800, 500 and 1000 bytes.
        let xiph = [&[2, 255, 255, 255, 35, 255, 245][..], &[0; 2300]].concat();
        assert_eq!(lens(0x02, &xiph), [800, 500, 1000]);
        let ebml = [&[2, 0x43, 0x20, 0x5e, 0xd3][..], &[0; 2300]].concat();
        assert_eq!(lens(0x06, &ebml), [800, 500, 1000]);
        assert_eq!(
            lens(0x04, &[&[2][..], &[0; 2400]].concat()),
            [800, 800, 800]
        );
        assert_eq!(laced(0x02, &[3, 200, 1, 1, 0]), None);
        assert_eq!(laced(0x06, &[2, 0x81, 0x80, 0]), None);
    }

    #[test]
    fn numbers_say_their_own_length() {
        assert_eq!(vint(&[0x81]), Some((1, 1)));
        assert_eq!(vint(&[0x40, 0x7f]), Some((127, 2)));
        assert_eq!(vint(&[0x01, 0, 0, 0, 0, 0, 1, 0]), Some((256, 8)));
        assert_eq!(vint(&[0x40]), None);
        assert_eq!(vint(&[0]), None);
    }
}
