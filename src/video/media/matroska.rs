//! Beginning, rotation and other contents of a Matroska or WebM file, and corrections to files written by GStreamer's
//! muxer.
//!
//! matroskamux 1.22 writes the longest track's length and omits its beginning. Elements are those of RFC 9559; no other
//! parts of it are implemented.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use gstreamer::glib;
use gstreamer::prelude::*;

use super::beside::Beside;

/// First bytes of Matroska and WebM.
pub(super) const EBML: [u8; 4] = [0x1a, 0x45, 0xdf, 0xa3];

const SEGMENT: u32 = 0x1853_8067;
const INFO: u32 = 0x1549_a966;
const DURATION: u32 = 0x4489;
const TIMESTAMP_SCALE: u32 = 0x2a_d7b1;

const DATE_UTC: u32 = 0x4461;
/// Seconds from 1970 to 2001, the epoch of dates.
const EPOCH: i64 = 978_307_200;

const TAGS: u32 = 0x1254_c367;
const TAG: u32 = 0x7373;
const SIMPLE_TAG: u32 = 0x67c8;
const TAG_STRING: u32 = 0x4487;

const CHAPTERS: u32 = 0x1043_a770;
const ATTACHMENTS: u32 = 0x1941_a469;
const ATTACHED_FILE: u32 = 0x61a7;

/// Index of the elements that follow.
const SEEK_HEAD: u32 = 0x114d_9b74;
const SEEK: u32 = 0x4dbb;
const SEEK_ID: u32 = 0x53ab;
/// Index of times in the file.
const CUES: u32 = 0x1c53_bb6b;
const TRACKS: u32 = 0x1654_ae6b;
const TRACK_ENTRY: u32 = 0xae;
const TRACK_NUMBER: u32 = 0xd7;
const TRACK_TYPE: u32 = 0x83;
/// Track types.
const PICTURE: u64 = 1;
const SOUND: u64 = 2;
const FLAG_DEFAULT: u32 = 0x88;
const VIDEO: u32 = 0xe0;
const PROJECTION: u32 = 0x7670;
const PROJECTION_POSE_ROLL: u32 = 0x7675;
const CODEC_DELAY: u32 = 0x56aa;
const NAME: u32 = 0x536e;
const LANGUAGE: u32 = 0x22_b59c;
/// Language element "undetermined", as long as the name elements `Video` and `Audio` with their trailing zero; its size
/// is encoded in three bytes.
const UNDETERMINED: [u8; 9] = [0x22, 0xb5, 0x9c, 0x20, 0, 3, b'u', b'n', b'd'];
/// Void element of the same length.
const VOID: [u8; 9] = [0xec, 0x87, 0, 0, 0, 0, 0, 0, 0];
const CLUSTER: u32 = 0x1f43_b675;
const CLUSTER_TIMESTAMP: u32 = 0xe7;
const BLOCK_GROUP: u32 = 0xa0;
const BLOCK: u32 = 0xa1;
const SIMPLE_BLOCK: u32 = 0xa3;

/// Number of bytes after the start of the first cluster within which every video and audio stream has begun.
const BEGIN_LEN: usize = 8 << 20;

/// Maximum length of an element's ID and size in bytes.
const LONGEST_HEADER: u64 = 12;

/// Number of bytes within which the segment information of any file of this muxer lies.
const HEAD_LEN: u64 = 64 << 10;

/// Reads the first bytes of `path`, at most `len`.
fn read_head(path: &Path, len: u64) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path)?.take(len).read_to_end(&mut head)?;
    Ok(head)
}

/// Corrects the fields of `path` that matroskamux 1.22 gets wrong: duration, creation date, texts, track names and the
/// begin of Opus.
pub(super) fn correct(
    path: &Path,
    duration: Duration,
    created: Option<i64>,
) -> std::io::Result<()> {
    let head = read_head(path, HEAD_LEN)?;
    let mut patches = text_patches(path, &head)?;
    patches.extend(name_patches(&head));
    let delays = |track: &Track| !track.codec_delay.is_zero();
    if Opening::parse(&head).tracks.iter().any(delays) {
        patches.extend(Opening::read(path).first_opus_patches());
    }
    patches.extend(duration_patch(&head, duration));
    patches.extend(created.and_then(|created| date_patch(&head, created)));
    let mut file = OpenOptions::new().write(true).open(path)?;
    for (at, bytes) in patches {
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&bytes)?;
    }
    Ok(())
}

/// Removes the names `Video` and `Audio`, which matroskamux 1.22 gives to all tracks; titles are tags. A track without
/// a language gets "undetermined" in place of its name, because the default would be English (RFC 9559, section
/// 5.1.4.1.19).
fn name_patches(head: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut patches: Vec<(u64, Vec<u8>)> = Vec::new();
    // State of the current track: index of its patch, and whether it has a language.
    let (mut named, mut has_language) = (None, false);
    let mut at = 0;
    while let Some(element) = Element::read(head, at)
        && element.id != CLUSTER
    {
        let content = element.end().and_then(|end| head.get(element.content..end));
        match (element.id, content) {
            (TRACK_ENTRY, _) => (named, has_language) = (None, false),
            (LANGUAGE, _) => has_language = true,
            (NAME, Some(b"Video\0" | b"Audio\0")) if element.content == at + 3 => {
                named = Some(patches.len());
                patches.push((at as u64, UNDETERMINED.to_vec()));
            }
            _ => {}
        }
        if let (Some((_, bytes)), true) = (named.and_then(|idx| patches.get_mut(idx)), has_language)
        {
            *bytes = VOID.to_vec();
        }
        at = match element.id {
            SEGMENT | TRACKS | TRACK_ENTRY => element.content,
            _ => element.end().unwrap_or(head.len()),
        };
    }
    patches
}

/// Returns the location of the date in `head` and the bytes to write for `created`, in seconds since 1970.
fn date_patch(head: &[u8], created: i64) -> Option<(u64, Vec<u8>)> {
    let mut at = 0;
    loop {
        let element = Element::read(head, at)?;
        match element.id {
            SEGMENT | INFO => at = element.content,
            DATE_UTC if element.len == Some(8) => {
                let nanos = (created - EPOCH).checked_mul(1_000_000_000)?;
                return Some((element.content as u64, nanos.to_be_bytes().to_vec()));
            }
            CLUSTER => return None,
            _ => at = element.end()?,
        }
    }
}

/// Returns patches that restore the texts of tags: matroskamux 1.22 quotes and backslash-escapes texts with spaces.
///
/// Shorter texts are padded with zeros, as EBML allows (RFC 8794, section 7.4).
fn text_patches(path: &Path, head: &[u8]) -> std::io::Result<Vec<(u64, Vec<u8>)>> {
    let mut patches = Vec::new();
    let Some((tags, begin)) = read_tags(path, head)? else {
        return Ok(patches);
    };
    let mut at = 0;
    while let Some(element) = Element::read(&tags, at)
        && let Some(end) = element.end()
    {
        at = match element.id {
            TAG | SIMPLE_TAG => element.content,
            _ => end,
        };
        let text = tags
            .get(element.content..end)
            .filter(|_| element.id == TAG_STRING)
            .and_then(unquoted);
        if let Some(text) = text {
            let mut bytes = text.into_bytes();
            bytes.resize(end - element.content, 0);
            patches.push((begin + element.content as u64, bytes));
        }
    }
    Ok(patches)
}

/// Decodes a string quoted by GStreamer; `None` if it has no quotes.
fn unquoted(text: &[u8]) -> Option<String> {
    let text = str::from_utf8(text).ok()?;
    if !text.starts_with('"') {
        return None;
    }
    let value = glib::Value::deserialize(text, glib::Type::STRING).ok()?;
    value.get().ok()
}

/// Returns the contents of the tags element and their location in `path`, which begins with `head`.
fn read_tags(path: &Path, head: &[u8]) -> std::io::Result<Option<(Vec<u8>, u64)>> {
    let segment = Element::read(head, 0)
        .and_then(|header| Element::read(head, header.end()?))
        .filter(|segment| segment.id == SEGMENT);
    let Some(segment) = segment else {
        return Ok(None);
    };
    let mut file = File::open(path)?;
    let mut at = segment.content as u64;
    loop {
        let mut header = Vec::new();
        file.seek(SeekFrom::Start(at))?;
        (&mut file).take(LONGEST_HEADER).read_to_end(&mut header)?;
        let Some(element) = Element::read(&header, 0) else {
            return Ok(None);
        };
        let Some(len) = element.len else {
            return Ok(None);
        };
        at += element.content as u64;
        if element.id == TAGS {
            let mut tags = Vec::new();
            file.seek(SeekFrom::Start(at))?;
            file.take((len as u64).min(HEAD_LEN * 64))
                .read_to_end(&mut tags)?;
            return Ok(Some((tags, at)));
        }
        at = at.saturating_add(len as u64);
    }
}

/// Returns the contents of the header of `path` other than video and audio; `None` if the file is not Matroska.
pub(super) fn beside(path: &Path) -> Option<Beside> {
    let head = read_head(path, BEGIN_LEN as u64).ok()?;
    if !head.starts_with(&EBML) {
        return None;
    }
    let mut beside = Beside::default();
    // Default flag of each audio track.
    let mut defaults: Vec<bool> = Vec::new();
    let (mut is_sound, mut is_default) = (false, true);
    let mut at = 0;
    while let Some(element) = Element::read(&head, at)
        && element.id != CLUSTER
    {
        let content = element.end().and_then(|end| head.get(element.content..end));
        let value = content.and_then(number);
        match element.id {
            TRACK_ENTRY => {
                defaults.extend(is_sound.then_some(is_default));
                (is_sound, is_default) = (false, true);
            }
            TRACK_TYPE => is_sound = value == Some(SOUND),
            FLAG_DEFAULT => is_default = value != Some(0),
            CHAPTERS => beside.chapters = true,
            ATTACHED_FILE => {
                let content = content.unwrap_or_default();
                let is_picture = content.windows(6).any(|text| text == b"image/");
                beside.cover |= is_picture;
                beside.attachment |= !is_picture;
            }
            DATE_UTC => {
                let nanos = value.map(u64::cast_signed);
                beside.created = nanos.map(|nanos| nanos.div_euclid(1_000_000_000) + EPOCH);
            }
            _ => {}
        }
        at = match element.id {
            SEGMENT | INFO | TRACKS | TRACK_ENTRY | ATTACHMENTS => element.content,
            _ => element.end().unwrap_or(head.len()),
        };
    }
    defaults.extend(is_sound.then_some(is_default));
    beside.default_sound = defaults.contains(&true) && defaults.contains(&false);
    Some(beside)
}

/// Returns the `videoflip` method that applies the roll in the header of `path`, which GStreamer 1.22 does not read.
pub(super) fn direction(path: &Path) -> Option<&'static str> {
    let head = read_head(path, BEGIN_LEN as u64).ok()?;
    let counterclockwise = pose_roll(&head)?;
    match counterclockwise.rem_euclid(360.0) {
        90.0 => Some("90l"),
        180.0 => Some("180"),
        270.0 => Some("90r"),
        _ => None,
    }
}

/// Returns the first `ProjectionPoseRoll` in `head`, in degrees.
fn pose_roll(head: &[u8]) -> Option<f64> {
    if !head.starts_with(&EBML) {
        return None;
    }
    let mut at = 0;
    loop {
        let element = Element::read(head, at)?;
        at = match element.id {
            SEGMENT | TRACKS | TRACK_ENTRY | VIDEO | PROJECTION => element.content,
            PROJECTION_POSE_ROLL => {
                let bytes = head.get(element.content..element.end()?)?;
                let narrow = bytes.try_into().map(f32::from_be_bytes);
                return match narrow {
                    Ok(roll) => Some(roll.into()),
                    Err(_) => bytes.try_into().map(f64::from_be_bytes).ok(),
                };
            }
            CLUSTER => return None,
            _ => element.end()?,
        };
    }
}

/// Information from the first blocks of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Opening {
    /// Presentation time of the earliest block; `None` without blocks.
    pub(super) begin: Option<Duration>,
    /// True if the header states the duration of the file; live recordings do not.
    pub(super) has_duration: bool,
    /// True if the file has an index of times. Without one, GStreamer 1.22 seeks to any block, whether video or not.
    pub(super) has_cues: bool,
    /// Tracks in file order.
    pub(super) tracks: Vec<Track>,
    step_nanos: u64,
}

/// One track.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Track {
    pub(super) number: u64,
    is_video: bool,
    /// Number of clusters before that of the earliest block.
    first_cluster: Option<usize>,
    /// Time by which the track is shown earlier than its block timestamps, for the codec's pre-roll.
    pub(super) codec_delay: Duration,
    /// Timestamp of the earliest block.
    pub(super) first: Option<Duration>,
    /// Mean length of a packet, if blocks hold several.
    pub(super) laced: Option<Duration>,
    has_laces: bool,
    n_packets: u32,
    first_blocks: [Option<Block>; 3],
}

/// Timestamps of a block, in segment ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    /// Offset of its timestamp, which is relative to its cluster.
    at: usize,
    cluster: u64,
    time: u64,
}

impl Track {
    /// Counts a block of `n` packets at `time`.
    fn take(&mut self, time: Duration, n: u32) {
        let first = *self.first.get_or_insert(time);
        self.first = Some(first.min(time));
        self.has_laces |= n > 1;
        if self.has_laces && self.n_packets > 0 {
            self.laced = Some(time.saturating_sub(first) / self.n_packets);
        }
        self.n_packets = self.n_packets.saturating_add(n);
    }
}

impl Opening {
    /// Reads the opening of `path`, as far as possible.
    pub(super) fn read(path: &Path) -> Self {
        let head = read_head(path, 2 * BEGIN_LEN as u64);
        head.map(|head| Self::parse(&head)).unwrap_or_default()
    }

    /// Timestamp of the earliest block of all tracks, from which matroskademux 1.22 counts; zero without blocks.
    pub(super) fn first(&self) -> Duration {
        let firsts = self.tracks.iter().filter_map(|track| track.first);
        firsts.min().unwrap_or_default()
    }

    /// True if no video is in the cluster that the file begins with: matroskademux 1.22 seeks past it.
    pub(super) fn begins_before_video(&self) -> bool {
        let of_video = self.tracks.iter().filter(|track| track.is_video);
        let first = of_video.filter_map(|track| track.first_cluster).min();
        first.is_some_and(|first| first > 0)
    }

    fn parse(head: &[u8]) -> Self {
        let (mut step_nanos, mut cluster) = (1_000_000_u64, 0_u64);
        let mut n_clusters = 0_usize;
        let mut tracks: Vec<Track> = Vec::new();
        let (mut has_duration, mut has_cues) = (false, false);
        let mut stop = head.len();
        let mut at = 0;
        while at < stop
            && let Some(element) = Element::read(head, at)
        {
            let content = element.end().and_then(|end| head.get(element.content..end));
            let value = content.and_then(number);
            match element.id {
                TIMESTAMP_SCALE => step_nanos = value.unwrap_or(step_nanos),
                DURATION => has_duration = true,
                CUES => has_cues = true,
                SEEK_ID => has_cues |= value == Some(CUES.into()),
                TRACK_ENTRY => tracks.push(Track::default()),
                TRACK_NUMBER | TRACK_TYPE | CODEC_DELAY => {
                    if let (Some(track), Some(value)) = (tracks.last_mut(), value) {
                        match element.id {
                            TRACK_NUMBER => track.number = value,
                            TRACK_TYPE => track.is_video = value == PICTURE,
                            _ => track.codec_delay = Duration::from_nanos(value),
                        }
                    }
                }
                CLUSTER_TIMESTAMP => cluster = value.unwrap_or(cluster),
                // The first cluster determines how far to look.
                CLUSTER => {
                    n_clusters += 1;
                    if n_clusters == 1 {
                        stop = stop.min(at.saturating_add(BEGIN_LEN));
                    }
                }
                BLOCK | SIMPLE_BLOCK => {
                    let Some((number, steps, n_packets)) = block(head, element.content) else {
                        break;
                    };
                    let steps = cluster.saturating_add_signed(steps.into());
                    let time = Duration::from_nanos(steps.saturating_mul(step_nanos));
                    if let Some(track) = tracks.iter_mut().find(|track| track.number == number) {
                        track.take(time, n_packets);
                        track
                            .first_cluster
                            .get_or_insert(n_clusters.saturating_sub(1));
                        // A track number below 128, as in files with few tracks, occupies one byte.
                        let at = element.content + 1;
                        let block = Block {
                            at,
                            cluster,
                            time: steps,
                        };
                        if let Some(place) =
                            track.first_blocks.iter_mut().find(|place| place.is_none())
                        {
                            *place = Some(block);
                        }
                    }
                }
                _ => {}
            }
            // The parser descends into these elements and skips all others.
            let inside = [
                SEGMENT,
                SEEK_HEAD,
                SEEK,
                INFO,
                TRACKS,
                TRACK_ENTRY,
                CLUSTER,
                BLOCK_GROUP,
            ];
            at = if inside.contains(&element.id) {
                element.content
            } else {
                element.end().unwrap_or(stop)
            };
        }
        let shown = |track: &Track| Some(track.first?.saturating_sub(track.codec_delay));
        Self {
            begin: tracks.iter().filter_map(shown).min(),
            has_duration,
            has_cues,
            tracks,
            step_nanos,
        }
    }

    /// Returns corrected timestamps for first blocks of Opus: matroskamux 1.22 writes 0 if audio begins after 0 by no
    /// more than the codec delay. The next two blocks determine the length of a block.
    fn first_opus_patches(&self) -> impl Iterator<Item = (u64, Vec<u8>)> {
        self.tracks.iter().filter_map(|track| {
            let [Some(first), Some(second), Some(third)] = track.first_blocks else {
                return None;
            };
            let length = third.time.checked_sub(second.time)?;
            let right = second.time.checked_sub(length)?;
            let most = 2 * track.codec_delay.as_nanos() as u64 / self.step_nanos.max(1) + 1;
            if first.time > 0 || right <= 1 || right > most {
                return None;
            }
            let steps = i16::try_from(right.checked_sub(first.cluster)?).ok()?;
            Some((first.at as u64, steps.to_be_bytes().to_vec()))
        })
    }
}

/// Returns the track, the timestamp relative to its cluster and the number of packets of the block whose content begins
/// at `at`.
fn block(head: &[u8], at: usize) -> Option<(u64, i16, u32)> {
    let len = head.get(at)?.leading_zeros() as usize + 1;
    let marked = number(head.get(at..at + len)?)?;
    let rest = head.get(at + len..)?;
    let steps = i16::from_be_bytes(*rest.first_chunk()?);
    let n_packets = match rest.get(2)? & 0x06 {
        0 => 1,
        _ => u32::from(*rest.get(3)?) + 1,
    };
    Some((marked & !(1 << (7 * len)), steps, n_packets))
}

/// Returns the location of the duration in `head` and the bytes to write there.
fn duration_patch(head: &[u8], duration: Duration) -> Option<(u64, Vec<u8>)> {
    let mut step_nanos = 1_000_000_u64;
    let mut at = 0;
    loop {
        let element = Element::read(head, at)?;
        match element.id {
            // The parser descends into these two elements and skips all others.
            SEGMENT | INFO => at = element.content,
            TIMESTAMP_SCALE => {
                step_nanos = number(head.get(element.content..element.end()?)?)?;
                at = element.end()?;
            }
            DURATION => {
                let steps = duration.as_nanos() as f64 / step_nanos.max(1) as f64;
                let bytes = match element.len? {
                    8 => steps.to_be_bytes().to_vec(),
                    4 => (steps as f32).to_be_bytes().to_vec(),
                    _ => return None,
                };
                return Some((element.content as u64, bytes));
            }
            _ => at = element.end()?,
        }
    }
}

struct Element {
    id: u32,
    /// Offset of the content.
    content: usize,
    /// `None` for an unknown size.
    len: Option<usize>,
}

impl Element {
    fn read(head: &[u8], at: usize) -> Option<Self> {
        let first = *head.get(at)?;
        let id_len = first.leading_zeros() as usize + 1;
        if id_len > 4 {
            return None;
        }
        let id = number(head.get(at..at + id_len)?)?;
        let first = *head.get(at + id_len)?;
        let size_len = first.leading_zeros() as usize + 1;
        if size_len > 8 {
            return None;
        }
        let content = at + id_len + size_len;
        let size = number(head.get(at + id_len..content)?)?;
        let marker = 1_u64 << (7 * size_len);
        let unknown = size == 2 * marker - 1;
        Some(Self {
            id: u32::try_from(id).ok()?,
            content,
            len: if unknown {
                None
            } else {
                usize::try_from(size ^ marker).ok()
            },
        })
    }

    fn end(&self) -> Option<usize> {
        self.content.checked_add(self.len?)
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    (bytes.len() <= 8).then(|| {
        bytes
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_duration_is_found_behind_other_elements() {
        let scale = [0x2a, 0xd7, 0xb1, 0x83, 0x0f, 0x42, 0x40];
        let void = [0xec, 0x82, 0, 0];
        let duration = [&[0x44, 0x89, 0x88][..], &[0; 8]].concat();
        let info = [&scale[..], &void, &duration].concat();
        let mut head = vec![0x1a, 0x45, 0xdf, 0xa3, 0x81, 0];
        // A segment of unknown size.
        head.extend([
            0x18, 0x53, 0x80, 0x67, 0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ]);
        head.extend([0x15, 0x49, 0xa9, 0x66, 0x80 | info.len() as u8]);
        head.extend(&info);
        let (at, bytes) = duration_patch(&head, Duration::from_millis(2500)).unwrap();
        assert_eq!(at as usize, head.len() - 8);
        assert_eq!(bytes, 2500_f64.to_be_bytes());
    }

    #[test]
    fn a_broken_head_is_left_alone() {
        let head = [
            0x18, 0x53, 0x80, 0x67, 0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x15, 0x49,
        ];
        for len in 0..head.len() {
            assert!(duration_patch(&head[..len], Duration::ZERO).is_none());
        }
        assert!(duration_patch(&[0; 32], Duration::ZERO).is_none());
    }
}
