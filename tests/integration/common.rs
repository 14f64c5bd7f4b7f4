//! Shared by several tests: small models, clips made by ffmpeg, and what ffprobe reports about them.
#![expect(clippy::expect_used, reason = "a failed step is a failed test")]
#![cfg_attr(
    not(all(feature = "cli", feature = "live")),
    expect(dead_code, reason = "most of it is for tests of the program")
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use candle_core::{Device, Tensor};
use vitscope::interpreter::{Interpreter, InterpreterShape};
use vitscope::rng::Rng;
use vitscope::vit::{Family, Vit, VitConfig, init};
use vitscope_core::gates::{
    EMPTY_ANSWER, GateSizes, Gates, OrderGates, OrderSizes, RankingGates, RankingSizes, VotingGates,
};

/// Returns a file or folder of `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// Computes the largest difference between values of two tensors of the same shape, all of which are finite.
pub(crate) fn largest_difference(found: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(found.dims(), expected.dims());
    let difference = (found - expected).and_then(|difference| difference.abs()?.flatten_all());
    let values: Vec<f32> = difference
        .and_then(|difference| difference.to_vec1())
        .expect("values");
    assert!(values.iter().all(|value| value.is_finite()));
    values.into_iter().fold(0.0, f32::max)
}

#[track_caller]
pub(crate) fn check_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    let difference = largest_difference(found, expected);
    assert!(difference < tolerance, "{what} differs by {difference}");
}

/// Runs `program` to its end, and fails the test if it fails.
pub(crate) fn run_tool(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program} does not start, the tests need it: {error}"));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {log}");
    output
}

/// Makes a file with ffmpeg from space-separated arguments.
pub(crate) fn ffmpeg(args: &str, file: &Path) {
    let mut all: Vec<&str> = ["-v", "error", "-y"].to_vec();
    all.extend(args.split_whitespace());
    let file = file.to_str().expect("temporary paths are text");
    all.push(file);
    run_tool("ffmpeg", &all);
}

/// Makes a clip of `frames` frames with a moving test picture and sound.
pub(crate) fn clip(file: &Path, size: &str, frames: u32) {
    let secs = f64::from(frames) / 25.0;
    ffmpeg(
        &format!(
            "-f lavfi -i testsrc=size={size}:rate=25:duration={secs} \
             -f lavfi -i sine=frequency=440:duration={secs} \
             -c:v libx264 -preset ultrafast -pix_fmt yuv420p -c:a aac -shortest"
        ),
        file,
    );
}

/// Returns the timestamps of the frames of `file` in nanoseconds, relative to the first one, as ffprobe reads them.
pub(crate) fn frame_times(file: &Path) -> Vec<u64> {
    let args = "-v error -select_streams v:0 -show_entries frame=pts_time -of csv=p=0";
    let mut all: Vec<&str> = args.split_whitespace().collect();
    let file = file.to_str().expect("temporary paths are text");
    all.push(file);
    let text = String::from_utf8(run_tool("ffprobe", &all).stdout).expect("ffprobe writes text");
    text.lines()
        .filter_map(|line| line.trim_end_matches(',').parse::<f64>().ok())
        .map(|secs| (secs * 1e9).round() as u64)
        .collect()
}

/// Time after which a hanging connection fails.
pub(crate) const HTTP_PATIENCE: Duration = Duration::from_secs(30);

/// Opens a connection to a server on this machine.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the server listens");
    for timeout in [
        stream.set_read_timeout(Some(HTTP_PATIENCE)),
        stream.set_write_timeout(Some(HTTP_PATIENCE)),
    ] {
        timeout.expect("sockets have timeouts");
    }
    stream
}

/// Returns a server's response to `request`, up to the end of the connection.
pub(crate) fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = connect(address);
    // The server may refuse the request before it has read all of it.
    let _ = stream.write_all(request);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Returns the names of a folder's entries, sorted.
pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder is readable");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("the entry is readable").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Returns the configuration of a model of 3 blocks and 3 × 3 patches.
pub(crate) fn small_config() -> VitConfig {
    VitConfig {
        image_size: 12,
        patch_size: 4,
        hidden_size: 16,
        num_hidden_layers: 3,
        num_attention_heads: 2,
        intermediate_size: 32,
        labels: vec!["cat".into(), "dog".into(), "owl".into()],
        ..VitConfig::default()
    }
}

/// Returns the same configuration with everything that DINOv2 has, and without a head.
pub(crate) fn small_config_without_head() -> VitConfig {
    VitConfig {
        family: Family::Dinov2WithRegisters,
        registers: 4,
        layer_scale: true,
        labels: Vec::new(),
        ..small_config()
    }
}

/// Creates a model with random weights.
pub(crate) fn small_vit(config: VitConfig) -> Vit {
    let weights = init::init(&config, &mut Rng::new(1)).expect("weights are drawn");
    Vit::load(config, &weights).expect("drawn weights fit")
}

/// Creates random images.
pub(crate) fn small_images(batch: usize) -> Tensor {
    let images = Rng::new(2).normal_tensor((batch, 3, 12, 12), &Device::Cpu);
    images.expect("images are drawn")
}

/// Creates random gates.
pub(crate) fn small_gates(vit: &Vit) -> Gates {
    Gates::Voting(small_voting_gates(vit))
}

/// Creates random voting gates.
pub(crate) fn small_voting_gates(vit: &Vit) -> VotingGates {
    let sizes = GateSizes::new(vit.config());
    let tensors = VotingGates::initial_tensors(sizes, 2.0, &mut Rng::new(3), &Device::Cpu);
    let tensors = tensors.expect("gates are drawn").into_iter().collect();
    VotingGates::load(sizes, 15.0, &tensors).expect("drawn gates fit")
}

/// Creates a random interpreter.
pub(crate) fn small_interpreter(vit: &Vit) -> Interpreter {
    let shape = InterpreterShape::new(vit.config(), vit.config().n_patches());
    let tensors = Interpreter::initial_tensors(&shape, &mut Rng::new(4), &Device::Cpu);
    let tensors = tensors
        .expect("an interpreter is drawn")
        .into_iter()
        .collect();
    Interpreter::load(shape, &tensors).expect("a drawn interpreter fits")
}

/// Creates random ranking gates whose scores are not small.
pub(crate) fn small_ranking_gates(vit: &Vit) -> RankingGates {
    let sizes = RankingSizes::new(vit.config(), 6);
    let tensors = RankingGates::initial_tensors(sizes, &mut Rng::new(5), &Device::Cpu);
    let mut tensors = tensors.expect("gates are drawn");
    let mut rng = Rng::new(6);
    for name in [
        "alike.weight",
        "score.weight",
        "share.weight",
        "first.bias",
        EMPTY_ANSWER,
    ] {
        let shape = tensors[name].shape().clone();
        let drawn = rng.uniform_tensor(shape, &Device::Cpu);
        tensors.insert(name.into(), drawn.expect("values are drawn"));
    }
    RankingGates::load(vit, 6, &tensors.into_iter().collect()).expect("drawn gates fit")
}

/// Creates tensors of random ordering gates whose scores are not small.
pub(crate) fn small_order_tensors(vit: &Vit) -> BTreeMap<String, Tensor> {
    let sizes = OrderSizes::new(vit.config(), 6);
    let tensors = OrderGates::initial_tensors(sizes, &mut Rng::new(5), &Device::Cpu);
    let mut tensors = tensors.expect("gates are drawn");
    let mut rng = Rng::new(6);
    for name in ["direct.weight", "order.weight", EMPTY_ANSWER] {
        let shape = tensors[name].shape().clone();
        let drawn = rng.uniform_tensor(shape, &Device::Cpu);
        tensors.insert(name.into(), drawn.expect("values are drawn"));
    }
    tensors
}

/// Creates gates from [`small_order_tensors`].
pub(crate) fn small_order_gates(vit: &Vit) -> OrderGates {
    let tensors = small_order_tensors(vit).into_iter().collect();
    OrderGates::load(vit, 6, &tensors).expect("drawn gates fit")
}
