//! Video and audio of MPEG transport streams according to their PES headers (ISO/IEC 13818-1).
//!
//! Each PES packet must hold one frame, which is checked: if frames begin elsewhere, they are unknown.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::Hasher;
use std::io::{BufReader, Read, Seek, SeekFrom};

use super::bytes::{be16, be32, hash};
use super::sound::{Framing, LONGEST_HEADER};
use super::{Contents, Format, Kind, MOST_PACKETS, Packet, Track, Unreadable, complete};

const SYNC: u8 = 0x47;

/// Ticks per second of presentation timestamps, and their wrap.
const CLOCK: i64 = 90_000;
const WRAP: i64 = 1 << 33;

/// A larger gap in decoding times, or a step back, indicates a new recording with its own timestamps.
const LONGEST_GAP: i64 = 10 * CLOCK;
const LONGEST_STEP_BACK: i64 = CLOCK / 2;

/// Reason why packets are unknown if another recording follows.
const JUMP: &str = "its timestamps jump";

/// Codec name of private data until its first PES packet.
const PRIVATE: &str = "private";

/// Exceeds the number of streams in any program.
const MOST_STREAMS: usize = 64;

/// Exceeds the size of any audio packet.
const LARGEST_SOUND: usize = 1 << 20;

/// Returns the distance between sync bytes, and the offset of the sync byte in a packet; `None` if `head` is not a
/// transport stream.
///
/// A recording may begin in the middle of a packet or with other data.
pub(super) fn packet_len(head: &[u8]) -> Option<(usize, usize)> {
    let layouts = [(188, 0), (192, 4), (204, 0)];
    let begins_at = |begin: usize, len: usize, n_least: usize| {
        let mut syncs = head.iter().skip(begin).step_by(len).take(5);
        syncs.len() >= n_least && syncs.all(|byte| *byte == SYNC)
    };
    let aligned = layouts
        .into_iter()
        .find(|(len, at)| begins_at(*at, *len, 3));
    aligned.or_else(|| {
        let mut layouts = layouts.into_iter();
        layouts.find(|(len, _)| (0..head.len()).any(|begin| begins_at(begin, *len, 5)))
    })
}

/// Reads the packets of `file`, which begins with `head`.
pub(super) fn read(file: File, head: &[u8]) -> Result<Contents, Unreadable> {
    let (len, sync_at) =
        packet_len(head).ok_or_else(|| Unreadable::new("not a transport stream"))?;
    let mut packets = Packets {
        reader: BufReader::with_capacity(len * 512, file),
        packet: vec![0; len],
        sync_at,
    };
    let mut program = Program::default();
    // The program map table may come after the first packets of its tracks.
    while program.streams.is_empty() {
        let Some(packet) = packets.next()? else {
            break;
        };
        program.take_tables(packet)?;
    }
    packets.reader.seek(SeekFrom::Start(0))?;
    while let Some(packet) = packets.next()? {
        program.take(packet)?;
    }
    program.contents()
}

/// Iterates over the transport packets of a file.
struct Packets {
    reader: BufReader<File>,
    packet: Vec<u8>,
    sync_at: usize,
}

impl Packets {
    /// Returns the next 188 bytes that begin with a sync byte; misaligned bytes are skipped.
    fn next(&mut self) -> Result<Option<&[u8]>, Unreadable> {
        let mut n_kept = 0;
        loop {
            let rest = self.packet.get_mut(n_kept..).unwrap_or_default();
            if !read_packet(&mut self.reader, rest)? {
                return Ok(None);
            }
            if self.packet.get(self.sync_at) == Some(&SYNC) {
                break;
            }
            let from = self.sync_at + 1;
            let ahead = self.packet.iter().skip(from).position(|byte| *byte == SYNC);
            // Part of the next packet may already be here.
            let n_lost = ahead.map_or(self.packet.len() - self.sync_at, |at| at + 1);
            n_kept = self.packet.len() - n_lost;
            self.packet.rotate_left(n_lost);
        }
        Ok(self.packet.get(self.sync_at..self.sync_at + 188))
    }
}

/// Fills `packet`; returns false if the file ends first.
fn read_packet(reader: &mut impl Read, packet: &mut [u8]) -> Result<bool, Unreadable> {
    match reader.read_exact(packet) {
        Ok(()) => Ok(true),
        Err(err) if err.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(err) => Err(err.into()),
    }
}

/// Transport packet with a payload (2.4.3.2).
struct Transport<'a> {
    pid: u16,
    begins: bool,
    /// True if decoding may begin here (2.4.3.5, random access).
    is_entry: bool,
    scrambled: bool,
    counter: u8,
    payload: &'a [u8],
}

impl<'a> Transport<'a> {
    /// Returns `None` if the packet is broken or has no payload.
    fn read(packet: &'a [u8]) -> Option<Self> {
        let (pid, flags) = (be16(packet, 1)?, *packet.get(3)?);
        let broken = pid & 0x8000 != 0;
        if broken || flags & 0x10 == 0 {
            return None;
        }
        let mut payload = packet.get(4..)?;
        let mut is_entry = false;
        if flags & 0x20 != 0 {
            let len = usize::from(*payload.first()?) + 1;
            is_entry = len > 1 && payload.get(1).is_some_and(|kinds| kinds & 0x40 != 0);
            payload = payload.get(len..)?;
        }
        Some(Self {
            pid: pid & 0x1fff,
            begins: pid & 0x4000 != 0,
            is_entry,
            scrambled: flags & 0xc0 != 0,
            counter: flags & 15,
            payload,
        })
    }
}

/// The only program of a stream.
#[derive(Default)]
struct Program {
    map_pid: Option<u16>,
    map: Section,
    streams: Vec<Stream>,
    n_packets: usize,
}

impl Program {
    /// Processes a transport packet of 188 bytes that belongs to a program association or program map table; returns
    /// false for other packets.
    fn take_tables(&mut self, packet: &[u8]) -> Result<bool, Unreadable> {
        let Some(packet) = Transport::read(packet) else {
            return Ok(true);
        };
        if packet.pid == 0 {
            if self.map_pid.is_none() && packet.begins {
                self.map_pid = program_map(packet.payload)?;
            }
            return Ok(true);
        }
        let is_map = Some(packet.pid) == self.map_pid;
        if is_map && let Some(section) = self.map.take(packet.begins, packet.payload) {
            self.take_map(&section)?;
        }
        Ok(is_map)
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Unreadable> {
        if self.take_tables(bytes)? {
            return Ok(());
        }
        let Some(packet) = Transport::read(bytes) else {
            return Ok(());
        };
        let mut streams = self.streams.iter_mut();
        let Some(stream) = streams.find(|stream| stream.pid == packet.pid) else {
            return Ok(());
        };
        if packet.scrambled {
            stream.unknown = Some("it is scrambled");
            return Ok(());
        }
        // Any packet may be sent twice.
        if stream.counter.replace(packet.counter) == Some(packet.counter) {
            return Ok(());
        }
        self.n_packets += stream.take(&packet);
        if self.n_packets > MOST_PACKETS {
            return Err(Unreadable::new(
                "a transport stream with more than 20 million packets",
            ));
        }
        Ok(())
    }

    /// Reads the program map table: a table's ID and length, five more bytes, then the PID of the clock.
    fn take_map(&mut self, section: &[u8]) -> Result<(), Unreadable> {
        let mut streams = Vec::new();
        let Some(end) = section.len().checked_sub(4) else {
            return Ok(());
        };
        let mut at = 12 + usize::from(be16(section, 10).unwrap_or(0) & 0xfff);
        while at + 5 <= end && streams.len() < MOST_STREAMS {
            let (Some(kind), Some(pid), Some(len)) = (
                section.get(at),
                be16(section, at + 1),
                be16(section, at + 3),
            ) else {
                break;
            };
            let len = usize::from(len & 0xfff);
            let descriptors = section.get(at + 5..at + 5 + len).unwrap_or_default();
            streams.push(Stream::new(pid & 0x1fff, *kind, descriptors));
            at += 5 + len;
        }
        if self.streams.is_empty() {
            self.streams = streams;
            return Ok(());
        }
        let tracks = |streams: &[Stream]| -> Vec<(u16, u8)> {
            let tracks = streams.iter().map(|stream| (stream.pid, stream.listed_as));
            tracks.collect()
        };
        if tracks(&self.streams) != tracks(&streams) {
            return Err(Unreadable::new(
                "a transport stream with tracks that change midway",
            ));
        }
        Ok(())
    }

    fn contents(self) -> Result<Contents, Unreadable> {
        if self.streams.is_empty() {
            return Err(Unreadable::new(
                "a transport stream without a list of tracks",
            ));
        }
        let mut clock = Clock::default();
        let begin = self
            .streams
            .iter()
            .filter_map(|stream| stream.first_pts)
            .next();
        clock.last = begin;
        let mut streams = self.streams;
        if streams.iter().any(|stream| stream.unknown == Some(JUMP)) {
            // If one track begins anew, so do the others, whether or not their own timestamps show it.
            for stream in &mut streams {
                stream.unknown.get_or_insert(JUMP);
            }
        }
        let tracks = streams.into_iter().map(|stream| stream.track(clock));
        Ok(Contents {
            format: Format::MpegTs,
            tracks: tracks.collect(),
            has_edit_lists: false,
            claimed_end: None,
            n_cut_off: 0,
        })
    }
}

/// Returns the PID of the only program's map, from the first program association table.
fn program_map(payload: &[u8]) -> Result<Option<u16>, Unreadable> {
    let Some(section) = payload
        .first()
        .and_then(|n| payload.get(1 + usize::from(*n)..))
    else {
        return Ok(None);
    };
    let len = usize::from(be16(section, 1).unwrap_or(0) & 0xfff);
    // Eight bytes precede the programs, a checksum follows them.
    let programs = section
        .get(8..(3 + len).saturating_sub(4))
        .unwrap_or_default();
    let programs: Vec<u32> = programs
        .chunks_exact(4)
        .filter_map(|entry| be32(entry, 0))
        .collect();
    let mut programs = programs.into_iter().filter(|entry| entry >> 16 != 0);
    let first = programs.next();
    if programs.next().is_some() {
        return Err(Unreadable::new("a transport stream with several programs"));
    }
    Ok(first.map(|entry| (entry & 0x1fff) as u16))
}

/// Table that may be split across several packets.
#[derive(Default)]
struct Section {
    bytes: Vec<u8>,
    begun: bool,
}

impl Section {
    /// Returns the table once it is complete.
    fn take(&mut self, begins: bool, payload: &[u8]) -> Option<Vec<u8>> {
        if begins {
            let skipped = 1 + usize::from(*payload.first()?);
            self.bytes = payload.get(skipped..)?.to_vec();
            self.begun = true;
        } else if self.begun {
            self.bytes.extend_from_slice(payload);
        }
        let len = 3 + usize::from(be16(&self.bytes, 1)? & 0xfff);
        if !self.begun || self.bytes.len() < len {
            return None;
        }
        self.begun = false;
        let section = self.bytes.get(..len)?.to_vec();
        // Another table may be sent on the same PID.
        (section.first() == Some(&2)).then_some(section)
    }
}

/// Unwraps timestamps of 33 bits.
#[derive(Clone, Copy, Default)]
struct Clock {
    last: Option<i64>,
}

impl Clock {
    fn unwrap(&mut self, pts: i64) -> i64 {
        let last = self.last.unwrap_or(pts);
        let half = WRAP / 2;
        let time = last + (pts - last + half).rem_euclid(WRAP) - half;
        self.last = Some(time);
        time
    }
}

/// Elementary stream.
struct Stream {
    pid: u16,
    /// Stream type in the program map table.
    listed_as: u8,
    kind: Kind,
    codec: &'static str,
    counter: Option<u8>,
    first_pts: Option<i64>,
    /// Presentation time of the first frame that is decoded completely, in nanoseconds.
    first_entry: Option<i64>,
    /// Number of reference frames after the first entry until a frame is complete.
    n_incomplete: u32,
    /// True within the PES packet of the first entry.
    enters: bool,
    clock: Clock,
    last_decoded: Option<i64>,
    pictures: PictureStarts,
    /// Presentation time of the first frame at which a refresh begins, in nanoseconds.
    first_refresh: Option<i64>,
    /// Number of frames that began in the current PES packet.
    n_begun: u32,
    framing: Option<Framing>,
    sound: Sound,
    packets: Vec<Packet>,
    unknown: Option<&'static str>,
}

impl Stream {
    fn new(pid: u16, kind: u8, descriptors: &[u8]) -> Self {
        let listed_as = kind;
        let has = |wanted: u8| descriptor(descriptors, wanted).is_some();
        let registered = descriptor(descriptors, 5).and_then(|content| content.get(..4));
        let (kind, codec, framing) = match (kind, registered) {
            (1 | 2, _) => (Kind::Picture, "MPEG video", None),
            (0x10, _) => (Kind::Picture, "MPEG-4 video", None),
            (0x1b, _) => (Kind::Picture, "H.264", None),
            (0x24, _) | (6, Some(b"HEVC")) => (Kind::Picture, "H.265", None),
            (0xd1 | 0xea, _) | (6, Some(b"drac" | b"AV01" | b"VP09")) => {
                (Kind::Picture, "other video", None)
            }
            (3 | 4, _) => (Kind::Sound, "MPEG audio", Some(Framing::MpegAudio)),
            (0x0f, _) => (Kind::Sound, "AAC", Some(Framing::Adts)),
            (0x11, _) => (Kind::Sound, "AAC in LATM", None),
            (0x81, _) => (Kind::Sound, "AC-3", Some(Framing::Ac3)),
            (0x84 | 0x87, _) => (Kind::Sound, "E-AC-3", Some(Framing::Ac3)),
            (0x82 | 0x8a, _) => (Kind::Sound, "DTS", Some(Framing::Dts)),
            (0x80 | 0x83 | 0x85 | 0x86, _) => (Kind::Sound, "other sound", None),
            (6, Some(b"Opus")) => (Kind::Sound, "Opus", Some(Framing::Opus)),
            (6, Some(b"AC-3")) => (Kind::Sound, "AC-3", Some(Framing::Ac3)),
            // Uncompressed audio of SMPTE 302.
            (6, Some(b"BSSD")) => (Kind::Sound, "other sound", None),
            (6, Some(b"EAC3")) => (Kind::Sound, "E-AC-3", Some(Framing::Ac3)),
            (6, _) if has(0x6a) => (Kind::Sound, "AC-3", Some(Framing::Ac3)),
            (6, _) if has(0x7a) => (Kind::Sound, "E-AC-3", Some(Framing::Ac3)),
            (6, _) if has(0x7b) || has(0x7c) => (Kind::Sound, "other sound", None),
            // Determined by its first PES packet.
            (6, _) => (Kind::Other, PRIVATE, None),
            _ => (Kind::Other, "", None),
        };
        Self {
            pid,
            listed_as,
            kind,
            codec,
            counter: None,
            first_pts: None,
            first_entry: None,
            n_incomplete: 0,
            enters: false,
            clock: Clock::default(),
            last_decoded: None,
            pictures: PictureStarts::new(codec),
            first_refresh: None,
            n_begun: 0,
            framing,
            sound: Sound::default(),
            packets: Vec::new(),
            unknown: (kind == Kind::Sound && framing.is_none())
                .then_some("its packets cannot be separated"),
        }
    }

    /// Processes the payload of one transport packet; returns the number of packets it completes.
    fn take(&mut self, packet: &Transport) -> usize {
        let &Transport {
            begins, payload, ..
        } = packet;
        if self.codec == PRIVATE && begins {
            self.take_for_sound(payload);
        }
        if self.kind == Kind::Other {
            return 0;
        }
        let mut content = payload;
        let n_before = self.packets.len();
        if begins {
            self.end_pes();
            let Some(header) = PesHeader::read(payload) else {
                self.unknown = Some("a PES header is damaged");
                return 0;
            };
            self.begin_pes(&header, packet.is_entry);
            content = payload.get(header.len..).unwrap_or_default();
        } else if self.first_pts.is_none() {
            // Data that began before the file.
            return 0;
        }
        match self.framing {
            Some(framing) => self.sound.take(framing, content, &mut self.packets),
            None => self.n_begun += self.pictures.count(content),
        }
        self.packets.len() - n_before
    }

    /// Treats private data as audio if the stream ID of its PES packets is one of audio.
    fn take_for_sound(&mut self, payload: &[u8]) {
        self.codec = "";
        if !payload.get(3).is_some_and(|id| (0xc0..0xe0).contains(id)) {
            return;
        }
        let content = PesHeader::read(payload).and_then(|header| payload.get(header.len..));
        let framing = [("AAC", Framing::Adts), ("MPEG audio", Framing::MpegAudio)]
            .into_iter()
            .find(|(_, framing)| content.is_some_and(|content| framing.frame(content).is_some()));
        self.kind = Kind::Sound;
        self.codec = framing.map_or("other sound", |(codec, _)| codec);
        self.framing = framing.map(|(_, framing)| framing);
        if self.framing.is_none() {
            self.unknown = Some("its codec is not specified");
        }
    }

    fn begin_pes(&mut self, header: &PesHeader, is_entry: bool) {
        let Some(pts) = header.pts else {
            if self.kind == Kind::Picture {
                self.unknown = Some("a frame has no timestamp");
            }
            return;
        };
        let pts = self.clock.unwrap(pts);
        self.first_pts.get_or_insert(pts);
        let decoded = header.dts.map_or(pts, |dts| {
            let mut clock = self.clock;
            clock.unwrap(dts)
        });
        if self
            .last_decoded
            .is_some_and(|last| !(-LONGEST_STEP_BACK..=LONGEST_GAP).contains(&(decoded - last)))
        {
            self.unknown = Some(JUMP);
        }
        self.last_decoded = Some(decoded);
        let time = pts.saturating_mul(1_000_000_000).div_euclid(CLOCK);
        if is_entry && self.first_entry.is_none() {
            self.first_entry = Some(time);
            self.enters = true;
        }
        if self.framing.is_some() {
            self.sound.marks.push((self.sound.n_bytes(), time));
        } else {
            self.packets.push(Packet {
                time,
                ..Packet::default()
            });
        }
    }

    /// Checks that the PES packet that ends held one frame.
    fn end_pes(&mut self) {
        let known = self.kind == Kind::Picture && self.pictures.codec != "other";
        if known && !self.packets.is_empty() && self.n_begun != 1 {
            self.unknown = Some("its frames are not aligned with its PES packets");
        }
        self.n_begun = 0;
        let n_refreshing = self.pictures.refresh.take().unwrap_or(0);
        let is_reference = std::mem::take(&mut self.pictures.is_reference);
        if let Some(frame) = self.packets.last().filter(|_| n_refreshing > 0) {
            self.first_refresh.get_or_insert(frame.time);
        }
        if std::mem::take(&mut self.enters) {
            self.n_incomplete = n_refreshing;
        } else if self.n_incomplete > 0 && is_reference {
            self.n_incomplete -= 1;
            self.first_entry = self.packets.last().map(|frame| frame.time);
        }
    }

    fn track(mut self, mut clock: Clock) -> Track {
        if self.pictures.codec != "other" {
            // The last frame may be cut off before it begins.
            self.end_pes();
        }
        if let Some(framing) = self.framing {
            self.sound.end(framing, &mut self.packets);
        }
        // All streams of a program count from the same wrap.
        if let Some(first) = self.first_pts {
            let turns = clock.unwrap(first) - first;
            let shift = turns.saturating_mul(1_000_000_000).div_euclid(CLOCK);
            for packet in &mut self.packets {
                packet.time = packet.time.saturating_add(shift);
            }
            let own_times = self.first_entry.iter_mut().chain(&mut self.first_refresh);
            own_times.for_each(|time| *time = time.saturating_add(shift));
        }
        if self.kind == Kind::Picture {
            complete(self.kind, &mut self.packets);
        }
        if self.sound.lost {
            self.unknown = Some("its packets are damaged");
        }
        Track {
            kind: self.kind,
            codec: self.codec.into(),
            first_key: self.first_entry.filter(|_| self.kind == Kind::Picture),
            first_refresh: self.first_refresh,
            breaks_off: self.sound.breaks_off,
            n_untimed: self.sound.n_untimed,
            left_out: None,
            packets: self.packets,
            bytes_hash: Some(self.sound.digest.finish()),
            unknown: self.unknown,
        }
    }
}

/// Returns the content of the first descriptor of the `wanted` kind.
fn descriptor(mut descriptors: &[u8], wanted: u8) -> Option<&[u8]> {
    loop {
        let (kind, len) = (*descriptors.first()?, usize::from(*descriptors.get(1)?));
        let content = descriptors.get(2..2 + len)?;
        if kind == wanted {
            return Some(content);
        }
        descriptors = descriptors.get(2 + len..)?;
    }
}

/// Header of a PES packet (2.4.3.6).
struct PesHeader {
    len: usize,
    pts: Option<i64>,
    dts: Option<i64>,
}

impl PesHeader {
    fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.get(..3)? != [0, 0, 1] || bytes.get(6)? >> 6 != 2 {
            return None;
        }
        let flags = *bytes.get(7)?;
        Some(Self {
            len: 9 + usize::from(*bytes.get(8)?),
            pts: if flags & 0x80 != 0 {
                time_stamp(bytes.get(9..14)?)
            } else {
                None
            },
            dts: if flags & 0x40 != 0 {
                time_stamp(bytes.get(14..19)?)
            } else {
                None
            },
        })
    }
}

/// Reads 33 bits separated by marker bits.
fn time_stamp(bytes: &[u8]) -> Option<i64> {
    let high = i64::from(*bytes.first()?) >> 1 & 7;
    let middle = i64::from(be16(bytes, 1)?) >> 1;
    let low = i64::from(be16(bytes, 3)?) >> 1;
    Some(high << 30 | middle << 15 | low)
}

/// Counter of frame starts.
struct PictureStarts {
    codec: &'static str,
    /// Most recent bytes.
    window: u64,
    /// Number of reference frames until the picture has been refreshed, according to an H.264 recovery point.
    refresh: Option<u32>,
    /// True if the H.264 frame is one that others refer to.
    is_reference: bool,
}

impl PictureStarts {
    fn new(codec: &'static str) -> Self {
        let counted = ["H.264", "H.265", "MPEG video", "MPEG-4 video"];
        Self {
            codec: if counted.contains(&codec) {
                codec
            } else {
                "other"
            },
            window: u64::MAX,
            refresh: None,
            is_reference: false,
        }
    }

    /// Reads a recovery point (ITU-T H.264, D.1.8) if the most recent bytes are its start code, type, length, and first
    /// two bytes.
    fn read_refresh(&mut self) {
        let is_recovery_point = self.window >> 40 & 0xff_ffff == 1
            && self.window >> 32 & 31 == 6
            && self.window >> 24 & 0xff == 6;
        if is_recovery_point {
            let bits = (self.window & 0xffff) as u16;
            let n_zeros = bits.leading_zeros();
            let value = bits.checked_shr(15_u32.saturating_sub(2 * n_zeros));
            self.refresh = value.and_then(|value| u32::from(value).checked_sub(1));
        }
    }

    fn count(&mut self, bytes: &[u8]) -> u32 {
        let mut n = 0;
        for byte in bytes {
            self.window = self.window << 8 | u64::from(*byte);
            let start_code = |n_after: u32| self.window >> (8 * n_after) & 0xff_ffff == 1;
            let back = |n: u32| (self.window >> (8 * n) & 0xff) as u8;
            let begins = match self.codec {
                // A slice whose first macroblock is number zero, which is encoded as a single bit.
                "H.264" => {
                    let begins = start_code(2) && matches!(back(1) & 31, 1 | 5) && byte & 0x80 != 0;
                    self.is_reference |= begins && back(1) & 0x60 != 0;
                    if begins && back(1) & 31 == 5 {
                        // An IDR picture needs no other.
                        self.refresh = None;
                    }
                    begins
                }
                "H.265" => start_code(3) && back(2) >> 1 & 63 < 32 && byte & 0x80 != 0,
                "MPEG video" => start_code(1) && *byte == 0,
                "MPEG-4 video" => start_code(1) && *byte == 0xb6,
                _ => false,
            };
            if self.codec == "H.264" {
                self.read_refresh();
            }
            n += u32::from(begins);
        }
        n
    }
}

/// Splitter of an audio stream into packets.
#[derive(Default)]
struct Sound {
    bytes: Vec<u8>,
    /// Number of bytes consumed before those in `bytes`.
    n_passed: u64,
    /// Byte positions from which timestamps apply.
    marks: Vec<(u64, i64)>,
    next_time: Option<i64>,
    digest: DefaultHasher,
    lost: bool,
    breaks_off: bool,
    /// Number of packets before the first mark.
    n_untimed: u64,
}

impl Sound {
    fn n_bytes(&self) -> u64 {
        self.n_passed + self.bytes.len() as u64
    }

    fn take(&mut self, framing: Framing, content: &[u8], packets: &mut Vec<Packet>) {
        self.bytes.extend_from_slice(content);
        self.cut(framing, packets, LONGEST_HEADER);
    }

    fn end(&mut self, framing: Framing, packets: &mut Vec<Packet>) {
        self.cut(framing, packets, 0);
        self.breaks_off |= !self.bytes.is_empty();
    }

    /// Removes complete packets from the front; with fewer than `patience` bytes, a header may still be incomplete.
    fn cut(&mut self, framing: Framing, packets: &mut Vec<Packet>, patience: usize) {
        let mut at = 0;
        while let Some(rest) = self.bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let Some(frame) = framing.frame(rest) else {
                if rest.len() < patience {
                    break;
                }
                // A recording may begin or end in the middle of a packet.
                self.lost |= !packets.is_empty() && patience > 0;
                self.breaks_off |= patience == 0;
                at += 1;
                continue;
            };
            let Some(bytes) = rest.get(..frame.len.max(1)) else {
                if frame.len > LARGEST_SOUND {
                    self.lost = true;
                    at += 1;
                    continue;
                }
                break;
            };
            let begins = self.n_passed + at as u64;
            let n_marks = self
                .marks
                .iter()
                .take_while(|(from, _)| *from <= begins)
                .count();
            let marked = self
                .marks
                .drain(..n_marks)
                .next_back()
                .map(|(_, time)| time);
            if let Some(time) = marked.or(self.next_time) {
                let bytes = bytes.get(frame.framing..).unwrap_or_default();
                self.digest.write(bytes);
                packets.push(Packet {
                    time,
                    duration: frame.duration_nanos,
                    hash: hash(bytes),
                    ..Packet::default()
                });
                self.next_time = Some(time.saturating_add(frame.duration_nanos));
            } else {
                self.n_untimed += 1;
            }
            at += bytes.len();
        }
        self.bytes.drain(..at);
        self.n_passed += at as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_on_past_the_end_of_33_bits() {
        let mut clock = Clock::default();
        assert_eq!(clock.unwrap(WRAP - 3600), WRAP - 3600);
        assert_eq!(clock.unwrap(0), WRAP);
        assert_eq!(clock.unwrap(WRAP - 1800), WRAP - 1800);
        assert_eq!(clock.unwrap(3600), WRAP + 3600);
    }

    #[test]
    fn a_stream_may_begin_in_the_middle_of_a_packet() {
        for (len, at) in [(188, 0), (192, 4), (204, 0)] {
            let mut stream = vec![0; 2048 + len];
            stream
                .iter_mut()
                .skip(at)
                .step_by(len)
                .for_each(|byte| *byte = SYNC);
            for begin in 0..len {
                let head = &stream[begin..begin + 2048];
                assert_eq!(packet_len(head), Some((len, at)), "{len} from {begin}");
            }
        }
        assert_eq!(packet_len(&[0; 1024]), None);
        assert_eq!(packet_len(&[SYNC; 100]), None);
    }

    #[test]
    fn a_pes_header_says_when_it_is_shown() {
        // 90000 as 33 bits with markers: 0, 2, 24464.
        let header = [
            0, 0, 1, 0xe0, 0, 0, 0x80, 0x80, 5, 0x21, 0, 0x05, 0xbf, 0x21,
        ];
        let header = PesHeader::read(&header).unwrap();
        assert_eq!(
            (header.len, header.pts, header.dts),
            (14, Some(90_000), None)
        );
        assert!(PesHeader::read(&[0, 0, 1, 0xe0]).is_none());
    }

    #[test]
    fn packets_of_sound_are_cut_out_of_any_pieces() {
        let frame = |content: u8| {
            let mut frame = vec![0xff, 0xf1, 0x4c, 0x80, 0x02, 0x1f, 0xfc];
            frame.extend([content; 10 - 7 + 6]);
            frame
        };
        let stream = [frame(1), frame(2), frame(3)].concat();
        let whole: Vec<u64> = [1_u8, 2, 3].iter().map(|n| hash(&[*n; 9])).collect();
        for piece_len in 1..stream.len() {
            let (mut sound, mut packets) = (Sound::default(), Vec::new());
            sound.marks.push((0, 1000));
            for piece in stream.chunks(piece_len) {
                sound.take(Framing::Adts, piece, &mut packets);
            }
            sound.end(Framing::Adts, &mut packets);
            let hashes: Vec<u64> = packets.iter().map(|packet| packet.hash).collect();
            assert_eq!(hashes, whole, "pieces of {piece_len}");
            assert_eq!(packets[1].time, 1000 + 21_333_333);
        }
    }
}
