//! Reads a file's packets without decoding them: when each frame is shown, and a hash of each packet of sound.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use gstreamer as gst;
use gstreamer::prelude::*;

use super::audio;
use super::bus::Failure;
use super::elements::{self, static_pad};
use super::session::{Session, Shared, lock};
use super::timeline::{Segment, Timeline};
use crate::error::{Error, Result};

/// What a file holds in a range of its timeline.
pub(super) struct Packets {
    /// Running times of the frames in nanoseconds, in order of presentation; negative before the range.
    pub(super) frames: Vec<i64>,
    pub(super) sound: Vec<Track>,
    /// Where the last packet ends.
    pub(super) end: Duration,
    /// How long the container says that the whole file is.
    pub(super) claimed: Option<Duration>,
}

/// One sound track.
#[derive(Clone, Debug, Default)]
pub(super) struct Track {
    /// Name of the codec.
    pub(super) codec: String,
    /// Running time in nanoseconds and hash of each packet.
    pub(super) packets: Vec<(i64, u64)>,
    /// Hash of all bytes: uncompressed sound has no packets to speak of, muxers cut it anew.
    bytes: DefaultHasher,
}

impl Track {
    /// Forgets packets that begin before `time`, and with one such all that come before zero.
    pub(super) fn cut_before(&mut self, time: i64) {
        if self.packets.first().is_some_and(|(first, _)| *first < time) {
            self.packets.retain(|(time, _)| *time >= 0);
        }
    }

    /// True where `self` has the packets of `whole`; all but the last ones where `interrupted`.
    ///
    /// Up to `unseen` packets may be missing at the beginning.
    pub(super) fn is_copy_of(&self, whole: &Self, interrupted: bool, unseen: usize) -> bool {
        if self.codec == "PCM" {
            return interrupted || self.bytes.finish() == whole.bytes.finish();
        }
        let hashes =
            |track: &Self| -> Vec<u64> { track.packets.iter().map(|(_, hash)| *hash).collect() };
        let (copy, whole) = (hashes(self), hashes(whole));
        (0..=unseen).any(|n_unseen| {
            whole.get(n_unseen..).is_some_and(|seen| {
                seen.starts_with(&copy) && (interrupted || seen.len() == copy.len())
            })
        })
    }
}

impl Packets {
    /// Reads `path` through `timeline`.
    ///
    /// # Errors
    /// [`Error::Media`] where it cannot be demuxed.
    pub(super) fn read(path: &Path, timeline: Timeline) -> Result<Self> {
        let shared = Shared::new(path.to_owned(), path.to_owned());
        let pipeline = gst::Pipeline::new();
        let filesrc = elements::make("filesrc")?;
        filesrc.set_property("location", path);
        timeline.prepare(&filesrc);
        let parsebin = elements::make("parsebin")?;
        pipeline
            .add_many([&filesrc, &parsebin])
            .and_then(|()| filesrc.link(&parsebin))
            .map_err(|err| Error::Media(format!("cannot assemble the pipeline: {err}")))?;
        let session = Session::new(pipeline, filesrc, Arc::clone(&shared));

        let (ready, is_ready) = bounded(1);
        let reader = Arc::new(Reader {
            timeline,
            shared: Arc::clone(&shared),
            found: Mutex::default(),
            linked: AtomicBool::new(false),
            ready,
            unbegun: Mutex::default(),
            gates: Mutex::default(),
            collecting: AtomicBool::new(false),
        });
        let pads = Arc::clone(&reader);
        let pipeline = session.pipeline.downgrade();
        parsebin.connect_pad_added(move |_, pad| {
            let Some(pipeline) = pipeline.upgrade() else {
                return;
            };
            if let Err(err) = pads.attach(&pipeline, pad) {
                pads.shared.fail(Failure::new(err.to_string()));
            }
        });
        let started = session.pipeline.set_state(gst::State::Playing);
        shared.check()?;
        started.map_err(|_| Error::Media(format!("the pipeline does not start: {path:?}")))?;

        select! {
            recv(is_ready) -> _ => {}
            // A file without a packet, or without a range, is not held back.
            recv(shared.over) -> _ => {}
            recv(shared.aborted) -> _ => return Err(shared.error()),
        }
        let claimed = reader
            .timeline
            .claimed()
            .or_else(|| query_duration(&session.pipeline));
        reader.open(&shared)?;
        wait(&shared, &shared.over)?;
        drop(session);
        shared.check()?;

        let found = std::mem::take(&mut *lock(&reader.found));
        let mut frames = found.frames;
        frames.sort_unstable();
        Ok(Self {
            frames,
            sound: found.sound,
            end: Duration::from_nanos(u64::try_from(found.end).unwrap_or(0)),
            claimed,
        })
    }
}

/// Waits until `event` has come or its sender is gone.
fn wait<T>(shared: &Shared, event: &Receiver<T>) -> Result<()> {
    select! {
        recv(event) -> _ => Ok(()),
        recv(shared.aborted) -> _ => Err(shared.error()),
    }
}

fn query_duration(pipeline: &gst::Pipeline) -> Option<Duration> {
    pipeline
        .query_duration::<gst::ClockTime>()
        .map(Duration::from)
}

/// Collects packets on the demuxer's thread.
struct Reader {
    timeline: Timeline,
    shared: Arc<Shared>,
    found: Mutex<Found>,
    linked: AtomicBool,
    ready: Sender<()>,
    /// Streams that have not yet given a packet.
    unbegun: Mutex<Vec<gst::glib::GString>>,
    /// Streams held back until the range has been sought.
    gates: Mutex<Vec<(gst::glib::WeakRef<gst::Pad>, gst::PadProbeId)>>,
    /// False before the seek.
    collecting: AtomicBool,
}

#[derive(Default)]
struct Found {
    frames: Vec<i64>,
    sound: Vec<Track>,
    end: i64,
}

/// What a packet is to the reader.
#[derive(Clone, Copy)]
enum Kind {
    Frame { vp8: bool },
    Sound { track_idx: usize },
}

impl Reader {
    fn attach(self: &Arc<Self>, pipeline: &gst::Pipeline, pad: &gst::Pad) -> Result<()> {
        let caps = audio::caps_of(pad);
        let name = caps
            .structure(0)
            .map(|fields| fields.name().to_string())
            .unwrap_or_default();
        if self.timeline.has_range() {
            self.hold_back(pad);
        }

        let is_picture = name.starts_with("video/") || name == "image/jpeg";
        let kind = if is_picture && !self.linked.swap(true, Ordering::SeqCst) {
            Some(Kind::Frame {
                vp8: name == "video/x-vp8",
            })
        } else if name.starts_with("audio/") {
            let mut found = lock(&self.found);
            found.sound.push(Track {
                codec: audio::codec(&caps),
                ..Track::default()
            });
            Some(Kind::Sound {
                track_idx: found.sound.len() - 1,
            })
        } else {
            None
        };
        let lead = match kind {
            Some(Kind::Sound { .. }) => self.timeline.lead_of(pad),
            _ => Duration::ZERO,
        };
        self.timeline.apply(pad, lead);
        let mut chain = match kind {
            Some(Kind::Sound { .. }) => audio::raw_packets(&caps)?,
            _ => Vec::new(),
        };
        let sink = elements::drain()?;
        if let Some(kind) = kind {
            let reader = Arc::clone(self);
            static_pad(&sink, "sink")?.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
                if let Some(buffer) = info.buffer() {
                    reader.take(kind, lead, pad, buffer);
                }
                gst::PadProbeReturn::Ok
            });
        }
        chain.push(sink);
        elements::add_chain(pipeline, &chain)?;
        pad.link(&static_pad(&chain[0], "sink")?)
            .map_err(|err| Error::Media(format!("{name:?} cannot be read ({err})")))?;
        Ok(())
    }

    /// Lets `pad` flow until all streams have begun: matroskademux seeks to another place before that.
    fn hold_back(self: &Arc<Self>, pad: &gst::Pad) {
        lock(&self.unbegun).push(pad.name());
        let reader = Arc::clone(self);
        let kinds = gst::PadProbeType::BLOCK
            | gst::PadProbeType::BUFFER
            | gst::PadProbeType::EVENT_DOWNSTREAM;
        let gate = pad.add_probe(kinds, move |pad, info| {
            if info
                .event()
                .is_some_and(|event| event.type_() != gst::EventType::Eos)
            {
                return gst::PadProbeReturn::Pass;
            }
            let mut unbegun = lock(&reader.unbegun);
            unbegun.retain(|name| *name != pad.name());
            if !unbegun.is_empty() {
                return gst::PadProbeReturn::Pass;
            }
            let _ = reader.ready.try_send(());
            gst::PadProbeReturn::Ok
        });
        lock(&self.gates).extend(gate.map(|gate| (pad.downgrade(), gate)));
    }

    /// Seeks to the range, where there is one, and lets all streams flow.
    fn open(&self, shared: &Shared) -> Result<()> {
        let gates = std::mem::take(&mut *lock(&self.gates));
        let pads: Vec<_> = gates
            .into_iter()
            .filter_map(|(pad, gate)| Some((pad.upgrade()?, gate)))
            .collect();
        self.collecting.store(true, Ordering::SeqCst);
        if let Some(seek) = self.timeline.seek()
            && !pads.first().is_some_and(|(pad, _)| pad.send_event(seek))
        {
            shared.check()?;
            return Err(Error::Media(
                "the file cannot be read from its middle".into(),
            ));
        }
        for (pad, gate) in pads {
            pad.remove_probe(gate);
        }
        Ok(())
    }

    fn take(&self, kind: Kind, lead: Duration, pad: &gst::Pad, buffer: &gst::BufferRef) {
        if !self.collecting.load(Ordering::SeqCst) && self.timeline.has_range() {
            return;
        }
        let segment = pad.sticky_event::<gst::event::Segment>(0);
        let Some(segment) = segment
            .as_ref()
            .and_then(|event| event.segment().downcast_ref::<gst::ClockTime>())
        else {
            return;
        };
        let Some(packet) = Packet::new(segment, lead, buffer) else {
            return;
        };
        let mut found = lock(&self.found);
        let taken = match kind {
            Kind::Frame { vp8 } => {
                let shown = packet.is_shown() && !(vp8 && is_hidden_vp8(buffer));
                if shown {
                    found.frames.push(packet.time);
                }
                shown
            }
            Kind::Sound { track_idx } => {
                let ranged = self.timeline.begins_late();
                let kept = packet.begins_in_time() && (packet.time >= 0 || !ranged);
                if let (true, Ok(bytes), Some(track)) =
                    (kept, buffer.map_readable(), found.sound.get_mut(track_idx))
                {
                    if track.packets.is_empty()
                        && let Some(caps) = pad.current_caps()
                    {
                        // Only now is it certain: a parser has seen the packet.
                        track.codec = audio::codec(&caps);
                    }
                    let mut hasher = DefaultHasher::new();
                    hasher.write(&bytes);
                    track.packets.push((packet.time, hasher.finish()));
                    track.bytes.write(&bytes);
                }
                kept
            }
        };
        if taken {
            found.end = found.end.max(packet.end());
        }
    }
}

/// Times of a packet in nanoseconds; running time, negative before the segment.
struct Packet {
    time: i64,
    duration: i64,
    /// Running time at which the segment ends.
    stop: i64,
}

impl Packet {
    /// `None` where it is a header, or has no time.
    fn new(segment: &Segment, lead: Duration, buffer: &gst::BufferRef) -> Option<Self> {
        let unseen = gst::BufferFlags::HEADER;
        let header_only =
            buffer.flags().contains(unseen) && buffer.pts().or(buffer.dts()).is_none();
        if header_only || buffer.flags().contains(gst::BufferFlags::DECODE_ONLY) {
            return None;
        }
        let lead = i64::try_from(lead.as_nanos()).ok()?;
        let time = signed(segment.to_running_time_full(buffer.pts().or(buffer.dts())?)?) - lead;
        let stop = segment
            .stop()
            .and_then(|stop| segment.to_running_time_full(stop))
            .map_or(i64::MAX, |stop| signed(stop) - lead);
        let nanos = |time: gst::ClockTime| i64::try_from(time.nseconds()).unwrap_or(i64::MAX);
        Some(Self {
            time,
            duration: buffer.duration().map_or(0, nanos),
            stop,
        })
    }

    fn begins_in_time(&self) -> bool {
        self.time < self.stop
    }

    /// True where a decoder would show it: some of it lies in the segment.
    fn is_shown(&self) -> bool {
        self.begins_in_time() && (self.time >= 0 || self.time + self.duration > 0)
    }

    fn end(&self) -> i64 {
        self.time.saturating_add(self.duration).min(self.stop)
    }
}

fn signed(time: gst::Signed<gst::ClockTime>) -> i64 {
    match time {
        gst::Signed::Positive(time) => i64::try_from(time.nseconds()).unwrap_or(i64::MAX),
        gst::Signed::Negative(time) => -i64::try_from(time.nseconds()).unwrap_or(i64::MAX),
    }
}

/// True for VP8's frames that only serve as a reference (RFC 6386, section 9.1: bit 4 shows a frame).
fn is_hidden_vp8(buffer: &gst::BufferRef) -> bool {
    let mut first = [0_u8; 1];
    buffer.copy_to_slice(0, &mut first).is_ok() && first[0] & 0x10 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn track(hashes: &[u64]) -> Track {
        Track {
            codec: "AAC".into(),
            packets: hashes.iter().map(|hash| (0, *hash)).collect(),
            ..Track::default()
        }
    }

    #[test]
    fn a_copy_has_every_packet() {
        let whole = track(&[1, 2, 3, 4]);
        assert!(whole.is_copy_of(&whole, false, 0));
        assert!(!track(&[1, 2, 3]).is_copy_of(&whole, false, 0));
        assert!(!track(&[1, 2, 4, 3]).is_copy_of(&whole, false, 0));
        assert!(!track(&[1, 2, 3, 4, 5]).is_copy_of(&whole, true, 4));
    }

    #[test]
    fn an_interrupted_copy_has_every_packet_so_far() {
        let whole = track(&[1, 2, 3, 4]);
        assert!(track(&[1, 2]).is_copy_of(&whole, true, 0));
        assert!(!track(&[2, 3]).is_copy_of(&whole, true, 0));
    }

    #[test]
    fn only_as_many_packets_as_allowed_may_be_unseen() {
        let whole = track(&[1, 2, 3, 4]);
        assert!(track(&[2, 3, 4]).is_copy_of(&whole, false, 1));
        assert!(!track(&[3, 4]).is_copy_of(&whole, false, 1));
    }
}
