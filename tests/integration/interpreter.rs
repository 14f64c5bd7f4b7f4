//! IA-ViT's interpreter against PyTorch (`tests/fixtures/interpreter_parity.py`), and on a model.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::HashMap;
use std::fs;

use candle_core::{D, Device, Tensor};
use vitscope::explain::{Method, Parts, Target};
use vitscope::interpreter::{Interpreter, InterpreterShape, Pooling};
use vitscope::vit::{Record, Site};
use vitscope_core::weights::tensors_from_bytes;

use crate::common::{fixture, small_config, small_images, small_interpreter, small_vit};

const CASES: [(&str, Pooling, bool); 3] = [
    ("mean", Pooling::Mean, false),
    ("position", Pooling::Position, false),
    ("unscaled", Pooling::Position, true),
];

fn reference() -> HashMap<String, Tensor> {
    let bytes = fs::read(fixture("interpreter.safetensors")).unwrap();
    tensors_from_bytes(&bytes, &Device::Cpu).unwrap()
}

fn check_near(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let difference = (found - expected).unwrap().abs().unwrap();
    let largest: f32 = difference.max_all().unwrap().to_scalar().unwrap();
    assert!(largest < 1e-5, "{what} differs by {largest}");
}

#[test]
fn the_interpreter_computes_what_pytorch_computes() {
    let reference = reference();
    for (case, pooling, unscaled) in CASES {
        let expected = |name: &str| &reference[&format!("{case}.{name}")];
        let tokens = expected("tokens");
        let (_, patches, dim) = tokens.dims3().unwrap();
        let shape = InterpreterShape {
            dim,
            patches,
            classes: expected("logits").dim(1).unwrap(),
            pooling,
            unscaled,
        };
        let prefix = format!("{case}.weights.");
        let weights = reference.iter().filter_map(|(name, tensor)| {
            let name = name.strip_prefix(&prefix)?;
            Some((name.to_owned(), tensor.clone()))
        });
        let interpreter = Interpreter::load(shape, &weights.collect()).unwrap();
        let reading = interpreter.read(tokens).unwrap();
        check_near(case, &reading.attention, expected("attention"));
        check_near(case, &reading.logits, expected("logits"));
        let attribution = Interpreter::attribution(&reading.attention).unwrap();
        check_near(case, &attribution, expected("attribution"));
        for class in 0..shape.classes {
            let weights: Vec<f32> = (0..shape.classes)
                .map(|other| f32::from(u8::from(other == class)))
                .collect();
            let weights = Tensor::new(weights, &Device::Cpu)
                .unwrap()
                .unsqueeze(0)
                .unwrap();
            let weights = weights.repeat((tokens.dim(0).unwrap(), 1)).unwrap();
            let found = interpreter.contributions(&reading, &weights).unwrap();
            let expected = expected("contributions").narrow(2, class, 1).unwrap();
            check_near(case, &found, &expected.squeeze(2).unwrap());
        }
    }
}

#[test]
fn maps_are_of_patches_and_those_of_a_class_sum_to_the_logit_but_for_a_constant() {
    let vit = small_vit(small_config());
    let interpreter = small_interpreter(&vit);
    let parts = Parts {
        interpreter: Some(&interpreter),
        ..Parts::default()
    };
    let images = small_images(3);
    let attention = Method::IaVit.build(parts).unwrap();
    let map = attention.explain(&vit, &images, Target::Predicted).unwrap();
    let sums: Vec<f32> = map.attribution.sum(D::Minus1).unwrap().to_vec1().unwrap();
    assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-5), "{sums:?}");
    assert!(attention.explain(&vit, &images, Target::Class(1)).is_err());

    let options = "map = 'class'".parse().unwrap();
    let of_class = Method::IaVit.build_with(parts, options).unwrap();
    let mut record = Record::new([Site::Tokens]);
    vit.forward_with(&images, &mut record).unwrap();
    let tokens = record.get(Site::Tokens).unwrap();
    let patches = tokens.narrow(1, 1, tokens.dim(1).unwrap() - 1).unwrap();
    let logits = interpreter
        .read(&patches.contiguous().unwrap())
        .unwrap()
        .logits;
    for class in 0..3 {
        let map = of_class
            .explain(&vit, &images, Target::Class(class))
            .unwrap();
        let logit = logits.narrow(1, class, 1).unwrap().squeeze(1).unwrap();
        let rest = (logit - map.attribution.sum(D::Minus1).unwrap()).unwrap();
        let rest: Vec<f32> = rest.to_vec1().unwrap();
        let same = rest.iter().all(|value| (value - rest[0]).abs() < 1e-4);
        assert!(same, "class {class}: {rest:?}");
    }
}

#[test]
fn a_model_without_interpreter_is_told_how_to_train_one() {
    let error = Method::IaVit.build(Parts::default()).err().unwrap();
    let message = error.to_string();
    assert!(message.contains("`vitscope train ia-vit`"), "{message}");
}
