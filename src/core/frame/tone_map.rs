//! Tone mapping from high to standard dynamic range, as a player does for an SDR display.
//!
//! PQ and HLG (ITU-R BT.2100) code light of up to thousands of cd/m² with the wide primaries of BT.2020. SDR white is
//! mapped to the reference white of BT.2408, 203 cd/m². The EETF of ITU-R BT.2390-10, section 5.4.1, leaves light below
//! its knee unchanged and compresses brighter light below white. It is applied to the maximum of R, G and B, and the
//! others are scaled equally, which preserves hues. Primaries are converted to BT.709 by BT.2087, and light back to
//! code values by BT.1886.

use rayon::prelude::*;

use super::{Hdr, Transfer};

/// cd/m² of diffuse white (BT.2408, section 2.2).
const WHITE_NITS: f64 = 203.0;
/// Peak luminance in cd/m² of HLG, and of PQ with an unknown mastering display.
pub const USUAL_PEAK_NITS: u32 = 1000;
/// Maximum luminance in cd/m² that PQ can code.
const MOST_NITS: f64 = 10_000.0;

/// Converts R, G and B from BT.2020 to BT.709 (BT.2087, table 3).
const BT709_FROM_BT2020: [[f32; 3]; 3] = [
    [1.6605, -0.5876, -0.0728],
    [-0.1246, 1.1329, -0.0083],
    [-0.0182, -0.1006, 1.1187],
];
/// Converts R, G and B from BT.709 to BT.2020 (BT.2087, table 2).
const BT2020_FROM_BT709: [[f64; 3]; 3] = [
    [0.6274, 0.3293, 0.0433],
    [0.0691, 0.9195, 0.0114],
    [0.0164, 0.0880, 0.8956],
];
/// Luma weights of R, G and B in BT.2020.
const BT2020_LUMA: [f32; 3] = [0.2627, 0.6780, 0.0593];
/// Luma weights of R, G and B in BT.709.
const BT709_LUMA: [f32; 3] = [0.2126, 0.7152, 0.0722];

/// One plane of 10-bit samples in 16 bits, little-endian.
pub struct DeepPlane<'a> {
    /// Two bytes per sample, little-endian, row by row.
    pub bytes: &'a mut [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
}

/// The conversion, prepared for many pictures.
pub struct ToneMap {
    /// Code values of the source.
    codes: Codes,
    /// Light of R, G and B by code value, as multiples of the source's peak.
    light: Table,
    /// HLG's factor from scene light to display light, by the square root of the scene's luminance.
    screen: Option<Table>,
    /// Factor to displayed light, as multiples of white, by the square root of the maximum of R, G and B.
    gain: Table,
    /// BT.1886 code value of light, by its square root.
    code: Table,
}

impl ToneMap {
    /// Prepares the conversion for sources with the given coding.
    pub fn new(hdr: Hdr, full_range: bool) -> Self {
        let transfer = hdr.transfer;
        let peak = match transfer {
            Transfer::Pq => f64::from(hdr.peak_nits).clamp(WHITE_NITS, MOST_NITS),
            Transfer::Hlg => f64::from(USUAL_PEAK_NITS),
        };
        let light = match transfer {
            Transfer::Pq => Table::new(|code| (nits_from_pq(code) / peak).min(1.0)),
            Transfer::Hlg => Table::new(scene_from_hlg),
        };
        Self {
            codes: if full_range { FULL } else { LIMITED },
            light,
            screen: (transfer == Transfer::Hlg)
                .then(|| Table::new(|root| (root * root).powf(HLG_GAMMA - 1.0))),
            gain: Table::new(|root| {
                // Clamped to a minimum light, whose factor also applies to darker values.
                let nits = (root * root * peak).max(1e-3);
                shown_nits(nits, peak) / nits * peak / WHITE_NITS
            }),
            code: Table::new(|root| (root * root).powf(1.0 / 2.4)),
        }
    }

    /// Converts a picture of `width` pixels, with subsampled chroma, to limited-range BT.709 in place.
    pub fn apply(&self, width: usize, [y, u, v]: [DeepPlane; 3]) {
        let u_rows = u.bytes.par_chunks_mut(u.stride.max(1));
        let v_rows = v.bytes.par_chunks_mut(v.stride.max(1));
        y.bytes
            .par_chunks_mut(2 * y.stride.max(1))
            .zip(u_rows.zip(v_rows))
            .for_each(|(lumas, (u, v))| {
                let lumas = lumas.chunks_mut(y.stride.max(1));
                let mut lumas: Vec<_> = lumas
                    .map(|row| {
                        let len = (2 * width).min(row.len());
                        &mut row[..len]
                    })
                    .collect();
                self.apply_to_rows(&mut lumas, u, v);
            });
    }

    /// Like [`apply`](Self::apply), for two rows, or a single last one, that share a row of chroma.
    fn apply_to_rows(&self, lumas: &mut [&mut [u8]], u: &mut [u8], v: &mut [u8]) {
        let chromas = u.as_chunks_mut().0.iter_mut().zip(v.as_chunks_mut().0);
        for (pair_idx, (u, v)) in chromas.enumerate() {
            let (cb, cr) = (self.codes.chroma(*u), self.codes.chroma(*v));
            let (mut cb_sum, mut cr_sum, mut n_samples) = (0.0, 0.0, 0.0);
            for row in &mut *lumas {
                let samples = row.as_chunks_mut().0.iter_mut();
                for sample in samples.skip(2 * pair_idx).take(2) {
                    let [luma, blue, red] = self.shown(self.codes.luma(*sample), cb, cr);
                    *sample = LIMITED.luma_bytes(luma);
                    cb_sum += blue;
                    cr_sum += red;
                    n_samples += 1.0;
                }
            }
            if n_samples > 0.0 {
                *u = LIMITED.chroma_bytes(cb_sum / n_samples);
                *v = LIMITED.chroma_bytes(cr_sum / n_samples);
            }
        }
    }

    /// BT.709 luma and color differences of a BT.2020 sample.
    #[inline]
    fn shown(&self, luma: f32, cb: f32, cr: f32) -> [f32; 3] {
        let [kr, kg, kb] = BT2020_LUMA;
        let (cb, cr) = (2.0 * (1.0 - kb) * cb, 2.0 * (1.0 - kr) * cr);
        let coded = [luma + cr, luma - (kb * cb + kr * cr) / kg, luma + cb];
        let mut light = coded.map(|code| self.light.at(code));
        if let Some(screen) = &self.screen {
            let factor = screen.at(dot(BT2020_LUMA, light).sqrt());
            light = light.map(|light| light * factor);
        }
        let [r, g, b] = light;
        let gain = self.gain.at(r.max(g).max(b).sqrt());
        let [r, g, b] = BT709_FROM_BT2020
            .map(|weights| self.code.at((dot(weights, light) * gain).max(0.0).sqrt()));
        let luma = dot(BT709_LUMA, [r, g, b]);
        let [kr, _, kb] = BT709_LUMA;
        [
            luma,
            (b - luma) / (2.0 * (1.0 - kb)),
            (r - luma) / (2.0 * (1.0 - kr)),
        ]
    }
}

/// A function on 0–1, tabulated.
struct Table(Box<[f32]>);

impl Table {
    const LAST: u16 = 4095;

    fn new(function: impl Fn(f64) -> f64) -> Self {
        let places = (0..=Self::LAST).map(|step| f64::from(step) / f64::from(Self::LAST));
        Self(places.map(|place| function(place) as f32).collect())
    }

    /// The function's value at the nearest step; arguments outside are clamped.
    #[inline]
    fn at(&self, x: f32) -> f32 {
        let step = (x * f32::from(Self::LAST) + 0.5) as usize;
        self.0[step.min(Self::LAST.into())]
    }
}

/// Interpretation of 10-bit code values.
struct Codes {
    black: f32,
    /// Range from black to white.
    luma_span: f32,
    /// Range of a color difference.
    chroma_span: f32,
}

const LIMITED: Codes = Codes {
    black: 64.0,
    luma_span: 876.0,
    chroma_span: 896.0,
};
const FULL: Codes = Codes {
    black: 0.0,
    luma_span: 1023.0,
    chroma_span: 1023.0,
};
/// Code value of neutral chroma.
const GRAY: f32 = 512.0;

impl Codes {
    #[inline]
    fn luma(&self, sample: [u8; 2]) -> f32 {
        (f32::from(u16::from_le_bytes(sample)) - self.black) / self.luma_span
    }

    #[inline]
    fn chroma(&self, sample: [u8; 2]) -> f32 {
        (f32::from(u16::from_le_bytes(sample)) - GRAY) / self.chroma_span
    }

    #[inline]
    fn luma_bytes(&self, luma: f32) -> [u8; 2] {
        ((self.black + self.luma_span * luma + 0.5) as u16).to_le_bytes()
    }

    #[inline]
    fn chroma_bytes(&self, difference: f32) -> [u8; 2] {
        ((GRAY + self.chroma_span * difference + 0.5) as u16).to_le_bytes()
    }
}

#[inline]
fn dot(a: [f32; 3], b: [f32; 3]) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// Light of a PQ code value (SMPTE ST 2084, equation 4).
fn nits_from_pq(code: f64) -> f64 {
    let root = code.powf(1.0 / PQ_M2);
    let light = (root - PQ_C1).max(0.0) / (PQ_C2 - PQ_C3 * root);
    MOST_NITS * light.powf(1.0 / PQ_M1)
}

/// PQ code value of light.
fn pq_from_nits(nits: f64) -> f64 {
    let power = (nits / MOST_NITS).powf(PQ_M1);
    ((PQ_C1 + PQ_C2 * power) / (1.0 + PQ_C3 * power)).powf(PQ_M2)
}

const PQ_M1: f64 = 2610.0 / 16384.0;
const PQ_M2: f64 = 2523.0 / 4096.0 * 128.0;
const PQ_C1: f64 = 3424.0 / 4096.0;
const PQ_C2: f64 = 2413.0 / 4096.0 * 32.0;
const PQ_C3: f64 = 2392.0 / 4096.0 * 32.0;

/// Scene light of an HLG code value (BT.2100, table 5).
fn scene_from_hlg(code: f64) -> f64 {
    if code <= 0.5 {
        code * code / 3.0
    } else {
        (((code - HLG_C) / HLG_A).exp() + HLG_B) / 12.0
    }
}

const HLG_A: f64 = 0.178_832_77;
const HLG_B: f64 = 0.284_668_92;
const HLG_C: f64 = 0.559_910_73;

/// HLG code value of scene light (BT.2100, table 5).
fn hlg_from_scene(light: f64) -> f64 {
    if light <= 1.0 / 12.0 {
        (3.0 * light).sqrt()
    } else {
        HLG_A * (12.0 * light - HLG_B).ln() + HLG_C
    }
}

impl Hdr {
    /// Coded R, G and B, from 0 to 1, of an SDR color whose white has the luminance given by BT.2408.
    pub fn coded(self, rgb: [u8; 3]) -> [f64; 3] {
        let light = rgb.map(|value| (f64::from(value) / 255.0).powf(2.4)); // BT.1886.
        let nits = BT2020_FROM_BT709.map(|weights| {
            let products = weights
                .iter()
                .zip(light)
                .map(|(weight, light)| weight * light);
            WHITE_NITS * products.sum::<f64>()
        });
        match self.transfer {
            Transfer::Pq => nits.map(pq_from_nits),
            Transfer::Hlg => {
                let shown = nits.map(|nits| nits / f64::from(USUAL_PEAK_NITS));
                let weighted = BT2020_LUMA.iter().zip(shown);
                let luminance: f64 = weighted
                    .map(|(&weight, light)| f64::from(weight) * light)
                    .sum();
                // Scene light is display light divided by a power of its luminance, from the system gamma.
                let factor = match luminance > 0.0 {
                    true => luminance.powf((1.0 - HLG_GAMMA) / HLG_GAMMA),
                    false => 0.0,
                };
                shown.map(|light| hlg_from_scene(light * factor))
            }
        }
    }
}

/// HLG's system gamma for a display with a peak of [`USUAL_PEAK_NITS`].
const HLG_GAMMA: f64 = 1.2;

/// Light that a display with white as its peak shows for `nits` of a source with peak `peak` (BT.2390-10, 5.4.1).
fn shown_nits(nits: f64, peak: f64) -> f64 {
    let brightest = pq_from_nits(peak);
    let most = pq_from_nits(WHITE_NITS) / brightest;
    let knee = 1.5 * most - 0.5;
    let code = pq_from_nits(nits) / brightest;
    if code < knee || knee >= 1.0 {
        return nits;
    }
    let t = (code - knee) / (1.0 - knee);
    let (t2, t3) = (t * t, t * t * t);
    let bent = (2.0 * t3 - 3.0 * t2 + 1.0) * knee
        + (t3 - 2.0 * t2 + t) * (1.0 - knee)
        + (3.0 * t2 - 2.0 * t3) * most;
    nits_from_pq(bent * brightest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asserts that two lights agree within 1 %.
    fn check_close(got: f64, want: f64) {
        assert!((got / want - 1.0).abs() < 0.01, "{got}, expected {want}");
    }

    #[test]
    fn reference_levels_are_those_of_bt2408() {
        // Table 1 of BT.2408: 18 % gray and white, with their code values in PQ and HLG.
        for (nits, pq, hlg) in [(26.0, 0.38, 0.38), (203.0, 0.58, 0.75)] {
            assert!((pq_from_nits(nits) - pq).abs() < 0.005, "{nits}");
            check_close(nits_from_pq(pq_from_nits(nits)), nits);
            let shown = 1000.0 * scene_from_hlg(hlg).powf(HLG_GAMMA);
            assert!((shown / nits - 1.0).abs() < 0.02, "{shown} for {nits}");
        }
        check_close(nits_from_pq(1.0), 10_000.0);
    }

    #[test]
    fn colors_of_a_standard_range_are_coded_as_bt2408_puts_them() {
        for (transfer, white) in [(Transfer::Pq, 0.58), (Transfer::Hlg, 0.75)] {
            let hdr = Hdr {
                transfer,
                peak_nits: USUAL_PEAK_NITS,
            };
            for code in hdr.coded([255; 3]) {
                assert!((code - white).abs() < 0.005, "{transfer:?}: {code}");
            }
            assert_eq!(hdr.coded([0; 3]).map(|code| (code * 1e4).round()), [0.0; 3]);
            // Light below the knee is restored by the tone map.
            let tone_map = ToneMap::new(hdr, false);
            let tags = crate::frame::ColorTags {
                matrix: crate::frame::ColorMatrix::Bt2020,
                full_range: false,
            };
            let [y, u, v] = tags.deep_yuv_from_unit_rgb(hdr.coded([120, 60, 30]));
            let [y, u, v] = [y, u, v].map(|value| (value.round() as u16).to_le_bytes());
            let (cb, cr) = (LIMITED.chroma(u), LIMITED.chroma(v));
            let [luma, blue, red] = tone_map.shown(LIMITED.luma(y), cb, cr);
            let [kr, _, kb] = BT709_LUMA;
            let (r, b) = (
                luma + 2.0 * (1.0 - kr) * red,
                luma + 2.0 * (1.0 - kb) * blue,
            );
            for (got, want) in [(r, 120.0), (b, 30.0)] {
                assert!(
                    (255.0 * got - want).abs() < 3.0,
                    "{transfer:?}: {got} for {want}"
                );
            }
        }
    }

    #[test]
    fn the_curve_keeps_dark_light_and_ends_at_white() {
        check_close(shown_nits(50.0, 1000.0), 50.0);
        check_close(shown_nits(1000.0, 1000.0), WHITE_NITS);
        check_close(shown_nits(150.0, WHITE_NITS), 150.0);
        let shown: Vec<f64> = (1..1000)
            .map(|nits| shown_nits(nits.into(), 1000.0))
            .collect();
        assert!(shown.is_sorted());
    }

    #[test]
    fn gray_stays_gray_and_black_stays_black() {
        for (transfer, gray) in [(Transfer::Pq, 64 + 333), (Transfer::Hlg, 64 + 333)] {
            let peak_nits = USUAL_PEAK_NITS;
            let hdr = Hdr {
                transfer,
                peak_nits,
            };
            let tone_map = ToneMap::new(hdr, false);
            let plane = |samples: &[u16]| -> Vec<u8> {
                samples
                    .iter()
                    .flat_map(|sample| sample.to_le_bytes())
                    .collect()
            };
            let mut y = plane(&[64, gray, 940]);
            let (mut u, mut v) = (plane(&[512, 512]), plane(&[512, 512]));
            let deep = |bytes, stride| DeepPlane { bytes, stride };
            tone_map.apply(3, [deep(&mut y, 6), deep(&mut u, 4), deep(&mut v, 4)]);
            assert_eq!((u, v), (plane(&[512, 512]), plane(&[512, 512])));
            let y: Vec<u16> = y
                .as_chunks()
                .0
                .iter()
                .map(|&y| u16::from_le_bytes(y))
                .collect();
            // 26 cd/m² of white's 203 are 18 % of gray's light: 0.128 to the power of 1 / 2.4.
            let expected = 64.0 + 876.0 * (26.0_f64 / 203.0).powf(1.0 / 2.4);
            assert!(
                (f64::from(y[1]) - expected).abs() < 6.0,
                "{transfer:?}: {y:?}"
            );
            assert_eq!([y[0], y[2]], [64, 940], "{transfer:?}");
        }
    }
}
