//! Cost of maps: time and memory. These numbers depend on the machine and vary between runs.

use std::fs;
use std::time::Instant;

use super::{Batch, Mapper, Measure, Score, Statistic, Suite};
use vitscope_core::error::Result;
use vitscope_core::explain::Target;

/// Time per image, one at a time, and the peak memory of the process during that time.
pub struct Latency;

impl Suite for Latency {
    fn measures(&self) -> Vec<Measure> {
        let measure = |name, settings, statistic| Measure {
            statistic,
            ..Measure::mean("latency", name, Some(false), settings)
        };
        let time = "one picture at a time, including the model's forward pass; second of two runs";
        vec![
            measure("p50 ms", time, Statistic::Quantile(0.5)),
            measure("p95 ms", time, Statistic::Quantile(0.95)),
            measure(
                "peak MiB",
                "peak resident memory of the process, including the model; Linux only",
                Statistic::Quantile(1.0),
            ),
        ]
    }

    fn reads_maps(&self) -> bool {
        false
    }

    fn score(&self, batch: &Batch<'_>, mapper: &Mapper<'_>) -> Result<Vec<Vec<Score>>> {
        let mut scores = Vec::with_capacity(batch.subjects.len());
        for (nth, subject) in batch.subjects.iter().enumerate() {
            let image = batch.images.narrow(0, nth, 1)?;
            let subject = std::slice::from_ref(subject);
            let explain =
                || mapper.maps(batch.model, batch.vit, &image, subject, Target::Predicted);
            // The first run starts with cold memory and caches.
            explain()?;
            forget_peak();
            let start = Instant::now();
            explain()?;
            let ms = 1e3 * start.elapsed().as_secs_f64();
            scores.push(vec![ms.into(), ms.into(), peak_mib().into()]);
        }
        Ok(scores)
    }
}

/// Resets the kernel's peak resident size; if that fails, the peak since process start counts.
fn forget_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

fn peak_mib() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}
