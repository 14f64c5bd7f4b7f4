//! Dense optical flow between two grayscale frames, and the pixels that are visible in both.
//!
//! The flow `u` minimizes `sum |grad u| + lambda |I_to(x + u) - I_from(x)|` (TV-L1: Zach, Pock and Bischof, DAGM 2007;
//! Sánchez, Meinhardt-Llopis and Facciolo, IPOL 2013), coarse to fine on a pyramid (Burt and Adelson, 1983). On each
//! level, `I_to` is linearized around `x + u` by Catmull-Rom cubics, the linear problem is solved by primal-dual
//! iterations (Chambolle and Pock, 2011, algorithm 1), and `u` is filtered by medians of 3 x 3 (Wedel et al., 2009).
//!
//! **Deviations** from TV-L1: the Huber norm of `grad u` (Werlberger et al., BMVC 2009), since the plain norm causes
//! staircasing in rotations and zooms; the mean of both frames' gradients (Wedel et al., 2009), which is more accurate;
//! no data term where a pixel leaves the frame, so its motion follows its neighbors.
//!
//! Visibility uses the test of Lai et al. (ECCV 2018), based on Ruder, Dosovitskiy and Brox (GCPR 2016).
//!
//! Brightness is assumed constant: the flow is not robust to cuts, flashes or exposure changes. Each pair of frames is
//! processed by one thread, since there are many pairs.

mod pyramid;
#[cfg(test)]
pub(crate) mod scenes;
mod tv_l1;
mod warp;

use std::array::from_fn;

pub use pyramid::{FlowOptions, flow};
pub use warp::bilinear;
pub use warp::{consistency, visibility, warp};

use crate::error::{Error, Result};

/// A grayscale picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Gray {
    width_px: usize,
    height_px: usize,
    /// One value per pixel; not empty.
    values: Vec<f32>,
}

/// The position of each pixel of a frame in another frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Flow {
    width_px: usize,
    height_px: usize,
    /// One vector per pixel; not empty.
    vectors: Vec<[f32; 2]>,
}

impl Gray {
    /// Creates a picture from `values`, 0 (black) to 1 (white), row by row, `[height_px, width_px]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are no pixels or not one value per pixel, [`Error::Data`] if a value is not in 0..=1,
    /// because [`FlowOptions::lambda`] depends on the units.
    pub fn new(width_px: usize, height_px: usize, values: Vec<f32>) -> Result<Self> {
        check_len((width_px, height_px), values.len())?;
        if let Some(value) = values.iter().find(|value| !(0.0..=1.0).contains(*value)) {
            let message = format!("gray values must be from 0 to 1, got {value:?}");
            return Err(Error::Data(message));
        }
        Ok(Self {
            width_px,
            height_px,
            values,
        })
    }

    /// Width and height in pixels.
    pub fn size_px(&self) -> (usize, usize) {
        (self.width_px, self.height_px)
    }

    /// One value per pixel, row by row, `[height_px, width_px]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The row `before` rows above `y`, clamped to the picture.
    fn row(&self, y: usize, before: usize) -> &[f32] {
        let y = y.saturating_sub(before).min(self.height_px - 1);
        &self.values[y * self.width_px..][..self.width_px]
    }
}

impl Flow {
    /// Creates a flow from `vectors`, row by row, `[height_px, width_px]`: the content at `(x, y)` of one frame is at
    /// `(x + vector[0], y + vector[1])` of the other, in pixels.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are no pixels or not one vector per pixel, [`Error::Data`] if a vector is not finite.
    pub fn new(width_px: usize, height_px: usize, vectors: Vec<[f32; 2]>) -> Result<Self> {
        check_len((width_px, height_px), vectors.len())?;
        if let Some(vector) = vectors
            .iter()
            .find(|[x, y]| !(x.is_finite() && y.is_finite()))
        {
            return Err(Error::Data(format!("a flow vector is {vector:?}")));
        }
        Ok(Self {
            width_px,
            height_px,
            vectors,
        })
    }

    /// Width and height in pixels.
    pub fn size_px(&self) -> (usize, usize) {
        (self.width_px, self.height_px)
    }

    /// Displacement `[x, y]` of each pixel, in pixels, row by row, `[height_px, width_px]`.
    pub fn vectors(&self) -> &[[f32; 2]] {
        &self.vectors
    }

    /// Position of a pixel in the other frame, in pixels from the first one.
    fn place(&self, pixel: usize) -> (f32, f32) {
        let ([right, down], (x, y)) = (self.vectors[pixel], position(pixel, self.width_px));
        (x + right, y + down)
    }

    /// Whether a position lies between the outermost pixels.
    fn holds(&self, (x, y): (f32, f32)) -> bool {
        let to_last = |len: usize| 0.0..=(len - 1) as f32;
        to_last(self.width_px).contains(&x) && to_last(self.height_px).contains(&y)
    }

    /// The bilinearly interpolated vector at a position in pixels, clamped to the frame.
    pub fn at(&self, place: (f32, f32)) -> [f32; 2] {
        from_fn(|axis| bilinear(self.size_px(), place, |pixel| self.vectors[pixel][axis]))
    }
}

fn check_len((width_px, height_px): (usize, usize), len: usize) -> Result<()> {
    if len > 0 && width_px.checked_mul(height_px) == Some(len) {
        return Ok(());
    }
    Err(Error::Shape {
        expected: format!("one value for each of {width_px} x {height_px} pixels"),
        got: format!("{len} values"),
    })
}

fn check_same(expected: (usize, usize), got: (usize, usize)) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::Shape {
        expected: format!("{} x {} pixels", expected.0, expected.1),
        got: format!("{} x {}", got.0, got.1),
    })
}

fn position(pixel: usize, width: usize) -> (f32, f32) {
    ((pixel % width) as f32, (pixel / width) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_values_that_do_not_fit_are_refused() {
        let frame = |width, height| Gray::new(width, height, vec![0.5; width * height]);
        let (wide, high) = (frame(4, 3).unwrap(), frame(3, 4).unwrap());
        let options = FlowOptions::default();
        let mut none = options;
        none.lambda = 0.0;
        let still = |frame: &Gray| flow(frame, frame, &options).unwrap();
        let shape_errors = [
            flow(&wide, &high, &options).err(),
            frame(0, 3).err(),
            Gray::new(2, 2, vec![0.5; 3]).err(),
            warp(&[0.0; 3], &still(&wide)).err(),
            visibility(&still(&wide), &still(&high)).err(),
        ];
        let is_shape = |error| matches!(error, Some(Error::Shape { .. }));
        assert!(shape_errors.into_iter().all(is_shape));
        let data_errors = [
            Gray::new(1, 1, vec![f32::NAN]).err(),
            Gray::new(1, 1, vec![255.0]).err(),
            Flow::new(1, 1, vec![[0.0, f32::NAN]]).err(),
        ];
        let is_data = |error| matches!(error, Some(Error::Data(_)));
        assert!(data_errors.into_iter().all(is_data));
        assert!(matches!(flow(&wide, &wide, &none), Err(Error::Config(_))));
    }
}
