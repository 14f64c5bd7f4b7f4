//! The table of methods, with the name, source, requirements and cost of each.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Explainer;
use super::agcam::Agcam;
use super::attention::RawAttention;
use super::beyond_intuition::BeyondIntuition;
use super::chefer::{Chefer, GradSam};
use super::diffmask::{DiffMaskOptions, Normalization};
use super::gradcam::{GradCam, GradCamAttention};
use super::gradients::{GradientInput, IntegratedGradients, Saliency, SmoothGrad};
use super::gradmask::GradMask;
use super::iavit::IaVitOptions;
use super::kernel_shap::KernelShap;
use super::legrad::LeGrad;
use super::lrp::LibraGrad;
use super::occlusion::Occluding;
use super::recipro_cam::ReciproCam;
use super::rise::Rise;
use super::rollout::{GradientRollout, Rollout};
use super::score_cam::ScoreCam;
use super::tam::TransitionAttention;
use super::tis::Tis;
use super::vit_cx::VitCx;
use crate::changes::in_words;
use crate::error::{Error, Result, unknown};
use crate::gates::Gates;
use crate::interpreter::Interpreter;

/// How fast a method is on video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// A few passes: fast enough for live video if the model is.
    A,
    /// About ten passes.
    B,
    /// Dozens to hundreds of passes: offline, or every few frames.
    C,
    /// Thousands of passes: single pictures.
    D,
}

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Name on the command line and in the sidecar.
    pub name: &'static str,
    /// Summary in one line.
    pub summary: &'static str,
    /// Publication.
    pub paper: &'static str,
    /// Forward passes per frame, as a formula of blocks (L), patches (N) and width (D).
    pub forwards: &'static str,
    /// Backward passes per frame.
    pub backwards: &'static str,
    /// Speed on video.
    pub pace: Pace,
}

/// An option of a method.
#[derive(Clone, Debug, PartialEq)]
pub struct MethodOption {
    /// Name.
    pub key: String,
    /// Default value, as TOML.
    pub default: String,
    /// Words that the option accepts; empty if it takes numbers or composite values.
    pub words: Vec<String>,
    /// Description.
    pub help: String,
}

/// Trained parts of a model, for the methods that need them.
#[derive(Clone, Copy, Default)]
pub struct Parts<'a> {
    /// DiffMask gates for this model's weights.
    pub gates: Option<&'a Gates>,
    /// IA-ViT's interpreter for this model's weights.
    pub interpreter: Option<&'a Interpreter>,
    /// Normalization of the model's pictures.
    pub normalization: Option<Normalization>,
}

/// A method of the table, represented by its options.
pub(super) trait Listed: Default + Serialize + DeserializeOwned + JsonSchema {
    /// The method's line of the table; costs are those of its default options.
    const ENTRY: Entry;
    /// The part that must be trained for the model, if any.
    const TRAINED_PART: Option<&'static str>;

    /// Builds the explainer.
    ///
    /// # Errors
    /// [`Error::Model`] if `parts` lacks a part that the method needs; [`Error::Config`] if an option is out of range.
    fn build(self, parts: Parts<'_>) -> Result<Box<dyn Explainer>>;
}

/// An explainer that is its own options and needs no trained part.
pub(super) trait Options:
    Explainer + Default + Serialize + DeserializeOwned + JsonSchema + 'static
{
    /// As [`Listed::ENTRY`].
    const ENTRY: Entry;

    /// Fails if an option is out of range.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

impl<T: Options> Listed for T {
    const ENTRY: Entry = <T as Options>::ENTRY;
    const TRAINED_PART: Option<&'static str> = None;

    fn build(self, _: Parts<'_>) -> Result<Box<dyn Explainer>> {
        self.check()?;
        Ok(Box::new(self))
    }
}

/// A method's data in the table.
struct Row {
    entry: Entry,
    trained_part: Option<&'static str>,
    options: fn() -> Vec<MethodOption>,
    build: fn(toml::Table, Parts<'_>) -> Result<Box<dyn Explainer>>,
}

impl Row {
    const fn of<T: Listed>() -> Self {
        Self {
            entry: T::ENTRY,
            trained_part: T::TRAINED_PART,
            options: options_of::<T>,
            build: build::<T>,
        }
    }
}

/// Defines [`Method`] from one line per method: its variant, the feature it requires, and the type of its options.
macro_rules! table {
    ($($(#[$attribute:meta])* $method:ident $(if $feature:literal)?: $Options:ty,)+) => {
        /// The built-in methods; [`Display`](fmt::Display) and [`FromStr`] use the names of the command line.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub enum Method {
            $($(#[$attribute])* $(#[cfg(feature = $feature)])? $method,)+
        }

        impl Method {
            /// All methods, best-known families first.
            pub const ALL: &'static [Self] = &[
                $($(#[cfg(feature = $feature)])? Self::$method,)+
            ];

            const fn row(self) -> Row {
                match self {
                    $($(#[cfg(feature = $feature)])? Self::$method => Row::of::<$Options>(),)+
                }
            }
        }
    };
}

table! {
    /// Trained gates: [`DiffMask`](super::diffmask::DiffMask).
    #[default]
    DiffMask: DiffMaskOptions,
    /// Attention of a trained interpreter: [`IaVit`](super::iavit::IaVit).
    IaVit: IaVitOptions,
    /// Masks of gradients, weighted by confidence: [`GradMask`].
    GradMask: GradMask,
    /// Attention times its gradient: [`Chefer`].
    Chefer: Chefer,
    /// [`CheferLrp`](super::chefer_lrp::CheferLrp)
    CheferLrp if "lrp": super::chefer_lrp::CheferLrp,
    /// [`GradSam`]
    GradSam: GradSam,
    /// Gradients of the last block's tokens: [`GradCam`].
    GradCam: GradCam,
    /// [`GradCamAttention`]
    GradCamAttention: GradCamAttention,
    /// [`Agcam`]
    Agcam: Agcam,
    /// [`LeGrad`]
    LeGrad: LeGrad,
    /// Neighborhoods of patches in the last block: [`ReciproCam`].
    ReciproCam: ReciproCam,
    /// Attention through all blocks: [`Rollout`].
    Rollout: Rollout,
    /// [`GradientRollout`]
    GradientRollout: GradientRollout,
    /// Attention of the last block: [`RawAttention`].
    RawAttention: RawAttention,
    /// [`TransitionAttention`]
    TransitionAttention: TransitionAttention,
    /// [`BeyondIntuition`]
    BeyondIntuition: BeyondIntuition,
    /// [`Saliency`]
    Saliency: Saliency,
    /// [`GradientInput`]
    GradientInput: GradientInput,
    /// [`IntegratedGradients`]
    IntegratedGradients: IntegratedGradients,
    /// [`SmoothGrad`]
    SmoothGrad: SmoothGrad,
    /// [`LibraGrad`]
    LibraGrad: LibraGrad,
    /// [`AttnLrp`](super::lrp::AttnLrp)
    AttnLrp if "lrp": super::lrp::AttnLrp,
    /// [`Occluding`]
    Occlusion: Occluding,
    /// [`ScoreCam`]
    ScoreCam: ScoreCam,
    /// [`VitCx`]
    VitCx: VitCx,
    /// [`Tis`]
    Tis: Tis,
    /// [`Rise`]
    Rise: Rise,
    /// Shapley values of patches: [`KernelShap`].
    KernelShap: KernelShap,
}

impl Method {
    /// The method's line of the table.
    pub const fn entry(self) -> Entry {
        self.row().entry
    }

    /// Name on the command line and in the sidecar.
    pub const fn name(self) -> &'static str {
        self.entry().name
    }

    /// The part that must be trained for the model, if any.
    pub const fn trained_part(self) -> Option<&'static str> {
        self.row().trained_part
    }

    /// Builds the explainer with its default options.
    ///
    /// # Errors
    /// As [`build_with`](Self::build_with).
    pub fn build(self, parts: Parts<'_>) -> Result<Box<dyn Explainer>> {
        self.build_with(parts, toml::Table::new())
    }

    /// Builds the explainer; the keys of `options` are the fields of its options type, in kebab case.
    ///
    /// # Errors
    /// [`Error::Model`] if `parts` lacks a part that the method needs; [`Error::Config`] if an option is unknown or out
    /// of range.
    pub fn build_with(self, parts: Parts<'_>, options: toml::Table) -> Result<Box<dyn Explainer>> {
        (self.row().build)(options, parts)
    }

    /// The options that [`build_with`](Self::build_with) accepts, in order of their names.
    pub fn options(self) -> Vec<MethodOption> {
        (self.row().options)()
    }
}

/// Builds the explainer whose options are the fields of `T`.
fn build<T: Listed>(options: toml::Table, parts: Parts<'_>) -> Result<Box<dyn Explainer>> {
    let options: T = options.try_into().map_err(|error: toml::de::Error| {
        // The second line of the message names the key.
        Error::Config(format!("method {}: {}", T::ENTRY.name, in_words(&error)))
    })?;
    options.build(parts)
}

/// The options of `T`, from its JSON schema.
fn options_of<T: Listed>() -> Vec<MethodOption> {
    let schema = schemars::schema_for!(T);
    let part = |schema: &Value, name: &str| schema.get(name).cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let definitions = part(schema.as_value(), "$defs");
    let resolved = |schema: &Value| {
        let reference = text(&part(schema, "$ref"));
        match reference.rsplit_once('/') {
            Some((_, name)) => part(&definitions, name),
            None => schema.clone(),
        }
    };
    let words = |schema: &Value| -> Vec<String> {
        let schema = resolved(schema);
        let items = part(&schema, "items");
        let schema = if items.is_null() {
            schema
        } else {
            resolved(&items)
        };
        let of = |name: &str| part(&schema, name).as_array().cloned().unwrap_or_default();
        let variants = of("oneOf").into_iter().flat_map(|variant| {
            let words = part(&variant, "enum").as_array().cloned();
            words.unwrap_or_else(|| vec![part(&variant, "const")])
        });
        let all: Vec<Value> = of("enum").into_iter().chain(variants).collect();
        // If composite values are also accepted, a list of words would be incomplete.
        match all.iter().all(Value::is_string) {
            true => all.iter().map(text).collect(),
            false => Vec::new(),
        }
    };
    let defaults = toml::Table::try_from(T::default()).unwrap_or_default();
    let properties = part(schema.as_value(), "properties");
    let properties = properties.as_object().cloned().unwrap_or_default();
    let options = properties.into_iter().map(|(key, schema)| MethodOption {
        default: defaults
            .get(&key)
            .map_or_else(String::new, toml::Value::to_string),
        words: words(&schema),
        help: text(&part(&schema, "description")).replace('\n', " "),
        key,
    });
    options.collect()
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::A => "A",
            Self::B => "B",
            Self::C => "C",
            Self::D => "D",
        })
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let named = Self::ALL
            .iter()
            .copied()
            .find(|method| method.name() == name);
        named
            .or((name == "attention").then_some(Self::RawAttention))
            .ok_or_else(|| {
                let known = Self::ALL.iter().map(|method| method.name());
                Error::Config(unknown("method", name, known))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found_by_its_name() {
        for &method in Method::ALL {
            assert_eq!(method.to_string().parse::<Method>().ok(), Some(method));
        }
    }

    #[test]
    fn every_method_that_needs_no_part_is_built_and_bears_its_name() {
        for method in Method::ALL
            .iter()
            .filter(|method| method.trained_part().is_none())
        {
            let explainer = method.build(Parts::default()).unwrap();
            assert_eq!(method.name(), explainer.name());
        }
    }

    #[test]
    fn every_option_of_every_method_has_help_and_a_default_that_is_taken_back() {
        let mut n_options = 0;
        for &method in Method::ALL {
            for option in method.options() {
                let MethodOption {
                    key, default, help, ..
                } = &option;
                assert!(help.ends_with('.'), "{method}: {option:?}");
                if method.trained_part().is_none() && !default.is_empty() {
                    let table = format!("{key} = {default}").parse().unwrap();
                    method.build_with(Parts::default(), table).unwrap();
                }
                n_options += 1;
            }
        }
        assert!(n_options > 30, "{n_options}");
        let votes = Method::GradMask.options();
        let matrices = votes
            .iter()
            .find(|option| option.key == "matrices")
            .unwrap();
        assert_eq!(matrices.words, ["query", "key", "value"]);
        assert_eq!(matrices.default, r#"["query", "key", "value"]"#);
        let threshold = votes.iter().find(|option| option.key == "threshold");
        assert!(threshold.unwrap().words.is_empty());
        assert!(Method::Chefer.options().is_empty());
    }

    #[test]
    fn an_unknown_method_is_told_the_near_ones_or_all() {
        let told = |name: &str| name.parse::<Method>().unwrap_err().to_string();
        assert_eq!(
            "unknown method \"gradmsk\"; did you mean gradmask?",
            told("gradmsk")
        );
        assert!(told("xyz").contains("expected one of diffmask, ia-vit, gradmask"));
    }

    #[test]
    fn an_unknown_option_is_named_with_the_method() {
        let options = "group = 3".parse().unwrap();
        let error = Method::GradMask
            .build_with(Parts::default(), options)
            .err()
            .unwrap();
        let error = error.to_string();
        assert!(
            error.contains("gradmask") && error.contains("`group`") && error.contains("`groups`"),
            "{error}"
        );
    }

    #[test]
    fn diffmask_without_gates_is_refused() {
        assert!(Method::DiffMask.build(Parts::default()).is_err());
    }
}
