//! Conversion of a picture's bytes to a model's input.

/// Lookup tables from bytes to normalized values per channel: the byte is divided by 255, shifted by the channel's mean
/// and divided by its standard deviation.
pub struct Normalization {
    tables: [[f32; 256]; 3],
}

impl Normalization {
    /// Channels are in the order red, green, blue; values are relative to the maximum brightness.
    pub fn new(mean: [f32; 3], std: [f32; 3]) -> Self {
        let tables = std::array::from_fn(|channel| {
            let (mean, std) = (mean[channel], std[channel]);
            std::array::from_fn(|byte| (byte as f32 / 255.0 - mean) / std)
        });
        Self { tables }
    }

    /// Appends the normalized planes of an RGB picture, red first.
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
