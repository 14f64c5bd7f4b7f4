//! AAC in LATM as carried by transport streams: LOAS frames (ISO/IEC 14496-3, section 1.7.2), split across packets
//! anywhere.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use gstreamer as gst;
use gstreamer::prelude::*;

use super::session::lock;

/// Bytes before a frame's content: 11 bits of [`SYNC`], 13 bits of its length.
const HEADER_LEN: usize = 3;
const SYNC: u16 = 0x2b7;

/// Returns whether `caps` are AAC in LATM.
pub(super) fn is_loas(caps: &gst::CapsRef) -> bool {
    let fields = caps.structure(0);
    fields.is_some_and(|fields| fields.get::<&str>("stream-format") == Ok("loas"))
}

/// Splits the data of `pad` into buffers of one frame each if it carries LOAS.
///
/// aacparse 1.22 could do this, but it drops all audio between the first two configurations, and then moves some.
pub(super) fn split(pad: &gst::Pad) {
    let splitter = Mutex::new(Splitter::default());
    let is_pushing = AtomicBool::new(false);
    let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_FLUSH;
    pad.add_probe(kinds, move |pad, info| {
        if is_pushing.load(Ordering::SeqCst) {
            return gst::PadProbeReturn::Ok;
        }
        if !pad.current_caps().is_some_and(|caps| is_loas(&caps)) {
            return gst::PadProbeReturn::Remove;
        }
        if info.event().is_some() {
            *lock(&splitter) = Splitter::default();
            return gst::PadProbeReturn::Ok;
        }
        let Some(packet) = info.take_buffer() else {
            return gst::PadProbeReturn::Ok;
        };
        let frames = packet
            .map_readable()
            .map(|bytes| lock(&splitter).frames(&bytes, packet.pts()))
            .unwrap_or_default();
        is_pushing.store(true, Ordering::SeqCst);
        for frame in frames {
            let mut buffer = gst::Buffer::from_mut_slice(frame.bytes);
            if let Some(buffer) = buffer.get_mut() {
                buffer.set_pts(frame.pts);
            }
            // A pad that refuses this buffer also refuses the following ones.
            if pad.push(buffer).is_err() {
                break;
            }
        }
        is_pushing.store(false, Ordering::SeqCst);
        gst::PadProbeReturn::Handled
    });
}

/// A complete frame, including its header.
#[derive(Debug, PartialEq)]
struct LoasFrame {
    bytes: Vec<u8>,
    /// Timestamp of the first frame that begins in a packet.
    pts: Option<gst::ClockTime>,
}

/// State of frames that arrive in pieces.
#[derive(Debug, Default)]
struct Splitter {
    pending: Vec<u8>,
    /// Offsets of packets in `pending`, and the presentation timestamps of their first frames.
    times: Vec<(usize, gst::ClockTime)>,
    /// Last presentation timestamp, and the number of frames after the one that it belongs to.
    timed: Option<(gst::ClockTime, u64)>,
    /// True once a configuration came: earlier frames cannot be decoded, and a decoder would take the first frame behind
    /// them for the first of all.
    is_configured: bool,
}

/// Samples of a frame.
const FRAME_LEN: u64 = 1024;

/// Returns the sample rate that the configuration in a frame states (`StreamMuxConfig`, section 1.7.3.1); `None` if the
/// frame has no configuration.
fn configured_rate(frame: &[u8]) -> Option<u64> {
    /// By sampling frequency index (table 1.18).
    const RATES: [u64; 13] = [
        96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025,
        8_000, 7_350,
    ];
    let content = frame.get(HEADER_LEN..)?;
    let bits = |at: usize, len: usize| {
        let bit = |at: usize| {
            content
                .get(at / 8)
                .map_or(0, |byte| usize::from(byte >> (7 - at % 8) & 1))
        };
        (at..at + len).fold(0, |number, at| number << 1 | bit(at))
    };
    let has_same = bits(0, 1) == 1;
    // Version 1 states sizes in between; its rate is that of nearly all broadcasts.
    let index = match bits(1, 1) {
        0 => bits(21, 4),
        _ => 3,
    };
    let explicit = bits(25, 24) as u64;
    let rate = RATES.get(index).copied().unwrap_or(explicit);
    (!has_same).then_some(rate.max(1))
}

impl Splitter {
    /// Returns the frames that end in a packet.
    fn frames(&mut self, packet: &[u8], pts: Option<gst::ClockTime>) -> Vec<LoasFrame> {
        self.times.extend(pts.map(|pts| (self.pending.len(), pts)));
        self.pending.extend_from_slice(packet);
        let mut frames = Vec::new();
        let mut at = 0;
        while let Some(header) = self.pending.get(at..at + HEADER_LEN) {
            let [first, second, third] = [0, 1, 2].map(|idx| u32::from(header[idx]));
            let end = at + HEADER_LEN + ((second << 8 | third) & 0x1fff) as usize;
            let is_frame = first << 3 | second >> 5 == u32::from(SYNC);
            // A false header in the middle of a frame is not followed by another one.
            if !is_frame
                || self
                    .pending
                    .get(end)
                    .is_some_and(|next| *next != (SYNC >> 3) as u8)
            {
                at += 1;
                continue;
            }
            if end > self.pending.len() {
                break;
            }
            let n_begun = self.times.partition_point(|(begin, _)| *begin <= at);
            let bytes = self.pending[at..end].to_vec();
            at = end;
            let mut pts = self.times.drain(..n_begun).next_back().map(|(_, pts)| pts);
            self.timed = match (pts, self.timed) {
                (Some(pts), _) => Some((pts, 0)),
                (None, timed) => timed.map(|(pts, n_frames)| (pts, n_frames + 1)),
            };
            if !self.is_configured {
                let Some(rate) = configured_rate(&bytes) else {
                    continue;
                };
                self.is_configured = true;
                pts = self.timed.map(|(pts, n_frames)| {
                    pts + gst::ClockTime::from_nseconds(n_frames * FRAME_LEN * 1_000_000_000 / rate)
                });
            }
            frames.push(LoasFrame { bytes, pts });
        }
        self.pending.drain(..at);
        for (begin, _) in &mut self.times {
            *begin = begin.saturating_sub(at);
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(content: &[u8]) -> Vec<u8> {
        let header = u32::from(SYNC) << 13 | content.len() as u32;
        [&header.to_be_bytes()[1..], content].concat()
    }

    proptest! {
        #[test]
        fn frames_come_out_whole_wherever_packets_cut_them(
            // Content that never looks like a header.
            contents in prop::collection::vec(prop::collection::vec(0_u8..0x56, 1..300), 1..20),
            junk in prop::collection::vec(0_u8..0x56, 0..20),
            packet_len in 1_usize..700,
        ) {
            let stored: Vec<Vec<u8>> = contents.iter().map(|content| frame(content)).collect();
            let stream = [junk.clone(), stored.concat()].concat();
            let mut splitter = Splitter::default();
            let mut out = Vec::new();
            for (packet_idx, packet) in stream.chunks(packet_len).enumerate() {
                let pts = gst::ClockTime::from_mseconds(packet_idx as u64);
                out.extend(splitter.frames(packet, Some(pts)));
            }
            let bytes: Vec<&Vec<u8>> = out.iter().map(|frame| &frame.bytes).collect();
            prop_assert_eq!(bytes, stored.iter().collect::<Vec<_>>());
            let mut begin = junk.len();
            let mut timed = None;
            for frame in &out {
                let packet = begin / packet_len;
                let is_first = timed.replace(packet) != Some(packet);
                let pts = is_first.then(|| gst::ClockTime::from_mseconds(packet as u64));
                prop_assert_eq!(frame.pts, pts);
                begin += frame.bytes.len();
            }
        }
    }

    #[test]
    fn frames_before_the_first_configuration_are_skipped_and_the_next_one_is_timed() {
        let same = frame(&[0x80, 1, 2]);
        // One program, one layer, AAC-LC at 48,000 Hz.
        let configured = frame(&[0x20, 0x00, 0x11, 0x80, 7]);
        let stream = [&same[..], &same, &configured, &same].concat();
        let frames = Splitter::default().frames(&stream, Some(gst::ClockTime::SECOND));
        let pts = gst::ClockTime::SECOND
            + gst::ClockTime::from_nseconds(2 * 1024 * 1_000_000_000 / 48_000);
        let expected = [
            LoasFrame {
                bytes: configured,
                pts: Some(pts),
            },
            LoasFrame {
                bytes: same,
                pts: None,
            },
        ];
        assert_eq!(frames, expected);
    }

    #[test]
    fn what_looks_like_a_header_in_the_middle_of_a_frame_is_none() {
        let stored = [frame(&[1, 2, 3]), frame(&[4])].concat();
        // A recording begins in a frame whose content has eleven bits of a header with a short length.
        let torn = [&[9, 0x56, 0xe0, 0x02, 7, 7, 8][..], &stored].concat();
        let frames = Splitter::default().frames(&torn, None);
        let bytes: Vec<u8> = frames.into_iter().flat_map(|frame| frame.bytes).collect();
        assert_eq!(bytes, stored);
    }
}
