//! Workers, and which elements share one.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::settings::Asked;
use vitscope_core::changes;
use vitscope_core::error::{Error, Result};
use vitscope_core::explain::{Method, Target};
use vitscope_core::gates::Gates;
use vitscope_core::models::{self, DeviceChoice, LinearHead, Model, Reference};
use vitscope_video::pipeline::stages::View;
use vitscope_video::pipeline::worker::{Ready, Worker};

/// Images that may wait for a worker beside those of a batch.
const WAITING: usize = 4;

/// Workers with a name, for elements that come later.
static NAMED: Mutex<Vec<(String, Asked, Weak<Worker>)>> = Mutex::new(Vec::new());

/// The worker of these settings: one that other elements of its `model-instance-id` use, or a new one.
///
/// # Errors
/// [`Error::Config`] where elements share an id and not the settings, or no thread can start.
pub(super) fn worker(
    asked: &Asked,
    open: impl FnOnce() -> Result<View> + Send + 'static,
    on_opened: impl FnOnce(std::result::Result<&Ready, &str>) + Send + 'static,
) -> Result<Arc<Worker>> {
    let Some(id) = &asked.model_instance_id else {
        return start(asked, open, on_opened);
    };
    let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
    named.retain(|(_, _, worker)| worker.strong_count() > 0);
    let known = named.iter().find(|(name, _, _)| name == id);
    if let Some((_, theirs, worker)) = known
        && let Some(worker) = worker.upgrade()
    {
        return match theirs == asked {
            true => Ok(worker),
            false => Err(Error::Config(format!(
                "elements with model-instance-id {id:?} must have the same model, backbone, gates, input, input-size, \
                 device, method, method-options, target-class and batch"
            ))),
        };
    }
    let worker = start(asked, open, on_opened)?;
    named.push((id.clone(), asked.clone(), Arc::downgrade(&worker)));
    Ok(worker)
}

fn start(
    asked: &Asked,
    open: impl FnOnce() -> Result<View> + Send + 'static,
    on_opened: impl FnOnce(std::result::Result<&Ready, &str>) + Send + 'static,
) -> Result<Arc<Worker>> {
    let batch = NonZeroUsize::new(asked.batch as usize).unwrap_or(NonZeroUsize::MIN);
    let capacity = batch.saturating_add(WAITING);
    Worker::start(capacity, batch, open, on_opened).map(Arc::new)
}

/// A classifier that takes the place of the model's, and the hash of the weights that it belongs to.
pub(super) type Taught = (LinearHead, String);

/// What the settings ask for, over a model that is open already where one is given, and under `head` where there is one.
///
/// A target that a head does not know gives way to the predicted class.
pub(super) fn open(
    asked: &Asked,
    model: Option<Arc<Model>>,
    head: Option<&Taught>,
) -> Result<View> {
    let model = match model {
        Some(model) => model.as_opened(),
        None => Arc::new(open_model(asked)?),
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
    let methods = match asked.method.as_str() {
        "auto" => vec![model.default_method()],
        names => (names.split(','))
            .map(|name| name.trim().parse::<Method>())
            .collect::<Result<_>>()?,
    };
    let options = changes::parse_list(asked.method_options.as_deref().unwrap_or_default())?;
    let explainers = options_by_method(&methods, options)?
        .into_iter()
        .zip(&methods)
        .map(|(options, method)| method.build_with(model.parts(), options));
    Ok(View {
        explainers: explainers.collect::<Result<_>>()?,
        targets: vec![match (model.target(&asked.target_class), head) {
            (Err(_), Some(_)) => Target::Predicted,
            (target, _) => target?,
        }],
        model,
    })
}

/// The options of each method: its own as `METHOD.KEY`, or all of them where there is one method.
fn options_by_method(methods: &[Method], mut options: toml::Table) -> Result<Vec<toml::Table>> {
    if let [method] = methods
        && !options.contains_key(method.name())
    {
        return Ok(vec![options]);
    }
    let of_methods = methods
        .iter()
        .map(|method| match options.remove(method.name()) {
            Some(toml::Value::Table(own)) => own,
            _ => toml::Table::new(),
        })
        .collect();
    match options.keys().next() {
        Some(key) => Err(Error::Config(format!(
            "method-options {key:?} belongs to none of the selected methods, expected METHOD.KEY=VALUE"
        ))),
        None => Ok(of_methods),
    }
}

fn open_model(asked: &Asked) -> Result<Model> {
    let device = asked.device.parse::<DeviceChoice>()?.open()?;
    let reference = Reference {
        trained_parts: asked.gates.is_none(),
        input: asked.input(),
        ..Reference::over(&asked.model, asked.backbone.as_deref())
    };
    let mut model = models::open(reference, &device)?;
    if let Some(folder) = &asked.gates {
        let folder = Path::new(folder);
        let (gates, card) = Gates::open(folder, &model.vit, &model.weights_sha256, &device)?;
        (model.gates, model.gate_card) = (Some(gates), Some(card));
    }
    Ok(model)
}
