//! Reads the time scale of the picture from an mp4 or mov file.
//!
//! GStreamer converts times to nanoseconds and does not say in which steps the file counted.
//! An output that counts in the same steps represents every frame's time exactly.
//! Boxes are those of ISO/IEC 14496-12; nothing else of them is read.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// A `moov` box above this size is not read: its file is at least as long as a day.
const LARGEST_MOOV: u64 = 256 << 20;

/// Ticks a second of the first picture track of `path`; `None` where it is no mp4 or has none.
pub(super) fn video_timescale(path: &Path) -> Option<u32> {
    let mut file = File::open(path).ok()?;
    let moov = read_moov(&mut file)?;
    Boxes(&moov)
        .filter(|(kind, _)| kind == b"trak")
        .find_map(|(_, trak)| {
            let media = child(trak, b"mdia")?;
            // Version and flags, a reserved word, then the kind of the track.
            (child(media, b"hdlr")?.get(8..12)? == b"vide").then_some(())?;
            let header = child(media, b"mdhd")?;
            // Creation and modification time come first: 4 bytes each, 8 in version 1.
            let offset = if *header.first()? == 1 { 20 } else { 12 };
            be32(header.get(offset..)?).filter(|timescale| *timescale > 0)
        })
}

/// The contents of the top-level `moov` box.
fn read_moov(file: &mut File) -> Option<Vec<u8>> {
    let mut position = 0_u64;
    loop {
        file.seek(SeekFrom::Start(position)).ok()?;
        let mut header = [0_u8; 16];
        file.read_exact(&mut header[..8]).ok()?;
        let mut header_len = 8_u64;
        let mut len = u64::from(be32(&header)?);
        if len == 1 {
            file.read_exact(&mut header[8..]).ok()?;
            header_len = 16;
            len = u64::from(be32(&header[8..])?) << 32 | u64::from(be32(&header[12..])?);
        }
        // Zero means "to the end of the file", which only the last box may say.
        let content_len = len.checked_sub(header_len)?;
        if &header[4..8] == b"moov" {
            if content_len > LARGEST_MOOV {
                return None;
            }
            let mut moov = Vec::new();
            file.take(content_len).read_to_end(&mut moov).ok()?;
            return Some(moov);
        }
        position = position.checked_add(len)?;
    }
}

fn child<'a>(content: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    Boxes(content)
        .find(|(found, _)| found == kind)
        .map(|(_, content)| content)
}

/// Iterates over the boxes in a box: kind, content. Ends at the first one that does not fit.
struct Boxes<'a>(&'a [u8]);

impl<'a> Iterator for Boxes<'a> {
    type Item = ([u8; 4], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::try_from(be32(self.0)?).ok()?;
        let kind = self.0.get(4..8)?.try_into().ok()?;
        let content = self.0.get(8..len)?;
        self.0 = self.0.get(len..)?;
        Some((kind, content))
    }
}

fn be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn boxed(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let len = u32::try_from(content.len() + 8).unwrap();
        [&len.to_be_bytes()[..], kind, content].concat()
    }

    fn track(handler: &[u8; 4], version: u8, timescale: u32) -> Vec<u8> {
        let times = if version == 1 { 16 } else { 8 };
        let mut mdhd = vec![version, 0, 0, 0];
        mdhd.extend(vec![0; times]);
        mdhd.extend(timescale.to_be_bytes());
        let hdlr = [&[0; 8][..], handler].concat();
        let media = [boxed(b"mdhd", &mdhd), boxed(b"hdlr", &hdlr)].concat();
        boxed(b"trak", &boxed(b"mdia", &media))
    }

    fn timescale_of(bytes: &[u8]) -> Option<u32> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        video_timescale(file.path())
    }

    #[test]
    fn the_picture_track_is_found_behind_sound_and_data() {
        let tracks = [track(b"soun", 0, 48_000), track(b"vide", 1, 12_800)].concat();
        let file = [
            boxed(b"ftyp", b"isom"),
            boxed(b"mdat", &[7; 100]),
            boxed(b"moov", &tracks),
        ]
        .concat();
        assert_eq!(timescale_of(&file), Some(12_800));
    }

    #[test]
    fn broken_files_have_no_time_scale() {
        let whole = boxed(b"moov", &track(b"vide", 0, 600));
        assert_eq!(timescale_of(&whole), Some(600));
        for len in 0..whole.len() {
            // Any answer but a panic or an endless loop will do: a cut file may still show the header.
            let _ = timescale_of(&whole[..len]);
        }
        assert_eq!(timescale_of(&[0; 64]), None);
        assert_eq!(timescale_of(b"just text, and no boxes at all"), None);
    }
}
