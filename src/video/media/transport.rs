//! Adapts a transport stream to GStreamer's demuxer: audio gets stream types that it recognizes, and the clock begins
//! before the presentation does, see [`program_clock`](super::program_clock).
//!
//! ffmpeg and discs write DTS as stream type 0x82. tsdemux 1.22 knows it only as 0x8a and silently drops such audio. It
//! takes TrueHD, which is 0x83, for uncompressed audio outside of discs, and fails. It drops AAC and MPEG audio that
//! ffmpeg labels as private data in `.m2ts`. aacparse 1.22 fails on channel layouts without a number in AAC headers,
//! such as that of two languages in one track. The program map table (ISO/IEC 13818-1, 2.4.4.8) is therefore rewritten
//! wherever it is read.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use gstreamer as gst;
use gstreamer::prelude::*;

use super::program_clock::ProgramClock;
use super::session::lock;

/// A kind of audio with a misleading stream type.
struct Kind {
    /// Stream type in files; the same type may mean something else, such as subtitles.
    written: u8,
    /// Stream type shown to tsdemux.
    shown: u8,
    /// Whether a PES packet of this stream (its stream ID, its content) is of the kind.
    is_in: fn(u8, &[u8]) -> bool,
    /// Warning for users if tsdemux is shown an unknown type and drops the stream.
    told: Option<&'static str>,
}

const DTS: Kind = Kind {
    written: 0x82,
    shown: 0x8a,
    // Sync word of a frame (ETSI TS 102 114).
    is_in: |_, content| content.starts_with(&[0x7f, 0xfe, 0x80, 0x01]),
    told: None,
};
const TRUE_HD: Kind = Kind {
    written: 0x83,
    shown: UNKNOWN,
    // Sync word of an access unit, after its length and time.
    is_in: |_, content| content.get(4..8) == Some(&[0xf8, 0x72, 0x6f, 0xba]),
    told: Some(TRUE_HD_IS_LEFT_OUT),
};
const UNNUMBERED_AAC: Kind = Kind {
    written: 0x0f,
    shown: UNKNOWN,
    is_in: is_unnumbered_aac,
    told: Some(
        "leaving out AAC sound with a channel layout that its headers do not number: GStreamer cannot separate its \
         packets in a transport stream",
    ),
};
const PRIVATE_UNNUMBERED_AAC: Kind = Kind {
    written: PRIVATE_DATA,
    ..UNNUMBERED_AAC
};
const AAC: Kind = Kind {
    written: PRIVATE_DATA,
    shown: 0x0f,
    is_in: |stream, content| is_mpeg_sound(stream, content) == Some(NO_LAYER),
    told: None,
};
const MPEG_AUDIO: Kind = Kind {
    written: PRIVATE_DATA,
    shown: 0x03,
    is_in: |stream, content| is_mpeg_sound(stream, content).is_some_and(|layer| layer != NO_LAYER),
    told: None,
};
const KINDS: [Kind; 6] = [
    DTS,
    TRUE_HD,
    UNNUMBERED_AAC,
    PRIVATE_UNNUMBERED_AAC,
    AAC,
    MPEG_AUDIO,
];

const PRIVATE_DATA: u8 = 6;
/// Stream type unknown to tsdemux.
const UNKNOWN: u8 = 0xe0;

/// Stream IDs of PES packets that hold MPEG's own kinds of audio (2.4.3.7).
const MPEG_SOUND: std::ops::RangeInclusive<u8> = 0xc0..=0xdf;

/// Layer bits of AAC headers (ADTS).
const NO_LAYER: u8 = 0;

/// True if the AAC channel layout has no number in the header (ISO/IEC 13818-7, 6.2.1).
fn is_unnumbered_aac(stream: u8, content: &[u8]) -> bool {
    let [_, _, third, fourth, ..] = *content else {
        return false;
    };
    is_mpeg_sound(stream, content) == Some(NO_LAYER) && (third & 1, fourth >> 6) == (0, 0)
}

/// Returns the layer bits of the header at the start of `content`, if it is one of AAC or MPEG audio.
fn is_mpeg_sound(stream: u8, content: &[u8]) -> Option<u8> {
    let [0xff, second, third, ..] = *content else {
        return None;
    };
    let layer = second >> 1 & 3;
    let is_sync = second & 0xe0 == 0xe0 && (layer != NO_LAYER || second & 0xf0 == 0xf0);
    let is_known = layer == NO_LAYER || third >> 4 != 15 && third >> 2 & 3 != 3;
    (MPEG_SOUND.contains(&stream) && is_sync && is_known).then_some(layer)
}

pub(super) const SYNC: u8 = 0x47;
pub(super) const PACKET_LEN: usize = 188;
const CHECKSUM_LEN: usize = 4;

/// Length of a program association table with one program.
const SHORTEST_TABLE: usize = 16;

/// Maximum offset of the first packet in a file, and number of packets in a row that confirm it.
const LONGEST_JUNK: usize = 1 << 16;
const IN_STEP: usize = 5;

/// Length of the beginning of a file that is searched for tracks.
const HEAD_LEN: usize = 4 << 20;

/// Warning for users.
pub(super) const TRUE_HD_IS_LEFT_OUT: &str =
    "leaving out TrueHD sound: GStreamer cannot separate its packets in a transport stream";

/// Bytes from one packet to the next: 188-byte packets alone, after a timestamp, or followed by an error-correcting
/// code.
const STEPS: [usize; 3] = [PACKET_LEN, 192, LONGEST_STEP];
const LONGEST_STEP: usize = 204;

/// Information from the beginning of a transport stream.
pub(super) struct Opening {
    layout: Layout,
    renamed: Option<Renamed>,
    clock: Option<ProgramClock>,
}

/// Streams of a file with misleading stream types.
struct Renamed {
    /// PID of the program map table.
    map_pid: u16,
    /// PIDs of the streams, and indices of their kinds in [`KINDS`].
    streams: Vec<(u16, usize)>,
}

impl Opening {
    /// Reads the opening of `path`; `None` if the file is not a transport stream.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        let mut head = Vec::new();
        // Other files are read only as far as needed to recognize them.
        let read_to = |len: usize, head: &mut Vec<u8>| {
            let left = len.saturating_sub(head.len()) as u64;
            (&file).take(left).read_to_end(head).ok()
        };
        read_to(LONGEST_JUNK + IN_STEP * LONGEST_STEP, &mut head)?;
        let layout = layout(&head)?;
        read_to(HEAD_LEN, &mut head)?;
        Some(Self {
            layout,
            renamed: Renamed::find(&head, layout),
            clock: ProgramClock::find(&head, layout),
        })
    }

    /// Returns the clock, if the opening contains it.
    pub(super) fn clock(&self) -> Option<&ProgramClock> {
        self.clock.as_ref()
    }

    /// Presents readers of `filesrc` with a program map table in which [`KINDS`] have the stream types that tsdemux
    /// expects, and with the clock that it needs.
    pub(super) fn show(self: &Arc<Self>, filesrc: &gst::Element) {
        if let Some(renamed) = &self.renamed {
            let streams = renamed.streams.iter();
            for told in streams.filter_map(|(_, kind_idx)| KINDS[*kind_idx].told) {
                tracing::warn!("{told}");
            }
        }
        let is_changed = self.clock.as_ref().is_some_and(ProgramClock::is_changed);
        if self.renamed.is_none() && !is_changed {
            return;
        }
        let path: Option<String> = filesrc.property("location");
        let file = path.and_then(|path| File::open(path).ok());
        let (Some(file), Some(pad)) = (file, filesrc.static_pad("src")) else {
            return;
        };
        let (opening, file) = (Arc::clone(self), Mutex::new(file));
        pad.add_probe(
            gst::PadProbeType::BUFFER | gst::PadProbeType::PULL,
            move |_, info| {
                if let Some(buffer) = info.buffer_mut() {
                    opening.change(buffer, &mut lock(&file));
                }
                gst::PadProbeReturn::Ok
            },
        );
    }

    /// True if the packet at `place` of stream `pid` may be changed.
    fn concerns(&self, place: u64, pid: u16) -> bool {
        let of_map = self.renamed.as_ref().is_some_and(|of| of.map_pid == pid);
        let of_clock = self
            .clock
            .as_ref()
            .is_some_and(|of| of.concerns(place, pid));
        of_map || of_clock
    }

    /// Changes the packets that lie partly or wholly in `buffer`.
    fn change(&self, buffer: &mut gst::Buffer, file: &mut File) {
        let (offset, len) = (buffer.offset(), buffer.size() as u64);
        let (first, every) = (self.layout.first as u64, self.layout.every as u64);
        let n_before = (offset + 1)
            .saturating_sub(first + PACKET_LEN as u64)
            .div_ceil(every);
        let starts = (0..).map(|idx| first + (n_before + idx) * every);
        let mut changed = Vec::new();
        {
            let Ok(bytes) = buffer.map_readable() else {
                return;
            };
            for start in starts.take_while(|start| *start < offset + len) {
                let mut packet = [0; PACKET_LEN];
                let within = start.checked_sub(offset).map(|at| at as usize);
                match within.and_then(|at| bytes.get(at..at + PACKET_LEN)) {
                    Some(whole) if !self.concerns(start, pid_at(whole, 1)) => continue,
                    Some(whole) => packet.copy_from_slice(whole),
                    None => {
                        let read = file
                            .seek(SeekFrom::Start(start))
                            .and_then(|_| file.read_exact(&mut packet));
                        if read.is_err() {
                            continue;
                        }
                    }
                }
                let renamed = self.renamed.as_ref();
                let clock = self.clock.as_ref();
                // A packet that is inserted may list tracks.
                let is_changed = clock.is_some_and(|of| of.change(start, &mut packet));
                let is_renamed = renamed.is_some_and(|of| of.rename(&mut packet));
                if is_changed || is_renamed {
                    changed.push((start, packet));
                }
            }
        }
        if changed.is_empty() {
            return;
        }
        let Ok(mut target) = buffer.make_mut().map_writable() else {
            return;
        };
        for (start, packet) in changed {
            for (byte, place) in packet.into_iter().zip(start..) {
                let at = place.checked_sub(offset).map(|at| at as usize);
                if let Some(target) = at.and_then(|at| target.get_mut(at)) {
                    *target = byte;
                }
            }
        }
    }
}

/// Distance between packets and offset of the first one, in bytes.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) every: usize,
    pub(super) first: usize,
}

/// Finds the packets of a file that begins with `head`; `None` if it is not a transport stream.
fn layout(head: &[u8]) -> Option<Layout> {
    // A recording may begin in the middle of a packet or with other data.
    let mut layouts =
        (0..LONGEST_JUNK).flat_map(|first| STEPS.map(|every| Layout { every, first }));
    layouts.find(|&layout| {
        let mut n_packets = 0;
        let in_step = packets(head, layout).take(IN_STEP).all(|packet| {
            n_packets += 1;
            packet.first() == Some(&SYNC)
        });
        in_step && n_packets > 1
    })
}

pub(super) fn packets(head: &[u8], Layout { every, first }: Layout) -> impl Iterator<Item = &[u8]> {
    let starts = (first..).step_by(every);
    starts.map_while(move |start| head.get(start..start + PACKET_LEN))
}

impl Renamed {
    /// Returns `None` if the first program has no such audio.
    fn find(head: &[u8], layout: Layout) -> Option<Self> {
        let mut map_pid = None;
        let mut candidates: Vec<(u16, u8)> = Vec::new();
        let mut streams: Vec<(u16, usize)> = Vec::new();
        for packet in packets(head, layout) {
            let Some(payload) = beginning(packet) else {
                continue;
            };
            let pid = pid_at(packet, 1);
            if pid == 0 && map_pid.is_none() {
                map_pid = table(packet).and_then(|table| programs(packet.get(table)?).next());
            } else if Some(pid) == map_pid {
                let written = tracks(packet).filter_map(|(_, written, pid)| {
                    let is_unclear = KINDS.iter().any(|kind| kind.written == written);
                    let is_known = streams.iter().any(|(of, _)| *of == pid);
                    (is_unclear && !is_known).then_some((pid, written))
                });
                candidates = written.collect();
            } else if let Some(place) = candidates.iter().position(|(of, _)| *of == pid) {
                let (_, written) = candidates.swap_remove(place);
                let content = packet
                    .get(payload + 8)
                    .and_then(|len| packet.get(payload + 9 + usize::from(*len)..));
                let (Some(content), Some(stream)) = (content, packet.get(payload + 3)) else {
                    continue;
                };
                let kind_idx = KINDS
                    .iter()
                    .position(|kind| kind.written == written && (kind.is_in)(*stream, content));
                streams.extend(kind_idx.map(|kind_idx| (pid, kind_idx)));
            }
            if candidates.is_empty() && !streams.is_empty() {
                break;
            }
        }
        (!streams.is_empty()).then_some(Self {
            map_pid: map_pid?,
            streams,
        })
    }

    /// Rewrites the program map table in `packet`; false if the packet has none that lists such audio.
    fn rename(&self, packet: &mut [u8]) -> bool {
        let Some(table) = table(packet).filter(|_| pid_at(packet, 1) == self.map_pid) else {
            return false;
        };
        let shown = |written: u8, pid: u16| {
            let mut kinds = self.streams.iter().filter(|(of, _)| *of == pid);
            kinds.find_map(|(_, kind_idx)| {
                let kind = &KINDS[*kind_idx];
                (kind.written == written).then_some(kind.shown)
            })
        };
        let places: Vec<(usize, u8)> = tracks(packet)
            .filter_map(|(at, written, pid)| Some((at, shown(written, pid)?)))
            .collect();
        for (at, shown) in &places {
            if let Some(kind) = packet.get_mut(*at) {
                *kind = *shown;
            }
        }
        let checksum_at = table.end - CHECKSUM_LEN;
        let checksum = crc32(packet.get(table.start..checksum_at).unwrap_or_default());
        if let Some(place) = packet.get_mut(checksum_at..table.end) {
            place.copy_from_slice(&checksum.to_be_bytes());
        }
        !places.is_empty()
    }
}

/// Returns the offset of the payload of a packet in which a table or a PES packet begins (2.4.3.2).
pub(super) fn beginning(packet: &[u8]) -> Option<usize> {
    let [sync, high, _, flags, adaptation_len, ..] = packet else {
        return None;
    };
    let is_whole = *sync == SYNC && high & 0xc0 == 0x40 && flags & 0xd0 == 0x10;
    let adaptation_len = match flags & 0x20 {
        0 => 0,
        _ => 1 + usize::from(*adaptation_len),
    };
    is_whole.then_some(4 + adaptation_len)
}

/// Passes on each packet of a list of `pad` by itself, as probes expect them: tsdemux 1.22 sends lists of the packets of
/// Opus that share a PES packet.
pub(super) fn split_lists(pad: &gst::Pad) {
    pad.add_probe(gst::PadProbeType::BUFFER_LIST, |pad, info| {
        let Some(gst::PadProbeData::BufferList(list)) = info.data.take() else {
            return gst::PadProbeReturn::Ok;
        };
        info.flow_res = list
            .iter_owned()
            .try_fold(gst::FlowSuccess::Ok, |_, packet| pad.push(packet));
        gst::PadProbeReturn::Handled
    });
}

/// Drops packets of `pad` without a timestamp that follow a flush, up to the first one with a timestamp.
///
/// Behind a seek, tsdemux 1.22 passes on packets that it had kept back before.
pub(super) fn await_time(pad: &gst::Pad) {
    let is_waiting = AtomicBool::new(false);
    let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_FLUSH;
    pad.add_probe(kinds, move |_, info| {
        match (info.event(), info.buffer()) {
            (Some(event), _) if event.type_() == gst::EventType::FlushStop => {
                is_waiting.store(true, Ordering::SeqCst);
            }
            (_, Some(buffer)) if buffer.pts().is_some() => {
                is_waiting.store(false, Ordering::SeqCst);
            }
            (_, Some(_)) if is_waiting.load(Ordering::SeqCst) => {
                drop(info.take_buffer());
                return gst::PadProbeReturn::Handled;
            }
            _ => {}
        }
        gst::PadProbeReturn::Ok
    });
}

/// Strips the trailing zeros of the frames of `pad` if they are H.265.
///
/// The start code of a frame may have a leading zero, which a program that copies a stream may assign to the previous
/// frame. h265parse 1.22 lets a frame begin with this zero, and thus at the time of the previous frame.
pub(super) fn strip_trailing_zeros(pad: &gst::Pad) {
    pad.add_probe(gst::PadProbeType::BUFFER, |pad, info| {
        let caps = pad.current_caps();
        let fields = caps.as_ref().and_then(|caps| caps.structure(0));
        if fields.is_none_or(|fields| fields.name() != "video/x-h265") {
            return gst::PadProbeReturn::Remove;
        }
        let Some(buffer) = info.buffer_mut() else {
            return gst::PadProbeReturn::Ok;
        };
        let stripped_len = buffer.map_readable().map_or(0, |bytes| {
            // Other buffers may be parts of a frame and end anywhere.
            let is_picture = [&[0, 0, 1][..], &[0, 0, 0, 1]];
            let is_picture = is_picture.iter().any(|code| bytes.starts_with(code));
            let end = bytes.iter().rposition(|byte| *byte != 0);
            end.filter(|_| is_picture).map_or(0, |end| end + 1)
        });
        if stripped_len > 0 && stripped_len < buffer.size() {
            buffer.make_mut().set_size(stripped_len);
        }
        gst::PadProbeReturn::Ok
    });
}

/// Reads 13 bits starting at a byte: a PID.
pub(super) fn pid_at(packet: &[u8], at: usize) -> u16 {
    twelve_bits_at(packet, at) | (u16::from(packet.get(at).copied().unwrap_or(0)) & 0x10) << 8
}

/// Reads 12 bits starting at a byte: a length.
pub(super) fn twelve_bits_at(packet: &[u8], at: usize) -> u16 {
    let byte = |at: usize| u16::from(packet.get(at).copied().unwrap_or(0));
    (byte(at) & 0x0f) << 8 | byte(at + 1)
}

/// Returns the range of the table that a packet holds in full (2.4.4).
pub(super) fn table(packet: &[u8]) -> Option<Range<usize>> {
    let payload = beginning(packet)?;
    let start = payload + 1 + usize::from(*packet.get(payload)?);
    let end = start + 3 + usize::from(twelve_bits_at(packet, start + 1));
    (end <= packet.len() && end >= start + SHORTEST_TABLE).then_some(start..end)
}

/// Iterates over the PIDs of the program map tables in a program association table: eight bytes, then four per program,
/// where program 0 is none (2.4.4.3).
pub(super) fn programs(table: &[u8]) -> impl Iterator<Item = u16> {
    let end = table.len().saturating_sub(CHECKSUM_LEN);
    let programs = table.get(8..end).unwrap_or_default().chunks_exact(4);
    let programs = programs.filter(|program| !program.starts_with(&[0, 0]));
    programs.map(|program| pid_at(program, 2))
}

/// Iterates over the tracks of the program map table in a packet: offset of the stream type, stream type, and PID.
pub(super) fn tracks(packet: &[u8]) -> impl Iterator<Item = (usize, u8, u16)> {
    let table = table(packet).unwrap_or_default();
    let end = table.end.saturating_sub(CHECKSUM_LEN);
    let mut at = table.start + 12 + usize::from(twelve_bits_at(packet, table.start + 10));
    std::iter::from_fn(move || {
        let kind = *packet.get(at).filter(|_| at + 5 <= end)?;
        let track = (at, kind, pid_at(packet, at + 1));
        at += 5 + usize::from(twelve_bits_at(packet, at + 3));
        Some(track)
    })
}

/// Computes the checksum of tables (annex A).
fn crc32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte) << 24, |crc, _| {
            let shifted = crc << 1;
            if crc >> 31 == 1 {
                shifted ^ 0x04c1_1db7
            } else {
                shifted
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // Check value of CRC-32/MPEG-2 in the catalogue of parametrised CRC algorithms.
        assert_eq!(crc32(b"123456789"), 0x0376_e6e7);
    }

    /// A program map table with DTS as stream 0x101 and subtitles of the same type as 0x102.
    fn list() -> [u8; PACKET_LEN] {
        let mut packet = [0xff; PACKET_LEN];
        let mut table = vec![2, 0xb0, 0, 0, 1, 0xc1, 0, 0, 0xe1, 0, 0xf0, 0];
        table.extend([0x1b, 0xe1, 0x00, 0xf0, 0]);
        table.extend([0x82, 0xe1, 0x01, 0xf0, 2, 0x0a, 0]);
        table.extend([0x82, 0xe1, 0x02, 0xf0, 0]);
        table[2] = (table.len() + CHECKSUM_LEN - 3) as u8;
        table.extend(crc32(&table).to_be_bytes());
        packet[..5].copy_from_slice(&[SYNC, 0x50, 0x00, 0x10, 0]);
        packet[5..5 + table.len()].copy_from_slice(&table);
        packet
    }

    #[test]
    fn dts_alone_is_renamed_in_buffers_cut_anywhere() {
        gst::init().unwrap();
        let dts = Opening {
            layout: Layout {
                every: 192,
                first: 4,
            },
            renamed: Some(Renamed {
                map_pid: 0x1000,
                streams: vec![(0x101, 0)],
            }),
            clock: None,
        };
        let mut whole = vec![0; 192];
        for _ in 0..3 {
            whole.extend([0; 4]);
            whole.extend(list());
        }
        let mut named = list();
        named[5 + 17] = DTS.shown;
        let checksum = crc32(&named[5..5 + 29]);
        named[5 + 29..5 + 33].copy_from_slice(&checksum.to_be_bytes());
        let mut expected = whole.clone();
        for idx in 1..4 {
            expected[192 * idx + 4..192 * (idx + 1)].copy_from_slice(&named);
        }
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &whole).unwrap();
        for piece_len in [1, 7, 188, 191, 192, 193, 500, 768] {
            let mut got = Vec::new();
            for (idx, piece) in whole.chunks(piece_len).enumerate() {
                let mut buffer = gst::Buffer::from_slice(piece.to_vec());
                buffer
                    .get_mut()
                    .unwrap()
                    .set_offset((idx * piece_len) as u64);
                dts.change(&mut buffer, &mut file);
                got.extend_from_slice(&buffer.map_readable().unwrap());
            }
            assert!(got == expected, "pieces of {piece_len}");
        }
    }

    #[test]
    fn what_holds_no_dts_is_left_alone() {
        let find = |head: &[u8]| layout(head).and_then(|layout| Renamed::find(head, layout));
        assert!(find(&[]).is_none());
        assert!(find(&[SYNC; 188 * 4]).is_none());
        assert!(find(&list().repeat(4)).is_none(), "no list of programs");
    }
}
