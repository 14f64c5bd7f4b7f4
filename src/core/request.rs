//! A request to a model, independent of its source: flags, properties, a web page, a file or a program.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::explain::{Explainer, Method, Reuse, Target};
use crate::gates::Gates;
use crate::models::{self, DeviceChoice, Input, Model, Reference};
use crate::vit::Arithmetic;

/// A request to explain which parts of a picture a model looks at: model, input, device, methods with their options,
/// and classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Embedded name, folder or hub id; `./NAME` is always a folder.
    pub model: String,
    /// Backbone model, if `model` is a folder with only a head, an adapter, gates or an interpreter.
    pub backbone: Option<String>,
    /// Folder with DiffMask gates, instead of those of the model.
    pub gates: Option<PathBuf>,
    /// Settings of the model's input that override its preprocessor.
    pub input: Input,
    /// The device that the model runs on.
    pub device: DeviceChoice,
    /// The numbers that the model computes with.
    pub arithmetic: Arithmetic,
    /// Largest drift of what is reused from one frame of a video to the next, as in [`Reuse::up_to`]; 0 reuses nothing.
    pub reuse: f32,
    /// Methods, each of which explains each target; if empty, the model's default method.
    pub methods: Vec<Method>,
    /// Options of each method, as a table under its name. With a single method, its options may also be at the top
    /// level.
    pub options: toml::Table,
    /// Classes to explain, in the format of [`Model::target`].
    pub targets: Vec<String>,
    /// Batch size.
    pub batch: NonZeroUsize,
}

impl Default for Request {
    /// The embedded default model on the best device, with its default method, the predicted class and a batch size of
    /// 1.
    fn default() -> Self {
        Self {
            model: models::DEFAULT.into(),
            backbone: None,
            gates: None,
            input: Input::default(),
            device: DeviceChoice::Auto,
            arithmetic: Arithmetic::default(),
            reuse: 0.0,
            methods: Vec::new(),
            options: toml::Table::new(),
            targets: vec!["predicted".into()],
            batch: NonZeroUsize::MIN,
        }
    }
}

impl Request {
    /// Opens the model.
    ///
    /// # Errors
    /// As [`models::open`]; [`Error::Config`] if there is no such device; as [`Gates::open`].
    pub fn open_model(&self) -> Result<Model> {
        let device = self.device.open()?;
        let reference = Reference {
            trained_parts: self.gates.is_none(),
            input: self.input,
            arithmetic: self.arithmetic,
            ..Reference::over(&self.model, self.backbone.as_deref())
        };
        let mut model = models::open(reference, &device)?;
        if let Some(folder) = &self.gates {
            let (gates, card) = Gates::open(folder, &model.vit, &model.weights_sha256, &device)?;
            (model.gates, model.gate_card) = (Some(gates), Some(card));
        }
        Ok(model)
    }

    /// The methods for a model; its default method if none is requested.
    pub fn methods_for(&self, model: &Model) -> Vec<Method> {
        match self.methods.as_slice() {
            [] => vec![model.default_method()],
            methods => methods.to_vec(),
        }
    }

    /// Builds the methods for a model, with their options.
    ///
    /// # Errors
    /// As [`Method::build_with`]; [`Error::Config`] if there are options that belong to none of the methods.
    pub fn explainers(&self, model: &Model) -> Result<Vec<Box<dyn Explainer>>> {
        let methods = self.methods_for(model);
        let options = options_by_method(&methods, self.options.clone())?;
        let built = methods.iter().zip(options);
        let built = built.map(|(method, options)| method.build_with(model.parts(), options));
        built.collect()
    }

    /// How much is reused from one frame of a video to the next; `None` for nothing.
    ///
    /// # Errors
    /// As [`Reuse::up_to`]; [`Error::Config`] if one of the methods cannot reuse anything.
    pub fn reuse(&self, model: &Model, explainers: &[Box<dyn Explainer>]) -> Result<Option<Reuse>> {
        let reuse = Reuse::up_to(self.reuse, model.preprocessor.std)?;
        if reuse.is_some() {
            let mut explainers = explainers.iter();
            explainers.try_for_each(|explainer| Reuse::check(&**explainer, &model.vit))?;
        }
        Ok(reuse)
    }

    /// Finds the classes in the model.
    ///
    /// # Errors
    /// As [`Model::target`].
    pub fn targets(&self, model: &Model) -> Result<Vec<Target>> {
        let targets = self.targets.iter();
        targets.map(|target| model.target(target)).collect()
    }
}

/// The options of each method, given as `METHOD.KEY`, or all options if there is a single method.
fn options_by_method(methods: &[Method], mut options: toml::Table) -> Result<Vec<toml::Table>> {
    let names_method = |key: &String| key.parse::<Method>().is_ok();
    if methods.len() == 1 && !options.keys().any(names_method) {
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
            "option {key:?} belongs to none of the selected methods, expected METHOD.KEY=VALUE"
        ))),
        None => Ok(of_methods),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changes;

    fn check(expected: &[&str], methods: &[Method], options: &str) {
        let options = changes::parse_list(options).unwrap();
        let expected: Vec<toml::Table> = expected.iter().map(|own| own.parse().unwrap()).collect();
        assert_eq!(options_by_method(methods, options).unwrap(), expected);
    }

    #[test]
    fn options_belong_to_the_one_method_or_to_the_one_they_name() {
        let both = [Method::GradMask, Method::Rollout];
        check(&["groups = 12"], &[Method::GradMask], "groups=12");
        check(&["groups = 12"], &[Method::GradMask], "gradmask.groups=12");
        check(&["groups = 12", ""], &both, "gradmask.groups=12");
        let stray = changes::parse_list("groups=12").unwrap();
        let error = options_by_method(&both, stray).unwrap_err().to_string();
        assert!(error.contains("\"groups\" belongs to none"), "{error}");
        let other = changes::parse_list("rollout.discard=0.5").unwrap();
        let error = options_by_method(&both[..1], other)
            .unwrap_err()
            .to_string();
        assert!(error.contains("\"rollout\" belongs to none"), "{error}");
    }

    #[cfg(feature = "embedded-models")]
    #[test]
    fn a_request_opens_what_it_names() {
        let request = Request {
            model: "red-patches".into(),
            device: DeviceChoice::Cpu,
            methods: vec![Method::Rollout, Method::Chefer],
            targets: vec!["predicted".into(), "1".into()],
            ..Request::default()
        };
        let model = request.open_model().unwrap();
        let explainers = request.explainers(&model).unwrap();
        let names: Vec<&str> = explainers
            .iter()
            .map(|explainer| explainer.name())
            .collect();
        assert_eq!(names, ["rollout", "chefer"]);
        let targets = request.targets(&model).unwrap();
        assert_eq!(targets, [Target::Predicted, Target::Class(1)]);
    }
}
