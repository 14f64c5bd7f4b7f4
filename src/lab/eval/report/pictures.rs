//! A grid of images with the maps of each method.

use std::fmt::Write;
use std::io::Cursor;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use image::{ImageFormat, RgbImage};

use super::Gallery;
use super::text::{escaped, opened_region};
use vitscope_core::error::{Error, Result};

/// One row per image, one column per method.
pub(super) fn section(gallery: &Gallery) -> Result<String> {
    if gallery.rows.is_empty() {
        return Ok(String::new());
    }
    let mut grid = opened_region("Pictures with the map of each method");
    grid += "<table class=\"gallery\">\n<thead><tr><td></td><th scope=\"col\">picture</th>";
    for method in &gallery.methods {
        let _ = write!(grid, "<th scope=\"col\">{}</th>", escaped(method));
    }
    grid += "</tr></thead>\n<tbody>\n";
    for row in &gallery.rows {
        if row.maps.len() != gallery.methods.len() {
            return Err(Error::Shape {
                expected: format!(
                    "{} maps of {:?}, one per method",
                    gallery.methods.len(),
                    row.caption
                ),
                got: row.maps.len().to_string(),
            });
        }
        let caption = escaped(&row.caption);
        let picture = embedded(&row.picture, &caption)?;
        let _ = write!(
            grid,
            "<tr><th scope=\"row\">{caption}</th><td>{picture}</td>"
        );
        for (method, map) in gallery.methods.iter().zip(&row.maps) {
            let map = embedded(map, &format!("{caption}, {}", escaped(method)))?;
            let _ = write!(grid, "<td>{map}</td>");
        }
        grid += "</tr>\n";
    }
    Ok(grid + "</tbody>\n</table>\n</div>\n")
}

/// Encodes an image as PNG.
///
/// # Errors
/// [`Error::Data`] if the image cannot be encoded.
pub(crate) fn png(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, ImageFormat::Png)
        .map_err(|error| Error::Data(format!("a picture cannot be written: {error}")))?;
    Ok(bytes.into_inner())
}

/// Returns a PNG as a data URI.
pub(crate) fn data_uri(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png))
}

/// Returns the image as an HTML element; `alt` must be escaped.
fn embedded(picture: &RgbImage, alt: &str) -> Result<String> {
    let (width, height) = picture.dimensions();
    Ok(format!(
        "<img alt=\"{alt}\" width=\"{width}\" height=\"{height}\" src=\"{}\">",
        data_uri(&png(picture)?)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::tests::gallery;
    use super::*;

    #[test]
    fn pictures_come_back_from_the_page_as_they_were() {
        let html = section(&gallery()).unwrap();
        let pictures = html.split("base64,").skip(1).map(|part| {
            let png = BASE64_STANDARD
                .decode(part.split('"').next().unwrap())
                .unwrap();
            image::load_from_memory(&png).unwrap().into_rgb8()
        });
        let Gallery { rows, .. } = gallery();
        let expected = [&rows[0].picture, &rows[0].maps[0], &rows[0].maps[1]];
        assert!(pictures.eq(expected.into_iter().cloned()));
        assert!(html.contains("alt=\"a cat, b\""), "{html}");
    }

    #[test]
    fn a_picture_without_the_map_of_a_method_is_refused() {
        let mut gallery = gallery();
        gallery.rows[0].maps.pop();
        assert!(matches!(section(&gallery), Err(Error::Shape { .. })));
    }
}
