//! Scene cut detection, shared by everything that remembers previous frames.

/// Edge of the thumbnail in blocks.
const BLOCKS: usize = 8;

/// Mean difference between the blocks of two pictures, on a scale of 255, above which they belong to different scenes.
const CUT: f32 = 30.0;

/// Mean brightness of each block of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Thumbnail(Box<[f32; BLOCKS * BLOCKS]>);

impl Thumbnail {
    /// Computes the thumbnail of a picture of width `width_px` with three bytes per pixel.
    pub fn of_rgb(rgb: &[u8], width_px: usize) -> Self {
        let width_px = width_px.max(1);
        let height_px = (rgb.len() / 3).div_ceil(width_px).max(1);
        let mut sums = Box::new([0.0; BLOCKS * BLOCKS]);
        let mut counts = [0.0_f32; BLOCKS * BLOCKS];
        for (pixel_idx, rgb) in rgb.chunks_exact(3).enumerate() {
            let (x, y) = (pixel_idx % width_px, pixel_idx / width_px);
            let block = (y * BLOCKS / height_px) * BLOCKS + x * BLOCKS / width_px;
            sums[block] += rgb.iter().map(|v| f32::from(*v)).sum::<f32>() / 3.0;
            counts[block] += 1.0;
        }
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum /= count.max(1.0);
        }
        Self(sums)
    }

    /// True if there is a cut between the two pictures.
    pub fn is_of_another_scene(&self, other: &Self) -> bool {
        let differences = self.0.iter().zip(&*other.0).map(|(a, b)| (a - b).abs());
        differences.sum::<f32>() / self.0.len() as f32 > CUT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_picture_is_another_scene_and_a_moved_one_is_not() {
        let stripes = |shift: usize, low: u8| -> Vec<u8> {
            let is_low = |x: usize| ((x + shift) / 16).is_multiple_of(2);
            let row = (0..64).flat_map(|x| [if is_low(x) { low } else { 220 }; 3]);
            row.collect::<Vec<u8>>().repeat(48)
        };
        let thumbnail = |rgb: &[u8]| Thumbnail::of_rgb(rgb, 64);
        let first = thumbnail(&stripes(0, 20));
        assert!(!thumbnail(&stripes(1, 20)).is_of_another_scene(&first));
        assert!(!thumbnail(&stripes(0, 40)).is_of_another_scene(&first));
        assert!(thumbnail(&stripes(16, 20)).is_of_another_scene(&first));
    }

    #[test]
    fn pictures_smaller_than_their_thumbnail_have_one() {
        let black = Thumbnail::of_rgb(&[0; 12], 2);
        assert!(!black.is_of_another_scene(&Thumbnail::of_rgb(&[], 0)));
    }
}
