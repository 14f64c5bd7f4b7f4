//! Tables of mp4 and mov files: samples, their times, edit lists and fragments (ISO/IEC 14496-12).

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::Hasher;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;

use super::bytes::{be, be16, be32, hash};
use super::{
    Contents, Format, Kind, MOST_PACKETS, Packet, Track, Unreadable, first_key, nanos, sound,
};

/// Exceeds the header of any video: a day of video and audio takes a tenth of it.
const LARGEST_HEADER: u64 = 1 << 30;

/// Exceeds the number of edits that occur in practice.
const MOST_EDITS: usize = 256;

/// Exceeds the size of any audio packet.
const LARGEST_SOUND: u64 = 16 << 20;

/// Reads the tables of `file`, and the bytes of its audio.
pub(super) fn read(mut file: File) -> Result<Contents, Unreadable> {
    let file_len = file.seek(SeekFrom::End(0))?;
    let mut movie: Option<Movie> = None;
    let mut at = 0;
    while let Some(top) = TopBox::read(&mut file, at, file_len)? {
        match &top.kind {
            b"moov" => {
                let header = top.content(&mut file)?;
                movie = Some(Movie::read(&header, file_len)?);
            }
            b"moof" => {
                let header = top.content(&mut file)?;
                if let Some(movie) = &mut movie {
                    movie.add_fragment(&header, top.at, file_len)?;
                }
            }
            _ => {}
        }
        at = top.end;
    }
    let movie = movie.ok_or_else(|| Unreadable::new("an mp4 without a header (moov)"))?;
    movie.contents(file, file_len)
}

/// A top-level box.
struct TopBox {
    kind: [u8; 4],
    at: u64,
    content: u64,
    end: u64,
}

impl TopBox {
    /// Reads the box at `at`; `None` at the end of the file or if there is no box.
    fn read(file: &mut File, at: u64, file_len: u64) -> Result<Option<Self>, Unreadable> {
        let mut head = Vec::new();
        file.seek(SeekFrom::Start(at))?;
        file.take(16).read_to_end(&mut head)?;
        let (Some(short), Some(Ok(kind))) = (be32(&head, 0), head.get(4..8).map(TryInto::try_into))
        else {
            return Ok(None);
        };
        let (head_len, len) = match short {
            0 => (8, file_len - at),
            1 => match be(&head, 8, 8) {
                Some(len) => (16, len),
                None => return Ok(None),
            },
            len => (8, u64::from(len)),
        };
        if len < head_len {
            return Ok(None);
        }
        Ok(at.checked_add(len).map(|end| Self {
            kind,
            at,
            content: at + head_len,
            end,
        }))
    }

    fn content(&self, file: &mut File) -> Result<Vec<u8>, Unreadable> {
        let len = self.end - self.content;
        if len > LARGEST_HEADER {
            return Err(Unreadable::new("an mp4 with a header larger than 1 GB"));
        }
        let mut content = Vec::new();
        file.seek(SeekFrom::Start(self.content))?;
        file.take(len).read_to_end(&mut content)?;
        Ok(content)
    }
}

/// Iterator over the boxes in a box, as pairs of kind and content. Ends at the first box that does not fit.
struct Boxes<'a>(&'a [u8]);

impl<'a> Iterator for Boxes<'a> {
    type Item = ([u8; 4], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.0;
        let short = be32(bytes, 0)?;
        let kind = bytes.get(4..8)?.try_into().ok()?;
        let (head_len, len) = match short {
            0 => (8, bytes.len()),
            1 => (16, usize::try_from(be(bytes, 8, 8)?).ok()?),
            len => (8, len as usize),
        };
        let content = bytes.get(head_len..len)?;
        self.0 = bytes.get(len..)?;
        Some((kind, content))
    }
}

fn child<'a>(content: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    Boxes(content)
        .find(|(found, _)| found == kind)
        .map(|(_, content)| content)
}

/// One sample.
#[derive(Clone, Copy)]
struct Sample {
    /// Presentation time, in ticks of the track.
    shown: i64,
    duration: u32,
    offset: u64,
    len: u32,
}

/// One edit: shows the media from `media_start` on for `duration` nanoseconds, or nothing if `media_start` is `None`.
struct Edit {
    duration: Option<i64>,
    media_start: Option<i64>,
}

/// Default properties of a fragment's samples.
#[derive(Clone, Copy, Default)]
struct Defaults {
    duration: u32,
    len: u32,
}

struct TrackTables {
    id: u32,
    kind: Kind,
    codec: String,
    timescale: u32,
    edits: Vec<Edit>,
    samples: Vec<Sample>,
    defaults: Defaults,
    /// Decoding time of the next fragment's first sample, if the fragment does not state it.
    next_decoded: i64,
    left_out: Option<i64>,
    /// Number of samples and bytes of a block of compressed audio whose samples the tables count one by one.
    block: Option<(u64, u64)>,
    unknown: Option<&'static str>,
}

struct Movie {
    tracks: Vec<TrackTables>,
    claimed_end: Option<i64>,
    n_samples: usize,
    n_cut_off: u64,
}

impl Movie {
    fn read(moov: &[u8], file_len: u64) -> Result<Self, Unreadable> {
        let header = child(moov, b"mvhd").ok_or_else(|| Unreadable::new("an mp4 without mvhd"))?;
        let (timescale, duration) = scale_and_duration(header)
            .ok_or_else(|| Unreadable::new("an mp4 with a truncated mvhd"))?;
        let extends = child(moov, b"mvex");
        let fragmented = extends.is_some();
        let claimed = match extends {
            // The header's own duration does not include fragments.
            Some(extends) => child(extends, b"mehd").and_then(|mehd| {
                let wide = *mehd.first()? == 1;
                be(mehd, 4, if wide { 8 } else { 4 })
            }),
            None => duration,
        };
        let mut movie = Self {
            tracks: Vec::new(),
            claimed_end: claimed
                .filter(|claimed| *claimed > 0)
                .and_then(|claimed| i64::try_from(claimed).ok())
                .map(|claimed| nanos(claimed, timescale)),
            n_samples: 0,
            n_cut_off: 0,
        };
        for (_, trak) in Boxes(moov).filter(|(kind, _)| kind == b"trak") {
            if let Some(mut track) = TrackTables::read(trak, timescale, fragmented)? {
                let table = child(trak, b"mdia")
                    .and_then(|media| child(media, b"minf"))
                    .and_then(|info| child(info, b"stbl"));
                if let Some(table) = table {
                    movie.add_table(&mut track, table, file_len)?;
                }
                movie.tracks.push(track);
            }
        }
        for (_, trex) in Boxes(extends.unwrap_or_default()).filter(|(kind, _)| kind == b"trex") {
            let id = be32(trex, 4);
            let track = movie.tracks.iter_mut().find(|track| Some(track.id) == id);
            if let (Some(track), Some(duration), Some(len)) =
                (track, be32(trex, 12), be32(trex, 16))
            {
                track.defaults = Defaults { duration, len };
            }
        }
        Ok(movie)
    }

    /// Adds one sample, or counts it as cut off if it extends beyond the end of the file.
    fn add(
        &mut self,
        track: &mut TrackTables,
        sample: Sample,
        file_len: u64,
    ) -> Result<(), Unreadable> {
        self.n_samples += 1;
        if self.n_samples > MOST_PACKETS {
            return Err(Unreadable::new("an mp4 with more than 20 million samples"));
        }
        match sample.offset.checked_add(u64::from(sample.len)) {
            Some(end) if end <= file_len => track.samples.push(sample),
            _ => self.n_cut_off += 1,
        }
        Ok(())
    }

    /// Adds the samples of a track's own table.
    fn add_table(
        &mut self,
        track: &mut TrackTables,
        table: &[u8],
        file_len: u64,
    ) -> Result<(), Unreadable> {
        let Some(sizes) = Sizes::read(table) else {
            return Ok(());
        };
        let mut durations = Runs::new(child(table, b"stts"), 8, 4);
        let mut offsets = Runs::new(child(table, b"ctts"), 8, 4);
        let mut chunk_runs = Runs::new(child(table, b"stsc"), 12, 8).entries().peekable();
        let (chunks, wide) = match child(table, b"co64") {
            Some(chunks) => (chunks, 8),
            None => (child(table, b"stco").unwrap_or_default(), 4),
        };
        let n_chunks = be32(chunks, 4).unwrap_or(0);
        let mut per_chunk = 0;
        let mut sample_idx = 0_u64;
        let mut decoded = 0_i64;
        for chunk_idx in 0..u64::from(n_chunks) {
            while let Some([first, n, _]) = chunk_runs.peek().copied()
                && u64::from(first) <= chunk_idx + 1
            {
                per_chunk = n;
                chunk_runs.next();
            }
            let at = usize::try_from(8 + chunk_idx * wide).unwrap_or(usize::MAX);
            let Some(mut offset) = be(chunks, at, wide as usize) else {
                break;
            };
            let in_chunk = u64::from(per_chunk).min(sizes.n.saturating_sub(sample_idx));
            let step = u64::from(durations.current().unwrap_or(1));
            // There are thousands of samples per second, which muxers regroup: each chunk, or each block of compressed
            // samples, counts as one packet.
            let grouped = match (sizes.constant, track.block) {
                (Some(len), _) if track.is_pcm() => Some((in_chunk, in_chunk * u64::from(len))),
                (Some(1), block) => block,
                _ => None,
            };
            if let Some((n_samples, n_bytes)) = grouped {
                let mut left = in_chunk;
                while left > 0 {
                    let n = n_samples.clamp(1, left);
                    let duration = u32::try_from(n * step).unwrap_or(u32::MAX);
                    let len = u32::try_from(n_bytes).unwrap_or(u32::MAX);
                    let sample = next_sample((&mut decoded, &mut offset), 0, duration, len);
                    self.add(track, sample, file_len)?;
                    left -= n;
                }
                sample_idx += in_chunk;
                continue;
            }
            for _ in 0..per_chunk {
                let Some(len) = sizes.get(sample_idx) else {
                    break;
                };
                sample_idx += 1;
                let duration = durations.next().unwrap_or(0);
                let late = offsets.next().unwrap_or(0);
                let sample = next_sample((&mut decoded, &mut offset), late, duration, len);
                self.add(track, sample, file_len)?;
            }
        }
        track.next_decoded = decoded;
        Ok(())
    }

    /// Adds the samples of the fragment whose box begins at `moof_at`.
    fn add_fragment(&mut self, moof: &[u8], moof_at: u64, file_len: u64) -> Result<(), Unreadable> {
        let mut data_end = moof_at;
        for (_, traf) in Boxes(moof).filter(|(kind, _)| kind == b"traf") {
            let Some(header) = child(traf, b"tfhd") else {
                continue;
            };
            let (Some(flags), Some(id)) = (be32(header, 0), be32(header, 4)) else {
                continue;
            };
            let Some(track_idx) = self.tracks.iter().position(|track| track.id == id) else {
                continue;
            };
            let mut track = std::mem::take(&mut self.tracks[track_idx]);
            let added = self.add_runs(
                &mut track,
                traf,
                (flags, header),
                (moof_at, &mut data_end),
                file_len,
            );
            self.tracks[track_idx] = track;
            added?;
        }
        Ok(())
    }

    fn add_runs(
        &mut self,
        track: &mut TrackTables,
        traf: &[u8],
        (flags, header): (u32, &[u8]),
        (moof_at, data_end): (u64, &mut u64),
        file_len: u64,
    ) -> Result<(), Unreadable> {
        let mut at = 8;
        let mut optional = |flag: u32, len: usize| {
            (flags & flag != 0).then(|| {
                at += len;
                be(header, at - len, len).unwrap_or(0)
            })
        };
        let explicit_base = optional(0x1, 8);
        optional(0x2, 4);
        let duration = optional(0x8, 4).map_or(track.defaults.duration, |d| d as u32);
        let len = optional(0x10, 4).map_or(track.defaults.len, |len| len as u32);
        let base = match explicit_base {
            Some(base) => base,
            None if flags & 0x2_0000 != 0 => moof_at,
            // The data of the first track are relative to the fragment, and those of others continue from there.
            None => *data_end,
        };
        let decode_time = child(traf, b"tfdt").and_then(|tfdt| {
            let wide = *tfdt.first()? == 1;
            be(tfdt, 4, if wide { 8 } else { 4 })
        });
        let mut decoded = decode_time
            .and_then(|time| i64::try_from(time).ok())
            .unwrap_or(track.next_decoded);
        let mut offset = base;
        for (_, trun) in Boxes(traf).filter(|(kind, _)| kind == b"trun") {
            let (Some(flags), Some(n)) = (be32(trun, 0), be32(trun, 4)) else {
                continue;
            };
            let mut at = 8;
            if flags & 0x1 != 0 {
                let distance = be32(trun, at).unwrap_or(0).cast_signed();
                offset = base.saturating_add_signed(i64::from(distance));
                at += 4;
            }
            at += if flags & 0x4 != 0 { 4 } else { 0 };
            let field_len = |flag: u32| if flags & flag != 0 { 4 } else { 0 };
            let entry_len = [0x100, 0x200, 0x400, 0x800]
                .map(field_len)
                .iter()
                .sum::<usize>();
            // A sample without fields of its own is only as real as its bytes.
            let most = match entry_len {
                0 => file_len / u64::from(len.max(1)),
                _ => (trun.len() / entry_len) as u64,
            };
            for _ in 0..u64::from(n).min(most) {
                let mut field = |flag: u32| {
                    (flags & flag != 0).then(|| {
                        at += 4;
                        be32(trun, at - 4)
                    })
                };
                let (Some(duration), Some(len)) = (
                    field(0x100).unwrap_or(Some(duration)),
                    field(0x200).unwrap_or(Some(len)),
                ) else {
                    break;
                };
                field(0x400);
                let Some(late) = field(0x800).unwrap_or(Some(0)) else {
                    break;
                };
                let sample = next_sample((&mut decoded, &mut offset), late, duration, len);
                self.add(track, sample, file_len)?;
            }
        }
        *data_end = offset;
        track.next_decoded = decoded;
        Ok(())
    }

    fn contents(self, file: File, file_len: u64) -> Result<Contents, Unreadable> {
        let mut reader = BufReader::with_capacity(64 << 10, file);
        let mut position = u64::MAX;
        let has_edit_lists = self.tracks.iter().any(|track| !track.edits.is_empty());
        let mut tracks = Vec::new();
        for track in self.tracks {
            tracks.push(track.present(&mut reader, &mut position, file_len)?);
        }
        Ok(Contents {
            format: Format::Mp4,
            tracks,
            has_edit_lists,
            claimed_end: self.claimed_end,
            n_cut_off: self.n_cut_off,
        })
    }
}

/// Returns the sample at `decoded` and `offset`, which is shown `late` (a signed number) ticks after it is decoded, and
/// advances both to the next sample.
fn next_sample(
    (decoded, offset): (&mut i64, &mut u64),
    late: u32,
    duration: u32,
    len: u32,
) -> Sample {
    let sample = Sample {
        shown: decoded.saturating_add(i64::from(late.cast_signed())),
        duration,
        offset: *offset,
        len,
    };
    *decoded = decoded.saturating_add(i64::from(duration));
    *offset = offset.saturating_add(u64::from(len));
    sample
}

/// Returns the fields of `mvhd` and `mdhd`: ticks per second, and a duration in ticks.
fn scale_and_duration(header: &[u8]) -> Option<(u32, Option<u64>)> {
    if *header.first()? == 1 {
        let duration = be(header, 24, 8).filter(|duration| *duration != u64::MAX);
        return Some((be32(header, 20)?, duration));
    }
    let duration = be(header, 16, 4).filter(|duration| *duration != u64::from(u32::MAX));
    Some((be32(header, 12)?, duration))
}

impl Default for TrackTables {
    fn default() -> Self {
        Self {
            id: 0,
            kind: Kind::Other,
            codec: String::new(),
            timescale: 1,
            edits: Vec::new(),
            samples: Vec::new(),
            defaults: Defaults::default(),
            next_decoded: 0,
            left_out: None,
            block: None,
            unknown: None,
        }
    }
}

impl TrackTables {
    fn read(
        trak: &[u8],
        movie_timescale: u32,
        fragmented: bool,
    ) -> Result<Option<Self>, Unreadable> {
        let header = || -> Option<(u32, [u8; 4], u32)> {
            let tkhd = child(trak, b"tkhd")?;
            let id = be32(tkhd, if *tkhd.first()? == 1 { 20 } else { 12 })?;
            let media = child(trak, b"mdia")?;
            // Version and flags and a reserved word precede the handler type.
            let handler = child(media, b"hdlr")?.get(8..12)?.try_into().ok()?;
            let (timescale, _) = scale_and_duration(child(media, b"mdhd")?)?;
            Some((id, handler, timescale))
        };
        let Some((id, handler, timescale)) = header() else {
            return Ok(None);
        };
        let kind = match &handler {
            b"vide" => Kind::Picture,
            b"soun" => Kind::Sound,
            _ => Kind::Other,
        };
        let descriptions = child(trak, b"mdia")
            .and_then(|media| child(media, b"minf"))
            .and_then(|info| child(info, b"stbl"))
            .and_then(|table| child(table, b"stsd"))
            // Version and flags precede the number of descriptions.
            .and_then(|descriptions| descriptions.get(8..));
        let description = descriptions.and_then(|descriptions| Boxes(descriptions).next());
        let edits = child(trak, b"edts")
            .and_then(|edits| child(edits, b"elst"))
            .map(|list| read_edits(list, movie_timescale, fragmented))
            .transpose()?
            .unwrap_or_default();
        Ok(Some(Self {
            id,
            kind,
            codec: description.map_or(String::new(), |(code, entry)| codec(&code, entry)),
            timescale,
            edits: edits.0,
            left_out: description.and_then(|(_, entry)| opus_left_out(entry)),
            block: description
                .filter(|_| kind == Kind::Sound)
                .and_then(|(_, entry)| sound_block(entry)),
            unknown: match description {
                Some(_) => edits.1,
                // Players refuse the whole file.
                None => Some("its codec is not specified"),
            },
            ..Self::default()
        }))
    }

    fn is_pcm(&self) -> bool {
        self.kind == Kind::Sound && self.codec.starts_with("PCM")
    }

    /// Extends the last shown frame up to the end of the table, which counts durations in storage order.
    fn lengthen_last(&mut self) {
        let total: i64 = self.samples.iter().map(|s| i64::from(s.duration)).sum();
        let first = self.samples.iter().map(|sample| sample.shown).min();
        let last = self.samples.iter_mut().max_by_key(|sample| sample.shown);
        if let (Some(first), Some(last)) = (first, last) {
            let left = total.saturating_sub(last.shown.saturating_sub(first));
            last.duration = last.duration.max(u32::try_from(left).unwrap_or(0));
        }
    }

    /// Places the samples on the presentation timeline, and computes digests of audio.
    fn present(
        mut self,
        reader: &mut BufReader<File>,
        position: &mut u64,
        file_len: u64,
    ) -> Result<Track, Unreadable> {
        if self.kind == Kind::Picture {
            self.lengthen_last();
        }
        let whole = [Edit {
            duration: None,
            media_start: Some(0),
        }];
        let edits: &[Edit] = match self.edits.as_slice() {
            [] => &whole,
            edits => edits,
        };
        let mut packets = Vec::new();
        let mut all_bytes = DefaultHasher::new();
        let mut is_cut_between_samples = false;
        let mut begin = 0_i64;
        let mut run_in = true;
        let mut is_first_shown = false;
        // Without a limit, overlapping samples could make a small file endless.
        let mut n_bytes_left = file_len.saturating_mul(edits.len() as u64 + 1);
        for edit in edits {
            let Some(media_start) = edit.media_start else {
                begin = begin.saturating_add(edit.duration.unwrap_or(0));
                continue;
            };
            let part = Part {
                start: media_start,
                stop: edit
                    .duration
                    .map(|duration| exact_ticks(duration, self.timescale))
                    .map(|ticks| ticks.map(|ticks| media_start.saturating_add(ticks))),
            };
            let media_start = nanos(media_start, self.timescale);
            let stop = edit.duration.map(|duration| begin.saturating_add(duration));
            for (sample_idx, sample) in self.samples.iter().enumerate() {
                let place = |ticks| {
                    nanos(ticks, self.timescale)
                        .saturating_sub(media_start)
                        .saturating_add(begin)
                };
                let mut time = place(sample.shown);
                let mut end = place(sample.shown.saturating_add(i64::from(sample.duration)));
                if stop.is_some_and(|stop| time >= stop) {
                    continue;
                }
                let place_end = end;
                end = stop.map_or(end, |stop| end.min(stop));
                let hidden = end <= begin && sample.duration > 0 || end < begin;
                // A pre-roll is played before the presentation begins, and not while the presentation waits for the
                // audio.
                if hidden && !(self.kind == Kind::Sound && run_in && time < 0) {
                    continue;
                }
                // If a later part cuts into audio, the rest of it is heard.
                if self.kind != Kind::Sound || !run_in {
                    time = time.max(begin);
                }
                let mut packet = Packet {
                    time,
                    duration: end.saturating_sub(time),
                    ..Packet::default()
                };
                match (self.kind, self.codec.as_str()) {
                    (Kind::Sound, _) => {
                        n_bytes_left = n_bytes_left
                            .checked_sub(u64::from(sample.len))
                            .ok_or_else(|| Unreadable::new("an mp4 with overlapping samples"))?;
                        let bytes = read_at(reader, position, sample, file_len)?;
                        packet.hash = hash(&bytes);
                        let shown = match self.codec.as_str() {
                            "PCM" => part.bytes(sample, end < place_end),
                            "ADPCM" if sample.shown < part.start || end < place_end => None,
                            _ => Some(0..bytes.len()),
                        };
                        match shown {
                            Some(shown) => all_bytes.write(bytes.get(shown).unwrap_or_default()),
                            None => is_cut_between_samples = true,
                        }
                    }
                    (Kind::Picture, "VP8") => {
                        let first = Sample { len: 1, ..*sample };
                        if super::is_hidden_vp8(&read_at(reader, position, &first, file_len)?) {
                            continue;
                        }
                    }
                    _ => {}
                }
                is_first_shown |= sample_idx == 0;
                packets.push(packet);
                if packets.len() > MOST_PACKETS {
                    return Err(Unreadable::new(
                        "an mp4 with edits that repeat it endlessly",
                    ));
                }
            }
            run_in = false;
            begin = begin.saturating_add(edit.duration.unwrap_or(0));
        }
        let first_key = first_key(self.kind, &packets).filter(|_| is_first_shown);
        if self.kind == Kind::Picture {
            packets.sort_by_key(|packet| packet.time);
        }
        Ok(Track {
            kind: self.kind,
            codec: self.codec,
            packets,
            first_key,
            first_refresh: None,
            breaks_off: false,
            n_untimed: 0,
            left_out: self.left_out,
            bytes_hash: (!is_cut_between_samples).then(|| all_bytes.finish()),
            unknown: self.unknown,
        })
    }
}

/// Part of a track that an edit shows, in ticks of the track.
struct Part {
    start: i64,
    /// Stop; `None` within it if it is between two ticks.
    stop: Option<Option<i64>>,
}

impl Part {
    /// Returns the bytes of `sample`, a chunk of uncompressed audio, that are shown; `None` if it is cut between two of
    /// its samples. The part cuts off the end of the chunk if `is_cut`.
    fn bytes(&self, sample: &Sample, is_cut: bool) -> Option<Range<usize>> {
        let (len, n_ticks) = (u64::from(sample.len), u64::from(sample.duration));
        let place = |tick: i64| {
            let n_before = u64::try_from(tick.saturating_sub(sample.shown)).unwrap_or(0);
            let n_bytes = len * n_before.min(n_ticks);
            let is_between = n_bytes % n_ticks.max(1) != 0;
            let at = usize::try_from(n_bytes.checked_div(n_ticks)?).ok();
            at.filter(|_| !is_between)
        };
        let start = place(self.start)?;
        let stop = match self.stop {
            Some(stop) if is_cut => place(stop?)?,
            _ => usize::try_from(len).ok()?,
        };
        Some(start..stop)
    }
}

/// Converts nanoseconds to ticks of 1/`timescale` s; `None` if they fall between two.
fn exact_ticks(nanos: i64, timescale: u32) -> Option<i64> {
    let ticks = i128::from(nanos) * i128::from(timescale);
    let is_exact = ticks % 1_000_000_000 == 0;
    i64::try_from(ticks / 1_000_000_000)
        .ok()
        .filter(|_| is_exact)
}

/// Reads the bytes of `sample`; `position` is the current position of the reader.
fn read_at(
    reader: &mut BufReader<File>,
    position: &mut u64,
    sample: &Sample,
    file_len: u64,
) -> Result<Vec<u8>, Unreadable> {
    let len = u64::from(sample.len).min(LARGEST_SOUND);
    let distance = i64::try_from(i128::from(sample.offset) - i128::from(*position));
    match distance {
        // Nearby data may already be in the buffer.
        Ok(distance) if *position <= file_len => reader.seek_relative(distance)?,
        _ => {
            reader.seek(SeekFrom::Start(sample.offset))?;
        }
    }
    let mut bytes = Vec::new();
    reader.take(len).read_to_end(&mut bytes)?;
    *position = sample.offset.saturating_add(bytes.len() as u64);
    Ok(bytes)
}

/// Entries of an edit list, and the reason if they cannot be followed.
type Edits = (Vec<Edit>, Option<&'static str>);

fn read_edits(list: &[u8], movie_timescale: u32, fragmented: bool) -> Result<Edits, Unreadable> {
    let wide = list.first() == Some(&1);
    let field_len = if wide { 8 } else { 4 };
    let entry_len = 2 * field_len + 4;
    let n_entries = be32(list, 4).unwrap_or(0) as usize;
    if n_entries > MOST_EDITS {
        return Err(Unreadable::new("an mp4 with more than 256 edits"));
    }
    let mut edits = Vec::new();
    let mut unknown = None;
    for entry_idx in 0..n_entries {
        let at = 8 + entry_idx * entry_len;
        let (Some(duration), Some(start), Some(rate)) = (
            be(list, at, field_len),
            be(list, at + field_len, field_len),
            be32(list, at + 2 * field_len),
        ) else {
            break;
        };
        let media_start = if wide {
            start.cast_signed()
        } else {
            i64::from((start as u32).cast_signed())
        };
        if media_start >= 0 && rate != 0x0001_0000 {
            unknown = Some("an edit changes its speed");
        }
        let last = entry_idx + 1 == n_entries;
        // The list of a fragmented file is written before its duration is known.
        let open = media_start >= 0 && last && (fragmented || duration == 0);
        let duration = i64::try_from(duration).unwrap_or(i64::MAX);
        edits.push(Edit {
            duration: (!open).then(|| nanos(duration, movie_timescale)),
            media_start: (media_start >= 0).then_some(media_start),
        });
    }
    Ok((edits, unknown))
}

/// Sizes of a track's samples.
struct Sizes<'a> {
    constant: Option<u32>,
    n: u64,
    /// Number of bits per size, and the sizes.
    table: (u32, &'a [u8]),
}

impl<'a> Sizes<'a> {
    fn read(table: &'a [u8]) -> Option<Self> {
        if let Some(sizes) = child(table, b"stsz") {
            let constant = be32(sizes, 4)?;
            return Some(Self {
                constant: (constant > 0).then_some(constant),
                n: u64::from(be32(sizes, 8)?),
                table: (32, sizes.get(12..)?),
            });
        }
        let sizes = child(table, b"stz2")?;
        Some(Self {
            constant: None,
            n: u64::from(be32(sizes, 8)?),
            table: (be32(sizes, 4)? & 0xff, sizes.get(12..)?),
        })
    }

    fn get(&self, sample_idx: u64) -> Option<u32> {
        if sample_idx >= self.n {
            return None;
        }
        if let Some(constant) = self.constant {
            return Some(constant);
        }
        let idx = usize::try_from(sample_idx).ok()?;
        let (bits, table) = self.table;
        match bits {
            32 => be32(table, idx.checked_mul(4)?),
            16 => be16(table, idx.checked_mul(2)?).map(u32::from),
            8 => table.get(idx).map(|len| u32::from(*len)),
            4 => table
                .get(idx / 2)
                .map(|pair| u32::from(if idx % 2 == 0 { pair >> 4 } else { pair & 15 })),
            _ => None,
        }
    }
}

/// Run-length encoded table: pairs of count and value.
struct Runs<'a> {
    table: &'a [u8],
    entry_len: usize,
    /// Offset of the repeated value.
    value_at: usize,
    at: usize,
    left: u32,
}

impl<'a> Runs<'a> {
    /// Reads the table in `content`, with entries of `entry_len` bytes.
    fn new(content: Option<&'a [u8]>, entry_len: usize, value_at: usize) -> Self {
        let content = content.unwrap_or_default();
        let n = be32(content, 4).unwrap_or(0) as usize;
        let table = content.get(8..).unwrap_or_default();
        let len = n.saturating_mul(entry_len).min(table.len());
        Self {
            table: table.get(..len).unwrap_or_default(),
            entry_len,
            value_at,
            at: 0,
            left: be32(table, 0).unwrap_or(0),
        }
    }

    /// Returns the next value without consuming it.
    fn current(&self) -> Option<u32> {
        be32(self.table, self.at + self.value_at)
    }

    /// Iterates over entries of three words.
    fn entries(self) -> impl Iterator<Item = [u32; 3]> + 'a {
        let entry_len = self.entry_len;
        self.table
            .chunks_exact(entry_len)
            .filter_map(|entry| Some([be32(entry, 0)?, be32(entry, 4)?, be32(entry, 8)?]))
    }
}

impl Iterator for Runs<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        while self.left == 0 {
            self.at = self.at.checked_add(self.entry_len)?;
            self.left = be32(self.table, self.at)?;
        }
        self.left -= 1;
        self.current()
    }
}

/// Returns the codec of a sample description.
fn codec(code: &[u8; 4], entry: &[u8]) -> String {
    let name = match code {
        b"avc1" | b"avc3" => "H.264",
        b"hvc1" | b"hev1" => "H.265",
        b"vp08" => "VP8",
        b"vp09" => "VP9",
        b"av01" => "AV1",
        b"mp4a" | b"ms\0U" => match object_type(entry) {
            Some(0x69 | 0x6b) => "MPEG audio",
            Some(0xa5) => "AC-3",
            Some(0xa6) => "E-AC-3",
            Some(0xa9..=0xac) => "DTS",
            Some(0xad) => "Opus",
            Some(0xdd) => "Vorbis",
            None if code != b"mp4a" => "MPEG audio",
            Some(0x40) => sound::aac(specific_info(entry).unwrap_or_default()),
            None | Some(0x66..=0x68) => "AAC",
            Some(_) => "other sound",
        },
        b".mp3" | b".mp2" => "MPEG audio",
        b"ms\0\x02" | b"ms\0\x11" | b"ima4" => "ADPCM",
        b"ac-3" | b"sac3" => "AC-3",
        b"ec-3" => "E-AC-3",
        b"dtsc" => "DTS",
        b"Opus" => "Opus",
        b"fLaC" => "FLAC",
        b"alac" => "ALAC",
        b"sowt" | b"twos" | b"in24" | b"in32" | b"fl32" | b"fl64" | b"lpcm" | b"ipcm" | b"fpcm"
        | b"raw " | b"NONE" | b"ulaw" | b"alaw" => "PCM",
        other => return String::from_utf8_lossy(other).trim().to_owned(),
    };
    name.into()
}

/// Returns the number of samples and bytes of a block according to version 1 of a sound description (QuickTime File
/// Format, Sound Sample Description (Version 1)), unless each sample is its own block.
fn sound_block(entry: &[u8]) -> Option<(u64, u64)> {
    let is_version_1 = be16(entry, 8)? == 1;
    let (n_samples, n_bytes) = (be32(entry, 28)?, be32(entry, 36)?);
    (is_version_1 && n_samples > 1).then_some((n_samples.into(), n_bytes.into()))
}

/// Returns the nanoseconds that the decoder discards according to the `dOps` box of a sample description (Encapsulation
/// of Opus in ISO Base Media File Format, 4.3.2).
fn opus_left_out(entry: &[u8]) -> Option<i64> {
    let at = entry.windows(4).position(|window| window == b"dOps")?;
    // Version and number of channels follow the name.
    let n_samples = be16(entry, at + 6)?;
    Some(nanos(n_samples.into(), sound::OPUS_RATE))
}

/// Returns the object type in the `esds` box of a sample description.
fn object_type(entry: &[u8]) -> Option<u8> {
    decoder_config(entry)?.first().copied()
}

/// Returns the decoder-specific info in the `esds` box of a sample description (ISO/IEC 14496-1, 7.2.6.6 and 7.2.6.7).
fn specific_info(entry: &[u8]) -> Option<&[u8]> {
    match descriptor(decoder_config(entry)?.get(13..)?)? {
        (5, info) => Some(info),
        _ => None,
    }
}

/// Returns the decoder config of an `esds` box anywhere in a sample description (ISO/IEC 14496-1, 7.2.6).
fn decoder_config(entry: &[u8]) -> Option<&[u8]> {
    let at = entry.windows(4).position(|window| window == b"esds")?;
    // Version and flags follow the name.
    let mut rest = entry.get(at + 8..)?;
    loop {
        match descriptor(rest)? {
            (3, content) => {
                let flags = *content.get(2)?;
                let mut skipped = 3;
                skipped += if flags & 0x80 != 0 { 2 } else { 0 };
                if flags & 0x40 != 0 {
                    skipped += 1 + usize::from(*content.get(skipped)?);
                }
                skipped += if flags & 0x20 != 0 { 2 } else { 0 };
                rest = content.get(skipped..)?;
            }
            (4, content) => return Some(content),
            _ => return None,
        }
    }
}

/// Returns the tag of the descriptor at the start of `bytes`, and all bytes after its length.
fn descriptor(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let (tag, mut content) = bytes.split_first()?;
    // A length of up to four bytes, with seven bits each.
    for _ in 0..4 {
        let (byte, after) = content.split_first()?;
        content = after;
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some((*tag, content))
}
