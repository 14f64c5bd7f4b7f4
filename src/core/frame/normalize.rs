//! From bytes of a picture to what a model takes.

/// What each byte of each channel becomes: its share of the brightest value, shifted by the channel's mean
/// and divided by its standard deviation.
pub struct Normalization {
    tables: [[f32; 256]; 3],
}

impl Normalization {
    /// Channels in the order red, green, blue; both in units of the brightest value.
    pub fn new(mean: [f32; 3], std: [f32; 3]) -> Self {
        let tables = std::array::from_fn(|channel| {
            let (mean, std) = (mean[channel], std[channel]);
            std::array::from_fn(|byte| (byte as f32 / 255.0 - mean) / std)
        });
        Self { tables }
    }

    /// Appends the planes of an RGB picture, red first.
    ///
    /// # Shapes
    /// - `rgb`: `[height, width, 3]`
    /// - appended: `[3, height, width]`
    pub fn append_planes(&self, rgb: &[u8], planes: &mut Vec<f32>) {
        for (channel, table) in self.tables.iter().enumerate() {
            let samples = rgb.iter().skip(channel).step_by(3);
            planes.extend(samples.map(|&sample| table[usize::from(sample)]));
        }
    }
}
