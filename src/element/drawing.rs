//! Drawing on frames that leave, and the data attached to them.

use std::time::Instant;

use gstreamer as gst;
use gstreamer::subclass::prelude::*;

use super::element::{VitScope, lock};
use super::meta::{self, Found};
use super::settings::{Settings, SyncMode};
use super::stream::Shown;
use super::streaming::Streaming;
use vitscope_video::media::pixels::buffer_from_frame;
use vitscope_video::pipeline::compositor::Compositor;
use vitscope_video::pipeline::stages::{Composited, Finding};

impl VitScope {
    /// Returns the lines of text on a frame, besides captions.
    fn notes(&self, settings: &Settings, finding: Option<&Finding>) -> Vec<String> {
        let mut lines = vec![lock(&self.note).clone()];
        if settings.show_stats {
            let kept = finding.and_then(|finding| finding.maps.first()?.kept());
            lines.extend(lock(&self.stats).lines(kept, Instant::now()));
        }
        lines
    }

    /// Draws a frame's explanation on it, and attaches the data that the settings request.
    pub(super) fn draw(
        &self,
        streaming: &mut Streaming,
        Shown {
            frame,
            settings,
            finding,
            strength,
        }: Shown,
    ) -> Result<gst::Buffer, gst::FlowError> {
        let failed = |reason: String| {
            gst::element_imp_error!(self, gst::StreamError::Failed, ("{reason}"));
            gst::FlowError::Error
        };
        let time = gst::ClockTime::from_nseconds(frame.pts.0);
        let mut overlay = settings.overlay();
        overlay.alpha *= strength;
        let (finding, of) = finding.unzip();
        let compositor = Compositor {
            overlay,
            n_maps: streaming.n_maps,
            keeps_size: true,
            has_captions: settings.show_hud,
        };
        let notes = self.notes(&settings, finding.as_deref());
        let drawn = compositor.draw(frame, finding.as_deref(), &notes);
        let frame = drawn.map_err(|error| failed(error.to_string()))?;
        let composited = Composited { frame, finding };
        if let Some(scores) = &mut streaming.scores {
            scores.push(composited.record());
            let written = scores.write_settled(|seq| streaming.frames.is_awaited(seq));
            // Live readers need each frame's line as soon as it is available.
            let written = match settings.sync_mode {
                SyncMode::Lossless => written,
                SyncMode::Exact | SyncMode::Latest => written.and_then(|()| scores.flush()),
            };
            written.map_err(|error| failed(error.to_string()))?;
        }
        let Composited { frame, finding } = composited;
        let mut buffer = buffer_from_frame(frame).map_err(|error| failed(error.to_string()))?;
        if let (true, Some(finding)) = (settings.attach_meta, &finding)
            && let Some(map) = finding.maps.first()
        {
            let buffer = buffer.make_mut();
            let found = Found::new(
                finding,
                map,
                of.map_or(time, |of| gst::ClockTime::from_nseconds(of.0)),
            );
            let attached = found.attach(buffer);
            attached.map_err(|error| failed(error.to_string()))?;
            let regions = meta::regions(finding, map, settings.threshold);
            meta::attach_regions(buffer, &regions);
            #[cfg(feature = "v1_26")]
            meta::attach_analytics(buffer, &found, &regions)
                .map_err(|error| failed(error.to_string()))?;
        }
        Ok(buffer)
    }
}
