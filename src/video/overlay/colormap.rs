//! Color maps as tables of 256 RGB colors, computed at compile time.
//!
//! Viridis, inferno and magma are the maps by Smith and van der Walt for matplotlib, and turbo is by Mikhailov. Each is
//! stored as the 18 colors whose linear interpolation comes closest to the published table (within 3 of 255 per
//! channel). Turbo stops short of its darkest reds, for the reason stated there.

use std::fmt;
use std::str::FromStr;

use vitscope_core::error::{Error, Result, by_name};

/// A color map from low to high values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Colormap {
    /// Dark blue, green, yellow; perceptually uniform and safe for color-blind viewers.
    Viridis,
    /// Blue, green, yellow, red; the most distinguishable shades over an image.
    #[default]
    Turbo,
    /// Black, purple, orange, pale yellow.
    Inferno,
    /// Black, purple, pink, cream.
    Magma,
    /// Blue, cyan, yellow, red; common in the literature.
    Jet,
    /// Black to white.
    Gray,
}

impl Colormap {
    /// All color maps.
    pub const ALL: [Self; 6] = [
        Self::Viridis,
        Self::Turbo,
        Self::Inferno,
        Self::Magma,
        Self::Jet,
        Self::Gray,
    ];

    /// Returns the name in TOML and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Viridis => "viridis",
            Self::Turbo => "turbo",
            Self::Inferno => "inferno",
            Self::Magma => "magma",
            Self::Jet => "jet",
            Self::Gray => "gray",
        }
    }

    /// Returns the RGB colors of the levels 0 to 255.
    pub fn table(self) -> &'static [[u8; 3]; 256] {
        match self {
            Self::Viridis => &VIRIDIS,
            Self::Turbo => &TURBO,
            Self::Inferno => &INFERNO,
            Self::Magma => &MAGMA,
            Self::Jet => &JET,
            Self::Gray => &GRAY,
        }
    }
}

impl fmt::Display for Colormap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Colormap {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        by_name("colormap", name, &Self::ALL, Self::name)
    }
}

type Table = [[u8; 3]; 256];

static VIRIDIS: Table = joined([
    [68, 1, 84],
    [72, 23, 106],
    [72, 42, 122],
    [67, 61, 133],
    [61, 78, 138],
    [53, 94, 141],
    [46, 109, 142],
    [41, 123, 142],
    [35, 137, 142],
    [30, 151, 139],
    [32, 165, 134],
    [45, 179, 125],
    [70, 192, 112],
    [100, 203, 94],
    [136, 213, 72],
    [176, 221, 47],
    [216, 226, 23],
    [254, 231, 34],
]);

/// Without the last two colors of the published map: its end is a dark red that, blended over an image, is less
/// conspicuous than the red before it, and a mask consists only of the end.
static TURBO: Table = joined([
    [49, 18, 62],
    [64, 62, 159],
    [71, 102, 224],
    [70, 140, 255],
    [48, 178, 246],
    [23, 212, 207],
    [31, 236, 170],
    [81, 251, 122],
    [141, 255, 73],
    [183, 248, 51],
    [220, 227, 54],
    [246, 197, 59],
    [255, 162, 49],
    [249, 117, 28],
    [233, 75, 12],
    [207, 45, 4],
]);

static INFERNO: Table = joined([
    [0, 0, 2],
    [9, 7, 33],
    [29, 13, 70],
    [56, 9, 100],
    [81, 13, 109],
    [105, 22, 110],
    [128, 31, 108],
    [152, 39, 102],
    [176, 49, 92],
    [198, 61, 77],
    [217, 77, 61],
    [233, 97, 43],
    [244, 121, 24],
    [251, 148, 4],
    [252, 176, 18],
    [249, 205, 54],
    [240, 235, 104],
    [249, 255, 166],
]);

static MAGMA: Table = joined([
    [0, 0, 2],
    [8, 7, 32],
    [26, 17, 65],
    [49, 17, 102],
    [75, 15, 123],
    [98, 25, 128],
    [121, 34, 130],
    [145, 43, 129],
    [170, 50, 125],
    [194, 59, 118],
    [218, 70, 107],
    [237, 88, 95],
    [248, 114, 91],
    [253, 142, 99],
    [254, 170, 116],
    [254, 198, 138],
    [253, 226, 163],
    [252, 253, 191],
]);

static JET: Table = jet();

static GRAY: Table = joined([[0; 3], [255; 3]]);

/// Builds the table through `N` equally spaced colors, rounded to the nearest.
const fn joined<const N: usize>(anchors: [[u8; 3]; N]) -> Table {
    let mut table = [[0; 3]; 256];
    let mut level = 0;
    while level < 256 {
        // In 255ths of the distance between two colors.
        let position = level * (N - 1);
        let lower = if level == 255 { N - 2 } else { position / 255 };
        let to_upper = position - 255 * lower;
        let mut channel = 0;
        while channel < 3 {
            let from = anchors[lower][channel] as usize;
            let to = anchors[lower + 1][channel] as usize;
            table[level][channel] = ((from * (255 - to_upper) + to * to_upper + 127) / 255) as u8;
            channel += 1;
        }
        level += 1;
    }
    table
}

/// Builds the table of jet: red, green and blue are trapezoids around 3/4, 1/2 and 1/4 of the levels.
const fn jet() -> Table {
    let mut table = [[0; 3]; 256];
    let mut level = 0;
    while level < 256 {
        let mut channel = 0;
        while channel < 3 {
            let centre = 255 * (3 - channel as i32);
            let distance = (4 * level as i32 - centre).abs();
            let value = (3 * 255 - 2 * distance) / 2;
            table[level][channel] = if value < 0 {
                0
            } else if value > 255 {
                255
            } else {
                value as u8
            };
            channel += 1;
        }
        level += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_meet_published_colors() {
        // Levels 0, 128 and 255 of the tables of matplotlib 3.11; for turbo, which ends earlier here, the levels 0, 113
        // and 225; for jet, MATLAB's trapezoids.
        let published = [
            (
                Colormap::Viridis,
                [[68, 1, 84], [33, 145, 140], [253, 231, 37]],
            ),
            (
                Colormap::Turbo,
                [[48, 18, 59], [113, 254, 95], [206, 45, 4]],
            ),
            (
                Colormap::Inferno,
                [[0, 0, 4], [188, 55, 84], [252, 255, 164]],
            ),
            (
                Colormap::Magma,
                [[0, 0, 4], [183, 55, 121], [252, 253, 191]],
            ),
            (Colormap::Jet, [[0, 0, 128], [129, 255, 125], [128, 0, 0]]),
            (
                Colormap::Gray,
                [[0, 0, 0], [128, 128, 128], [255, 255, 255]],
            ),
        ];
        for (colormap, colors) in published {
            for (level, color) in [0, 128, 255].into_iter().zip(colors) {
                let got = colormap.table()[level];
                let close = got
                    .iter()
                    .zip(color)
                    .all(|(got, want)| got.abs_diff(want) <= 3);
                assert!(close, "{colormap} at {level}: {got:?}, published {color:?}");
            }
        }
    }

    #[test]
    fn neighboring_levels_have_neighboring_colors() {
        for colormap in Colormap::ALL {
            for pair in colormap.table().windows(2) {
                let step = pair[0]
                    .iter()
                    .zip(pair[1])
                    .map(|(a, b)| a.abs_diff(b))
                    .max();
                assert!(step <= Some(7), "{colormap}: {pair:?}");
            }
        }
    }

    #[test]
    fn names_are_read_back() {
        for colormap in Colormap::ALL {
            assert_eq!(colormap.to_string().parse::<Colormap>().unwrap(), colormap);
        }
        let error = "hot".parse::<Colormap>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown colormap \"hot\", expected one of viridis, turbo, inferno, magma, jet, gray"
        );
    }
}
