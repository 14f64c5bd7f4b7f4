//! Picture files: PNG and JPEG, converted to upright and opaque pictures.

use std::fs;
use std::io::{Cursor, ErrorKind};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Rgb, RgbImage};

use crate::error::{Error, Result};

/// Background of transparent pictures: white, as in `transformers`.
pub const BACKGROUND: [u8; 3] = [255; 3];

/// Maximum size of a decoded picture in bytes: RGB of 27,000 x 27,000 pixels.
const MOST_BYTES: u64 = 2 << 30;

/// A picture from a file.
pub struct FilePicture {
    /// Rotated according to its EXIF data, on [`BACKGROUND`].
    pub image: RgbImage,
    /// False if the file is truncated, so that the lower part of the image is missing. Only truncated JPEG can be read.
    pub is_whole: bool,
}

/// Reads a picture.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Media`] if it is damaged or not a picture.
pub fn read(path: &Path) -> Result<FilePicture> {
    let bytes = fs::read(path).map_err(|error| Error::io(path, error))?;
    decode(&bytes).map_err(|error| unreadable(path, &error))
}

/// Fails if a file does not start with the header of a picture.
///
/// # Errors
/// As [`read`].
pub fn check_header(path: &Path) -> Result<()> {
    let reader = ImageReader::open(path)
        .and_then(ImageReader::with_guessed_format)
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                Error::Config(format!("no such file, expected a picture: {path:?}"))
            }
            ErrorKind::IsADirectory => {
                Error::Config(format!("expected a picture, got a folder: {path:?}"))
            }
            _ => Error::io(path, error),
        })?;
    if is_video_name(path) && reader.format().is_none() {
        return Err(Error::Config(format!(
            "expected a picture, got a video; use `vitscope file` to explain a video: {path:?}"
        )));
    }
    let size = reader.into_dimensions();
    size.map(|_| ()).map_err(|error| unreadable(path, &error))
}

/// Extensions of video files.
const VIDEOS: [&str; 12] = [
    "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpg", "mts", "ts", "webm", "wmv",
];

/// True for the name of a video file.
pub fn is_video_name(path: &Path) -> bool {
    let end = path.extension().and_then(|end| end.to_str());
    end.is_some_and(|end| VIDEOS.contains(&&*end.to_ascii_lowercase()))
}

fn unreadable(path: &Path, error: &image::ImageError) -> Error {
    // Some decoders end their messages with a line break.
    let error = error.to_string();
    Error::Media(format!(
        "not a readable picture ({}): {path:?}",
        error.trim_end()
    ))
}

/// Reads a picture from the bytes of its file.
pub fn decode(bytes: &[u8]) -> image::ImageResult<FilePicture> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let is_whole = reader.format() != Some(ImageFormat::Jpeg) || jpeg_ends(bytes);
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if decoder.total_bytes() > MOST_BYTES {
        let error = format!("{width}x{height} px, more than 2 GB once decoded");
        return Err(std::io::Error::other(error).into());
    }
    // An unreadable tag counts as missing.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    Ok(FilePicture {
        image: opaque(picture),
        is_whole,
    })
}

/// Composites the picture over [`BACKGROUND`].
fn opaque(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let picture = picture.into_rgba8();
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [red, green, blue, alpha] = picture.get_pixel(x, y).0.map(u32::from);
        let over = |color: u32, below: u8| {
            let mixed = color * alpha + u32::from(below) * (255 - alpha);
            ((mixed + 127) / 255) as u8
        };
        let [below_red, below_green, below_blue] = BACKGROUND;
        Rgb([
            over(red, below_red),
            over(green, below_green),
            over(blue, below_blue),
        ])
    })
}

/// Whether a JPEG file reaches its end-of-image marker (ITU-T T.81, B.1); decoders silently fill in missing data.
fn jpeg_ends(bytes: &[u8]) -> bool {
    const END: u8 = 0xd9;

    let mut at = 2; // Behind the start-of-image marker.
    loop {
        // A marker is one or more 0xff bytes, followed by a byte that is neither 0xff nor 0.
        let Some(distance) = bytes
            .get(at..)
            .and_then(|rest| rest.iter().position(|&byte| byte == 0xff))
        else {
            return false;
        };
        at += distance;
        while bytes.get(at) == Some(&0xff) {
            at += 1;
        }
        let Some(&marker) = bytes.get(at) else {
            return false;
        };
        at += 1;
        match marker {
            END => return true,
            // A stuffed 0 or a restart inside a scan, which have no length.
            0x00 | 0x01 | 0xd0..=0xd8 => (),
            _ => {
                let Some(&[high, low]) = bytes.get(at..at + 2) else {
                    return false;
                };
                // The header of a scan is followed by its data, up to the next marker.
                at += usize::from(u16::from_be_bytes([high, low]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use image::codecs::jpeg::JpegEncoder;
    use image::{ImageEncoder, Rgba, RgbaImage};

    use super::*;

    fn jpeg() -> Vec<u8> {
        let picture = RgbImage::from_fn(64, 48, |x, y| {
            Rgb([(3 * x) as u8, (5 * y) as u8, (x * y) as u8])
        });
        let mut bytes = Vec::new();
        let encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
        encoder
            .write_image(picture.as_raw(), 64, 48, image::ExtendedColorType::Rgb8)
            .unwrap();
        bytes
    }

    #[test]
    fn a_jpeg_cut_anywhere_behind_its_header_is_not_whole() {
        let whole = jpeg();
        assert!(decode(&whole).unwrap().is_whole);
        let trailing = [whole.as_slice(), &[0; 100]].concat();
        assert!(decode(&trailing).unwrap().is_whole);
        for end in (0..whole.len()).step_by(7) {
            if let Ok(cut) = decode(&whole[..end]) {
                assert!(!cut.is_whole, "{end} of {} bytes", whole.len());
            }
        }
    }

    #[test]
    fn a_small_file_that_claims_a_huge_picture_is_refused() {
        let mut bytes = Vec::new();
        let picture = RgbImage::new(1, 1);
        picture
            .write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)
            .unwrap();
        // The signature and the first chunk's length and type precede width and height; the checksum follows 13 bytes.
        bytes[16..24].copy_from_slice(&[0, 1, 0x86, 0xa0, 0, 1, 0x86, 0xa0]);
        let checksum = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
        let refusal = decode(&bytes).err().unwrap().to_string();
        assert_eq!(refusal, "100000x100000 px, more than 2 GB once decoded");
    }

    /// The checksum of PNG's chunks (ISO/IEC 15948, annex D).
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |checksum, byte| {
            (0..8).fold(checksum ^ u32::from(*byte), |checksum, _| {
                checksum >> 1 ^ if checksum & 1 == 1 { 0xedb8_8320 } else { 0 }
            })
        })
    }

    /// As in `PIL.Image.alpha_composite` on white, up to its rounding.
    #[test]
    fn what_is_transparent_becomes_white() {
        let mut bytes = Vec::new();
        let colors = [
            [200, 0, 0, 0],
            [200, 0, 0, 255],
            [200, 100, 0, 128],
            [0, 0, 0, 1],
        ];
        let picture = RgbaImage::from_fn(4, 1, |x, _| Rgba(colors[x as usize]));
        picture
            .write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)
            .unwrap();
        let read = decode(&bytes).unwrap().image;
        let pixels: Vec<[u8; 3]> = read.pixels().map(|pixel| pixel.0).collect();
        assert_eq!(pixels, [[255; 3], [200, 0, 0], [227, 177, 127], [254; 3]]);
    }
}
