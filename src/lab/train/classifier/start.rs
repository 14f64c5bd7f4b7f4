//! A trained model as the starting point of training.

use std::collections::HashMap;

use candle_core::Tensor;

use super::ClassifierRecipe;
use vitscope_core::error::Result;
use vitscope_core::rng::Rng;
use vitscope_core::vit::{VitConfig, init};

/// A trained model as the starting point of training.
#[derive(Clone, Debug)]
pub struct Start {
    /// Shape of the model.
    pub config: VitConfig,
    /// Weights under canonical names.
    pub weights: HashMap<String, Tensor>,
    /// Mean and standard deviation of the image normalization that the model expects.
    pub normalization: ([f32; 3], [f32; 3]),
    /// Hash of the model's weights file.
    pub sha256: String,
}

impl Start {
    /// Returns the model for these classes: with its own classifier if it has exactly these classes, else with a new
    /// one.
    pub(super) fn for_classes(
        &self,
        classes: &[String],
        rng: &mut Rng,
    ) -> Result<(VitConfig, HashMap<String, Tensor>)> {
        self.config.family.check_saved()?;
        let (mut config, mut weights) = (self.config.clone(), self.weights.clone());
        if config.labels != classes {
            weights.retain(|name, _| !is_classifier(name));
        }
        config.set_classes(classes.to_vec());
        let weights = init::init_missing(&config, weights, rng)?;
        Ok((config, weights))
    }
}

impl ClassifierRecipe {
    /// Returns true if the recipe trains the tensor of this canonical name, in a model with `n_blocks` blocks.
    pub(super) fn trains(&self, name: &str, n_blocks: usize) -> bool {
        let Some(last_blocks) = self.last_blocks else {
            return true;
        };
        let block = name
            .strip_prefix("encoder.layer.")
            .and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        match block {
            Some(block) => block + last_blocks >= n_blocks,
            None => name.starts_with("layernorm.") || is_classifier(name),
        }
    }
}

fn is_classifier(name: &str) -> bool {
    name.starts_with("classifier.") || name.starts_with("distillation_classifier.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitscope_core::vit::names::expected_shapes;

    fn config() -> VitConfig {
        VitConfig {
            image_size: 8,
            patch_size: 4,
            hidden_size: 4,
            intermediate_size: 8,
            num_hidden_layers: 3,
            num_attention_heads: 1,
            labels: vec!["cat".into(), "dog".into()],
            ..VitConfig::default()
        }
    }

    #[test]
    fn a_classifier_is_kept_for_its_own_classes_only() {
        let config = config();
        let start = Start {
            weights: init::init(&config, &mut Rng::new(1)).unwrap(),
            config: config.clone(),
            normalization: super::super::NORMALIZATION,
            sha256: String::new(),
        };
        let values = |weights: &HashMap<String, Tensor>, name: &str| -> Vec<f32> {
            weights[name].flatten_all().unwrap().to_vec1().unwrap()
        };
        let (same, weights) = start.for_classes(&config.labels, &mut Rng::new(2)).unwrap();
        assert_eq!(same, config);
        for (name, _) in expected_shapes(&config) {
            assert_eq!(values(&weights, &name), values(&start.weights, &name));
        }
        let birds: Vec<String> = ["owl", "jay", "tit"].map(String::from).into();
        let (other, weights) = start.for_classes(&birds, &mut Rng::new(2)).unwrap();
        assert_eq!(other.labels, birds);
        assert_eq!(weights["classifier.weight"].dims(), [3, 4]);
        let block = "encoder.layer.1.output.dense.weight";
        assert_eq!(values(&weights, block), values(&start.weights, block));
    }

    #[test]
    fn last_blocks_are_trained_with_norm_and_classifier() {
        let trained = |last_blocks: Option<usize>| -> Vec<String> {
            let recipe = ClassifierRecipe {
                last_blocks,
                ..ClassifierRecipe::default()
            };
            let names = expected_shapes(&config()).into_iter().map(|(name, _)| name);
            names.filter(|name| recipe.trains(name, 3)).collect()
        };
        assert_eq!(trained(None).len(), expected_shapes(&config()).len());
        let head = [
            "layernorm.weight",
            "layernorm.bias",
            "classifier.weight",
            "classifier.bias",
        ];
        assert_eq!(trained(Some(0)), head);
        let one = trained(Some(1));
        assert!(
            one.iter()
                .all(|name| name.starts_with("encoder.layer.2.") || head.contains(&name.as_str()))
        );
        assert_eq!(one.len(), 16 + head.len());
        assert_eq!(trained(Some(9)).len(), 3 * 16 + head.len());
    }
}
