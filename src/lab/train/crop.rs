//! Random crops: additional views for small data sets.

use image::imageops::{self, FilterType};

use crate::data::Picture;
use vitscope_core::error::Result;
use vitscope_core::rng::Rng;

/// The aspect ratio of a crop, height over width, lies within this factor of the image's.
const WIDEST: f64 = 4.0 / 3.0;

/// Crops a random part of the image, enlarges it to the original size, and mirrors it half of the time.
///
/// The area is uniform in `smallest` to 1 of the image's; sides that would be too long end at the edge.
///
/// # Errors
/// As for [`Picture::into_image`].
pub(super) fn random_crop(picture: Picture, smallest: f64, rng: &mut Rng) -> Result<Picture> {
    let size = picture.size;
    let whole = picture.into_image()?;
    let (width_px, height_px) = whole.dimensions();
    let mut uniform = || f64::from(rng.uniform());
    let edge = (smallest + (1.0 - smallest) * uniform()).sqrt();
    let stretch = WIDEST.powf(uniform() - 0.5);
    let span = |length: u32, share: f64, at: f64| {
        let inside = (f64::from(length) * share)
            .round()
            .clamp(1.0, f64::from(length)) as u32;
        ((f64::from(length - inside) * at).round() as u32, inside)
    };
    let (left, width) = span(width_px, edge / stretch, uniform());
    let (top, height) = span(height_px, edge * stretch, uniform());
    let mirrored = uniform() < 0.5;
    let piece = imageops::crop_imm(&whole, left, top, width, height);
    let mut view = imageops::resize(&*piece, width_px, height_px, FilterType::Triangle);
    if mirrored {
        imageops::flip_horizontal_in_place(&mut view);
    }
    Ok(Picture {
        size,
        rgb: view.into_raw(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;
    use vitscope_core::frame::FrameSize;

    const SIDE_PX: usize = 16;

    /// Brightness increases from left to right.
    fn ramp() -> Picture {
        let row = (0..SIDE_PX).flat_map(|column| [16 * column as u8; 3]);
        Picture {
            size: FrameSize {
                width_px: SIDE_PX,
                height_px: SIDE_PX,
            },
            rgb: row.collect::<Vec<u8>>().repeat(SIDE_PX),
        }
    }

    proptest! {
        #[test]
        fn a_crop_shows_at_least_the_share_that_was_asked_for(seed: u64, smallest in 0.05f64..1.0) {
            let view = random_crop(ramp(), smallest, &mut Rng::new(seed)).unwrap();
            prop_assert_eq!(view.size, ramp().size);
            prop_assert_eq!(view.rgb.len(), ramp().rgb.len());
            let columns: Vec<u8> = view.rgb[..3 * SIDE_PX].iter().copied().step_by(3).collect();
            // A crop of a ramp is itself a ramp, of a known number of its columns.
            let rising = columns.is_sorted();
            prop_assert!(rising || columns.iter().rev().is_sorted(), "{:?}", columns);
            let shown = 1 + usize::from(columns[0].abs_diff(columns[SIDE_PX - 1]) / 16);
            let narrowest = (SIDE_PX as f64 * (smallest / WIDEST).sqrt()).floor();
            prop_assert!(shown + 1 >= narrowest as usize, "{} of {}", shown, narrowest);
        }
    }

    #[test]
    fn crops_differ_and_half_of_them_are_mirrored() {
        let views: Vec<Picture> = (0..200)
            .map(|seed| random_crop(ramp(), 0.3, &mut Rng::new(seed)).unwrap())
            .collect();
        let mirrored = views
            .iter()
            .filter(|view| view.rgb[0] > view.rgb[3 * SIDE_PX - 1]);
        let n_mirrored = mirrored.count();
        assert!((70..=130).contains(&n_mirrored), "{n_mirrored}");
        assert!(views.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
