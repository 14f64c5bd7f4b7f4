//! Removal of negative composition offsets from the fragments of an mp4.
//!
//! qtdemux 1.22 delays the samples of a track until none is shown before it is decoded, and determines that delay anew
//! for each fragment: frames of one track are moved by different times, which are not reported. All offsets of a track
//! are therefore raised by the amount that the lowest one requires as the fragments are read, and
//! [`Track::begin`](super::mp4::Track::begin) reverses that.

use std::collections::HashMap;
use std::fs::File;

use super::edits::Patch;
use super::mp4::{Content, Table, read_top};

/// Flags of a run of samples (ISO/IEC 14496-12, 8.8.8).
const HAS_PLACE: u32 = 0x1;
const HAS_FIRST_FLAGS: u32 = 0x4;
const HAS_DURATIONS: u32 = 0x100;
const HAS_SIZES: u32 = 0x200;
const HAS_FLAGS: u32 = 0x400;
const HAS_OFFSETS: u32 = 0x800;

/// Data of one track in the fragments of a file.
#[derive(Default)]
pub(super) struct Runs {
    /// Presentation time of the first sample, in ticks of the track.
    pub(super) first: Option<i64>,
    /// Locations of the offsets in the file, and their values.
    offsets: Vec<(u64, i32)>,
    /// Locations of the decoding times of fragments without offsets, and their values.
    times: Vec<(u64, Time)>,
}

#[derive(Clone, Copy)]
enum Time {
    Narrow(u32),
    Wide(u64),
}

impl Runs {
    /// Reads the runs of all tracks of `file`, by track number, from `position` on.
    pub(super) fn read(file: &mut File, mut position: u64) -> HashMap<u32, Self> {
        let mut tracks: HashMap<u32, Self> = HashMap::new();
        while let Some((moof, base)) = read_top(file, position, b"moof") {
            position = base + moof.len() as u64;
            let root = Content {
                bytes: &moof,
                at: base,
            };
            for (_, traf) in root.children().filter(|(kind, _)| kind == b"traf") {
                if let Some(id) = traf.child(b"tfhd").and_then(|header| header.be32(4)) {
                    tracks.entry(id).or_default().add(traf);
                }
            }
        }
        tracks
    }

    /// Number of ticks by which the lowest of all offsets, including those in `table`, is below zero.
    pub(super) fn shift(&self, table: Option<Table>) -> u32 {
        let offsets = self.offsets_with(table);
        let lowest = offsets.map(|(_, offset)| offset).min().unwrap_or(0);
        lowest.min(0).unsigned_abs()
    }

    /// Returns patches that raise all offsets in the file by `shift` ticks.
    pub(super) fn raise(&self, table: Option<Table>, shift: u32) -> Vec<Patch> {
        if shift == 0 {
            return Vec::new();
        }
        let raised = self.offsets_with(table).map(|(at, offset)| {
            let offset = offset.saturating_add_unsigned(shift);
            (at, offset.to_be_bytes().to_vec())
        });
        // Samples without offsets are shown when they are decoded.
        let delayed = self.times.iter().map(|(at, time)| match time {
            Time::Narrow(time) => (*at, time.saturating_add(shift).to_be_bytes().to_vec()),
            Time::Wide(time) => {
                let time = time.saturating_add(shift.into());
                (*at, time.to_be_bytes().to_vec())
            }
        });
        let shifts = table.and_then(Table::shift_patch);
        raised.chain(delayed).chain(shifts).collect()
    }

    /// Iterates over all offsets, including those in `table`, and their locations in the file.
    fn offsets_with(&self, table: Option<Table>) -> impl Iterator<Item = (u64, i32)> {
        let in_table = table.into_iter().flat_map(Table::offsets);
        self.offsets.iter().copied().chain(in_table)
    }

    fn add(&mut self, traf: Content) {
        let time = traf.child(b"tfdt").and_then(|time| {
            let at = time.at + 4;
            Some(match time.version()? {
                1 => (at, Time::Wide(time.field(4, true)?.value)),
                _ => (at, Time::Narrow(time.be32(4)?)),
            })
        });
        let n_before = self.offsets.len();
        let mut first = None;
        for (_, run) in traf.children().filter(|(kind, _)| kind == b"trun") {
            let offset = self.add_run(run).unwrap_or(0);
            first.get_or_insert(offset);
        }
        let decoded = match time {
            Some((_, Time::Narrow(time))) => i64::from(time),
            Some((_, Time::Wide(time))) => i64::try_from(time).unwrap_or(i64::MAX),
            None => 0,
        };
        if let Some(first) = first {
            self.first.get_or_insert(decoded.saturating_add(first));
        }
        if self.offsets.len() == n_before {
            self.times.extend(time);
        }
    }

    /// Adds the offsets of a run of samples; returns the first one, if any.
    fn add_run(&mut self, run: Content) -> Option<i64> {
        let flags = run.be32(0)?;
        if flags & HAS_OFFSETS == 0 {
            return None;
        }
        let len_of = |flags_of: &[u32]| -> usize {
            let has = flags_of.iter().filter(|flag| flags & **flag != 0);
            4 * has.count()
        };
        // Flags and number of samples; data offset and flags of the first sample; then duration, size, flags and
        // composition offset of each sample.
        let head = 8 + len_of(&[HAS_PLACE, HAS_FIRST_FLAGS]);
        let before = len_of(&[HAS_DURATIONS, HAS_SIZES, HAS_FLAGS]);
        let n_samples = run.be32(4)? as usize;
        let places = (head + before..).step_by(before + 4).take(n_samples);
        let offsets = places.map_while(|at| {
            let offset = run.be32(at)?.cast_signed();
            Some((run.at + at as u64, offset))
        });
        let n_before = self.offsets.len();
        self.offsets.extend(offsets);
        let (_, first) = self.offsets.get(n_before)?;
        Some(i64::from(*first))
    }
}

#[cfg(test)]
mod tests {
    use super::super::mp4::boxed;
    use super::*;

    fn words(words: &[i32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    /// A fragment of track 1 with decoding time `time` and composition offsets `offsets`.
    fn fragment(time: i32, offsets: Option<&[i32]>) -> Vec<u8> {
        let n_samples = offsets.map_or(2, <[i32]>::len) as i32;
        let flags = HAS_PLACE | HAS_SIZES | offsets.map_or(0, |_| HAS_OFFSETS);
        let mut run = words(&[flags as i32 | 1 << 24, n_samples, 77]);
        for idx in 0..n_samples as usize {
            run.extend(words(&[1000]));
            run.extend(words(
                offsets.map_or(&[][..], |offsets| &offsets[idx..=idx]),
            ));
        }
        let content = [
            boxed(b"tfhd", &words(&[0x2_0000, 1])).unwrap(),
            boxed(b"tfdt", &words(&[0, time])).unwrap(),
            boxed(b"trun", &run).unwrap(),
        ];
        let traf = boxed(b"traf", &content.concat()).unwrap();
        boxed(b"moof", &traf).unwrap()
    }

    fn read(bytes: &[u8]) -> Runs {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        Runs::read(&mut file, 0).remove(&1).unwrap()
    }

    #[test]
    fn all_fragments_are_raised_by_what_the_lowest_offset_demands() {
        let bytes = [
            fragment(0, Some(&[0, 80, -40])),
            boxed(b"mdat", &[7; 3]).unwrap(),
            fragment(120, Some(&[0, 120, -80, -40])),
            fragment(280, None),
        ]
        .concat();
        let runs = read(&bytes);
        assert_eq!((runs.first, runs.shift(None)), (Some(0), 80));
        let mut raised = bytes.clone();
        for (at, patch) in runs.raise(None, 80) {
            raised[at as usize..][..patch.len()].copy_from_slice(&patch);
        }
        let expected = [
            fragment(0, Some(&[80, 160, 40])),
            boxed(b"mdat", &[7; 3]).unwrap(),
            fragment(120, Some(&[80, 200, 0, 40])),
            fragment(360, None),
        ];
        assert_eq!(raised, expected.concat());
        assert_eq!(read(&raised).shift(None), 0);
    }

    #[test]
    fn files_without_negative_offsets_are_read_as_they_are() {
        let runs = read(&fragment(40, Some(&[40, 120, 0])));
        assert_eq!((runs.first, runs.shift(None)), (Some(80), 0));
        assert!(runs.raise(None, 0).is_empty());
    }
}
