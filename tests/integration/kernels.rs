//! Each fused operation against the same formula in candle's own operations, forward and backward.

#![expect(clippy::unwrap_used, reason = "a test that cannot compute has failed")]

use candle_core::{D, Device, Result, Tensor, Var};
use vitscope::kernels;
use vitscope::rng::Rng;

/// Both sides compute in f32, in another order of summation.
const FORWARD_TOLERANCE: f32 = 1e-5;
/// Gradients sum over more terms than values.
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

/// `fused` and `plain` agree on values and, under a random upstream gradient, on every gradient.
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
            &|args| {
                args[0]
                    .broadcast_matmul(&args[1].t()?)?
                    .broadcast_add(&args[2])
            },
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
            &|args| {
                let centered = args[0].broadcast_sub(&args[0].mean_keepdim(D::Minus1)?)?;
                let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
                centered
                    .broadcast_div(&(variance + 1e-6)?.sqrt()?)?
                    .broadcast_mul(&args[1])?
                    .broadcast_add(&args[2])
            },
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
fn gelu_equals_candles_exact_form() {
    let mut rng = Rng::new(4);
    for dims in [vec![1], vec![77], vec![33, 1025]] {
        check(
            &format!("gelu {dims:?}"),
            &[random(&mut rng, &dims)],
            &|args| kernels::gelu(&args[0]),
            &|args| args[0].gelu_erf(),
        );
    }
}

#[test]
fn attention_equals_scores_softmax_values() {
    let mut rng = Rng::new(5);
    for (batch, tokens, heads, head_dim) in [(1, 1, 1, 1), (2, 5, 3, 7), (3, 65, 4, 32)] {
        let dim = heads * head_dim;
        let args = [(); 3].map(|()| random(&mut rng, &[batch, tokens, dim]));
        check(
            &format!("attention {batch}x{tokens}x{heads}x{head_dim}"),
            &args,
            &|args| kernels::attention(&args[0], &args[1], &args[2], heads),
            &|args| {
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
            },
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
    assert_eq!(kernels::gelu(&empty).unwrap().dims(), [0, 5, 8]);
    assert_eq!(
        kernels::attention(&empty, &empty, &empty, 2)
            .unwrap()
            .dims(),
        [0, 5, 8]
    );
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
fn a_frozen_map_equals_its_formula_with_and_without_what_is_fused_onto_it() {
    let mut rng = Rng::new(9);
    for (rows, in_dim, out_dim) in [(1, 1, 1), (5, 7, 3), (197, 48, 100), (400, 200, 192)] {
        let mut random = |dims: &[usize]| rng.normal_tensor(dims, &Device::Cpu).unwrap();
        let (weight, bias) = (random(&[out_dim, in_dim]), random(&[out_dim]));
        let residual = random(&[2, rows, out_dim]);
        let map = kernels::Linear::new(weight.clone(), bias.clone());
        let what = format!("frozen linear {rows}x{in_dim}x{out_dim}");
        // The second time the weight is packed already.
        for _ in 0..2 {
            let xs = random(&[2, rows, in_dim]);
            let product = xs.broadcast_matmul(&weight.t().unwrap()).unwrap();
            let want = product.broadcast_add(&bias).unwrap();
            let check = |got: Result<Tensor>, want: &Tensor| {
                assert_close(&what, &got.unwrap(), want, FORWARD_TOLERANCE);
            };
            check(map.forward(&xs), &want);
            check(map.forward_gelu(&xs), &want.gelu_erf().unwrap());
            check(
                map.forward_add(&xs, &residual),
                &(&residual + &want).unwrap(),
            );
        }
        let xs = random(&[2, rows, in_dim]);
        assert!(
            map.forward_add(&xs, &random(&[2, rows, out_dim + 1]))
                .is_err()
        );
    }
}

/// A tracked input needs its graph, whatever is fused where nothing is tracked.
#[test]
fn gradients_pass_a_frozen_map_with_all_that_is_fused_onto_it() {
    let mut rng = Rng::new(10);
    let weight = rng.normal_tensor((6, 4), &Device::Cpu).unwrap();
    let bias = rng.normal_tensor(6, &Device::Cpu).unwrap();
    let map = kernels::Linear::new(weight.clone(), bias.clone());
    let plain = |xs: &Tensor| xs.broadcast_matmul(&weight.t()?)?.broadcast_add(&bias);
    let args = [random(&mut rng, &[1, 3, 4]), random(&mut rng, &[1, 3, 6])];
    check(
        "frozen linear with GELU",
        &args[..1],
        &|args| map.forward_gelu(&args[0]),
        &|args| plain(&args[0])?.gelu_erf(),
    );
    check(
        "frozen linear with residual",
        &args,
        &|args| map.forward_add(&args[0], &args[1]),
        &|args| &args[1] + plain(&args[0])?,
    );
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
