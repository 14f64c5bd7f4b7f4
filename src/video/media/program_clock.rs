//! The clock of a transport stream (ISO/IEC 13818-1, 2.4.3.5), and where its presentation begins by it.
//!
//! tsdemux 1.22 counts from the first clock reference. It begins its segment with the first packet that it meets, though
//! sound that lies behind it may be presented earlier; gives packets that lie before the first reference no time; and
//! takes what is presented before it for what comes a wrap of the clock later. Where references are further apart than
//! half a second, as with one picture per second, it guesses how much time passed between them.
//!
//! So where the presentation begins is read from the packets themselves. Where a file needs it, all references are moved
//! back or closer to each other, and one more is put before the first packet.

use std::ops::{ControlFlow, RangeInclusive};
use std::time::Duration;

use super::container::LONGEST_RUN_IN;
use super::transport::{self, Layout, PACKET_LEN, SYNC};

/// Steps of the clock per second, and per step of presentation times.
const CLOCK_RATE: u64 = 27_000_000;
const STEPS_PER_TICK: u64 = 300;

/// Steps until the clock begins anew.
const WRAP: u64 = STEPS_PER_TICK << 33;

/// Pictures are not stored longer than this after others that are shown later, be it one per second; more is another
/// recording.
const LONGEST_STEP_BACK: i64 = 5 * CLOCK_RATE as i64;

/// References and presentation times of one recording are not further apart.
const FURTHEST: i64 = 10 * CLOCK_RATE as i64;

/// How much earlier than the presentation the clock begins that was moved, and how much earlier a reference that was added is.
const ROOM: u64 = CLOCK_RATE / 10;
const ADDED_BEFORE: u64 = CLOCK_RATE / 100;

/// Stream numbers of what holds no data, and of what describes services, which tsdemux does without.
const NULL: u16 = 0x1fff;
const SERVICES: u16 = 0x11;

/// Stream numbers of PES packets that hold pictures.
const PICTURES: RangeInclusive<u8> = 0xe0..=0xef;

/// Descriptors of teletext and subtitles (ETSI EN 300 468), which may be there long before they are shown.
const TEXTS: [u8; 3] = [0x46, 0x56, 0x59];

/// References are at most 100 ms apart (ISO/IEC 13818-1, 2.7.2). tsdemux takes more than 500 ms for another recording.
const FURTHEST_APART: i64 = CLOCK_RATE as i64 * 2 / 5;

/// How many times slower a clock is shown whose references are further apart.
const SLOWED: i64 = 64;

/// How references are changed, and when the presentation begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ProgramClock {
    /// The stream that carries it.
    pid: u16,
    /// The first reference.
    first: u64,
    /// How far each reference is moved back.
    back: u64,
    /// True where the references are too far apart, and shown as if they were closer.
    is_slowed: bool,
    /// Where a packet is that becomes a reference, and which.
    added: Option<(u64, u64)>,
    /// The demuxer's time at which the presentation begins: with its picture, where what comes before that is no longer than
    /// the run-in of sound.
    pub(super) begin: Duration,
    /// The demuxer's time of what is presented first of each track, by the number of its stream.
    firsts: Vec<(u16, Duration)>,
}

/// What the packets that were read so far tell.
#[derive(Default)]
struct Seen {
    /// The stream that lists the tracks.
    map_pid: Option<u16>,
    /// The stream of the clock, and those of pictures and sound.
    program: Option<(u16, Vec<u16>)>,
    /// Where a packet before all of them is that the demuxer does without.
    spare: Option<u64>,
    /// The first reference and the newest one.
    references: Option<(u64, u64)>,
    /// True where tracks begin before the first reference.
    has_untimed: bool,
    is_slowed: bool,
    tracks: Vec<Track>,
}

/// What is known of a track.
struct Track {
    pid: u16,
    is_picture: bool,
    /// When what is presented last and first of it is.
    last: u64,
    first: u64,
}

impl Seen {
    /// Reads the packet at `place`; breaks where the packets behind it do not belong to the opening.
    fn take(&mut self, place: u64, packet: &[u8]) -> ControlFlow<()> {
        let pid = transport::pid_at(packet, 1);
        let Some((clock_pid, pids)) = &self.program else {
            return self.take_table(place, pid, packet);
        };
        if let Some(time) = reference(packet).filter(|_| pid == *clock_pid) {
            let (first, last) = self.references.unwrap_or((time, time));
            let step = distance(last, time);
            self.is_slowed |= (FURTHEST_APART..FURTHEST).contains(&step);
            self.has_untimed |= self.references.is_none() && !self.tracks.is_empty();
            self.references = Some((first, time));
        }
        let told = presentation_time(packet).filter(|_| pids.contains(&pid));
        let Some((stream, time)) = told else {
            return ControlFlow::Continue(());
        };
        let known = self.tracks.iter_mut().find(|track| track.pid == pid);
        let Some(track) = known else {
            self.tracks.push(Track {
                pid,
                is_picture: PICTURES.contains(&stream),
                last: time,
                first: time,
            });
            return ControlFlow::Continue(());
        };
        let step = distance(track.last, time);
        if !(-LONGEST_STEP_BACK..=FURTHEST).contains(&step) {
            return ControlFlow::Break(());
        }
        if step > 0 {
            track.last = time;
        }
        if distance(track.first, time) < 0 {
            track.first = time;
        }
        ControlFlow::Continue(())
    }

    /// Reads a packet before the list of tracks.
    fn take_table(&mut self, place: u64, pid: u16, packet: &[u8]) -> ControlFlow<()> {
        if matches!(pid, NULL | SERVICES) {
            self.spare.get_or_insert(place);
        } else if pid == 0 && self.map_pid.is_none() {
            let table = transport::table(packet).and_then(|table| packet.get(table));
            let mut programs = table.into_iter().flat_map(transport::programs);
            self.map_pid = programs.next();
            if programs.next().is_some() {
                // Which of them the demuxer takes is its own choice.
                return ControlFlow::Break(());
            }
        } else if Some(pid) == self.map_pid {
            self.program = clock_and_tracks(packet);
        }
        ControlFlow::Continue(())
    }

    fn clock(self) -> Option<ProgramClock> {
        let ((pid, _), (first, _)) = (self.program?, self.references?);
        let after_first = |track: &Track| distance(first, track.first);
        let earliest = self.tracks.iter().map(after_first).min()?;
        if earliest.abs() > FURTHEST {
            return None;
        }
        let back = match earliest {
            ..=0 => ROOM + earliest.unsigned_abs(),
            _ => 0,
        };
        let moved = (first + WRAP - back) % WRAP;
        let added = self.spare.filter(|_| self.has_untimed);
        let added = added.map(|place| (place, (moved + WRAP - ADDED_BEFORE) % WRAP));
        let zero = added.map_or(moved, |(_, value)| value);
        let counted = |track: &Track| {
            let steps = distance(zero, track.first).unsigned_abs();
            Duration::from_nanos(steps * 1000 / 27)
        };
        let earliest = self.tracks.iter().map(counted).min()?;
        let pictures = self.tracks.iter().filter(|track| track.is_picture);
        let picture = pictures.map(counted).min();
        let begin = picture.filter(|picture| earliest + LONGEST_RUN_IN >= *picture);
        let firsts = self.tracks.iter().map(|track| (track.pid, counted(track)));
        Some(ProgramClock {
            pid,
            first,
            back,
            is_slowed: self.is_slowed,
            added,
            begin: begin.unwrap_or(earliest),
            firsts: firsts.collect(),
        })
    }
}

impl ProgramClock {
    /// `None` where `head`, the beginning of a file, does not tell.
    pub(super) fn find(head: &[u8], layout: Layout) -> Option<Self> {
        let mut seen = Seen::default();
        for (idx, packet) in transport::packets(head, layout).enumerate() {
            let place = (layout.first + idx * layout.every) as u64;
            if seen.take(place, packet).is_break() {
                break;
            }
        }
        seen.clock()
    }

    /// How long before the presentation the earliest track begins.
    pub(super) fn longest_run_in(&self) -> Duration {
        let run_ins = self.firsts.iter().map(|(pid, _)| self.run_in_of(*pid));
        run_ins.max().unwrap_or_default()
    }

    /// How long before the presentation the track in stream `pid` begins.
    pub(super) fn run_in_of(&self, pid: u16) -> Duration {
        let first = self.firsts.iter().find(|(of, _)| *of == pid);
        first.map_or(Duration::ZERO, |(_, first)| {
            self.begin.saturating_sub(*first)
        })
    }

    /// True where packets are changed.
    pub(super) fn is_changed(&self) -> bool {
        self.back > 0 || self.is_slowed || self.added.is_some()
    }

    /// True where the demuxer is shown a clock that does not tell where in the file which time is.
    pub(super) fn is_slowed(&self) -> bool {
        self.is_slowed
    }

    /// True where the packet at `place` of stream `pid` may have to be changed.
    pub(super) fn concerns(&self, place: u64, pid: u16) -> bool {
        (self.back > 0 || self.is_slowed) && pid == self.pid || self.is_added_at(place)
    }

    fn is_added_at(&self, place: u64) -> bool {
        self.added.is_some_and(|(at, _)| at == place)
    }

    /// Changes the packet at `place`; false where it is as it was.
    pub(super) fn change(&self, place: u64, packet: &mut [u8; PACKET_LEN]) -> bool {
        if let Some((_, value)) = self.added.filter(|_| self.is_added_at(place)) {
            packet.fill(0xff);
            // No payload, and an adaptation field up to the end that has a reference.
            let [high, low] = self.pid.to_be_bytes();
            packet[..6].copy_from_slice(&[SYNC, high, low, 0x20, (PACKET_LEN - 5) as u8, 0x10]);
            write_reference(packet, value);
            return true;
        }
        if !self.concerns(place, transport::pid_at(packet, 1)) {
            return false;
        }
        let Some(value) = reference(packet) else {
            return false;
        };
        let value = match self.is_slowed {
            true => (self.first + WRAP).wrapping_add_signed(distance(self.first, value) / SLOWED),
            false => value + WRAP,
        };
        write_reference(packet, (value - self.back % WRAP) % WRAP);
        true
    }
}

/// How far `to` comes after `from`.
fn distance(from: u64, to: u64) -> i64 {
    let ahead = (to + WRAP - from) % WRAP;
    if ahead < WRAP / 2 {
        ahead as i64
    } else {
        ahead as i64 - WRAP as i64
    }
}

/// The streams of the clock, and of pictures and sound, in the list of tracks that a packet holds (2.4.4.8).
fn clock_and_tracks(packet: &[u8]) -> Option<(u16, Vec<u16>)> {
    let table = transport::table(packet)?;
    let clock = transport::pid_at(packet, table.start + 8);
    let tracks = transport::tracks(packet).filter(|(at, _, _)| {
        let len = usize::from(transport::twelve_bits_at(packet, at + 3));
        let mut descriptors = packet.get(at + 5..at + 5 + len).unwrap_or_default();
        let is_text = loop {
            match *descriptors {
                [tag, ..] if TEXTS.contains(&tag) => break true,
                [_, len, ref rest @ ..] => {
                    descriptors = rest.get(usize::from(len)..).unwrap_or_default();
                }
                _ => break false,
            }
        };
        !is_text
    });
    let tracks: Vec<u16> = tracks.map(|(_, _, pid)| pid).collect();
    (!tracks.is_empty()).then_some((clock, tracks))
}

/// The clock reference of a packet, in steps.
fn reference(packet: &[u8]) -> Option<u64> {
    let [SYNC, _, _, flags, len, kinds, a, b, c, d, e, f, ..] = *packet else {
        return None;
    };
    let has_reference = flags & 0x20 != 0 && len >= 7 && kinds & 0x10 != 0;
    let ticks = u64::from(u32::from_be_bytes([a, b, c, d])) << 1 | u64::from(e >> 7);
    let steps = u64::from(e & 1) << 8 | u64::from(f);
    // Steps of damaged packets may be more than a tick has.
    has_reference.then_some((ticks * STEPS_PER_TICK + steps) % WRAP)
}

fn write_reference(packet: &mut [u8; PACKET_LEN], value: u64) {
    let (ticks, steps) = (value / STEPS_PER_TICK, value % STEPS_PER_TICK);
    packet[6..10].copy_from_slice(&((ticks >> 1) as u32).to_be_bytes());
    // The bits between are reserved, and 1.
    packet[10] = ((ticks & 1) as u8) << 7 | 0x7e | (steps >> 8) as u8;
    packet[11] = steps as u8;
}

/// The stream number of the PES packet that begins in a packet, and when it is presented, in steps (2.4.3.6).
fn presentation_time(packet: &[u8]) -> Option<(u8, u64)> {
    let pes = packet.get(transport::beginning(packet)?..)?;
    let [0, 0, 1, stream, _, _, marker, flags, _, a, b, c, d, e, ..] = *pes else {
        return None;
    };
    let is_told = marker & 0xc0 == 0x80 && flags & 0x80 != 0;
    let bits = |byte: u8, shift: u32| u64::from(byte) << shift;
    let ticks =
        bits(a & 0x0e, 29) | bits(b, 22) | bits(c & 0xfe, 14) | bits(d, 7) | bits(e >> 1, 0);
    is_told.then_some((stream, ticks * STEPS_PER_TICK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_the_wrap_are_apart_by_what_lies_between() {
        assert_eq!(distance(5, 7), 2);
        assert_eq!(distance(7, 5), -2);
        assert_eq!(distance(WRAP - 1, 4), 5);
        assert_eq!(distance(4, WRAP - 1), -5);
    }

    #[test]
    fn a_reference_is_read_as_it_was_written() {
        for value in [0, 299, 300, 12_345_678_901, WRAP - 1] {
            let mut packet = [0xff; PACKET_LEN];
            packet[..6].copy_from_slice(&[SYNC, 1, 0, 0x20, 183, 0x10]);
            write_reference(&mut packet, value);
            assert_eq!(reference(&packet), Some(value));
        }
    }
}
