//! The element's workers: which one explains, which one takes over, and how a taught classifier changes them.

use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use crossbeam_channel::Receiver;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer::subclass::prelude::*;
use gstreamer_base::prelude::*;

use super::element::{CAT, VitScope, lock};
use super::settings::{Settings, WorkerSpec};
use super::shared;
use super::stream::{Awaits, Explains};
use vitscope_core::error::{Error, Result};
use vitscope_core::explain::SharedMemory;
use vitscope_core::models::{LinearHead, Model};
use vitscope_video::pipeline::stages::{Image, View};
use vitscope_video::pipeline::worker::{Abandon, Answer, Ready, Ticket, Worker};

/// Effect of a lesson on a model's classifier.
pub enum Lesson {
    /// The classifier stays the same.
    Nothing,
    /// The model's own classifier answers again.
    Forget,
    /// This classifier answers.
    Learned(LinearHead),
}

#[derive(Default)]
pub(super) struct Workers {
    pub(super) current: Option<(WorkerSpec, Arc<Worker>)>,
    /// Replaces the current worker when it is ready.
    pub(super) next: Option<(WorkerSpec, Arc<Worker>)>,
}

impl VitScope {
    pub(super) fn set_view(&self, open: impl Fn() -> Result<View> + Send + Sync + 'static) {
        *lock(&self.open) = Some(Arc::new(open));
    }

    pub(super) fn model(&self) -> Option<Arc<Model>> {
        let (_, worker) = lock(&self.workers).current.clone()?;
        Some(worker.ready()?.ok()?.model)
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = lock(&self.settings);
        let before = settings.worker_spec();
        change(&mut settings);
        let is_another = settings.worker_spec() != before;
        self.follow(settings, is_another);
    }

    /// Does what changed `settings` require; `is_another` if they require another worker.
    pub(super) fn follow(&self, settings: MutexGuard<'_, Settings>, is_another: bool) {
        let is_idle = settings.is_idle();
        drop(settings);
        self.obj().set_passthrough(is_idle);
        if is_another {
            self.start_next(false);
        }
    }

    pub(super) fn reload(&self) {
        self.start_next(true);
    }

    pub(super) fn teach(
        &self,
        learn: impl FnOnce(&Arc<Model>) -> Lesson + Send + 'static,
    ) -> Result<Receiver<()>> {
        if lock(&self.open).is_some() {
            return Err(Error::Config(
                "the classifier of a program's own view cannot be replaced".into(),
            ));
        }
        let Some((spec, worker)) = lock(&self.workers).current.clone() else {
            return Err(Error::Config("the element is not running".into()));
        };
        let head = Arc::clone(&self.head);
        let element = self.obj().downgrade();
        let taken = worker.change(move |view| {
            let taught = match learn(&view.model) {
                Lesson::Nothing => return None,
                Lesson::Forget => None,
                Lesson::Learned(head) => Some((head, view.model.backbone_sha256.clone())),
            };
            lock(&head).clone_from(&taught);
            let element = element.upgrade()?;
            let element = element.imp();
            element.teach_next();
            element.reopened(&spec, view)
        });
        taken.ok_or_else(|| Error::Config("the model is busy, try again".into()))
    }

    /// Gives the newest classifier to a worker that has not taken over yet.
    fn teach_next(&self) {
        let Some((spec, worker)) = lock(&self.workers).next.clone() else {
            return;
        };
        let element = self.obj().downgrade();
        // No images wait for this worker, so there is room.
        worker.change(move |view| {
            let element = element.upgrade()?;
            element.imp().reopened(&spec, view)
        });
    }

    /// Opens the view of these settings with the newest classifier; `None`, with a warning, if that fails.
    fn reopened(&self, spec: &WorkerSpec, view: &View) -> Option<View> {
        let head = lock(&self.head).clone();
        let model = Some(Arc::clone(&view.model));
        let opened = spec.request();
        match opened.and_then(|request| shared::open(request, model, head.as_ref())) {
            Ok(view) => Some(view),
            Err(error) => {
                gst::element_imp_warning!(
                    self,
                    gst::LibraryError::Settings,
                    ("cannot switch to the taught classifier: {error}")
                );
                None
            }
        }
    }

    /// Starts the worker that takes over from the current one, if any; a `fresh` one reopens its model.
    pub(super) fn start_next(&self, fresh: bool) {
        if lock(&self.workers).current.is_none() {
            return;
        }
        match self.start_worker(fresh) {
            Ok(next) => {
                let old = lock(&self.workers).next.replace(next);
                drop(old);
                // It may have been opened before the newest example was learned.
                if lock(&self.head).is_some() {
                    self.teach_next();
                }
            }
            Err(error) => {
                gst::element_imp_error!(self, gst::LibraryError::Settings, ("{error}"));
            }
        }
    }

    /// Starts a worker for the current settings and reports its progress on the bus.
    ///
    /// Failure to open it is an error, or a warning if another worker continues.
    pub(super) fn start_worker(&self, fresh: bool) -> Result<(WorkerSpec, Arc<Worker>)> {
        let spec = self.settings().worker_spec();
        let goes_on = lock(&self.workers).current.is_some();
        let own = lock(&self.open).clone();
        let model = self.open_model(&spec).filter(|_| !fresh);
        let element = self.obj().downgrade();
        let text = format!("loading {}", spec.model());
        self.post_progress(gst::ProgressType::Start, &text);
        let name = spec.model().to_owned();
        let on_opened = move |outcome: std::result::Result<&Ready, &str>| {
            let Some(element) = element.upgrade() else {
                return;
            };
            let element = element.imp();
            match outcome {
                Ok(ready) => {
                    gst::info!(
                        CAT,
                        imp = element,
                        "loaded {name}, explaining one frame takes {:?}",
                        ready.one_image
                    );
                    element.post_progress(gst::ProgressType::Complete, &format!("loaded {name}"));
                }
                Err(reason) if goes_on => {
                    element.post_progress(gst::ProgressType::Error, reason);
                    gst::element_imp_warning!(
                        element,
                        gst::LibraryError::Settings,
                        ("cannot switch to model {name:?}: {reason}")
                    );
                }
                Err(reason) => {
                    element.post_progress(gst::ProgressType::Error, reason);
                    gst::element_imp_error!(
                        element,
                        gst::LibraryError::Settings,
                        ("model {name:?}: {reason}")
                    );
                }
            }
        };
        let opened_spec = spec.clone();
        let head = Arc::clone(&self.head);
        let open = move || match own {
            Some(open) => open(),
            None => {
                let head = lock(&head).clone();
                shared::open(opened_spec.request()?, model, head.as_ref())
            }
        };
        let worker = shared::worker(&spec, open, on_opened)?;
        Ok((spec, worker))
    }

    /// Returns the model of these settings if it is already open.
    fn open_model(&self, spec: &WorkerSpec) -> Option<Arc<Model>> {
        let (before, worker) = lock(&self.workers).current.clone()?;
        let ready = worker.ready()?.ok()?;
        before.has_model_of(spec).then_some(ready.model)
    }

    fn post_progress(&self, kind: gst::ProgressType, text: &str) {
        let message = gst::message::Progress::builder(kind, "model", text);
        let _ = self.obj().post_message(message.src(&*self.obj()).build());
    }

    /// Returns the current worker and whether it has just taken over: the next worker does so as soon as it is ready.
    pub(super) fn worker(&self) -> Option<(Arc<Worker>, bool)> {
        let mut workers = lock(&self.workers);
        let next = workers.next.as_ref();
        if !matches!(next.and_then(|(_, next)| next.ready()), Some(Ok(_))) {
            let (_, worker) = workers.current.as_ref()?;
            return Some((Arc::clone(worker), false));
        }
        let next = workers.next.take();
        let old = std::mem::replace(&mut workers.current, next);
        let current = workers.current.clone();
        drop(workers);
        // The old worker ends when the last frame that waits for it has left.
        drop(old);
        gst::info!(CAT, imp = self, "switched to the new model");
        current.map(|(_, worker)| (worker, true))
    }
}

/// An image submitted to a worker; another worker may have taken over since.
pub(super) struct Handed {
    ticket: Ticket,
    worker: Arc<Worker>,
}

impl Handed {
    /// Returns a handle that ends the wait for the answer.
    pub(super) fn abandon(&self) -> Abandon {
        self.ticket.abandon()
    }

    /// Waits for the answer, until `deadline` if there is one.
    pub(super) fn wait(self, deadline: Option<Instant>) -> Option<Answer> {
        match deadline {
            Some(deadline) => self.ticket.wait_until(deadline),
            None => self.ticket.wait(),
        }
    }
}

impl Explains for Arc<Worker> {
    type Ticket = Handed;

    fn submit(&self, seq: u64, image: Image, memory: &SharedMemory) -> Option<Handed> {
        let ticket = Worker::submit(self, seq, image, memory)?;
        let worker = Self::clone(self);
        Some(Handed { ticket, worker })
    }

    fn try_submit(&self, seq: u64, image: Image, memory: &SharedMemory) -> Option<Handed> {
        let ticket = Worker::try_submit(self, seq, image, memory)?;
        let worker = Self::clone(self);
        Some(Handed { ticket, worker })
    }
}

impl Awaits for Handed {
    fn try_wait(self) -> std::result::Result<Option<Answer>, Self> {
        let Self { ticket, worker } = self;
        ticket.try_wait().map_err(|ticket| Self { ticket, worker })
    }

    fn replace(&self, seq: u64, image: Image) -> bool {
        self.ticket.replace(seq, image)
    }

    fn taken(&self) -> Option<Instant> {
        self.ticket.taken()
    }
}
