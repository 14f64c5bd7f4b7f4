//! Teaches classes during live video, from examples that the source shows.
//!
//! The caller waits for the result. Learning runs on the explaining thread, between two frames, so that no frame waits
//! for it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::peek::Peek;
use crate::serve::{Feed, Lesson, Topic};
use vitscope_core::error::{Error, Result};
use vitscope_core::frame::Frame;
use vitscope_core::frame::resize::Resizer;
use vitscope_core::models::{self, LinearHead, Model};
use vitscope_element::{Lesson as Taken, VitScope};
use vitscope_lab::eval::classification::Count;
use vitscope_lab::train::taught::{self, Taught, TaughtHead};

/// Maximum duration of a lesson. A model busy with a slow method may need some seconds for the frame before it.
const LESSON: Duration = Duration::from_secs(30);

/// Settings for teaching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Teach {
    /// Folder of the head; teaching continues from an existing head.
    pub folder: PathBuf,
    /// Names of classes, added after those of an existing head.
    pub classes: Vec<String>,
}

/// The progress of teaching.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Progress {
    /// All classes.
    pub classes: Vec<ClassProgress>,
    /// Leave-one-out accuracy, if it can be measured.
    pub leave_one_out: Option<Answers>,
    /// What is still missing before the head can answer.
    pub missing: Option<String>,
    /// Whether examples or names have changed since the head was saved.
    pub unsaved: bool,
}

/// A class and its examples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassProgress {
    /// Its name.
    pub name: String,
    /// Number of its examples.
    pub examples: usize,
}

/// Counted answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Answers {
    /// Correct answers.
    pub right: usize,
    /// All answers.
    pub of: usize,
}

impl std::fmt::Display for Progress {
    /// Formats the progress as `1 cup: 3, 2 phone: 2 | leave-one-out: 5 of 5 correct`; the numbers are the keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, class) in self.classes.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{} {}: {}", index + 1, class.name, class.examples)?;
        }
        match (&self.missing, self.leave_one_out) {
            (Some(missing), _) => write!(f, " | {missing}")?,
            (None, Some(Answers { right, of })) => {
                write!(f, " | leave-one-out: {right} of {of} correct")?
            }
            (None, None) => (),
        }
        if self.unsaved {
            f.write_str(" | not saved")?;
        }
        Ok(())
    }
}

/// Teaches classes and reports the progress.
pub(super) struct Teaching {
    what: Teach,
    element: VitScope,
    source: Peek,
    feed: Arc<Feed>,
    state: Arc<Mutex<Option<State>>>,
    has_news: AtomicBool,
}

/// State that exists once the model is open.
struct State {
    taught: Taught,
    backbone_sha256: String,
    learned: Option<TaughtHead>,
    unsaved: bool,
}

impl State {
    /// Restores earlier examples, if any, and adds the new class names.
    fn open(what: &Teach, model: &Model) -> Result<Self> {
        let width = taught::width(model.vit.config())?;
        let backbone_sha256 = model.backbone_sha256.clone();
        let mut taught = match models::read_head(&what.folder, &backbone_sha256)? {
            Some(known) => Taught::from_examples(width, known)?,
            None => Taught::new(width),
        };
        for name in &what.classes {
            let is_known = |(known, _): &(&str, usize)| known.to_lowercase() == name.to_lowercase();
            if !taught.counts().iter().any(is_known) {
                taught.add_class(name)?;
            }
        }
        let mut state = Self {
            taught,
            backbone_sha256,
            learned: None,
            unsaved: false,
        };
        state.learn()?;
        Ok(state)
    }

    /// Learns the head if nothing is missing.
    fn learn(&mut self) -> Result<()> {
        self.learned = match self.taught.missing() {
            Some(_) => None,
            None => Some(self.taught.head()?),
        };
        Ok(())
    }

    /// Changes the examples or names and relearns the head; restores the previous state if that fails.
    fn change(&mut self, change: impl FnOnce(&mut Taught) -> Result<()>) -> Result<()> {
        let before = self.taught.clone();
        let changed = change(&mut self.taught).and_then(|()| self.learn());
        match changed {
            Ok(()) => self.unsaved = true,
            Err(_) => self.taught = before,
        }
        changed
    }

    fn head(&self) -> Option<&LinearHead> {
        self.learned.as_ref().map(|learned| &learned.head)
    }

    fn progress(&self) -> Progress {
        let classes = self.taught.counts().into_iter();
        let answers = self.learned.as_ref().map(|learned| learned.leave_one_out);
        Progress {
            classes: classes
                .map(|(name, examples)| ClassProgress {
                    name: name.to_owned(),
                    examples,
                })
                .collect(),
            leave_one_out: answers
                .filter(|count| count.of > 0)
                .map(|Count { right, of }| Answers { right, of }),
            missing: self.taught.missing(),
            unsaved: self.unsaved,
        }
    }
}

impl Teaching {
    pub(super) fn new(what: Teach, element: VitScope, source: Peek, feed: Arc<Feed>) -> Self {
        Self {
            what,
            element,
            source,
            feed,
            state: Arc::default(),
            has_news: AtomicBool::new(false),
        }
    }

    /// Continues from the saved head as soon as the model is open; later calls have no effect.
    ///
    /// # Errors
    /// Fails if the saved head cannot be taught further or the model accepts no head.
    pub(super) fn begin(&self) -> Result<()> {
        let Some(model) = self.element.model() else {
            return Ok(());
        };
        let mut state = self.lock();
        if state.is_some() {
            return Ok(());
        }
        let opened = State::open(&self.what, &model)?;
        if let Some(head) = opened.head().cloned() {
            let Ok(learned) = self.element.teach(move |_| Taken::Learned(head)) else {
                // Too many frames are waiting for the model; the next call tries again.
                return Ok(());
            };
            let _ = learned.recv_timeout(LESSON);
        }
        *state = Some(opened);
        drop(state);
        self.tell();
        Ok(())
    }

    /// Applies a lesson and waits until it is learned.
    ///
    /// # Errors
    /// Reports why the lesson cannot be applied; nothing is changed then.
    pub(super) fn take(&self, lesson: &Lesson) -> Result<()> {
        match lesson {
            Lesson::Save => self.save()?,
            Lesson::Example(class) => {
                self.check_class(*class)?;
                let (class, frame) = (*class, self.source.frame()?);
                self.learn(move |model, taught| taught.learn(features(model, &frame)?, class))?;
            }
            Lesson::Undo => self.learn(|_, taught| match taught.undo() {
                Some(_) => Ok(()),
                None => Err(Error::Config("there is no example to undo".into())),
            })?,
            Lesson::Add(name) => {
                let name = name.clone();
                self.learn(move |_, taught| taught.add_class(&name).map(|_| ()))?;
            }
            Lesson::Rename(class, name) => {
                let (class, name) = (*class, name.clone());
                self.learn(move |_, taught| taught.rename(class, &name))?;
            }
        }
        self.tell();
        Ok(())
    }

    /// Checks that the class exists, before a frame is requested.
    fn check_class(&self, class: usize) -> Result<()> {
        let state = self.lock();
        let names = state.as_ref().ok_or_else(loading)?.taught.counts();
        match names.len() {
            n_classes if class < n_classes => Ok(()),
            n_classes => Err(Error::Config(format!(
                "class {} does not exist, the head has {n_classes} classes (add one with --classes or on the web page)",
                class + 1
            ))),
        }
    }

    /// Changes the examples or names on the explaining thread.
    fn learn(
        &self,
        change: impl FnOnce(&Model, &mut Taught) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        if self.lock().is_none() {
            return Err(loading());
        }
        let (done, outcome) = crossbeam_channel::bounded(1);
        let state = Arc::clone(&self.state);
        let learned = self.element.teach(move |model| {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(state) = &mut *state else {
                return Taken::Nothing;
            };
            let changed = state.change(|taught| change(model, taught));
            let taken = match (&changed, state.head()) {
                (Err(_), _) => Taken::Nothing,
                (Ok(()), None) => Taken::Forget,
                (Ok(()), Some(head)) => Taken::Learned(head.clone()),
            };
            // The caller may have stopped waiting.
            let _ = done.send(changed);
            taken
        })?;
        // In any case, the result is in `outcome`.
        let _ = learned.recv_timeout(LESSON);
        let outcome = outcome.try_recv();
        outcome.unwrap_or_else(|_| Err(Error::Config("the model is busy, try again".into())))
    }

    fn save(&self) -> Result<()> {
        let mut state = self.lock();
        let state = state.as_mut().ok_or_else(loading)?;
        models::check_head_folder(&self.what.folder)?;
        let learned = match &state.learned {
            Some(learned) => learned,
            // The error says what is missing.
            None => &state.taught.head()?,
        };
        let (examples, sha256) = (state.taught.examples(), &state.backbone_sha256);
        models::save_taught_head(&self.what.folder, &learned.head, examples, sha256)?;
        state.unsaved = false;
        Ok(())
    }

    /// Returns the progress; `None` before the model is open.
    pub(super) fn progress(&self) -> Option<Progress> {
        self.lock().as_ref().map(State::progress)
    }

    /// Returns the progress if it has not been reported yet.
    pub(super) fn news(&self) -> Option<Progress> {
        let has_news = self.has_news.swap(false, Ordering::SeqCst);
        has_news.then(|| self.progress())?
    }

    /// Returns the labels of the taught head; `None` while the model's own classifier answers.
    pub(super) fn labels(&self) -> Option<Vec<String>> {
        let state = self.lock();
        Some(state.as_ref()?.head()?.labels.clone())
    }

    /// Reports the progress to the page and on the picture.
    fn tell(&self) {
        let Some(progress) = self.progress() else {
            return;
        };
        self.element.set_note(progress.to_string());
        // Serializing plain data cannot fail.
        let json = serde_json::to_string(&progress).unwrap_or_default();
        self.feed.tell(Topic::Teaching, &json);
        self.has_news.store(true, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn loading() -> Error {
    Error::Config("the model is still loading, try again".into())
}

/// Computes the features of a frame that the head reads, from the image as the model sees it.
fn features(model: &Model, frame: &Frame) -> Result<Vec<f32>> {
    let preprocessor = &model.preprocessor;
    let mut resizer = Resizer::new(preprocessor.rule, preprocessor.resampling);
    let (rgb, _) = resizer.rgb_from_frame(frame)?;
    let images = model.images_from_rgb(&[rgb])?;
    let read = taught::features(&model.vit, &images)?.pop();
    read.ok_or_else(|| Error::Model("the model computed no features".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_a_line_with_the_keys_in_front() {
        let class = |name: &str, examples| ClassProgress {
            name: name.into(),
            examples,
        };
        let mut progress = Progress {
            classes: vec![class("cup", 3), class("phone", 0)],
            leave_one_out: None,
            missing: Some("something".into()),
            unsaved: true,
        };
        let expected = "1 cup: 3, 2 phone: 0 | something | not saved";
        assert_eq!(progress.to_string(), expected);
        progress.missing = None;
        progress.unsaved = false;
        progress.leave_one_out = Some(Answers { right: 4, of: 5 });
        let expected = "1 cup: 3, 2 phone: 0 | leave-one-out: 4 of 5 correct";
        assert_eq!(progress.to_string(), expected);
    }
}
