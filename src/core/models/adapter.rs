//! LoRA adapters (Hu et al., arXiv:2106.09685) in the format of peft: `adapter_config.json` and
//! `adapter_model.safetensors`.
//!
//! | | name | shape |
//! |---|---|---|
//! | W | the model's weight | `[out, in, …]` |
//! | A | `lora_A` | `[r, in, …]` |
//! | B | `lora_B` | `[out, r]`, followed by axes of 1 for a convolution |
//! | s | `lora_alpha` / r, or / √r with `use_rslora` | |
//! | | result | W + s · B A |
//!
//! Fully trained tensors (`modules_to_save`, biases) replace those of the model. Variants with another computation are
//! refused by name.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::vit::fields::{self, Fields};
use crate::vit::names;
use crate::weights::tensors_from_bytes;
use crate::{Error, Result};

/// Settings that change an adapter's computation, unless they are null, false or empty.
const VARIANTS: [&str; 12] = [
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
];

/// Initializations that leave the model's weights unchanged. Others subtract from the weights before training.
const INITIAL: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// Changes of an adapter to a model, by canonical names.
pub(super) struct Adapter {
    /// Added to tensors.
    changes: HashMap<String, Tensor>,
    /// Replaces tensors.
    whole: HashMap<String, Tensor>,
}

/// Scale of B A.
pub(super) struct Scale {
    alpha: f64,
    by_root: bool,
}

impl Scale {
    /// Reads an `adapter_config.json`.
    pub(super) fn from_json(text: &str) -> Result<Self> {
        let root = fields::parse(text)?;
        let fields = Fields(&root);
        let kind = fields.required("peft_type")?;
        if kind != "LORA" {
            return refuse(format!("peft_type is {kind}, but only LORA is supported"));
        }
        let is_set = |value: &&Value| match value {
            Value::Bool(flag) => *flag,
            Value::Object(entries) => !entries.is_empty(),
            Value::Array(entries) => !entries.is_empty(),
            _ => true,
        };
        for variant in VARIANTS {
            if let Some(value) = fields.value(variant).filter(is_set) {
                return refuse(format!(
                    "field {variant:?} is {value}, which is not supported; merge the adapter with peft's merge_and_unload"
                ));
            }
        }
        if let Some(Value::String(initial)) = fields.value("init_lora_weights")
            && !INITIAL.contains(&initial.as_str())
        {
            return refuse(format!(
                "init_lora_weights is {initial:?}, which changes the model's weights before training; merge the \
                 adapter with peft's merge_and_unload"
            ));
        }
        Ok(Self {
            alpha: fields.number("lora_alpha", 8.0)?,
            by_root: fields.flag("use_rslora", false)?,
        })
    }

    fn at_rank(&self, rank: usize) -> f64 {
        let rank = rank.max(1) as f64;
        self.alpha / if self.by_root { rank.sqrt() } else { rank }
    }
}

impl Adapter {
    pub(super) fn from_bytes(scale: &Scale, weights: &[u8], device: &Device) -> Result<Self> {
        let (mut a, mut b, mut whole) = (BTreeMap::new(), BTreeMap::new(), HashMap::new());
        // Sorted, so that the first of several errors is deterministic.
        for (name, tensor) in BTreeMap::from_iter(tensors_from_bytes(weights, device)?) {
            let known = name.strip_prefix("base_model.model.").unwrap_or(&name);
            let known = known.replace(".modules_to_save", "");
            // Trained tensors of the layer under the adapter: its bias.
            let known = known.replace(".base_layer.", ".");
            if let Some(stem) = known.strip_suffix(".lora_A.weight") {
                a.insert(stem.to_owned(), tensor);
            } else if let Some(stem) = known.strip_suffix(".lora_B.weight") {
                b.insert(stem.to_owned(), tensor);
            } else {
                whole.insert(known, tensor);
            }
        }
        if a.is_empty() && whole.is_empty() {
            return refuse("the adapter has no tensors".into());
        }
        let mut changes = HashMap::with_capacity(a.len());
        for (stem, a) in a {
            let Some(b) = b.remove(&stem) else {
                return refuse(format!("tensor \"{stem}.lora_B.weight\" is missing"));
            };
            changes.insert(format!("{stem}.weight"), change(&stem, &a, &b, scale)?);
        }
        match b.first_key_value() {
            Some((stem, _)) => refuse(format!("tensor \"{stem}.lora_A.weight\" is missing")),
            None => Ok(Self {
                changes: names::renamed(changes)?,
                whole: names::renamed(whole)?,
            }),
        }
    }

    /// The classifier that the adapter contains, `[classes, width]`.
    pub(super) fn classifier(&self) -> Option<&Tensor> {
        self.whole.get("classifier.weight")
    }

    /// Applies the changes to the tensors of a model, by canonical names.
    pub(super) fn apply(self, tensors: &mut HashMap<String, Tensor>) -> Result<()> {
        tensors.extend(self.whole);
        for (name, change) in BTreeMap::from_iter(self.changes) {
            let Some(weight) = tensors.get_mut(&name) else {
                return refuse(format!(
                    "the adapter changes {name:?}, which the model does not have"
                ));
            };
            if weight.dims() != change.dims() {
                return refuse(format!(
                    "the adapter's change to {name:?} has shape {:?}, but the model's tensor has shape {:?}",
                    change.dims(),
                    weight.dims()
                ));
            }
            *weight = (&*weight + change)?;
        }
        Ok(())
    }
}

/// s · B A, `[out, in, …]`.
fn change(stem: &str, a: &Tensor, b: &Tensor, scale: &Scale) -> Result<Tensor> {
    let (&[rank, ref inputs @ ..], &[outputs, of_rank, ..]) = (a.dims(), b.dims()) else {
        return refuse(format!("{stem:?} has no matrices lora_A and lora_B"));
    };
    if rank == 0 || of_rank != rank || b.elem_count() != outputs * rank {
        return refuse(format!(
            "{stem:?} has lora_A of shape {:?} and lora_B of shape {:?}, which cannot be multiplied",
            a.dims(),
            b.dims()
        ));
    }
    let shape: Vec<usize> = [&[outputs], inputs].concat();
    let product = b
        .reshape((outputs, rank))?
        .matmul(&a.flatten_from(1)?.contiguous()?)?
        .reshape(shape)?;
    Ok((product * scale.at_rank(rank))?)
}

fn refuse<T>(message: String) -> Result<T> {
    Err(Error::Model(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_refused_by_name_and_idle_settings_are_not() {
        let read = |fields: &str| {
            let text = format!("{{\"peft_type\": \"LORA\", \"lora_alpha\": 6{fields}}}");
            Scale::from_json(&text).map(|scale| scale.at_rank(4))
        };
        assert_eq!(read("").unwrap(), 1.5);
        assert_eq!(read(r#", "use_rslora": true"#).unwrap(), 3.0);
        let idle = r#", "use_dora": false, "alpha_pattern": {}, "layer_replication": null, "init_lora_weights": true"#;
        assert_eq!(read(idle).unwrap(), 1.5);
        let check = |fields: &str, expected: &str| {
            let message = read(fields).unwrap_err().to_string();
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        };
        check(r#", "use_dora": true"#, "\"use_dora\" is true");
        check(r#", "alpha_pattern": {"q": 2}"#, "\"alpha_pattern\"");
        check(r#", "init_lora_weights": "pissa""#, "\"pissa\"");
        let other = Scale::from_json(r#"{"peft_type": "IA3"}"#).err().unwrap();
        assert!(other.to_string().contains("peft_type is \"IA3\""));
    }
}
