//! A toy method: the first patch is what matters. One file and one line of the table, besides `mod`.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::methods::{Entry, Options, Pace};
use super::{Explainer, Pass};
use crate::error::Result;

/// Explains by the first patch.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Corner {
    /// Score of the first patch.
    score: f32,
}

impl Default for Corner {
    fn default() -> Self {
        Self { score: 1.0 }
    }
}

impl Options for Corner {
    const ENTRY: Entry = Entry {
        name: "corner",
        summary: "the first patch",
        paper: "none",
        forwards: "1",
        backwards: "0",
        pace: Pace::A,
    };
}

impl Explainer for Corner {
    fn name(&self) -> &'static str {
        Self::ENTRY.name
    }

    fn attribution(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let (batch, patches) = (pass.images().dim(0)?, pass.vit().config().n_patches());
        let scores = (0..batch * patches).map(|patch| match patch % patches {
            0 => self.score,
            _ => 0.0,
        });
        let scores: Vec<f32> = scores.collect();
        Ok(Tensor::from_vec(
            scores,
            (batch, patches),
            pass.images().device(),
        )?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use crate::explain::{Method, Parts, Target};
    use crate::rng::Rng;
    use crate::vit::{Vit, VitConfig, init};

    #[test]
    fn a_toy_method_is_chosen_by_name_with_its_options() {
        let method: Method = "corner".parse().unwrap();
        assert_eq!(method.options()[0].key, "score");
        let options = toml::toml! { score = 3.0 };
        let explainer = method.build_with(Parts::default(), options).unwrap();
        let config = VitConfig {
            image_size: 4,
            patch_size: 2,
            hidden_size: 8,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            intermediate_size: 8,
            labels: vec!["a".into(), "b".into()],
            ..VitConfig::default()
        };
        let weights = init::init(&config, &mut Rng::new(0)).unwrap();
        let vit = Vit::load(config, &weights).unwrap();
        let images = Tensor::zeros((2, 3, 4, 4), DType::F32, &Device::Cpu).unwrap();
        let explained = explainer.explain(&vit, &images, Target::Predicted).unwrap();
        let scores: Vec<Vec<f32>> = explained.attribution.to_vec2().unwrap();
        assert_eq!(scores, [[3.0, 0.0, 0.0, 0.0]; 2]);
    }
}
