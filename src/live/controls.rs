//! Changes made by the page or by keys during live video: the element's properties and the freeze.

use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use image::ImageFormat;

use super::freeze::Freeze;
use super::peek::Peek;
use super::teaching::Teaching;
use crate::serve::{About, AboutMethod, Change, Feed, Host, Lesson, Settings, Topic};
use vitscope_core::changes;
use vitscope_core::error::{Error, Result};
use vitscope_core::explain::{Method, Target};
use vitscope_core::models::Model;
use vitscope_core::request::Request;
use vitscope_element::{Coloring, Draw, VitScope};
use vitscope_video::overlay::{Colormap, Mode};

/// Maximum number of methods on a grid.
const MOST_METHODS: usize = 4;

/// Opacities that a key cycles through.
const OPACITIES: [f32; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];

/// The action of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Freeze or resume the picture.
    Freeze,
    /// Save the current picture to a file.
    Snapshot,
    /// Switch to the next method that works with the model.
    Method,
    /// Switch to the next opacity.
    Opacity,
    /// Switch to the next class to explain.
    Target,
    /// Add the current picture as an example of this class, counted from 1.
    Example(u8),
    /// Undo the last example.
    Undo,
    /// Save the taught head.
    Save,
    /// Quit.
    Quit,
}

impl Key {
    /// Returns the action of a key by its name in the terminal or the window.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            " " | "space" => Self::Freeze,
            "s" => Self::Snapshot,
            "m" => Self::Method,
            "o" => Self::Opacity,
            "t" => Self::Target,
            "u" => Self::Undo,
            "w" => Self::Save,
            "q" | "Escape" => Self::Quit,
            digit if digit.len() == 1 => match digit.parse() {
                Ok(class @ 1..=9) => Self::Example(class),
                _ => return None,
            },
            _ => return None,
        })
    }
}

/// Applies changes and reports them to the page.
pub(super) struct Controls {
    source: String,
    element: VitScope,
    freeze: Arc<Freeze>,
    shown: Peek,
    feed: Arc<Feed>,
    /// Options of all methods, including those not in use.
    options: Mutex<toml::Table>,
    teaching: Option<Teaching>,
}

impl Controls {
    pub(super) fn new(
        source: String,
        element: VitScope,
        freeze: Arc<Freeze>,
        shown: Peek,
        feed: Arc<Feed>,
        options: toml::Table,
        teaching: Option<Teaching>,
    ) -> Self {
        let controls = Self {
            source,
            element,
            freeze,
            shown,
            feed,
            options: Mutex::new(options),
            teaching,
        };
        controls.tell();
        controls
    }

    /// Returns the current settings.
    pub(super) fn settings(&self) -> Settings {
        let set = self.element.settings();
        let votes = self
            .options()
            .get(Method::DiffMask.name())
            .and_then(|options| options.get("votes")?.as_bool());
        Settings {
            alpha: set.alpha,
            threshold: set.threshold,
            smoothing: set.smoothing,
            colormap: Colormap::from(set.coloring).name().to_owned(),
            mode: Mode::from(set.draw).name().to_owned(),
            methods: self.methods(&set.request),
            target: set.request.targets.first().cloned().unwrap_or_default(),
            frozen: self.freeze.is_frozen(),
            votes: votes.unwrap_or(false),
        }
    }

    /// Sends the current settings to the page.
    pub(super) fn tell(&self) {
        // Serializing plain data cannot fail.
        let json = serde_json::to_string(&self.settings()).unwrap_or_default();
        self.feed.tell(Topic::Settings, &json);
    }

    /// Returns the names of the methods; empty while the default method is unknown.
    fn methods(&self, request: &Request) -> Vec<String> {
        let methods = match request.methods.as_slice() {
            [] => (self.element.model().iter())
                .map(|model| model.default_method())
                .collect(),
            methods => methods.to_vec(),
        };
        methods.iter().map(ToString::to_string).collect()
    }

    fn options(&self) -> MutexGuard<'_, toml::Table> {
        self.options.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn model(&self) -> Result<Arc<Model>> {
        let model = self.element.model();
        model.ok_or_else(|| Error::Config("the model is still loading, try again".into()))
    }

    /// Returns the teaching state.
    ///
    /// # Errors
    /// [`Error::Config`] if teaching is off.
    pub(super) fn teaching(&self) -> Result<&Teaching> {
        let off = || Error::Config("teaching is off, start vitscope with --teach FOLDER".into());
        self.teaching.as_ref().ok_or_else(off)
    }

    /// Carries out the action of a key, except for saving a snapshot and quitting.
    ///
    /// # Errors
    /// Fails if the action is not possible.
    pub(super) fn press(&self, key: Key) -> Result<()> {
        let settings = self.settings();
        let change = match key {
            Key::Snapshot | Key::Quit => return Ok(()),
            Key::Example(class) => return self.teach(&Lesson::Example(usize::from(class) - 1)),
            Key::Undo => return self.teach(&Lesson::Undo),
            Key::Save => return self.teach(&Lesson::Save),
            Key::Freeze => Change {
                frozen: Some(!settings.frozen),
                ..Change::default()
            },
            Key::Opacity => Change {
                alpha: Some(next_opacity(settings.alpha)),
                ..Change::default()
            },
            Key::Method => return self.change(&self.next_method(&settings)?),
            Key::Target => Change {
                target: Some(self.next_target(&settings)?),
                ..Change::default()
            },
        };
        self.change(&change)
    }

    /// Returns the change to the method after the first current one. If it does not explain classes, the target becomes
    /// the predicted class.
    fn next_method(&self, settings: &Settings) -> Result<Change> {
        let model = self.model()?;
        let usable: Vec<Method> = usable(&model).collect();
        let first = settings.methods.first();
        let here = (usable.iter()).position(|method| Some(method.name()) == first.map(|it| &**it));
        let next = here.map_or(0, |here| (here + 1) % usable.len().max(1));
        let method = usable
            .get(next)
            .ok_or_else(|| Error::Config("no method works with this model".into()))?;
        let explains_classes = method
            .build_with(model.parts(), toml::Table::new())?
            .explains_classes();
        Ok(Change {
            methods: Some(vec![method.name().to_owned()]),
            target: (!explains_classes).then(|| "predicted".to_owned()),
            ..Change::default()
        })
    }

    /// Returns the class after the current target, starting with the predicted class.
    fn next_target(&self, settings: &Settings) -> Result<String> {
        let model = self.model()?;
        let n_classes = model.vit.config().labels.len();
        Ok(match model.target(&settings.target)? {
            Target::Predicted if n_classes > 0 => "0".to_owned(),
            Target::Class(class) if class + 1 < n_classes => (class + 1).to_string(),
            _ => "predicted".to_owned(),
        })
    }

    /// Returns methods, options and target after a change of them or of votes, tried on the model, and the options of
    /// all methods.
    fn asked(&self, change: &Change) -> Result<(Request, toml::Table)> {
        let model = self.model()?;
        let now = self.settings();
        let names = change.methods.as_ref().unwrap_or(&now.methods);
        let target = change.target.as_ref().unwrap_or(&now.target);
        if !(1..=MOST_METHODS).contains(&names.len()) {
            return Err(Error::Config(format!(
                "methods: got {}, expected 1 to {MOST_METHODS}",
                names.len()
            )));
        }
        let methods: Vec<Method> = names
            .iter()
            .map(|name| name.parse())
            .collect::<Result<_>>()?;
        let mut options = self.options().clone();
        if let Some(votes) = change.votes {
            let votes = toml::Table::from_iter([("votes".to_owned(), votes.into())]);
            changes::set_options(&mut options, Method::DiffMask.name(), votes);
        }
        let parsed = model.target(target)?;
        let request = Request {
            options: options_of(&methods, &options),
            methods,
            targets: vec![target.clone()],
            ..Request::default()
        };
        for explainer in request.explainers(&model)? {
            parsed.check_for(explainer.name(), explainer.explains_classes())?;
        }
        Ok((request, options))
    }
}

/// Selects the options of these methods from those of all methods.
pub(super) fn options_of(methods: &[Method], options: &toml::Table) -> toml::Table {
    let own = methods.iter().filter_map(|method| {
        let (name, options) = options.get_key_value(method.name())?;
        Some((name.clone(), options.clone()))
    });
    own.collect()
}

fn usable(model: &Model) -> impl Iterator<Item = Method> {
    let has_head = !model.vit.config().labels.is_empty();
    (Method::ALL.iter().copied()).filter(move |method| {
        let built = method.build_with(model.parts(), toml::Table::new());
        built.is_ok_and(|explainer| has_head || !explainer.explains_classes())
    })
}

fn next_opacity(alpha: f32) -> f32 {
    let higher = OPACITIES
        .into_iter()
        .find(|&opacity| opacity > alpha + 1e-3);
    higher.unwrap_or(OPACITIES[0])
}

/// Checks that a requested share, if any, is a number from 0 to 1.
fn check_share(name: &str, value: Option<f32>) -> Result<()> {
    match value {
        Some(value) if !(0.0..=1.0).contains(&value) => Err(Error::Config(format!(
            "{name} is {value}, expected a number from 0 to 1"
        ))),
        _ => Ok(()),
    }
}

impl Host for Controls {
    fn about(&self) -> Option<About> {
        let model = self.element.model()?;
        Some(About {
            version: env!("CARGO_PKG_VERSION"),
            source: self.source.clone(),
            model: self.element.settings().request.model,
            labels: model.vit.config().labels.clone(),
            methods: usable(&model)
                .map(|method| AboutMethod {
                    name: method.name(),
                    summary: method.entry().summary,
                })
                .collect(),
            colormaps: Colormap::ALL.map(Colormap::name).to_vec(),
            modes: (Mode::ALL.into_iter())
                .filter(|mode| *mode != Mode::SideBySide)
                .map(Mode::name)
                .collect(),
        })
    }

    fn change(&self, change: &Change) -> Result<()> {
        check_share("alpha", change.alpha)?;
        check_share("threshold", change.threshold)?;
        check_share("smoothing", change.smoothing)?;
        let coloring = change
            .colormap
            .as_ref()
            .map(|name| name.parse::<Colormap>());
        let coloring = coloring.transpose()?.map(Coloring::from);
        let mode = change.mode.as_ref().map(|name| name.parse::<Mode>());
        let draw = mode.transpose()?.map(|mode| {
            Draw::of(mode).ok_or_else(|| {
                Error::Config(
                    "mode side-by-side is not available for live video, choose two methods instead"
                        .into(),
                )
            })
        });
        let draw = draw.transpose()?;
        let asks = change.methods.is_some() || change.target.is_some() || change.votes.is_some();
        let asked = asks.then(|| self.asked(change)).transpose()?;
        let asked = asked.map(|(asked, options)| {
            *self.options() = options;
            asked
        });
        self.element.change(|settings| {
            settings.alpha = change.alpha.unwrap_or(settings.alpha);
            settings.threshold = change.threshold.unwrap_or(settings.threshold);
            settings.smoothing = change.smoothing.unwrap_or(settings.smoothing);
            settings.coloring = coloring.unwrap_or(settings.coloring);
            settings.draw = draw.unwrap_or(settings.draw);
            if let Some(asked) = asked {
                settings.request.methods = asked.methods;
                settings.request.options = asked.options;
                settings.request.targets = asked.targets;
            }
        });
        if let Some(frozen) = change.frozen {
            self.freeze.set(frozen);
        }
        self.tell();
        Ok(())
    }

    fn teach(&self, lesson: &Lesson) -> Result<()> {
        let teaching = self.teaching()?;
        let before = teaching.labels();
        teaching.take(lesson)?;
        let is_known = |target: &String| {
            let labels = teaching.labels();
            target == "predicted" || labels.is_some_and(|labels| labels.contains(target))
        };
        if teaching.labels() != before && !is_known(&self.settings().target) {
            // With the new labels, an index refers to another class.
            self.element
                .change(|settings| settings.request.targets = Request::default().targets);
        }
        self.tell();
        Ok(())
    }

    fn snapshot(&self) -> Result<Vec<u8>> {
        let mut png = Cursor::new(Vec::new());
        let written = self.shown.picture()?.write_to(&mut png, ImageFormat::Png);
        written.map_err(|error| Error::Media(format!("cannot encode the picture: {error}")))?;
        Ok(png.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_opacity_is_the_next_higher_one_or_none_at_all() {
        assert_eq!(0.75, next_opacity(0.5));
        assert_eq!(0.5, next_opacity(0.3));
        assert_eq!(0.0, next_opacity(1.0));
    }

    #[test]
    fn options_of_methods_that_are_not_asked_for_are_left_out() {
        let options =
            changes::parse_list("diffmask = { votes = true }, gradmask.groups = 12").unwrap();
        let asked = options_of(&[Method::DiffMask, Method::Rollout], &options);
        let expected = changes::parse_list("diffmask = { votes = true }").unwrap();
        assert_eq!(asked, expected);
    }
}
