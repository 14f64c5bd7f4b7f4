//! Reader for the parts of an mp4 or mov file that GStreamer does not report: time scales, edit lists and the
//! beginnings of tracks.
//!
//! Boxes are those of ISO/IEC 14496-12; no other parts of the standard are implemented.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use super::beside::Beside;
use super::edits::Patch;
use super::fragments::Runs;
use super::splice::{Part, Splice};

/// Maximum size of a `moov` box that is read; a file with a larger one is at least a day long.
const LARGEST_MOOV: u64 = 256 << 20;

/// Rate 1 as a fixed-point number with 16 fractional bits.
pub(super) const NORMAL_RATE: u32 = 0x0001_0000;

/// Seconds from the beginning of 1904, the epoch of mp4, to that of 1970.
pub(super) const UNIX_EPOCH: i64 = 2_082_844_800;

/// Header of a file.
pub(super) struct Movie {
    /// Ticks per second of edits and total durations.
    pub(super) timescale: u32,
    /// Location of the total duration in the file.
    pub(super) duration: Option<Field>,
    /// Location of the total duration of all fragments in the file.
    pub(super) fragment_duration: Option<Field>,
    /// True if samples come in fragments, whose number the header does not state.
    pub(super) fragmented: bool,
    /// Begin of the presentation; without edits, the time of the first sample.
    pub(super) begin: Duration,
    /// Creation time in seconds since 1904; zero if the file does not state it.
    pub(super) created: Option<Field>,
    pub(super) beside: Beside,
    /// Tracks in file order.
    pub(super) tracks: Vec<Track>,
    /// Bytes to read in place of the fragments' own times.
    pub(super) raised: Vec<Patch>,
}

/// One track.
pub(super) struct Track {
    pub(super) id: u32,
    /// `vide`, `soun` or others.
    pub(super) handler: [u8; 4],
    /// Ticks per second of sample times.
    pub(super) timescale: u32,
    /// Location of the track's total duration in the file.
    pub(super) duration: Option<Field>,
    /// Location of the duration of the track's samples in the file, in ticks of the track.
    pub(super) media_duration: Option<Field>,
    /// Number of ticks by which GStreamer delays all samples so that none is shown before it is decoded.
    shift: u64,
    /// Presentation time of the first sample, in ticks of the track; `None` without samples.
    first: Option<i64>,
    /// Location of the number of edits in the file; `wide` applies to the edits that follow it.
    pub(super) n_edits: Option<Field>,
    /// Frame rate, if all samples have the same length.
    pub(super) framerate: Option<(u32, u32)>,
    /// True if the colors are marked as spanning 0–255 (full range), which GStreamer 1.22 does not read.
    pub(super) full_range: bool,
    /// Corrected description of Opus, if GStreamer 1.22 wrote its numbers in little-endian order.
    pub(super) opus: Option<Patch>,
    /// True if audio samples are little-endian, which GStreamer 1.22 reads only for samples of 24 bits.
    pub(super) little_endian: bool,
    /// True if the video is mirrored along the diagonal from the upper right, which GStreamer 1.22 does not read.
    pub(super) anti_transposed: bool,
    /// Edit of the track; `None` if it is more than parts in storage order.
    pub(super) edit: Option<Edit>,
    /// Parts of the edit if there are several, before they are moved to [`begin`](Self::begin); the edit spans them.
    splice: Option<Splice>,
}

/// The common edit: the track is shown from `media_start` on, `delay` after the beginning of the presentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Edit {
    pub(super) delay: Duration,
    /// First shown time, in ticks of the track.
    pub(super) media_start: u64,
    /// Duration; `None` means up to the end.
    pub(super) shown: Option<Duration>,
    /// Location of the entry's duration in the file.
    pub(super) shown_at: Option<Field>,
    /// Location of the entry's `media_start` in the file.
    pub(super) start_at: Option<Field>,
}

/// Integer in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// Byte offset in the file.
    pub(super) at: u64,
    /// True for 8 bytes, false for 4.
    pub(super) wide: bool,
    pub(super) value: u64,
}

impl Movie {
    /// Reads the header of `path` and all of its fragments; `None` if the file is not an mp4.
    pub(super) fn read(path: &Path) -> Option<Self> {
        Self::read_with(path, true)
    }

    /// Reads the header alone. Without the fragments, the beginning of a fragmented track is unknown.
    pub(super) fn header(path: &Path) -> Option<Self> {
        Self::read_with(path, false)
    }

    fn read_with(path: &Path, with_fragments: bool) -> Option<Self> {
        let mut file = File::open(path).ok()?;
        let (moov, base) = read_moov(&mut file)?;
        let root = Content {
            bytes: &moov,
            at: base,
        };
        let header = root.child(b"mvhd")?;
        let wide = header.version()? == 1;
        let (timescale_at, duration_at) = if wide { (20, 24) } else { (12, 16) };
        let timescale = header.be32(timescale_at)?;
        let extends = root.child(b"mvex");
        let fragmented = extends.is_some();
        let mut tracks: Vec<Track> = root
            .children()
            .filter(|(kind, _)| kind == b"trak")
            .filter_map(|(_, content)| Track::read(content, timescale, fragmented))
            .collect();
        let mut raised = Vec::new();
        if fragmented && with_fragments {
            let runs = Runs::read(&mut file, base + moov.len() as u64);
            let tables: Vec<(u32, Table)> = root
                .children()
                .filter(|(kind, _)| kind == b"trak")
                .filter_map(|(_, track)| {
                    let table = sample_table(track.child(b"mdia")?)?;
                    Some((Track::number(track)?, Table(table)))
                })
                .collect();
            for track in &mut tracks {
                let table = tables.iter().find(|(id, _)| *id == track.id);
                if let Some(runs) = runs.get(&track.id) {
                    raised.extend(track.raise(runs, table.map(|(_, table)| *table)));
                }
            }
        }
        let created = header.field(4, wide);
        let edited = tracks.iter().any(|track| track.n_edits.is_some());
        let firsts = tracks.iter().filter_map(|track| {
            let first = u64::try_from(track.first?).unwrap_or(0);
            let is_shown = track.is(b"vide") || track.is(b"soun");
            is_shown.then(|| duration_from_ticks(first, track.timescale))
        });
        Some(Self {
            timescale,
            duration: header.field(duration_at, wide),
            fragment_duration: extends
                .and_then(|extends| extends.child(b"mehd"))
                .and_then(|mehd| mehd.field(4, mehd.version()? == 1)),
            fragmented,
            created,
            beside: Beside {
                created: created
                    .filter(|created| created.value > 0)
                    .and_then(|created| i64::try_from(created.value).ok())
                    .map(|created| created - UNIX_EPOCH),
                ..beside(root)
            },
            begin: firsts.min().filter(|_| !edited).unwrap_or_default(),
            tracks,
            raised,
        })
    }

    /// Returns the time scale of the first video track.
    pub(super) fn video_timescale(&self) -> Option<u32> {
        self.tracks
            .iter()
            .find(|track| track.is(b"vide"))
            .map(|track| track.timescale)
            .filter(|timescale| *timescale > 0)
    }
}

impl Field {
    /// Encodes `value` with the width of this field.
    pub(super) fn bytes(self, value: u64) -> Vec<u8> {
        if self.wide {
            value.to_be_bytes().to_vec()
        } else {
            u32::try_from(value)
                .unwrap_or(u32::MAX)
                .to_be_bytes()
                .to_vec()
        }
    }
}

impl Track {
    pub(super) fn is(&self, handler: &[u8; 4]) -> bool {
        &self.handler == handler
    }

    /// Begin of the presentation in the samples' own time.
    pub(super) fn begin(&self, edit: &Edit) -> Duration {
        duration_from_ticks(edit.media_start.saturating_add(self.shift), self.timescale)
    }

    /// Parts of the edit in the samples' own time, if there are several.
    pub(super) fn splice(&self) -> Option<Splice> {
        let shift = duration_from_ticks(self.shift, self.timescale);
        Some(self.splice.as_ref()?.later_by(shift))
    }

    /// End of the last sample in the samples' own time; `None` if the header does not state it.
    pub(super) fn end(&self) -> Option<Duration> {
        let length = self.media_duration.filter(|length| length.value > 0)?;
        let end = u64::try_from(self.first?).ok()?.checked_add(length.value)?;
        Some(duration_from_ticks(
            end.checked_add(self.shift)?,
            self.timescale,
        ))
    }

    /// Applies the data of the fragments; returns the bytes to read in their place.
    fn raise(&mut self, runs: &Runs, table: Option<Table>) -> Vec<Patch> {
        let shift = runs.shift(table);
        self.shift = shift.into();
        self.first = self.first.or(runs.first);
        runs.raise(table, shift)
    }

    fn number(track: Content) -> Option<u32> {
        let header = track.child(b"tkhd")?;
        header.be32(if header.version()? == 1 { 20 } else { 12 })
    }

    fn read(content: Content, movie_timescale: u32, fragmented: bool) -> Option<Self> {
        let header = content.child(b"tkhd")?;
        let wide = header.version()? == 1;
        let duration_at = if wide { 28 } else { 20 };
        let media = content.child(b"mdia")?;
        // Version and flags and a reserved word precede the handler type.
        let handler = media.child(b"hdlr")?.bytes.get(8..12)?.try_into().ok()?;
        let media_header = media.child(b"mdhd")?;
        let wide_media = media_header.version()? == 1;
        let (timescale_at, media_duration_at) = if wide_media { (20, 24) } else { (12, 16) };
        let timescale = media_header.be32(timescale_at)?;
        let table = sample_table(media);
        let shift = table.map_or(0, |table| Table(table).shift());
        let list = content
            .child(b"edts")
            .and_then(|edits| edits.child(b"elst"));
        let edit = match list {
            Some(list) => Edit::read(list, movie_timescale, timescale),
            None => Some((Edit::default(), None)),
        };
        let splice = edit.as_ref().and_then(|(_, splice)| splice.clone());
        let edit = edit
            .filter(|(_, splice)| splice.is_none() || !fragmented)
            .map(|(edit, _)| Edit {
                // The list of a fragmented file is written before the duration is known.
                shown: edit.shown.filter(|_| !fragmented),
                ..edit
            });
        Some(Self {
            id: Self::number(content)?,
            handler,
            opus: swapped_opus(media),
            framerate: table.and_then(sample_len).map(|len| (timescale, len)),
            full_range: full_range(media).unwrap_or(false),
            little_endian: &handler == b"soun" && little_endian(media).unwrap_or(false),
            anti_transposed: anti_transposed(header, duration_at).unwrap_or(false),
            timescale,
            duration: header.field(duration_at, wide),
            media_duration: media_header.field(media_duration_at, wide_media),
            shift,
            first: table.and_then(first_offset),
            n_edits: list.and_then(|list| {
                Some(Field {
                    wide: list.version()? == 1,
                    ..list.field(4, false)?
                })
            }),
            edit,
            splice,
        })
    }
}

/// Returns the contents of the header other than video and audio.
fn beside(root: Content) -> Beside {
    let tracks = || root.children().filter(|(kind, _)| kind == b"trak");
    let handler = |track: Content| {
        let handler = track.child(b"mdia")?.child(b"hdlr")?.bytes.get(8..12)?;
        <[u8; 4]>::try_from(handler).ok()
    };
    let has_chapters = |track: Content| {
        let references = track.child(b"tref");
        references.is_some_and(|references| references.child(b"chap").is_some())
    };
    let is_enabled: Vec<bool> = tracks()
        .filter(|(_, track)| handler(*track) == Some(*b"soun"))
        .filter_map(|(_, track)| Some(track.child(b"tkhd")?.be32(0)? & 1 == 1))
        .collect();
    Beside {
        chapters: root
            .child(b"udta")
            .and_then(|user| user.child(b"chpl"))
            .is_some()
            || tracks().any(|(_, track)| has_chapters(track)),
        time_code: tracks().any(|(_, track)| handler(track) == Some(*b"tmcd")),
        default_sound: is_enabled.contains(&true) && is_enabled.contains(&false),
        ..Beside::default()
    }
}

/// Sample table of a track (`stbl`).
#[derive(Clone, Copy)]
pub(super) struct Table<'a>(pub(super) Content<'a>);

impl<'a> Table<'a> {
    /// Iterates over the composition offset of each entry, in ticks of the track, and its location in the file.
    pub(super) fn offsets(self) -> impl Iterator<Item = (u64, i32)> + 'a {
        let entries = self.0.child(b"ctts").and_then(|offsets| offsets.skip(8));
        entries.into_iter().flat_map(|entries| {
            let offsets = (4..).step_by(8).map_while(move |at| entries.be32(at));
            let places = (entries.at + 4..).step_by(8);
            places.zip(offsets.map(u32::cast_signed))
        })
    }

    /// Number of ticks by which GStreamer delays all samples: as stated in the header, or as required by the earliest
    /// sample.
    fn shift(self) -> u64 {
        if let Some(shifts) = self.0.child(b"cslg") {
            let shift = match shifts.version() {
                Some(0) => shifts.be32(4).map(|shift| i64::from(shift.cast_signed())),
                _ => be64(shifts.bytes, 4).map(u64::cast_signed),
            };
            return shift
                .and_then(|shift| u64::try_from(shift).ok())
                .unwrap_or(0);
        }
        let earliest = self.offsets().map(|(_, offset)| offset).min().unwrap_or(0);
        u64::from(earliest.min(0).unsigned_abs())
    }

    /// Bytes to read in place of the header's shift, once it has been added to the offsets.
    pub(super) fn shift_patch(self) -> Option<Patch> {
        let shifts = self.0.child(b"cslg")?;
        let len = if shifts.version()? == 0 { 4 } else { 8 };
        Some((shifts.at + 4, vec![0; len]))
    }
}

/// Common length of all samples of a table except the last one, if they are equal.
fn sample_len(table: Content) -> Option<u32> {
    let lengths = table.child(b"stts")?.skip(8)?;
    let (n_first, len) = (lengths.be32(0)?, lengths.be32(4)?);
    let n_second = lengths.be32(8).unwrap_or(0);
    let is_last = n_second <= 1 && lengths.be32(16).is_none();
    (n_first > 0 && len > 0 && is_last).then_some(len)
}

/// Composition offset of the first sample of a table; `None` if the table is empty.
fn first_offset(table: Content) -> Option<i64> {
    let sizes = table.child(b"stsz").or_else(|| table.child(b"stz2"))?;
    if sizes.be32(8)? == 0 {
        return None;
    }
    let offset = table.child(b"ctts").and_then(|offsets| offsets.be32(12));
    Some(i64::from(offset.unwrap_or(0).cast_signed()))
}

/// Locations in the file of the contents of non-video tracks without samples; `at` is the location of `moov`.
pub(super) fn silent_tracks(moov: &[u8], at: u64) -> Vec<u64> {
    let moov = Content { bytes: moov, at };
    moov.children()
        .filter(|(kind, track)| kind == b"trak" && is_silent(*track))
        .map(|(_, track)| track.at)
        .collect()
}

/// True for a non-video track without samples; a track of which nothing is known lacks even its handler.
fn is_silent(track: Content) -> bool {
    let Some(media) = track.child(b"mdia") else {
        return true;
    };
    let handler = media
        .child(b"hdlr")
        .and_then(|handler| handler.bytes.get(8..12));
    // Version and flags and a common sample size precede the number of samples.
    let n_samples = sample_table(media)
        .and_then(|table| table.child(b"stsz"))
        .and_then(|sizes| sizes.be32(8));
    handler != Some(b"vide") && n_samples.unwrap_or(0) == 0
}

/// Returns the sample table of a track.
fn sample_table(media: Content) -> Option<Content> {
    media.child(b"minf")?.child(b"stbl")
}

/// Returns the first sample description of a track and its kind.
fn sample_description(media: Content) -> Option<([u8; 4], Content)> {
    // Version and flags precede the number of descriptions.
    let descriptions = sample_table(media)?.child(b"stsd")?.skip(8)?;
    descriptions.children().next()
}

/// Returns whether the description of a video track states that its colors span 0–255.
fn full_range(media: Content) -> Option<bool> {
    let (_, description) = sample_description(media)?;
    // 78 bytes of fixed fields precede the boxes of a video description.
    let color = description.skip(78)?.child(b"colr")?.bytes;
    // Three 16-bit codes separate the kind from the flag.
    Some(color.get(..4)? == b"nclx" && color.get(10)? & 0x80 != 0)
}

/// If the pre-skip, rate and gain of Opus are byte-swapped, returns them in big-endian order together with their
/// location (Encapsulation of Opus in ISO Base Media File Format, 4.3.2).
fn swapped_opus(media: Content) -> Option<Patch> {
    /// Exceeds every real sample rate.
    const HIGHEST_RATE: u32 = 1 << 20;
    let (kind, description) = sample_description(media)?;
    if &kind != b"Opus" {
        return None;
    }
    // Version and number of channels come first.
    let numbers = sound_boxes(description)?.child(b"dOps")?.skip(2)?;
    if numbers.be32(2)? < HIGHEST_RATE {
        return None;
    }
    let mut bytes = numbers.bytes.get(..8)?.to_vec();
    let (delay, rest) = bytes.split_at_mut(2);
    let (rate, gain) = rest.split_at_mut(4);
    for number in [delay, rate, gain] {
        number.reverse();
    }
    Some((numbers.at, bytes))
}

/// Returns whether the description of an audio track states that its samples are little-endian (QuickTime's `enda`).
fn little_endian(media: Content) -> Option<bool> {
    let (_, description) = sample_description(media)?;
    let wave = sound_boxes(description)?.child(b"wave")?;
    Some(wave.child(b"enda")?.bytes == [0, 1])
}

/// Returns the boxes of an audio description, which follow 28 bytes of fixed fields and more, depending on the version.
fn sound_boxes(description: Content) -> Option<Content> {
    let n_more = match description.bytes.get(8..10)? {
        [0, 1] => 16,
        [0, 2] => 36,
        _ => 0,
    };
    description.skip(28 + n_more)
}

/// Returns whether the matrix in a track header is (0, −1; −1, 0).
fn anti_transposed(header: Content, duration_at: usize) -> Option<bool> {
    // The duration, 8 reserved bytes and four 2-byte numbers come first; each row ends with a third column.
    let wide = header.version()? == 1;
    let at = duration_at + if wide { 24 } else { 20 };
    let matrix = [at, at + 4, at + 12, at + 16].map(|at| header.be32(at).map(u32::cast_signed));
    Some(matrix == [0, -0x1_0000, -0x1_0000, 0].map(Some))
}

impl Edit {
    /// Reads the edit, and its parts if there are several.
    fn read(list: Content, movie_timescale: u32, timescale: u32) -> Option<(Self, Option<Splice>)> {
        let wide = list.version()? == 1;
        let entry_len = if wide { 20 } else { 12 };
        let n_entries = list.be32(4)? as usize;
        let mut edit = Self::default();
        let mut parts: Vec<Part> = Vec::new();
        // Time shown by the parts so far and between them.
        let mut shown_so_far = Duration::ZERO;
        for entry_idx in 0..n_entries {
            let at = 8 + entry_idx.checked_mul(entry_len)?;
            let shown = list.field(at, wide)?;
            let start = list.field(at + if wide { 8 } else { 4 }, wide)?;
            let rate = list.be32(at + entry_len - 4)?;
            let empty = start.value == if wide { u64::MAX } else { u64::from(u32::MAX) };
            let last = entry_idx + 1 == n_entries;
            // A part without an end is the last one.
            if empty && last && !parts.is_empty() {
                continue;
            }
            if rate != NORMAL_RATE || empty && last || !empty && !last && shown.value == 0 {
                return None;
            }
            let duration = duration_from_ticks(shown.value, movie_timescale);
            if empty && parts.is_empty() {
                edit.delay += duration;
                continue;
            }
            if empty {
                shown_so_far += duration;
                continue;
            }
            let begin = duration_from_ticks(start.value, timescale);
            parts.push(Part {
                start: begin,
                stop: if shown.value > 0 {
                    begin + duration
                } else {
                    Duration::MAX / 4
                },
                place: parts.first().map_or(begin, |first| first.start) + shown_so_far,
            });
            shown_so_far += duration;
            if parts.len() > 1 {
                edit.shown = (shown.value > 0).then_some(shown_so_far);
                continue;
            }
            edit.media_start = start.value;
            // In fragmented files, zero stands for "all that follows".
            edit.shown = (shown.value > 0).then_some(duration);
            edit.shown_at = Some(shown);
            edit.start_at = Some(start);
        }
        match parts.len() {
            0 => None,
            1 => Some((edit, None)),
            _ => Some((edit, Some(Splice::new(parts)?))),
        }
    }
}

/// Converts `ticks` of 1/`timescale` s to a duration, rounded down as GStreamer does.
pub(super) fn duration_from_ticks(ticks: u64, timescale: u32) -> Duration {
    let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(timescale.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Converts `duration` to ticks of 1/`timescale` s, rounded to the nearest.
pub(super) fn ticks_from_duration(duration: Duration, timescale: u32) -> u64 {
    let ticks = (duration.as_nanos() * u128::from(timescale) + 500_000_000) / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// True if `path` begins like an mp4 but lacks a header, which makes it unplayable.
pub(super) fn is_cut_off(path: &Path) -> bool {
    let mut head = [0_u8; 8];
    let Ok(mut file) = File::open(path) else {
        return false;
    };
    let is_mp4 = file.read_exact(&mut head).is_ok() && &head[4..] == b"ftyp";
    is_mp4 && read_moov(&mut file).is_none()
}

/// Returns the header box `content` with every track delayed by `delay` more ticks of the movie.
///
/// Everything else stays unchanged; `None` if a track has no edit list.
pub(super) fn delayed(moov: &[u8], delay: u64) -> Option<Vec<u8>> {
    let delayed_track = |track: Content| {
        track.rebuilt(|kind, content| match kind {
            b"edts" => content.rebuilt(|kind, content| match kind {
                b"elst" => delayed_list(content, delay),
                _ => Some(content.bytes.to_vec()),
            }),
            _ => Some(content.bytes.to_vec()),
        })
    };
    let root = Content { bytes: moov, at: 0 };
    let has_lists = |(_, track): ([u8; 4], Content)| track.child(b"edts").is_some();
    let mut tracks = root.children().filter(|(kind, _)| kind == b"trak");
    if !tracks.all(has_lists) {
        return None;
    }
    root.rebuilt(|kind, content| match kind {
        b"trak" => delayed_track(content),
        _ => Some(content.bytes.to_vec()),
    })
}

/// Returns the contents of an edit list with its initial empty edit extended by `delay` ticks.
fn delayed_list(list: Content, delay: u64) -> Option<Vec<u8>> {
    let wide = list.version()? == 1;
    let entry_len = if wide { 20 } else { 12 };
    let n_entries = list.be32(4)?;
    let shown = list.field(8, wide)?;
    let start = list.field(if wide { 16 } else { 12 }, wide)?;
    let (head, entries) = list.bytes.split_at_checked(8)?;
    let is_empty = start.value == if wide { u64::MAX } else { u64::from(u32::MAX) };
    let (n_more, shown, rest) = match is_empty {
        true => (0, shown.value, entries.get(entry_len..)?),
        false => (1, 0, entries),
    };
    let empty = Field {
        value: 0,
        at: 0,
        wide,
    };
    let number = |value: u64| empty.bytes(value);
    let mut content = head.get(..4)?.to_vec();
    content.extend((n_entries + n_more).to_be_bytes());
    content.extend(number(shown.checked_add(delay)?));
    content.extend(number(u64::MAX));
    content.extend(NORMAL_RATE.to_be_bytes());
    content.extend_from_slice(rest);
    Some(content)
}

/// Returns the contents of the top-level `moov` box and their location in the file.
pub(super) fn read_moov(file: &mut File) -> Option<(Vec<u8>, u64)> {
    read_top(file, 0, b"moov")
}

/// Returns the contents of the first top-level box of `kind` from `position` on, and their location in the file.
pub(super) fn read_top(
    file: &mut File,
    mut position: u64,
    kind: &[u8; 4],
) -> Option<(Vec<u8>, u64)> {
    loop {
        file.seek(SeekFrom::Start(position)).ok()?;
        let mut header = [0_u8; 16];
        file.read_exact(&mut header[..8]).ok()?;
        let mut header_len = 8_u64;
        let mut len = u64::from(be32(&header, 0)?);
        if len == 1 {
            file.read_exact(&mut header[8..]).ok()?;
            header_len = 16;
            len = be64(&header, 8)?;
        }
        // Zero means "to the end of the file", which is valid only for the last box.
        let content_len = len.checked_sub(header_len)?;
        if &header[4..8] == kind {
            if content_len > LARGEST_MOOV {
                return None;
            }
            let mut content = Vec::new();
            file.take(content_len).read_to_end(&mut content).ok()?;
            return Some((content, position + header_len));
        }
        position = position.checked_add(len)?;
    }
}

/// Encodes a box of `kind` that holds `content`.
pub(super) fn boxed(kind: &[u8; 4], content: &[u8]) -> Option<Vec<u8>> {
    let len = u32::try_from(content.len() + 8).ok()?;
    Some([&len.to_be_bytes()[..], kind, content].concat())
}

/// Contents of a box and their location in the file.
#[derive(Clone, Copy)]
pub(super) struct Content<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: u64,
}

impl<'a> Content<'a> {
    pub(super) fn children(self) -> Children<'a> {
        Children(self)
    }

    pub(super) fn child(self, kind: &[u8; 4]) -> Option<Self> {
        self.children()
            .find(|(found, _)| found == kind)
            .map(|(_, content)| content)
    }

    pub(super) fn skip(self, len: usize) -> Option<Self> {
        Some(Self {
            bytes: self.bytes.get(len..)?,
            at: self.at + len as u64,
        })
    }

    /// Rebuilds the contents, with those of each child box replaced by the result of `rebuild`.
    fn rebuilt(self, rebuild: impl Fn(&[u8; 4], Content) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for (kind, content) in self.children() {
            bytes.extend(boxed(&kind, &rebuild(&kind, content)?)?);
        }
        Some(bytes)
    }

    pub(super) fn version(self) -> Option<u8> {
        self.bytes.first().copied()
    }

    pub(super) fn be32(self, offset: usize) -> Option<u32> {
        be32(self.bytes, offset)
    }

    pub(super) fn field(self, offset: usize, wide: bool) -> Option<Field> {
        Some(Field {
            at: self.at + offset as u64,
            wide,
            value: if wide {
                be64(self.bytes, offset)?
            } else {
                u64::from(be32(self.bytes, offset)?)
            },
        })
    }
}

/// Iterator over the boxes in a box, as pairs of kind and content. Ends at the first box that does not fit.
pub(super) struct Children<'a>(Content<'a>);

impl<'a> Iterator for Children<'a> {
    type Item = ([u8; 4], Content<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let Content { bytes, at } = self.0;
        let len = usize::try_from(be32(bytes, 0)?).ok()?;
        let kind = bytes.get(4..8)?.try_into().ok()?;
        let content = Content {
            bytes: bytes.get(8..len)?,
            at: at + 8,
        };
        self.0 = Content {
            bytes: bytes.get(len..)?,
            at: at + len as u64,
        };
        Some((kind, content))
    }
}

fn be32(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn be64(bytes: &[u8], offset: usize) -> Option<u64> {
    let bytes = bytes.get(offset..offset.checked_add(8)?)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn boxed(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
        super::boxed(kind, content).unwrap()
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    fn track(handler: &[u8; 4], timescale: u32, edits: &[[u32; 3]]) -> Vec<u8> {
        let tkhd = words(&[0, 0, 0, 7, 0, 2000, 0, 0]);
        let mdhd = words(&[0, 0, 0, timescale, 0]);
        let hdlr = [&[0; 8][..], handler].concat();
        let media = [boxed(b"mdhd", &mdhd), boxed(b"hdlr", &hdlr)].concat();
        let mut list = words(&[0, edits.len() as u32]);
        list.extend(words(edits.as_flattened()));
        let content = [
            boxed(b"tkhd", &tkhd),
            boxed(b"edts", &boxed(b"elst", &list)),
            boxed(b"mdia", &media),
        ];
        boxed(b"trak", &content.concat())
    }

    fn file(tracks: &[Vec<u8>]) -> Vec<u8> {
        let mvhd = boxed(b"mvhd", &words(&[0, 0, 0, 1000, 2000]));
        [
            boxed(b"ftyp", b"isom"),
            boxed(b"mdat", &[7; 100]),
            boxed(b"moov", &[mvhd, tracks.concat()].concat()),
        ]
        .concat()
    }

    fn read(bytes: &[u8]) -> Option<Movie> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        Movie::read(file.path())
    }

    const ONE: u32 = NORMAL_RATE;

    #[test]
    fn time_scales_and_edits_are_found_with_their_places() {
        let bytes = file(&[
            track(b"soun", 48_000, &[[500, u32::MAX, ONE], [1500, 1024, ONE]]),
            track(b"vide", 12_800, &[[2000, 0, ONE]]),
        ]);
        let movie = read(&bytes).unwrap();
        assert_eq!(movie.video_timescale(), Some(12_800));
        assert_eq!(movie.duration.unwrap().value, 2000);
        let sound = &movie.tracks[0];
        assert!(sound.is(b"soun"));
        assert_eq!((sound.id, sound.duration.unwrap().value), (7, 2000));
        let edit = sound.edit.unwrap();
        assert_eq!(edit.delay, Duration::from_millis(500));
        assert_eq!(edit.shown, Some(Duration::from_millis(1500)));
        assert_eq!(sound.begin(&edit), Duration::from_nanos(21_333_333));
        let at = |field: Option<Field>| field.unwrap().at as usize;
        assert_eq!(bytes[at(edit.start_at)..][..4], 1024_u32.to_be_bytes());
        assert_eq!(bytes[at(edit.shown_at)..][..4], 1500_u32.to_be_bytes());
        assert_eq!(bytes[at(sound.n_edits)..][..4], 2_u32.to_be_bytes());
    }

    #[test]
    fn parts_in_their_order_are_one_edit_and_others_are_none() {
        let parts = track(
            b"vide",
            600,
            &[[10, 30, ONE], [5, u32::MAX, ONE], [10, 60, ONE]],
        );
        let back = track(b"vide", 600, &[[10, 60, ONE], [10, 0, ONE]]);
        let slow = track(b"vide", 600, &[[10, 0, ONE / 2]]);
        let movie = read(&file(&[parts, back, slow])).unwrap();
        let edits: Vec<_> = movie.tracks.iter().map(|track| track.edit).collect();
        assert_eq!(edits[1..], [None, None]);
        let edit = edits[0].unwrap();
        assert_eq!((edit.media_start, edit.delay), (30, Duration::ZERO));
        assert_eq!(edit.shown, Some(Duration::from_millis(25)));
        let splice = movie.tracks[0].splice().unwrap();
        let second = splice.placed(Duration::from_millis(100), Duration::ZERO);
        // 30 ticks of 1/600 s are 50 ms; the second part comes 15 ms later.
        assert_eq!(second.unwrap().0, Duration::from_millis(65));
    }

    #[test]
    fn a_delay_comes_before_what_lists_say() {
        let bytes = file(&[
            track(b"soun", 48_000, &[[500, u32::MAX, ONE], [1500, 1024, ONE]]),
            track(b"vide", 12_800, &[[2000, 256, ONE]]),
        ]);
        let at = bytes.windows(4).position(|kind| kind == b"moov").unwrap();
        let moov = delayed(&bytes[at + 4..], 250).unwrap();
        let later = [&bytes[..at - 4], &boxed(b"moov", &moov)].concat();
        let movie = read(&later).unwrap();
        let edits = [500 + 250, 250].map(Duration::from_millis);
        let read = movie.tracks.iter().map(|track| track.edit.unwrap());
        let read: Vec<_> = read.map(|edit| (edit.delay, edit.media_start)).collect();
        assert_eq!(read, [(edits[0], 1024), (edits[1], 256)]);
        assert_eq!(moov.len(), bytes.len() - at - 4 + 12, "one list is longer");
    }

    #[test]
    fn broken_files_are_no_movies() {
        let whole = file(&[track(b"vide", 600, &[[2000, 0, ONE]])]);
        for len in 0..whole.len() {
            // Any result is fine except a panic or an endless loop: a truncated file may still contain its header.
            let _ = read(&whole[..len]);
        }
        assert!(read(&[0; 64]).is_none());
        assert!(read(b"just text, and no boxes at all").is_none());
    }
}
