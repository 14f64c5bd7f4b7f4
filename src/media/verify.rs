//! A second opinion on a finished run: source and result by their containers' own tables, without GStreamer.
//!
//! A demuxer that loses frames loses them on every reading, so none is asked: [`demux`] shares nothing with the run.
//! Compared is what a viewer gets: frames and their times, packets of sound, sound against picture, lengths.
//! What those tables do not tell is not judged, and that is said.

use std::fmt;
use std::time::Duration;

use super::container::{Container, LONGEST_RUN_IN};
use super::job::{AudioMode, FileJob};
use crate::demux::{self, Contents, Format, Kind, Packet, Track};
use crate::error::{Error, Result};
use crate::frame::Pts;

const MILLI: i64 = 1_000_000;

/// Coarsest step in which a container counts time (Matroska's).
const TIME_STEP: i64 = MILLI;

/// What may be missing at the end before a file counts as incomplete: containers round, and last packets have no length.
const END_TOLERANCE: i64 = 250 * MILLI;

/// How far two presentations may differ in length, besides the last frame's length, which not every container says.
const LENGTH_TOLERANCE: i64 = 100 * MILLI;

/// How far copied sound may move against the picture: two roundings to Matroska's steps, and Opus's delay of 6.5 ms,
/// which Matroska tells apart from the sound and an mp4 without an edit does not.
const SOUND_TOLERANCE: i64 = 10 * MILLI;

/// How far the whole presentation may move: less than a frame.
const BEGIN_TOLERANCE: i64 = 10 * MILLI;

/// Sound that begins earlier than this was cut off, and cannot be hidden without an edit list.
const EARLIEST_SOUND: i64 = -(LONGEST_RUN_IN.as_millis() as i64) * MILLI;

/// How far sound that is encoded anew may move: an encoder's own delay.
const ENCODED_TOLERANCE: i64 = 100 * MILLI;

/// A Matroska file that begins later than this was cut out of a longer one.
const LATE_BEGIN: i64 = 1000 * MILLI;

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Frames of the source, in the wanted range.
    pub frames_in: u64,
    /// Frames of the result.
    pub frames_out: u64,
    /// Largest difference between a frame's time in the source and in the result, counted from a common frame.
    pub max_pts_error_nanos: u64,
    /// Sound packets of the source, in the wanted range.
    pub audio_packets_in: u64,
    /// Sound packets of the result.
    pub audio_packets_out: u64,
    /// Whether all sound packets are the same; `None` where sound was encoded anew, left out, or is not there.
    pub audio_equal: Option<bool>,
    /// Furthest that copied sound has moved against the picture.
    pub max_sound_shift_nanos: u64,
    /// From the beginning of the range to the end of the source's last packet in it.
    pub duration_in: Duration,
    /// To the end of the result's last packet.
    pub duration_out: Duration,
    /// Where the user ended the run, in the result's time.
    pub interrupted_at: Option<Pts>,
    /// What kind of file the source is, where nothing is known of it.
    pub unread_source: Option<String>,
    /// What of the source could not be judged, and why.
    pub unjudged: Vec<String>,
    complaints: Vec<String>,
}

/// Reads source and result of `job` and compares them.
///
/// With `interrupted_at` (where the last written frame ends, see [`FileSink::end`](super::FileSink::end)),
/// only what lies before it is expected in the result.
///
/// # Errors
/// [`Error::Media`] where the result cannot be read.
pub fn compare(job: &FileJob, interrupted_at: Option<Pts>) -> Result<Verification> {
    let container = Container::from_path(&job.output)?;
    let result = demux::read(&job.output)
        .map_err(|err| Error::Media(format!("the result is {err}: {:?}", job.output)))?;
    let wanted = Wanted {
        start: nanos(job.start.unwrap_or_default()),
        end: job.end.map_or(i64::MAX, nanos),
        interrupted_at: interrupted_at.map(nanos),
        sound: job.audio,
        has_edit_lists: container.has_edit_lists(),
    };
    let mut verification = match demux::read(&job.input) {
        Ok(source) => wanted.judge(&source, &result),
        Err(err) => Verification {
            unread_source: Some(err.to_string()),
            ..Verification::of_result(&result)
        },
    };
    verification.interrupted_at = interrupted_at;
    Ok(verification)
}

fn nanos(pts: Pts) -> i64 {
    i64::try_from(pts.0).unwrap_or(i64::MAX)
}

impl Verification {
    /// True where nothing is missing and nothing was moved.
    pub fn whole(&self) -> bool {
        self.complaints.is_empty()
    }

    /// The first thing that is wrong, in words.
    pub fn complaint(&self) -> Option<String> {
        self.complaints.first().cloned()
    }

    /// Adds that the run handed on `n_frames`, which must all be in the result.
    #[must_use]
    pub fn with_written(mut self, n_frames: u64) -> Self {
        if self.frames_out != n_frames {
            self.complaints.push(format!(
                "{n_frames} frames were written, but the result holds {}",
                self.frames_out
            ));
        }
        self
    }

    /// What the result alone tells.
    fn of_result(result: &Contents) -> Self {
        let packets = |kind| result.of(kind).map(|track| track.packets.len() as u64);
        let begin = begin(result);
        let end = result.tracks.iter().filter_map(Track::end).max();
        Self {
            frames_out: packets(Kind::Picture).next().unwrap_or(0),
            audio_packets_out: packets(Kind::Sound).sum(),
            duration_out: duration(end.unwrap_or(begin).saturating_sub(begin)),
            ..Self::default()
        }
    }
}

fn duration(nanos: i64) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

fn secs(nanos: i64) -> f64 {
    nanos as f64 / 1e9
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = &self.unread_source {
            return write!(
                f,
                "not verified: the source is {source}, whose tables are not read; \
                 the result has {} frames, {} sound packets, {:.3} s",
                self.frames_out,
                self.audio_packets_out,
                self.duration_out.as_secs_f64()
            );
        }
        let head = match (self.whole(), self.unjudged.is_empty()) {
            (false, _) => "compared",
            (true, false) => "verified in part",
            (true, true) => "verified",
        };
        write!(
            f,
            "{head}: frames {} in, {} out; largest time error {:.3} ms; ",
            self.frames_in,
            self.frames_out,
            self.max_pts_error_nanos as f64 / 1e6
        )?;
        match self.audio_equal {
            Some(true) => write!(
                f,
                "{} sound packets equal, {:.3} ms off the picture; ",
                self.audio_packets_out,
                self.max_sound_shift_nanos as f64 / 1e6
            )?,
            Some(false) => write!(
                f,
                "sound packets differ ({} in, {} out); ",
                self.audio_packets_in, self.audio_packets_out
            )?,
            None if self.audio_packets_in == 0 && self.unjudged.is_empty() => {
                write!(f, "no sound; ")?;
            }
            None if self.audio_packets_in == 0 => {}
            None if self.audio_packets_out == 0 => write!(f, "sound left out; ")?,
            None => write!(f, "sound encoded anew; ")?,
        }
        write!(
            f,
            "duration {:.3} s in, {:.3} s out",
            self.duration_in.as_secs_f64(),
            self.duration_out.as_secs_f64()
        )?;
        for unjudged in &self.unjudged {
            write!(f, "; not judged: {unjudged}")?;
        }
        if let Some(end) = self.interrupted_at {
            write!(f, "; interrupted at {:.3} s", end.secs())?;
        }
        Ok(())
    }
}

/// Where the presentation begins.
///
/// In a transport stream times count from anywhere; a Matroska file that was cut out of a longer one keeps its times;
/// an mp4 without edit lists, as live streams are recorded, begins with its first packet.
/// What comes before the first frame is a run-in of the sound.
fn begin(contents: &Contents) -> i64 {
    let firsts = |kind| {
        contents
            .of(kind)
            .filter_map(|track| Some(track.packets.first()?.time))
            .min()
    };
    let picture = firsts(Kind::Picture);
    let first = match (picture, firsts(Kind::Sound)) {
        (Some(picture), Some(sound)) if sound < picture + EARLIEST_SOUND => Some(sound),
        (picture, sound) => picture.or(sound),
    };
    match (contents.format, first) {
        (Format::MpegTs, Some(first)) => first,
        (Format::Matroska, Some(first)) if first > LATE_BEGIN => first,
        (Format::Mp4, Some(first)) if !contents.has_edit_lists => first,
        _ => 0,
    }
}

/// What a result is to hold; times in nanoseconds of the source's presentation.
struct Wanted {
    start: i64,
    end: i64,
    /// In the result's time.
    interrupted_at: Option<i64>,
    sound: AudioMode,
    /// Whether the result can hide a run-in.
    has_edit_lists: bool,
}

/// Packets that are expected, in the result's time.
struct Expected {
    packets: Vec<Packet>,
    /// How many at the beginning and at the end lie so close to the range's edge that rounding decides.
    n_optional: (usize, usize),
}

impl Expected {
    /// How many of the first packets are left out so that `n` remain, for each way to do so.
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
}

impl Wanted {
    fn judge(&self, source: &Contents, result: &Contents) -> Verification {
        let pictures: Vec<&Track> = source.of(Kind::Picture).collect();
        let Some(first) = pictures.first() else {
            return Verification {
                complaints: vec!["the source has no picture by its tables".into()],
                ..Verification::of_result(result)
            };
        };
        // Which of several pictures a run takes is its own choice.
        let judged = |picture: &Track| self.judge_picture(source, picture, result);
        let first = judged(first);
        if first.whole() {
            return first;
        }
        let others = pictures.iter().skip(1).map(|picture| judged(picture));
        others
            .into_iter()
            .find(Verification::whole)
            .unwrap_or(first)
    }

    fn judge_picture(&self, source: &Contents, picture: &Track, result: &Contents) -> Verification {
        let mut judged = Verification::of_result(result);
        let begins = (begin(source), begin(result));
        self.check_claims(source, begins.0, &mut judged);
        let offset = self.check_frames(picture, result, begins, &mut judged);
        let counts_from_zero = match source.format {
            Format::Mp4 => source.has_edit_lists,
            Format::Matroska => begins.0 == 0,
            Format::MpegTs => false,
        };
        let comparable = counts_from_zero && result.format != Format::MpegTs;
        if comparable && judged.unjudged.is_empty() && judged.frames_out > 0 {
            // Where nothing can hide the sound's run-in, the picture waits for it.
            let most = if self.has_edit_lists {
                0
            } else {
                -EARLIEST_SOUND
            };
            if offset < -BEGIN_TOLERANCE || offset > most + BEGIN_TOLERANCE {
                judged.complaints.push(format!(
                    "the picture begins {:.3} ms too {}",
                    offset.unsigned_abs() as f64 / 1e6,
                    if offset < 0 { "early" } else { "late" }
                ));
            }
        }
        self.check_sound(source, result, (begins, offset), &mut judged);
        self.check_lengths(picture, source, result, (begins, offset), &mut judged);
        judged
    }

    /// The source against its own header.
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
                "the source is cut off: {} packets of its tables are not in the file",
                source.n_cut_off
            ));
        }
    }

    /// Frames and their times; returns how much later than expected the last one is.
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
        let expected = self.frames(picture, begins.0);
        let all = expected.packets.as_slice();
        let best = expected
            .fits(written.len())
            .map(|packets| (max_error(packets, &written), packets.len()))
            .min();
        let (error, n_expected) = best.unwrap_or_else(|| (max_error(all, &written), all.len()));
        judged.frames_in = n_expected as u64;
        judged.max_pts_error_nanos = error.0;
        if best.is_none() {
            judged.complaints.push(format!(
                "{} frames went in, {} came out",
                all.len(),
                written.len()
            ));
        } else if error.0 > TIME_STEP.unsigned_abs() {
            judged.complaints.push(format!(
                "a frame was moved by {:.3} ms",
                error.0 as f64 / 1e6
            ));
        }
        error.1
    }

    /// The source's frames in the range, counted from its beginning; what is cut by an edge is shown in part.
    fn frames(&self, picture: &Track, begin: i64) -> Expected {
        let stop = self.stop();
        let mut packets = Vec::new();
        let mut n_optional = (0, 0);
        for frame in &picture.packets {
            let time = frame.time.saturating_sub(begin).saturating_sub(self.start);
            let end = time.saturating_add(frame.duration);
            if time >= stop || end < 0 || end == 0 && frame.duration > 0 {
                continue;
            }
            n_optional.0 += usize::from(self.start > 0 && end <= TIME_STEP);
            n_optional.1 += usize::from(stop.saturating_sub(time) <= TIME_STEP);
            let time = time.max(0);
            packets.push(Packet {
                time,
                duration: end.min(stop) - time,
                hash: 0,
            });
        }
        Expected {
            packets,
            n_optional,
        }
    }

    /// Where the result ends, in its own time.
    fn stop(&self) -> i64 {
        let end = match self.end {
            i64::MAX => i64::MAX,
            end => end - self.start,
        };
        self.interrupted_at.map_or(end, |at| end.min(at))
    }

    /// The source's packets of sound in the range.
    fn packets(&self, sound: &Track, begin: i64) -> Expected {
        let stop = self.stop();
        let moved = |packet: &Packet| Packet {
            time: packet.time.saturating_sub(begin).saturating_sub(self.start),
            ..*packet
        };
        let mut packets: Vec<Packet> = sound.packets.iter().map(moved).collect();
        let first = packets.first();
        let too_early = first.is_some_and(|first| first.time < EARLIEST_SOUND);
        let mut n_optional = (0, 0);
        packets.retain(|packet| {
            let early = if self.start > 0 {
                packet.time < -TIME_STEP
            } else {
                // What an edit list hides cannot be hidden elsewhere.
                too_early && !self.has_edit_lists && packet.time < 0
            };
            let kept = !early && packet.time < stop.saturating_add(TIME_STEP);
            if kept {
                n_optional.0 += usize::from(self.start > 0 && packet.time <= TIME_STEP);
                n_optional.1 += usize::from(packet.time >= stop.saturating_sub(TIME_STEP));
            }
            kept
        });
        if self.interrupted_at.is_some() {
            // The sound ends with the last whole packet before the picture does.
            n_optional.1 = packets.len();
        }
        Expected {
            packets,
            n_optional,
        }
    }

    /// Packets of sound, and when they are heard against when frames are seen.
    fn check_sound(
        &self,
        source: &Contents,
        result: &Contents,
        (begins, offset): ((i64, i64), i64),
        judged: &mut Verification,
    ) {
        let before: Vec<&Track> = source.of(Kind::Sound).collect();
        let mut after: Vec<&Track> = result.of(Kind::Sound).collect();
        let counts = (before.len(), after.len());
        let expected = if self.sound == AudioMode::Drop {
            0
        } else {
            counts.0
        };
        for track in &before {
            judged.audio_packets_in += self.packets(track, begins.0).packets.len() as u64;
        }
        let silent =
            judged.audio_packets_in == 0 && before.iter().all(|track| track.unknown.is_none());
        if expected != counts.1 && !(silent && counts.1 == 0) {
            judged.audio_equal = (expected > 0).then_some(false);
            judged.complaints.push(format!(
                "{} of {} sound tracks came out",
                counts.1, expected
            ));
            return;
        }
        if expected == 0 {
            return;
        }
        judged.audio_packets_in = 0;
        for track in before {
            // Muxers may write tracks in another order.
            let twin = after.iter().position(|other| {
                other.codec == track.codec
                    && other.packets.last().map(|p| p.hash) == track.packets.last().map(|p| p.hash)
            });
            if after.is_empty() {
                break;
            }
            let written = after.remove(twin.unwrap_or(0));
            self.check_track(track, written, (begins, offset), judged);
        }
    }

    fn check_track(
        &self,
        track: &Track,
        written: &Track,
        (begins, offset): ((i64, i64), i64),
        judged: &mut Verification,
    ) {
        let expected = self.packets(track, begins.0);
        if let Some(reason) = track.unknown.or(written.unknown) {
            judged.unjudged.push(format!("the sound ({reason})"));
            return;
        }
        let origin = begins.1 + offset;
        let copied = self.sound == AudioMode::Copy && track.codec == written.codec;
        let (Some(first), Some(last)) = (expected.packets.first(), expected.packets.last()) else {
            return;
        };
        let edges = (first.time, last.end());
        let Some(first) = written.packets.first() else {
            judged
                .complaints
                .push("a sound track came out empty".into());
            return;
        };
        if !copied || track.is_pcm() {
            let tolerance = if copied {
                SOUND_TOLERANCE
            } else {
                ENCODED_TOLERANCE
            };
            let same = self.interrupted_at.is_some()
                || self.start > 0
                || self.end < i64::MAX
                || written.bytes_hash == track.bytes_hash;
            if copied {
                judged.audio_packets_in += expected.packets.len() as u64;
                judged.audio_equal = Some(judged.audio_equal.unwrap_or(true) && same);
                if !same {
                    judged
                        .complaints
                        .push("the bytes of uncompressed sound differ".into());
                }
            } else {
                judged.audio_packets_in += expected.packets.len() as u64;
            }
            let moved = first.time - origin - edges.0.max(0);
            if moved.abs() > tolerance && edges.0 > EARLIEST_SOUND {
                judged.complaints.push(against_picture(moved));
            }
            let short = edges.1.min(self.stop()) - (written.end().unwrap_or(0) - origin);
            if short > END_TOLERANCE && self.interrupted_at.is_none() {
                judged
                    .complaints
                    .push(format!("sound ends {:.3} s too early", secs(short)));
            }
            return;
        }
        let hashes_equal = |packets: &[Packet]| {
            packets
                .iter()
                .zip(&written.packets)
                .all(|(a, b)| a.hash == b.hash)
        };
        let mut fits = expected.fits(written.packets.len());
        let Some(matched) = fits.find(|packets| hashes_equal(packets)) else {
            judged.audio_packets_in += expected.packets.len() as u64;
            judged.audio_equal = Some(false);
            judged.complaints.push(format!(
                "sound packets differ: {} went in, {} came out",
                expected.packets.len(),
                written.packets.len()
            ));
            return;
        };
        judged.audio_packets_in += matched.len() as u64;
        judged.audio_equal = Some(judged.audio_equal.unwrap_or(true));
        let moved = matched
            .iter()
            .zip(&written.packets)
            .map(|(before, after)| after.time - origin - before.time)
            .max_by_key(|moved| moved.abs())
            .unwrap_or(0);
        judged.max_sound_shift_nanos = judged.max_sound_shift_nanos.max(moved.unsigned_abs());
        if moved.abs() > SOUND_TOLERANCE && judged.frames_out > 0 {
            judged.complaints.push(against_picture(moved));
        }
    }

    /// The two lengths, from the beginning of the range to the end of the last packet.
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
                self.packets(track, begins.0)
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
        let last_frame = |packets: &[Packet]| packets.last().map_or(0, |frame| frame.duration);
        let written = result
            .of(Kind::Picture)
            .next()
            .map_or(0, |track| last_frame(&track.packets));
        let tolerance = LENGTH_TOLERANCE.max(last_frame(&frames)).max(written);
        let difference = after - offset - before;
        if judged.unjudged.is_empty()
            && difference.abs() > tolerance
            && self.interrupted_at.is_none()
        {
            judged.complaints.push(format!(
                "{:.3} s went in, {:.3} s came out",
                secs(before),
                secs(after - offset)
            ));
        }
        if let Some(claimed) = result.claimed_end
            && (claimed - after).abs() > END_TOLERANCE.max(tolerance)
        {
            judged.complaints.push(format!(
                "the result's header says {:.3} s, but its packets end at {:.3} s",
                secs(claimed),
                secs(after)
            ));
        }
    }
}

fn against_picture(moved: i64) -> String {
    format!(
        "sound comes {:.3} ms too {}",
        moved.unsigned_abs() as f64 / 1e6,
        if moved < 0 { "early" } else { "late" }
    )
}

/// Largest difference of times in nanoseconds, counted from the last frame that both have; and that frame's own.
fn max_error(expected: &[Packet], written: &[i64]) -> (u64, i64) {
    let pairs = || expected.iter().zip(written);
    let Some((last, written)) = pairs().last() else {
        return (0, 0);
    };
    let offset = written - last.time;
    let errors = pairs().map(|(before, after)| (after - before.time - offset).unsigned_abs());
    (errors.max().unwrap_or(0), offset)
}
