//! Concatenation of the parts of a track that an edit list shows one after the other.
//!
//! GStreamer's qtdemux 1.22 follows several edits from keyframe to keyframe, and loses the frames in between. It is
//! therefore shown the whole track, and its output is dropped or moved according to the list: after the decoder if there
//! is one, and to the sample if the audio is uncompressed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_audio as gst_audio;

use super::audio;
use super::mp4::{duration_from_ticks, ticks_from_duration};

/// A part of a track, in the samples' own time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) start: Duration,
    pub(super) stop: Duration,
    /// Start time of the part if only the first part were moved to its place.
    pub(super) place: Duration,
}

/// Parts in storage order, which is also the presentation order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Splice(Vec<Part>);

impl Splice {
    /// Returns `None` unless there are several parts, in that order.
    pub(super) fn new(parts: Vec<Part>) -> Option<Self> {
        let in_order = parts
            .windows(2)
            .all(|pair| pair[0].stop <= pair[1].start && pair[0].start < pair[0].stop);
        (parts.len() > 1 && in_order).then_some(Self(parts))
    }

    /// Returns the end of the last part.
    pub(super) fn stop(&self) -> Duration {
        self.0.last().map_or(Duration::ZERO, |part| part.stop)
    }

    /// Returns the same parts with all of their own times delayed by `shift`.
    pub(super) fn later_by(&self, shift: Duration) -> Self {
        let later = |part: &Part| Part {
            start: part.start + shift,
            stop: part.stop + shift,
            place: part.place + shift,
        };
        Self(self.0.iter().map(later).collect())
    }

    /// Returns the new time and length of a sample that begins at `time` and lasts for `length`; `None` if it is
    /// dropped.
    ///
    /// Samples before the first part are a pre-roll, and a sample cut by a part keeps the rest.
    pub(super) fn placed(&self, time: Duration, length: Duration) -> Option<(Duration, Duration)> {
        let first = self.0.first()?;
        if time < first.start {
            return Some((time, length));
        }
        let end = time + length;
        // A sample without a length belongs to the part that it lies in.
        let part = self
            .0
            .iter()
            .find(|part| time < part.stop && (end > part.start || time >= part.start))?;
        let shown = time.max(part.start);
        Some((
            part.place + (shown - part.start),
            end.min(part.stop).saturating_sub(shown),
        ))
    }

    /// Returns the own time of the sample placed at `placed`.
    pub(super) fn source_of(&self, placed: Duration) -> Duration {
        let part = self.0.iter().rev().find(|part| part.place <= placed);
        part.map_or(placed, |part| {
            (part.start + (placed - part.place)).min(part.stop)
        })
    }

    /// Returns the pieces of a sample that begins at `time` and lasts for `length`: where each begins and ends, and its
    /// new time.
    fn pieces(&self, time: Duration, length: Duration) -> Vec<Part> {
        let run_in = self.0.first().map(|first| Part {
            start: Duration::ZERO,
            stop: first.start,
            place: Duration::ZERO,
        });
        let parts = run_in.iter().chain(&self.0);
        let pieces = parts.filter_map(|part| {
            let start = part.start.max(time);
            let stop = part.stop.min(time + length);
            let place = part.place + (start - part.start);
            (start < stop).then_some(Part { start, stop, place })
        });
        pieces.collect()
    }

    /// Returns the pieces of `buffer`, which holds audio of `rate` samples per second and `frame_len` bytes per sample of
    /// all channels.
    fn cut(&self, buffer: &gst::Buffer, rate: u32, frame_len: u32) -> Vec<gst::Buffer> {
        let (Some(pts), frame_len) = (buffer.pts(), frame_len.max(1)) else {
            return vec![buffer.clone()];
        };
        let time = Duration::from(pts);
        let length = duration_from_ticks(buffer.size() as u64 / u64::from(frame_len), rate);
        let pieces = self.pieces(time, length).into_iter();
        let n_samples = |length: Duration| ticks_from_duration(length, rate) as usize;
        let cut = pieces.filter_map(|piece| {
            let skipped = n_samples(piece.start - time);
            let n_left = n_samples(piece.stop - time) - skipped;
            if n_left == 0 {
                return None;
            }
            let whole = buffer.clone();
            let mut cut = gst_audio::audio_buffer_truncate(whole, frame_len, skipped, Some(n_left));
            let length = duration_from_ticks(n_left as u64, rate);
            let buffer = cut.make_mut();
            buffer.set_pts(gst::ClockTime::try_from(piece.place).ok());
            buffer.set_dts(gst::ClockTime::NONE);
            buffer.set_duration(gst::ClockTime::try_from(length).ok());
            Some(cut)
        });
        cut.collect()
    }

    /// Drops, moves or cuts the buffers of `pad`, which are in their own time.
    pub(super) fn install(self, pad: &gst::Pad) {
        let is_passing = AtomicBool::new(false);
        pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            if is_passing.load(Ordering::SeqCst) {
                return gst::PadProbeReturn::Ok;
            }
            let format = pad.current_caps().and_then(|caps| audio::plain(&caps));
            if let Some((rate, frame_len)) = format
                && let Some(buffer) = info.take_buffer()
            {
                let mut pieces = self.cut(&buffer, rate, frame_len);
                let last = pieces.pop();
                is_passing.store(true, Ordering::SeqCst);
                for piece in pieces {
                    // A pad that refuses this piece also refuses the last one, and reports that itself.
                    let _ = match pad.direction() {
                        gst::PadDirection::Src => pad.push(piece),
                        _ => pad.chain(piece),
                    };
                }
                is_passing.store(false, Ordering::SeqCst);
                let Some(last) = last else {
                    return gst::PadProbeReturn::Handled;
                };
                info.data = Some(gst::PadProbeData::Buffer(last));
                return gst::PadProbeReturn::Ok;
            }
            let Some(gst::PadProbeData::Buffer(buffer)) = &mut info.data else {
                return gst::PadProbeReturn::Ok;
            };
            let Some(pts) = buffer.pts() else {
                return gst::PadProbeReturn::Ok;
            };
            let length = buffer.duration().map_or(Duration::ZERO, Duration::from);
            let Some((time, length)) = self.placed(pts.into(), length) else {
                drop(info.take_buffer());
                return gst::PadProbeReturn::Handled;
            };
            let buffer = buffer.make_mut();
            buffer.set_pts(gst::ClockTime::try_from(time).ok());
            buffer.set_dts(gst::ClockTime::NONE);
            if buffer.duration().is_some() {
                buffer.set_duration(gst::ClockTime::try_from(length).ok());
            }
            gst::PadProbeReturn::Ok
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn splice() -> Splice {
        let part = |start, stop, place| Part {
            start: millis(start),
            stop: millis(stop),
            place: millis(place),
        };
        // One second, three seconds left out, two seconds after a pause of half a second.
        Splice::new(vec![part(100, 1100, 100), part(4000, 6000, 1600)]).unwrap()
    }

    #[test]
    fn samples_come_where_their_part_does() {
        let check = |time, expected: Option<(u64, u64)>| {
            let placed = splice().placed(millis(time), millis(40));
            let expected = expected.map(|(time, length)| (millis(time), millis(length)));
            assert_eq!(placed, expected, "{time}");
        };
        check(0, Some((0, 40)));
        check(100, Some((100, 40)));
        check(1080, Some((1080, 20)));
        check(1100, None);
        check(3960, None);
        check(3980, Some((1600, 20)));
        check(4000, Some((1600, 40)));
        check(5990, Some((3590, 10)));
        check(6000, None);
    }

    #[test]
    fn parts_that_repeat_or_go_back_are_no_splice() {
        let part = |start, stop, place| Part {
            start: millis(start),
            stop: millis(stop),
            place: millis(place),
        };
        assert!(Splice::new(vec![part(0, 10, 0)]).is_none());
        assert!(Splice::new(vec![part(0, 10, 0), part(5, 15, 10)]).is_none());
        assert!(Splice::new(vec![part(20, 30, 20), part(0, 10, 30)]).is_none());
    }

    proptest! {
        #[test]
        fn the_source_of_a_place_comes_there(time in 100_u64..6000) {
            if let Some((placed, _)) = splice().placed(millis(time), Duration::ZERO) {
                prop_assert_eq!(splice().source_of(placed), millis(time));
            }
        }
    }
}
