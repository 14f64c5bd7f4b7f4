//! The clock of a transport stream (ISO/IEC 13818-1, 2.4.3.5), and the beginning of the presentation on that clock.
//!
//! tsdemux 1.22 counts from the first clock reference. It begins its segment with the first packet that it meets,
//! although later audio packets may be presented earlier. It gives no time to packets before the first reference, and
//! places anything presented before that reference one wrap of the clock later. If references are more than half a
//! second apart, as with one frame per second, it guesses how much time passed between them.
//!
//! The beginning of the presentation is therefore read from the packets themselves. If a file needs it, all references
//! are moved back or closer to each other, and one more is inserted before the first packet.
//!
//! tsdemux also drops all packets before the first program map table, which in a recording that was cut anywhere may
//! come 100 ms late. The tables are then inserted in front, in place of the rest of a packet whose beginning is missing.

use std::ops::{ControlFlow, RangeInclusive};
use std::time::Duration;

use super::transport::{self, Layout, PACKET_LEN, SYNC};

/// Clock steps per second, and clock steps per tick of presentation timestamps.
const CLOCK_RATE: u64 = 27_000_000;
const STEPS_PER_TICK: u64 = 300;

/// Clock steps until the clock wraps.
const WRAP: u64 = STEPS_PER_TICK << 33;

/// Maximum time that a frame is stored after others that are shown later, even at one frame per second; a larger step
/// indicates another recording.
const LONGEST_STEP_BACK: i64 = 5 * CLOCK_RATE as i64;

/// Maximum distance between references and presentation timestamps of one recording.
const FURTHEST: i64 = 10 * CLOCK_RATE as i64;

/// Audio that begins no earlier than this before the first picture is taken for an encoder's priming, which transport
/// streams do not signal: 2112 samples of AAC, the most at 44.1 kHz, last 48 ms.
const LONGEST_PRIMING: Duration = Duration::from_millis(50);
/// Time by which a moved clock begins before the presentation, and by which an inserted reference precedes it.
const ROOM: u64 = CLOCK_RATE / 10;
const ADDED_BEFORE: u64 = CLOCK_RATE / 100;

/// PIDs of null packets, and of service descriptions, which tsdemux does not need.
const NULL: u16 = 0x1fff;
const SERVICES: u16 = 0x11;

/// Stream IDs of PES packets that hold video.
const PICTURES: RangeInclusive<u8> = 0xe0..=0xef;

/// Descriptors of teletext and subtitles (ETSI EN 300 468), which may arrive long before they are shown.
const TEXTS: [u8; 3] = [0x46, 0x56, 0x59];

/// References are at most 100 ms apart (ISO/IEC 13818-1, 2.7.2). tsdemux takes more than 500 ms for another recording.
const FURTHEST_APART: i64 = CLOCK_RATE as i64 * 2 / 5;

/// Factor by which a clock with references further apart is slowed down.
const SLOWED: i64 = 64;

/// Changes to the references, and the beginning of the presentation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ProgramClock {
    /// PID that carries the clock.
    pid: u16,
    /// First reference.
    first: u64,
    /// Number of steps by which each reference is moved back.
    back: u64,
    /// True if the references are too far apart and are presented as closer together.
    is_slowed: bool,
    /// Location of a packet that is replaced by a reference, and the value of that reference.
    added: Option<(u64, u64)>,
    /// Tables that are inserted before the first packet of any track.
    tables: Tables,
    /// Demuxer time at which the presentation begins: with its video, if the part before it is no longer than
    /// [`LONGEST_PRIMING`].
    pub(super) begin: Duration,
    /// Earliest presentation time of each track in demuxer time, by PID.
    firsts: Vec<(u16, Duration)>,
}

/// The only program of a stream, from its tables.
struct Program<'a> {
    clock_pid: u16,
    /// PIDs of video and audio.
    pids: Vec<u16>,
    /// Packets that hold the program association and program map tables.
    tables: [&'a [u8]; 2],
    /// Location of the program map table.
    place: u64,
}

impl<'a> Program<'a> {
    /// Returns `None` for several programs: the demuxer chooses one of them.
    fn find(head: &'a [u8], layout: Layout) -> Option<Self> {
        let find = |pid: u16| {
            places(head, layout).find(|(_, packet)| {
                transport::pid_at(packet, 1) == pid && transport::table(packet).is_some()
            })
        };
        let (_, association) = find(0)?;
        let mut programs = transport::programs(association.get(transport::table(association)?)?);
        let (map_pid, None) = (programs.next()?, programs.next()) else {
            return None;
        };
        let (place, map) = find(map_pid)?;
        let (clock_pid, pids) = clock_and_tracks(map)?;
        Some(Self {
            clock_pid,
            pids,
            tables: [association, map],
            place,
        })
    }

    /// Returns the tables to insert before the first packet of any track, and their places; `None` if they are there, or
    /// if there is no place.
    fn missing_tables(&self, head: &[u8], layout: Layout) -> Option<Tables> {
        let begins = |packet: &[u8]| packet.get(1).is_some_and(|flags| flags & 0x40 != 0);
        let of_tracks = places(head, layout)
            .take_while(|(place, _)| *place < self.place)
            .filter(|(_, packet)| self.pids.contains(&transport::pid_at(packet, 1)));
        let mut rests = Vec::new();
        for (place, packet) in of_tracks {
            if begins(packet) {
                let tables = rests.into_iter().zip(self.tables);
                let tables = tables.map(|(place, table)| Some((place, table.try_into().ok()?)));
                return tables
                    .collect::<Option<Tables>>()
                    .filter(|tables| tables.len() == 2);
            }
            // The demuxer does not use the rest of a PES packet whose beginning is missing.
            if reference(packet).is_none() {
                rests.push(place);
            }
        }
        None
    }
}

/// Locations of packets that are replaced, and the packets in their place.
type Tables = Vec<(u64, [u8; PACKET_LEN])>;

/// Information from the packets read so far.
struct Seen<'a> {
    program: &'a Program<'a>,
    /// Location of an earlier packet that the demuxer does not need.
    spare: Option<u64>,
    /// First and latest reference.
    references: Option<(u64, u64)>,
    /// True if tracks begin before the first reference.
    has_untimed: bool,
    is_slowed: bool,
    tracks: Vec<Track>,
}

/// State of a track.
struct Track {
    pid: u16,
    is_picture: bool,
    /// Latest and earliest presentation times.
    last: u64,
    first: u64,
}

impl Seen<'_> {
    /// Reads the packet at `place`; breaks if the following packets do not belong to the opening.
    fn take(&mut self, place: u64, packet: &[u8]) -> ControlFlow<()> {
        let pid = transport::pid_at(packet, 1);
        if matches!(pid, NULL | SERVICES) && self.tracks.is_empty() {
            self.spare.get_or_insert(place);
        }
        // The demuxer also counts from references before the program map table.
        if let Some(time) = reference(packet).filter(|_| pid == self.program.clock_pid) {
            let (first, last) = self.references.unwrap_or((time, time));
            let step = distance(last, time);
            self.is_slowed |= (FURTHEST_APART..FURTHEST).contains(&step);
            self.has_untimed |= self.references.is_none() && !self.tracks.is_empty();
            self.references = Some((first, time));
        }
        let told = presentation_time(packet).filter(|_| self.program.pids.contains(&pid));
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

    fn clock(self) -> Option<ProgramClock> {
        let (first, _) = self.references?;
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
        let begin = picture.filter(|picture| earliest + LONGEST_PRIMING >= *picture);
        let firsts = self.tracks.iter().map(|track| (track.pid, counted(track)));
        Some(ProgramClock {
            pid: self.program.clock_pid,
            first,
            back,
            is_slowed: self.is_slowed,
            added,
            tables: Vec::new(),
            begin: begin.unwrap_or(earliest),
            firsts: firsts.collect(),
        })
    }
}

impl ProgramClock {
    /// Finds the clock in `head`, the beginning of a file; `None` if it is not there.
    pub(super) fn find(head: &[u8], layout: Layout) -> Option<Self> {
        let program = Program::find(head, layout)?;
        let mut seen = Seen {
            program: &program,
            spare: None,
            references: None,
            has_untimed: false,
            is_slowed: false,
            tracks: Vec::new(),
        };
        for (place, packet) in places(head, layout) {
            if seen.take(place, packet).is_break() {
                break;
            }
        }
        Some(Self {
            tables: program.missing_tables(head, layout).unwrap_or_default(),
            ..seen.clock()?
        })
    }

    /// Time before the presentation at which the earliest track begins.
    pub(super) fn longest_run_in(&self) -> Duration {
        let run_ins = self.firsts.iter().map(|(pid, _)| self.run_in_of(*pid));
        run_ins.max().unwrap_or_default()
    }

    /// Time before the presentation at which the track with this `pid` begins.
    pub(super) fn run_in_of(&self, pid: u16) -> Duration {
        let first = self.firsts.iter().find(|(of, _)| *of == pid);
        first.map_or(Duration::ZERO, |(_, first)| {
            self.begin.saturating_sub(*first)
        })
    }

    /// True if packets are changed.
    pub(super) fn is_changed(&self) -> bool {
        self.back > 0 || self.is_slowed || self.added.is_some() || !self.tables.is_empty()
    }

    /// True if the demuxer sees a clock that does not reveal positions in the file.
    pub(super) fn is_slowed(&self) -> bool {
        self.is_slowed
    }

    /// True if the packet at `place` of stream `pid` may need a change.
    pub(super) fn concerns(&self, place: u64, pid: u16) -> bool {
        (self.back > 0 || self.is_slowed) && pid == self.pid
            || self.is_added_at(place)
            || self.table_at(place).is_some()
    }

    fn table_at(&self, place: u64) -> Option<&[u8; PACKET_LEN]> {
        let mut tables = self.tables.iter();
        tables.find_map(|(at, table)| (*at == place).then_some(table))
    }

    fn is_added_at(&self, place: u64) -> bool {
        self.added.is_some_and(|(at, _)| at == place)
    }

    /// Changes the packet at `place`; false if it stays unchanged.
    pub(super) fn change(&self, place: u64, packet: &mut [u8; PACKET_LEN]) -> bool {
        if let Some((_, value)) = self.added.filter(|_| self.is_added_at(place)) {
            packet.fill(0xff);
            // No payload, and an adaptation field with a reference that extends to the end.
            let [high, low] = self.pid.to_be_bytes();
            packet[..6].copy_from_slice(&[SYNC, high, low, 0x20, (PACKET_LEN - 5) as u8, 0x10]);
            write_reference(packet, value);
            return true;
        }
        if let Some(table) = self.table_at(place) {
            *packet = *table;
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

/// Iterates over the packets of a file that begins with `head`, and their locations.
fn places(head: &[u8], layout: Layout) -> impl Iterator<Item = (u64, &[u8])> {
    let places = (layout.first as u64..).step_by(layout.every);
    places.zip(transport::packets(head, layout))
}

/// Signed distance from `from` to `to`.
fn distance(from: u64, to: u64) -> i64 {
    let ahead = (to + WRAP - from) % WRAP;
    if ahead < WRAP / 2 {
        ahead as i64
    } else {
        ahead as i64 - WRAP as i64
    }
}

/// Returns the PID of the clock, and the PIDs of video and audio, in the program map table of a packet (2.4.4.8).
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

/// Returns the clock reference of a packet, in steps.
fn reference(packet: &[u8]) -> Option<u64> {
    let [SYNC, _, _, flags, len, kinds, a, b, c, d, e, f, ..] = *packet else {
        return None;
    };
    let has_reference = flags & 0x20 != 0 && len >= 7 && kinds & 0x10 != 0;
    let ticks = u64::from(u32::from_be_bytes([a, b, c, d])) << 1 | u64::from(e >> 7);
    let steps = u64::from(e & 1) << 8 | u64::from(f);
    // The steps in a damaged packet may exceed one tick.
    has_reference.then_some((ticks * STEPS_PER_TICK + steps) % WRAP)
}

fn write_reference(packet: &mut [u8; PACKET_LEN], value: u64) {
    let (ticks, steps) = (value / STEPS_PER_TICK, value % STEPS_PER_TICK);
    packet[6..10].copy_from_slice(&((ticks >> 1) as u32).to_be_bytes());
    // The bits in between are reserved and set to 1.
    packet[10] = ((ticks & 1) as u8) << 7 | 0x7e | (steps >> 8) as u8;
    packet[11] = steps as u8;
}

/// Returns the stream ID of the PES packet that begins in a packet, and its presentation timestamp in steps (2.4.3.6).
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
