//! Gradient × input under modified backward rules: LibraGrad and AttnLRP.
//!
//! Papers: Mehri et al., "LibraGrad", CVPR 2025, arXiv:2411.16760; Achtibat et al., "AttnLRP", ICML 2024,
//! arXiv:2402.05602.
//! The gradient of a transformer does not distribute the score among its inputs: norms, attention and GELU lose or
//! duplicate parts of it. Replacement rules preserve the sum; [`Rules`] lists them.
//!
//! Cost: 2 forwards, 1 backward. The pass under modified rules cannot be shared. **Deviations**: none. Requires no
//! trained weights.
//!
//! The authors of LXT, the code of AttnLRP, state that layer-wise relevance propagation is covered by a patent and free
//! for personal and scientific use only. `AttnLrp` therefore requires the feature `lrp`, which is off by default.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::gradients::GradientInput;
use super::methods::{Entry, Options, Pace};
use super::pass::Forward;
use super::{Explainer, Pass};
use crate::error::Result;
use crate::vit::Rules;

/// Explains by the balanced gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LibraGrad {}

/// Explains by relevance propagated through attention.
#[cfg(feature = "lrp")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttnLrp {}

impl Options for LibraGrad {
    const ENTRY: Entry = Entry {
        name: "libragrad",
        summary: "gradient times the image, with rules that preserve the sum",
        paper: "LibraGrad, arXiv:2411.16760",
        forwards: "2",
        backwards: "1",
        pace: Pace::A,
    };
}

impl Explainer for LibraGrad {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        under(Rules::LibraGrad, pass)
    }
}

#[cfg(feature = "lrp")]
impl Options for AttnLrp {
    const ENTRY: Entry = Entry {
        name: "attn-lrp",
        summary: "relevance propagated through attention",
        paper: "AttnLRP, arXiv:2402.05602",
        forwards: "2",
        backwards: "1",
        pace: Pace::A,
    };
}

#[cfg(feature = "lrp")]
impl Explainer for AttnLrp {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn explains_classes(&self) -> bool {
        true
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        under(Rules::AttnLrp, pass)
    }
}

/// Gradient × input of a pass under `rules`.
fn under(rules: Rules, pass: &Pass<'_>) -> Result<Tensor> {
    let vit = pass.vit().with_rules(rules);
    let gradient_input = GradientInput {};
    let forward = Forward::run(&vit, pass.images(), gradient_input.needs(&vit))?;
    let ruled = forward.toward_weights(Some(pass.weights()?.clone()))?;
    gradient_input.attribution(&ruled)
}
