//! From bytes of a picture to what a model takes.

/// Appends the planes of an RGB picture, red first: each sample as a share of the brightest value, shifted
/// by the channel's `mean` and divided by its `std`.
///
/// # Shapes
/// - `rgb`: `[height, width, 3]`
/// - appended: `[3, height, width]`
pub fn append_planes(rgb: &[u8], mean: [f32; 3], std: [f32; 3], planes: &mut Vec<f32>) {
    for (channel, (mean, std)) in mean.into_iter().zip(std).enumerate() {
        let table: [f32; 256] = std::array::from_fn(|byte| (byte as f32 / 255.0 - mean) / std);
        let samples = rgb.iter().skip(channel).step_by(3);
        planes.extend(samples.map(|&sample| table[usize::from(sample)]));
    }
}
