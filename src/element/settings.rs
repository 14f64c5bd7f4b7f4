//! The element's properties.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gstreamer as gst;
use gstreamer::glib;
use gstreamer::prelude::*;

use vitscope_core::changes;
use vitscope_core::error::{Error, Result};
use vitscope_core::explain::Method;
use vitscope_core::frame::placement::Fit;
use vitscope_core::request::Request;
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

/// GStreamer enumeration of the part of a frame that the model sees.
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

impl From<Option<Fit>> for InputFit {
    fn from(fit: Option<Fit>) -> Self {
        match fit {
            None => Self::Model,
            Some(Fit::Crop) => Self::Crop,
            Some(Fit::Stretch) => Self::Stretch,
            Some(Fit::Pad) => Self::Pad,
        }
    }
}

impl Draw {
    /// Returns the enumeration value of `mode`; `None` for modes that the element does not draw.
    pub fn of(mode: Mode) -> Option<Self> {
        match mode {
            Mode::Overlay => Some(Self::Overlay),
            Mode::Heatmap => Some(Self::Heatmap),
            Mode::Mask => Some(Self::Mask),
            Mode::Dim => Some(Self::Dim),
            Mode::Original => Some(Self::Original),
            Mode::SideBySide => None,
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

impl From<Colormap> for Coloring {
    fn from(colormap: Colormap) -> Self {
        match colormap {
            Colormap::Viridis => Self::Viridis,
            Colormap::Turbo => Self::Turbo,
            Colormap::Inferno => Self::Inferno,
            Colormap::Magma => Self::Magma,
            Colormap::Jet => Self::Jet,
            Colormap::Gray => Self::Gray,
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

/// Specification of a worker; if it changes, another worker is needed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WorkerSpec {
    request: Request,
    pub(super) model_instance_id: Option<String>,
    /// Invalid texts by property, with the reason.
    unread: BTreeMap<&'static str, (String, String)>,
}

impl WorkerSpec {
    /// Returns the request to the model.
    ///
    /// # Errors
    /// [`Error::Config`] if a property's text is invalid.
    pub(super) fn request(&self) -> Result<&Request> {
        match self.unread.values().next() {
            Some((_, reason)) => Err(Error::Config(reason.clone())),
            None => Ok(&self.request),
        }
    }

    /// Returns the name of the model.
    pub(super) fn model(&self) -> &str {
        &self.request.model
    }

    /// Returns whether both use the same model.
    pub(super) fn has_model_of(&self, other: &Self) -> bool {
        let model = |spec: &Self| {
            let request = spec.request.clone();
            Request {
                methods: Vec::new(),
                options: toml::Table::new(),
                targets: Vec::new(),
                batch: NonZeroUsize::MIN,
                ..request
            }
        };
        model(self) == model(other)
    }
}

/// Values of all properties.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The request to the model; only the first target counts.
    pub request: Request,
    /// Elements with the same id share one model and one worker.
    pub model_instance_id: Option<String>,
    /// Explains every Nth frame; at least 1.
    pub interval: u32,
    /// What to draw.
    pub draw: Draw,
    /// Colormap of the heatmap.
    pub coloring: Coloring,
    /// Opacity of the hottest patch, 0 to 1.
    pub alpha: f32,
    /// Minimum heat of a patch to keep, 0 to 1.
    pub threshold: f32,
    /// Share of previous explanations to blend into each one, 0 to 1.
    pub smoothing: f32,
    /// Whether to draw the class and its probability.
    pub show_hud: bool,
    /// Whether to draw statistics.
    pub show_stats: bool,
    /// Whether frames wait for their explanations.
    pub sync_mode: SyncMode,
    /// In [`SyncMode::Latest`], time until an explanation has faded out; 0 chooses one.
    pub max_age: Duration,
    /// Whether to attach findings to frames.
    pub attach_meta: bool,
    /// Whether to post findings on the bus.
    pub post_messages: bool,
    /// Where to write one JSON line per frame.
    pub scores_location: Option<String>,
    /// Invalid texts by property, with the reason.
    pub(super) unread: BTreeMap<&'static str, (String, String)>,
}

impl Default for Settings {
    fn default() -> Self {
        let overlay = Overlay::default();
        Self {
            request: Request::default(),
            model_instance_id: None,
            interval: 1,
            draw: Draw::default(),
            coloring: Coloring::default(),
            alpha: overlay.alpha,
            threshold: overlay.threshold,
            smoothing: 0.0,
            show_hud: true,
            show_stats: false,
            sync_mode: SyncMode::default(),
            max_age: Duration::ZERO,
            attach_meta: false,
            post_messages: false,
            scores_location: None,
            unread: BTreeMap::new(),
        }
    }
}

/// Parses the property `method`; an empty list stands for the model's default.
fn methods(text: &str) -> Result<Vec<Method>> {
    match text {
        AUTO => Ok(Vec::new()),
        names => names.split(',').map(|name| name.trim().parse()).collect(),
    }
}

fn methods_text(methods: &[Method]) -> String {
    match methods {
        [] => AUTO.to_owned(),
        methods => methods
            .iter()
            .map(|method| method.name())
            .collect::<Vec<_>>()
            .join(","),
    }
}

/// Formats options for `method-options`; `None` if there are none.
fn options_text(options: &toml::Table) -> Option<String> {
    let texts: Vec<String> = options
        .iter()
        .map(|(key, value)| format!("{key} = {value}"))
        .collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

/// Value of `method` that stands for the model's default.
const AUTO: &str = "auto";

impl Settings {
    /// Returns what to draw.
    pub(super) fn overlay(&self) -> Overlay {
        Overlay {
            mode: self.draw.into(),
            colormap: self.coloring.into(),
            alpha: self.alpha,
            threshold: self.threshold,
            smooth: true,
        }
    }

    /// Returns whether buffers pass unchanged and nothing is reported.
    pub(super) fn is_idle(&self) -> bool {
        self.draw == Draw::Original
            && !self.show_hud
            && !self.show_stats
            && !self.attach_meta
            && !self.post_messages
            && self.scores_location.is_none()
    }

    /// Returns the specification of the worker.
    pub(super) fn worker_spec(&self) -> WorkerSpec {
        WorkerSpec {
            request: self.request.clone(),
            model_instance_id: self.model_instance_id.clone(),
            unread: self.unread.clone(),
        }
    }

    /// Parses the text of a property; an invalid text is kept, and opening the model fails.
    fn read(&mut self, name: &'static str, text: String) {
        let request = &mut self.request;
        let read = match name {
            "device" => text.parse().map(|device| request.device = device),
            "precision" => text.parse().map(|numbers| request.arithmetic = numbers),
            "method" => methods(&text).map(|methods| request.methods = methods),
            _ => changes::parse_list(&text).map(|options| request.options = options),
        };
        match read {
            Ok(()) => self.unread.remove(name),
            Err(error) => self.unread.insert(name, (text, error.to_string())),
        };
    }

    /// Sets a property; returns `true` if another worker is needed.
    pub(super) fn set(
        &mut self,
        name: &str,
        value: &glib::Value,
    ) -> std::result::Result<bool, String> {
        let before = self.worker_spec();
        let wrong = || format!("{name:?} does not accept a value of type {}", value.type_());
        let text = || value.get::<Option<String>>().map_err(|_| wrong());
        let request = &mut self.request;
        macro_rules! plain {
            ($field:expr) => {
                $field = value.get().map_err(|_| wrong())?
            };
        }
        match name {
            "model" => request.model = text()?.unwrap_or_default(),
            "backbone" => request.backbone = text()?.filter(|model| !model.is_empty()),
            "gates" => {
                let folder = text()?.filter(|path| !path.is_empty());
                request.gates = folder.map(PathBuf::from);
            }
            "input" => {
                let fit: InputFit = value.get().map_err(|_| wrong())?;
                request.input.fit = fit.into();
            }
            "input-size" => {
                let edge_px: u32 = value.get().map_err(|_| wrong())?;
                request.input.edge_px = (edge_px > 0).then_some(edge_px as usize);
            }
            "device" => self.read("device", text()?.unwrap_or_default()),
            "precision" => self.read("precision", text()?.unwrap_or_default()),
            "reuse" => plain!(request.reuse),
            "method" => self.read("method", text()?.unwrap_or_default()),
            "method-options" => self.read("method-options", text()?.unwrap_or_default()),
            "target-class" => request.targets = vec![text()?.unwrap_or_default()],
            "batch" => {
                let batch: u32 = value.get().map_err(|_| wrong())?;
                request.batch = NonZeroUsize::new(batch as usize).unwrap_or(NonZeroUsize::MIN);
            }
            "model-instance-id" => {
                self.model_instance_id = text()?.filter(|id| !id.is_empty());
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
                self.max_age = Duration::from_nanos(value.get().map_err(|_| wrong())?);
            }
            "attach-meta" => plain!(self.attach_meta),
            "post-messages" => plain!(self.post_messages),
            "scores-location" => self.scores_location = text()?.filter(|path| !path.is_empty()),
            other => return Err(format!("unknown property {other:?}")),
        }
        Ok(self.worker_spec() != before)
    }

    /// Returns a property's value; `None` if it is not a setting.
    pub(super) fn get(&self, name: &str) -> Option<glib::Value> {
        if let Some((text, _)) = self.unread.get(name) {
            return Some(text.to_value());
        }
        let request = &self.request;
        // The setter accepted only values that the property can hold.
        let whole = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Some(match name {
            "model" => request.model.to_value(),
            "backbone" => request.backbone.to_value(),
            "gates" => {
                let folder = request.gates.as_deref().and_then(Path::to_str);
                folder.to_value()
            }
            "input" => InputFit::from(request.input.fit).to_value(),
            "input-size" => request.input.edge_px.map_or(0, whole).to_value(),
            "device" => request.device.to_string().to_value(),
            "precision" => request.arithmetic.name().to_value(),
            "reuse" => request.reuse.to_value(),
            "method" => methods_text(&request.methods).to_value(),
            "method-options" => options_text(&request.options).to_value(),
            "target-class" => request.targets.first().to_value(),
            "batch" => whole(request.batch.get()).to_value(),
            "model-instance-id" => self.model_instance_id.to_value(),
            "interval" => self.interval.to_value(),
            "mode" => self.draw.to_value(),
            "colormap" => self.coloring.to_value(),
            "alpha" => self.alpha.to_value(),
            "threshold" => self.threshold.to_value(),
            "smoothing" => self.smoothing.to_value(),
            "show-hud" => self.show_hud.to_value(),
            "show-stats" => self.show_stats.to_value(),
            "sync-mode" => self.sync_mode.to_value(),
            "max-age" => {
                let nanos = u64::try_from(self.max_age.as_nanos());
                nanos.unwrap_or(u64::MAX).to_value()
            }
            "attach-meta" => self.attach_meta.to_value(),
            "post-messages" => self.post_messages.to_value(),
            "scores-location" => self.scores_location.to_value(),
            _ => return None,
        })
    }

    /// Returns how long `latest` shows an explanation that took `took`: `max_age` if it is set, otherwise one second or
    /// twice `took`, whichever is longer, so that it is still visible when the next one arrives.
    pub(super) fn fades_within(&self, took: Duration) -> Duration {
        match self.max_age {
            Duration::ZERO => Duration::from_secs(1).max(2 * took),
            max_age => max_age,
        }
    }
}

/// Returns the element's properties for GStreamer; each class needs its own.
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
            Some(&default.request.model),
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
        glib::ParamSpecEnum::builder_with_default("input", InputFit::default())
            .nick("Input")
            .blurb("How to fit a frame of another shape to the model's input")
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("input-size")
            .nick("Input size")
            .blurb("Side length of the model's square input in pixels, a multiple of its patch size; 0 uses the model's own size")
            .mutable_playing()
            .build(),
        text(
            "device",
            "Device",
            "Device that runs the model: cpu, cuda, cuda:N, or auto",
            Some("auto"),
        ),
        text(
            "precision",
            "Precision",
            "Numbers that the model computes with on the CPU: f32, or bf16 or int8 for less time and nearly the same answers and maps",
            Some("f32"),
        ),
        glib::ParamSpecFloat::builder("reuse")
            .nick("Reuse")
            .blurb("Compute only the patches that change from frame to frame while the others drift by no more than this, such as 0.01; 0 computes every patch")
            .minimum(0.0)
            .maximum(1.0)
            .default_value(default.request.reuse)
            .mutable_playing()
            .build(),
        text(
            "method",
            "Method",
            "Explanation methods, comma-separated, see `vitscope methods`; several are shown on a grid; auto selects diffmask if the model has gates",
            Some(AUTO),
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
            Some("predicted"),
        ),
        glib::ParamSpecUInt::builder("batch")
            .nick("Batch")
            .blurb("Maximum batch size when frames are waiting")
            .minimum(1)
            .maximum(64)
            .default_value(1)
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
            .default_value(0)
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
