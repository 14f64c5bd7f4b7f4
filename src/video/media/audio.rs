//! Audio on its way around the stages: packets are copied, and re-encoded only if the container requires it.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, select};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_audio as gst_audio;

use super::bus::Failure;
use super::container::{Container, LONGEST_RUN_IN};
use super::job::{AudioMode, FileJob};
use super::mp4::{duration_from_ticks, ticks_from_duration};
use super::session::{Shared, lock};
use super::timeline::{self, Segment, Timeline};
use super::{elements, loas};
use vitscope_core::error::{Error, Result};

/// Maximum distance of audio ahead of the encoder, or of the encoder ahead of audio.
///
/// x264 buffers 40 frames before it returns the first one, so GStreamer's default of one second hangs. Half a gigabyte
/// is hours of compressed audio: only a file that stores one stream after the other gets there.
pub(super) const LEAD_BYTES: u32 = 512 << 20;

/// Time that the video waits for audio of which nothing is known before its first packet. A track that stays silent for
/// longer begins with its parser's guess.
const LONGEST_SILENCE: gst::ClockTime = gst::ClockTime::from_seconds(30);

/// Time to wait for the first packet of audio whose begin only the packet states.
const FIRST_PACKET: Duration = Duration::from_secs(1);

/// Exceeds the pre-roll of most codecs.
const LONGEST_PRIMING: Duration = Duration::from_millis(50);

/// Jitter above which encoders take a difference between timestamps for a gap.
const SHORTEST_GAP: Duration = Duration::from_millis(40);

/// Time before zero at which a track begins.
enum Early {
    Known(Duration),
    Measured(Receiver<Duration>),
}

/// One audio track, blocked at the end of its queue.
pub(super) struct AudioTrack {
    /// Description, as far as the demuxer knows the stream before the first packet.
    description: String,
    /// Pad where packets enter.
    start: gst::Pad,
    /// True if packets are copied.
    pub(super) copied: bool,
    early: Early,
    /// Longest time before zero that may be a pre-roll.
    pub(super) longest_run_in: Duration,
    /// Length of all packets, if the header states it.
    pub(super) packet_len: Option<Duration>,
    /// Delay that the segment adds to the correct times.
    lead: Duration,
    end: gst::Pad,
    gate: gst::PadProbeId,
    /// True once a packet is written.
    pub(super) is_heard: Arc<AtomicBool>,
    /// True if only packets state the rate, and the caps that a parser reports before them are a guess.
    is_guessed: bool,
    /// Number of the track in the source.
    pub(super) number: Option<u64>,
}

impl AudioTrack {
    /// Returns a human-readable description.
    pub(super) fn description(&self) -> String {
        let caps = self.start.current_caps();
        caps.map_or_else(|| self.description.clone(), |caps| describe(&caps))
    }

    /// Returns how long before zero the track begins; zero if no audio turns up in time.
    pub(super) fn early(&mut self, shared: &Shared) -> Result<Duration> {
        let early = match &self.early {
            Early::Known(early) => *early,
            Early::Measured(measured) => select! {
                recv(measured) -> early => early.unwrap_or_default(),
                recv(shared.aborted) -> _ => return Err(shared.error()),
                default(FIRST_PACKET) => Duration::ZERO,
            },
        };
        self.early = Early::Known(early);
        Ok(early)
    }

    /// Links the track to `muxer`, delayed by `delay`, without packets that begin more than `early` before zero.
    ///
    /// The track stays blocked.
    pub(super) fn link(
        &self,
        muxer: &gst::Element,
        container: Container,
        delay: Duration,
        early: Duration,
        shared: &Arc<Shared>,
    ) -> Result<()> {
        tell_begin(&self.end, (self.lead, delay, early), shared);
        timeline::shift(&self.end, self.lead, delay, early);
        let pad = container.audio_pad(muxer)?;
        self.end.link(&pad).map_err(|err| {
            Error::Media(format!(
                "{} cannot be stored in {container} ({err})",
                self.description()
            ))
        })?;
        self.leave_out_silent(muxer, &pad);
        if self.copied && container != Container::MpegTs {
            refuse_changes(&self.end, shared);
        }
        Ok(())
    }

    /// Removes the track from `muxer`, whose input pad is `pad`, if it ends without a packet. Muxers either list an
    /// unknown stream in a way that makes the whole file unreadable, or fail.
    fn leave_out_silent(&self, muxer: &gst::Element, pad: &gst::Pad) {
        let is_heard = Arc::clone(&self.is_heard);
        // The muxer would keep the parser's guess from before the first packet, and its thread may still be reading the
        // caps of a track that is removed, on which mp4mux 1.22 crashes.
        let is_waiting = AtomicBool::new(true);
        let is_guessed = self.is_guessed;
        let (muxer, pad) = (muxer.downgrade(), pad.downgrade());
        let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
        self.end.add_probe(kinds, move |end, info| {
            let Some(event) = info.event() else {
                is_heard.store(true, Ordering::SeqCst);
                if is_waiting.swap(false, Ordering::SeqCst) {
                    tell_again(end);
                }
                return gst::PadProbeReturn::Remove;
            };
            let is_passed = match event.view() {
                gst::EventView::StreamStart(_) => true,
                gst::EventView::Eos(_) => {
                    if let (Some(muxer), Some(pad)) = (muxer.upgrade(), pad.upgrade())
                        && end.unlink(&pad).is_ok()
                    {
                        muxer.release_request_pad(&pad);
                    }
                    false
                }
                gst::EventView::Gap(gap) => {
                    let segment = segment_of(end);
                    let running = segment.and_then(|segment| segment.to_running_time(gap.get().0));
                    let patience = if is_guessed {
                        LONGEST_SILENCE
                    } else {
                        gst::ClockTime::ZERO
                    };
                    let is_long = running.is_some_and(|running| running >= patience);
                    if is_long && is_waiting.swap(false, Ordering::SeqCst) {
                        tell_again(end);
                    }
                    // A parser passes on gaps before it knows any segment, but muxers need the segment to measure them.
                    running.is_some() && !is_waiting.load(Ordering::SeqCst)
                }
                _ => !event.is_sticky() || !is_waiting.load(Ordering::SeqCst),
            };
            if is_passed {
                return gst::PadProbeReturn::Ok;
            }
            drop(info.data.take());
            gst::PadProbeReturn::Handled
        });
    }

    /// Unblocks the track.
    pub(super) fn open(self) {
        self.end.remove_probe(self.gate);
    }
}

/// Connects the audio of the demuxer's `pad` to a queue of `pipeline`.
pub(super) fn attach(
    pipeline: &gst::Pipeline,
    pad: &gst::Pad,
    caps: &gst::Caps,
    job: &FileJob,
    container: Container,
    timeline: &Timeline,
    shared: &Arc<Shared>,
) -> Result<AudioTrack> {
    let told = caps;
    let caps = &corrected(caps, timeline.is_little_endian(pad));
    let description = describe(caps);
    let accepted = container.audio_caps()?;
    let is_sayable = container != Container::MpegTs || adts_says(caps);
    // matroskamux 1.22 names Speex as no player knows it.
    let is_known = !elements::may_be(caps, "audio/x-speex");
    // qtmux 1.22 counts samples of ADPCM as blocks; like matroskamux, it leaves out what their decoder needs.
    let is_described = !elements::may_be(caps, "audio/x-adpcm");
    let is_measured = !container.has_edit_lists() || has_writable_rate(caps);
    let may_be_copied = holds(&accepted, caps)
        && is_sayable
        && is_known
        && is_described
        && is_measured
        && timeline.keeps_times(caps);
    let copied = job.audio == AudioMode::Copy && may_be_copied;
    if job.audio == AudioMode::Copy && !copied {
        tracing::warn!(
            sound = description,
            encoder = encoder_of(container).0,
            "cannot copy this sound into the output, re-encoding it"
        );
    }
    let (mut chain, decoded, priming) = if copied {
        (copy_chain(&accepted, caps)?, None, Duration::ZERO)
    } else {
        let (chain, decoded, priming) = encode_chain(container, &accepted, caps)?;
        (chain, Some(decoded), priming)
    };
    let right = if copied {
        caps.clone()
    } else {
        decodable(caps.clone())
    };
    // tsdemux 1.22 announces Blu-ray's AC-3 as E-AC-3 and corrects that later; the decoder of E-AC-3 handles both.
    let is_eac3 = elements::may_be(caps, "audio/x-eac3");
    if right != *told || is_eac3 && !copied {
        chain.insert(0, relabel(&right)?);
    }
    let queue = lead_queue(shared, "the sound runs too far ahead of the picture")?;
    chain.push(queue.clone());
    elements::add_chain(pipeline, &chain)?;

    let end = elements::static_pad(&queue, "src")?;
    let gate = end
        .add_probe(gst::PadProbeType::BLOCK_DOWNSTREAM, |_, _| {
            gst::PadProbeReturn::Ok
        })
        .ok_or_else(|| Error::Media("cannot hold back the sound".into()))?;
    refuse_serialized_queries(&elements::static_pad(&queue, "sink")?);
    // Audio that can be cut anywhere needs no pre-roll; only an edit list can hide one.
    let is_cut = !copied || plain(caps).is_some() && !container.has_edit_lists();
    let lead = match is_cut {
        true => Duration::ZERO,
        false => timeline.lead_of(pad, container),
    };
    match decoded {
        None => timeline.apply(pad, lead),
        Some(decoded) => timeline.apply_to_decoded(pad, &decoded),
    }
    // Decoded audio is cut to the sample, so the early part is the encoder's own priming.
    let lead = if copied { lead } else { priming };
    cut(&end, lead, shared);
    let start = elements::static_pad(&chain[0], "sink")?;
    let packet_len = timeline.packet_len_of(pad);
    if !copied {
        timeline.keep_back(pad);
    }
    let early = match timeline.run_in_of(pad, lead) {
        _ if is_cut => Early::Known(priming),
        Some(run_in) => Early::Known(run_in),
        None => Early::Measured(measure(&start)),
    };
    refuse_disc_sound(&start, caps, shared);
    let behind = elements::static_pad(&queue, "sink")?;
    for element in &chain[..chain.len() - 1] {
        pass_silence_by(&elements::static_pad(element, "sink")?, &behind);
    }
    pad.link(&start)
        .map_err(|err| Error::Media(format!("cannot read sound {description:?} ({err})")))?;
    Ok(AudioTrack {
        description,
        start,
        copied,
        early,
        longest_run_in: match copied {
            true => longest_run_in(caps, packet_len),
            false => LONGEST_RUN_IN,
        },
        packet_len,
        lead,
        end,
        gate,
        is_heard: Arc::default(),
        is_guessed: rate(told).is_none(),
        number: timeline.number_of(pad),
    })
}

/// Exceeds the pre-roll of audio of `caps`: what is hidden for longer was cut off.
///
/// Only AAC, Opus and Vorbis need a long one. LAME's is 1105 samples, less than two packets, and other codecs need less
/// than 50 ms.
fn longest_run_in(caps: &gst::Caps, packet_len: Option<Duration>) -> Duration {
    let is_any = |names: &[&str]| names.iter().any(|name| elements::may_be(caps, name));
    if is_aac(caps) || is_any(&["audio/x-opus", "audio/x-vorbis"]) {
        return LONGEST_RUN_IN;
    }
    match packet_len.filter(|_| elements::may_be(caps, "audio/mpeg")) {
        Some(packet_len) => LONGEST_PRIMING.max(2 * packet_len),
        None => LONGEST_PRIMING,
    }
}

/// Repeats the sticky events of `pad`, from the caps on.
fn tell_again(pad: &gst::Pad) {
    let mut events = Vec::new();
    pad.sticky_events_foreach(|event| {
        if event.type_() != gst::EventType::StreamStart {
            // The same event is not sent twice.
            events.push(event.copy());
        }
        ControlFlow::Continue(gst::EventForeachAction::Keep)
    });
    for event in events {
        // A refusal comes back with the packet.
        let _ = pad.push_event(event);
    }
}

/// Sends the end of a stream that brought no packet to `start` directly to `behind`: decoders in between treat that as
/// a failure.
fn pass_silence_by(start: &gst::Pad, behind: &gst::Pad) {
    let behind = behind.downgrade();
    let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
    start.add_probe(kinds, move |_, info| match &info.data {
        Some(gst::PadProbeData::Buffer(_)) => gst::PadProbeReturn::Remove,
        Some(gst::PadProbeData::Event(event)) if event.type_() == gst::EventType::Eos => {
            if let Some(behind) = behind.upgrade() {
                behind.send_event(event.clone());
            }
            drop(info.data.take());
            gst::PadProbeReturn::Handled
        }
        _ => gst::PadProbeReturn::Ok,
    });
}

/// Refuses the audio of `pad` once it flows, if `caps` are TTA; false for other audio.
///
/// Only the file that it is copied from states the length of its last packet, and avdec_tta 1.22 accepts none of it.
pub(super) fn refuse_tta(pad: &gst::Pad, caps: &gst::Caps, shared: &Arc<Shared>) -> bool {
    if !elements::may_be(caps, "audio/x-tta") {
        return false;
    }
    let shared = Arc::clone(shared);
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        shared.fail(Failure::new(
            "GStreamer can neither decode TTA audio nor copy its last packet whole; use --audio drop to leave it out, \
             or convert it to FLAC first",
        ));
        gst::PadProbeReturn::Remove
    });
    true
}

/// Fails if `caps` are uncompressed disc audio of a kind that dvdlpcmdec 1.22 turns into noise or does not decode.
///
/// Sources: the headers of ffmpeg's `pcm_dvd` and `pcm_bluray`, which hold the bits per sample in the upper two bits of
/// the fourth byte, and Blu-ray's channels in the upper four of the third.
fn refuse_disc_sound(start: &gst::Pad, caps: &gst::Caps, shared: &Arc<Shared>) {
    let is_decoded: fn(&[u8]) -> bool = match caps.structure(0).map(|fields| fields.name().as_str())
    {
        Some("audio/x-private1-lpcm") => |header| header.get(3).is_none_or(|bits| bits >> 6 == 0),
        Some("audio/x-private-ts-lpcm") => |header| {
            let is_mono = header.get(2).is_some_and(|channels| channels >> 4 == 1);
            !is_mono && header.get(3).is_none_or(|bits| bits >> 6 == 1)
        },
        _ => return,
    };
    let shared = Arc::clone(shared);
    start.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let header = info.buffer().and_then(|buffer| buffer.map_readable().ok());
        if header.is_some_and(|header| !is_decoded(&header)) {
            shared.fail(Failure::new(
                "GStreamer cannot decode uncompressed disc audio of one channel or of more than 16 bits correctly; use \
                 --audio drop to leave it out",
            ));
        }
        gst::PadProbeReturn::Remove
    });
}

/// Fails if packets that pass `end` change their kind, rate or channels, which a file states only once.
fn refuse_changes(end: &gst::Pad, shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    // Caps before the first packet may be a guess.
    let of_packets = Mutex::new(None);
    let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
    end.add_probe(kinds, move |pad, info| {
        let mut of_packets = lock(&of_packets);
        match (&info.data, &*of_packets) {
            (Some(gst::PadProbeData::Buffer(_)), None) => *of_packets = pad.current_caps(),
            (Some(gst::PadProbeData::Event(event)), Some(before)) => {
                if let gst::EventView::Caps(now) = event.view()
                    && differ(before, now.caps())
                {
                    shared.fail(Failure::new(format!(
                        "the sound changes midway from {} to {} and cannot be copied into one track; \
                         use --audio encode to convert it",
                        describe(before),
                        describe(&now.caps_owned())
                    )));
                }
            }
            _ => {}
        }
        gst::PadProbeReturn::Ok
    });
}

/// True if one track cannot hold packets of both.
fn differ(before: &gst::Caps, now: &gst::CapsRef) -> bool {
    let number = |caps: &gst::CapsRef, name| caps.structure(0)?.get::<i32>(name).ok();
    ["layer", "rate", "channels"].into_iter().any(|name| {
        let numbers = number(before, name).zip(number(now, name));
        numbers.is_some_and(|(before, now)| before != now)
    })
}

/// Corrects the byte order of `caps` to that of the file: qtdemux 1.22 takes all samples of 32 bits and more for
/// big-endian.
fn corrected(caps: &gst::Caps, is_little_endian: bool) -> gst::Caps {
    let mut caps = caps.clone();
    if !is_little_endian {
        return caps;
    }
    if let Some(fields) = caps.make_mut().structure_mut(0)
        && let Ok(format) = fields.get::<String>("format")
        && let Some(kind) = format.strip_suffix("BE")
    {
        fields.set("format", format!("{kind}LE"));
    }
    caps
}

/// Creates an element that replaces the caps of its stream by `caps`.
fn relabel(caps: &gst::Caps) -> Result<gst::Element> {
    let setter = elements::make("capssetter")?;
    setter.set_property("caps", caps);
    setter.set_property("join", false);
    setter.set_property("replace", true);
    Ok(setter)
}

/// Adapts `caps` to decoders and converters: sets the usual channel positions if none are known.
fn decodable(mut caps: gst::Caps) -> gst::Caps {
    let Some(fields) = caps.make_mut().structure_mut(0) else {
        return caps;
    };
    let is_guess = |mask: u64| {
        // Demuxers report these masks if a file states none, and a bass channel loses all high frequencies.
        mask == 0 || fields.name() == "audio/x-raw" && mask == FRONT | BASS
    };
    if let Ok(n_channels) = fields.get::<i32>("channels")
        && fields
            .get::<gst::Bitmask>("channel-mask")
            .is_ok_and(|mask| is_guess(mask.0))
        && let Some(mask) = usual_channels(n_channels)
    {
        fields.set("channel-mask", gst::Bitmask::new(mask));
    }
    caps
}

const FRONT: u64 = 0b11;
const CENTER: u64 = 0b100;
const BASS: u64 = 0b1000;
const REAR: u64 = 0b11_0000;
const REAR_CENTER: u64 = 1 << 8;
const SIDES: u64 = 0b11 << 10;
/// 5.1.
const SURROUND: u64 = FRONT | CENTER | BASS | REAR;

/// Usual positions of `n_channels` channels if the file does not state them, as a bit mask of GStreamer's positions.
fn usual_channels(n_channels: i32) -> Option<u64> {
    Some(match n_channels {
        3 => FRONT | CENTER,
        4 => FRONT | CENTER | REAR_CENTER,
        5 => FRONT | CENTER | REAR,
        6 => SURROUND,
        7 => FRONT | CENTER | BASS | REAR_CENTER | SIDES,
        8 => SURROUND | SIDES,
        _ => return None,
    })
}

/// Number of channels that encode `n_channels` channels, and their positions; a single channel has no position. Every
/// container can name these layouts, every player knows them, and opusenc 1.22 keeps their channels in place.
fn encoded_layout(n_channels: i32) -> (i32, u64) {
    match n_channels {
        ..=1 => (1, 0),
        2 => (2, FRONT),
        _ => (6, SURROUND),
    }
}

/// Bit rate of each encoded channel, in bits per second.
const CHANNEL_BITRATE: i32 = 64_000;

/// Gain of a channel in each of two others that share its power equally.
const HALF_POWER: f32 = std::f32::consts::FRAC_1_SQRT_2;

/// Returns the gain of each channel at the bits of `mask` in each channel of 5.1; `None` if a channel is near none of
/// them.
///
/// # Shapes
/// - result: `[6][channels]`
fn gains_in_surround(mask: u64) -> Option<Vec<Vec<f32>>> {
    let has_rear = mask & REAR != 0;
    let beside = |rear: usize| vec![(rear, if has_rear { HALF_POWER } else { 1.0 })];
    let positions = (0..u64::BITS).filter(|bit| mask >> bit & 1 == 1);
    let mut gains = vec![Vec::new(); 6];
    for position in positions {
        let heard = match position {
            0..=5 => vec![(position as usize, 1.0)],
            // Left and right of center.
            6 => vec![(0, HALF_POWER)],
            7 => vec![(1, HALF_POWER)],
            // Rear center.
            8 => vec![(4, HALF_POWER), (5, HALF_POWER)],
            // Side left and right.
            10 => beside(4),
            11 => beside(5),
            _ => return None,
        };
        for (channel, gains) in gains.iter_mut().enumerate() {
            let gain = heard.iter().find(|(into, _)| *into == channel);
            gains.push(gain.map_or(0.0, |(_, gain)| *gain));
        }
    }
    Some(gains)
}

/// Creates a queue that bridges the distance between audio and video, and fails instead of hanging if that is too long.
pub(super) fn lead_queue(shared: &Arc<Shared>, complaint: &'static str) -> Result<gst::Element> {
    let queue = elements::make("queue")?;
    queue.set_property("max-size-time", 0_u64);
    queue.set_property("max-size-buffers", 0_u32);
    queue.set_property("max-size-bytes", LEAD_BYTES);
    let shared = Arc::clone(shared);
    queue.connect("overrun", false, move |_| {
        shared.fail(Failure::new(complaint));
        None
    });
    Ok(queue)
}

/// Answers "no" to serialized queries, which would wait in the blocked queue while their sender blocks the demuxer.
fn refuse_serialized_queries(pad: &gst::Pad) {
    pad.add_probe(gst::PadProbeType::QUERY_DOWNSTREAM, |_, info| {
        if info.query().is_some_and(|query| query.is_serialized()) {
            return gst::PadProbeReturn::Drop;
        }
        gst::PadProbeReturn::Ok
    });
}

/// Drops packets after the end of the video, completes the durations of the others, and cuts uncompressed ones to the
/// sample.
fn cut(end: &gst::Pad, lead: Duration, shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    let before = Mutex::new(Lengths::default());
    let lead = u64::try_from(lead.as_nanos()).unwrap_or(u64::MAX);
    end.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let segment = segment_of(pad);
        if let Some(segment) = &segment
            && let Some((rate, frame_len)) = pad.current_caps().and_then(|caps| plain(&caps))
            && let Some(buffer) = info.take_buffer()
        {
            match clipped(buffer, segment, rate, frame_len) {
                Some(part) => info.data = Some(gst::PadProbeData::Buffer(part)),
                None => return gst::PadProbeReturn::Handled,
            }
        }
        let Some(buffer) = info.buffer_mut() else {
            return gst::PadProbeReturn::Ok;
        };
        let (Some(segment), Some(pts)) = (segment, buffer.pts()) else {
            return gst::PadProbeReturn::Ok;
        };
        let shown_at = |pts| {
            let running = segment.to_running_time(pts)?;
            running.nseconds().checked_sub(lead)
        };
        let stop = shared.sound_end.load(Ordering::SeqCst);
        let is_over = segment.stop().is_some_and(|stop| pts >= stop);
        if is_over || shown_at(pts).is_some_and(|time| time >= stop) {
            drop(info.take_buffer());
            return gst::PadProbeReturn::Handled;
        }
        // A Matroska block may lack a duration, and a muxer takes a missing duration of the last one for zero.
        let usual = lock(&before).next(pts);
        let duration = buffer.duration().or(usual);
        let left = segment.stop().map(|stop| stop.saturating_sub(pts));
        let duration = match (duration, left) {
            (Some(duration), Some(left)) => Some(duration.min(left)),
            (duration, _) => duration,
        };
        if duration != buffer.duration() {
            buffer.make_mut().set_duration(duration);
        }
        if let Some(end) = shown_at(pts + duration.unwrap_or_default()) {
            shared.sound_written.fetch_max(end, Ordering::SeqCst);
        }
        gst::PadProbeReturn::Ok
    });
}

/// Returns the part of uncompressed audio that lies in `segment`, to the nearest sample.
pub(super) fn clipped(
    mut buffer: gst::Buffer,
    segment: &Segment,
    rate: u32,
    frame_len: u32,
) -> Option<gst::Buffer> {
    let Some(pts) = buffer.pts() else {
        return Some(buffer);
    };
    let n_samples = buffer.size() / frame_len.max(1) as usize;
    let place = |time: gst::ClockTime| {
        let n_before = ticks_from_duration(time.saturating_sub(pts).into(), rate);
        usize::try_from(n_before).map_or(n_samples, |n_before| n_before.min(n_samples))
    };
    let begin = segment.start().map_or(0, place);
    let end = segment.stop().map_or(n_samples, place);
    let length = gst::ClockTime::try_from(duration_from_ticks(n_samples as u64, rate)).ok()?;
    let until = pts + buffer.duration().unwrap_or(length);
    if (begin, end) == (0, n_samples) {
        buffer.make_mut().set_duration(until - pts);
        return Some(buffer);
    }
    let n_left = end.checked_sub(begin).filter(|n_left| *n_left > 0)?;
    let from = segment.start().map_or(pts, |start| start.max(pts));
    let until = segment.stop().map_or(until, |stop| stop.min(until));
    buffer = gst_audio::audio_buffer_truncate(buffer, frame_len, begin, Some(n_left));
    let part = buffer.make_mut();
    part.set_pts(from);
    part.set_duration(until.saturating_sub(from));
    Some(buffer)
}

/// Duration estimate for audio packets that do not state one.
#[derive(Default)]
struct Lengths {
    last_pts: Option<gst::ClockTime>,
    last: Option<gst::ClockTime>,
    usual: Option<gst::ClockTime>,
}

impl Lengths {
    /// Returns the duration of a packet at `pts`, estimated from the previous packets; a much longer distance is a gap.
    fn next(&mut self, pts: gst::ClockTime) -> Option<gst::ClockTime> {
        let length = self
            .last_pts
            .replace(pts)
            .and_then(|last| pts.checked_sub(last));
        let Some(length) = length else {
            return self.usual;
        };
        let is_gap = |known: Option<gst::ClockTime>| known.is_some_and(|known| length > known * 2);
        if !is_gap(self.usual) || !is_gap(self.last) {
            self.usual = Some(length);
        }
        self.last = Some(length);
        self.usual
    }
}

/// True unless this is uncompressed audio of a sample rate that qtmux 1.22 cuts to 16 bits.
fn has_writable_rate(caps: &gst::Caps) -> bool {
    plain(caps).is_none_or(|(rate, _)| rate <= u32::from(u16::MAX))
}

/// Sample rate and bytes per frame of audio that can be cut anywhere.
pub(super) fn plain(caps: &gst::Caps) -> Option<(u32, u32)> {
    let fields = caps.structure(0)?;
    if ["audio/x-alaw", "audio/x-mulaw"].contains(&fields.name().as_str()) {
        let number = |name| u32::try_from(fields.get::<i32>(name).ok()?).ok();
        return number("rate").zip(number("channels"));
    }
    if fields.name() != "audio/x-raw" {
        return None;
    }
    let samples = gst_audio::AudioInfo::from_caps(caps).ok()?;
    (samples.bpf() > 0).then(|| (samples.rate(), samples.bpf()))
}

/// Records when the first packet that passes `end` is written, after subtracting `lead` and adding `delay`. Packets
/// that begin more than `early` before zero are not written.
fn tell_begin(
    end: &gst::Pad,
    (lead, delay, early): (Duration, Duration, Duration),
    shared: &Arc<Shared>,
) {
    let shared = Arc::clone(shared);
    end.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let segment = segment_of(pad);
        let pts = info.buffer().and_then(|buffer| buffer.pts());
        let (Some(segment), Some(pts)) = (segment, pts) else {
            return gst::PadProbeReturn::Ok;
        };
        // A packet that begins before the segment has no running time.
        let running = match segment.to_running_time(pts) {
            Some(running) => running.into(),
            None if early.is_zero() => return gst::PadProbeReturn::Ok,
            None => Duration::ZERO,
        };
        let written = (running + delay).saturating_sub(lead);
        let written = u64::try_from(written.as_nanos()).unwrap_or(u64::MAX);
        shared.sound_begin.fetch_min(written, Ordering::SeqCst);
        gst::PadProbeReturn::Remove
    });
}

/// Reports over the channel how long before zero the first packet of `pad` begins.
fn measure(pad: &gst::Pad) -> Receiver<Duration> {
    let (sender, receiver) = bounded(1);
    let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
    pad.add_probe(kinds, move |pad, info| {
        let early = match &info.data {
            Some(gst::PadProbeData::Event(event)) if event.type_() != gst::EventType::Eos => None,
            Some(gst::PadProbeData::Buffer(buffer)) => Some(before_zero(pad, buffer)),
            _ => Some(Duration::ZERO),
        };
        let Some(early) = early else {
            return gst::PadProbeReturn::Ok;
        };
        // Only the first answer counts, and the channel has room for it.
        let _ = sender.try_send(early);
        gst::PadProbeReturn::Remove
    });
    receiver
}

/// Returns the latest segment of `pad`.
fn segment_of(pad: &gst::Pad) -> Option<Segment> {
    let event = pad.sticky_event::<gst::event::Segment>(0)?;
    event.segment().downcast_ref::<gst::ClockTime>().cloned()
}

fn before_zero(pad: &gst::Pad, buffer: &gst::BufferRef) -> Duration {
    match (segment_of(pad), buffer.pts()) {
        (Some(segment), Some(pts)) => match segment.to_running_time_full(pts) {
            Some(gst::Signed::Negative(early)) => early.into(),
            _ => Duration::ZERO,
        },
        _ => Duration::ZERO,
    }
}

/// True if a container that accepts `accepted` may hold packets of `caps` without changes to their content.
fn holds(accepted: &gst::Caps, caps: &gst::Caps) -> bool {
    let mut caps = caps.clone();
    if is_aac(&caps)
        && !loas::is_loas(&caps)
        && let Some(fields) = caps.make_mut().structure_mut(0)
    {
        // Framing is not content: a parser removes and adds ADTS headers, but not those of LATM.
        fields.remove_fields(["stream-format", "framed", "codec_data"]);
    }
    accepted.can_intersect(&caps)
}

/// False for AAC of a channel layout that has no number in ADTS, the framing of AAC in transport streams.
///
/// Source: ISO/IEC 14496-3, 1.6.2.1 (`AudioSpecificConfig`) and table 1.19 (channel configurations).
fn adts_says(caps: &gst::Caps) -> bool {
    let config = caps
        .structure(0)
        .and_then(|fields| fields.get::<gst::Buffer>("codec_data").ok());
    let Some(config) = config.filter(|_| is_aac(caps)) else {
        return true;
    };
    config
        .map_readable()
        .is_ok_and(|config| matches!(channel_configuration(&config), Some(1..=7)))
}

/// Returns the channel configuration of an `AudioSpecificConfig`: zero if the layout is described explicitly, `None` if
/// an escaped object type or rate precedes it.
fn channel_configuration(config: &[u8]) -> Option<u16> {
    let head = u16::from_be_bytes(*config.first_chunk()?);
    let (object_type, rate, configuration) = (head >> 11, head >> 7 & 15, head >> 3 & 15);
    (object_type != 31 && rate != 15).then_some(configuration)
}

fn is_aac(caps: &gst::Caps) -> bool {
    let aac = gst::Caps::builder("audio/mpeg").field("mpegversion", gst::List::new([2, 4]));
    aac.build().can_intersect(caps)
}

fn copy_chain(accepted: &gst::Caps, caps: &gst::Caps) -> Result<Vec<gst::Element>> {
    if elements::may_be(caps, "audio/x-opus") && elements::available("opusparse") {
        // In a Matroska block of several packets, only the first has a timestamp.
        let parser = elements::make("opusparse")?;
        // The parser marks each buffer as a packet. Once the demuxer reports a gap, it passes on the demuxer's caps,
        // which lack that mark; a muxer that has begun refuses the change.
        elements::rewrite_caps(&elements::static_pad(&parser, "src")?, |fields| {
            fields.set("framed", true);
        });
        return Ok(vec![parser]);
    }
    if !is_aac(caps) {
        return Ok(Vec::new());
    }
    let parser = elements::make("aacparse")?;
    elements::rewrite_caps(&elements::static_pad(&parser, "src")?, mend_configuration);
    Ok(vec![
        parser,
        // Stands in for the muxer, which the parser cannot query before it exists.
        elements::capsfilter(accepted)?,
    ])
}

/// Writes configuration 7, which means 7.1, where aacparse 1.22 writes the number of channels, 8, which is invalid.
fn mend_configuration(fields: &mut gst::StructureRef) {
    let Ok(config) = fields.get::<gst::Buffer>("codec_data") else {
        return;
    };
    let Ok(config) = config.map_readable() else {
        return;
    };
    if channel_configuration(&config) == Some(8) {
        let mut mended = config.to_vec();
        mended[1] = mended[1] & !(15 << 3) | 7 << 3;
        fields.set("codec_data", gst::Buffer::from_slice(mended));
    }
}

/// Returns the encoders for `container`, best first, and the parser that follows them.
fn encoder_of(container: Container) -> (&'static str, &'static str, &'static str) {
    match container {
        Container::Mp4 | Container::Mov | Container::MpegTs => {
            ("avenc_aac", "voaacenc", "aacparse")
        }
        Container::Matroska | Container::Webm => ("opusenc", "vorbisenc", "identity"),
    }
}

/// Number of priming samples before the first input sample, which an AAC encoder does not report.
fn n_priming(encoder: &str) -> u32 {
    match encoder {
        "avenc_aac" => 1024,
        "voaacenc" => 1600,
        _ => 0,
    }
}

fn rate(caps: &gst::Caps) -> Option<u32> {
    let rate = caps.structure(0)?.get::<i32>("rate").ok()?;
    u32::try_from(rate).ok()
}

/// Returns the sample rate at which audio of `caps` is encoded as AAC.
fn aac_rate(caps: &gst::Caps) -> u32 {
    match rate(caps) {
        // Headers of AAC with SBR may state half of it.
        Some(rate @ (8_000 | 11_025 | 12_000 | 16_000 | 22_050 | 24_000)) => 2 * rate,
        Some(rate @ (32_000 | 44_100 | 64_000 | 88_200 | 96_000)) => rate,
        _ => 48_000,
    }
}

/// Returns the elements that re-encode audio of `caps`, the pad where it is decoded, and the duration of the priming
/// that they prepend.
fn encode_chain(
    container: Container,
    accepted: &gst::Caps,
    caps: &gst::Caps,
) -> Result<(Vec<gst::Element>, gst::Pad, Duration)> {
    let (best, second, parser) = encoder_of(container);
    let Some(name) = [best, second]
        .into_iter()
        .find(|name| elements::available(name))
    else {
        return Err(elements::missing(&[best, second]));
    };
    let mut chain = Vec::new();
    if caps
        .structure(0)
        .is_some_and(|fields| fields.name() != "audio/x-raw")
    {
        chain.push(decoder(caps)?);
    }
    let mut raw = gst::Caps::builder("audio/x-raw");
    let mut priming = Duration::ZERO;
    if n_priming(name) > 0 {
        let rate = aac_rate(caps);
        raw = raw.field("rate", rate as i32);
        priming = duration_from_ticks(n_priming(name).into(), rate);
    }
    let raw = raw.build();
    let converter = elements::make("audioconvert")?;
    let decoded = elements::static_pad(&converter, "sink")?;
    let filter = elements::capsfilter(&raw)?;
    fill_gaps(&elements::static_pad(&filter, "src")?);
    let encoder = elements::make(name)?;
    if encoder.has_property("aac-ms") {
        // If forced, it merges two different channels into one.
        encoder.set_property("aac-ms", false);
    }
    settle_layout(&converter, &filter, &encoder, raw)?;
    timeline::end_later(&elements::static_pad(&encoder, "src")?, priming);
    chain.extend([
        converter,
        elements::make("audioresample")?,
        filter,
        encoder,
        elements::make(parser)?,
        elements::capsfilter(accepted)?,
    ]);
    Ok((chain, decoded, priming))
}

/// Makes `filter` pass an [`encoded_layout`], otherwise like `raw`, once `converter` knows the channels of the first
/// audio: before decoding, a file may state another number. Sets the bit rate of `encoder` accordingly.
fn settle_layout(
    converter: &gst::Element,
    filter: &gst::Element,
    encoder: &gst::Element,
    raw: gst::Caps,
) -> Result<()> {
    let begin = elements::static_pad(converter, "sink")?;
    let elements = [converter, filter, encoder].map(gst::Element::downgrade);
    begin.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        let Some(gst::EventView::Caps(caps)) = info.event().map(|event| event.view()) else {
            return gst::PadProbeReturn::Ok;
        };
        let [Some(converter), Some(filter), Some(encoder)] =
            elements.each_ref().map(gst::glib::WeakRef::upgrade)
        else {
            return gst::PadProbeReturn::Remove;
        };
        let fields = caps.caps().structure(0);
        let n_channels = fields.and_then(|fields| fields.get::<i32>("channels").ok());
        let mask = fields.and_then(|fields| fields.get::<gst::Bitmask>("channel-mask").ok());
        // gst-libav 1.22 has no name for half of the layouts that AAC describes explicitly.
        let told = mask.map(|mask| mask.0).filter(|mask| *mask != 0);
        let mask = told.or_else(|| usual_channels(n_channels?));
        let (n_encoded, encoded_mask) = encoded_layout(n_channels.unwrap_or(2));
        if let Some(n_channels) = n_channels.filter(|n_channels| *n_channels != n_encoded) {
            tracing::warn!(
                "the audio has {n_channels} channels, re-encoding it with {n_encoded}: mono, stereo or 5.1"
            );
        }
        let mut settled = raw.clone();
        if let Some(fields) = settled.make_mut().structure_mut(0) {
            fields.set("channels", n_encoded);
            if encoded_mask != 0 {
                fields.set("channel-mask", gst::Bitmask::new(encoded_mask));
            }
        }
        if encoder.has_property_with_type("bitrate", i32::static_type()) {
            encoder.set_property("bitrate", n_encoded * CHANNEL_BITRATE);
        }
        // By default the converter mixes channels that one side lacks, and attenuates all of them.
        if n_encoded > 2
            && let Some(gains) = mask.and_then(gains_in_surround)
        {
            converter.set_property(
                "mix-matrix",
                gst::Array::new(gains.into_iter().map(gst::Array::new)),
            );
        }
        filter.set_property("caps", settled);
        gst::PadProbeReturn::Remove
    });
    Ok(())
}

/// Fills gaps in uncompressed audio with silence: encoders hold back the last samples before a gap until more audio
/// follows.
fn fill_gaps(end: &gst::Pad) {
    let ended_at = Mutex::new(None);
    end.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let format = pad.current_caps().and_then(|caps| plain(&caps));
        let (Some((rate, frame_len)), Some(buffer)) = (format, info.buffer()) else {
            return gst::PadProbeReturn::Ok;
        };
        let Some(begin) = buffer.pts() else {
            return gst::PadProbeReturn::Ok;
        };
        let stop = segment_of(pad).and_then(|segment| segment.stop());
        if stop.is_some_and(|stop| begin >= stop) {
            // An encoder would make a packet of the data that it leaves out.
            drop(info.take_buffer());
            return gst::PadProbeReturn::Handled;
        }
        let len = buffer.size() as u64 / u64::from(frame_len);
        let time = |n_samples: u64| duration_from_ticks(n_samples, rate);
        let before = *lock(&ended_at);
        let gap = before.and_then(|ended| Duration::from(begin).checked_sub(ended));
        if let (Some(ended), Some(gap)) = (before, gap.filter(|gap| *gap > SHORTEST_GAP)) {
            let n_missing = ticks_from_duration(gap, rate);
            let mut n_filled = 0;
            while n_filled < n_missing {
                // At most one second at once.
                let n_silent = (n_missing - n_filled).min(rate.into());
                let silence = vec![0_u8; (n_silent * u64::from(frame_len)) as usize];
                let mut silence = gst::Buffer::from_slice(silence);
                if let Some(silence) = silence.get_mut() {
                    silence.set_pts(gst::ClockTime::try_from(ended + time(n_filled)).ok());
                    silence.set_duration(gst::ClockTime::try_from(time(n_silent)).ok());
                }
                // A pad that refuses this buffer also refuses the following ones.
                if pad.push(silence).is_err() {
                    break;
                }
                n_filled += n_silent;
            }
        }
        *lock(&ended_at) = Some(Duration::from(begin) + time(len));
        gst::PadProbeReturn::Ok
    });
}

/// Returns the highest-ranked installed decoder for `caps`, except for FLAC: flacdec 1.22 swaps channels of 4.0, 6.1
/// and 7.1, and doubles gaps.
fn decoder(caps: &gst::Caps) -> Result<gst::Element> {
    if elements::may_be(caps, "audio/x-flac") && elements::available("avdec_flac") {
        let decoder = elements::make("avdec_flac")?;
        // It takes a header, which has no timestamp, for a packet, and gives each packet the timestamp of the one
        // before.
        elements::static_pad(&decoder, "sink")?.add_probe(gst::PadProbeType::BUFFER, |_, info| {
            if info.buffer().is_some_and(|buffer| buffer.pts().is_some()) {
                return gst::PadProbeReturn::Ok;
            }
            drop(info.take_buffer());
            gst::PadProbeReturn::Handled
        });
        return Ok(decoder);
    }
    if caps
        .structure(0)
        .is_some_and(|fields| fields.name().ends_with("unknown"))
    {
        return Err(Error::Media(
            "GStreamer's demuxer does not know the codec of the sound; use --audio drop to leave it out".into(),
        ));
    }
    let decoders = gst::ElementFactory::factories_with_type(
        gst::ElementFactoryType::DECODER | gst::ElementFactoryType::MEDIA_AUDIO,
        gst::Rank::MARGINAL,
    );
    decoders
        .iter()
        .filter(|factory| factory.can_sink_any_caps(caps))
        .max_by_key(|factory| factory.rank())
        .ok_or_else(|| {
            Error::Media(format!(
                "no decoder is installed for sound {:?} (Debian package \"gstreamer1.0-libav\" provides most; use \
                 --audio drop to leave the sound out)",
                describe(caps)
            ))
        })?
        .create()
        .build()
        .map_err(|err| Error::Media(format!("cannot create an audio decoder: {err}")))
}

/// Returns the caps of the stream of `pad`, before its first packet.
pub(super) fn caps_of(pad: &gst::Pad) -> gst::Caps {
    pad.current_caps()
        .or_else(|| pad.stream().and_then(|stream| stream.caps()))
        .unwrap_or_else(|| pad.query_caps(None))
}

/// Formats the codec, rate and channels of `caps` in human-readable form.
fn describe(caps: &gst::Caps) -> String {
    let mut description = codec(caps);
    let Some(fields) = caps.structure(0) else {
        return description;
    };
    if let Ok(rate) = fields.get::<i32>("rate") {
        description.push_str(&format!(" {rate} Hz"));
    }
    if let Ok(channels) = fields.get::<i32>("channels") {
        description.push_str(&format!(" {channels} ch"));
    }
    description
}

/// Returns the codec name of `caps`.
fn codec(caps: &gst::Caps) -> String {
    let Some(fields) = caps.structure(0) else {
        return "unknown".into();
    };
    match (fields.name().as_str(), fields.get::<i32>("layer")) {
        _ if is_aac(caps) => "AAC".into(),
        ("audio/mpeg", Ok(layer)) => format!("MP{layer}"),
        ("audio/x-raw", _) => "PCM".into(),
        (name, _) if name.ends_with("unknown") => "in a format unknown to the demuxer".into(),
        (name, _) => name
            .trim_start_matches("audio/")
            .trim_start_matches("x-")
            .to_uppercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_opus_stay_packets_over_a_gap() {
        gst::init().unwrap();
        let demuxed = gst::Caps::builder("audio/x-opus")
            .field("rate", 48_000)
            .field("channels", 1)
            .field("channel-mapping-family", 0)
            .build();
        let accepted = gst::Caps::builder("audio/x-opus").build();
        let chain = copy_chain(&accepted, &demuxed).unwrap();
        let [parser] = chain.as_slice() else {
            panic!("Opus goes through its parser");
        };
        let end = elements::make("fakesink").unwrap();
        end.set_property("async", false);
        parser.link(&end).unwrap();
        for element in [&end, parser] {
            element.set_state(gst::State::Playing).unwrap();
        }
        let begin = elements::static_pad(parser, "sink").unwrap();
        let events = [
            gst::event::StreamStart::new("sound"),
            gst::event::Caps::new(&demuxed),
            gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()),
            gst::event::Gap::builder(gst::ClockTime::ZERO).build(),
        ];
        for event in events {
            assert!(begin.send_event(event));
        }
        let told = elements::static_pad(&end, "sink").unwrap().current_caps();
        let told = told.unwrap();
        assert!(
            told.structure(0).unwrap().get::<bool>("framed").unwrap(),
            "{told}"
        );
        for element in [parser, &end] {
            element.set_state(gst::State::Null).unwrap();
        }
    }
}
