//! Reading of frames from a file: demuxer, decoder and rotation, up to a bounded channel.
//!
//! ```text
//! filesrc ! parsebin -+- decodebin3 ! rendition.rs ! videoflip ! I420 or NV12 ! (probe) -> channel of 4 -> next()
//!                     +- sound -> audio.rs
//! ```
//!
//! A pad probe takes each buffer before the last element sees it, so that nothing else holds a reference to it and it
//! can be written in place (`appsink` keeps one until the next pull). Times are running times: zero is where the
//! presentation begins according to the container, or where the range begins.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, select};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_video::VideoFormat;

use super::bus::{self, Failure};
use super::container::Container;
use super::elements::{self, static_pad};
use super::file::StreamInfo;
use super::job::{AudioMode, FileJob};
use super::pixels::{self, BufferPixels};
use super::rendition::{self, Kept, Origin};
use super::session::{Session, Shared, lock};
use super::tap::{Decoded, Item, Picture, Tap};
use super::timeline::{Timeline, begins_with};
use super::transport::TRUE_HD_IS_LEFT_OUT;
use super::{Source, audio, beside, cut, ffv1, matroska, mp4, temporal};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::{Frame, Pts};

/// Number of decoded frames that wait: 12 MB of 1080p I420, enough to keep the decoder busy while a frame is taken.
pub(super) const DECODED_FRAMES: usize = 4;

/// Duration of other streams that may pass before a video stream appears; GStreamer's own demuxers wait 6 s.
const PATIENCE: Duration = Duration::from_secs(10);

/// A source of the frames of a video file.
pub struct FileSource {
    frames: Receiver<Item>,
    /// Next frame, read ahead so that the last one is known.
    ahead: Option<Decoded>,
    /// Error that took the place of the next frame, returned after the frame before it.
    failure: Option<Error>,
    /// End of the last frame, if the header states it.
    end: Option<Duration>,
    /// Duration of the previous frame.
    last_duration: Option<Duration>,
    seq: u64,
    ended: bool,
    info: StreamInfo,
    session: Arc<Session>,
}

impl FileSource {
    /// Returns the properties of the file and of its encoding.
    pub fn info(&self) -> &StreamInfo {
        &self.info
    }

    /// Builds the reading half of the pipeline and waits for the first frame.
    pub(super) fn open(job: &FileJob, container: Container, kept: Kept) -> Result<(Self, Picture)> {
        if mp4::is_cut_off(&job.input) {
            return Err(Error::Media(format!(
                "the file is truncated and has no header (moov): {:?}",
                job.input
            )));
        }
        // gst-libav 1.22 gives all its packets the same time, and comes to no end.
        if begins_with(&job.input, b"nut/") {
            return Err(Error::Media(format!(
                "GStreamer cannot read the timestamps of NUT files; convert the file to Matroska first: {:?}",
                job.input
            )));
        }
        let shared = Shared::new(job.input.clone(), job.output.clone());
        let pipeline = gst::Pipeline::new();
        let filesrc = elements::make("filesrc")?;
        filesrc.set_property("location", &job.input);
        let parsebin = elements::make("parsebin")?;
        pipeline
            .add_many([&filesrc, &parsebin])
            .and_then(|()| filesrc.link(&parsebin))
            .map_err(|err| Error::Media(format!("cannot build the pipeline: {err}")))?;
        let timeline = Arc::new(Timeline::of(job));
        if timeline.is_edited() {
            return Err(Error::Media(format!(
                "the edit list repeats parts, goes back or changes the speed, which is not supported: {:?}",
                job.input
            )));
        }
        timeline.prepare(&filesrc, &parsebin);
        let session = Arc::new(Session::new(pipeline, filesrc, Arc::clone(&shared)));

        let (sender, frames) = bounded(DECODED_FRAMES);
        let tap = Arc::new(Tap::new(sender, Arc::clone(&shared)));
        let demuxed = Demuxed {
            pipeline: session.pipeline.downgrade(),
            job: job.clone(),
            container,
            kept,
            timeline: Arc::clone(&timeline),
            tap: Arc::clone(&tap),
        };
        connect(&parsebin, demuxed);

        let started = session.pipeline.set_state(gst::State::Playing);
        shared.check()?;
        if started.is_err() {
            return Err(Error::Media(format!(
                "the pipeline did not start: {:?}",
                job.input
            )));
        }
        let mut source = Self {
            frames,
            ahead: None,
            failure: None,
            end: None,
            last_duration: None,
            seq: 0,
            ended: false,
            info: StreamInfo::default(),
            session,
        };
        source.ahead = source.receive()?;
        if source.ahead.is_none() {
            let is_read = job.has_range() && timeline.reads_all() && shared.missing().is_empty();
            return Err(match is_read {
                true => past_the_end(job, job.start.unwrap_or_default(), None),
                false => no_frames(&shared, job),
            });
        }
        let claimed = match timeline.is_endless() {
            true => None,
            false => timeline.claimed().or_else(|| source.claimed_duration()),
        };
        if job.has_range() {
            // tsdemux 1.22 takes the end of the track that begins last for that of all.
            let known = claimed.filter(|_| !timeline.is_transport_stream());
            source.seek(job, &timeline, &tap, known)?;
        }
        let picture = tap.picture()?;
        source.end = tap.picture_end.get().copied();
        source.info = StreamInfo::new(job, &picture, claimed, &shared);
        Ok((source, picture))
    }

    /// Returns the number of audio tracks that appeared too late to be written.
    pub fn n_late_tracks(&self) -> u64 {
        self.session.shared.n_late_tracks.load(Ordering::SeqCst)
    }

    pub(super) fn session(&self) -> Arc<Session> {
        Arc::clone(&self.session)
    }

    pub(super) fn unread(&self) -> Receiver<Item> {
        self.frames.clone()
    }

    pub(super) fn info_mut(&mut self) -> &mut StreamInfo {
        &mut self.info
    }

    /// Duration according to the demuxer.
    fn claimed_duration(&self) -> Option<Duration> {
        self.session
            .pipeline
            .query_duration::<gst::ClockTime>()
            .map(Duration::from)
    }

    /// Waits for a frame, the end or a failure.
    fn receive(&mut self) -> Result<Option<Decoded>> {
        if self.ended {
            return Ok(None);
        }
        let item = select! {
            recv(self.frames) -> item => item.ok(),
            recv(self.session.shared.aborted) -> _ => None,
        };
        match item {
            Some(Item::Frame(frame)) => Ok(Some(frame)),
            Some(Item::Flushed) => self.receive(),
            Some(Item::End) | None => {
                self.session.shared.check_source()?;
                self.ended = true;
                Ok(None)
            }
        }
    }

    /// Seeks to the range requested by `job` and takes its first frame.
    fn seek(
        &mut self,
        job: &FileJob,
        timeline: &Timeline,
        tap: &Tap,
        claimed: Option<Duration>,
    ) -> Result<()> {
        let start = job.start.unwrap_or_default();
        let Some(event) = timeline.seek() else {
            // The file was read from its beginning to the first frame of the range.
            return Ok(());
        };
        if let Some(claimed) = claimed
            && Duration::from_nanos(start.0) >= claimed
        {
            return Err(past_the_end(job, start, Some(claimed)));
        }
        tap.discarding.store(true, Ordering::SeqCst);
        // The decoder's thread may be blocked with a frame; the flush requires it to return.
        while self.frames.try_recv().is_ok() {}
        if !tap.seek(event) {
            self.session.shared.check()?;
            return Err(Error::Media(format!(
                "cannot seek in the file: {:?}",
                job.input
            )));
        }
        loop {
            let item = select! {
                recv(self.frames) -> item => item.ok(),
                recv(self.session.shared.aborted) -> _ => None,
            };
            match item {
                Some(Item::Flushed) => break,
                Some(_) => {}
                None => return Err(self.session.shared.error()),
            }
        }
        self.ended = false;
        self.ahead = self.receive()?;
        if self.ahead.is_none() {
            return Err(past_the_end(job, start, claimed));
        }
        Ok(())
    }
}

impl Source for FileSource {
    fn next(&mut self) -> Result<Option<Frame>> {
        let Some(mut decoded) = self.ahead.take() else {
            return self.failure.take().map_or(Ok(None), Err);
        };
        match self.receive() {
            Ok(ahead) => self.ahead = ahead,
            Err(failure) => self.failure = Some(failure),
        }
        if self.ahead.is_none() && self.session.shared.complete.load(Ordering::SeqCst) {
            decoded.show_until(self.end);
        }
        let next = self.ahead.as_ref().map(|ahead| ahead.pts);
        decoded.complete_duration(next, self.last_duration);
        self.last_duration = decoded.duration.or(self.last_duration);
        let seq = self.seq;
        self.seq += 1;
        let pixels = Box::new(BufferPixels::new(decoded.buffer)?);
        Frame::new(seq, decoded.pts, decoded.duration, decoded.layout, pixels).map(Some)
    }

    fn stop(&mut self) -> Result<()> {
        self.session.stop();
        Ok(())
    }
}

/// Returns the reason why there was no first frame.
fn no_frames(shared: &Shared, job: &FileJob) -> Error {
    let missing = shared.missing();
    if missing.is_empty() {
        return Error::Media(format!("the video has no frames: {:?}", job.input));
    }
    Error::Media(format!("{}: {:?}", bus::not_installed(&missing), job.input))
}

fn past_the_end(job: &FileJob, start: Pts, claimed: Option<Duration>) -> Error {
    let begins_inside = claimed.is_some_and(|claimed| Duration::from_nanos(start.0) < claimed);
    if let Some(end) = job.end
        && (begins_inside || start == Pts(0))
    {
        return Error::Config(format!(
            "the video has no frames between {} s and {} s: {:?}",
            start.secs(),
            end.secs(),
            job.input
        ));
    }
    if begins_inside {
        return Error::Config(format!(
            "the video has no frames from {} s onward, only sound: {:?}",
            start.secs(),
            job.input
        ));
    }
    let Some(end) = claimed else {
        return Error::Config(format!(
            "the video has no frames from {} s onward: {:?}",
            start.secs(),
            job.input
        ));
    };
    Error::Config(format!(
        "the start at {} s is past the end at {} s: {:?}",
        start.secs(),
        end.as_secs_f64(),
        job.input
    ))
}

/// State needed to attach the demuxer's streams as they appear.
struct Demuxed {
    pipeline: gst::glib::WeakRef<gst::Pipeline>,
    job: FileJob,
    container: Container,
    kept: Kept,
    timeline: Arc<Timeline>,
    tap: Arc<Tap>,
}

/// Makes `decode` decode the stream of `pad`, the only one that it receives, whatever other streams the file has.
fn select_only(decode: &gst::Element, pad: &gst::Pad) {
    let wanted = pad.stream_id();
    decode.connect("select-stream", false, move |values| {
        let stream = values.get(2)?.get::<gst::Stream>().ok()?;
        Some(i32::from(stream.stream_id() == wanted).to_value())
    });
}

/// Makes the decoder of `decode` leave out frames whose references are missing, as with H.264 that refreshes a frame
/// part by part.
fn leave_out_corrupt(decode: &gst::Element) {
    let Some(bin) = decode.downcast_ref::<gst::Bin>() else {
        return;
    };
    bin.connect_element_added(|_, element| {
        if element.has_property("output-corrupt") {
            element.set_property("output-corrupt", false);
        }
    });
}

/// Attaches each stream of `parsebin` as it appears.
fn connect(parsebin: &gst::Element, demuxed: Demuxed) {
    parsebin.connect_pad_added(move |_, pad| {
        if let Err(err) = demuxed.attach(pad) {
            demuxed.tap.shared.fail(Failure::new(err.to_string()));
        }
    });
}

impl Demuxed {
    fn attach(&self, pad: &gst::Pad) -> Result<()> {
        let Some(pipeline) = self.pipeline.upgrade() else {
            return Ok(());
        };
        beside::gather(pad, &self.tap.shared);
        let caps = audio::caps_of(pad);
        let kind = caps
            .structure(0)
            .map(|fields| fields.name().to_string())
            .unwrap_or_default();
        if kind.starts_with("video/")
            || (kind.starts_with("image/") && kind != "image/gst-libav-gif")
        {
            if !self.tap.linked.swap(true, Ordering::SeqCst) {
                return self.attach_picture(&pipeline, pad, &caps);
            }
            tracing::warn!(
                stream = kind,
                "leaving out an additional video or image stream"
            );
        } else if kind.starts_with("audio/") {
            self.expect_picture(
                pad,
                "the file has audio but no video that GStreamer can read, expected a video",
            );
            if self.job.audio == AudioMode::Drop {
                return elements::drain_pad(&pipeline, pad);
            }
            let is_framed = caps
                .structure(0)
                .is_some_and(|fields| fields.has_field("rate"));
            if kind == "audio/x-true-hd" && !is_framed {
                tracing::warn!("{TRUE_HD_IS_LEFT_OUT}");
                return elements::drain_pad(&pipeline, pad);
            }
            if audio::refuse_tta(pad, &caps, &self.tap.shared) {
                return elements::drain_pad(&pipeline, pad);
            }
            let mut tracks = lock(&self.tap.shared.tracks);
            if let Some(tracks) = tracks.as_mut() {
                let track = audio::attach(
                    &pipeline,
                    pad,
                    &caps,
                    &self.job,
                    self.container,
                    &self.timeline,
                    &self.tap.shared,
                )?;
                // Uncompressed audio appears first, because no parser delays it.
                let place = tracks.partition_point(|other| other.number <= track.number);
                tracks.insert(place, track);
                return Ok(());
            }
            self.tap.shared.n_late_tracks.fetch_add(1, Ordering::SeqCst);
            tracing::warn!(
                stream = kind,
                "leaving out sound that starts in the middle of the file"
            );
        } else {
            self.expect_picture(pad, "the file has no video stream, expected a video");
            tracing::warn!(
                stream = kind,
                "leaving out a stream that is neither video nor audio"
            );
        }
        elements::drain_pad(&pipeline, pad)
    }

    /// Fails with `complaint` if `pad` ends or delivers [`PATIENCE`] of data before any video stream appears.
    ///
    /// Streams of FLV and MPEG program streams are not announced before data flows.
    fn expect_picture(&self, pad: &gst::Pad, complaint: &'static str) {
        let tap = Arc::clone(&self.tap);
        let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
        let begin = OnceLock::new();
        pad.add_probe(kinds, move |_, info| {
            let waits = match (info.event(), info.buffer()) {
                (Some(event), _) => event.type_() != gst::EventType::Eos,
                (None, buffer) => buffer.and_then(|buffer| buffer.pts()).is_none_or(|pts| {
                    let begin = *begin.get_or_init(|| pts);
                    Duration::from(pts.saturating_sub(begin)) < PATIENCE
                }),
            };
            let has_picture = tap.linked.load(Ordering::SeqCst);
            if waits && !has_picture {
                return gst::PadProbeReturn::Ok;
            }
            if !has_picture {
                tap.shared.fail(Failure::new(complaint));
            }
            gst::PadProbeReturn::Remove
        });
    }

    /// Signals the end if `pad` ends without a packet: in that case the decoder is never created and reports nothing.
    fn expect_packets(&self, pad: &gst::Pad) {
        let tap = Arc::clone(&self.tap);
        let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
        pad.add_probe(kinds, move |_, info| match info.event() {
            None => gst::PadProbeReturn::Remove,
            Some(event) if event.type_() == gst::EventType::Eos => {
                tap.end();
                gst::PadProbeReturn::Remove
            }
            Some(_) => gst::PadProbeReturn::Ok,
        });
    }

    /// Fails for video in formats that crash GStreamer's decoder.
    fn refuse_undecodable(&self, pad: &gst::Pad, caps: &gst::Caps) -> Result<()> {
        let Some(fields) = caps.structure(0) else {
            return Ok(());
        };
        let is_gray = fields.get::<&str>("chroma-format") == Ok("4:0:0");
        let bits = fields.get::<u32>("bit-depth-luma").unwrap_or(8);
        if is_gray && bits > 8 {
            return Err(Error::Media(format!(
                "the video is grayscale with {bits} bits per sample, which GStreamer cannot decode"
            )));
        }
        // qtdemux 1.22 mistakes the length of their rows, or the order of their colors.
        let format = fields.get::<&str>("format").unwrap_or_default();
        if fields.name() == "video/x-raw" && ["r210", "v308"].contains(&format) {
            return Err(Error::Media(format!(
                "GStreamer does not read uncompressed video in the format {format} correctly"
            )));
        }
        if fields.name() != "video/x-ffv" {
            return Ok(());
        }
        let record = fields.get::<gst::Buffer>("codec_data").ok();
        let record = record.and_then(|record| record.into_mapped_buffer_readable().ok());
        if let Some(record) = record.filter(|record| !record.is_empty()) {
            return ffv1::Format::of_record(&record).map_or(Ok(()), ffv1::Format::check);
        }
        let tap = Arc::clone(&self.tap);
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            let frame = info.buffer().and_then(|frame| frame.map_readable().ok());
            let format = frame.and_then(|frame| ffv1::Format::of_frame(&frame));
            match format.map_or(Ok(()), ffv1::Format::check) {
                Ok(()) => gst::PadProbeReturn::Remove,
                Err(err) => {
                    tap.shared.fail(Failure::new(err.to_string()));
                    drop(info.take_buffer());
                    gst::PadProbeReturn::Handled
                }
            }
        });
        Ok(())
    }

    fn attach_picture(
        &self,
        pipeline: &gst::Pipeline,
        pad: &gst::Pad,
        caps: &gst::Caps,
    ) -> Result<()> {
        if let Some(end) = self.timeline.end_of(pad) {
            self.tap.picture_end.get_or_init(|| end);
        }
        self.expect_packets(pad);
        self.refuse_undecodable(pad, caps)?;
        let mpeg = gst::Caps::builder("video/mpeg").field("mpegversion", gst::List::new([1, 2]));
        if mpeg.build().can_intersect(caps) {
            temporal::complete(pad);
        }
        if let Some(framerate) = self.timeline.framerate_of(pad) {
            elements::rewrite_caps(pad, move |fields| {
                let is_known = fields
                    .get::<gst::Fraction>("framerate")
                    .is_ok_and(|told| told.numer() > 0);
                if !is_known {
                    fields.set("framerate", framerate);
                }
            });
        }
        let convert = elements::make("videoconvert")?;
        let plain = elements::capsfilter(&gst::Caps::new_any())?;
        let flip = elements::make("videoflip")?;
        let direction = match self.timeline.is_anti_transposed(pad) {
            true => Some("ur-ll"),
            false => matroska::direction(&self.job.input),
        };
        flip.set_property_from_str("video-direction", direction.unwrap_or("auto"));
        let formats = pixels::FORMATS.into_iter();
        let formats = formats.chain(self.kept.depth.then_some(pixels::DEEP));
        let formats = gst::Caps::builder("video/x-raw")
            .field("format", gst::List::new(formats.map(VideoFormat::to_str)))
            .build();
        let end = elements::drain()?;
        self.tap.install(&static_pad(&end, "sink")?);
        *lock(&self.tap.end) = Some(end.downgrade());
        let raw = static_pad(&convert, "sink")?;
        let converted = static_pad(&plain, "sink")?;
        let origin = Origin {
            is_vp8: elements::may_be(caps, "video/x-vp8"),
            is_full_range: self.timeline.full_range_of(pad),
            has_alpha_beside: caps
                .structure(0)
                .is_some_and(|fields| fields.get("codec-alpha") == Ok(true)),
        };
        self.timeline
            .apply_to_decoded(pad, &static_pad(&plain, "src")?);
        rendition::tell_of_lost_colors(pad, caps, &self.tap);
        rendition::describe(&raw, &plain, origin, self.kept, &self.tap);
        rendition::make_plain(&static_pad(&flip, "sink")?, self.kept, &self.tap);
        elements::add_chain(
            pipeline,
            &[
                convert,
                plain,
                flip,
                elements::make("videoconvert")?,
                elements::capsfilter(&formats)?,
                end,
            ],
        )?;

        let decode = elements::make("decodebin3")?;
        let mpeg4 = gst::Caps::builder("video/mpeg").field("mpegversion", 4);
        cut::await_key_frame(pad);
        let is_avi = begins_with(&self.job.input, b"RIFF");
        if is_avi && mpeg4.build().can_intersect(caps) {
            temporal::in_order(pad, &raw);
        } else {
            temporal::advance(pad, &raw);
            if !self.timeline.is_spliced(pad) {
                // Not on the pad where timestamps are corrected, because the frame released later would be changed too.
                cut::behind_the_decoder(pad, &converted);
            }
        }
        select_only(&decode, pad);
        leave_out_corrupt(&decode);
        let tap = Arc::clone(&self.tap);
        decode.connect_pad_added(move |_, pad| {
            if let Err(err) = pad.link(&raw) {
                tap.shared.fail(Failure::new(format!(
                    "cannot use the decoded video ({err})"
                )));
            }
        });
        elements::add_chain(pipeline, std::slice::from_ref(&decode))?;
        pad.link(&static_pad(&decode, "sink")?)
            .map_err(|err| Error::Media(format!("cannot decode the video ({err})")))?;
        Ok(())
    }
}
