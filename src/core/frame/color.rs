//! Conversion between RGB and the YUV code values defined by a frame's [`ColorTags`].
//!
//! Only the matrix and the range are applied. Primaries and transfer function remain, so that a color painted into a
//! YUV frame matches a player's own conversion.

use super::{ColorMatrix, ColorTags};

/// Number of fractional bits of [`RgbFromYuv`].
const FRACTION_BITS: u32 = 16;

impl ColorTags {
    /// Weights of red and blue in luma; green has the remainder.
    fn luma_weights(self) -> (f64, f64) {
        match self.matrix {
            ColorMatrix::Bt601 => (0.299, 0.114),
            ColorMatrix::Bt709 => (0.2126, 0.0722),
            ColorMatrix::Bt2020 => (0.2627, 0.0593),
        }
    }

    /// Code value of black, and the ranges of luma and chroma in code values.
    fn luma_offset_and_spans(self) -> (f64, f64, f64) {
        if self.full_range {
            (0.0, 255.0, 255.0)
        } else {
            (16.0, 219.0, 224.0)
        }
    }

    /// Y, U and V code values of an RGB color, before rounding.
    pub fn yuv_from_rgb(self, rgb: [u8; 3]) -> [f64; 3] {
        self.yuv_from_unit_rgb(rgb.map(|value| f64::from(value) / 255.0))
    }

    /// 10-bit Y, U and V code values of coded R, G and B from 0 to 1, before rounding.
    pub fn deep_yuv_from_unit_rgb(self, rgb: [f64; 3]) -> [f64; 3] {
        let yuv = self.yuv_from_unit_rgb(rgb);
        if !self.full_range {
            return yuv.map(|value| 4.0 * value);
        }
        // In both depths, white is the last code value and neutral chroma the middle one.
        let scale = 1023.0 / 255.0;
        let [y, u, v] = yuv;
        let chroma = |value: f64| 512.0 + (value - 128.0) * scale;
        [y * scale, chroma(u), chroma(v)]
    }

    fn yuv_from_unit_rgb(self, [r, g, b]: [f64; 3]) -> [f64; 3] {
        let (kr, kb) = self.luma_weights();
        let (offset, luma_span, chroma_span) = self.luma_offset_and_spans();
        let luma = kr * r + (1.0 - kr - kb) * g + kb * b;
        [
            offset + luma_span * luma,
            128.0 + chroma_span * (b - luma) / (2.0 * (1.0 - kb)),
            128.0 + chroma_span * (r - luma) / (2.0 * (1.0 - kr)),
        ]
    }

    /// Prepares the conversion of samples to RGB for many pixels.
    pub fn rgb_from_yuv(self) -> RgbFromYuv {
        let (kr, kb) = self.luma_weights();
        let kg = 1.0 - kr - kb;
        let (offset, luma_span, chroma_span) = self.luma_offset_and_spans();
        let fixed = |factor: f64| (factor * f64::from(1 << FRACTION_BITS)).round() as i32;
        let chroma = 255.0 / chroma_span;
        RgbFromYuv {
            luma_offset: offset as i32,
            luma: fixed(255.0 / luma_span),
            red_from_v: fixed(chroma * 2.0 * (1.0 - kr)),
            green_from_u: fixed(-chroma * 2.0 * (1.0 - kb) * kb / kg),
            green_from_v: fixed(-chroma * 2.0 * (1.0 - kr) * kr / kg),
            blue_from_u: fixed(chroma * 2.0 * (1.0 - kb)),
        }
    }
}

/// Fixed-point factors of one matrix and range.
#[derive(Clone, Copy)]
pub struct RgbFromYuv {
    luma_offset: i32,
    luma: i32,
    red_from_v: i32,
    green_from_u: i32,
    green_from_v: i32,
    blue_from_u: i32,
}

impl RgbFromYuv {
    /// The RGB color of one sample, clamped to the RGB gamut.
    #[inline]
    pub fn convert(self, y: u8, u: u8, v: u8) -> [u8; 3] {
        let luma = self.luma * (i32::from(y) - self.luma_offset) + (1 << (FRACTION_BITS - 1));
        let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
        [
            luma + self.red_from_v * v,
            luma + self.green_from_u * u + self.green_from_v * v,
            luma + self.blue_from_u * u,
        ]
        .map(|value| (value >> FRACTION_BITS).clamp(0, 255) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_tags() -> impl Iterator<Item = ColorTags> {
        [ColorMatrix::Bt601, ColorMatrix::Bt709, ColorMatrix::Bt2020]
            .into_iter()
            .flat_map(|matrix| [false, true].map(|full_range| ColorTags { matrix, full_range }))
    }

    #[test]
    fn black_and_white_take_the_ends_of_the_range() {
        for tags in all_tags() {
            let (black, white) = if tags.full_range {
                (0.0, 255.0)
            } else {
                (16.0, 235.0)
            };
            for (rgb, luma) in [([0; 3], black), ([255; 3], white)] {
                let got = tags.yuv_from_rgb(rgb);
                for (got, want) in got.into_iter().zip([luma, 128.0, 128.0]) {
                    assert!((got - want).abs() < 1e-9, "{tags:?} {rgb:?}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn red_in_bt601_limited_range_is_the_standards_own() {
        // ITU-R BT.601, table of 100 % color bars: red is (81, 90, 240).
        let tags = ColorTags {
            matrix: ColorMatrix::Bt601,
            full_range: false,
        };
        let yuv = tags.yuv_from_rgb([255, 0, 0]).map(f64::round);
        assert_eq!(yuv, [81.0, 90.0, 240.0]);
    }

    #[test]
    fn a_color_survives_the_round_trip_up_to_rounding() {
        for tags in all_tags() {
            let convert = tags.rgb_from_yuv();
            for rgb in [
                [255, 0, 0],
                [0, 255, 0],
                [0, 0, 255],
                [17, 130, 201],
                [90; 3],
            ] {
                let [y, u, v] = tags.yuv_from_rgb(rgb).map(|value| value.round() as u8);
                let got = convert.convert(y, u, v);
                for (got, want) in got.into_iter().zip(rgb) {
                    // Half a code value of chroma corresponds to up to 1.1 levels of blue.
                    assert!(got.abs_diff(want) <= 2, "{tags:?}: {got} {want}");
                }
            }
        }
    }
}
