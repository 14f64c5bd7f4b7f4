//! The table of methods, with name, source, requirements and cost of each.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::agcam::Agcam;
use super::attention::RawAttention;
use super::beyond_intuition::BeyondIntuition;
use super::chefer::{Chefer, GradSam};
use super::diffmask::{DiffMask, DiffMaskOptions, Normalization};
use super::gradcam::{GradCam, GradCamAttention};
use super::gradients::{GradientInput, IntegratedGradients, Saliency, SmoothGrad};
use super::gradmask::GradMask;
use super::iavit::{IaVit, IaVitOptions};
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
use super::{Explainer, Options};
use crate::changes::in_words;
use crate::error::{Error, Result, unknown};
use crate::gates::Gates;
use crate::interpreter::Interpreter;

/// The built-in methods; [`Display`](fmt::Display) and [`FromStr`] use the names of the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Trained gates: [`DiffMask`].
    #[default]
    DiffMask,
    /// Attention of a trained interpreter: [`IaVit`].
    IaVit,
    /// Masks of gradients, weighted by confidence: [`GradMask`].
    GradMask,
    /// Attention times its gradient: [`Chefer`].
    Chefer,
    /// [`CheferLrp`](super::chefer_lrp::CheferLrp)
    #[cfg(feature = "lrp")]
    CheferLrp,
    /// [`GradSam`]
    GradSam,
    /// Gradients of the last block's tokens: [`GradCam`].
    GradCam,
    /// [`GradCamAttention`]
    GradCamAttention,
    /// [`Agcam`]
    Agcam,
    /// [`LeGrad`]
    LeGrad,
    /// Neighborhoods of patches in the last block: [`ReciproCam`].
    ReciproCam,
    /// Attention through all blocks: [`Rollout`].
    Rollout,
    /// [`GradientRollout`]
    GradientRollout,
    /// Attention of the last block: [`RawAttention`].
    RawAttention,
    /// [`TransitionAttention`]
    TransitionAttention,
    /// [`BeyondIntuition`]
    BeyondIntuition,
    /// [`Saliency`]
    Saliency,
    /// [`GradientInput`]
    GradientInput,
    /// [`IntegratedGradients`]
    IntegratedGradients,
    /// [`SmoothGrad`]
    SmoothGrad,
    /// [`LibraGrad`]
    LibraGrad,
    /// [`AttnLrp`](super::lrp::AttnLrp)
    #[cfg(feature = "lrp")]
    AttnLrp,
    /// [`Occluding`]
    Occlusion,
    /// [`ScoreCam`]
    ScoreCam,
    /// [`VitCx`]
    VitCx,
    /// [`Tis`]
    Tis,
    /// [`Rise`]
    Rise,
    /// Shapley values of patches: [`KernelShap`].
    KernelShap,
}

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
    /// Where it was published.
    pub paper: &'static str,
    /// Forward passes per frame, as a formula of blocks (L), patches (N) and width (D).
    pub forwards: &'static str,
    /// Backward passes per frame.
    pub backwards: &'static str,
    /// How fast it is.
    pub pace: Pace,
}

/// An option of a method.
#[derive(Clone, Debug, PartialEq)]
pub struct MethodOption {
    /// Its name.
    pub key: String,
    /// Its default value, as TOML.
    pub default: String,
    /// The words it accepts; empty if it takes numbers or composite values.
    pub words: Vec<String>,
    /// What it does.
    pub help: String,
}

/// Trained parts of a model, for the methods that need them.
#[derive(Clone, Copy, Default)]
pub struct Parts<'a> {
    /// DiffMask gates for this model's weights.
    pub gates: Option<&'a Gates>,
    /// IA-ViT's interpreter for this model's weights.
    pub interpreter: Option<&'a Interpreter>,
    /// Normalization of its pictures.
    pub normalization: Option<Normalization>,
}

/// A line of [`Method::entry`].
const fn entry(
    name: &'static str,
    summary: &'static str,
    paper: &'static str,
    (forwards, backwards): (&'static str, &'static str),
    pace: Pace,
) -> Entry {
    Entry {
        name,
        summary,
        paper,
        forwards,
        backwards,
        pace,
    }
}

/// Gives the expression with `$Options` as the type of a method's options, or that of one of the named methods.
macro_rules! by_options {
    ($method:expr, $Options:ident => $each:expr, $($named:ident => $own:expr),+) => {
        by_options!(
            @table $method, $Options => $each, { $($named => $own),+ }
            GradMask: GradMask,
            Chefer: Chefer,
            #[cfg(feature = "lrp")] CheferLrp: super::chefer_lrp::CheferLrp,
            GradSam: GradSam,
            GradCam: GradCam,
            GradCamAttention: GradCamAttention,
            Agcam: Agcam,
            LeGrad: LeGrad,
            ReciproCam: ReciproCam,
            Rollout: Rollout,
            GradientRollout: GradientRollout,
            RawAttention: RawAttention,
            TransitionAttention: TransitionAttention,
            BeyondIntuition: BeyondIntuition,
            Saliency: Saliency,
            GradientInput: GradientInput,
            IntegratedGradients: IntegratedGradients,
            SmoothGrad: SmoothGrad,
            LibraGrad: LibraGrad,
            #[cfg(feature = "lrp")] AttnLrp: super::lrp::AttnLrp,
            Occlusion: Occluding,
            ScoreCam: ScoreCam,
            VitCx: VitCx,
            Tis: Tis,
            Rise: Rise,
            KernelShap: KernelShap,
        )
    };
    (
        @table $method:expr, $Options:ident => $each:expr, { $($named:ident => $own:expr),+ }
        $($(#[$only:meta])? $variant:ident: $type:ty,)+
    ) => {
        match $method {
            $(Method::$named => $own,)+
            $($(#[$only])? Method::$variant => {
                type $Options = $type;
                $each
            })+
        }
    };
}

impl Method {
    /// All methods, best-known families first.
    pub const ALL: &'static [Self] = &[
        Self::DiffMask,
        Self::IaVit,
        Self::GradMask,
        Self::Chefer,
        #[cfg(feature = "lrp")]
        Self::CheferLrp,
        Self::GradSam,
        Self::GradCam,
        Self::GradCamAttention,
        Self::Agcam,
        Self::LeGrad,
        Self::ReciproCam,
        Self::Rollout,
        Self::GradientRollout,
        Self::RawAttention,
        Self::TransitionAttention,
        Self::BeyondIntuition,
        Self::Saliency,
        Self::GradientInput,
        Self::IntegratedGradients,
        Self::SmoothGrad,
        Self::LibraGrad,
        #[cfg(feature = "lrp")]
        Self::AttnLrp,
        Self::Occlusion,
        Self::ScoreCam,
        Self::VitCx,
        Self::Tis,
        Self::Rise,
        Self::KernelShap,
    ];

    /// The method's line of the table; costs are those of its default options.
    pub const fn entry(self) -> Entry {
        match self {
            Self::DiffMask => entry(
                "diffmask",
                "patches that trained gates keep or rank by their contribution to the class",
                "Vision DiffMask, arXiv:2304.06391",
                ("1", "0"),
                Pace::A,
            ),
            Self::IaVit => entry(
                "ia-vit",
                "attention of a student layer trained to imitate the model",
                "IA-ViT, arXiv:2309.08035",
                ("1", "0"),
                Pace::A,
            ),
            Self::GradMask => entry(
                "gradmask",
                "masks of query, key and value gradients, weighted by the class's probability",
                "IJCNN 2025, 10.1109/IJCNN64981.2025.11228361",
                ("1 + 12 (L - 1)", "1"),
                Pace::C,
            ),
            Self::Chefer => entry(
                "chefer",
                "attention times its gradient, accumulated through all blocks",
                "Generic Attention, arXiv:2103.15679",
                ("1", "1"),
                Pace::A,
            ),
            #[cfg(feature = "lrp")]
            Self::CheferLrp => entry(
                "chefer-lrp",
                "relevance of attention times its gradient, accumulated through all blocks",
                "Transformer attribution, arXiv:2012.09838",
                ("5", "1"),
                Pace::B,
            ),
            Self::GradSam => entry(
                "grad-sam",
                "mean of attention times its gradient",
                "Grad-SAM, arXiv:2204.11073",
                ("1", "1"),
                Pace::A,
            ),
            Self::GradCam => entry(
                "gradcam",
                "channels of the last block's tokens, weighted by gradients",
                "Grad-CAM, arXiv:1610.02391",
                ("1", "1"),
                Pace::A,
            ),
            Self::GradCamAttention => entry(
                "gradcam-attention",
                "heads of the last block's attention, weighted by gradients",
                "baseline of arXiv:2012.09838",
                ("1", "1"),
                Pace::A,
            ),
            Self::Agcam => entry(
                "agcam",
                "sigmoid of attention scores, guided by gradients",
                "AGCAM, arXiv:2402.04563",
                ("1", "1"),
                Pace::A,
            ),
            Self::LeGrad => entry(
                "legrad",
                "gradient of each block's class score with respect to its attention",
                "LeGrad, arXiv:2404.03214",
                ("2", "1"),
                Pace::A,
            ),
            Self::ReciproCam => entry(
                "recipro-cam",
                "class score when the last block sees only one neighborhood",
                "ViT-ReciproCAM, arXiv:2310.02588",
                ("1.07", "0"),
                Pace::A,
            ),
            Self::Rollout => entry(
                "rollout",
                "attention followed through all blocks to the class token",
                "Attention Rollout, arXiv:2005.00928",
                ("1", "0"),
                Pace::A,
            ),
            Self::GradientRollout => entry(
                "gradient-rollout",
                "rollout of attention times its gradient",
                "variant of arXiv:2005.00928",
                ("1", "1"),
                Pace::A,
            ),
            Self::RawAttention => entry(
                "raw-attention",
                "attention of the class token in the last block",
                "none",
                ("1", "0"),
                Pace::A,
            ),
            Self::TransitionAttention => entry(
                "tam",
                "attention as a Markov chain, times integrated gradients",
                "Transition Attention Maps, NeurIPS workshop 2021",
                ("21", "20"),
                Pace::C,
            ),
            Self::BeyondIntuition => entry(
                "beyond-intuition",
                "attention of important heads, times integrated gradients",
                "Beyond Intuition, ICML 2023",
                ("21", "21"),
                Pace::C,
            ),
            Self::Saliency => entry(
                "saliency",
                "absolute gradient of the image",
                "arXiv:1312.6034",
                ("1", "1"),
                Pace::A,
            ),
            Self::GradientInput => entry(
                "gradient-x-input",
                "gradient times the image",
                "arXiv:1605.01713",
                ("1", "1"),
                Pace::A,
            ),
            Self::IntegratedGradients => entry(
                "integrated-gradients",
                "gradients along the path from gray to the image",
                "arXiv:1703.01365",
                ("52 to 452", "50 to 450"),
                Pace::C,
            ),
            Self::SmoothGrad => entry(
                "smoothgrad",
                "mean gradient over noisy copies of the image",
                "arXiv:1706.03825",
                ("51", "50"),
                Pace::C,
            ),
            Self::LibraGrad => entry(
                "libragrad",
                "gradient times the image, with rules that preserve the sum",
                "LibraGrad, arXiv:2411.16760",
                ("2", "1"),
                Pace::A,
            ),
            #[cfg(feature = "lrp")]
            Self::AttnLrp => entry(
                "attn-lrp",
                "relevance propagated through attention",
                "AttnLRP, arXiv:2402.05602",
                ("2", "1"),
                Pace::A,
            ),
            Self::Occlusion => entry(
                "occlusion",
                "drop in the class's probability when patches are hidden",
                "arXiv:1311.2901",
                ("2 + N", "0"),
                Pace::C,
            ),
            Self::ScoreCam => entry(
                "score-cam",
                "channels used as masks, weighted by the class's probability",
                "Score-CAM, arXiv:1910.01279",
                ("1 + D", "0"),
                Pace::C,
            ),
            Self::VitCx => entry(
                "vit-cx",
                "clusters of channels used as masks, weighted by the class's probability",
                "ViT-CX, arXiv:2211.03064",
                ("2 + 2 × clusters", "0"),
                Pace::C,
            ),
            Self::Tis => entry(
                "tis",
                "clusters of all blocks' features used as token masks",
                "TiS, ICCV workshops 2023",
                ("1 + 1024 / 2", "0"),
                Pace::C,
            ),
            Self::Rise => entry(
                "rise",
                "random masks, weighted by the class's probability",
                "RISE, arXiv:1806.07421",
                ("2001", "0"),
                Pace::D,
            ),
            Self::KernelShap => entry(
                "kernel-shap",
                "each patch's share of the class's probability (Shapley values from masked copies)",
                "KernelSHAP, arXiv:1705.07874, arXiv:2012.01536",
                ("2 + 768", "0"),
                Pace::C,
            ),
        }
    }

    /// Name on the command line and in the sidecar.
    pub const fn name(self) -> &'static str {
        self.entry().name
    }

    /// The part that must be trained for the model, if any.
    pub const fn trained_part(self) -> Option<&'static str> {
        match self {
            Self::DiffMask => Some("gates"),
            Self::IaVit => Some("interpreter"),
            _ => None,
        }
    }

    /// The explainer, with its default options.
    ///
    /// # Errors
    /// As [`build_with`](Self::build_with).
    pub fn build(self, parts: Parts<'_>) -> Result<Box<dyn Explainer>> {
        self.build_with(parts, toml::Table::new())
    }

    /// The explainer; the keys of `options` are the fields of its type, in kebab case.
    ///
    /// # Errors
    /// [`Error::Model`] if `parts` lacks a part that the method needs; [`Error::Config`] if an option is unknown or out
    /// of range.
    pub fn build_with(self, parts: Parts<'_>, options: toml::Table) -> Result<Box<dyn Explainer>> {
        by_options!(
            self,
            T => self.with::<T>(options),
            DiffMask => {
                let options: DiffMaskOptions = self.parse(options)?;
                let gates = parts.gates.ok_or_else(|| {
                    Error::Model(
                        "model has no gates; train them with `vitscope train diffmask` or choose another method"
                            .into(),
                    )
                })?;
                let explainer = DiffMask::new(gates, parts.normalization, options)?;
                Ok(Box::new(explainer))
            },
            IaVit => {
                let options: IaVitOptions = self.parse(options)?;
                let interpreter = parts.interpreter.ok_or_else(|| {
                    Error::Model(
                        "model has no interpreter; train one with `vitscope train ia-vit` or choose another method"
                            .into(),
                    )
                })?;
                Ok(Box::new(IaVit::new(interpreter, options)))
            }
        )
    }

    /// The options of [`build_with`](Self::build_with), sorted by name.
    pub fn options(self) -> Vec<MethodOption> {
        by_options!(
            self,
            T => options_of::<T>(),
            DiffMask => options_of::<DiffMaskOptions>(),
            IaVit => options_of::<IaVitOptions>()
        )
    }

    fn with<T: Options + DeserializeOwned + 'static>(
        self,
        options: toml::Table,
    ) -> Result<Box<dyn Explainer>> {
        Ok(Box::new(self.read::<T>(options)?))
    }

    /// Checked options.
    fn read<T: Options + DeserializeOwned>(self, options: toml::Table) -> Result<T> {
        let explainer: T = self.parse(options)?;
        explainer.check()?;
        Ok(explainer)
    }

    fn parse<T: DeserializeOwned>(self, options: toml::Table) -> Result<T> {
        options.try_into().map_err(|error: toml::de::Error| {
            // Its second line names the key.
            Error::Config(format!("method {self}: {}", in_words(&error)))
        })
    }
}

/// The options that `T` is read from.
fn options_of<T: Default + Serialize + JsonSchema>() -> Vec<MethodOption> {
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
        // Where something composed is taken too, words alone would tell half of it.
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
