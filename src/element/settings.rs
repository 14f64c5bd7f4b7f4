//! The element's properties.

use std::time::Duration;

use gstreamer as gst;
use gstreamer::glib;
use gstreamer::prelude::*;

use vitscope_core::frame::placement::Fit;
use vitscope_core::models::{self, Input};
use vitscope_video::overlay::{Colormap, Mode, Overlay};

/// When an explanation is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstVitscopeSyncMode")]
pub enum SyncMode {
    /// Each frame waits for its own explanation.
    #[default]
    #[enum_value(
        name = "Each frame waits for its own explanation; for files",
        nick = "lossless"
    )]
    Lossless,
    /// Each frame is delayed by a fixed time and shows its own explanation or none.
    #[enum_value(
        name = "Live: each frame shows its own explanation after a short delay, or none if the model is too slow",
        nick = "exact"
    )]
    Exact,
    /// Frames never wait and show the latest explanation.
    #[enum_value(
        name = "Live: frames never wait and show the latest explanation, which fades out with age",
        nick = "latest"
    )]
    Latest,
}

/// GStreamer enumeration of the [`Mode`]s for one picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstVitscopeMode")]
pub enum Draw {
    #[default]
    #[enum_value(
        name = "Heatmap over the picture, more opaque where hotter",
        nick = "overlay"
    )]
    Overlay,
    #[enum_value(name = "Heatmap only", nick = "heatmap")]
    Heatmap,
    #[enum_value(name = "Patches below the threshold in gray", nick = "mask")]
    Mask,
    #[enum_value(name = "Picture, darker where colder", nick = "dim")]
    Dim,
    #[enum_value(name = "Original picture", nick = "original")]
    Original,
}

/// GStreamer enumeration of [`Colormap`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstVitscopeColormap")]
pub enum Coloring {
    #[enum_value(name = "Dark blue, green, yellow", nick = "viridis")]
    Viridis,
    #[default]
    #[enum_value(name = "Blue, green, yellow, red", nick = "turbo")]
    Turbo,
    #[enum_value(name = "Black, purple, orange, pale yellow", nick = "inferno")]
    Inferno,
    #[enum_value(name = "Black, purple, pink, cream", nick = "magma")]
    Magma,
    #[enum_value(name = "Blue, cyan, yellow, red", nick = "jet")]
    Jet,
    #[enum_value(name = "Black to white", nick = "gray")]
    Gray,
}

/// Which part of a frame the model sees, as GStreamer's enumeration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstVitscopeInput")]
pub enum InputFit {
    #[default]
    #[enum_value(name = "As the model's preprocessor specifies", nick = "model")]
    Model,
    #[enum_value(name = "Middle of the frame", nick = "crop")]
    Crop,
    #[enum_value(name = "Whole frame, stretched out of proportion", nick = "stretch")]
    Stretch,
    #[enum_value(name = "Whole frame between black bars", nick = "pad")]
    Pad,
}

impl From<InputFit> for Option<Fit> {
    fn from(fit: InputFit) -> Self {
        match fit {
            InputFit::Model => None,
            InputFit::Crop => Some(Fit::Crop),
            InputFit::Stretch => Some(Fit::Stretch),
            InputFit::Pad => Some(Fit::Pad),
        }
    }
}

impl From<Draw> for Mode {
    fn from(draw: Draw) -> Self {
        match draw {
            Draw::Overlay => Self::Overlay,
            Draw::Heatmap => Self::Heatmap,
            Draw::Mask => Self::Mask,
            Draw::Dim => Self::Dim,
            Draw::Original => Self::Original,
        }
    }
}

impl From<Coloring> for Colormap {
    fn from(coloring: Coloring) -> Self {
        match coloring {
            Coloring::Viridis => Self::Viridis,
            Coloring::Turbo => Self::Turbo,
            Coloring::Inferno => Self::Inferno,
            Coloring::Magma => Self::Magma,
            Coloring::Jet => Self::Jet,
            Coloring::Gray => Self::Gray,
        }
    }
}

/// What a worker is started from; another one is another worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) backbone: Option<String>,
    pub(super) gates: Option<String>,
    pub(super) input: InputFit,
    /// 0: as large as the model's own.
    pub(super) input_size: u32,
    pub(super) device: String,
    pub(super) method: String,
    pub(super) method_options: Option<String>,
    pub(super) target_class: String,
    pub(super) batch: u32,
    pub(super) model_instance_id: Option<String>,
}

impl Asked {
    /// What is asked of the model's input.
    pub(super) fn input(&self) -> Input {
        Input {
            fit: self.input.into(),
            edge_px: (self.input_size > 0).then_some(self.input_size as usize),
        }
    }
}

/// All that properties set.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) asked: Asked,
    pub(super) interval: u32,
    pub(super) draw: Draw,
    pub(super) coloring: Coloring,
    pub(super) alpha: f32,
    pub(super) threshold: f32,
    pub(super) smoothing: f32,
    pub(super) show_hud: bool,
    pub(super) show_stats: bool,
    pub(super) sync_mode: SyncMode,
    /// 0: as [`Settings::fades_within`] says.
    pub(super) max_age: gst::ClockTime,
    pub(super) attach_meta: bool,
    pub(super) post_messages: bool,
    pub(super) scores_location: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        let overlay = Overlay::default();
        Self {
            asked: Asked {
                model: models::DEFAULT.into(),
                backbone: None,
                gates: None,
                input: InputFit::default(),
                input_size: 0,
                device: "auto".into(),
                method: "auto".into(),
                method_options: None,
                target_class: "predicted".into(),
                batch: 1,
                model_instance_id: None,
            },
            interval: 1,
            draw: Draw::default(),
            coloring: Coloring::default(),
            alpha: overlay.alpha,
            threshold: overlay.threshold,
            smoothing: 0.0,
            show_hud: true,
            show_stats: false,
            sync_mode: SyncMode::default(),
            max_age: gst::ClockTime::ZERO,
            attach_meta: false,
            post_messages: false,
            scores_location: None,
        }
    }
}

impl Settings {
    /// What is drawn.
    pub(super) fn overlay(&self) -> Overlay {
        Overlay {
            mode: self.draw.into(),
            colormap: self.coloring.into(),
            alpha: self.alpha,
            threshold: self.threshold,
            smooth: true,
        }
    }

    /// True where buffers pass as they came, and nobody is told anything.
    pub(super) fn is_idle(&self) -> bool {
        self.draw == Draw::Original
            && !self.show_hud
            && !self.show_stats
            && !self.attach_meta
            && !self.post_messages
            && self.scores_location.is_none()
    }

    /// Takes a property's new value; true where another worker is needed.
    pub(super) fn set(&mut self, name: &str, value: &glib::Value) -> Result<bool, String> {
        let before = self.asked.clone();
        let wrong = || format!("{name:?} does not accept a value of type {}", value.type_());
        let text = || value.get::<Option<String>>().map_err(|_| wrong());
        macro_rules! plain {
            ($field:expr) => {
                $field = value.get().map_err(|_| wrong())?
            };
        }
        match name {
            "model" => self.asked.model = text()?.unwrap_or_default(),
            "backbone" => self.asked.backbone = text()?.filter(|model| !model.is_empty()),
            "gates" => self.asked.gates = text()?.filter(|path| !path.is_empty()),
            "input" => plain!(self.asked.input),
            "input-size" => plain!(self.asked.input_size),
            "device" => self.asked.device = text()?.unwrap_or_default(),
            "method" => self.asked.method = text()?.unwrap_or_default(),
            "method-options" => {
                self.asked.method_options = text()?.filter(|options| !options.is_empty());
            }
            "target-class" => self.asked.target_class = text()?.unwrap_or_default(),
            "batch" => plain!(self.asked.batch),
            "model-instance-id" => {
                self.asked.model_instance_id = text()?.filter(|id| !id.is_empty());
            }
            "interval" => plain!(self.interval),
            "mode" => plain!(self.draw),
            "colormap" => plain!(self.coloring),
            "alpha" => plain!(self.alpha),
            "threshold" => plain!(self.threshold),
            "smoothing" => plain!(self.smoothing),
            "show-hud" => plain!(self.show_hud),
            "show-stats" => plain!(self.show_stats),
            "sync-mode" => plain!(self.sync_mode),
            "max-age" => {
                let nanos: u64 = value.get().map_err(|_| wrong())?;
                // One more would be no time at all.
                let nanos = nanos.min(gst::ClockTime::MAX.nseconds());
                self.max_age = gst::ClockTime::from_nseconds(nanos);
            }
            "attach-meta" => plain!(self.attach_meta),
            "post-messages" => plain!(self.post_messages),
            "scores-location" => self.scores_location = text()?.filter(|path| !path.is_empty()),
            other => return Err(format!("unknown property {other:?}")),
        }
        Ok(self.asked != before)
    }

    /// A property's value; `None` for what is not a setting.
    pub(super) fn get(&self, name: &str) -> Option<glib::Value> {
        Some(match name {
            "model" => self.asked.model.to_value(),
            "backbone" => self.asked.backbone.to_value(),
            "gates" => self.asked.gates.to_value(),
            "input" => self.asked.input.to_value(),
            "input-size" => self.asked.input_size.to_value(),
            "device" => self.asked.device.to_value(),
            "method" => self.asked.method.to_value(),
            "method-options" => self.asked.method_options.to_value(),
            "target-class" => self.asked.target_class.to_value(),
            "batch" => self.asked.batch.to_value(),
            "model-instance-id" => self.asked.model_instance_id.to_value(),
            "interval" => self.interval.to_value(),
            "mode" => self.draw.to_value(),
            "colormap" => self.coloring.to_value(),
            "alpha" => self.alpha.to_value(),
            "threshold" => self.threshold.to_value(),
            "smoothing" => self.smoothing.to_value(),
            "show-hud" => self.show_hud.to_value(),
            "show-stats" => self.show_stats.to_value(),
            "sync-mode" => self.sync_mode.to_value(),
            "max-age" => self.max_age.nseconds().to_value(),
            "attach-meta" => self.attach_meta.to_value(),
            "post-messages" => self.post_messages.to_value(),
            "scores-location" => self.scores_location.to_value(),
            _ => return None,
        })
    }

    /// How long an explanation that took so long is shown in `latest`: unless a time is set, a second, or twice what it
    /// took, so that it is still there when the next one comes.
    pub(super) fn fades_within(&self, took: Duration) -> Duration {
        match self.max_age {
            gst::ClockTime::ZERO => Duration::from_secs(1).max(2 * took),
            max_age => max_age.into(),
        }
    }
}

/// The element's properties as GStreamer shows them; each class needs its own.
pub(super) fn properties() -> Vec<glib::ParamSpec> {
    let default = Settings::default();
    let text = |name: &'static str, nick, blurb, value: Option<&str>| {
        glib::ParamSpecString::builder(name)
            .nick(nick)
            .blurb(blurb)
            .default_value(value)
            .mutable_playing()
            .build()
    };
    let flag = |name: &'static str, nick, blurb, value| {
        glib::ParamSpecBoolean::builder(name)
            .nick(nick)
            .blurb(blurb)
            .default_value(value)
            .mutable_playing()
            .build()
    };
    let share = |name: &'static str, nick, blurb, value| {
        glib::ParamSpecFloat::builder(name)
            .nick(nick)
            .blurb(blurb)
            .minimum(0.0)
            .maximum(1.0)
            .default_value(value)
            .controllable()
            .mutable_playing()
            .build()
    };
    vec![
        text(
            "model",
            "Model",
            "Embedded model, folder, or OWNER/NAME on Hugging Face",
            Some(&default.asked.model),
        ),
        text(
            "backbone",
            "Backbone",
            "Backbone model, if `model` holds only a head, an adapter, gates or an interpreter",
            None,
        ),
        text(
            "gates",
            "Gates",
            "Folder with DiffMask gates, instead of those in the model's folder",
            None,
        ),
        glib::ParamSpecEnum::builder_with_default("input", default.asked.input)
            .nick("Input")
            .blurb("How to fit a frame of another shape to the model's input")
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("input-size")
            .nick("Input size")
            .blurb("Side length of the model's square input in pixels, a multiple of its patch size; 0 uses the model's own size")
            .default_value(default.asked.input_size)
            .mutable_playing()
            .build(),
        text(
            "device",
            "Device",
            "Device that runs the model: cpu, cuda, cuda:N, or auto",
            Some(&default.asked.device),
        ),
        text(
            "method",
            "Method",
            "Explanation methods, comma-separated, see `vitscope methods`; several are shown on a grid; auto selects diffmask if the model has gates",
            Some(&default.asked.method),
        ),
        text(
            "method-options",
            "Method options",
            "Options of the method, such as groups=12,spread=8; for several methods, METHOD.KEY=VALUE such as gradmask.groups=12",
            None,
        ),
        text(
            "target-class",
            "Target class",
            "Class to explain, by name or index; `predicted` is the most probable class of each frame",
            Some(&default.asked.target_class),
        ),
        glib::ParamSpecUInt::builder("batch")
            .nick("Batch")
            .blurb("Maximum batch size when frames are waiting")
            .minimum(1)
            .maximum(64)
            .default_value(default.asked.batch)
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("interval")
            .nick("Interval")
            .blurb("Explain every Nth frame; the frames in between repeat its explanation")
            .minimum(1)
            .maximum(1000)
            .default_value(default.interval)
            .mutable_playing()
            .build(),
        glib::ParamSpecEnum::builder_with_default("mode", default.draw)
            .nick("Mode")
            .blurb("What to draw")
            .mutable_playing()
            .build(),
        glib::ParamSpecEnum::builder_with_default("colormap", default.coloring)
            .nick("Colormap")
            .blurb("Colormap of the heatmap")
            .mutable_playing()
            .build(),
        share(
            "alpha",
            "Opacity",
            "Opacity of the hottest patch",
            default.alpha,
        ),
        share(
            "threshold",
            "Threshold",
            "Minimum heat of a patch to keep in mode=mask and in regions of interest",
            default.threshold,
        ),
        share(
            "smoothing",
            "Smoothing",
            "Share of previous explanations to blend into each one; scene changes reset it",
            default.smoothing,
        ),
        flag(
            "show-hud",
            "Show class",
            "Draw the class and its probability",
            default.show_hud,
        ),
        flag(
            "show-stats",
            "Show statistics",
            "Draw statistics: kept share; rate, age and latency of explanations; explanations dropped",
            default.show_stats,
        ),
        glib::ParamSpecEnum::builder_with_default("sync-mode", default.sync_mode)
            .nick("Synchronization")
            .blurb("Whether frames wait for their explanations")
            .mutable_ready()
            .build(),
        glib::ParamSpecUInt64::builder("max-age")
            .nick("Maximum age")
            .blurb("In sync-mode=latest, nanoseconds until an explanation has faded out; 0 means one second or twice the time per explanation, whichever is longer")
            .maximum(gst::ClockTime::MAX.nseconds())
            .default_value(default.max_age.nseconds())
            .mutable_playing()
            .build(),
        flag(
            "attach-meta",
            "Attach meta",
            "Attach GstVitscopeMeta and regions of interest to explained frames",
            default.attach_meta,
        ),
        flag(
            "post-messages",
            "Post messages",
            "Post an element message `vitscope` on the bus for each explained frame",
            default.post_messages,
        ),
        glib::ParamSpecString::builder("scores-location")
            .nick("Scores location")
            .blurb("Where to write one JSON line per frame: a file, tcp://HOST:PORT or unix:PATH")
            .mutable_ready()
            .build(),
        glib::ParamSpecString::builder("model-instance-id")
            .nick("Model instance")
            .blurb("Elements with the same id share one model and one worker, and batch across streams")
            .mutable_ready()
            .build(),
        glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
            .nick("Statistics")
            .blurb("Frames passed, explained and skipped; explanations per second; time per explanation, its age when drawn, and the delay of frames, in nanoseconds")
            .read_only()
            .build(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_fades_when_it_is_told_to_or_when_the_next_one_may_be_late() {
        let ms = Duration::from_millis;
        let mut settings = Settings::default();
        let fades = |settings: &Settings| [ms(40), ms(700)].map(|took| settings.fades_within(took));
        assert_eq!(fades(&settings), [ms(1000), ms(1400)]);
        settings
            .set("max-age", &300_000_000_u64.to_value())
            .unwrap();
        assert_eq!(fades(&settings), [ms(300), ms(300)]);
    }

    #[test]
    fn every_setting_has_a_property_and_comes_back_as_it_was_set() {
        let mut settings = Settings::default();
        for spec in properties() {
            if spec.name() == "stats" {
                continue;
            }
            let value = spec.default_value().clone();
            let now = settings.get(spec.name()).unwrap();
            assert_eq!(
                format!("{now:?}"),
                format!("{value:?}"),
                "the default of {}",
                spec.name()
            );
            settings.set(spec.name(), &value).unwrap();
        }
    }

    #[test]
    fn another_model_needs_another_worker_and_another_color_does_not() {
        let mut settings = Settings::default();
        assert_eq!(settings.set("model", &"red-patches".to_value()), Ok(true));
        assert_eq!(settings.set("model", &"red-patches".to_value()), Ok(false));
        assert_eq!(settings.set("alpha", &0.25_f32.to_value()), Ok(false));
    }
}
