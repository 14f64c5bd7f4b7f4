//! Comparison of the tables of a source with those of its result.
//!
//! Times are in nanoseconds. Those of the result count from its own beginning, and expected ones from the beginning of
//! the requested range.

use super::container::LONGEST_RUN_IN;
use super::job::AudioMode;
use super::verify::{Verification, duration, secs};
use crate::demux::{Contents, Format, Kind, Packet, Track};
use vitscope_core::wording::counted;

const MILLI: i64 = 1_000_000;

/// Coarsest time step of a container (Matroska's).
const TIME_STEP: i64 = MILLI;

/// Gap at the end above which a file counts as incomplete: containers round, and last packets have no length.
const END_TOLERANCE: i64 = 250 * MILLI;

/// Tolerance for the difference in length of two presentations, apart from the length of the last frame if a container
/// does not state it.
const LENGTH_TOLERANCE: i64 = 100 * MILLI;

/// Tolerance for a shift of copied audio against the video: two roundings to Matroska's ticks, and Opus's delay of 6.5
/// ms, which Matroska separates from the audio and an mp4 without an edit does not.
const SOUND_TOLERANCE: i64 = 10 * MILLI;

/// Tolerance for a shift of the whole presentation; less than a frame.
const BEGIN_TOLERANCE: i64 = 10 * MILLI;

/// Audio that begins earlier than this was cut off, and cannot be hidden without an edit list.
const EARLIEST_SOUND: i64 = -(LONGEST_RUN_IN.as_millis() as i64) * MILLI;

/// Audio of a transport stream that precedes the first picture by no more than this is an encoder's priming.
const LONGEST_PRIMING: i64 = 50 * MILLI;

/// Codecs that audio is re-encoded to.
const ENCODED: [&str; 3] = ["AAC", "Opus", "Vorbis"];

/// Tolerance for a shift of re-encoded audio, to allow for the encoder's own delay.
const ENCODED_TOLERANCE: i64 = 100 * MILLI;

/// A Matroska file that begins later than this was cut out of a longer one.
const LATE_BEGIN: i64 = 1000 * MILLI;

/// Begin of the presentation.
///
/// A Matroska file that was cut out of a longer one keeps its timestamps. An mp4 without edit lists, the form in which
/// live streams are recorded, begins with its first packet. A transport stream counts from an arbitrary time and begins
/// with its video: data shortly before that is the audio encoder's priming.
pub(super) fn begin(contents: &Contents) -> i64 {
    let first = |kind| {
        let tracks = contents.of(kind);
        tracks
            .filter_map(|track| Some(track.packets.first()?.time))
            .min()
    };
    let (picture, sound) = (first(Kind::Picture), first(Kind::Sound));
    let earliest = picture.into_iter().chain(sound).min().unwrap_or(0);
    match contents.format {
        Format::MpegTs => picture
            .filter(|picture| earliest >= picture.saturating_sub(LONGEST_PRIMING))
            .unwrap_or(earliest),
        Format::Matroska if earliest > LATE_BEGIN => earliest,
        Format::Mp4 if !contents.has_edit_lists => earliest,
        _ => 0,
    }
}

/// Begin of the presentation of a result: a Matroska file written by this crate counts from zero, however late its
/// first frame comes.
pub(super) fn begin_of_result(contents: &Contents) -> i64 {
    match contents.format {
        Format::Matroska => 0,
        _ => begin(contents),
    }
}

/// Exceeds the pre-roll of `sound`, which its encoder prepends: less than two packets of MPEG audio. Only that of AAC,
/// Opus and Vorbis is long.
fn longest_run_in(sound: &Track) -> i64 {
    let packet_len = sound.packets.first().map_or(0, |packet| packet.duration);
    match sound.codec.as_str() {
        "MPEG audio" => LONGEST_PRIMING.max(2 * packet_len),
        "Opus" | "Vorbis" => -EARLIEST_SOUND,
        codec if codec.starts_with("AAC") => -EARLIEST_SOUND,
        _ => LONGEST_PRIMING,
    }
}

/// Expected contents of a result; times in nanoseconds of the source's presentation.
pub(super) struct Wanted {
    pub(super) start: i64,
    pub(super) end: i64,
    /// In the result's time.
    pub(super) interrupted_at: Option<i64>,
    pub(super) sound: AudioMode,
    /// Whether the result can hide a pre-roll.
    pub(super) has_edit_lists: bool,
}

/// Expected packets, in the result's time.
struct Expected {
    packets: Vec<Packet>,
    /// Numbers of packets at the beginning and at the end that are so close to the edge of the range that rounding and
    /// delays decide about them.
    n_optional: (usize, usize),
}

impl Expected {
    /// Iterates over the selections of `n` packets that omit only optional ones at the beginning and at the end.
    fn fits(&self, n: usize) -> impl Iterator<Item = &[Packet]> {
        let (head, tail) = self.n_optional;
        (0..=head)
            .flat_map(move |head| (0..=tail).map(move |tail| (head, tail)))
            .filter_map(|(head, tail)| {
                let end = self.packets.len().checked_sub(tail)?;
                self.packets.get(head..end)
            })
            .filter(move |packets| packets.len() == n)
    }

    fn may_be_empty(&self) -> bool {
        self.fits(0).next().is_some()
    }
}

impl Wanted {
    pub(super) fn judge(&self, source: &Contents, result: &Contents) -> Verification {
        let pictures: Vec<&Track> = source.of(Kind::Picture).collect();
        let Some(first) = pictures.first() else {
            return Verification {
                complaints: vec!["the source has no video track according to its tables".into()],
                ..Verification::of_result(result)
            };
        };
        // The run itself chooses one of several video tracks.
        let judged = |picture: &Track| self.judge_picture(source, picture, result);
        let first = judged(first);
        if first.whole() {
            return first;
        }
        let others = pictures.iter().skip(1).map(|picture| judged(picture));
        let n_differing = |judged: &Verification| judged.frames_in.abs_diff(judged.frames_out);
        std::iter::once(first)
            .chain(others)
            .min_by_key(|judged| (!judged.whole(), n_differing(judged)))
            .unwrap_or_default()
    }

    fn judge_picture(&self, source: &Contents, picture: &Track, result: &Contents) -> Verification {
        let mut judged = Verification::of_result(result);
        let begins = (begin(source), begin_of_result(result));
        self.check_claims(source, begins.0, &mut judged);
        let offset = self.check_frames(picture, result, begins, &mut judged);
        self.check_sound(source, result, (begins, offset), &mut judged);
        let counts_from_zero = match source.format {
            Format::Mp4 => source.has_edit_lists,
            Format::Matroska => begins.0 == 0,
            Format::MpegTs => false,
        };
        let comparable = counts_from_zero && result.format != Format::MpegTs;
        if comparable && judged.unjudged.is_empty() && judged.frames_out > 0 {
            // If nothing can hide the audio's pre-roll, the video waits for it.
            let most = if self.has_edit_lists {
                0
            } else {
                -EARLIEST_SOUND
            };
            if offset < -BEGIN_TOLERANCE || offset > most + BEGIN_TOLERANCE {
                judged.complaints.push(format!(
                    "the video starts {:.3} ms too {}",
                    offset.unsigned_abs() as f64 / 1e6,
                    if offset < 0 { "early" } else { "late" }
                ));
            }
        }
        self.check_lengths(picture, source, result, (begins, offset), &mut judged);
        judged
    }

    /// Compares the source with its own header.
    fn check_claims(&self, source: &Contents, begin: i64, judged: &mut Verification) {
        let end = source
            .tracks
            .iter()
            .filter_map(Track::end)
            .max()
            .unwrap_or(0);
        let needed = begin.saturating_add(self.end);
        if let Some(claimed) = source.claimed_end
            && end.saturating_add(END_TOLERANCE) < claimed.min(needed)
        {
            judged.complaints.push(format!(
                "the container claims {:.3} s, but its packets end at {:.3} s",
                secs(claimed),
                secs(end)
            ));
        } else if source.n_cut_off > 0 && end < needed {
            judged.complaints.push(format!(
                "the source is truncated: {} packets listed in its tables are missing from the file",
                source.n_cut_off
            ));
        }
    }

    /// Checks the frames and their timestamps; returns the delay of the last frame relative to the expected one.
    fn check_frames(
        &self,
        picture: &Track,
        result: &Contents,
        begins: (i64, i64),
        judged: &mut Verification,
    ) -> i64 {
        let empty = Vec::new();
        let written = result
            .of(Kind::Picture)
            .next()
            .map_or(&empty, |track| &track.packets);
        let written: Vec<i64> = written
            .iter()
            .map(|packet| packet.time - begins.1)
            .collect();
        let unknown = result.of(Kind::Picture).find_map(|track| track.unknown);
        if let Some(reason) = picture.unknown.or(unknown) {
            judged.unjudged.push(format!("the frames ({reason})"));
            return 0;
        }
        self.check_break(picture, "a frame", judged);
        if self.begins_refreshing(picture, begins.0) {
            let part =
                "whether the first frames are complete (the source refreshes them part by part)";
            judged.unjudged.push(part.into());
        }
        let expected = self.frames(picture, begins.0);
        let best = expected
            .fits(written.len())
            .map(|packets| (max_error(packets, &written), packets.len()))
            .min();
        let Some(((error, offset), n_frames)) = best else {
            let all = expected.packets.as_slice();
            judged.frames_in = all.len() as u64;
            let (offset, missing) = first_missing(all, &written);
            let place = missing.map_or(String::new(), |time| {
                format!("; the first missing frame is at {:.3} s", secs(time))
            });
            judged.complaints.push(format!(
                "{} frames in, {} out{place}",
                all.len(),
                written.len()
            ));
            return offset;
        };
        judged.frames_in = n_frames as u64;
        judged.max_pts_error_nanos = error;
        if error > TIME_STEP.unsigned_abs() {
            judged.complaints.push(format!(
                "frame times changed by up to {:.3} ms",
                error as f64 / 1e6
            ));
        }
        offset
    }

    /// Returns whether decoding may have begun at a frame that is not yet refreshed completely.
    fn begins_refreshing(&self, picture: &Track, begin: i64) -> bool {
        let start = begin.saturating_add(self.start);
        picture
            .first_refresh
            .is_some_and(|first| first <= start || picture.first_key.is_some_and(|key| first < key))
    }

    /// Checks whether the requested range extends beyond the last complete packet of a source that breaks off.
    fn check_break(&self, track: &Track, packet: &str, judged: &mut Verification) {
        if track.breaks_off && (self.end, self.interrupted_at) == (i64::MAX, None) {
            let part = format!("{packet} cut off at the end of the source");
            judged.unjudged.push(part);
        }
    }

    /// Returns the source's frames in the range, relative to its beginning; a frame cut by an edge is shown in part.
    fn frames(&self, picture: &Track, begin: i64) -> Expected {
        let stop = self.stop();
        let mut packets = Vec::new();
        let mut n_optional = (0, 0);
        let nexts = picture.packets.iter().skip(1).map(Some).chain([None]);
        for (frame, next) in picture.packets.iter().zip(nexts) {
            let time = frame.time.saturating_sub(begin).saturating_sub(self.start);
            // A frame is shown until the next one is, whatever its stated length.
            let length = next.map_or(frame.duration, |next| next.time.saturating_sub(frame.time));
            let end = time.saturating_add(length);
            if time >= stop || time < 0 && end <= 0 {
                continue;
            }
            let needs_lost = picture.first_key.is_some_and(|key| frame.time < key);
            // The part of a frame that an edit or a range leaves may be too short to count as one.
            let is_sliver = next.is_some_and(|next| 2 * end < next.duration);
            let is_cut = self.start > 0 || is_sliver;
            n_optional.0 += usize::from(needs_lost || is_cut && end <= TIME_STEP);
            n_optional.1 += usize::from(stop.saturating_sub(time) <= TIME_STEP);
            let time = time.max(0);
            packets.push(Packet {
                time,
                duration: end.min(stop) - time,
                ..Packet::default()
            });
        }
        Expected {
            packets,
            n_optional,
        }
    }

    /// End of the result, in its own time.
    fn stop(&self) -> i64 {
        let end = match self.end {
            i64::MAX => i64::MAX,
            end => end - self.start,
        };
        self.interrupted_at.map_or(end, |at| end.min(at))
    }

    /// Returns the source's audio packets in the range.
    fn packets(&self, sound: &Track, begin: i64, is_cut_to_the_sample: bool) -> Expected {
        let stop = self.stop();
        let moved = |packet: &Packet| Packet {
            time: packet.time.saturating_sub(begin).saturating_sub(self.start),
            ..*packet
        };
        let mut packets: Vec<Packet> = sound.packets.iter().map(moved).collect();
        let first = packets.first();
        let too_early = first.is_some_and(|first| first.time < -longest_run_in(sound));
        let mut n_optional = (0, 0);
        packets.retain(|packet| {
            let early = if self.start > 0 && is_cut_to_the_sample {
                packet.end() <= 0
            } else if self.start > 0 {
                packet.time < -SOUND_TOLERANCE
            } else {
                // Packets hidden by an edit list cannot be hidden in other containers.
                too_early && !self.has_edit_lists && packet.end() <= TIME_STEP
            };
            let kept = !early && packet.time < stop.saturating_add(SOUND_TOLERANCE);
            if kept {
                // The packet that an edit or a range begins in may be left out.
                let is_cut = self.start > 0 && packet.time <= SOUND_TOLERANCE
                    || too_early && !self.has_edit_lists && packet.time < 0;
                n_optional.0 += usize::from(is_cut);
                n_optional.1 += usize::from(packet.time >= stop.saturating_sub(SOUND_TOLERANCE));
            }
            kept
        });
        if self.interrupted_at.is_some() {
            // The audio ends with the last complete packet before the end of the video.
            n_optional.1 = packets.len();
        }
        Expected {
            packets,
            n_optional,
        }
    }

    /// Checks audio packets and their synchronization with the frames.
    fn check_sound(
        &self,
        source: &Contents,
        result: &Contents,
        (begins, offset): ((i64, i64), i64),
        judged: &mut Verification,
    ) {
        let mut after: Vec<&Track> = result.of(Kind::Sound).collect();
        let mut before = Vec::new();
        let mut heard = Vec::new();
        for track in source.of(Kind::Sound) {
            let expected = self.packets(track, begins.0, track.is_pcm());
            judged.audio_packets_in += expected.packets.len() as u64;
            if track.unknown.is_some() || !expected.packets.is_empty() {
                before.push(track);
            }
            let may_be_empty = self.interrupted_at.is_none() && expected.may_be_empty();
            if track.unknown.is_some() || !may_be_empty {
                heard.push(track);
            }
        }
        if self.sound == AudioMode::Drop {
            before.clear();
            heard.clear();
        }
        if after.len() == heard.len() {
            // Tracks that only touch the edges of the range may be omitted.
            before = heard;
        }
        if before.len() < after.len() {
            // A packet that begins before the range and ends behind it is encoded in part.
            let reaches = |track: &&Track| {
                track.unknown.is_some() || !self.packets(track, begins.0, true).packets.is_empty()
            };
            before = source.of(Kind::Sound).filter(reaches).collect();
        }
        if before.len() != after.len() {
            judged.audio_equal = (!before.is_empty()).then_some(false);
            judged.complaints.push(format!(
                "the result has {} of {} audio tracks",
                after.len(),
                before.len()
            ));
            return;
        }
        if before.is_empty() {
            return;
        }
        judged.audio_packets_in = 0;
        for track in before {
            // Muxers may reorder tracks.
            let twin = after.iter().position(|other| {
                other.codec == track.codec
                    && other.packets.last().map(|p| p.hash) == track.packets.last().map(|p| p.hash)
            });
            if after.is_empty() {
                break;
            }
            let written = after.remove(twin.unwrap_or(0));
            self.check_track(track, written, (begins.0, begins.1 + offset), judged);
        }
    }

    fn check_track(
        &self,
        track: &Track,
        written: &Track,
        origin: (i64, i64),
        judged: &mut Verification,
    ) {
        if let Some(reason) = track.unknown.or(written.unknown) {
            judged.unjudged.push(format!("the sound ({reason})"));
            return;
        }
        self.check_break(track, "a sound packet", judged);
        if written.n_untimed > 0 {
            judged.complaints.push(format!(
                "{} of the result without a timestamp",
                counted(written.n_untimed, "sound packet")
            ));
        }
        let copied = self.sound == AudioMode::Copy && track.codec == written.codec;
        if !copied && !ENCODED.iter().any(|codec| written.codec.starts_with(codec)) {
            judged.complaints.push(format!(
                "the sound is {} instead of {}",
                written.codec, track.codec
            ));
        }
        let expected = self.packets(track, origin.0, !copied || track.is_pcm());
        if let (true, Some(before), Some(after)) = (copied, track.left_out, written.left_out)
            && after - before > SOUND_TOLERANCE
        {
            judged.complaints.push(format!(
                "players skip the first {:.1} ms of the sound instead of {:.1} ms",
                after as f64 / MILLI as f64,
                before as f64 / MILLI as f64
            ));
        }
        match (expected.packets.is_empty(), written.packets.is_empty()) {
            (true, _) => {}
            (false, true) => judged
                .complaints
                .push("an audio track of the result is empty".into()),
            _ if copied && !track.is_divided_freely() => {
                check_packets(&expected, written, origin.1, judged);
            }
            _ => {
                let n_packets = expected.packets.len() as u64;
                judged.audio_packets_in += n_packets;
                if !copied {
                    judged.audio_packets_encoded += written.packets.len() as u64;
                }
                if copied {
                    let whole = (self.start, self.end, self.interrupted_at) == (0, i64::MAX, None);
                    let hashes = written.bytes_hash.zip(track.bytes_hash);
                    let same = !whole || hashes.is_none_or(|(written, read)| written == read);
                    judged.audio_equal = Some(judged.audio_equal.unwrap_or(true) && same);
                    if !same {
                        judged
                            .complaints
                            .push("the bytes of the sound differ".into());
                    }
                }
                self.check_edges(&expected, written, (origin.1, copied), judged);
            }
        }
    }

    /// Checks the beginning and the end of audio that shares no packets with the source.
    fn check_edges(
        &self,
        expected: &Expected,
        written: &Track,
        (origin, copied): (i64, bool),
        judged: &mut Verification,
    ) {
        let (Some(before), Some(after)) = (expected.packets.first(), written.packets.first())
        else {
            return;
        };
        let tolerance = if copied {
            SOUND_TOLERANCE
        } else {
            ENCODED_TOLERANCE
        };
        let pairs = written.packets.windows(2);
        let mut backward = pairs.filter(|pair| pair[1].time + TIME_STEP < pair[0].time);
        if let Some(pair) = backward.next() {
            judged.complaints.push(format!(
                "the sound goes back in time at {:.3} s",
                secs(pair[1].time - origin)
            ));
        }
        // What an edit list hides is not heard.
        let moved = (after.time - origin).max(0) - before.time.max(0);
        // The last packet before a gap may count as lasting through it.
        let next = expected.packets.get(1);
        let lasts_to_next = next.is_some_and(|next| before.duration <= next.duration + TIME_STEP);
        let is_cut_by_range = self.start > 0 && !copied && lasts_to_next;
        if moved.abs() > tolerance && (is_cut_by_range || before.time > EARLIEST_SOUND) {
            judged.complaints.push(against_picture(moved));
        }
        let end = |packets: &[Packet]| packets.iter().map(Packet::end).max().unwrap_or(0);
        let short = end(&expected.packets).min(self.stop()) - (end(&written.packets) - origin);
        if short > END_TOLERANCE && self.interrupted_at.is_none() {
            judged
                .complaints
                .push(format!("the sound ends {:.3} s too early", secs(short)));
        }
    }

    /// Checks the two lengths, from the beginning of the range to the end of the last packet.
    fn check_lengths(
        &self,
        picture: &Track,
        source: &Contents,
        result: &Contents,
        (begins, offset): ((i64, i64), i64),
        judged: &mut Verification,
    ) {
        let frames = self.frames(picture, begins.0).packets;
        let with_sound = self.sound != AudioMode::Drop;
        let sound_end = source
            .of(Kind::Sound)
            .filter(|_| with_sound)
            .filter_map(|track| {
                self.packets(track, begins.0, track.is_pcm())
                    .packets
                    .iter()
                    .map(Packet::end)
                    .max()
            })
            .max()
            .map(|end| end.min(self.stop()));
        let before = frames.last().map(Packet::end).max(sound_end).unwrap_or(0);
        let after = result
            .tracks
            .iter()
            .filter_map(Track::end)
            .max()
            .unwrap_or(0)
            - begins.1;
        judged.duration_in = duration(before);
        // Only the tables of an mp4 state the display time of every frame.
        let guessed = |contents: &Contents, packets: &[Packet]| match contents.format {
            Format::Mp4 => 0,
            _ => packets.last().map_or(0, |frame| frame.duration),
        };
        let written = result
            .of(Kind::Picture)
            .next()
            .map_or(0, |track| guessed(result, &track.packets));
        let tolerance = LENGTH_TOLERANCE.max(guessed(source, &frames)).max(written);
        let difference = after - offset - before;
        if judged.unjudged.is_empty()
            && difference.abs() > tolerance
            && self.interrupted_at.is_none()
        {
            judged.complaints.push(format!(
                "the duration changed from {:.3} s to {:.3} s",
                secs(before),
                secs(after - offset)
            ));
        }
        if let Some(claimed) = result.claimed_end
            && (claimed - after).abs() > END_TOLERANCE.max(tolerance)
        {
            judged.complaints.push(format!(
                "the result's header states {:.3} s, but its packets end at {:.3} s",
                secs(claimed),
                secs(after)
            ));
        }
    }
}

/// Checks copied packets one by one, and their synchronization with the frames.
fn check_packets(expected: &Expected, written: &Track, origin: i64, judged: &mut Verification) {
    let is_copy = |packets: &&[Packet]| {
        let mut pairs = packets.iter().zip(&written.packets);
        pairs.all(|(before, after)| before.hash == after.hash)
    };
    let moved = |matched: &[Packet]| {
        let pairs = matched.iter().zip(&written.packets);
        pairs
            .filter(|(before, after)| !before.is_guess && !after.is_guess)
            .map(|(before, after)| after.time - origin - before.time)
            .max_by_key(|moved| moved.abs())
            .unwrap_or(0)
    };
    // If packets are identical, as in silence, several positions fit.
    let matched = expected
        .fits(written.packets.len())
        .filter(is_copy)
        .min_by_key(|matched| moved(matched).abs());
    let Some(matched) = matched else {
        judged.audio_packets_in += expected.packets.len() as u64;
        judged.audio_equal = Some(false);
        judged.complaints.push(format!(
            "sound packets differ: {} in, {} out",
            expected.packets.len(),
            written.packets.len()
        ));
        return;
    };
    judged.audio_packets_in += matched.len() as u64;
    judged.audio_equal = Some(judged.audio_equal.unwrap_or(true));
    let moved = moved(matched);
    judged.max_sound_shift_nanos = judged.max_sound_shift_nanos.max(moved.unsigned_abs());
    if moved.abs() > SOUND_TOLERANCE && judged.frames_out > 0 {
        judged.complaints.push(against_picture(moved));
    }
}

fn against_picture(moved: i64) -> String {
    format!(
        "the sound is {:.3} ms too {}",
        moved.unsigned_abs() as f64 / 1e6,
        if moved < 0 { "early" } else { "late" }
    )
}

/// Returns the largest timestamp error in nanoseconds, relative to the last common frame, and the offset of that frame.
fn max_error(expected: &[Packet], written: &[i64]) -> (u64, i64) {
    let pairs = || expected.iter().zip(written);
    let Some((last, written)) = pairs().next_back() else {
        return (0, 0);
    };
    let offset = written - last.time;
    let errors = pairs().map(|(before, after)| (after - before.time - offset).unsigned_abs());
    (errors.max().unwrap_or(0), offset)
}

/// Returns the delay of the written frames if some are missing, and the expected time of the first missing one.
///
/// The delay is taken from the first or the last frame, whichever is small and fits more frames.
fn first_missing(expected: &[Packet], written: &[i64]) -> (i64, Option<i64>) {
    let distance = |before: Option<&Packet>, after: Option<&i64>| Some(after? - before?.time);
    let candidates = [
        distance(expected.last(), written.last()),
        distance(expected.first(), written.first()),
    ];
    let missing = |offset: i64| -> Vec<i64> {
        let mut left = written.iter().peekable();
        let mut times = Vec::new();
        for frame in expected {
            let time = frame.time + offset;
            while left
                .next_if(|written| **written < time - TIME_STEP)
                .is_some()
            {}
            if left
                .next_if(|written| **written <= time + TIME_STEP)
                .is_none()
            {
                times.push(frame.time);
            }
        }
        times
    };
    let fits = candidates
        .into_iter()
        .flatten()
        .map(|offset| (missing(offset), offset));
    let likely = |(missing, offset): &(Vec<i64>, i64)| {
        let far = offset.abs() > -EARLIEST_SOUND;
        (far, missing.len(), offset.abs())
    };
    match fits.min_by_key(likely) {
        Some((missing, offset)) => (offset, missing.first().copied()),
        None => (0, expected.first().map(|frame| frame.time)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: i64 = 40 * MILLI;

    fn track(kind: Kind, codec: &str, n: i64, begin: i64, duration: i64) -> Track {
        let packets = (0..n).map(|idx| Packet {
            time: begin + idx * duration,
            duration,
            hash: if kind == Kind::Sound { idx as u64 } else { 0 },
            ..Packet::default()
        });
        Track {
            kind,
            codec: codec.into(),
            packets: packets.collect(),
            first_key: None,
            first_refresh: None,
            breaks_off: false,
            n_untimed: 0,
            left_out: None,
            bytes_hash: Some(0),
            unknown: None,
        }
    }

    fn film() -> Contents {
        Contents {
            format: Format::Mp4,
            tracks: vec![
                track(Kind::Picture, "H.264", 50, 0, FRAME),
                track(Kind::Sound, "AAC", 100, -20 * MILLI, 20 * MILLI),
            ],
            has_edit_lists: true,
            claimed_end: Some(2000 * MILLI),
            n_cut_off: 0,
        }
    }

    fn wanted() -> Wanted {
        Wanted {
            start: 0,
            end: i64::MAX,
            interrupted_at: None,
            sound: AudioMode::Copy,
            has_edit_lists: true,
        }
    }

    fn complaint(change: impl Fn(&mut Contents)) -> Option<String> {
        let mut result = film();
        change(&mut result);
        wanted().judge(&film(), &result).complaint()
    }

    #[test]
    fn a_copy_is_verified_in_one_line() {
        assert_eq!(
            wanted().judge(&film(), &film()).to_string(),
            "verified: frames 50 in, 50 out; largest time error 0.000 ms; 100 sound packets equal, \
             0.000 ms off the picture; duration 2.000 s in, 2.000 s out"
        );
    }

    #[test]
    fn each_loss_is_a_complaint() {
        let check = |expected: &str, change: &dyn Fn(&mut Contents)| {
            assert_eq!(complaint(change).as_deref(), Some(expected));
        };
        check(
            "50 frames in, 49 out; the first missing frame is at 0.280 s",
            &|film| {
                film.tracks[0].packets.remove(7);
            },
        );
        check("frame times changed by up to 2.000 ms", &|film| {
            film.tracks[0].packets[7].time += 2 * MILLI;
        });
        check("sound packets differ: 100 in, 99 out", &|film| {
            film.tracks[1].packets.pop();
        });
        check("sound packets differ: 100 in, 100 out", &|film| {
            film.tracks[1].packets.swap(3, 4);
        });
        check("the sound is 40.000 ms too late", &|film| {
            for packet in &mut film.tracks[1].packets {
                packet.time += 40 * MILLI;
            }
        });
        check("the sound is ADPCM instead of AAC", &|film| {
            film.tracks[1].codec = "ADPCM".into();
        });
        check("the result has 0 of 1 audio tracks", &|film| {
            film.tracks.truncate(1)
        });
        check("the video starts 40.000 ms too late", &|film| {
            for packet in film.tracks.iter_mut().flat_map(|track| &mut track.packets) {
                packet.time += 40 * MILLI;
            }
        });
        check(
            "the result's header states 3.000 s, but its packets end at 2.000 s",
            &|film| {
                film.claimed_end = Some(3000 * MILLI);
            },
        );
    }

    #[test]
    fn silence_at_the_edge_of_a_range_fits_where_it_is_heard() {
        let mut source = film();
        // All packets are identical, and the range begins with the end of one.
        for packet in &mut source.tracks[1].packets {
            packet.hash = 7;
            packet.time += 12 * MILLI;
        }
        let mut result = film();
        result.tracks[0] = track(Kind::Picture, "H.264", 25, 0, FRAME);
        result.tracks[1] = track(Kind::Sound, "AAC", 50, 12 * MILLI, 20 * MILLI);
        for packet in &mut result.tracks[1].packets {
            packet.hash = 7;
        }
        result.claimed_end = None;
        let range = Wanted {
            start: 520 * MILLI,
            end: 1520 * MILLI,
            ..wanted()
        };
        let judged = range.judge(&source, &result);
        assert_eq!(judged.complaint(), None, "{judged}");
        assert_eq!(judged.max_sound_shift_nanos, 0);
    }

    #[test]
    fn a_source_that_ends_early_is_not_whole() {
        let mut source = film();
        source.claimed_end = Some(3035 * MILLI);
        assert_eq!(
            wanted().judge(&source, &film()).complaint().unwrap(),
            "the container claims 3.035 s, but its packets end at 2.000 s"
        );
    }

    #[test]
    fn what_is_not_known_is_not_called_verified() {
        let mut source = film();
        source.tracks[1].unknown = Some("its packets cannot be separated");
        let judged = wanted().judge(&source, &film());
        assert_eq!(
            judged.to_string(),
            "verified in part: frames 50 in, 50 out; largest time error 0.000 ms; duration 2.000 s in, \
             2.000 s out; not judged: the sound (its packets cannot be separated)"
        );
        let unread = Verification {
            unread_source: Some("AVI".into()),
            ..Verification::of_result(&film())
        };
        assert_eq!(
            unread.to_string(),
            "not verified: the source is AVI, and its tables cannot be read; \
             the result has 50 frames, 100 sound packets, 2.000 s"
        );
        assert_eq!(
            unread.with_written(51).complaint().unwrap(),
            "51 frames were written, but the result contains 50"
        );
    }

    #[test]
    fn rounding_decides_at_the_edges_of_a_range() {
        let mut result = film();
        result.tracks[0] = track(Kind::Picture, "H.264", 25, 0, FRAME);
        result.tracks[1]
            .packets
            .retain(|packet| packet.time >= 500 * MILLI && packet.time < 1500 * MILLI);
        for packet in &mut result.tracks[1].packets {
            packet.time -= 500 * MILLI;
        }
        result.claimed_end = None;
        let range = Wanted {
            start: 500 * MILLI,
            end: 1500 * MILLI,
            ..wanted()
        };
        // The frame at 480 ms is shown for 20 ms more.
        let judged = range.judge(&film(), &result);
        assert_eq!(
            judged.complaint().unwrap(),
            "26 frames in, 25 out; the first missing frame is at 0.000 s"
        );
        let begins_with_a_frame = Wanted {
            start: 520 * MILLI - 1,
            end: 1520 * MILLI,
            ..wanted()
        };
        let judged = begins_with_a_frame.judge(&film(), &result);
        assert_eq!((judged.frames_in, judged.frames_out), (25, 25));
    }
}
