//! Workers, and how elements share them.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::settings::WorkerSpec;
use vitscope_core::error::{Error, Result};
use vitscope_core::models::{LinearHead, Model};
use vitscope_core::request::Request;
use vitscope_video::pipeline::stages::View;
use vitscope_video::pipeline::worker::{Ready, Worker};

/// Number of images that may wait for a worker in addition to a batch.
const WAITING: usize = 4;

/// Named workers that later elements can share.
static NAMED: Mutex<Vec<(String, WorkerSpec, Weak<Worker>)>> = Mutex::new(Vec::new());

/// Returns the worker of these settings: one in use by other elements with its `model-instance-id`, or a new one.
///
/// # Errors
/// [`Error::Config`] if elements share an id but not the settings, or if no thread can start.
pub(super) fn worker(
    spec: &WorkerSpec,
    open: impl FnOnce() -> Result<View> + Send + 'static,
    on_opened: impl FnOnce(std::result::Result<&Ready, &str>) + Send + 'static,
) -> Result<Arc<Worker>> {
    let Some(id) = &spec.model_instance_id else {
        return start(spec, open, on_opened);
    };
    let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
    named.retain(|(_, _, worker)| worker.strong_count() > 0);
    let known = named.iter().find(|(name, _, _)| name == id);
    if let Some((_, theirs, worker)) = known
        && let Some(worker) = worker.upgrade()
    {
        return match theirs == spec {
            true => Ok(worker),
            false => Err(Error::Config(format!(
                "elements with model-instance-id {id:?} must have the same model, backbone, gates, input, input-size, \
                 device, precision, reuse, method, method-options, target-class and batch"
            ))),
        };
    }
    let worker = start(spec, open, on_opened)?;
    named.push((id.clone(), spec.clone(), Arc::downgrade(&worker)));
    Ok(worker)
}

fn start(
    spec: &WorkerSpec,
    open: impl FnOnce() -> Result<View> + Send + 'static,
    on_opened: impl FnOnce(std::result::Result<&Ready, &str>) + Send + 'static,
) -> Result<Arc<Worker>> {
    // Opening the model reports what is wrong with the request.
    let batch = spec
        .request()
        .map_or(NonZeroUsize::MIN, |request| request.batch);
    let capacity = batch.saturating_add(WAITING);
    Worker::start(capacity, batch, open, on_opened).map(Arc::new)
}

/// A classifier that replaces the model's, and the hash of the weights it belongs to.
pub(super) type Taught = (LinearHead, String);

/// Opens the requested view, on an already open model if one is given, and with the classifier `head` if there is one.
///
/// If the head does not know the target, the predicted class replaces it.
pub(super) fn open(
    request: &Request,
    model: Option<Arc<Model>>,
    head: Option<&Taught>,
) -> Result<View> {
    let model = match model {
        Some(model) => model.as_opened(),
        None => Arc::new(request.open_model()?),
    };
    let model = match head {
        Some((head, sha256)) if *sha256 == model.backbone_sha256 => {
            Arc::new(model.with_head(head.clone())?)
        }
        Some((_, sha256)) => {
            return Err(Error::Model(format!(
                "the head was trained for weights with sha256 {sha256:?}, but the model's weights have sha256 {:?}",
                model.backbone_sha256
            )));
        }
        None => model,
    };
    let mut request = request.clone();
    if head.is_some() && request.targets(&model).is_err() {
        request.targets = Request::default().targets;
    }
    View::of(&request, model)
}
