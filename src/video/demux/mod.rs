//! Contents of a video file according to its container tables: the time of each frame, and every audio packet.
//!
//! This module is a second opinion beside GStreamer, whose demuxers lose data silently. It does not use GStreamer, and
//! code that decides what a run reads must not import it. It reads mp4 and mov (ISO/IEC 14496-12), Matroska and WebM
//! (RFC 9559) and MPEG transport streams (ISO/IEC 13818-1).
//!
//! Video payloads are skipped, so a long film costs little more than its audio. Damaged files yield whatever can be
//! read: no length in a file is trusted until the bytes are there.

mod bytes;
mod matroska;
mod mp4;
mod mpeg_ts;
mod sound;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Exceeds the number of packets in weeks of video; a file that claims more is damaged.
const MOST_PACKETS: usize = 20_000_000;

/// Container format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// mp4, mov, m4v.
    Mp4,
    /// Matroska, WebM.
    Matroska,
    /// MPEG transport stream, with or without timecodes between its packets.
    MpegTs,
}

/// Kind of a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Video.
    Picture,
    /// Audio.
    Sound,
    /// Subtitles, timecodes, data.
    Other,
}

/// One frame, or one audio packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Presentation time in nanoseconds; negative before the beginning of the container's presentation.
    pub time: i64,
    /// Duration in nanoseconds; if the container does not state it, up to the next packet.
    pub duration: i64,
    /// Digest of the bytes; zero for frames.
    pub hash: u64,
    /// True if the time is only an estimate: the packet shares a block with others of its track, whose lengths differ.
    pub is_guess: bool,
    /// True if the packet follows another one of its track in the same block, and thus has no timestamp of its own.
    pub is_behind: bool,
}

impl Packet {
    /// Returns the end time.
    pub fn end(&self) -> i64 {
        self.time.saturating_add(self.duration)
    }
}

/// One track.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Track {
    /// Kind of the track.
    pub kind: Kind,
    /// Codec name, which is the same in every container.
    pub codec: String,
    /// Frames in presentation order, all of which are shown; audio packets in file order, including the pre-roll.
    pub packets: Vec<Packet>,
    /// Presentation time of the first frame at which decoding may begin; `None` if a container does not state it, or
    /// begins with it.
    pub first_key: Option<i64>,
    /// Presentation time of the first H.264 frame from which on a picture is refreshed part by part (ITU-T H.264, D.2.8),
    /// if the container is read that far. A decoder that begins at such a frame may show incomplete ones.
    pub first_refresh: Option<i64>,
    /// True if the file ends within a packet of this track, which is then not included.
    pub breaks_off: bool,
    /// Number of audio packets before the first timestamp of the track, which are not included.
    pub n_untimed: u64,
    /// Duration at the beginning that the decoder is to discard, in nanoseconds, if the container states it for Opus.
    pub left_out: Option<i64>,
    /// Digest of all audio bytes: uncompressed audio has no meaningful packets. `None` if an edit cuts between two
    /// samples.
    pub bytes_hash: Option<u64>,
    /// Reason why the packets are unknown, if they are.
    pub unknown: Option<&'static str>,
}

impl Track {
    /// Returns whether the track is uncompressed audio.
    pub fn is_pcm(&self) -> bool {
        self.codec == "PCM"
    }

    /// Returns whether containers divide the track into packets as they like: uncompressed audio, and small blocks of
    /// differences between samples.
    pub fn is_divided_freely(&self) -> bool {
        self.is_pcm() || self.codec == "ADPCM"
    }

    /// Returns the end of the last packet.
    pub fn end(&self) -> Option<i64> {
        self.packets.iter().map(Packet::end).max()
    }
}

/// Contents of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Container format.
    pub format: Format,
    /// Tracks in file order, without those that have no packets.
    pub tracks: Vec<Track>,
    /// True if edit lists determine when tracks are shown.
    pub has_edit_lists: bool,
    /// End of the presentation according to the container, in nanoseconds.
    pub claimed_end: Option<i64>,
    /// Number of samples in an mp4's tables whose bytes are missing from the file.
    pub n_cut_off: u64,
}

impl Contents {
    /// Iterates over the tracks of one kind.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Track> {
        self.tracks.iter().filter(move |track| track.kind == kind)
    }
}

/// Reason why a file's tables cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(String);

impl Unreadable {
    fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl From<std::io::Error> for Unreadable {
    fn from(err: std::io::Error) -> Self {
        Self(err.to_string())
    }
}

/// Reads the tables of `path`.
///
/// # Errors
/// Names the type of a file whose tables are not supported, or the missing part of a damaged one.
pub fn read(path: &Path) -> Result<Contents, Unreadable> {
    let mut file = File::open(path)?;
    let mut head = Vec::new();
    (&mut file).take(4096).read_to_end(&mut head)?;
    file.seek(SeekFrom::Start(0))?;
    let mut contents = match format_of(&head)? {
        Format::Mp4 => mp4::read(file),
        Format::Matroska => matroska::read(file),
        Format::MpegTs => mpeg_ts::read(file, &head),
    }?;
    contents
        .tracks
        .retain(|track| !track.packets.is_empty() || track.unknown.is_some());
    Ok(contents)
}

/// Detects the container that begins with `head`.
fn format_of(head: &[u8]) -> Result<Format, Unreadable> {
    let kind = head.get(4..8).unwrap_or_default();
    let boxes: [&[u8]; 7] = [
        b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp",
    ];
    if boxes.contains(&kind) {
        return Ok(Format::Mp4);
    }
    if head.starts_with(&[0x1a, 0x45, 0xdf, 0xa3]) {
        return Ok(Format::Matroska);
    }
    if mpeg_ts::packet_len(head).is_some() {
        return Ok(Format::MpegTs);
    }
    let asf = [0x30, 0x26, 0xb2, 0x75];
    let name = match head {
        _ if head.starts_with(b"RIFF") => "AVI",
        _ if head.starts_with(b"FLV") => "FLV",
        _ if head.starts_with(&asf) => "WMV",
        _ if head.starts_with(&[0, 0, 1, 0xba]) => "an MPEG program stream",
        _ if head.starts_with(b"OggS") => "Ogg",
        _ => "in an unknown format",
    };
    Err(Unreadable::new(name))
}

/// Returns the time of the first frame of a file, in file order, if others are shown before it: where a file was cut at an
/// open group of pictures, they refer to frames that it lacks, and decoders leave them out.
fn first_key(kind: Kind, packets: &[Packet]) -> Option<i64> {
    let first = packets.first().filter(|_| kind == Kind::Picture)?.time;
    let is_preceded = packets.iter().any(|packet| packet.time < first);
    is_preceded.then_some(first)
}

/// Completes the times of a track from the container's data about its packets.
///
/// Packets of one block share the time to the next block; a duration of zero is unknown.
fn complete(kind: Kind, packets: &mut [Packet]) {
    if kind == Kind::Picture {
        packets.sort_by_key(|packet| packet.time);
    }
    let mut share_before = 0;
    let mut begin = 0;
    while let Some(first) = packets.get(begin).copied() {
        let rest = packets.get(begin..).unwrap_or_default();
        let n_together = match kind {
            Kind::Picture => 1,
            _ => 1 + rest.iter().skip(1).take_while(|p| p.is_behind).count(),
        };
        let next = packets.get(begin + n_together).map(|next| next.time);
        let gap = next
            .map(|next| next.saturating_sub(first.time))
            .filter(|gap| *gap > 0);
        let share = gap.map_or(share_before, |gap| gap / n_together as i64);
        let mut time = first.time;
        for packet in packets.iter_mut().skip(begin).take(n_together) {
            packet.time = time;
            if packet.duration == 0 {
                packet.duration = share;
            }
            time = time.saturating_add(packet.duration);
        }
        share_before = share;
        begin += n_together;
    }
}

/// True for VP8 frames that only serve as a reference (RFC 6386, section 9.1: bit 4 shows a frame).
fn is_hidden_vp8(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|first| first & 0x10 == 0)
}

/// Converts `ticks` of 1/`timescale` s to nanoseconds, rounded down.
fn nanos(ticks: i64, timescale: u32) -> i64 {
    let nanos = (i128::from(ticks) * 1_000_000_000).div_euclid(i128::from(timescale.max(1)));
    i64::try_from(nanos).unwrap_or(if ticks < 0 {
        i64::MIN / 4
    } else {
        i64::MAX / 4
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(times: &[(i64, i64)]) -> Vec<Packet> {
        let packets = times.iter().map(|(time, duration)| Packet {
            time: *time,
            duration: *duration,
            ..Packet::default()
        });
        packets.collect()
    }

    #[test]
    fn laced_packets_share_the_time_to_the_next_block() {
        let mut laced = packets(&[(0, 0), (0, 0), (40, 0), (40, 0), (80, 0)]);
        laced[1].is_behind = true;
        laced[3].is_behind = true;
        complete(Kind::Sound, &mut laced);
        let told = |packets: &[Packet]| -> Vec<(i64, i64)> {
            packets.iter().map(|p| (p.time, p.duration)).collect()
        };
        let expected = [(0, 20), (20, 20), (40, 20), (60, 20), (80, 20)];
        assert_eq!(told(&laced), expected);
        // Packets in blocks of their own keep their times, even where two recordings meet.
        let mut joined = packets(&[(0, 20), (20, 20), (20, 20), (40, 20)]);
        complete(Kind::Sound, &mut joined);
        assert_eq!(told(&joined), [(0, 20), (20, 20), (20, 20), (40, 20)]);
    }

    #[test]
    fn frames_last_until_the_next_one_in_order_of_presentation() {
        let mut reordered = packets(&[(0, 0), (120, 0), (40, 0), (80, 0)]);
        complete(Kind::Picture, &mut reordered);
        assert_eq!(
            reordered,
            packets(&[(0, 40), (40, 40), (80, 40), (120, 40)])
        );
    }

    #[test]
    fn other_files_are_named() {
        let name = |head: &[u8]| format_of(head).unwrap_err().to_string();
        assert_eq!(name(b"RIFF\0\0\0\0AVI "), "AVI");
        assert_eq!(name(b"FLV\x01"), "FLV");
        assert_eq!(name(&[0, 0, 1, 0xba, 0x44]), "an MPEG program stream");
        assert_eq!(name(b""), "in an unknown format");
    }
}
