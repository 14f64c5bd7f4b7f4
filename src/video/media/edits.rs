//! Hiding of an mp4's edit lists from GStreamer's demuxer, and correction of those that its muxer writes.
//!
//! qtdemux 1.22 ends a track at the first keyframe past the *edited* duration, counted from the samples' own zero:
//! trimmed videos lose up to the trimmed time, and AAC loses its last packet. The lists are therefore rewritten on
//! reading to show everything, and [`timeline`](super::timeline) implements them. qtdemux also treats tracks shorter
//! than a fifth of the whole as previews and leaves them out, and it ends fragments at the duration in the header:
//! durations are rewritten as well.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use gstreamer as gst;
use gstreamer::prelude::*;

use super::mp4::{
    self, Field, Movie, NORMAL_RATE, UNIX_EPOCH, duration_from_ticks, ticks_from_duration,
};

/// Presents readers of `filesrc` with edit lists that hide nothing.
pub(super) fn hide(movie: &Movie, filesrc: &gst::Element) {
    let mut patches = patches(movie);
    patches.extend(movie.raised.iter().cloned());
    patches.sort_by_key(|(at, _)| *at);
    let Some(pad) = filesrc.static_pad("src") else {
        return;
    };
    pad.add_probe(
        gst::PadProbeType::BUFFER | gst::PadProbeType::PULL,
        move |_, info| {
            if let Some(buffer) = info.buffer_mut() {
                apply(&patches, buffer);
            }
            gst::PadProbeReturn::Ok
        },
    );
}

/// Location in the file, and bytes to read in place of the file's.
pub(super) type Patch = (u64, Vec<u8>);

/// Exceeds the length of any video, but is small enough to be added up.
const ENDLESS: Duration = Duration::from_secs(30 * 24 * 3600);

/// Largest 4-byte duration that does not mean "unknown".
const LARGEST_NARROW: u64 = u32::MAX as u64 - 1;

/// Returns edit lists that show everything from the first sample on, and a total duration with room for it.
fn patches(movie: &Movie) -> Vec<Patch> {
    let hidden = movie
        .tracks
        .iter()
        .filter_map(|track| match track.splice() {
            Some(splice) => Some(splice.stop()),
            None => Some(track.begin(&track.edit?)),
        })
        .max()
        .unwrap_or_default();
    // Without a list, samples are shown a little after they are stored; a second exceeds any reordering delay.
    let room = ticks_from_duration(hidden + Duration::from_secs(1), movie.timescale);
    let Some(duration) = movie.duration else {
        return Vec::new();
    };
    let all = if movie.fragmented {
        ticks_from_duration(ENDLESS, movie.timescale).min(LARGEST_NARROW)
    } else {
        duration.value.saturating_add(room)
    };
    let mut patches = vec![(duration.at, duration.bytes(all))];
    if let Some(duration) = movie.fragment_duration {
        patches.push((duration.at, duration.bytes(all)));
    }
    for track in &movie.tracks {
        let Some(duration) = track.media_duration else {
            continue;
        };
        let all = duration_from_ticks(all, movie.timescale);
        let all = ticks_from_duration(all, track.timescale);
        let most = if duration.wide {
            u64::MAX
        } else {
            LARGEST_NARROW
        };
        patches.push((duration.at, duration.bytes(all.min(most))));
    }
    for n_edits in movie.tracks.iter().filter_map(|track| track.n_edits) {
        let number = |value| n_edits.bytes(value);
        let list = [
            1_u32.to_be_bytes().to_vec(),
            number(all),
            number(0),
            NORMAL_RATE.to_be_bytes().to_vec(),
        ];
        patches.push((n_edits.at, list.concat()));
    }
    patches
}

/// Applies the parts of the patches that lie in `buffer`; patches are in file order.
fn apply(patches: &[Patch], buffer: &mut gst::Buffer) {
    let offset = buffer.offset();
    let end = offset.saturating_add(buffer.size() as u64);
    let first = patches.partition_point(|(at, bytes)| at + bytes.len() as u64 <= offset);
    let last = patches.partition_point(|(at, _)| *at < end);
    let Some(patches) = patches.get(first..last).filter(|some| !some.is_empty()) else {
        return;
    };
    let Ok(mut target) = buffer.make_mut().map_writable() else {
        return;
    };
    for (at, bytes) in patches {
        for (byte, place) in bytes.iter().zip(*at..) {
            let idx = place
                .checked_sub(offset)
                .and_then(|idx| usize::try_from(idx).ok());
            if let Some(target) = idx.and_then(|idx| target.get_mut(idx)) {
                *target = *byte;
            }
        }
    }
}

fn unreadable() -> std::io::Error {
    std::io::Error::other("the written file has no header that can be changed")
}

/// Delays the whole mp4 at `path`, whose header comes last, by `delay`: muxers begin with the first sample.
fn begin_later(path: &Path, delay: Duration) -> std::io::Result<()> {
    let mut file = File::options().read(true).write(true).open(path)?;
    let timescale = Movie::header(path).ok_or_else(unreadable)?.timescale;
    let (moov, at) = mp4::read_moov(&mut file).ok_or_else(unreadable)?;
    let moov = mp4::delayed(&moov, ticks_from_duration(delay, timescale))
        .and_then(|content| mp4::boxed(b"moov", &content))
        .ok_or_else(unreadable)?;
    let mut behind = Vec::new();
    file.read_to_end(&mut behind)?;
    // Kind and length take 8 bytes.
    file.seek(SeekFrom::Start(at - 8))?;
    file.write_all(&moov)?;
    file.write_all(&behind)
}

/// Removes audio tracks without packets from the mp4 at `path`: muxers list them without a description, which players
/// take for a broken file.
pub(super) fn leave_out_silent(path: &Path) -> std::io::Result<()> {
    let mut file = File::options().read(true).write(true).open(path)?;
    let (moov, at) = mp4::read_moov(&mut file).ok_or_else(unreadable)?;
    for track in mp4::silent_tracks(&moov, at) {
        // The kind of a box is in the last 4 of the 8 bytes before its content.
        file.seek(SeekFrom::Start(track - 4))?;
        file.write_all(b"free")?;
    }
    Ok(())
}

/// Corrects the edit lists of the mp4 at `path`, which begins at `begin`: the video lasts until `end`, and the pre-roll
/// of each audio track is hidden.
///
/// Muxers begin with the first sample, guess the duration of the last frame, and include the pre-roll in the
/// presentation. `run_ins` are in file order. The file gets the creation time `created` of its source, if known.
pub(super) fn correct_lists(
    path: &Path,
    (begin, end): (Duration, Duration),
    run_ins: &[Duration],
    created: Option<i64>,
) -> std::io::Result<()> {
    if begin > Duration::ZERO {
        begin_later(path, begin)?;
    }
    let movie = Movie::header(path)
        .ok_or_else(|| std::io::Error::other("the written file has no readable header"))?;
    let mut file = OpenOptions::new().write(true).open(path)?;
    for (at, bytes) in movie.tracks.iter().filter_map(|track| track.opus.as_ref()) {
        file.seek(SeekFrom::Start(*at))?;
        file.write_all(bytes)?;
    }
    let mut write = |field: Option<Field>, value: u64| -> std::io::Result<()> {
        let Some(field) = field else { return Ok(()) };
        file.seek(SeekFrom::Start(field.at))?;
        file.write_all(&field.bytes(value))
    };
    let mut longest = 0;
    let mut run_ins = run_ins.iter();
    for track in &movie.tracks {
        let run_in = track.is(b"soun").then(|| run_ins.next()).flatten();
        let Some(edit) = track.edit else { continue };
        let delay = ticks_from_duration(edit.delay, movie.timescale);
        let mut shown = edit.shown_at.map_or(0, |field| field.value);
        if track.is(b"vide") {
            shown = ticks_from_duration(end.saturating_sub(edit.delay), movie.timescale);
        } else if let Some(run_in) = run_in {
            shown = shown.saturating_sub(ticks_from_duration(*run_in, movie.timescale));
            let hidden = ticks_from_duration(*run_in, track.timescale);
            write(edit.start_at, edit.media_start + hidden)?;
        }
        write(edit.shown_at, shown)?;
        write(track.duration, delay + shown)?;
        longest = longest.max(delay + shown);
    }
    let created = created.and_then(|created| u64::try_from(created + UNIX_EPOCH).ok());
    if let Some(created) = created {
        write(movie.created, created)?;
    }
    write(movie.duration, longest)
}
