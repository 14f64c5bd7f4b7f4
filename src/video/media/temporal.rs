//! Timestamps of frames for which the container states only some of them, or only the storage order.
//!
//! A PES packet of a program stream holds as many frames as fit and states the time of the first. Decoders guess the
//! other times, and guess wrong if frames are stored in another order than they are shown. But each frame states its
//! position in its group (ISO/IEC 13818-2, 6.3.9).
//!
//! Decoders of frames drawn over the previous one (QuickTime RLE, Cinepak) repeat the first one's timestamp.
//!
//! An AVI file has a time slot for each stored frame, but no presentation timestamps.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gstreamer as gst;
use gstreamer::prelude::*;

use super::session::lock;
use super::timeline;

/// Exceeds the number of bytes before the first slice of a frame.
const HEAD_LEN: usize = 4096;

/// Exceeds the time that a frame waits for others that are shown before it.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// Maximum number of frames between an encoder and the end of its parser; parsers hold back one or two.
const MOST_PARSED: usize = 64;

/// Restores the durations set by an encoder at `encoded` on the frames that leave a parser at `parsed`.
///
/// A parser sets all durations according to the frame rate, even that of a last frame that is shown for longer. An mp4
/// counts durations in storage order: if it is `stored_in_order`, the frame stored last gets the duration of the frame
/// shown last.
pub(super) fn keep_lengths(encoded: &gst::Pad, parsed: &gst::Pad, stored_in_order: bool) {
    let lengths = Arc::new(Mutex::new(Lengths::default()));
    let told = Arc::clone(&lengths);
    encoded.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let Some(buffer) = info.buffer()
            && let Some(length) = buffer.pts().zip(buffer.duration())
        {
            lock(&told).tell(length);
        }
        gst::PadProbeReturn::Ok
    });
    let kept = Arc::clone(&lengths);
    parsed.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let mut lengths = lock(&kept);
        if lengths.passing {
            return gst::PadProbeReturn::Ok;
        }
        let Some(mut buffer) = info.take_buffer() else {
            return gst::PadProbeReturn::Ok;
        };
        lengths.keep(buffer.make_mut());
        let ready = match stored_in_order {
            true => lengths.held.replace(buffer),
            false => Some(buffer),
        };
        match ready {
            Some(ready) => {
                info.data = Some(gst::PadProbeData::Buffer(ready));
                gst::PadProbeReturn::Ok
            }
            None => gst::PadProbeReturn::Handled,
        }
    });
    parsed.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |pad, info| {
        let is_end = info.event().map(|event| event.type_()) == Some(gst::EventType::Eos);
        let held = {
            let mut lengths = lock(&lengths);
            let mut held = lengths.held.take();
            if let (true, Some(held), Some((_, length))) = (is_end, &mut held, lengths.last_shown) {
                held.make_mut().set_duration(length);
            }
            lengths.passing = held.is_some();
            held
        };
        if let Some(held) = held {
            // An element that accepts no more data reports that itself.
            let _ = pad.chain(held);
            lock(&lengths).passing = false;
        }
        gst::PadProbeReturn::Ok
    });
}

/// Durations of frames that a parser holds or has just released.
#[derive(Default)]
struct Lengths {
    /// Pairs of presentation timestamp and duration.
    told: VecDeque<(gst::ClockTime, gst::ClockTime)>,
    /// The frame with the latest presentation time so far: its timestamp and duration.
    last_shown: Option<(gst::ClockTime, gst::ClockTime)>,
    /// Held back until another frame or the end arrives.
    held: Option<gst::Buffer>,
    /// True while the frame held back is being released.
    passing: bool,
}

impl Lengths {
    fn tell(&mut self, length: (gst::ClockTime, gst::ClockTime)) {
        self.told.push_back(length);
        if self.told.len() > MOST_PARSED {
            self.told.pop_front();
        }
        if self.last_shown.is_none_or(|(pts, _)| pts < length.0) {
            self.last_shown = Some(length);
        }
    }

    fn keep(&mut self, buffer: &mut gst::BufferRef) {
        let mut told = self.told.iter();
        let place = told.position(|(pts, _)| Some(*pts) == buffer.pts());
        if let Some((_, length)) = place.and_then(|place| self.told.remove(place)) {
            buffer.set_duration(length);
        }
    }
}

/// Assigns the timestamps that enter a decoder at `stored` to the frames that leave it at `decoded`, in order.
///
/// A decoder that knows where a range begins would drop frames by the wrong times, so only `decoded` sees the range.
pub(super) fn in_order(stored: &gst::Pad, decoded: &gst::Pad) {
    let slots = Arc::new(Mutex::new(Slots::default()));
    let waiting = Arc::clone(&slots);
    let range = timeline::hide_segment(stored, decoded);
    let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_FLUSH;
    stored.add_probe(kinds, move |_, info| {
        let mut slots = lock(&waiting);
        if let Some(buffer) = info.buffer() {
            slots.store(buffer);
        } else if info.event().map(|event| event.type_()) == Some(gst::EventType::FlushStop) {
            *slots = Slots::default();
        }
        gst::PadProbeReturn::Ok
    });
    decoded.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let mut slots = lock(&slots);
        let Some(buffer) = info.buffer_mut() else {
            return gst::PadProbeReturn::Ok;
        };
        let Some(slot) = slots.next(buffer.pts()) else {
            return gst::PadProbeReturn::Ok;
        };
        let end = buffer.duration().map(|duration| slot + duration);
        let range = lock(&range);
        let all = Some((Some(slot), end));
        let Some((begin, end)) = range.as_ref().map_or(all, |range| range.clip(slot, end)) else {
            drop(info.take_buffer());
            return gst::PadProbeReturn::Handled;
        };
        let buffer = buffer.make_mut();
        buffer.set_pts(begin);
        buffer.set_duration(end.zip(begin).map(|(end, begin)| end - begin));
        gst::PadProbeReturn::Ok
    });
}

/// Assigns frames at `decoded` that repeat a timestamp the next one that entered at `stored`.
pub(super) fn advance(stored: &gst::Pad, decoded: &gst::Pad) {
    let times = Arc::new(Mutex::new(Advance::default()));
    let waiting = Arc::clone(&times);
    stored.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let Some(buffer) = info.buffer()
            && let Some(pts) = buffer.pts()
        {
            lock(&waiting).stored.push((pts, buffer.duration()));
        }
        gst::PadProbeReturn::Ok
    });
    let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_FLUSH;
    decoded.add_probe(kinds, move |_, info| {
        let mut times = lock(&times);
        let Some(buffer) = info.buffer_mut() else {
            *times = Advance::default();
            return gst::PadProbeReturn::Ok;
        };
        if let Some(pts) = buffer.pts() {
            let last = times.last.unwrap_or_default();
            let is_told = times.stored.iter().position(|(told, _)| *told == pts);
            let next = match is_told {
                Some(idx) => Some(idx),
                None if times.last.is_some() && pts <= last => times.earliest_after(last),
                None => None,
            };
            if let Some(idx) = next {
                let (time, duration) = times.stored.swap_remove(idx);
                if time != pts {
                    let buffer = buffer.make_mut();
                    buffer.set_pts(time);
                    buffer.set_duration(duration.or(buffer.duration()));
                }
            }
            let last = buffer.pts().unwrap_or_default();
            times.last = Some(last);
            times.stored.retain(|(told, _)| *told >= last);
        }
        gst::PadProbeReturn::Ok
    });
}

/// The last output timestamp, and all input timestamps for later ones.
#[derive(Default)]
struct Advance {
    last: Option<gst::ClockTime>,
    stored: Vec<(gst::ClockTime, Option<gst::ClockTime>)>,
}

impl Advance {
    fn earliest_after(&self, last: gst::ClockTime) -> Option<usize> {
        let later = self.stored.iter().enumerate();
        later
            .filter(|(_, (told, _))| *told > last)
            .min_by_key(|(_, (told, _))| *told)
            .map(|(idx, _)| idx)
    }
}

/// Time slots of stored frames that have not left the decoder yet.
#[derive(Default)]
struct Slots {
    times: VecDeque<gst::ClockTime>,
    /// Number of reference frames so far.
    n_references: usize,
}

impl Slots {
    /// Takes the slot of a frame that enters the decoder.
    fn store(&mut self, buffer: &gst::BufferRef) {
        self.times.extend(buffer.dts().or(buffer.pts()));
        let mut head = [0; HEAD_LEN];
        let len = buffer.size().min(HEAD_LEN);
        let head = head.get_mut(..len).unwrap_or_default();
        if buffer.copy_to_slice(0, head).is_err() {
            return;
        }
        // In MPEG-4 (ISO/IEC 14496-2, 6.2.5), the type of a frame follows its start code.
        let mut kinds = head.windows(5).filter(|w| w.starts_with(&[0, 0, 1, 0xb6]));
        match kinds.next().map(|window| window[4] >> 6) {
            // It refers to a frame before the range, and is not decoded.
            Some(2) if self.n_references < 2 => {
                self.times.pop_front();
            }
            Some(2) => {}
            _ => self.n_references += 1,
        }
    }

    /// Returns the slot of the next output frame, whose presentation time the decoder estimates as `guess`.
    fn next(&mut self, guess: Option<gst::ClockTime>) -> Option<gst::ClockTime> {
        let longest_wait = gst::ClockTime::from_nseconds(LONGEST_WAIT.as_nanos() as u64);
        // Slots of frames that could not be decoded.
        while let (Some(slot), Some(guess)) = (self.times.front(), guess)
            && *slot + longest_wait < guess
        {
            self.times.pop_front();
        }
        self.times.pop_front()
    }
}

/// Completes the timestamps of the buffers of `pad`, which hold one frame each.
pub(super) fn complete(pad: &gst::Pad) {
    let group = Mutex::new(Group::default());
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let Some(buffer) = info.buffer_mut() else {
            return gst::PadProbeReturn::Ok;
        };
        let mut head = [0; HEAD_LEN];
        let len = buffer.size().min(HEAD_LEN);
        let picture = head.get_mut(..len).and_then(|head| {
            buffer.copy_to_slice(0, head).ok()?;
            Picture::read(head)
        });
        // mpegvideoparse 1.22 marks the first frame of a Matroska file as a delta unit, and decodebin3 drops it.
        if picture.is_some_and(|picture| picture.is_intra)
            && buffer.flags().contains(gst::BufferFlags::DELTA_UNIT)
        {
            buffer.make_mut().unset_flags(gst::BufferFlags::DELTA_UNIT);
        }
        let told = buffer.pts().map(gst::ClockTime::nseconds);
        let duration = buffer.duration().map(gst::ClockTime::nseconds);
        let mut group = lock(&group);
        match (picture, duration) {
            (Some(picture), Some(duration)) if picture.plain => {
                let pts = group.place(&picture, told, duration);
                if let (None, Some(pts)) = (told, pts) {
                    let pts = gst::ClockTime::from_nseconds(pts);
                    buffer.make_mut().set_pts(pts);
                }
            }
            // For fields and repeated frames, positions do not determine timestamps.
            _ => *group = Group::default(),
        }
        gst::PadProbeReturn::Ok
    });
}

/// Header fields of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Picture {
    /// Position in its group, in presentation order.
    place: u64,
    begins_group: bool,
    /// False for single fields and repeated ones.
    plain: bool,
    /// True for a frame that is decoded without others.
    is_intra: bool,
}

impl Picture {
    fn read(head: &[u8]) -> Option<Self> {
        let mut picture = None;
        let mut begins_group = false;
        let mut plain = true;
        let mut is_intra = false;
        for (at, code) in head.windows(4).enumerate() {
            let content = || head.get(at + 4..at + 8);
            match code {
                [0, 0, 1, 0] if picture.is_none() => {
                    let content = content()?;
                    picture = Some(u64::from(content[0]) << 2 | u64::from(content[1]) >> 6);
                    is_intra = content[1] >> 3 & 7 == 1;
                }
                [0, 0, 1, 0xb8] => begins_group = true,
                // Picture coding extension: two bits distinguish field and frame, one marks a repeated field.
                [0, 0, 1, 0xb5] if content()?[0] >> 4 == 8 => {
                    let content = content()?;
                    plain &= content[2] & 3 == 3 && content[3] & 2 == 0;
                }
                _ => {}
            }
        }
        Some(Self {
            place: picture?,
            begins_group,
            plain,
            is_intra,
        })
    }
}

/// The current group of pictures.
#[derive(Default)]
struct Group {
    /// Time of picture number zero of the group in nanoseconds; negative if it is before the file.
    origin: Option<i64>,
    n_pictures: u64,
}

impl Group {
    /// Returns the presentation time of `picture`, which lasts `duration` nanoseconds; `told` is the container's
    /// timestamp.
    fn place(&mut self, picture: &Picture, told: Option<u64>, duration: u64) -> Option<u64> {
        let nanos = |n: u64| i64::try_from(n.checked_mul(duration)?).ok();
        if picture.begins_group {
            self.origin = self
                .origin
                .and_then(|origin| origin.checked_add(nanos(self.n_pictures)?));
            self.n_pictures = 0;
        }
        self.n_pictures = self.n_pictures.max(picture.place + 1);
        let place = nanos(picture.place)?;
        if let Some(told) = told {
            self.origin = i64::try_from(told).ok()?.checked_sub(place);
        }
        u64::try_from(self.origin?.checked_add(place)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(place: u8, begins_group: bool) -> Vec<u8> {
        let group: &[u8] = if begins_group {
            &[0, 0, 1, 0xb8, 0, 8, 0, 0]
        } else {
            &[]
        };
        // A position below four is in the upper bits of the second byte.
        [
            group,
            &[0, 0, 1, 0, 0, place << 6, 0, 0],
            &[0, 0, 1, 0xb5, 0x8f, 0xff, 0xf3, 0x80],
        ]
        .concat()
    }

    #[test]
    fn pictures_say_their_place() {
        let first = Picture::read(&header(2, true)).unwrap();
        let expected = Picture {
            place: 2,
            begins_group: true,
            plain: true,
            is_intra: false,
        };
        assert_eq!(first, expected);
        assert_eq!(Picture::read(&[0, 0, 1, 0xb3]), None);
    }

    #[test]
    fn times_follow_from_places() {
        let mut group = Group::default();
        let mut place = |place: u8, begins: bool, told: Option<u64>| {
            let picture = Picture::read(&header(place, begins)).unwrap();
            group.place(&picture, told, 40)
        };
        // Stored as I P B B, followed by the next group, whose first frames are shown before its I.
        assert_eq!(place(0, true, Some(500)), Some(500));
        assert_eq!(place(3, false, None), Some(620));
        assert_eq!(place(1, false, None), Some(540));
        assert_eq!(place(2, false, Some(580)), Some(580));
        assert_eq!(place(2, true, None), Some(740));
        assert_eq!(place(0, false, None), Some(660));
    }
}
