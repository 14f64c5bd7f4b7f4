//! Writing of frames into a file: encoder, muxer, `.part` file, and the rename that completes it.
//!
//! ```text
//! push() -> channel of 2 -> appsrc ! videoconvert ! videoscale ! caps ! encoder ! parser ! queue -+- muxer ! OUT.part
//!                                                                       sound from audio.rs -+
//! ```
//!
//! None of this exists before the first frame, whose layout determines the output's size and format. The file is named
//! `OUT.part` until [`finish`](super::Sink::finish) has closed it; an abandoned one stays readable.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;
use gstreamer_video::{VideoColorRange, VideoColorimetry};

use super::audio::AudioTrack;
use super::beside::Beside;
use super::bus::Failure;
use super::container::{CLOCK, Container};
use super::cut::SLIVER;
use super::elements::{self, static_pad};
use super::encoder::{Settings, VideoCodec};
use super::job::FileJob;
use super::mp4::Movie;
use super::range;
use super::rendition::{self, Described};
use super::session::{Session, Shared, lock};
use super::tap::{Item, Picture};
use super::{Sink, audio, edits, even, matroska, pixels, temporal};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::{Frame, PixelFormat, PixelLayout, Pts};

/// Number of frames that wait for the encoder, besides the one that it holds: 6 MB of 1080p I420.
pub(super) const WAITING_FRAMES: usize = 2;

/// Exceeds the distance by which demuxers round times.
const ROUNDING: Duration = Duration::from_micros(1);

/// A sink that writes frames and the source's audio into a file.
pub struct FileSink {
    output: PathBuf,
    part: PathBuf,
    plan: Plan,
    writer: Option<Writer>,
    finished: bool,
    /// Decoded items of the source; discarded if the sink finishes before the end of the source.
    unread: Receiver<Item>,
    session: Arc<Session>,
}

/// Encoding parameters of the output.
pub(super) struct Plan {
    pub(super) container: Container,
    pub(super) codec: VideoCodec,
    pub(super) crf: u32,
    pub(super) picture: Picture,
    /// Colors to encode in, and the part of them to signal.
    colors: VideoColorimetry,
    described: Described,
    /// Ticks per second in which the input's timestamps are integers.
    timescale: u32,
    /// Creation time of the input, in seconds since 1970.
    created: Option<i64>,
    has_range: bool,
}

/// Item on its way to the encoder.
enum Parcel {
    /// The following frames have another format.
    Caps(gst::Caps),
    Frame(gst::Buffer),
}

/// The writing half of the pipeline, once it exists.
struct Writer {
    parcels: Sender<Parcel>,
    /// Disconnects once the last byte has reached the file.
    written: Receiver<()>,
    layout: Arc<PixelLayout>,
    /// Begin of the first frame, once there is one.
    begin: Option<Pts>,
    /// End of the last frame.
    end: Pts,
    /// Earliest timestamp of the next frame: an encoder loses one of two frames with the same time.
    next: Pts,
    /// Delay of frames in the file relative to the input, for audio that cannot begin before zero.
    delay: Duration,
    /// Pre-roll of each audio track, in file order, and whether a packet of the track has been written.
    run_ins: Vec<(Duration, Arc<AtomicBool>)>,
}

impl Writer {
    /// Returns the time of `pts` in the file.
    fn delayed(&self, pts: Pts) -> Option<gst::ClockTime> {
        gst::ClockTime::try_from(Duration::from_nanos(pts.0) + self.delay).ok()
    }
}

impl Plan {
    pub(super) fn new(
        job: &FileJob,
        container: Container,
        codec: VideoCodec,
        picture: Picture,
        shared: &Shared,
    ) -> Result<Self> {
        let given = picture.info.colorimetry();
        let colors = codec.colors(&given, picture.info.height());
        let beside = Beside::of(job);
        lock(&shared.announced).name_lost(job, container, &beside);
        Ok(Self {
            container,
            codec,
            crf: Settings::checked_crf(job.crf)?,
            described: if colors == given {
                picture.described
            } else {
                Described::Colors
            },
            colors,
            timescale: timescale(job, &picture),
            created: beside.created,
            has_range: job.has_range(),
            picture,
        })
    }

    /// Colors of frames as they are passed to the converter before the encoder.
    fn handed_over(&self) -> VideoColorimetry {
        let given = self.picture.info.colorimetry();
        let range = match self.narrows_range() {
            true => VideoColorRange::Range16_235,
            false => given.range(),
        };
        VideoColorimetry::new(range, given.matrix(), given.transfer(), given.primaries())
    }

    /// True if full-range frames are encoded in limited range and their colors are otherwise unchanged.
    fn narrows_range(&self) -> bool {
        let given = self.picture.info.colorimetry();
        given.matrix() == self.colors.matrix()
            && given.range() == VideoColorRange::Range0_255
            && self.colors.range() == VideoColorRange::Range16_235
    }
}

/// Returns the number of ticks per second that represents the input's timestamps exactly, at least [`CLOCK`].
fn timescale(job: &FileJob, picture: &Picture) -> u32 {
    let fps = picture.info.fps();
    let movie = Movie::header(&job.input);
    let ticks = movie
        .and_then(|movie| movie.video_timescale())
        .unwrap_or_else(|| {
            // Other containers count in milliseconds, in 1/90000 s or in frames.
            let numer = u32::try_from(fps.numer()).unwrap_or(0);
            let in_clock = numer == 0
                || (u64::from(CLOCK) * u64::from(fps.denom().unsigned_abs())) % u64::from(numer)
                    == 0;
            if in_clock { CLOCK } else { numer }
        });
    ticks.saturating_mul(CLOCK.div_ceil(ticks)).max(ticks)
}

impl FileSink {
    pub(super) fn new(
        job: &FileJob,
        plan: Plan,
        unread: Receiver<Item>,
        session: Arc<Session>,
    ) -> Self {
        Self {
            output: job.output.clone(),
            part: job.part_path(),
            plan,
            writer: None,
            finished: false,
            unread,
            session,
        }
    }

    /// Returns the path of the output until it is complete.
    pub fn part_path(&self) -> &Path {
        &self.part
    }

    /// Returns the end of the last pushed frame, in the output's time.
    pub fn end(&self) -> Option<Pts> {
        self.writer.as_ref().map(|writer| writer.end)
    }

    /// Builds the writing half of the pipeline for frames of `layout`.
    fn begin(&self, layout: &Arc<PixelLayout>) -> Result<Writer> {
        let pipeline = &self.session.pipeline;
        let plan = &self.plan;
        let caps = self.caps(layout)?;
        if plan.codec.needs_even_size() && even::is_odd(layout) {
            let (from, to) = (layout.size, even::layout(layout).size);
            tracing::warn!(
                "the encoder accepts only even sizes, repeating the last column or row: {}x{} becomes {}x{}",
                from.width_px,
                from.height_px,
                to.width_px,
                to.height_px
            );
        }
        let settings = Settings {
            crf: plan.crf,
            framerate: plan.picture.info.fps(),
            size: layout.size,
            pixel_aspect: layout.pixel_aspect,
            described: plan.described,
            is_deep: layout.format == PixelFormat::I420Deep,
        };

        let (parcels, received) = bounded(WAITING_FRAMES);
        let appsrc = self.appsrc(&caps, received);
        let wanted = self.encoded_caps(&caps, settings.is_deep);
        let mut encoding = vec![
            appsrc.upcast(),
            elements::make("videoconvert")?,
            elements::make("videoscale")?,
            elements::capsfilter(&wanted)?,
        ];
        let coders = plan.codec.build(&settings)?;
        let encoder = coders.first().cloned();
        if let Some(encoder) = &encoder {
            refuse_size(&static_pad(encoder, "sink")?, &wanted)?;
        }
        encoding.extend(coders);
        let queue = audio::lead_queue(
            &self.session.shared,
            "the picture runs too far ahead of the sound",
        )?;
        if let Some(encoder) = &encoder {
            let in_order = plan.container.has_edit_lists();
            let encoded = static_pad(encoder, "src")?;
            temporal::keep_lengths(&encoded, &static_pad(&queue, "sink")?, in_order);
        }
        if plan.described != Described::Colors {
            // Otherwise the muxer writes colors that were not signaled.
            elements::rewrite_caps(&static_pad(&queue, "sink")?, |fields| {
                fields.remove_fields(["colorimetry"]);
            });
        } else if plan.codec.told(&plan.colors) != plan.colors {
            let colors = plan.colors.to_string();
            elements::rewrite_caps(&static_pad(&queue, "sink")?, move |fields| {
                fields.set("colorimetry", &colors);
            });
        }
        if plan.container.is_matroska() {
            elements::rewrite_caps(&static_pad(&queue, "sink")?, |fields| {
                if let Ok(said) = fields.get::<String>("mastering-display-info")
                    && let Some(told) = rendition::for_matroskamux(&said)
                {
                    fields.set("mastering-display-info", told);
                }
            });
        }
        encoding.push(queue.clone());

        let muxer = plan.container.make_muxer()?;
        lock(&self.session.shared.announced).hand_over(&muxer, plan.has_range);
        let filesink = elements::make("filesink")?;
        filesink.set_property("location", &self.part);
        filesink.set_property("sync", false);
        // Prerolling would wait for the encoder, which waits for frames, which wait for the pipeline to preroll.
        filesink.set_property("async", false);
        // Written data survives a kill.
        filesink.set_property_from_str("buffer-mode", "unbuffered");
        let written = signal_end(&static_pad(&filesink, "sink")?);

        // All elements are linked before any of them runs: a format query in the meantime could depend on thread
        // timing.
        let writing = [muxer.clone(), filesink];
        elements::link_chain(pipeline, &writing)?;
        elements::link_chain(pipeline, &encoding)?;
        let video_pad = plan.container.video_pad(&muxer, plan.timescale)?;
        let mut tracks = lock(&self.session.shared.tracks).take().unwrap_or_default();
        let run_ins = tracks
            .iter_mut()
            .map(|track| {
                let early = track.early(&self.session.shared)?;
                Ok(self.run_in(early, track))
            })
            .collect::<Result<Vec<_>>>()?;
        let longest = run_ins.iter().copied().max().unwrap_or_default();
        for (track, run_in) in tracks.iter().zip(&run_ins) {
            let delay = if plan.container.has_edit_lists() {
                *run_in
            } else {
                longest
            };
            let shared = &self.session.shared;
            track.link(&muxer, plan.container, delay, *run_in, shared)?;
        }
        static_pad(&queue, "src")?
            .link(&video_pad)
            .map_err(|err| Error::Media(format!("cannot write the video ({err})")))?;
        if let Some(encoder) = &encoder {
            refuse_size(&static_pad(encoder, "sink")?, &wanted)?;
        }
        if let Some(name) = lock(&self.session.shared.announced).of_picture() {
            // Sent before the first frame.
            let _ = encoding
                .first()
                .is_some_and(|source| source.send_event(name));
        }
        elements::start_chain(&writing)?;
        elements::start_chain(&encoding)?;
        let are_heard = tracks.iter().map(|track| Arc::clone(&track.is_heard));
        let run_ins = run_ins.into_iter().zip(are_heard).collect();
        for track in tracks {
            track.open();
        }
        Ok(Writer {
            parcels,
            written,
            layout: Arc::clone(layout),
            begin: None,
            end: Pts::default(),
            next: Pts::default(),
            delay: if plan.container.has_edit_lists() {
                Duration::ZERO
            } else {
                longest
            },
            run_ins,
        })
    }

    /// Returns the length of audio before zero to write of a `track` that begins so `early`; of audio that was cut off,
    /// the video waits only for the packet that it begins in.
    fn run_in(&self, early: Duration, track: &AudioTrack) -> Duration {
        if early <= track.longest_run_in || self.plan.container.has_edit_lists() {
            return early;
        }
        let Some(packet_len) = track.packet_len.filter(|len| !len.is_zero()) else {
            return Duration::ZERO;
        };
        let hidden = Duration::from_nanos((early.as_nanos() % packet_len.as_nanos()) as u64);
        match packet_len - hidden > SLIVER.into() {
            true => hidden + ROUNDING,
            false => Duration::ZERO,
        }
    }

    /// Returns the caps of pushed frames of `layout`.
    fn caps(&self, layout: &PixelLayout) -> Result<gst::Caps> {
        let info = &self.plan.picture.info;
        let layout = if self.plan.codec.needs_even_size() {
            &even::layout(layout)
        } else {
            layout
        };
        let colors = self.plan.codec.told(&self.plan.handed_over());
        // x265 requires a frame rate even if the video has none.
        let framerate = match info.fps() {
            unknown if unknown.numer() == 0 && self.plan.codec == VideoCodec::X265 => {
                gst::Fraction::new(25, 1)
            }
            told => told,
        };
        let caps = pixels::caps(layout, framerate, &colors)?;
        Ok(rendition::with_light(caps, &self.plan.picture.caps))
    }

    /// Returns the encoder's input caps, which also apply to later frames: the first frame's size and colors that can
    /// be signaled.
    fn encoded_caps(&self, caps: &gst::Caps, is_deep: bool) -> gst::Caps {
        let mut encoded = caps.clone();
        if let Some(fields) = encoded.make_mut().structure_mut(0) {
            fields.set("format", self.plan.codec.raw_formats(is_deep));
            let colors = self.plan.codec.told(&self.plan.colors);
            fields.set("colorimetry", colors.to_string());
        }
        encoded
    }

    /// Creates an `appsrc` that requests a frame whenever it has none and waits for it on its own thread.
    fn appsrc(&self, caps: &gst::Caps, parcels: Receiver<Parcel>) -> gst_app::AppSrc {
        let aborted = self.session.shared.aborted.clone();
        let need_data = move |appsrc: &gst_app::AppSrc, _: u32| {
            loop {
                let parcel = select! {
                    recv(parcels) -> parcel => parcel,
                    recv(aborted) -> _ => return,
                };
                match parcel {
                    Ok(Parcel::Caps(caps)) => appsrc.set_caps(Some(&caps)),
                    Ok(Parcel::Frame(buffer)) => {
                        // An error is already on the bus, or the pipeline is shutting down.
                        let _ = appsrc.push_buffer(buffer);
                        return;
                    }
                    Err(_) => {
                        let _ = appsrc.end_of_stream();
                        return;
                    }
                }
            }
        };
        gst_app::AppSrc::builder()
            .caps(caps)
            .format(gst::Format::Time)
            .callbacks(
                gst_app::AppSrcCallbacks::builder()
                    .need_data(need_data)
                    .build(),
            )
            .build()
    }

    fn send(&self, writer: &Writer, parcel: Parcel) -> Result<()> {
        let sent = select! {
            send(writer.parcels, parcel) -> sent => sent.is_ok(),
            recv(self.session.shared.aborted) -> _ => false,
        };
        if sent {
            Ok(())
        } else {
            Err(self.session.shared.error())
        }
    }

    fn write(&mut self, frame: Frame) -> Result<()> {
        let frame = match self.plan.narrows_range() {
            true => range::limit(frame)?,
            false => frame,
        };
        let layout = Arc::clone(&frame.layout);
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.begin(&layout)?,
        };
        let sent = self.write_with(&mut writer, layout, frame);
        self.writer = Some(writer);
        sent
    }

    fn write_with(
        &self,
        writer: &mut Writer,
        layout: Arc<PixelLayout>,
        frame: Frame,
    ) -> Result<()> {
        if *writer.layout != *layout {
            if !same_caps(&writer.layout, &layout) {
                self.send(writer, Parcel::Caps(self.caps(&layout)?))?;
            }
            writer.layout = Arc::clone(&layout);
        }
        let (pts, duration) = (frame.pts.max(writer.next), frame.duration);
        writer.begin.get_or_insert(pts);
        writer.next = Pts(pts.0 + 1_000_000_000_u64.div_ceil(self.plan.timescale.into()));
        let mut buffer = if self.plan.codec.needs_even_size() && even::is_odd(&layout) {
            let (bytes, layout) = even::pad(&layout, frame.bytes());
            pixels::into_buffer(Box::new(bytes), &layout)?
        } else {
            pixels::into_buffer(frame.into_pixels(), &layout)?
        };
        let stamped = buffer.make_mut();
        stamped.set_pts(writer.delayed(pts));
        stamped.set_dts(gst::ClockTime::NONE);
        stamped.set_duration(duration.and_then(|duration| duration.try_into().ok()));
        writer.end = writer.end.max(Pts(pts.0 + self.shown(duration)));
        self.send(writer, Parcel::Frame(buffer))
    }

    /// Returns the time for which a frame is shown, in nanoseconds.
    fn shown(&self, duration: Option<Duration>) -> u64 {
        let fps = self.plan.picture.info.fps();
        match duration {
            Some(duration) => u64::try_from(duration.as_nanos()).unwrap_or(0),
            None if fps.numer() > 0 => {
                1_000_000_000 * u64::from(fps.denom().unsigned_abs())
                    / u64::from(fps.numer().unsigned_abs())
            }
            None => 1,
        }
    }

    fn close(&mut self) -> Result<()> {
        let Some(writer) = self.writer.take() else {
            return Err(Error::Media(format!(
                "no frame was written: {:?}",
                self.output
            )));
        };
        let Writer {
            parcels,
            written,
            begin,
            end,
            delay,
            run_ins,
            ..
        } = writer;
        let shared = &self.session.shared;
        if !shared.complete.load(Ordering::SeqCst) {
            // The video ends early, so the audio must too: otherwise the muxer waits for the rest of it.
            shared.sound_end.store(end.0, Ordering::SeqCst);
            self.session.stop();
        }
        drop(parcels);
        let mut unread = self.unread.clone();
        loop {
            select! {
                recv(written) -> _ => break,
                recv(shared.aborted) -> _ => return Err(shared.error()),
                recv(unread) -> item => if item.is_err() { unread = never() },
            }
        }
        self.session.shut_down()?;
        shared.check()?;
        let end = Duration::from_nanos(end.0);
        let sound_written = shared.sound_written.load(Ordering::SeqCst);
        let sound_written = Duration::from_nanos(sound_written);
        let begin = begin.unwrap_or_default().0;
        let begin = Duration::from_nanos(begin.min(shared.sound_begin.load(Ordering::SeqCst)));
        match self.plan.container {
            Container::Mp4 | Container::Mov => {
                let heard = run_ins
                    .iter()
                    .filter(|(_, is_heard)| is_heard.load(Ordering::SeqCst));
                let run_ins: Vec<Duration> = heard.map(|(run_in, _)| *run_in).collect();
                edits::leave_out_silent(&self.part).and_then(|()| {
                    edits::correct_lists(&self.part, (begin, end), &run_ins, self.plan.created)
                })
            }
            Container::Matroska | Container::Webm => {
                let end = end.max(sound_written) + delay;
                matroska::correct(&self.part, end, self.plan.created)
            }
            Container::MpegTs => Ok(()),
        }
        .map_err(|err| Error::io(&self.part, err))?;
        fs::File::open(&self.part)
            .and_then(|part| part.sync_all())
            .map_err(|err| Error::io(&self.part, err))?;
        fs::rename(&self.part, &self.output).map_err(|err| Error::io(&self.output, err))
    }

    /// Removes an empty file, and a file left by a full disk, to free its space.
    fn clean_up(&self) {
        let part = self.part.symlink_metadata();
        let is_worthless = |part: fs::Metadata| self.session.shared.disk_full() || part.len() == 0;
        if part.is_ok_and(is_worthless) {
            let _ = self.session.shut_down();
            if let Err(err) = fs::remove_file(&self.part) {
                tracing::warn!(%err, part = ?self.part, "cannot remove the unfinished file");
            }
        }
    }
}

impl Sink for FileSink {
    fn push(&mut self, frame: Frame) -> Result<()> {
        self.write(frame).inspect_err(|_| self.clean_up())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.finished = true;
        let closed = self.close();
        if closed.is_err() {
            self.clean_up();
        }
        closed
    }
}

impl Drop for FileSink {
    fn drop(&mut self) {
        if !self.finished {
            // Wakes all threads that wait for further frames, which nobody would write.
            self.session
                .shared
                .fail(Failure::new("the output was abandoned"));
            // The source may have noticed the full disk first.
            self.clean_up();
        }
    }
}

/// Fails for video of `caps` if the elements after `pad` do not accept its size.
fn refuse_size(pad: &gst::Pad, caps: &gst::Caps) -> Result<()> {
    let taken = pad.query_caps(None);
    let size = |caps: &gst::Caps| {
        let fields = caps.structure(0)?;
        Some((
            fields.get::<i32>("width").ok()?,
            fields.get::<i32>("height").ok()?,
        ))
    };
    let Some((width, height)) = size(caps).filter(|_| !taken.can_intersect(caps)) else {
        return Ok(());
    };
    let least = taken.structure(0).and_then(|fields| {
        let least = |name| Some(fields.get::<gst::IntRange<i32>>(name).ok()?.min());
        Some((least("width")?, least("height")?))
    });
    let expected = match least {
        Some((least_width, least_height)) if width < least_width || height < least_height => {
            format!("at least {least_width}x{least_height}")
        }
        _ => "a different size".into(),
    };
    Err(Error::Media(format!(
        "the video is {width}x{height}, but the encoder and container require {expected}"
    )))
}

/// True if `a` and `b` differ at most in strides, which each buffer carries itself.
fn same_caps(a: &PixelLayout, b: &PixelLayout) -> bool {
    (a.format, a.size, a.pixel_aspect) == (b.format, b.size, b.pixel_aspect)
}

/// Returns a channel that disconnects once end of stream passes `pad`.
fn signal_end(pad: &gst::Pad) -> Receiver<()> {
    let (sender, receiver) = bounded(0);
    let sender = std::sync::Mutex::new(Some(sender));
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if info
            .event()
            .is_some_and(|event| event.type_() == gst::EventType::Eos)
        {
            let sender: Option<Sender<()>> = lock(&sender).take();
            drop(sender);
        }
        gst::PadProbeReturn::Ok
    });
    receiver
}
