//! Contents of a file other than video and audio: titles, chapters, covers, dates.
//!
//! GStreamer passes tags and Matroska's chapters to the muxer only along with audio. This module passes them on for
//! every file, and warns about contents that get lost.

use std::sync::Arc;

use gstreamer as gst;
use gstreamer::prelude::*;

use super::container::Container;
use super::job::FileJob;
use super::matroska;
use super::mp4::Movie;
use super::session::{Shared, lock};

/// Header information about the file's other contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Beside {
    pub(super) chapters: bool,
    pub(super) time_code: bool,
    /// Attached image, in Matroska; in other containers it is a tag.
    pub(super) cover: bool,
    /// Another attached file, such as a font.
    pub(super) attachment: bool,
    /// True if some audio tracks are played by default and others are not.
    pub(super) default_sound: bool,
    /// Creation time of the file, in seconds since 1970.
    pub(super) created: Option<i64>,
}

impl Beside {
    /// Reads the header of `job`'s input.
    pub(super) fn of(job: &FileJob) -> Self {
        Movie::header(&job.input)
            .map(|movie| movie.beside)
            .or_else(|| matroska::beside(&job.input))
            .unwrap_or_default()
    }
}

/// Metadata that the demuxer announces for the whole file.
#[derive(Default)]
pub(super) struct Announced {
    tags: Option<gst::TagList>,
    /// True if a track has a title of its own.
    has_named_tracks: bool,
    /// Title and language of the video, which no encoder passes on.
    of_picture: Option<gst::TagList>,
    chapters: Option<gst::Toc>,
}

/// Collects the metadata announced on the demuxer's `pad`.
pub(super) fn gather(pad: &gst::Pad, shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |pad, info| {
        let Some(event) = info.event() else {
            return gst::PadProbeReturn::Ok;
        };
        match event.view() {
            gst::EventView::Tag(tag) if tag.tag().scope() == gst::TagScope::Global => {
                let announced = &mut *lock(&shared.announced);
                let tags = announced.tags.get_or_insert_with(gst::TagList::new);
                tags.make_mut().insert(tag.tag(), gst::TagMergeMode::Keep);
            }
            gst::EventView::Tag(tag) => {
                let announced = &mut *lock(&shared.announced);
                let title = tag.tag().get::<gst::tags::Title>();
                announced.has_named_tracks |= title.is_some();
                let is_picture =
                    |stream: gst::Stream| stream.stream_type().contains(gst::StreamType::VIDEO);
                if pad.stream().is_some_and(is_picture) {
                    let kept = announced.of_picture.get_or_insert_with(gst::TagList::new);
                    keep_name(tag.tag(), kept.make_mut());
                }
            }
            gst::EventView::Toc(toc) => {
                lock(&shared.announced).chapters = Some(toc.toc_owned().0);
                // The muxer gets it from this module, or not at all.
                drop(info.data.take());
                return gst::PadProbeReturn::Handled;
            }
            _ => {}
        }
        gst::PadProbeReturn::Ok
    });
}

/// Adds the title and language in `tags` to `kept` if they are missing there.
fn keep_name(tags: &gst::TagListRef, kept: &mut gst::TagListRef) {
    if let Some(title) = tags.get::<gst::tags::Title>() {
        kept.add::<gst::tags::Title>(&title.get(), gst::TagMergeMode::Keep);
    }
    if let Some(language) = tags.get::<gst::tags::LanguageCode>() {
        kept.add::<gst::tags::LanguageCode>(&language.get(), gst::TagMergeMode::Keep);
    }
}

impl Announced {
    /// Returns the metadata of the video track as an event.
    pub(super) fn of_picture(&self) -> Option<gst::Event> {
        let tags = self.of_picture.clone()?;
        Some(gst::event::Tag::new(tags))
    }

    /// Passes all metadata that remains valid to `muxer`: in a part of the file, chapters are at other times.
    pub(super) fn hand_over(&self, muxer: &gst::Element, job_has_range: bool) {
        if let (Some(tags), Some(setter)) = (&self.tags, muxer.dynamic_cast_ref::<gst::TagSetter>())
        {
            setter.merge_tags(tags, gst::TagMergeMode::Keep);
        }
        if let (Some(chapters), false, Some(setter)) = (
            &self.chapters,
            job_has_range,
            muxer.dynamic_cast_ref::<gst::TocSetter>(),
        ) {
            setter.set_toc(Some(chapters));
        }
    }

    /// Warns about the contents that the output of `job` lacks.
    pub(super) fn name_lost(&self, job: &FileJob, container: Container, beside: &Beside) {
        let has_chapters = beside.chapters || self.chapters.is_some();
        let keeps_chapters = self.chapters.is_some() && !job.has_range() && container.is_matroska();
        let has_cover = beside.cover
            || self
                .tags
                .as_ref()
                .is_some_and(|tags| tags.index::<gst::tags::Image>(0).is_some());
        let lost = [
            (has_chapters && !keeps_chapters, "chapters"),
            (beside.time_code, "timecode"),
            (has_cover && !container.has_edit_lists(), "cover art"),
            (beside.attachment, "attachments"),
            (
                self.has_named_tracks && !container.is_matroska(),
                "track titles",
            ),
            (beside.default_sound, "default flags of audio tracks"),
        ];
        let lost: Vec<&str> = lost
            .iter()
            .filter_map(|(is_lost, name)| is_lost.then_some(*name))
            .collect();
        if !lost.is_empty() {
            tracing::warn!("not copied: {}", lost.join(", "));
        }
    }
}
