//! The red-patches task on explainers whose score is known by hand.
#![expect(
    clippy::unwrap_used,
    reason = "a failing helper of a test shall end the test"
)]

use candle_core::{D, DType, Device, Tensor};
use vitscope::data::red_patches::RedPatches;
use vitscope::data::{Dataset, Split};
use vitscope::eval::faithfulness::{Entry, Scores, Threshold, score};
use vitscope::eval::gallery::{self, Column};
use vitscope::explain::{Explainer, Explanation, Target};
use vitscope::rng::Rng;
use vitscope::vit::{Vit, VitConfig, init};

fn vit() -> Vit {
    let config = VitConfig {
        image_size: 12,
        patch_size: 4,
        hidden_size: 16,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        intermediate_size: 16,
        labels: vec!["few".into(), "many".into()],
        ..VitConfig::default()
    };
    let weights = init::init(&config, &mut Rng::new(1)).unwrap();
    Vit::load(config, &weights).unwrap()
}

/// Sees the color of each cell; what it keeps is a function of whether the cell is red.
struct Oracle(fn(&Tensor) -> candle_core::Result<Tensor>);

impl Explainer for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn explain(
        &self,
        vit: &Vit,
        images: &Tensor,
        _target: Target,
    ) -> vitscope::Result<Explanation> {
        // The top left pixel of each cell of 4 × 4 pixels.
        let corners = images.reshape((images.dim(0)?, 3, 3, 4, 3, 4))?;
        let corners = corners.narrow(3, 0, 1)?.narrow(5, 0, 1)?;
        let corners = corners.reshape((images.dim(0)?, 3, 9))?;
        let red = corners.narrow(1, 0, 1)?.gt(0.0)?.to_dtype(DType::F32)?;
        let others = corners.narrow(1, 1, 2)?.max(1)?.unsqueeze(1)?;
        let red = (red * others.lt(0.0)?.to_dtype(DType::F32)?)?.squeeze(1)?;
        Ok(Explanation {
            attribution: (self.0)(&red)?,
            logits: vit.forward(images)?.logits,
        })
    }
}

fn scores(oracle: &Oracle) -> Scores {
    let grids = RedPatches::new(3, 4, 200, 0, Split::Test).unwrap();
    let entry = Entry {
        name: "oracle".into(),
        explainer: oracle,
        thresholds: &[Threshold::Half],
    };
    let baseline = Tensor::zeros(16, DType::F32, &Device::Cpu).unwrap();
    let (scores, example) = score(&vit(), &baseline, &grids, &entry, 3).unwrap();
    assert_eq!((example.attributions.len(), example.masks.len()), (3, 3));
    scores
}

#[test]
fn finding_the_red_cells_or_all_others_is_exact_and_consistent() {
    for oracle in [Oracle(|red| Ok(red.clone())), Oracle(|red| 1.0 - red)] {
        let scores = scores(&oracle);
        assert_eq!(scores.grids, 200);
        assert_eq!(
            (scores.exact, scores.iou, scores.consistency),
            (1.0, 1.0, 1.0)
        );
    }
}

#[test]
fn keeping_everything_is_exact_only_where_all_or_nothing_is_red() {
    let scores = scores(&Oracle(|red| red.ones_like()));
    let grids = RedPatches::new(3, 4, 200, 0, Split::Test).unwrap();
    let plain = (0..200)
        .filter(|&index| matches!(grids.label(index), Some(0 | 9)))
        .count();
    assert_eq!(scores.exact, plain as f64 / 200.0);
    assert_eq!((scores.kept, scores.agreement), (1.0, 1.0));
    assert!(scores.kl.abs() < 1e-6);
    assert!(scores.iou < 0.9);
}

#[test]
fn a_cell_too_many_is_not_exact() {
    // The first cell is always kept.
    let scores = scores(&Oracle(|red| {
        let first = Tensor::ones((red.dim(0)?, 1), DType::F32, red.device())?;
        Tensor::cat(&[&first, &red.narrow(D::Minus1, 1, 8)?], 1)
    }));
    assert!(scores.exact < 0.7 && scores.iou > 0.7);
}

#[test]
fn a_grid_of_another_size_than_the_model_s_is_refused() {
    let grids = RedPatches::new(2, 6, 10, 0, Split::Test).unwrap();
    let oracle = Oracle(|red| Ok(red.clone()));
    let entry = Entry {
        name: "oracle".into(),
        explainer: &oracle,
        thresholds: &[Threshold::Half],
    };
    let baseline = Tensor::zeros(16, DType::F32, &Device::Cpu).unwrap();
    let message = score(&vit(), &baseline, &grids, &entry, 0).err().unwrap();
    assert!(
        message
            .to_string()
            .contains("4 cells, the model sees 9 patches")
    );
}

#[test]
fn the_gallery_has_a_column_for_the_grid_and_one_a_method() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gallery.png");
    let grids = RedPatches::new(3, 4, 2, 0, Split::Test).unwrap();
    let pictures: Vec<_> = (0..2).map(|index| grids.picture(index).unwrap()).collect();
    let example = vitscope::eval::faithfulness::Example {
        attributions: vec![vec![0.5; 9]; 2],
        masks: vec![vec![true; 9]; 2],
    };
    let column = |name| Column {
        name,
        example: &example,
        unit: true,
    };
    gallery::save(&pictures, &[column("a"), column("b")], (3, 3), &path).unwrap();
    let sheet = image::open(&path).unwrap();
    assert_eq!(
        (sheet.width(), sheet.height()),
        (24 + 3 * 168, 40 + 2 * 168)
    );
}
