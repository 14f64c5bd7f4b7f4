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
            frames.push(LoasFrame {
                bytes: self.pending[at..end].to_vec(),
                pts: self.times.drain(..n_begun).next_back().map(|(_, pts)| pts),
            });
            at = end;
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
    fn what_looks_like_a_header_in_the_middle_of_a_frame_is_none() {
        let stored = [frame(&[1, 2, 3]), frame(&[4])].concat();
        // A recording begins in a frame whose content has eleven bits of a header with a short length.
        let torn = [&[9, 0x56, 0xe0, 0x02, 7, 7, 8][..], &stored].concat();
        let frames = Splitter::default().frames(&torn, None);
        let bytes: Vec<u8> = frames.into_iter().flat_map(|frame| frame.bytes).collect();
        assert_eq!(bytes, stored);
    }
}
