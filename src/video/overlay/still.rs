//! Conversion between frames and RGB images, for still images and for inspecting results.

use std::sync::Arc;

use image::RgbImage;

use vitscope_core::error::{Error, Result};
use vitscope_core::frame::depth::Narrower;
use vitscope_core::frame::{Frame, FrameSize, PixelFormat, PixelLayout, Pts, rows};

/// Converts the frame to an RGB image of the same size; alpha is dropped, and a high dynamic range becomes a standard
/// one.
///
/// Each chroma sample of 4:2:0 applies to all of its 2 x 2 pixels.
///
/// # Errors
/// [`Error::Shape`] if the frame's planes do not fit its format.
pub fn image_from_frame(frame: &Frame) -> Result<RgbImage> {
    let layout = &frame.layout;
    rows::check(layout)?;
    let FrameSize {
        width_px,
        height_px,
    } = layout.size;
    let mut rgb = Vec::with_capacity(3 * width_px * height_px);
    let plane = |plane_idx| rows::rows(frame.bytes(), layout, plane_idx);
    let packed = |rgb: &mut Vec<u8>, bytes: usize, order: [usize; 3]| {
        for pixel in plane(0).flat_map(|row| row.chunks_exact(bytes)) {
            rgb.extend(order.map(|offset| pixel[offset]));
        }
    };
    let convert = layout.color.rgb_from_yuv();
    // Each row of chroma covers two rows of luma.
    let twice = |plane_idx| plane(plane_idx).flat_map(|row| [row, row]);
    match layout.format {
        PixelFormat::I420Deep => return image_from_frame(&Narrower::default().narrow(frame)?),
        PixelFormat::Rgb => packed(&mut rgb, 3, [0, 1, 2]),
        PixelFormat::Bgr => packed(&mut rgb, 3, [2, 1, 0]),
        PixelFormat::Rgba => packed(&mut rgb, 4, [0, 1, 2]),
        PixelFormat::Bgrx => packed(&mut rgb, 4, [2, 1, 0]),
        PixelFormat::I420 => {
            for (luma, (u, v)) in plane(0).zip(twice(1).zip(twice(2))) {
                for (pixels, (&u, &v)) in luma.chunks(2).zip(u.iter().zip(v)) {
                    rgb.extend(pixels.iter().flat_map(|&y| convert.convert(y, u, v)));
                }
            }
        }
        PixelFormat::Nv12 => {
            for (luma, uv) in plane(0).zip(twice(1)) {
                for (pixels, uv) in luma.chunks(2).zip(uv.chunks_exact(2)) {
                    rgb.extend(
                        pixels
                            .iter()
                            .flat_map(|&y| convert.convert(y, uv[0], uv[1])),
                    );
                }
            }
        }
    }
    let unfit = |got: String| Error::Shape {
        expected: format!("an image of {width_px} x {height_px} pixels"),
        got,
    };
    let length = |len: usize| u32::try_from(len).map_err(|e| unfit(e.to_string()));
    let n_bytes = rgb.len();
    RgbImage::from_raw(length(width_px)?, length(height_px)?, rgb)
        .ok_or_else(|| unfit(format!("{n_bytes} bytes")))
}

/// Converts the image to the only frame of a video, in RGB.
pub fn frame_from_image(image: RgbImage) -> Frame {
    let size = FrameSize {
        width_px: image.width() as usize,
        height_px: image.height() as usize,
    };
    let layout = Arc::new(PixelLayout::packed(PixelFormat::Rgb, size));
    #[expect(
        clippy::expect_used,
        reason = "an image has exactly the bytes of the packed layout of its size"
    )]
    Frame::new(0, Pts(0), None, layout, Box::new(image.into_raw()))
        .expect("an image is as long as its size says")
}
