//! Mapping of each stream's own timestamps to one running time that begins where the presentation (or the requested
//! range) begins.
//!
//! GStreamer's demuxers express this mapping by segments, and two of them get it wrong (1.22): qtdemux, see
//! [`edits`](super::edits), and matroskademux. The latter begins at the first block that it meets and corrects itself
//! once the other stream turns out to begin earlier, when the first frame is already out. It also moves packets of a
//! codec's pre-roll that begin before zero to zero. This module replaces the segments of both. Other demuxers are
//! trusted, except for the beginning of a range: a transport stream counts from its first clock reference, which is not
//! where its presentation begins.
//!
//! Audio may begin before zero: AAC, MP3 and Opus need a pre-roll that warms up the decoder. Muxers drop packets before
//! zero, so copied audio is moved later by the pre-roll. In mp4 and mov the output's edit list reverses the shift;
//! elsewhere the video is delayed by the same amount, as ffmpeg does.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use gstreamer as gst;
use gstreamer::prelude::*;

use super::container::Container;
use super::job::FileJob;
use super::matroska;
use super::mp4::{Movie, Track, duration_from_ticks};
use super::program_clock::ProgramClock;
use super::session::lock;
use super::{audio, edits, elements, loas, transport, vorbis};

/// A Matroska file that begins later than this was cut out of a longer one.
const LATE_BEGIN: Duration = Duration::from_secs(1);

/// Exceeds the time by which a frame is stored before it is shown, or after a frame that is shown later.
const REORDERING: Duration = Duration::from_secs(1);

/// First bytes of a program stream (ISO/IEC 13818-1, 2.5.3.4).
const PROGRAM_STREAM: [u8; 4] = [0, 0, 1, 0xba];

/// Exceeds the error of a demuxer's position estimate.
const BEFORE: Duration = Duration::from_secs(5);

/// GStreamer's segment in time format.
pub(super) type Segment = gst::FormattedSegment<gst::ClockTime>;

/// Timeline of one input.
pub(super) struct Timeline {
    kind: Kind,
    range: (Duration, Option<Duration>),
    /// False while the beginning is read only to probe the file before a seek.
    armed: Arc<AtomicBool>,
}

enum Kind {
    /// An mp4 with simple edit lists.
    Movie(Movie),
    /// Begin of the presentation, and the other contents of the file's opening.
    Matroska(gst::ClockTime, matroska::Opening),
    Other(Other),
}

/// A file whose demuxer is trusted.
struct Other {
    /// Demuxer time at which the presentation begins: from the clock of a transport stream, otherwise from the first
    /// segment of any stream.
    begin: Arc<OnceLock<gst::ClockTime>>,
    /// Time that video is read beyond the range.
    room: Duration,
    way: Way,
    transport: Option<Arc<transport::Opening>>,
    is_program_stream: bool,
    /// True for an mp4 whose edits repeat parts, go back or change the speed.
    is_edited: bool,
}

impl Other {
    fn clock(&self) -> Option<&ProgramClock> {
        self.transport.as_ref()?.clock()
    }
}

/// How a demuxer is made to read a range.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Seeks to the range.
    ToTheRange,
    /// Seeks to a position some seconds earlier: the demuxer estimates where the range begins, sometimes too late.
    FromBefore,
    /// Reads from the beginning up to the end of the range: a seek would go to a position where B-frames are lost.
    FromTheBeginning,
    /// Reads everything: a seek would go to an estimated position.
    All,
}

/// Converts a demuxer's segment to the correct one.
type Replace = Box<dyn Fn(&Segment) -> Option<Segment> + Send + Sync>;

/// Mapping of one stream's own timestamps to running times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// First own timestamp that is shown.
    pub(super) start: Duration,
    /// First own timestamp that is no longer shown.
    pub(super) stop: Option<Duration>,
    /// Running time of `start`.
    pub(super) base: Duration,
}

impl Timeline {
    /// Creates the timeline of `path` for the requested `range`.
    pub(super) fn new(path: &Path, range: (Duration, Option<Duration>)) -> Self {
        let simple = |movie: &Movie| {
            let known = movie.duration.is_some_and(|duration| duration.value > 0);
            (known || movie.fragmented) && movie.tracks.iter().all(|track| track.edit.is_some())
        };
        let movie = Movie::read(path);
        let is_edited = movie.as_ref().is_some_and(|movie| {
            let mut shown = movie
                .tracks
                .iter()
                .filter(|track| track.is(b"vide") || track.is(b"soun"));
            shown.any(|track| track.edit.is_none())
        });
        let kind = match movie.filter(simple) {
            Some(movie) => Kind::Movie(movie),
            None if begins_with(path, &matroska::EBML) => {
                let opening = matroska::Opening::read(path);
                let begin = opening.begin.filter(|begin| *begin > LATE_BEGIN);
                let begin = begin.and_then(|begin| gst::ClockTime::try_from(begin).ok());
                Kind::Matroska(begin.unwrap_or_default(), opening)
            }
            None => {
                let transport = transport::Opening::read(path).map(Arc::new);
                let clock = transport.as_ref().and_then(|opening| opening.clock());
                let begin = clock.and_then(|clock| gst::ClockTime::try_from(clock.begin).ok());
                // An AVI file is read up to the slot where the range ends, but the last frames of the range are stored
                // later.
                let (way, room) = if begins_with(path, b"RIFF") {
                    (Way::FromTheBeginning, REORDERING)
                } else if begins_with(path, &PROGRAM_STREAM)
                    || clock.is_some_and(ProgramClock::is_slowed)
                {
                    (Way::All, Duration::ZERO)
                } else if transport.is_some() {
                    (Way::FromBefore, Duration::ZERO)
                } else {
                    (Way::ToTheRange, Duration::ZERO)
                };
                Kind::Other(Other {
                    is_program_stream: begins_with(path, &PROGRAM_STREAM),
                    begin: Arc::new(begin.map(OnceLock::from).unwrap_or_default()),
                    room,
                    way,
                    transport,
                    is_edited,
                })
            }
        };
        let timeline = Self {
            kind,
            range,
            armed: Arc::default(),
        };
        let in_one_go = !timeline.has_range() || timeline.reads_all();
        timeline.armed.store(in_one_go, Ordering::SeqCst);
        timeline
    }

    /// Creates the timeline of `job`'s input.
    pub(super) fn of(job: &FileJob) -> Self {
        let nanos = |pts: vitscope_core::frame::Pts| Duration::from_nanos(pts.0);
        let range = (nanos(job.start.unwrap_or_default()), job.end.map(nanos));
        Self::new(&job.input, range)
    }

    /// Prepares the elements that read and demux the file.
    pub(super) fn prepare(&self, filesrc: &gst::Element, parsebin: &gst::Element) {
        match &self.kind {
            Kind::Movie(movie) => edits::hide(movie, filesrc),
            Kind::Other(Other {
                transport: Some(opening),
                ..
            }) => {
                opening.show(filesrc);
                let clock = opening.clock();
                let earliest =
                    clock.map(|clock| clock.begin.saturating_sub(clock.longest_run_in()));
                adapt_demuxer(parsebin, earliest);
            }
            Kind::Matroska(..) | Kind::Other(_) => (),
        }
    }

    /// Duration of the presentation according to the header; `None` where the demuxer knows better.
    pub(super) fn claimed(&self) -> Option<Duration> {
        let Kind::Movie(movie) = &self.kind else {
            return None;
        };
        if movie.fragmented {
            return None;
        }
        Some(duration_from_ticks(movie.duration?.value, movie.timescale))
    }

    /// True if a fragmented file is read from its beginning up to the range because it has no index of times.
    pub(super) fn is_fragmented(&self) -> bool {
        matches!(&self.kind, Kind::Movie(movie) if movie.fragmented)
    }

    /// True if the file does not state its duration.
    pub(super) fn is_endless(&self) -> bool {
        match &self.kind {
            Kind::Movie(movie) => movie.fragmented,
            Kind::Matroska(_, opening) => !opening.has_duration,
            Kind::Other(other) => other.clock().is_some_and(ProgramClock::is_slowed),
        }
    }

    /// True if this is a transport stream.
    pub(super) fn is_transport_stream(&self) -> bool {
        matches!(&self.kind, Kind::Other(other) if other.transport.is_some())
    }

    /// True if an mp4's edits repeat parts, go back or change the speed.
    pub(super) fn is_edited(&self) -> bool {
        matches!(&self.kind, Kind::Other(other) if other.is_edited)
    }

    /// True if the file is read from its beginning, whatever the requested range.
    pub(super) fn reads_all(&self) -> bool {
        match &self.kind {
            Kind::Movie(movie) => movie.fragmented,
            // matroskademux seeks to the first video frame, past audio that comes before it.
            Kind::Matroska(begin, opening) => {
                let range_begin = Duration::from(*begin) + self.range.0;
                let mut firsts = opening.tracks.iter().filter_map(|track| track.first);
                !opening.has_cues
                    || match self.begins_late() {
                        true => firsts.any(|first| first > range_begin),
                        false => opening.begins_before_video(),
                    }
            }
            Kind::Other(other) => other.way == Way::All,
        }
    }

    /// True if the range begins after the presentation does.
    pub(super) fn begins_late(&self) -> bool {
        self.range.0 > Duration::ZERO
    }

    /// True unless the whole presentation is requested.
    pub(super) fn has_range(&self) -> bool {
        self.range != (Duration::ZERO, None)
    }

    /// Returns the event that makes the demuxer seek to the range, if there is one. The data that follows the seek is
    /// the range.
    pub(super) fn seek(&self) -> Option<gst::Event> {
        if !self.has_range() || self.reads_all() {
            return None;
        }
        self.armed.store(true, Ordering::SeqCst);
        let (start, stop) = self.demuxer_range();
        let stop = stop.and_then(|stop| gst::ClockTime::try_from(stop).ok());
        let stop_type = match stop {
            Some(_) => gst::SeekType::Set,
            None => gst::SeekType::None,
        };
        Some(gst::event::Seek::new(
            1.0,
            gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE,
            gst::SeekType::Set,
            gst::ClockTime::try_from(start).unwrap_or_default(),
            stop_type,
            stop,
        ))
    }

    /// Length of the range, if it has an end; a Matroska file is read for longer.
    fn range_len(&self) -> Option<gst::ClockTime> {
        let (start, end) = self.range;
        gst::ClockTime::try_from(end?.saturating_sub(start)).ok()
    }

    /// Range in the demuxer's own times, with room for the beginning of each stream.
    fn demuxer_range(&self) -> (Duration, Option<Duration>) {
        let (start, end) = self.range;
        let movie = match &self.kind {
            Kind::Movie(movie) => movie,
            // Frames are stored before they are shown. matroskademux 1.22 counts from the first block, which is not
            // where the presentation begins.
            Kind::Matroska(begin, opening) => {
                let counted =
                    |time| (Duration::from(*begin) + time).saturating_sub(opening.first());
                // A packet of sound that the range begins in may be stored before the first frame of the range.
                let from = counted(start.saturating_sub(BEFORE));
                return (from, end.map(|end| counted(end) + REORDERING));
            }
            Kind::Other(other) => {
                let begin: Duration = other.begin.get().copied().unwrap_or_default().into();
                let start = match other.way {
                    Way::ToTheRange => start,
                    Way::FromBefore => start.saturating_sub(BEFORE),
                    Way::FromTheBeginning | Way::All => Duration::ZERO,
                };
                return (start + begin, end.map(|end| end + begin + other.room));
            }
        };
        let windows = || {
            movie.tracks.iter().filter_map(|track| {
                let window = self.window(track)?;
                let splice = track.splice();
                let source_of = |time| match &splice {
                    Some(splice) => splice.source_of(time),
                    None => time,
                };
                Some((source_of(window.start), window.stop.map(source_of)))
            })
        };
        // From the beginning on, hidden audio is read too, as it is without a range: the result hides it again.
        let first = match self.begins_late() {
            true => windows().map(|(start, _)| start).min().unwrap_or(start),
            false => Duration::ZERO,
        };
        let last = windows().filter_map(|(_, stop)| stop).max();
        // Frames are stored before they are shown, and those before a key frame in time may be stored behind it:
        // qtdemux 1.22 begins with the key frame that is stored before the start.
        (
            first.saturating_sub(REORDERING),
            end.and(last).map(|last| last + REORDERING),
        )
    }

    /// Ensures that the video or audio stored at `stored` and decoded at `decoded` has the correct segment.
    pub(super) fn apply_to_decoded(&self, stored: &gst::Pad, decoded: &gst::Pad) {
        let splice = self.track_of(stored).and_then(Track::splice);
        let (Some(splice), Some(window)) = (splice, self.window_of(stored)) else {
            return self.apply(stored, Duration::ZERO);
        };
        // A decoder needs what is left out, and would drop frames by the wrong times.
        replace_segment(stored, |_| Some(Segment::new()));
        splice.install(decoded);
        clip(decoded, window);
        replace_segment(decoded, move |_| Some(window.segment(Duration::ZERO)));
    }

    /// True if the video of `pad` is assembled from several parts.
    pub(super) fn is_spliced(&self, pad: &gst::Pad) -> bool {
        self.track_of(pad).and_then(Track::splice).is_some()
    }

    /// Ensures that the stream of `pad` has the correct segment.
    ///
    /// The segment begins earlier by `lead`, so all its running times are later by `lead`: parsers drop data before a
    /// segment, and running times cannot be negative.
    pub(super) fn apply(&self, pad: &gst::Pad, lead: Duration) {
        if let Kind::Matroska(_, opening) = &self.kind {
            complete_times(pad, opening.first());
        }
        let armed = Arc::clone(&self.armed);
        let replace: Replace = match &self.kind {
            Kind::Movie(_) => {
                let Some(window) = self.window_of(pad) else {
                    return;
                };
                if let Some(splice) = self.track_of(pad).and_then(Track::splice) {
                    splice.install(pad);
                }
                Box::new(move |_| Some(window.segment(lead)))
            }
            Kind::Matroska(begin, _) if self.begins_late() && self.reads_all() => {
                self.complete_laces_of(pad);
                let (begin, range) = (*begin, self.range);
                Box::new(move |_| {
                    let mut all = Segment::new();
                    all.set_start(begin);
                    all.set_time(begin);
                    Some(part_of(&all, begin, range)?.segment(Duration::ZERO))
                })
            }
            Kind::Matroska(begin, _) => {
                let lead = gst::ClockTime::try_from(lead).unwrap_or_default();
                if let Some(track) = self.matroska_track(pad).filter(|_| !lead.is_zero()) {
                    undo_delay(pad, lead, track.first.unwrap_or_default());
                }
                self.complete_laces_of(pad);
                let start = *begin + gst::ClockTime::try_from(self.range.0).unwrap_or_default();
                let range_len = self.range_len();
                Box::new(move |old| {
                    let mut new = old.clone();
                    new.set_start(start);
                    let stop = new.start().zip(range_len).map(|(start, len)| start + len);
                    new.set_stop(stop.or(old.stop()).map(|stop| stop + lead));
                    Some(new)
                })
            }
            Kind::Other(other) => {
                let range = self.range;
                if other.clock().is_some() {
                    let begin = other.begin.get().copied().unwrap_or_default();
                    // Without a parser, parsebin passes on the demuxer's own segment.
                    Box::new(move |old| {
                        let window = part_of(&begun_at(old, begin)?, begin, range)?;
                        Some(window.segment(lead))
                    })
                } else {
                    let begin = Arc::clone(&other.begin);
                    let of_first = Arc::clone(&begin);
                    replace_segment(pad, move |first| {
                        of_first.get_or_init(|| first.time().unwrap_or_default());
                        None
                    });
                    if other.way == Way::ToTheRange || !self.has_range() {
                        return;
                    }
                    Box::new(move |old| {
                        let begin = begin.get().copied().unwrap_or_default();
                        Some(part_of(old, begin, range)?.segment(Duration::ZERO))
                    })
                }
            }
        };
        replace_segment(pad, move |old| {
            if armed.load(Ordering::SeqCst) {
                replace(old)
            } else {
                None
            }
        });
    }

    /// Sets timestamps on the packets of `pad` that share a block with others.
    fn complete_laces_of(&self, pad: &gst::Pad) {
        let laced = self.matroska_track(pad).and_then(|track| track.laced);
        if let Some(length) = laced.and_then(|laced| gst::ClockTime::try_from(laced).ok()) {
            complete_laces(pad, length);
        }
    }

    /// False if a parser removes the timestamps of packets of `caps`, which then cannot be copied: dcaparse 1.22 does
    /// so in program streams.
    pub(super) fn keeps_times(&self, caps: &gst::Caps) -> bool {
        match &self.kind {
            Kind::Other(other) => {
                !(other.is_program_stream && elements::may_be(caps, "audio/x-dts"))
            }
            _ => true,
        }
    }

    /// Drops packets from `pad` that are read only to probe the file, up to the flush of the seek. A flush does not
    /// clear the packets that encoders retain, which would come out as more pre-roll.
    pub(super) fn keep_back(&self, pad: &gst::Pad) {
        if self.armed.load(Ordering::SeqCst) {
            return;
        }
        let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_FLUSH;
        pad.add_probe(kinds, |_, info| match info.event() {
            None => {
                drop(info.take_buffer());
                gst::PadProbeReturn::Handled
            }
            Some(event) if event.type_() == gst::EventType::FlushStop => {
                gst::PadProbeReturn::Remove
            }
            Some(_) => gst::PadProbeReturn::Ok,
        });
    }

    /// Window of the stream behind `pad`; `None` if the demuxer is trusted.
    fn window_of(&self, pad: &gst::Pad) -> Option<Window> {
        self.window(self.track_of(pad)?)
    }

    /// Time by which the audio of `pad` must begin before its window, so that no parser drops its pre-roll on the way
    /// into `container`.
    pub(super) fn lead_of(&self, pad: &gst::Pad, container: Container) -> Duration {
        if self.begins_late() {
            return Duration::ZERO;
        }
        match &self.kind {
            // The muxer writes the codec delay that the demuxer reported.
            Kind::Matroska(..) if container.is_matroska() => Duration::ZERO,
            Kind::Matroska(..) => self
                .matroska_track(pad)
                .map_or(Duration::ZERO, |track| track.codec_delay),
            Kind::Movie(_) => self
                .window_of(pad)
                .map_or(Duration::ZERO, |window| window.start),
            Kind::Other(other) => other
                .clock()
                .map_or(Duration::ZERO, ProgramClock::longest_run_in),
        }
    }

    /// Number of the track behind `pad`, by which a file's tracks are ordered.
    pub(super) fn number_of(&self, pad: &gst::Pad) -> Option<u64> {
        let radix = match &self.kind {
            Kind::Movie(_) | Kind::Matroska(..) => 10,
            Kind::Other(_) => 16,
        };
        track_number(pad, radix)
    }

    /// Time before zero at which the audio of `pad` with this `lead` begins, if the header states it.
    pub(super) fn run_in_of(&self, pad: &gst::Pad, lead: Duration) -> Option<Duration> {
        if self.begins_late() {
            return Some(Duration::ZERO);
        }
        match &self.kind {
            Kind::Movie(_) => {
                let track = self.track_of(pad)?;
                let edit = track.edit?;
                // Without edit lists, nothing comes before the beginning.
                Some(track.begin(&edit).saturating_sub(edit.delay))
            }
            Kind::Matroska(..) => {
                let track = self.matroska_track(pad);
                let first = track.and_then(|track| track.first).unwrap_or_default();
                Some(lead.saturating_sub(first))
            }
            Kind::Other(other) => {
                let clock = other.clock()?;
                let pid = u16::try_from(track_number(pad, 16)?).ok()?;
                Some(clock.run_in_of(pid))
            }
        }
    }

    /// Time from the beginning of the range at which, according to the header, the last sample of `pad` is no longer
    /// shown; `None` if the header does not state it.
    pub(super) fn end_of(&self, pad: &gst::Pad) -> Option<Duration> {
        let track = self.track_of(pad).filter(|_| !self.is_fragmented())?;
        let window = self.window(track)?;
        let end = match track.splice() {
            Some(_) => window.stop?,
            None => track.end()?,
        };
        let end = window.stop.map_or(end, |stop| stop.min(end));
        Some(window.base + end.checked_sub(window.start)?)
    }

    /// Frame rate of `pad`, if the header states it; the demuxer derives it from a duration that is patched.
    pub(super) fn framerate_of(&self, pad: &gst::Pad) -> Option<gst::Fraction> {
        let (numer, denom) = self.track_of(pad)?.framerate?;
        let (numer, denom) = (i32::try_from(numer).ok()?, i32::try_from(denom).ok()?);
        Some(gst::Fraction::new(numer, denom))
    }

    /// Length of all samples of `pad`, if the header states it.
    pub(super) fn packet_len_of(&self, pad: &gst::Pad) -> Option<Duration> {
        let (timescale, len) = self.track_of(pad)?.framerate?;
        Some(duration_from_ticks(len.into(), timescale))
    }

    /// True if the header states that the colors of `pad` span 0–255 (full range), which the demuxer does not pass on.
    pub(super) fn full_range_of(&self, pad: &gst::Pad) -> bool {
        self.track_of(pad).is_some_and(|track| track.full_range)
    }

    /// True if the header states that the samples of `pad` are little-endian.
    pub(super) fn is_little_endian(&self, pad: &gst::Pad) -> bool {
        self.track_of(pad).is_some_and(|track| track.little_endian)
    }

    /// True if the header states that the video of `pad` is mirrored along the diagonal from the upper right.
    pub(super) fn is_anti_transposed(&self, pad: &gst::Pad) -> bool {
        self.track_of(pad)
            .is_some_and(|track| track.anti_transposed)
    }

    fn track_of(&self, pad: &gst::Pad) -> Option<&Track> {
        let Kind::Movie(movie) = &self.kind else {
            return None;
        };
        let id = track_number(pad, 10)?;
        movie.tracks.iter().find(|track| u64::from(track.id) == id)
    }

    fn matroska_track(&self, pad: &gst::Pad) -> Option<&matroska::Track> {
        let Kind::Matroska(_, opening) = &self.kind else {
            return None;
        };
        let number = track_number(pad, 10)?;
        let mut tracks = opening.tracks.iter();
        tracks.find(|track| track.number == number)
    }

    fn window(&self, track: &Track) -> Option<Window> {
        let edit = track.edit?;
        let Kind::Movie(movie) = &self.kind else {
            return None;
        };
        let begin = track.begin(&edit) + movie.begin;
        let (start, end) = self.range;
        let stop = edit.shown.map(|shown| begin + shown);
        let range_stop = end.map(|end| (begin + end).saturating_sub(edit.delay));
        Some(Window {
            start: begin + start.saturating_sub(edit.delay),
            stop: match (stop, range_stop) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
            base: edit.delay.saturating_sub(start),
        })
    }
}

impl Window {
    fn segment(self, lead: Duration) -> Segment {
        let time = |time: Duration| gst::ClockTime::try_from(time).ok();
        let mut segment = Segment::new();
        segment.set_start(time(self.start.saturating_sub(lead)));
        segment.set_stop(self.stop.and_then(time));
        segment.set_base(time(self.base));
        segment.set_time(time(self.base));
        segment.set_position(time(self.start.saturating_sub(lead)));
        segment
    }
}

/// Part of a stream that `range` shows of a presentation beginning at `begin` in the demuxer's time.
fn part_of(
    whole: &Segment,
    begin: gst::ClockTime,
    (from, to): (Duration, Option<Duration>),
) -> Option<Window> {
    let own = Duration::from(whole.start()?);
    let (time, begin) = (Duration::from(whole.time()?), Duration::from(begin));
    let from = begin + from;
    let (late, skipped) = (time.saturating_sub(from), from.saturating_sub(time));
    Some(Window {
        start: own + skipped,
        stop: to.map(|to| own + (begin + to).saturating_sub(time)),
        base: late,
    })
}

/// Drops the frames or samples of `pad` outside `window`.
fn clip(pad: &gst::Pad, window: Window) {
    let segment = window.segment(Duration::ZERO);
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let format = pad.current_caps().and_then(|caps| audio::plain(&caps));
        if let Some((rate, frame_len)) = format
            && let Some(buffer) = info.take_buffer()
        {
            let Some(part) = audio::clipped(buffer, &segment, rate, frame_len) else {
                return gst::PadProbeReturn::Handled;
            };
            info.data = Some(gst::PadProbeData::Buffer(part));
            return gst::PadProbeReturn::Ok;
        }
        let Some(gst::PadProbeData::Buffer(buffer)) = &mut info.data else {
            return gst::PadProbeReturn::Ok;
        };
        let Some(pts) = buffer.pts().map(Duration::from) else {
            return gst::PadProbeReturn::Ok;
        };
        let end = pts + buffer.duration().map_or(Duration::ZERO, Duration::from);
        let is_over = window.stop.is_some_and(|stop| pts >= stop);
        if is_over || pts < window.start && end <= window.start {
            drop(info.take_buffer());
            return gst::PadProbeReturn::Handled;
        }
        if pts < window.start {
            let buffer = buffer.make_mut();
            buffer.set_pts(gst::ClockTime::try_from(window.start).ok());
            buffer.set_duration(gst::ClockTime::try_from(end - window.start).ok());
        }
        gst::PadProbeReturn::Ok
    });
}

/// Corrects what `parsebin`'s demuxer of transport streams passes to parsers.
///
/// All streams begin no later than at `earliest`: tsdemux begins with the first packet that it meets, and parsers drop
/// packets that follow it but are presented earlier.
fn adapt_demuxer(parsebin: &gst::Element, earliest: Option<Duration>) {
    let Some(bin) = parsebin.downcast_ref::<gst::Bin>() else {
        return;
    };
    let earliest = earliest.and_then(|earliest| gst::ClockTime::try_from(earliest).ok());
    parsebin.connect("autoplug-continue", false, |values| {
        let caps = values.get(2)?.get::<gst::Caps>().ok()?;
        // LOAS frames are complete: see [`loas`].
        Some((!loas::is_loas(&caps)).to_value())
    });
    bin.connect_element_added(move |_, element| {
        if elements::factory_name(element) != "tsdemux" {
            return;
        }
        element.connect_pad_added(move |_, pad| {
            transport::split_lists(pad);
            transport::await_time(pad);
            transport::strip_trailing_zeros(pad);
            loas::split(pad);
            if let Some(earliest) = earliest {
                replace_segment(pad, move |old| begun_at(old, earliest));
            }
        });
    });
}

/// Extends the segment of a transport stream's demuxer so that it covers everything presented from `begin` on.
fn begun_at(old: &Segment, begin: gst::ClockTime) -> Option<Segment> {
    let start = old.start()?.min(begin);
    let mut new = old.clone();
    new.set_start(start);
    // After a seek, the segment's time differs from the time that the demuxer counts.
    new.set_time(start);
    Some(new)
}

/// Number of the track behind `pad`: the demuxer appends it to the stream ID after a slash, with `radix` 16 in tsdemux.
fn track_number(pad: &gst::Pad, radix: u32) -> Option<u64> {
    let stream_id = pad.stream_id()?;
    // In Matroska another number follows it.
    let number = stream_id.rsplit('/').next()?.split(':').next()?;
    u64::from_str_radix(number, radix).ok()
}

/// Sets timestamps on packets that share a block with others: the demuxer knows only that of the first.
///
/// Packets are `length` long unless their length is known; Vorbis packets differ in length.
fn complete_laces(pad: &gst::Pad, length: gst::ClockTime) {
    let next = Mutex::new((None::<gst::ClockTime>, None::<vorbis::Lengths>));
    let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
    pad.add_probe(kinds, move |_, info| {
        let mut next = lock(&next);
        let (next, lengths) = &mut *next;
        if let Some(event) = info.event() {
            if let gst::EventView::Caps(caps) = event.view() {
                *lengths = vorbis::Lengths::of_caps(caps.caps());
            }
            return gst::PadProbeReturn::Ok;
        }
        let Some(buffer) = info.buffer_mut() else {
            return gst::PadProbeReturn::Ok;
        };
        if buffer.flags().contains(gst::BufferFlags::HEADER) {
            return gst::PadProbeReturn::Ok;
        }
        let told = lengths.as_mut().and_then(|lengths| {
            let packet = buffer.map_readable().ok()?;
            gst::ClockTime::try_from(lengths.next(&packet)?).ok()
        });
        let length = told.or(buffer.duration()).unwrap_or(length);
        if let Some(pts) = buffer.pts().or(*next) {
            *next = Some(pts + length);
            let buffer = buffer.make_mut();
            buffer.set_pts(pts);
            buffer.set_duration(length);
        }
        gst::PadProbeReturn::Ok
    });
}

/// Video without frames that are stored before they are shown, in the names of its caps.
const IN_ORDER: [&str; 6] = [
    "image/jpeg",
    "image/png",
    "video/x-cineform",
    "video/x-dv",
    "video/x-huffyuv",
    PRORES,
];
const PRORES: &str = "video/x-prores";

/// Sets timestamps on packets of video that matroskademux 1.22 hands out without: those of ProRes, and those of other
/// codecs in a mapping of AVI, which get only a decoding time. Decoders would number such frames by the frame rate.
///
/// The demuxer knows the time of the current packet as its position, counted from the file's first block at `first`.
fn complete_times(pad: &gst::Pad, first: Duration) {
    let first = gst::ClockTime::try_from(first).unwrap_or_default();
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let Some(buffer) = info.buffer_mut().filter(|buffer| buffer.pts().is_none()) else {
            return gst::PadProbeReturn::Ok;
        };
        let caps = pad.current_caps();
        let name = caps
            .as_ref()
            .and_then(|caps| Some(caps.structure(0)?.name()));
        let time = match name.map(|name| name.as_str()) {
            Some(PRORES) => pad
                .query_position::<gst::ClockTime>()
                .map(|position| position + first),
            Some(name) if IN_ORDER.contains(&name) => buffer.dts(),
            _ => None,
        };
        if time.is_some() {
            buffer.make_mut().set_pts(time);
        }
        gst::PadProbeReturn::Ok
    });
}

/// Restores the packet timestamps of the blocks, from which the demuxer has subtracted the codec's `delay`.
///
/// The demuxer moves packets that would begin before zero to zero; the first packet begins at `first`.
fn undo_delay(pad: &gst::Pad, delay: gst::ClockTime, first: Duration) {
    let first = gst::ClockTime::try_from(first).unwrap_or_default();
    let begun = AtomicBool::new(false);
    let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_FLUSH;
    pad.add_probe(kinds, move |_, info| {
        let Some(buffer) = info.buffer_mut() else {
            begun.store(false, Ordering::SeqCst);
            return gst::PadProbeReturn::Ok;
        };
        let begun = begun.swap(true, Ordering::SeqCst);
        let told = match buffer.pts() {
            Some(gst::ClockTime::ZERO) if !begun && first < delay => Some(first),
            // Part of the pre-roll: the parser completes its timestamps.
            Some(gst::ClockTime::ZERO) if begun => None,
            pts => pts.map(|pts| pts + delay),
        };
        buffer.make_mut().set_pts(told);
        gst::PadProbeReturn::Ok
    });
}

/// Subtracts `lead` from the running times of `pad`, and adds `delay`.
///
/// Drops data that begins more than `early` before zero.
pub(super) fn shift(pad: &gst::Pad, lead: Duration, delay: Duration, early: Duration) {
    replace_segment(pad, move |old| {
        let time = |time: Duration| gst::ClockTime::try_from(time).ok();
        let start = old.start()? + time(lead)?;
        let early = early.min(delay).min(start.into());
        let mut new = old.clone();
        new.set_start(start - time(early)?);
        new.set_base(old.base()? + time(delay - early)?);
        Some(new)
    });
}

/// Extends the end of the segment of `pad` by `priming`: an encoder delays its input by that much.
pub(super) fn end_later(pad: &gst::Pad, priming: Duration) {
    replace_segment(pad, move |old| {
        let mut new = old.clone();
        new.set_stop(old.stop()? + gst::ClockTime::try_from(priming).ok()?);
        Some(new)
    });
}

/// Hides the segment of `stored` from the decoder, which would drop frames by it, and restores it on the output at
/// `decoded`. Returns the cell that holds the newest segment.
pub(super) fn hide_segment(stored: &gst::Pad, decoded: &gst::Pad) -> Arc<Mutex<Option<Segment>>> {
    let hidden = Arc::new(Mutex::new(None));
    let told = Arc::clone(&hidden);
    replace_segment(stored, move |segment| {
        *lock(&told) = Some(segment.clone());
        Some(Segment::new())
    });
    let wanted = Arc::clone(&hidden);
    replace_segment(decoded, move |_| lock(&wanted).clone());
    hidden
}

/// Replaces each segment of `pad` by the result of `replace`, unless it is `None`.
fn replace_segment(
    pad: &gst::Pad,
    replace: impl Fn(&Segment) -> Option<Segment> + Send + Sync + 'static,
) {
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if let Some(event) = info.event()
            && let gst::EventView::Segment(old) = event.view()
            && let Some(old) = old.segment().downcast_ref::<gst::ClockTime>()
            && let Some(new) = replace(old)
        {
            let new = gst::event::Segment::builder(&new)
                .seqnum(event.seqnum())
                .build();
            info.data = Some(gst::PadProbeData::Event(new));
        }
        gst::PadProbeReturn::Ok
    });
}

/// True if the first bytes of `path` are `magic`.
pub(super) fn begins_with(path: &Path, magic: &[u8; 4]) -> bool {
    let mut head = [0_u8; 4];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut head))
        .is_ok_and(|()| &head == magic)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::OnceLock;

    use proptest::prelude::*;

    use super::super::mp4;
    use super::*;

    /// One second of video and audio in each container whose tables are parsed before GStreamer sees the file.
    fn small_files() -> &'static [Vec<u8>] {
        static FILES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
        FILES.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let made = [
                ("a.mp4", "-c:a aac"),
                ("b.mp4", "-c:a aac -movflags frag_keyframe+empty_moov"),
                ("c.mov", "-c:a pcm_s16le"),
                ("d.mkv", "-c:a libopus"),
                ("e.ts", "-c:a dca -strict -2"),
                ("f.m2ts", "-c:a dca -strict -2"),
                ("g.avi", "-c:a mp2"),
            ];
            let read = made.map(|(name, sound)| {
                let path = folder.path().join(name);
                let input = "-f lavfi -i testsrc2=size=32x32:rate=25:duration=1 \
                             -f lavfi -i sine=duration=1:sample_rate=48000";
                let made = Command::new("ffmpeg")
                    .args(["-v", "error", "-nostdin"])
                    .args(input.split_whitespace())
                    .args(["-c:v", "libx264", "-pix_fmt", "yuv420p"])
                    .args(sound.split_whitespace())
                    .arg(&path)
                    .status();
                assert!(made.unwrap().success(), "{name}");
                std::fs::read(path).unwrap()
            });
            read.to_vec()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Parsing before GStreamer is involved always terminates, whatever the file contains.
        #[test]
        fn damaged_files_are_read_or_left_alone(
            file_idx in 0_usize..7,
            cut in 0.0..1.2_f64,
            flips in prop::collection::vec((0.0..1.0_f64, any::<u8>()), 0..12),
            start_secs in 0.0..2.0_f64,
        ) {
            gst::init().unwrap();
            let mut bytes = small_files()[file_idx].clone();
            for (place, value) in flips {
                let at = (place * bytes.len() as f64) as usize;
                bytes[at] = value;
            }
            bytes.truncate((cut * bytes.len() as f64) as usize);
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &bytes).unwrap();
            mp4::is_cut_off(file.path());
            matroska::beside(file.path());
            matroska::direction(file.path());
            let timeline = Timeline::new(file.path(), (Duration::from_secs_f64(start_secs), None));
            timeline.claimed();
            timeline.begins_late();
            timeline.seek();
            let filesrc = elements::make("filesrc").unwrap();
            filesrc.set_property("location", file.path());
            timeline.prepare(&filesrc, &elements::make("parsebin").unwrap());
            // A reader gets as many bytes as the file has.
            let pad = filesrc.static_pad("src").unwrap();
            filesrc.set_state(gst::State::Ready).unwrap();
            pad.activate_mode(gst::PadMode::Pull, true).unwrap();
            let mut n_read = 0;
            while let Ok(buffer) = pad.range(n_read as u64, 1000) {
                n_read += buffer.size();
            }
            filesrc.set_state(gst::State::Null).unwrap();
            prop_assert_eq!(n_read, bytes.len());
        }
    }
}
