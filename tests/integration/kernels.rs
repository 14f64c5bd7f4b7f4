//! Each fused operation against the same formula in candle's own operations, forward and backward.

#![expect(clippy::unwrap_used, reason = "a test that cannot compute has failed")]

use candle_core::{D, Device, Result, Tensor, Var};
use vitscope::rng::Rng;
use vitscope_kernels::{self as kernels, Activation, Products};

/// Both sides compute in f32, but sum in a different order.
const FORWARD_TOLERANCE: f32 = 1e-5;
/// Gradients sum over more terms than values do.
const GRADIENT_TOLERANCE: f32 = 1e-4;

type Op<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

fn random(rng: &mut Rng, dims: &[usize]) -> Var {
    Var::from_tensor(&rng.normal_tensor(dims, &Device::Cpu).unwrap()).unwrap()
}

fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f32) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let got: Vec<f32> = got.flatten_all().unwrap().to_vec1().unwrap();
    let want: Vec<f32> = want.flatten_all().unwrap().to_vec1().unwrap();
    let scale = want.iter().fold(1.0f32, |max, value| max.max(value.abs()));
    for (got, want) in got.iter().zip(&want) {
        assert!(
            (got - want).abs() <= tolerance * scale,
            "{what}: {got} is not {want}"
        );
    }
}

/// Checks that `fused` and `plain` agree on values and, under a random upstream gradient, on every gradient.
fn check(name: &str, args: &[Var], fused: Op<'_>, plain: Op<'_>) {
    let tensors: Vec<Tensor> = args.iter().map(|var| var.as_tensor().clone()).collect();
    let (got, want) = (fused(&tensors).unwrap(), plain(&tensors).unwrap());
    assert_close(name, &got, &want, FORWARD_TOLERANCE);

    let upstream = Rng::new(99)
        .normal_tensor(got.dims(), &Device::Cpu)
        .unwrap();
    let gradients = |ys: &Tensor| {
        (ys * &upstream)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap()
    };
    let (got, want) = (gradients(&got), gradients(&want));
    for (arg_idx, arg) in args.iter().enumerate() {
        let what = format!("{name}, gradient of argument {arg_idx}");
        let got = got.get(arg).unwrap_or_else(|| panic!("{what} is absent"));
        assert_close(&what, got, want.get(arg).unwrap(), GRADIENT_TOLERANCE);
    }
}

#[test]
fn linear_equals_matmul_and_add() {
    let mut rng = Rng::new(1);
    for (rows, in_dim, out_dim) in [(1, 1, 1), (3, 5, 7), (257, 33, 65), (600, 64, 48)] {
        let args = [
            random(&mut rng, &[1, rows, in_dim]),
            random(&mut rng, &[out_dim, in_dim]),
            random(&mut rng, &[out_dim]),
        ];
        check(
            &format!("linear {rows}x{in_dim}x{out_dim}"),
            &args,
            &|args| kernels::linear(&args[0], &args[1], &args[2]),
            &|args| plain_linear(&args[0], &args[1], &args[2]),
        );
    }
}

#[test]
fn layer_norm_equals_its_formula() {
    let mut rng = Rng::new(2);
    for (rows, dim) in [(1, 2), (3, 17), (700, 48), (65, 192)] {
        let args = [
            random(&mut rng, &[rows, dim]),
            random(&mut rng, &[dim]),
            random(&mut rng, &[dim]),
        ];
        check(
            &format!("layer norm {rows}x{dim}"),
            &args,
            &|args| kernels::layer_norm(&args[0], &args[1], &args[2], 1e-6),
            &|args| plain_norm(&args[0], &args[1], &args[2]),
        );
    }
}

#[test]
fn softmax_equals_candles() {
    let mut rng = Rng::new(3);
    for dims in [vec![1, 1], vec![5, 3], vec![2, 3, 65, 65], vec![40, 1000]] {
        check(
            &format!("softmax {dims:?}"),
            &[random(&mut rng, &dims)],
            &|args| kernels::softmax(&args[0]),
            &|args| candle_nn::ops::softmax(&args[0], D::Minus1),
        );
    }
}

#[test]
fn softmax_of_large_scores_does_not_overflow() {
    let scores = Tensor::new(&[[1000f32, 999.0, -1000.0]], &Device::Cpu).unwrap();
    let got: Vec<f32> = kernels::softmax(&scores)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    // 1 / (1 + e^-1) and its complement.
    for (got, want) in got.iter().zip([0.731_058_6, 0.268_941_43, 0.0]) {
        assert!((got - want).abs() < 1e-6, "{got} is not {want}");
    }
}

#[test]
fn activations_equal_candles_compositions() {
    let mut rng = Rng::new(4);
    for dims in [vec![1], vec![77], vec![33, 1025]] {
        for activation in [Activation::Gelu, Activation::QuickGelu] {
            check(
                &format!("{activation:?} {dims:?}"),
                &[random(&mut rng, &dims)],
                &|args| activation.forward(&args[0]),
                &|args| plain_activation(activation, &args[0]),
            );
        }
    }
}

/// Computes the exact GELU with candle's own operation, or x / (1 + e^(-1.702 x)).
fn plain_activation(activation: Activation, xs: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Gelu => xs.gelu_erf(),
        Activation::QuickGelu => xs / ((xs * -1.702)?.exp()? + 1.0)?,
    }
}

#[test]
fn attention_equals_scores_softmax_values() {
    let mut rng = Rng::new(5);
    for (batch, tokens, heads, head_dim) in [(1, 1, 1, 1), (2, 5, 3, 7), (3, 65, 4, 32)] {
        let dim = heads * head_dim;
        let args = [(); 3].map(|()| random(&mut rng, &[batch, tokens, dim]));
        let name = format!("attention {batch}x{tokens}x{heads}x{head_dim}");
        let plain = |args: &[Tensor]| {
            let split = |xs: &Tensor| {
                xs.reshape((batch, tokens, heads, head_dim))?
                    .transpose(1, 2)?
                    .contiguous()
            };
            let scores = split(&args[0])?.matmul(&split(&args[1])?.t()?.contiguous()?)?;
            let scores = (scores * (head_dim as f64).powf(-0.5))?;
            candle_nn::ops::softmax(&scores, D::Minus1)?
                .matmul(&split(&args[2])?)?
                .transpose(1, 2)?
                .reshape((batch, tokens, dim))
        };
        check(
            &name,
            &args,
            &|args| kernels::attention(&args[0], &args[1], &args[2], heads),
            &plain,
        );
        check(
            &format!("{name} in steps"),
            &args,
            &|args| {
                let scores = kernels::attention::scores(&args[0], &args[1], heads)?;
                kernels::attention::mix(&kernels::softmax(&scores)?, &args[2])
            },
            &plain,
        );
    }
}

#[test]
fn operands_that_are_not_contiguous_are_read_through_their_strides() {
    let mut rng = Rng::new(6);
    let wide = random(&mut rng, &[4, 6, 10]);
    let part = wide.narrow(2, 3, 5).unwrap().transpose(0, 1).unwrap();
    let weight = random(&mut rng, &[3, 5]);
    let bias = random(&mut rng, &[3]);
    let got = kernels::linear(&part, &weight, &bias).unwrap();
    let copy = part.contiguous().unwrap();
    let want = copy
        .broadcast_matmul(&weight.t().unwrap())
        .unwrap()
        .broadcast_add(&bias)
        .unwrap();
    assert_close("linear of a view", &got, &want, FORWARD_TOLERANCE);
}

#[test]
fn an_empty_batch_gives_an_empty_result() {
    let empty = Tensor::zeros((0, 5, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
    let weight = Tensor::ones((3, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
    let bias = Tensor::ones(3, candle_core::DType::F32, &Device::Cpu).unwrap();
    assert_eq!(
        kernels::linear(&empty, &weight, &bias).unwrap().dims(),
        [0, 5, 3]
    );
    assert_eq!(kernels::softmax(&empty).unwrap().dims(), [0, 5, 8]);
    assert_eq!(Activation::Gelu.forward(&empty).unwrap().dims(), [0, 5, 8]);
    assert_eq!(
        kernels::attention(&empty, &empty, &empty, 2)
            .unwrap()
            .dims(),
        [0, 5, 8]
    );
    let square = Tensor::ones((8, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
    let ones = Tensor::ones(8, candle_core::DType::F32, &Device::Cpu).unwrap();
    let norm = kernels::LayerNorm::new(ones.clone(), ones.clone(), 1e-6);
    let map = kernels::Linear::new(square, ones);
    let mlp = kernels::Mlp::new(
        norm.clone(),
        map.clone(),
        Activation::Gelu,
        map.clone(),
        None,
    );
    assert_eq!(mlp.forward(&empty).unwrap().dims(), [0, 5, 8]);
    let attention = kernels::FusedSelfAttention {
        norm,
        query: map.clone(),
        key: map.clone(),
        value: map.clone(),
        output: map,
        scale: None,
        heads: 2,
        products: Products::F32,
    };
    assert_eq!(attention.forward(&empty).unwrap().dims(), [0, 5, 8]);
}

#[test]
fn frozen_weights_get_no_gradient() {
    let mut rng = Rng::new(7);
    let xs = random(&mut rng, &[4, 8]);
    let weight = random(&mut rng, &[3, 8]);
    let bias = random(&mut rng, &[3]);
    let ys = kernels::linear(&xs, &weight.detach(), &bias.detach()).unwrap();
    let grads = ys.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&xs).is_some());
    assert!(grads.get(&weight).is_none() && grads.get(&bias).is_none());
}

#[test]
fn a_frozen_map_equals_its_formula_also_when_it_is_packed_already() {
    let mut rng = Rng::new(9);
    for (rows, in_dim, out_dim) in [(1, 1, 1), (5, 7, 3), (197, 48, 100), (400, 200, 192)] {
        let mut random = |dims: &[usize]| rng.normal_tensor(dims, &Device::Cpu).unwrap();
        let (weight, bias) = (random(&[out_dim, in_dim]), random(&[out_dim]));
        let map = kernels::Linear::new(weight.clone(), bias.clone());
        for _ in 0..2 {
            let xs = random(&[2, rows, in_dim]);
            let want = plain_linear(&xs, &weight, &bias).unwrap();
            let what = format!("frozen linear {rows}x{in_dim}x{out_dim}");
            assert_close(&what, &map.forward(&xs).unwrap(), &want, FORWARD_TOLERANCE);
        }
    }
}

fn plain_linear(xs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    xs.broadcast_matmul(&weight.t()?)?.broadcast_add(bias)
}

fn plain_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let centered = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
    let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
    centered
        .broadcast_div(&(variance + 1e-6)?.sqrt()?)?
        .broadcast_mul(weight)?
        .broadcast_add(bias)
}

/// Few images and few rows are split over all threads; of many, each goes to one thread.
const BATCHES: [usize; 4] = [1, 2, 3, 17];

/// Creates the weights of a linear map whose outputs are of the same magnitude as its inputs.
fn map_weights(rng: &mut Rng, out_dim: usize, in_dim: usize) -> [Var; 2] {
    let weight = rng.normal_tensor((out_dim, in_dim), &Device::Cpu).unwrap();
    let weight = (weight / (in_dim as f64).sqrt()).unwrap();
    [Var::from_tensor(&weight).unwrap(), random(rng, &[out_dim])]
}

#[test]
fn an_mlp_equals_its_formula_and_its_gradients_with_frozen_weights_and_with_learning_ones() {
    let mut rng = Rng::new(10);
    for (batch, tokens, dim, hidden) in [(1, 1, 2, 3), (2, 5, 7, 9), (3, 197, 48, 192)]
        .into_iter()
        .chain(BATCHES.map(|batch| (batch, 65, 32, 3000)))
    {
        for (scaled, activation) in [
            (false, Activation::Gelu),
            (true, Activation::Gelu),
            (false, Activation::QuickGelu),
        ] {
            let [up, up_bias] = map_weights(&mut rng, hidden, dim);
            let [down, down_bias] = map_weights(&mut rng, dim, hidden);
            let mut args = vec![
                random(&mut rng, &[batch, tokens, dim]),
                random(&mut rng, &[dim]),
                random(&mut rng, &[dim]),
                up,
                up_bias,
                down,
                down_bias,
            ];
            if scaled {
                args.push(random(&mut rng, &[dim]));
            }
            let mlp = |args: &[Tensor]| {
                kernels::Mlp::new(
                    kernels::LayerNorm::new(args[1].clone(), args[2].clone(), 1e-6),
                    kernels::Linear::new(args[3].clone(), args[4].clone()),
                    activation,
                    kernels::Linear::new(args[5].clone(), args[6].clone()),
                    args.get(7).cloned(),
                )
            };
            let plain = |args: &[Tensor]| {
                let normed = plain_norm(&args[0], &args[1], &args[2])?;
                let hidden = plain_linear(&normed, &args[3], &args[4])?;
                let hidden = plain_activation(activation, &hidden)?;
                let ys = plain_linear(&hidden, &args[5], &args[6])?;
                match args.get(7) {
                    Some(scale) => &args[0] + ys.broadcast_mul(scale)?,
                    None => &args[0] + ys,
                }
            };
            let name =
                format!("mlp {batch}x{tokens}x{dim}x{hidden}, scaled: {scaled}, {activation:?}");
            if hidden < 1000 {
                check(&name, &args, &|args| mlp(args).forward(&args[0]), &plain);
            }
            let frozen: Vec<Tensor> = args.iter().map(|var| var.as_tensor().detach()).collect();
            let with_frozen = |xs: &Tensor| [std::slice::from_ref(xs), &frozen[1..]].concat();
            let fused = mlp(&frozen);
            check(
                &format!("frozen {name}"),
                &args[..1],
                &|args| fused.forward(&args[0]),
                &|args| plain(&with_frozen(&args[0])),
            );
        }
    }
}

#[test]
fn fused_self_attention_equals_its_formula_and_its_gradient() {
    let mut rng = Rng::new(11);
    for (batch, tokens, heads, head_dim) in [(1, 1, 1, 1), (2, 5, 3, 7), (1, 300, 3, 16)]
        .into_iter()
        .chain(BATCHES.map(|batch| (batch, 65, 4, 32)))
    {
        for (scaled, activation) in [
            (false, Activation::Gelu),
            (true, Activation::Gelu),
            (false, Activation::QuickGelu),
        ] {
            let dim = heads * head_dim;
            let xs = random(&mut rng, &[batch, tokens, dim]);
            let norm = [&[dim], &[dim]].map(|dims| random(&mut rng, dims).as_tensor().detach());
            let maps = [(); 4]
                .map(|()| map_weights(&mut rng, dim, dim).map(|var| var.as_tensor().detach()));
            let scale = scaled.then(|| random(&mut rng, &[dim]).as_tensor().detach());
            let [query, key, value, output] = maps
                .clone()
                .map(|[weight, bias]| kernels::Linear::new(weight, bias));
            let fused = kernels::FusedSelfAttention {
                norm: kernels::LayerNorm::new(norm[0].clone(), norm[1].clone(), 1e-6),
                query,
                key,
                value,
                output,
                scale: scale.clone(),
                heads,
                products: Products::F32,
            };
            assert!(fused.applies_to(&xs));
            check(
                &format!(
                    "self-attention {batch}x{tokens}x{heads}x{head_dim}, scaled: {scaled}, {activation:?}"
                ),
                &[xs],
                &|args| fused.forward(&args[0]),
                &|args| {
                    let normed = plain_norm(&args[0], &norm[0], &norm[1])?;
                    let project = |which: usize| {
                        let [weight, bias] = &maps[which];
                        plain_linear(&normed, weight, bias)?
                            .reshape((batch, tokens, heads, head_dim))?
                            .transpose(1, 2)?
                            .contiguous()
                    };
                    let scores = project(0)?.matmul(&project(1)?.t()?.contiguous()?)?;
                    let scores = (scores * (head_dim as f64).powf(-0.5))?;
                    let mixed = candle_nn::ops::softmax(&scores, D::Minus1)?
                        .matmul(&project(2)?)?
                        .transpose(1, 2)?
                        .reshape((batch, tokens, dim))?;
                    let ys = plain_linear(&mixed, &maps[3][0], &maps[3][1])?;
                    match &scale {
                        Some(scale) => &args[0] + ys.broadcast_mul(scale)?,
                        None => &args[0] + ys,
                    }
                },
            );
        }
    }
}

#[test]
fn a_vote_equals_its_formula_on_the_last_tokens() {
    let mut rng = Rng::new(13);
    for (batch, n, front, dim, hidden) in [
        (1, 1, 0, 1, 1),
        (2, 5, 3, 7, 3),
        (1, 196, 1, 64, 48),
        (9, 64, 5, 32, 100),
    ] {
        let mut frozen = |dims: &[usize]| random(&mut rng, dims).as_tensor().detach();
        let (xs, ys) = (frozen(&[batch, n, dim]), frozen(&[batch, front + n, dim]));
        let mut map = |out_dim, in_dim| {
            let weight = (frozen(&[out_dim, in_dim]) / (in_dim as f64).sqrt()).unwrap();
            (weight, frozen(&[out_dim]))
        };
        let maps = [map(hidden, dim), map(hidden, dim), map(1, hidden)];
        let [first, own, out] = maps.clone().map(|(w, b)| kernels::Linear::new(w, b));
        let vote = kernels::Vote { first, own, out };
        let got = vote.forward(&xs, &ys, Products::F32).unwrap();
        let plain = |xs: &Tensor, which: usize| plain_linear(xs, &maps[which].0, &maps[which].1);
        let seen = ys.narrow(1, front, n).unwrap();
        let hidden = (plain(&xs, 0).unwrap() + plain(&seen, 1).unwrap()).unwrap();
        let want = plain(&hidden.tanh().unwrap(), 2)
            .unwrap()
            .squeeze(2)
            .unwrap();
        let name = format!("vote {batch}x{front}+{n}x{dim}");
        let want = want.tanh().unwrap();
        assert_close(&name, &got, &want, FORWARD_TOLERANCE);
        let got = vote.forward(&xs, &ys, Products::Bf16).unwrap();
        assert_close(&name, &got, &want, 0.05);
    }
}

#[test]
fn products_of_bfloat16_are_within_its_rounding() {
    let mut rng = Rng::new(14);
    for (batch, tokens, heads, head_dim) in [
        (1, 1, 1, 1),
        (2, 5, 3, 7),
        (1, 197, 3, 64),
        (3, 65, 4, 32),
        (1, 300, 2, 33),
    ] {
        let dim = heads * head_dim;
        let xs = random(&mut rng, &[batch, tokens, dim]);
        let mut frozen = |dims: &[usize]| random(&mut rng, dims).as_tensor().detach();
        let norm = kernels::LayerNorm::new(frozen(&[dim]), frozen(&[dim]), 1e-6);
        let mut map = |out_dim: usize, in_dim: usize| {
            let weight = (frozen(&[out_dim, in_dim]) / (in_dim as f64).sqrt()).unwrap();
            kernels::Linear::new(weight, frozen(&[out_dim]))
        };
        let attention = kernels::FusedSelfAttention {
            norm: norm.clone(),
            query: map(dim, dim),
            key: map(dim, dim),
            value: map(dim, dim),
            output: map(dim, dim),
            scale: None,
            heads,
            products: Products::F32,
        };
        let (up, down) = (map(4 * dim, dim), map(dim, 4 * dim));
        let mlp = kernels::Mlp::new(norm, up, Activation::Gelu, down, None);
        let attend = |attention: kernels::FusedSelfAttention| attention.forward(&xs).unwrap();
        let think = |mlp: kernels::Mlp| mlp.forward(&xs).unwrap();
        let passes = [
            (
                "attention",
                attend(attention.clone()),
                attend(attention.rounded().unwrap()),
            ),
            ("mlp", think(mlp.clone()), think(mlp.rounded().unwrap())),
        ];
        for (what, exact, rounded) in passes {
            let mean_square = |xs: Tensor| -> f32 {
                let mean = xs.sqr().unwrap().mean_all().unwrap();
                mean.to_scalar().unwrap()
            };
            let update = mean_square((&exact - xs.as_tensor()).unwrap());
            let error = (mean_square((&exact - &rounded).unwrap()) / update).sqrt();
            let name = format!("{what} {batch}x{tokens}x{heads}x{head_dim}");
            // A product of two rounded numbers is off by 0.8 % at most, and most of its errors cancel out.
            assert!((1e-7..0.02).contains(&error), "{name}: error {error}");
            let gradient = |ys: &Tensor| {
                let grads = ys.sum_all().unwrap().backward().unwrap();
                grads.get(&xs).unwrap().clone()
            };
            // Backward passes use f32, from values that may be rounded.
            let (got, want) = (gradient(&rounded), gradient(&exact));
            let (error, largest) = (mean_square((got - &want).unwrap()), mean_square(want));
            assert!(
                (error / largest).sqrt() < 0.05,
                "{name}: gradient differs by {error}"
            );
        }
    }
}

#[test]
fn fused_self_attention_leaves_weights_that_learn_to_others() {
    let mut rng = Rng::new(12);
    let maps = [(); 4].map(|()| map_weights(&mut rng, 4, 4));
    let [query, key, value, output] = maps.each_ref().map(|[weight, bias]| {
        kernels::Linear::new(weight.as_tensor().detach(), bias.as_tensor().clone())
    });
    let ones = Tensor::ones(4, candle_core::DType::F32, &Device::Cpu).unwrap();
    let attention = kernels::FusedSelfAttention {
        norm: kernels::LayerNorm::new(ones.clone(), ones, 1e-6),
        query,
        key,
        value,
        output,
        scale: None,
        heads: 2,
        products: Products::F32,
    };
    assert!(!attention.applies_to(&random(&mut rng, &[1, 3, 4])));
}

#[test]
fn a_watch_keeps_the_gradient_of_the_last_backward_pass_and_lets_it_through() {
    let xs = random(&mut Rng::new(14), &[3, 5]);
    let watch = kernels::Watch::default();
    let squares = xs.as_tensor().sqr().unwrap();
    let watched = watch.watch(&squares).unwrap();
    assert_close("watched", &watched, &squares, 0.0);
    assert!(watch.gradient().is_none());
    for factor in [3.0, 5.0] {
        let loss = (&watched * factor).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let want = (squares.ones_like().unwrap() * factor).unwrap();
        assert_close("gradient", &watch.gradient().unwrap(), &want, 0.0);
        let want = (xs.as_tensor() * (2.0 * factor)).unwrap();
        assert_close("passed on", grads.get(&xs).unwrap(), &want, 1e-6);
    }
    assert!(!kernels::Watch::applies_to(&xs.as_tensor().detach()));
}

#[test]
fn shapes_that_do_not_fit_are_refused_with_both_shapes() {
    let mut rng = Rng::new(8);
    let (xs, weight, bias) = (
        random(&mut rng, &[2, 4]),
        random(&mut rng, &[3, 5]),
        random(&mut rng, &[3]),
    );
    let message = kernels::linear(&xs, &weight, &bias)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("[2, 4]") && message.contains("[3, 5]"),
        "{message}"
    );
}
