//! Implements a custom method and runs it in the pipeline.
//!
//! ```text
//! frames in memory → patchify → explain (KeyNorm) → composite → frames in memory
//! ```
//!
//! The method scores a patch by the norm of its key in the last block, because a patch with a large key can
//! attract attention. Run: `cargo run --release --example custom_explainer`
//! Prints the number of frames that were explained and drawn.
#![expect(clippy::print_stdout, reason = "an example tells what it found")]

use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::{D, Device, Tensor};
use vitscope::explain::{Explainer, Needs, Pass, Target};
use vitscope::frame::{Frame, FrameSize, PixelFormat, PixelLayout, Pts};
use vitscope::media::memory::{MemorySink, MemorySource};
use vitscope::models;
use vitscope::overlay::{Overlay, Range};
use vitscope::pipeline::Pipeline;
use vitscope::pipeline::stages::View;
use vitscope::vit::{Site, Vit};

struct KeyNorm;

impl Explainer for KeyNorm {
    fn name(&self) -> &'static str {
        "key-norm"
    }

    fn range(&self) -> Range {
        Range::MinMax
    }

    fn needs(&self, vit: &Vit) -> Needs {
        Needs::values([Site::Key(vit.n_blocks() - 1)])
    }

    fn attribution(&self, pass: &Pass<'_>) -> vitscope::Result<Tensor> {
        let keys = pass.value(Site::Key(pass.vit().n_blocks() - 1))?; // [batch, tokens, dim]
        let patches = pass.patches_of(&keys, 1)?; // [batch, patches, dim]
        Ok(patches.sqr()?.sum(D::Minus1)?.sqrt()?) // [batch, patches]
    }
}

fn main() -> anyhow::Result<()> {
    let size = FrameSize {
        width_px: 160,
        height_px: 120,
    };
    let layout = Arc::new(PixelLayout::packed(PixelFormat::I420, size));
    let frames = (0..10)
        .map(|seq| {
            let pixels = vec![16 * seq as u8; layout.min_len()];
            let pts = Pts(seq * 40_000_000);
            Frame::new(seq, pts, None, Arc::clone(&layout), Box::new(pixels))
        })
        .collect::<vitscope::Result<Vec<_>>>()?;

    let sink = MemorySink::default();
    let pipeline = Pipeline {
        view: View {
            model: Arc::new(models::open("cifar10", &Device::Cpu)?),
            explainers: vec![Box::new(KeyNorm)],
            targets: vec![Target::Predicted],
            reuse: None,
        },
        overlay: Overlay::default(),
        every: NonZeroU64::MIN,
        batch: NonZeroUsize::MIN,
        is_video: true,
        cancel: &AtomicBool::new(false),
        on_frame: Box::new(|_| Ok(())),
    };
    let report = pipeline.run(&mut MemorySource::new(frames), Box::new(sink.clone()))?;
    println!(
        "{} frames explained, {} drawn",
        report.counts.explained,
        sink.take().len()
    );
    Ok(())
}
