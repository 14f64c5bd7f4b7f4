//! The second opinion against ffprobe, planted defects and damaged files; and files of which GStreamer's demuxers lose
//! parts.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use vitscope::frame::Pts;
use vitscope::media::verify::{self, Verification};
use vitscope::media::{AudioMode, FileJob, VideoCodec};
use vitscope_video::demux::{self, Kind, Packet};

use super::common::{ffmpeg, run_tool};
use super::media::{Files, check_refused, ffprobe, pass_on, run, sound_hash};

const PICTURE: &str = "-f lavfi -i testsrc2=size=160x120:rate=25:duration=6";
const SOUND: &str = "-f lavfi -i sine=frequency=440:sample_rate=48000:duration=6";
const H264: &str = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p -g 25 -bf 2";

/// Makes 6 s of picture with B-frames and sound encoded by `sound`.
fn film(files: &Files, name: &str, sound: &str) -> PathBuf {
    files.make(name, &format!("{PICTURE} {SOUND} {H264} -c:a {sound}"))
}

fn packets(path: &Path, kind: Kind) -> Vec<Packet> {
    let contents = demux::read(path).unwrap();
    let track = contents.of(kind).next().unwrap();
    assert_eq!(track.unknown, None);
    track.packets.clone()
}

/// Returns times in microseconds by ffprobe: of decoded frames, or of sound packets.
fn judged(path: &Path, kind: Kind) -> Vec<i64> {
    let entries = match kind {
        Kind::Picture => "-select_streams v:0 -show_entries frame=pts_time",
        _ => "-select_streams a:0 -show_entries packet=pts_time",
    };
    ffprobe(path, entries)
        .lines()
        .filter_map(|line| line.split(',').next()?.parse::<f64>().ok())
        .map(|secs| (secs * 1e6).round() as i64)
        .collect()
}

#[test]
fn tables_tell_what_ffprobe_does() {
    let files = Files::new();
    let made = [
        film(&files, "aac.mp4", "aac"),
        film(&files, "mp3.mov", "libmp3lame"),
        film(&files, "negative.mp4", "aac -movflags negative_cts_offsets"),
        film(&files, "fragments.mp4", "aac -movflags frag_keyframe"),
        film(
            &files,
            "live.mp4",
            "aac -movflags frag_keyframe+empty_moov+default_base_moof",
        ),
        film(&files, "opus.mkv", "libopus"),
        film(&files, "flac.mkv", "flac"),
        film(&files, "late.mkv", "aac -output_ts_offset 36000"),
        film(&files, "aac.ts", "aac"),
        film(&files, "mp2.ts", "mp2"),
        film(&files, "ac3.ts", "ac3"),
        film(&files, "opus.ts", "libopus"),
        film(&files, "bluray.m2ts", "ac3"),
        film(&files, "dts.ts", "dca -strict -2"),
        film(&files, "private.m2ts", "aac"),
        film(&files, "private2.m2ts", "mp2"),
        files.make(
            "vp8.webm",
            &format!("{PICTURE} {SOUND} -c:v libvpx -b:v 1M -c:a libvorbis"),
        ),
    ];
    for path in &made {
        for kind in [Kind::Picture, Kind::Sound] {
            let ours: Vec<i64> = packets(path, kind).iter().map(|p| p.time / 1000).collect();
            let theirs = judged(path, kind);
            assert_eq!(ours.len(), theirs.len(), "{path:?} {kind:?}");
            let furthest = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).max();
            // ffprobe rounds the Opus delay of 6.5 ms to Matroska's milliseconds.
            assert!(
                furthest.unwrap() <= 501,
                "{path:?} {kind:?}: {furthest:?} us"
            );
        }
    }
}

#[test]
fn times_go_on_past_the_clock_s_wrap() {
    let files = Files::new();
    // 33 bits of 1/90000 s are 26 h 30 min 43.7 s.
    let path = film(&files, "wrap.ts", "aac -output_ts_offset 95439");
    let frames = packets(&path, Kind::Picture);
    assert_eq!(frames.len(), 150);
    let steps = frames.windows(2).map(|pair| pair[1].time - pair[0].time);
    assert!(steps.into_iter().all(|step| (step - 40_000_000).abs() < 2));
}

/// Compares the source with a result that ffmpeg makes from it with the options `args`, in place of `run`.
fn planted(files: &Files, source: &Path, name: &str, args: &str) -> Verification {
    let args = args.replace("SRC", source.to_str().unwrap());
    let result = files.make(name, &args);
    verify::compare(&FileJob::new(source, result), None).unwrap()
}

#[test]
fn every_planted_defect_is_found() {
    let files = Files::new();
    let source = film(&files, "source.mp4", "aac");
    // The defect, how ffmpeg makes it, and the beginning of the complaint.
    let defects = [
        (
            "the first frame",
            "-i SRC -c copy -bsf:v noise=drop=eq(n\\,2)",
            "150 frames in, 149",
        ),
        (
            "a frame",
            "-i SRC -c copy -bsf:v noise=drop=eq(n\\,70)",
            "150 frames in, 149",
        ),
        (
            "the last frame",
            "-i SRC -c copy -bsf:v noise=drop=eq(n\\,149)",
            "150 frames in, 149",
        ),
        (
            "a frame's time",
            "-i SRC -c copy -bsf:v setts=pts=PTS+eq(N\\,70)*0.02/TB",
            "frame times changed by up to",
        ),
        (
            "the first packet",
            "-i SRC -c copy -bsf:a noise=drop=eq(n\\,0)",
            "sound packets differ: ",
        ),
        (
            "a packet",
            "-i SRC -c copy -bsf:a noise=drop=eq(n\\,70)",
            "sound packets differ: ",
        ),
        (
            "a packet's bytes",
            "-i SRC -c copy -bsf:a noise=amount=eq(n\\,70)",
            "sound packets differ: ",
        ),
        (
            "sound 40 ms late",
            "-i SRC -itsoffset 0.04 -i SRC -map 0:v -map 1:a -c copy",
            "the sound is ",
        ),
        (
            "picture 40 ms late",
            "-itsoffset 0.04 -i SRC -i SRC -map 0:v -map 1:a -c copy",
            "the sound is ",
        ),
        ("the last second", "-i SRC -c copy -t 5", "150 frames in, "),
        (
            "the sound's last second",
            "-i SRC -t 5 -i SRC -map 0:v -map 1:a -c copy",
            "sound packets differ: ",
        ),
        (
            "all sound",
            "-i SRC -an -c copy",
            "the result has 0 of 1 audio tracks",
        ),
    ];
    let mut n_found = 0;
    for extension in ["mp4", "mkv", "ts"] {
        let whole = planted(
            &files,
            &source,
            &format!("whole.{extension}"),
            "-i SRC -c copy",
        );
        assert_eq!(whole.complaint(), None, "{extension}: {whole}");
        assert!(whole.to_string().starts_with("verified: "), "{whole}");
        for (idx, (defect, args, expected)) in defects.iter().enumerate() {
            let found = planted(&files, &source, &format!("{idx}.{extension}"), args);
            let complaint = found.complaint().unwrap_or_default();
            assert!(
                complaint.starts_with(expected),
                "{defect} in {extension}: {complaint:?}, {found}"
            );
            assert!(found.to_string().starts_with("compared: "), "{found}");
            n_found += 1;
        }
    }
    assert_eq!(n_found, 36);
}

/// Runs `job` and expects no complaint, and a verification that begins with `begins`.
fn check(job: &FileJob, begins: &str) -> Verification {
    let n_frames = run(job).unwrap();
    let verification = verify::compare(job, None).unwrap().with_written(n_frames);
    let name = job.input.display();
    assert_eq!(verification.complaint(), None, "{name}: {verification}");
    assert!(
        verification.to_string().starts_with(begins),
        "{name}: {verification}"
    );
    verification
}

#[test]
fn files_that_are_whole_raise_no_alarm() {
    let files = Files::new();
    let quick = "-f lavfi -i testsrc2=size=64x64:rate=1000:duration=1";
    let verified = [
        files.make("silent.ts", &format!("{PICTURE} {H264}")),
        film(&files, "late5s.mkv", "aac -output_ts_offset 5"),
        film(&files, "late10h.mkv", "libopus -output_ts_offset 36000"),
        files.make("quick.mkv", &format!("{quick} {H264}")),
        film(&files, "pcm.mov", "pcm_s16le"),
        film(&files, "flac.mkv", "flac"),
        film(&files, "ac3.ts", "ac3"),
    ];
    for input in &verified {
        for extension in ["mp4", "mkv", "ts"] {
            let name = input.file_name().unwrap().to_str().unwrap();
            let job = FileJob::new(input, files.path(&format!("{name}.{extension}")));
            check(&job, "verified: ");
        }
    }
    let unread = [
        (
            files.make(
                "mpg.mpg",
                &format!("{PICTURE} {SOUND} -c:v mpeg2video -c:a mp2"),
            ),
            None,
        ),
        (
            film(&files, "flv.flv", "aac -ar 44100"),
            Some(Pts(1_000_000_000)),
        ),
        (
            files.make(
                "wmv.wmv",
                &format!("{PICTURE} {SOUND} -c:v wmv2 -c:a wmav2"),
            ),
            Some(Pts(1_000_000_000)),
        ),
        (
            files.make(
                "avi.avi",
                &format!("{PICTURE} {SOUND} -c:v mpeg4 -c:a libmp3lame"),
            ),
            None,
        ),
    ];
    for (input, start) in &unread {
        let output = input.with_extension("mp4");
        let job = FileJob {
            start: *start,
            ..FileJob::new(input, output)
        };
        check(&job, "not verified: the source is ");
    }
}

/// Copies all of `input` to an MP4 and a Matroska file, which must have its frames and its sound.
fn check_whole(files: &Files, input: &Path) {
    for extension in ["mp4", "mkv"] {
        let job = FileJob {
            overwrite: true,
            ..FileJob::new(input, files.path(&format!("whole.{extension}")))
        };
        check(&job, "verified: ");
        let rebased = |path: &Path| -> Vec<i64> {
            let times = judged(path, Kind::Picture);
            times.iter().map(|time| time - times[0]).collect()
        };
        let (before, after) = (rebased(input), rebased(&job.output));
        assert_eq!(before.len(), after.len(), "{input:?} {extension}");
        let furthest = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).max();
        assert!(
            furthest.unwrap() <= 1000,
            "{input:?} {extension}: {furthest:?} us"
        );
        assert_eq!(
            sound_hash(&job.output, ""),
            sound_hash(input, ""),
            "{input:?} {extension}"
        );
    }
}

/// Returns the end of the last frame in seconds, by ffprobe: for an MP4, the total from its tables, for other
/// containers, the end stated by each packet.
fn end_of_picture(path: &Path) -> f64 {
    let entries = match path.extension().is_some_and(|extension| extension == "mp4") {
        true => "stream=start_time,duration",
        false => "packet=pts_time,duration_time",
    };
    let told = ffprobe(
        path,
        &format!("-select_streams v:0 -show_entries {entries}"),
    );
    let ends = told.lines().filter_map(|line| {
        let mut numbers = line
            .split(',')
            .filter_map(|number| number.parse::<f64>().ok());
        Some(numbers.next()? + numbers.next()?)
    });
    ends.fold(0.0, f64::max)
}

/// Makes a slide shown for three seconds at the end of a video of 25 frames per second.
fn slide(files: &Files, name: &str, sound: &str) -> PathBuf {
    let plain = files.make(
        "plain.mp4",
        &format!("{PICTURE} {SOUND} {H264} -bf 0 -c:a aac"),
    );
    let input = files.path(name);
    let plain = plain.to_str().unwrap().to_owned();
    let last = "setts=duration=if(eq(N\\,149)\\,38400\\,DURATION)";
    ffmpeg(&format!("-i {plain} {sound} -c copy -bsf:v {last}"), &input);
    input
}

#[test]
fn a_last_frame_that_is_shown_for_long_stays_so() {
    let files = Files::new();
    for sound in ["-an", "-map 0"] {
        let input = slide(&files, &format!("slide{}.mp4", sound.len()), sound);
        assert!((end_of_picture(&input) - 8.96).abs() < 1e-3, "{sound}");
        for extension in ["mp4", "mkv"] {
            let job = FileJob {
                overwrite: true,
                ..FileJob::new(&input, files.path(&format!("whole.{extension}")))
            };
            check(&job, "verified: ");
            let end = end_of_picture(&job.output);
            assert!((end - 8.96).abs() < 0.1, "{sound} {extension}: {end}");
        }
    }
    let input = slide(&files, "range.mp4", "-an");
    let job = FileJob {
        start: Some(Pts(5_000_000_000)),
        end: Some(Pts(7_500_000_000)),
        ..FileJob::new(input, files.path("range-out.mp4"))
    };
    check(&job, "verified: ");
    let end = end_of_picture(&job.output);
    assert!((end - 2.5).abs() < 0.05, "{end}");
}

#[test]
fn a_last_frame_that_was_cut_short_is_told() {
    let files = Files::new();
    let input = slide(&files, "slide.mp4", "-an");
    let output = files.path("short.mp4");
    let args = format!(
        "-i {} -c copy -bsf:v setts=duration=512",
        input.to_str().unwrap()
    );
    ffmpeg(&args, &output);
    let job = FileJob::new(&input, output);
    let verification = verify::compare(&job, None).unwrap().with_written(150);
    let complaint = verification.complaint().unwrap();
    assert!(
        complaint.contains("the duration changed from 8.960 s to 6.000 s"),
        "{complaint}"
    );
}

#[test]
fn a_packet_of_sound_that_the_source_breaks_off_in_is_told() {
    let files = Files::new();
    let mut n_broken = 0;
    for (name, sound) in [
        ("aac.ts", "aac"),
        ("mp2.ts", "mp2"),
        ("ac3.ts", "ac3"),
        ("dts.ts", "dca -strict -2"),
        ("opus.ts", "libopus"),
        ("live.mkv", "ac3 -live 1"),
    ] {
        let whole = std::fs::read(film(&files, name, sound)).unwrap();
        for n_missing in 1..8 {
            let path = files.write(
                &format!("{n_missing}.{name}"),
                &whole[..whole.len() - 188 * n_missing],
            );
            let contents = demux::read(&path).unwrap();
            let track = contents.of(Kind::Sound).next().unwrap();
            // ffprobe counts the rest of a packet in a transport stream, except for Opus.
            let n_listed = judged(&path, Kind::Sound).len();
            let in_part = usize::from(track.breaks_off && !["opus.ts", "live.mkv"].contains(&name));
            assert_eq!(track.packets.len() + in_part, n_listed, "{path:?}");
            n_broken += usize::from(track.breaks_off);
            if n_missing == 1 && track.breaks_off {
                let job = FileJob::new(&path, files.path(&format!("out.{n_missing}.{name}")));
                let told = check(&job, "verified in part: ").to_string();
                let part = "not judged: a sound packet cut off at the end of the source";
                assert!(told.ends_with(part), "{told}");
            }
        }
    }
    assert!(n_broken >= 6, "{n_broken}");
}

/// Returns a transport stream without the packets of the stream `pid`.
fn without_stream(files: &Files, input: &Path, pid: u16, name: &str) -> PathBuf {
    let bytes = std::fs::read(input).unwrap();
    let packets = bytes.chunks_exact(188);
    let of_others =
        packets.filter(|packet| u16::from_be_bytes([packet[1], packet[2]]) & 0x1fff != pid);
    files.write(name, of_others.collect::<Vec<_>>().concat())
}

/// Returns the number of sound tracks that ffprobe sees.
fn sound_tracks(path: &Path) -> usize {
    let entries = "-select_streams a -show_entries stream=codec_name";
    ffprobe(path, entries)
        .lines()
        .filter(|line| !line.is_empty())
        .count()
}

#[test]
fn sound_that_was_announced_and_never_comes_is_left_out() {
    let files = Files::new();
    let late = |name: &str, sound: &str| {
        let late = "-itsoffset 3 -f lavfi -i sine=frequency=880:sample_rate=48000:duration=1";
        files.make(
            name,
            &format!("{PICTURE} {late} -map 0 -map 1 {H264} -c:a {sound}"),
        )
    };
    let two = format!("-map 0 -map 1 -map 2 {H264} -c:a aac");
    let both = files.make("both.ts", &format!("{PICTURE} {SOUND} {SOUND} {two}"));
    let opus = format!("{PICTURE} {SOUND} {H264} -c:a libopus -frames:a 0");
    let one = film(&files, "one.ts", "aac");
    let whole = [
        (without_stream(&files, &one, 0x101, "none.ts"), 0),
        (without_stream(&files, &both, 0x101, "second.ts"), 1),
        (without_stream(&files, &both, 0x102, "first.ts"), 1),
        (files.make("empty.mkv", &opus), 0),
    ];
    for (input, n_tracks) in &whole {
        for extension in ["mp4", "mov", "mkv", "ts"] {
            let name = input.file_name().unwrap().to_str().unwrap();
            let job = FileJob::new(input, files.path(&format!("{name}.{extension}")));
            check(&job, "verified: ");
            // A transport stream muxer lists tracks of which it has only received gaps, and players ignore them.
            if extension != "ts" {
                assert_eq!(sound_tracks(&job.output), *n_tracks, "{:?}", job.output);
            }
            assert_eq!(
                judged(&job.output, Kind::Picture).len(),
                150,
                "{:?}",
                job.output
            );
        }
    }
    for (name, sound) in [
        ("flac.mkv", "flac"),
        ("vorbis.mkv", "libvorbis"),
        ("vorbis.mp4", "libvorbis"),
        ("mp3.mkv", "libmp3lame"),
        ("opus.mkv", "libopus"),
        ("pcm.mkv", "pcm_s16le"),
        ("aac.mp4", "aac"),
        ("ac3.ts", "ac3"),
    ] {
        let input = late(name, sound);
        for extension in ["mp4", "mov", "mkv", "ts"] {
            let job = FileJob {
                end: Some(Pts(1_000_000_000)),
                ..FileJob::new(&input, files.path(&format!("{name}.{extension}")))
            };
            check(&job, "verified: ");
            if extension != "ts" {
                assert_eq!(sound_tracks(&job.output), 0, "{:?}", job.output);
            }
            assert_eq!(
                judged(&job.output, Kind::Picture).len(),
                25,
                "{:?}",
                job.output
            );
        }
    }
}

#[test]
fn a_result_with_a_track_that_no_player_opens_is_not_called_verified() {
    let files = Files::new();
    let source = film(&files, "source.mp4", "aac");
    let silent = files.make("silent.mp4", &format!("{PICTURE} {H264}"));
    let mut bytes = std::fs::read(&source).unwrap();
    let last = bytes
        .windows(4)
        .rposition(|window| window == b"stsd")
        .unwrap();
    bytes[last..last + 4].copy_from_slice(b"skip");
    let result = files.write("result.mp4", bytes);
    for source in [&source, &silent] {
        let job = FileJob::new(source, result.clone());
        let verification = verify::compare(&job, None).unwrap();
        assert!(
            !verification.whole() || !verification.unjudged.is_empty(),
            "{verification}"
        );
    }
}

#[test]
fn sound_that_changes_on_the_way_is_refused_with_the_way_out() {
    let files = Files::new();
    let part = |rate: u32| {
        let sound = format!("-f lavfi -i sine=frequency=440:sample_rate={rate}:duration=2");
        let path = files.make(
            &format!("{rate}.ts"),
            &format!("{PICTURE} {sound} -t 2 {H264} -c:a aac"),
        );
        std::fs::read(path).unwrap()
    };
    let input = files.write("joined.ts", [part(48_000), part(44_100)].concat());
    for extension in ["mp4", "mov", "mkv"] {
        let job = FileJob::new(&input, files.path(&format!("copied.{extension}")));
        let refusal = run(&job).unwrap_err().to_string();
        let told = "the sound changes midway from AAC 48000 Hz 1 ch to AAC 44100 Hz 1 ch and cannot be copied into one \
                    track; use --audio encode to convert it: ";
        assert!(refusal.starts_with(told), "{extension}: {refusal}");
        let job = FileJob {
            audio: AudioMode::Encode,
            ..FileJob::new(&input, files.path(&format!("encoded.{extension}")))
        };
        assert_eq!(run(&job).unwrap(), 100, "{extension}");
    }
}

#[test]
fn vorbis_in_mp4_is_known_as_such() {
    let files = Files::new();
    let input = film(&files, "vorbis.mp4", "libvorbis");
    for extension in ["mp4", "mov", "ts"] {
        let job = FileJob::new(&input, files.path(&format!("out.{extension}")));
        let told = check(&job, "verified: ").to_string();
        assert!(told.contains("sound re-encoded"), "{told}");
    }
}

#[test]
fn a_track_much_shorter_than_the_other_is_kept() {
    let files = Files::new();
    let sound = "-f lavfi -i sine=frequency=440:sample_rate=48000";
    let picture = "-f lavfi -i testsrc2=size=160x120:rate=25";
    for (seen, heard) in [(12, 2), (2, 12)] {
        let input = files.make(
            &format!("{seen}-{heard}.mp4"),
            &format!("-t {seen} {picture} -t {heard} {sound} {H264} -c:a aac"),
        );
        check_whole(&files, &input);
    }
}

#[test]
fn negative_composition_offsets_lose_and_move_nothing() {
    let files = Files::new();
    let plain = judged(&film(&files, "plain.mp4", "aac"), Kind::Picture);
    for (idx, flags) in [
        "negative_cts_offsets",
        "negative_cts_offsets+frag_keyframe",
        "negative_cts_offsets+frag_keyframe+empty_moov+default_base_moof",
        "negative_cts_offsets+frag_keyframe+delay_moov",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("{idx}.mp4");
        let input = film(&files, &name, &format!("aac -movflags {flags}"));
        if idx == 0 {
            // ffmpeg mistakes fragments with negative offsets for later ones than the samples before them.
            check_whole(&files, &input);
        }
        let job = FileJob::new(&input, files.path(&format!("out.{name}")));
        let verification = check(&job, "verified: ");
        assert_eq!(judged(&job.output, Kind::Picture), plain, "{flags}");
        assert_eq!(verification.max_sound_shift_nanos, 0, "{flags}");
        let range = FileJob {
            start: Some(Pts(2_000_000_000)),
            output: files.path(&format!("range.{name}")),
            ..job
        };
        assert_eq!(check(&range, "verified: ").frames_out, 100, "{flags}");
    }
}

/// Returns the times of the pictures, and the delay from the flash to the beep.
fn shown_and_heard(path: &Path) -> (Vec<i64>, f64) {
    (judged(path, Kind::Picture), beep_after_flash(path))
}

#[test]
fn a_presentation_that_begins_late_stays_late() {
    let files = Files::new();
    let film = files.make("film.mp4", &format!("{FLASH} {BEEP} {H264} -c:a aac"));
    let film = film.display();
    let plain = files.make("film.mov", &format!("{FLASH} {BEEP} {H264} -c:a pcm_s16le"));
    let late = files.make(
        "late.mov",
        &format!("-itsoffset 0.7 -i {} -c copy", plain.display()),
    );
    let out = files.path("encoded.mp4");
    check(&FileJob::new(&late, &out), "verified: ");
    assert_eq!(judged(&out, Kind::Picture), judged(&late, Kind::Picture));
    for (name, picture_at, sound_at) in [("a.mp4", 2, 3), ("b.mp4", 2, 2), ("c.mov", 3, 2)] {
        let input = files.make(
            name,
            &format!("-itsoffset {picture_at} -i {film} -itsoffset {sound_at} -i {film} -map 0:v -map 1:a -c copy"),
        );
        let expected = shown_and_heard(&input);
        let starts = ffprobe(&input, "-show_entries stream=start_time");
        let out = files.path(&format!("out.{name}"));
        check(&FileJob::new(&input, &out), "verified: ");
        assert_eq!(shown_and_heard(&out), expected, "{name}");
        assert_eq!(
            ffprobe(&out, "-show_entries stream=start_time"),
            starts,
            "{name}"
        );
        // The output is read like the input.
        let again = files.path(&format!("again.{name}"));
        check(&FileJob::new(&out, &again), "verified: ");
        assert_eq!(shown_and_heard(&again), expected, "{name} again");
        let mkv = files.path(&format!("{name}.mkv"));
        check(&FileJob::new(&input, &mkv), "verified: ");
        assert_eq!(shown_and_heard(&mkv).0, expected.0, "{name} as Matroska");
    }
}

#[test]
fn fragments_are_read_to_their_end() {
    let files = Files::new();
    let input = files.path("fragments.mp4");
    let pipeline = format!(
        "-q videotestsrc num-buffers=100 ! video/x-raw,framerate=25/1 ! x264enc key-int-max=25 bframes=2 ! \
         mp4mux fragment-duration=1000 ! filesink location={}",
        input.display()
    );
    run_tool(
        "gst-launch-1.0",
        &pipeline.split_whitespace().collect::<Vec<_>>(),
    );
    let job = FileJob::new(&input, files.path("out.mp4"));
    assert_eq!(check(&job, "verified: ").frames_out, 100);
}

#[test]
fn a_range_of_fragments_is_whole() {
    let files = Files::new();
    for (name, args) in [
        (
            "first.mp4",
            format!("{PICTURE} {H264} -movflags frag_keyframe"),
        ),
        (
            "empty.mp4",
            format!(
                "{PICTURE} {SOUND} {H264} -c:a aac -movflags frag_keyframe+empty_moov+default_base_moof"
            ),
        ),
    ] {
        let input = files.make(name, &args);
        let n_frames = |start: f64, end: Option<f64>| {
            let pts = |secs: f64| Pts((secs * 1e9) as u64);
            let job = FileJob {
                start: Some(pts(start)),
                end: end.map(pts),
                overwrite: true,
                ..FileJob::new(&input, files.path("out.mp4"))
            };
            check(&job, "verified: ").frames_out
        };
        let first = judged(&input, Kind::Picture)[0];
        let begin = match name {
            // The presentation begins with the picture, 80 ms after the file's own zero.
            "first.mp4" => first,
            _ => 0,
        };
        let expected = |start: i64, end: i64| {
            let times = judged(&input, Kind::Picture);
            let shown = times.iter().map(|time| time - begin);
            shown
                .filter(|time| time + 40_000 > start && *time < end)
                .count() as u64
        };
        // They include the frame on the screen at 0.5 s.
        assert_eq!(
            n_frames(0.5, Some(1.5)),
            expected(500_000, 1_500_000),
            "{name}"
        );
        assert_eq!(n_frames(3.0, None), expected(3_000_000, i64::MAX), "{name}");
        if name == "first.mp4" {
            assert_eq!(n_frames(3.0, None), 75);
        }
        let late = FileJob {
            start: Some(Pts(9_000_000_000)),
            ..FileJob::new(&input, files.path("none.mp4"))
        };
        let refused = run(&late).unwrap_err().to_string();
        assert!(
            refused.starts_with("the video has no frames from 9 s onward: "),
            "{refused}"
        );
    }
}

#[test]
fn a_range_of_a_transport_stream_counts_from_its_first_frame() {
    let files = Files::new();
    let input = files.make("in.ts", &format!("{PICTURE} {SOUND} {H264} -c:a aac -t 4"));
    let job = FileJob {
        start: Some(Pts(1_000_000_000)),
        ..FileJob::new(&input, files.path("out.mp4"))
    };
    let verification = check(&job, "verified: ");
    assert_eq!(verification.frames_out, 75);
}

#[test]
fn the_picture_of_a_transport_stream_may_begin_after_its_sound() {
    let files = Files::new();
    let film = files.make("film.mp4", &format!("{FLASH} {BEEP} {H264} -c:a aac"));
    let film = film.display();
    for late_secs in ["0.02", "0.08", "0.1", "0.3", "0.5", "1", "2"] {
        let input = files.make(
            &format!("{late_secs}.ts"),
            &format!("-itsoffset {late_secs} -i {film} -i {film} -map 0:v -map 1:a -c copy"),
        );
        let starts = ffprobe(&input, "-show_entries format=start_time");
        let earliest = (starts.trim().parse::<f64>().unwrap() * 1e6).round() as i64;
        let (frames, beep) = shown_and_heard(&input);
        // This little sound before the picture is its encoder's priming.
        let has_run_in = frames[0] - earliest <= 50_000;
        let begin = if has_run_in { frames[0] } else { earliest };
        let expected: Vec<i64> = frames.iter().map(|time| time - begin).collect();
        for extension in ["mp4", "mkv", "ts"] {
            let out = files.path(&format!("{late_secs}.out.{extension}"));
            let verification = check(&FileJob::new(&input, &out), "verified: ");
            assert_eq!(
                verification.frames_out,
                expected.len() as u64,
                "{verification}"
            );
            let (frames, beep_out) = shown_and_heard(&out);
            let begin = match extension {
                "mkv" if has_run_in => frames[0],
                "ts" => frames[0] - expected[0],
                _ => 0,
            };
            for (frame, expected) in frames.iter().zip(&expected) {
                assert!(
                    (frame - begin - expected).abs() < 1_000,
                    "{out:?}: {frame} {expected}"
                );
            }
            assert!(
                (beep_out - beep).abs() < 0.003,
                "{out:?}: {beep_out}, {beep}"
            );
        }
        let range = FileJob {
            start: Some(Pts(2_500_000_000)),
            ..FileJob::new(&input, files.path(&format!("{late_secs}.range.mp4")))
        };
        let shown = check(&range, "verified: ").frames_out;
        let wanted = expected.iter().filter(|time| **time + 40_000 > 2_500_000);
        assert_eq!(shown, wanted.count() as u64, "{late_secs}");
    }
}

#[test]
fn sound_shortly_before_the_picture_of_a_transport_stream_is_heard() {
    let files = Files::new();
    for codec in ["aac", "mp2"] {
        let input = files.make(
            &format!("{codec}.ts"),
            &format!("-itsoffset 0.09 {PICTURE} {SOUND} {H264} -c:a {codec}"),
        );
        let before = heard_secs(&input);
        for (extension, audio) in [
            ("mp4", AudioMode::Copy),
            ("mkv", AudioMode::Copy),
            ("ts", AudioMode::Copy),
            ("mp4", AudioMode::Encode),
            ("mkv", AudioMode::Encode),
        ] {
            let job = FileJob {
                audio,
                overwrite: true,
                ..FileJob::new(&input, files.path(&format!("out.{extension}")))
            };
            check(&job, "verified: ");
            let after = heard_secs(&job.output);
            assert!(
                (after - before).abs() < 0.03,
                "{codec} {extension} {audio:?}: {after} s of {before} s"
            );
        }
    }
}

#[test]
fn the_clock_of_a_transport_stream_may_tick_once_per_second() {
    let files = Files::new();
    let slow = "-f lavfi -i testsrc2=size=160x120:rate=1:duration=12";
    let tone = "-f lavfi -i sine=frequency=440:sample_rate=48000:duration=12";
    let input = files.make("in.ts", &format!("{slow} {tone} {H264} -c:a aac"));
    let every_second = |n: i64| (0..n).map(|idx| idx * 1_000_000).collect::<Vec<_>>();
    for (start_secs, n) in [(0, 12), (4, 8)] {
        let job = FileJob {
            start: Some(Pts(start_secs * 1_000_000_000)),
            ..FileJob::new(&input, files.path(&format!("{start_secs}.mp4")))
        };
        check(&job, "verified: ");
        assert_eq!(judged(&job.output, Kind::Picture), every_second(n));
    }
}

#[test]
fn pictures_that_no_decoder_can_show_raise_no_alarm() {
    let files = Files::new();
    for (name, codec) in [
        ("a", "-c:v mpeg2video -bf 2 -g 25 -q:v 5 -c:a mp2"),
        ("b", "-c:v libx264 -preset ultrafast -bf 2 -g 25 -c:a aac"),
    ] {
        let whole = files.make(
            &format!("{name}.ts"),
            &format!("{PICTURE} {SOUND} {codec} -pat_period 0.1"),
        );
        // From the middle of the second group of pictures onward.
        let bytes = std::fs::read(&whole).unwrap();
        let entries: Vec<usize> = (0..bytes.len() / 188)
            .filter(|idx| {
                let packet = &bytes[188 * idx..];
                let is_picture = packet[1] & 0x5f == 0x41 && packet[2] == 0;
                is_picture && packet[3] & 0x20 != 0 && packet[4] > 0 && packet[5] & 0x40 != 0
            })
            .collect();
        let from = (entries[1] + entries[2]) / 2;
        let input = files.write(&format!("{name}.cut.ts"), &bytes[188 * from..]);
        let job = FileJob {
            audio: AudioMode::Drop,
            ..FileJob::new(&input, files.path(&format!("{name}.mp4")))
        };
        let verification = check(&job, "verified: ");
        let n_decoded = judged(&input, Kind::Picture).len() as u64;
        assert!((90..=100).contains(&n_decoded), "{name}: {n_decoded}");
        assert_eq!(verification.frames_out, n_decoded, "{name}");
    }
}

/// A decoder that knows the parameters of a stream shows gray for frames whose references are missing.
#[test]
fn ranges_of_a_recording_that_was_cut_anywhere_begin_with_a_key_frame() {
    let files = Files::new();
    for (name, codec) in [
        ("h264", "-c:v libx264 -preset veryfast -bf 2 -g 50 -c:a aac"),
        (
            "h265",
            "-c:v libx265 -preset ultrafast -x265-params log-level=none:keyint=50 -c:a aac",
        ),
        ("mpeg4", "-c:v mpeg4 -g 50 -c:a aac"),
        ("mpeg2", "-c:v mpeg2video -bf 2 -g 50 -q:v 5 -c:a aac"),
    ] {
        let whole = files.make(&format!("{name}.ts"), &format!("{PICTURE} {SOUND} {codec}"));
        let bytes = std::fs::read(&whole).unwrap();
        let input = files.write(&format!("{name}.cut.ts"), &bytes[bytes.len() / 376 * 188..]);
        let out = |range: &str| files.path(&format!("{name}.{range}.mkv"));
        let whole = FileJob {
            audio: AudioMode::Drop,
            ..FileJob::new(&input, out("whole"))
        };
        check(&whole, "verified: ");
        let shown = judged(&out("whole"), Kind::Picture);
        for (start, end) in [(200, None), (0, Some(1900)), (1000, Some(2500))] {
            let job = FileJob {
                start: (start > 0).then_some(Pts(start * 1_000_000)),
                end: end.map(|end: u64| Pts(end * 1_000_000)),
                output: out("range"),
                overwrite: true,
                ..whole.clone()
            };
            check(&job, "verified: ");
            let start = start as i64 * 1_000;
            let end = end.map_or(i64::MAX, |end| end as i64 * 1_000);
            let inside = shown
                .iter()
                .filter(|time| **time + 40_000 > start && **time < end);
            let expected: Vec<i64> = inside.map(|time| (time - start).max(0)).collect();
            let times = judged(&job.output, Kind::Picture);
            assert_eq!(times.len(), expected.len(), "{name} from {start}");
            let differences = times.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            assert!(
                differences.max().unwrap() <= 1_000,
                "{name} from {start}: {times:?}, {expected:?}"
            );
        }
    }
}

/// Behind a seek, the demuxer passes on packets of the beginning that it could not time.
#[test]
fn a_range_of_a_recording_that_was_cut_anywhere_holds_no_sound_of_its_beginning() {
    let files = Files::new();
    for (codec, pid, audio) in [
        ("mp2", 1, AudioMode::Encode),
        ("mp2", 1, AudioMode::Copy),
        ("libopus", 1, AudioMode::Copy),
    ] {
        let whole = files.make(
            "whole.ts",
            &format!("{PICTURE} {SOUND} {H264} -c:a {codec}"),
        );
        let bytes = std::fs::read(&whole).unwrap();
        let packets: Vec<&[u8]> = bytes.chunks_exact(188).collect();
        let begins = |packet: &[u8], pid: u8| packet[1] & 0x5f == 0x41 && packet[2] == pid;
        let from = (packets.len() / 3..).find(|from| {
            let until_tables = packets[*from..]
                .iter()
                .take_while(|packet| packet[1..3] != [0x40, 0]);
            begins(packets[*from], pid) && until_tables.clone().count() > 10
        });
        let input = files.write("cut.ts", &bytes[188 * from.unwrap()..]);
        for extension in ["mkv", "mp4", "ts"] {
            let job = FileJob {
                start: Some(Pts(1_500_000_000)),
                end: Some(Pts(2_500_000_000)),
                audio,
                overwrite: true,
                ..FileJob::new(&input, files.path(&format!("out.{extension}")))
            };
            check(&job, "verified: ");
            let times = judged(&job.output, Kind::Sound);
            assert!(
                times.windows(2).all(|pair| pair[0] < pair[1]),
                "{codec} {audio:?} {extension}: {times:?}"
            );
            let length = (times[times.len() - 1] - times[0]) as f64 / 1e6;
            assert!(
                (length - 1.0).abs() < 0.07,
                "{codec} {audio:?} {extension}: {length} s"
            );
        }
    }
}

/// Packets of Opus that share a PES packet leave the demuxer together.
#[test]
fn encoded_opus_of_a_range_holds_no_sound_of_the_beginning() {
    let files = Files::new();
    let loud = "-f lavfi -i aevalsrc=0.5*sin(2764*t)*lt(t\\,2):s=48000:d=6";
    let input = files.make("in.ts", &format!("{PICTURE} {loud} {H264} -c:a libopus"));
    for extension in ["mp4", "ts", "mkv"] {
        let job = FileJob {
            start: Some(Pts(2_500_000_000)),
            audio: AudioMode::Encode,
            ..FileJob::new(&input, files.path(&format!("out.{extension}")))
        };
        check(&job, "verified: ");
        let (peak, _) = peak_and_length(&job.output);
        assert!(peak < -60.0, "{extension}: {peak} dB");
    }
}

/// ffmpeg, too, leaves out frames that are not yet refreshed completely.
#[test]
fn frames_before_the_end_of_a_refresh_are_left_out() {
    let files = Files::new();
    for options in ["-bf 0", "-bf 2"] {
        let whole = files.make(
            "whole.ts",
            &format!("{PICTURE} -c:v libx264 -preset veryfast -g 50 {options} -intra-refresh 1"),
        );
        let bytes = std::fs::read(&whole).unwrap();
        let input = files.write("cut.ts", &bytes[bytes.len() / 564 * 188..]);
        let job = FileJob {
            overwrite: true,
            ..FileJob::new(&input, files.path("out.mkv"))
        };
        // A decoder does not recognize all incomplete frames: after frame number zero, it misses no references.
        let verification = check(&job, "verified in part: ");
        assert!(
            verification.to_string().contains(
                "not judged: whether the first frames are complete (the source refreshes them part by part)"
            ),
            "{verification}"
        );
        let n_decoded = judged(&input, Kind::Picture).len() as u64;
        assert!((20..100).contains(&n_decoded), "{options}: {n_decoded}");
        assert_eq!(verification.frames_out, n_decoded, "{options}");
        check(
            &FileJob {
                overwrite: true,
                ..FileJob::new(&whole, files.path("out.mkv"))
            },
            "verified: ",
        );
    }
}

/// The demuxer knows no track before the first tables.
#[test]
fn sound_before_the_first_tables_of_a_transport_stream_is_kept() {
    let files = Files::new();
    let whole = files.make(
        "whole.ts",
        &format!("{PICTURE} {SOUND} -c:v mpeg4 -g 10 -b:v 2M -c:a mp2 -pat_period 1"),
    );
    let bytes = std::fs::read(&whole).unwrap();
    let packets: Vec<&[u8]> = bytes.chunks_exact(188).collect();
    let is_rest = |packet: &[u8]| packet[1..4] == [0x01, 0x00, packet[3]] && packet[3] & 0x20 == 0;
    let begins = |packet: &[u8], pid: u8| packet[1] == 0x41 && packet[2] == pid;
    let from = (packets.len() / 2..).find(|from| {
        let mut after = packets[*from..].iter();
        is_rest(packets[*from])
            && is_rest(packets[from + 1])
            && after
                .find(|packet| begins(packet, 0) || begins(packet, 1))
                .is_some_and(|first| begins(first, 1))
    });
    let input = files.write("cut.ts", &bytes[188 * from.unwrap()..]);
    let n_packets = judged(&input, Kind::Sound).len() as u64;
    for extension in ["mkv", "mp4", "ts"] {
        let job = FileJob::new(&input, files.path(&format!("out.{extension}")));
        let verification = check(&job, "verified: ");
        assert_eq!(verification.audio_packets_out, n_packets, "{extension}");
    }
}

#[test]
fn h265_copied_from_one_transport_stream_to_another_keeps_its_times() {
    let files = Files::new();
    let x265 = |more: &str| {
        format!(
            "-c:v libx265 -preset ultrafast -x265-params log-level=error:keyint=25:open-gop=0{more}"
        )
    };
    for (name, more) in [("b", ""), ("p", ":bframes=0")] {
        let film = files.make(
            &format!("{name}.ts"),
            &format!("{PICTURE} {SOUND} {} -c:a aac -t 2", x265(more)),
        );
        for copy in ["copy.ts", "copy.m2ts"] {
            let input = files.make(
                &format!("{name}.{copy}"),
                &format!("-i {} -c copy", film.display()),
            );
            let job = FileJob::new(&input, files.path(&format!("{name}.{copy}.mp4")));
            check(&job, "verified: ");
            let expected: Vec<i64> = (0..50).map(|frame| frame * 40_000).collect();
            assert_eq!(judged(&job.output, Kind::Picture), expected, "{input:?}");
        }
    }
}

#[test]
fn aac_that_cannot_be_copied_is_encoded_anew() {
    let files = Files::new();
    let input = files.make(
        "latm.ts",
        &format!("{FLASH} {BEEP} {H264} -c:a aac -mpegts_flags latm"),
    );
    let before = beep_after_flash(&input);
    for extension in ["mp4", "ts", "mkv"] {
        let job = FileJob::new(&input, files.path(&format!("out.{extension}")));
        let verification = check(&job, "verified");
        assert!(verification.audio_packets_out > 0, "{verification}");
        let moved = beep_after_flash(&job.output) - before;
        assert!(moved.abs() < 0.003, "{extension}: {moved} s");
    }
    // Cut out of the middle, it has no configuration at first.
    let cut = files.make(
        "cut.ts",
        &format!("-ss 0.9 -i {} -c copy -mpegts_flags latm", input.display()),
    );
    let job = FileJob::new(&cut, files.path("cut.mp4"));
    check(&job, "verified in part");
    let moved = beep_after_flash(&job.output) - beep_after_flash(&cut);
    assert!(moved.abs() < 0.012, "{moved} s");
    let tone = files.make(
        "tone.ts",
        &format!("{PICTURE} {SOUND} {H264} -c:a aac -mpegts_flags latm"),
    );
    for extension in ["mp4", "ts", "mkv"] {
        let job = FileJob::new(&tone, files.path(&format!("tone.out.{extension}")));
        check(&job, "verified");
        let [before, after] = [&tone, &job.output].map(|path| heard_secs(path));
        assert!(
            (after - before).abs() < 0.025,
            "{extension}: {after} s of {before} s"
        );
    }
}

/// Returns the duration of a file's sound that is not silent, in seconds, by ffmpeg's decoder.
fn heard_secs(path: &Path) -> f64 {
    let path = path.to_str().unwrap();
    let format = "-map 0:a:0 -ac 1 -ar 16000 -f s16le -";
    let args = ["-v", "error", "-i", path].into_iter();
    let args: Vec<&str> = args.chain(format.split(' ')).collect();
    let decoded = run_tool("ffmpeg", &args).stdout;
    let loud = decoded.chunks_exact(2 * 160).filter(|window| {
        let mut samples = window.chunks_exact(2);
        samples.any(|sample| i16::from_le_bytes([sample[0], sample[1]]).unsigned_abs() > 500)
    });
    loud.count() as f64 / 100.0
}

#[test]
fn sound_that_can_be_neither_decoded_nor_copied_whole_is_refused_with_the_way_out() {
    let files = Files::new();
    let input = files.make("tta.mkv", &format!("{PICTURE} {SOUND} {H264} -c:a tta"));
    for (extension, audio) in [
        ("mkv", AudioMode::Copy),
        ("mp4", AudioMode::Copy),
        ("mkv", AudioMode::Encode),
    ] {
        let job = FileJob {
            audio,
            ..FileJob::new(&input, files.path(&format!("out.{extension}")))
        };
        let refusal = run(&job).unwrap_err().to_string();
        assert_eq!(
            refusal,
            format!(
                "GStreamer can neither decode TTA audio nor copy its last packet whole; use --audio drop to leave it out, \
                 or convert it to FLAC first: {input:?}"
            )
        );
        assert!(!job.output.exists());
    }
}

#[test]
fn video_that_cannot_be_decoded_is_refused_though_it_has_sound() {
    let files = Files::new();
    for (name, codec, told) in [
        (
            "v410.mov",
            "v410",
            "GStreamer has no decoder for the video's codec \"v410\"",
        ),
        (
            "ffvhuff.mkv",
            "ffvhuff",
            "GStreamer's demuxer does not know the codec of the video",
        ),
        ("mpeg4.nut", "mpeg4", "cannot read the timestamps of NUT"),
    ] {
        let input = files.make(
            name,
            &format!("{PICTURE} {SOUND} -t 1 -c:v {codec} -c:a mp2"),
        );
        for audio in [AudioMode::Copy, AudioMode::Drop] {
            let job = FileJob {
                audio,
                ..FileJob::new(&input, files.path("out.mkv"))
            };
            let refusal = run(&job).unwrap_err().to_string();
            assert!(refusal.contains(told), "{refusal}");
            assert!(!job.output.exists());
        }
    }
}

#[test]
fn speex_is_encoded_anew_for_matroska() {
    let files = Files::new();
    let input = files.make(
        "speex.ogv",
        &format!("{PICTURE} {SOUND} -c:v libtheora -c:a libspeex -ar 16000"),
    );
    let job = FileJob::new(&input, files.path("out.mkv"));
    run(&job).unwrap();
    let (before, after) = (heard_secs(&input), heard_secs(&job.output));
    assert!((after - before).abs() < 0.05, "{after} s of {before} s");
}

#[test]
fn a_range_that_only_ends_keeps_sound_behind_an_edit() {
    let files = Files::new();
    for (name, codec) in [("pcm.mov", "pcm_s16le"), ("aac.mp4", "aac")] {
        let whole = files.make(name, &format!("{PICTURE} {SOUND} {H264} -c:a {codec}"));
        let cut = files.make(
            &format!("cut.{name}"),
            &format!("-ss 0.72 -i {} -c copy", whole.display()),
        );
        for extension in ["mp4", "mov", "mkv"] {
            if (codec, extension) == ("pcm_s16le", "mp4") {
                continue;
            }
            let job = FileJob {
                end: Some(Pts(1_200_000_000)),
                ..FileJob::new(&cut, files.path(&format!("{name}.{extension}")))
            };
            check(&job, "verified: ");
            let secs = heard_secs(&job.output);
            assert!((secs - 1.2).abs() < 0.05, "{name} {extension}: {secs} s");
        }
    }
}

#[test]
fn a_range_within_one_picture_is_as_long_as_it_was_asked() {
    let files = Files::new();
    let slow = "-f lavfi -i testsrc2=size=160x120:rate=1:duration=6";
    let film = files.make("in.mp4", &format!("{slow} {SOUND} {H264} -c:a aac"));
    for extension in ["mp4", "mkv", "ts"] {
        let job = FileJob {
            start: Some(Pts(4_200_000_000)),
            end: Some(Pts(4_600_000_000)),
            ..FileJob::new(&film, files.path(&format!("out.{extension}")))
        };
        let verification = check(&job, "verified: ");
        assert_eq!(verification.frames_out, 1);
        let secs = verification.duration_out.as_secs_f64();
        assert!((secs - 0.4).abs() < 0.05, "{verification}");
    }
}

#[test]
fn sound_before_the_first_picture_of_a_matroska_file_is_in_ranges_too() {
    let files = Files::new();
    let late = format!("-itsoffset 0.777 {PICTURE} {SOUND}");
    for (name, codecs) in [
        ("aac.mkv", format!("{H264} -c:a aac")),
        ("opus.webm", "-c:v libvpx -b:v 1M -c:a libopus".to_owned()),
    ] {
        let input = files.make(name, &format!("{late} {codecs}"));
        for start_millis in [100, 300] {
            let job = FileJob {
                start: Some(Pts(start_millis * 1_000_000)),
                ..FileJob::new(&input, files.path(&format!("{start_millis}.{name}")))
            };
            check(&job, "verified: ");
        }
    }
}

/// matroskademux 1.22 seeks to the first cluster with video, even to the beginning.
#[test]
fn large_packets_before_the_first_picture_are_in_ranges_that_only_end() {
    let files = Files::new();
    for sound in ["dca -strict -2", "pcm_s16le", "flac -frame_size 16384"] {
        let codec = sound.split(' ').next().unwrap();
        let input = files.make(
            &format!("{codec}.mkv"),
            &format!("-itsoffset 0.4 {PICTURE} {SOUND} {H264} -c:a {sound}"),
        );
        let job = FileJob {
            end: Some(Pts(4_300_000_000)),
            audio: AudioMode::Encode,
            ..FileJob::new(&input, files.path(&format!("{codec}.mp4")))
        };
        check(&job, "verified: ");
        let secs = heard_secs(&job.output);
        assert!((secs - 4.3).abs() < 0.05, "{codec}: {secs} s");
    }
}

/// matroskademux 1.22 hands out ProRes without times, and CineForm with times of decoding only. Decoders then number
/// the frames, from the beginning of what is read.
#[test]
fn pictures_of_matroska_that_have_no_times_behind_the_demuxer_keep_theirs() {
    let files = Files::new();
    for codec in [
        "prores_ks",
        "cfhd -pix_fmt yuv422p10",
        "huffyuv -pix_fmt yuv422p",
        "mjpeg -pix_fmt yuvj420p",
        "dvvideo -s 720x576 -pix_fmt yuv420p",
    ] {
        let name = codec.split(' ').next().unwrap();
        let late = files.make(
            &format!("{name}.late.mkv"),
            &format!("-itsoffset 0.4 {FLASH} {BEEP} -c:v {codec} -c:a pcm_s16le"),
        );
        let before = beep_after_flash(&late);
        assert!((before + 0.4).abs() < 0.011, "{name}: {before} s");
        for (start, end) in [(None, None), (Some(1), None), (Some(1), Some(3))] {
            let secs = |secs: u64| Pts(secs * 1_000_000_000);
            let job = FileJob {
                overwrite: true,
                start: start.map(secs),
                end: end.map(secs),
                ..FileJob::new(&late, files.path(&format!("{name}.late.out.mkv")))
            };
            check(&job, "verified: ");
            let moved = beep_after_flash(&job.output) - before;
            assert!(moved.abs() < 0.011, "{name} {start:?}: {moved} s");
        }
        let gap = files.make(
            &format!("{name}.gap.mkv"),
            &format!("{FLASH} -vf select='not(between(n,20,70))' -fps_mode vfr -c:v {codec}"),
        );
        let job = FileJob::new(&gap, files.path(&format!("{name}.gap.out.mkv")));
        check(&job, "verified: ");
        let times = judged(&job.output, Kind::Picture);
        assert_eq!(times, judged(&gap, Kind::Picture), "{name}");
        assert_eq!(times[20] - times[19], 52 * 40_000, "{name}");
    }
}

#[test]
fn a_recording_behind_a_short_one_raises_no_alarm() {
    let files = Files::new();
    let one = files.make("one.ts", &format!("{PICTURE} {SOUND} {H264} -c:a mp2 -t 2"));
    let two = files.write("two.ts", std::fs::read(one).unwrap().repeat(2));
    let job = FileJob::new(&two, files.path("two.mp4"));
    let verification = check(&job, "verified in part: frames 100 out; ");
    let told = verification.to_string();
    assert!(
        told.contains("not judged: the frames (its timestamps jump)"),
        "{told}"
    );
    let times = judged(&job.output, Kind::Picture);
    let steps: Vec<i64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        steps.iter().all(|step| (40_000..120_000).contains(step)),
        "{steps:?}"
    );
}

#[test]
fn sound_tracks_stay_in_their_order() {
    let files = Files::new();
    let codecs = |path: &Path| -> Vec<String> {
        let contents = demux::read(path).unwrap();
        let codecs = contents.of(Kind::Sound).map(|track| track.codec.clone());
        codecs.collect()
    };
    for (name, first, second, extensions) in [
        ("a.mov", "aac", "pcm_s16le", &["mov", "mkv"][..]),
        ("b.mkv", "libmp3lame", "pcm_s16le", &["mkv"]),
        ("c.mkv", "libopus", "flac", &["mkv"]),
        ("e.ts", "mp2", "aac", &["mkv", "ts"]),
    ] {
        let sound = format!("-map 0 -map 1 -map 2 -c:a:0 {first} -c:a:1 {second}");
        let input = files.make(name, &format!("{PICTURE} {SOUND} {SOUND} {sound} {H264}"));
        for extension in extensions {
            let job = FileJob::new(&input, files.path(&format!("{name}.{extension}")));
            check(&job, "verified: ");
            assert_eq!(codecs(&job.output), codecs(&input), "{name} {extension}");
        }
    }
}

#[test]
fn tracks_begin_anew_together() {
    let files = Files::new();
    // The first track's step back is too short to be detected.
    let short = "-f lavfi -i sine=frequency=440:sample_rate=48000:duration=0.5";
    let late = "-itsoffset 2.5 -f lavfi -i sine=frequency=880:sample_rate=48000:duration=1";
    let maps = "-map 0 -map 1 -map 2";
    let one = files.make(
        "one.ts",
        &format!("{PICTURE} {short} {late} {maps} {H264} -c:a:0 ac3 -c:a:1 mp2 -t 4"),
    );
    let two = files.write("two.ts", std::fs::read(one).unwrap().repeat(2));
    check(
        &FileJob::new(&two, files.path("two.mp4")),
        "verified in part: frames 200 out; ",
    );
}

#[test]
fn sound_of_a_transport_stream_may_come_late_or_stop_early() {
    let files = Files::new();
    let late = "-itsoffset 4 -f lavfi -i sine=frequency=880:sample_rate=48000:duration=2";
    let short = "-f lavfi -i sine=frequency=440:sample_rate=44100:duration=1";
    for (codec, maps) in [
        ("ac3", "-map 0 -map 1"),
        ("ac3", "-map 0 -map 2 -map 1"),
        ("libmp3lame", "-map 0 -map 2 -map 1"),
        ("mp2", "-map 0 -map 1 -map 2"),
    ] {
        let name = format!("{codec}.{}.ts", maps.replace(' ', ""));
        let input = files.make(
            &name,
            &format!("{PICTURE} {late} {short} {maps} {H264} -c:a {codec}"),
        );
        for extension in ["mp4", "mkv", "ts"] {
            let job = FileJob::new(&input, files.path(&format!("{name}.{extension}")));
            check(&job, "verified: ");
            let cut = FileJob {
                end: Some(Pts(2_000_000_000)),
                overwrite: true,
                ..job
            };
            check(&cut, "verified: ");
        }
    }
}

/// Returns the number of sound samples at 16,000 per second, and the position of the last loud one.
fn length_and_last_loud(path: &Path) -> (usize, usize) {
    let decoded = std::process::Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(path)
        .args([
            "-map", "0:a", "-ac", "1", "-ar", "16000", "-f", "s16le", "-",
        ])
        .output()
        .unwrap();
    let samples: Vec<i16> = decoded
        .stdout
        .chunks_exact(2)
        .map(|pair| i16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    let last = samples
        .iter()
        .rposition(|sample| sample.unsigned_abs() > 4000);
    (samples.len(), last.unwrap_or(0))
}

#[test]
fn encoded_sound_keeps_its_end() {
    let files = Files::new();
    for (name, rate, codec) in [
        ("a.mov", 8_000, "pcm_s16le"),
        ("b.mov", 16_000, "pcm_s16le"),
        ("c.mov", 48_000, "pcm_f32le"),
        ("d.mp4", 16_000, "alac"),
        ("e.ts", 48_000, "ac3"),
        ("f.mkv", 16_000, "pcm_s16le"),
    ] {
        let tone = format!("-f lavfi -i aevalsrc=0.5*sin(3770*t)*gte(t\\,2.945):s={rate}:d=3");
        let input = files.make(
            name,
            &format!(
                "-f lavfi -i testsrc2=size=160x120:rate=25:duration=3 {tone} {H264} -c:a {codec}"
            ),
        );
        for extension in ["mp4", "mov", "ts"] {
            let job = FileJob {
                audio: AudioMode::Encode,
                ..FileJob::new(&input, files.path(&format!("{name}.{extension}")))
            };
            check(&job, "verified: ");
            let (len, last) = length_and_last_loud(&job.output);
            assert!(
                len >= 47_600 && last >= 47_600,
                "{name} {extension}: {len} {last}"
            );
        }
    }
}

#[test]
fn tracks_that_change_on_the_way_are_not_called_verified() {
    let files = Files::new();
    let first = files.make("first.ts", &format!("{PICTURE} {H264} -t 2"));
    let second = files.make("second.ts", &format!("{PICTURE} -c:v mpeg2video -t 2"));
    let both = files.path("both.ts");
    let bytes = [first, second].map(|path| std::fs::read(path).unwrap());
    std::fs::write(&both, bytes.concat()).unwrap();
    check(
        &FileJob::new(&both, files.path("out.mp4")),
        "not verified: the source is a transport stream with tracks that change midway",
    );
}

#[test]
fn pictures_without_times_of_their_own_keep_their_places() {
    let files = Files::new();
    let silent = |name: &str, codec: &str| files.make(name, &format!("{PICTURE} {codec}"));
    let made = [
        silent("a.vob", "-c:v mpeg2video -bf 2 -f vob"),
        silent("b.mpg", "-c:v mpeg2video -bf 2"),
        silent("c.mpg", "-c:v mpeg1video -bf 2"),
        silent("d.avi", H264),
        silent("e.avi", "-c:v mpeg4 -bf 2"),
    ];
    for input in made {
        let job = FileJob::new(&input, input.with_extension("mp4"));
        check(&job, "not verified: the source is ");
        let expected: Vec<i64> = (0..150).map(|frame| frame * 40_000).collect();
        assert_eq!(judged(&job.output, Kind::Picture), expected, "{input:?}");
    }
}

/// Rewrites the Matroska file `from`, whose pictures are in presentation order, with the sound of `track` in laces of 8
/// packets.
fn lace(from: &Path, to: &Path, track: u8) {
    let bytes = std::fs::read(from).unwrap();
    let (mut head, mut blocks) = (Vec::new(), Vec::new());
    let mut cluster = 0_i64;
    let mut at = 0;
    while at < bytes.len() {
        let number = |at: usize| {
            let len = bytes[at].leading_zeros() as usize + 1;
            let value = bytes[at..at + len]
                .iter()
                .fold(0_u64, |sum, b| sum << 8 | u64::from(*b));
            (value, len)
        };
        let ((id, id_len), (size, size_len)) = (number(at), number(at + number(at).1));
        let content = at + id_len + size_len;
        let end = content + (size & !(1 << (7 * size_len))) as usize;
        match id {
            // Descend into Segment, Cluster and BlockGroup.
            0x1853_8067 | 0x1f43_b675 | 0xa0 => {
                at = content;
                continue;
            }
            // EBML header, Info, Tracks.
            0x1a45_dfa3 | 0x1549_a966 | 0x1654_ae6b => head.push(bytes[at..end].to_vec()),
            0xe7 => {
                cluster = bytes[content..end]
                    .iter()
                    .fold(0, |sum, b| sum << 8 | i64::from(*b))
            }
            0xa1 | 0xa3 => {
                let block = &bytes[content..end];
                let time = cluster + i64::from(i16::from_be_bytes([block[1], block[2]]));
                blocks.push((block[0] & 0x7f, time, block[3], block[4..].to_vec()));
            }
            _ => {}
        }
        at = end;
    }
    let element = |id: &[u8], content: &[u8]| {
        let size = (1_u64 << 56 | content.len() as u64).to_be_bytes();
        [id, &size, content].concat()
    };
    let (sound, picture): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|block| block.0 == track);
    let laced = sound.chunks(8).map(|lace| {
        let mut content = vec![lace.len() as u8 - 1];
        for (_, _, _, packet) in &lace[..lace.len() - 1] {
            content.extend(vec![255; packet.len() / 255]);
            content.push((packet.len() % 255) as u8);
        }
        content.extend(lace.iter().flat_map(|block| &block.3));
        // Xiph lacing, and a keyframe.
        (track, lace[0].1, 0x82, content)
    });
    let mut blocks: Vec<_> = laced.chain(picture).collect();
    blocks.sort_by_key(|block| block.1);
    let mut clusters = Vec::new();
    for (number, time, flags, content) in blocks {
        let block = [&[0x80 | number, 0, 0, flags][..], &content].concat();
        let inside = [
            element(&[0xe7], &time.to_be_bytes()),
            element(&[0xa3], &block),
        ];
        clusters.extend(element(&[0x1f, 0x43, 0xb6, 0x75], &inside.concat()));
    }
    let segment = [head[1..].concat(), clusters].concat();
    std::fs::write(
        to,
        [
            head[0].clone(),
            element(&[0x18, 0x53, 0x80, 0x67], &segment),
        ]
        .concat(),
    )
    .unwrap();
}

/// Makes 6 s of picture in storage order, and of sound encoded by `sound` with one block per packet.
fn unlaced(files: &Files, sound: &str) -> PathBuf {
    let h264 = "-c:v libx264 -preset ultrafast -bf 0 -pix_fmt yuv420p";
    let args = format!("{PICTURE} {SOUND} {h264} -c:a {sound}");
    files.make("plain.mkv", &args)
}

#[test]
fn laces_of_packets_whose_lengths_no_block_says_are_kept() {
    let files = Files::new();
    for codec in ["aac", "libmp3lame", "ac3", "flac", "libvorbis"] {
        let plain = unlaced(&files, codec);
        let input = files.path(&format!("{codec}.mkv"));
        lace(&plain, &input, 2);
        let job = FileJob::new(&input, files.path(&format!("{codec}.out.mkv")));
        check(&job, "verified: ");
        assert_eq!(
            sound_hash(&job.output, ""),
            sound_hash(&plain, ""),
            "{codec}"
        );
        let [before, after] = [&plain, &job.output].map(|path| judged(path, Kind::Sound));
        let moved = before.iter().zip(&after).map(|(a, b)| (a - b).abs());
        assert!(
            moved.max().unwrap() <= 2000,
            "{codec}: {before:?} {after:?}"
        );
    }
}

#[test]
fn laced_packets_are_all_kept() {
    let files = Files::new();
    let plain = unlaced(&files, "libopus");
    let input = files.path("laced.mkv");
    lace(&plain, &input, 2);
    let n_packets = packets(&plain, Kind::Sound).len();
    assert_eq!(packets(&input, Kind::Sound).len(), n_packets);
    assert_eq!(judged(&input, Kind::Sound).len(), n_packets);
    for extension in ["mkv", "mp4", "webm"] {
        let job = FileJob::new(&input, files.path(&format!("out.{extension}")));
        let verification = check(&job, "verified: ");
        assert_eq!(
            verification.audio_packets_out as usize, n_packets,
            "{extension}"
        );
        assert_eq!(
            sound_hash(&job.output, ""),
            sound_hash(&plain, ""),
            "{extension}"
        );
    }
}

/// 4 s with a white flash and a beep at 2 s.
const FLASH: &str = "-f lavfi -i color=black:size=160x120:rate=25:duration=4,drawbox=c=white:t=fill:enable='between(t,1.99,2.19)'";
const BEEP: &str = "-f lavfi -i aevalsrc=0.5*sin(6283*t)*between(t\\,2\\,2.2):s=48000:d=4";

/// Returns the delay from the flash to the beep in seconds, by ffmpeg's filters.
fn beep_after_flash(path: &Path) -> f64 {
    let filters = "-vf blackdetect=d=0.1:pix_th=0.5:pic_th=0.9 -af silencedetect=noise=-30dB:d=0.1";
    let mut args = vec!["-v", "info", "-copyts", "-i", path.to_str().unwrap()];
    args.extend(filters.split_whitespace());
    args.extend(["-f", "null", "-"]);
    let log = String::from_utf8(run_tool("ffmpeg", &args).stderr).unwrap();
    let after = |name: &str| -> f64 {
        let rest = log.split(name).nth(1).unwrap();
        let rest = rest.trim_start();
        let end = rest.find([' ', '\n', '\r']).unwrap_or(rest.len());
        rest[..end].parse().unwrap()
    };
    after("silence_end:") - after("black_end:")
}

#[test]
fn a_beep_stays_with_its_flash() {
    let files = Files::new();
    let made = [
        ("opus.mkv", BEEP.to_owned(), "libopus"),
        ("opus.mp4", BEEP.to_owned(), "libopus"),
        ("opus.ts", BEEP.to_owned(), "libopus"),
        ("vorbis.mkv", BEEP.to_owned(), "libvorbis"),
        ("pcm.mov", BEEP.to_owned(), "pcm_s16le"),
        ("aac.mp4", BEEP.to_owned(), "aac"),
        ("late.mov", format!("-itsoffset 0.5 {BEEP}"), "pcm_s16le"),
        (
            "gap.mkv",
            BEEP.to_owned(),
            "flac -bsf:a noise=drop=between(n\\,5\\,15)",
        ),
    ];
    for (name, sound, codec) in made {
        let input = files.make(name, &format!("{FLASH} {sound} {H264} -c:a {codec}"));
        let before = beep_after_flash(&input);
        for extension in ["mp4", "mkv", "webm"] {
            let job = FileJob::new(&input, files.path(&format!("{name}.{extension}")));
            check(&job, "verified: ");
            let moved = beep_after_flash(&job.output) - before;
            // Matroska counts in milliseconds.
            assert!(moved.abs() < 0.0015, "{name} to {extension}: {moved} s");
        }
    }
}

#[test]
fn a_range_of_an_avi_with_b_frames_is_whole() {
    let files = Files::new();
    let input = files.make(
        "in.avi",
        &format!("{FLASH} {BEEP} -c:v mpeg4 -bf 2 -g 25 -c:a libmp3lame"),
    );
    for (start, end, n_frames) in [(1.5, Some(3.0), 38), (1.52, None, 62), (0.0, Some(2.5), 63)] {
        let pts = |secs: f64| Pts((secs * 1e9) as u64);
        let job = FileJob {
            start: Some(pts(start)),
            end: end.map(pts),
            overwrite: true,
            ..FileJob::new(&input, files.path("out.mp4"))
        };
        assert_eq!(
            check(&job, "not verified: ").frames_out,
            n_frames,
            "{start}"
        );
        let times = judged(&job.output, Kind::Picture);
        assert!(times.windows(2).all(|pair| pair[1] > pair[0]), "{times:?}");
        assert!(beep_after_flash(&job.output).abs() < 0.06, "{start}");
    }
}

#[test]
fn a_recording_that_does_not_say_its_length_is_cut() {
    let files = Files::new();
    let input = files.make(
        "live.webm",
        &format!("{PICTURE} -c:v libvpx -b:v 1M -f webm -live 1"),
    );
    for (start, n_frames) in [(3_000_000_000, 75), (0, 150)] {
        let job = FileJob {
            start: Some(Pts(start)),
            overwrite: true,
            ..FileJob::new(&input, files.path("out.mp4"))
        };
        assert_eq!(check(&job, "verified: ").frames_out, n_frames);
    }
}

#[test]
fn frames_at_one_time_are_all_kept() {
    let files = Files::new();
    let quick = "-f lavfi -i testsrc2=size=64x64:rate=2000:duration=1";
    let input = files.make("quick.mkv", &format!("{quick} {H264}"));
    for extension in ["mkv", "mp4", "webm"] {
        let job = FileJob::new(&input, files.path(&format!("out.{extension}")));
        assert_eq!(check(&job, "verified: ").frames_out, 2000, "{extension}");
        let entries = "-select_streams v -show_entries packet=pts_time";
        assert_eq!(ffprobe(&job.output, entries).lines().count(), 2000);
    }
}

#[test]
fn stills_before_the_picture_are_left_out() {
    let files = Files::new();
    for (name, still) in [
        ("jpeg.mkv", "-c:v:0 mjpeg -pix_fmt:v:0 yuvj420p"),
        ("png.mkv", "-c:v:0 png"),
    ] {
        let input = files.make(
            name,
            &format!(
                "-f lavfi -i testsrc2=size=96x64:rate=1:duration=1 {PICTURE} {SOUND} -map 0 -map 1 -map 2 {still} \
                 -c:v:1 libx264 -preset ultrafast -pix_fmt:v:1 yuv420p -c:a aac"
            ),
        );
        let job = FileJob::new(&input, files.path(&format!("{name}.mp4")));
        assert_eq!(check(&job, "verified: ").frames_out, 150);
        // The first stream is no reason to consider the second incomplete.
        let late = files.make(
            &format!("late.{name}"),
            &format!("-itsoffset 0.5 -i {} -map 0 -c copy", input.display()),
        );
        let late = FileJob::new(&late, files.path(&format!("late.{name}.mp4")));
        assert_eq!(check(&late, "verified: ").frames_out, 150);
        let size = ffprobe(
            &job.output,
            "-select_streams v -show_entries stream=width,height",
        );
        assert_eq!(size, "160,120");
    }
}

#[test]
fn a_picture_may_begin_after_the_sound_where_tracks_are_not_announced() {
    let files = Files::new();
    let input = files.make(
        "in.flv",
        &format!("-itsoffset 0.3 {PICTURE} {SOUND} {H264} -c:a aac -ar 44100"),
    );
    let job = FileJob::new(&input, files.path("out.mp4"));
    assert_eq!(check(&job, "not verified: ").frames_out, 150);
    assert_eq!(sound_hash(&job.output, ""), sound_hash(&input, ""));
}

/// Returns a digest of the samples of `path`'s sound.
fn samples(path: &Path) -> String {
    let path = path.to_str().unwrap();
    let args = [
        "-v",
        "error",
        "-i",
        path,
        "-map",
        "0:a",
        "-c:a",
        "pcm_f64le",
        "-f",
        "streamhash",
        "-",
    ];
    String::from_utf8(run_tool("ffmpeg", &args).stdout).unwrap()
}

#[test]
fn uncompressed_sound_keeps_its_samples() {
    let files = Files::new();
    let copied: &[&str] = &["mov", "mkv"];
    for (codec, extensions) in [
        ("pcm_s16be", copied),
        ("pcm_s24le", copied),
        ("pcm_s32le", copied),
        ("pcm_s32be", copied),
        ("pcm_f32le", &["mkv"]),
        ("pcm_f64le", &["mkv"]),
    ] {
        let input = files.make(
            &format!("{codec}.mov"),
            &format!("{FLASH} {BEEP} {H264} -c:a {codec}"),
        );
        for extension in extensions {
            let job = FileJob::new(&input, files.path(&format!("{codec}.out.{extension}")));
            check(&job, "verified: ");
            assert_eq!(samples(&job.output), samples(&input), "{codec} {extension}");
        }
        let job = FileJob::new(&input, files.path(&format!("{codec}.mp4")));
        check(&job, "verified: ");
        assert!(beep_after_flash(&job.output).abs() < 0.001, "{codec}");
    }
}

#[test]
fn sound_of_many_channels_comes_out() {
    let files = Files::new();
    for n_channels in 3..=8 {
        let beeps = vec!["0.5*sin(6283*t)*between(t\\,2\\,2.2)"; n_channels].join("|");
        let input = files.make(
            &format!("{n_channels}.mov"),
            &format!("{FLASH} -f lavfi -i aevalsrc={beeps}:s=48000:d=4 {H264} -c:a pcm_s16le"),
        );
        for extension in ["mp4", "ts", "webm", "mov", "mkv"] {
            let job = FileJob::new(&input, files.path(&format!("{n_channels}.out.{extension}")));
            check(&job, "verified: ");
            // Opus is heard slightly before a sudden beep (pre-echo).
            let tolerance = if extension == "webm" { 0.003 } else { 0.0015 };
            let moved = beep_after_flash(&job.output).abs();
            assert!(moved < tolerance, "{n_channels} {extension}: {moved} s");
            let heard = match extension {
                "mp4" | "ts" | "webm" => 6,
                _ => n_channels,
            };
            assert_eq!(channels(&job.output), heard, "{n_channels} {extension}");
            if ["mov", "mkv"].contains(&extension) {
                assert_eq!(
                    samples(&job.output),
                    samples(&input),
                    "{n_channels} {extension}"
                );
            }
        }
    }
}

/// matroskademux 1.22 seeks to the frame that decoding begins with, past the sound that is stored before it.
#[test]
fn a_long_packet_that_a_range_of_matroska_begins_in_is_heard() {
    let files = Files::new();
    let input = files.make(
        "long.mkv",
        "-f lavfi -i testsrc2=size=160x120:rate=25:duration=12 -f lavfi -i sine=frequency=440:duration=12 \
         -c:v libx264 -preset ultrafast -g 1 -c:a flac -frame_size 32768",
    );
    for (extension, start_ms) in [("mp4", 1530), ("webm", 9530), ("ts", 9530)] {
        let job = FileJob {
            overwrite: true,
            start: Some(Pts(start_ms * 1_000_000)),
            end: Some(Pts((start_ms + 1500) * 1_000_000)),
            audio: AudioMode::Encode,
            ..FileJob::new(&input, files.path(&format!("out.{extension}")))
        };
        let verification = check(&job, "verified: ");
        assert_eq!(verification.frames_out, 38, "{extension}");
        let (video, sound) = (
            judged(&job.output, Kind::Picture),
            judged(&job.output, Kind::Sound),
        );
        let late_micros = sound[0] - video[0];
        assert!(late_micros < 1000, "{extension}: {late_micros} µs");
    }
}

/// qtmux and matroskamux 1.22 would label it such that players do not know how to read it.
#[test]
fn sound_in_differences_of_samples_can_be_heard() {
    let files = Files::new();
    for codec in ["adpcm_ima_wav", "adpcm_ms"] {
        for source in ["mkv", "mov"] {
            let name = format!("{codec}.{source}");
            let input = files.make(&name, &format!("{FLASH} {BEEP} {H264} -c:a {codec}"));
            for (extension, start) in [
                ("mkv", None),
                ("mkv", Some(1)),
                ("mov", None),
                ("webm", None),
            ] {
                let job = FileJob {
                    overwrite: true,
                    start: start.map(|start| Pts(start * 1_000_000_000)),
                    ..FileJob::new(&input, files.path(&format!("out.{extension}")))
                };
                check(&job, "verified: ");
                // Both codecs are heard slightly before a sudden beep.
                let moved = beep_after_flash(&job.output).abs();
                assert!(moved < 0.006, "{name} to {extension}: {moved} s");
                let found = ffprobe(
                    &job.output,
                    "-select_streams a -show_entries stream=codec_name",
                );
                assert!(!found.contains("adpcm"), "{name} to {extension}: {found}");
            }
        }
    }
}

/// Packets whose lengths no block states; the last one is shorter than the others.
#[test]
fn sound_of_matroska_ends_where_its_last_packet_does() {
    let files = Files::new();
    for (sound, container) in [
        ("wavpack -ar 22050 -ac 1", "mkv"),
        ("pcm_s24le -ar 22050", "mov"),
        ("pcm_s16le -ar 22050 -ac 1", "mov"),
        ("pcm_s16le -ar 44100 -ac 2", "mkv"),
    ] {
        let name = sound.split(' ').next().unwrap();
        let input = files.make(
            &format!("{name}.{container}"),
            &format!("{PICTURE} {SOUND} {H264} -c:a {sound} -t 4.9"),
        );
        for (start, end) in [(None, None), (Some(3_999), None), (None, Some(4_683))] {
            let millis = |millis: u64| Pts(millis * 1_000_000);
            let job = FileJob {
                overwrite: true,
                start: start.map(millis),
                end: end.map(millis),
                ..FileJob::new(&input, files.path("out.mkv"))
            };
            check(&job, "verified: ");
        }
        let contents = demux::read(&input).unwrap();
        let end = contents.of(Kind::Sound).next().unwrap().end().unwrap();
        let secs = heard_secs(&input);
        assert!(
            (end as f64 / 1e9 - secs).abs() < 0.002,
            "{name}: {end} ns, {secs} s"
        );
    }
}

/// qtmux 1.22 has 16 bits for the sample rate of uncompressed sound.
#[test]
fn sample_rates_beyond_16_bits_are_right() {
    let files = Files::new();
    for rate in [48_000, 96_000, 192_000] {
        let input = files.make(
            &format!("{rate}.mkv"),
            &format!("{FLASH} {BEEP} {H264} -c:a pcm_s24le -ar {rate}"),
        );
        let job = FileJob::new(&input, files.path(&format!("{rate}.mov")));
        check(&job, "verified: ");
        let found = ffprobe(
            &job.output,
            "-select_streams a -show_entries stream=codec_name,sample_rate",
        );
        let wanted = match rate {
            48_000 => "pcm_s24le,48000",
            96_000 => "aac,96000",
            _ => "aac,48000",
        };
        assert_eq!(found.trim(), wanted);
        let moved = beep_after_flash(&job.output).abs();
        assert!(moved < 0.011, "{rate}: {moved} s");
    }
}

/// A packet that begins before the range and ends behind it.
#[test]
fn a_range_within_one_sound_packet_is_heard() {
    let files = Files::new();
    let input = film(&files, "wavpack.mkv", "wavpack");
    for (start, end) in [(1_050, Some(1_400)), (5_700, None)] {
        let millis = |millis: u64| Pts(millis * 1_000_000);
        let job = FileJob {
            overwrite: true,
            start: Some(millis(start)),
            end: end.map(millis),
            ..FileJob::new(&input, files.path("out.mkv"))
        };
        check(&job, "verified: ");
        let (secs, expected) = (heard_secs(&job.output), end.unwrap_or(6_000) - start);
        assert!(
            (secs - expected as f64 / 1e3).abs() < 0.05,
            "{start}: {secs} s"
        );
    }
}

/// tsdemux 1.22 takes the end of the track that begins last for that of all, and loses it where the clock wraps.
#[test]
fn ranges_of_transport_streams_reach_their_end() {
    let files = Files::new();
    let cut = {
        let whole = film(&files, "whole.ts", "ac3");
        files.make("cut.ts", &format!("-ss 2.3 -i {} -c copy", whole.display()))
    };
    let late = files.make(
        "late.ts",
        &format!("-itsoffset 1.3 {PICTURE} {SOUND} {H264} -c:a mp2"),
    );
    let wrap = film(&files, "wrap.ts", "mp2 -output_ts_offset 95440.9");
    for (input, start) in [
        (&cut, 3_000),
        (&late, 5_500),
        (&wrap, 3_000),
        (&wrap, 5_500),
    ] {
        let all = judged(input, Kind::Picture);
        let first = all[0].min(judged(input, Kind::Sound)[0]);
        let begin = match input == &cut {
            // Sound that is heard for longer before the picture belongs to the presentation.
            true => first,
            false if input == &late => first,
            false => all[0],
        };
        let expected = all
            .iter()
            .filter(|time| **time - begin > start * 1000 - 39_000)
            .count();
        for _ in 0..2 {
            let job = FileJob {
                overwrite: true,
                start: Some(Pts(start as u64 * 1_000_000)),
                ..FileJob::new(input, files.path("out.mkv"))
            };
            check(&job, "verified: ");
            let found = judged(&job.output, Kind::Picture).len();
            assert!(
                found.abs_diff(expected) <= 1,
                "{input:?} {start}: {found} of {expected}"
            );
        }
    }
    let job = FileJob {
        start: Some(Pts(60_000_000_000)),
        ..FileJob::new(&cut, files.path("none.mkv"))
    };
    check_refused(&job, "the video has no frames from 60 s onward: ");
}

/// qtdemux 1.22 begins with the key frame that is stored before the start of the range; frames that are shown before it
/// may be stored behind it.
#[test]
fn ranges_that_begin_before_an_open_group_are_whole() {
    let files = Files::new();
    for codec in [
        "mpeg4 -bf 2",
        "mpeg2video -bf 2",
        "libx265 -preset ultrafast -x265-params log-level=none:open-gop=1:keyint=20:bframes=4",
    ] {
        let name = codec.split(' ').next().unwrap();
        let input = files.make(
            &format!("{name}.mp4"),
            &format!("{PICTURE} {SOUND} -pix_fmt yuv420p -c:v {codec} -c:a aac"),
        );
        for millis in (1_405..1_800).step_by(40) {
            let job = FileJob {
                overwrite: true,
                start: Some(Pts(millis * 1_000_000)),
                ..FileJob::new(&input, files.path("out.mp4"))
            };
            check(&job, "verified: ");
            let found = judged(&job.output, Kind::Picture).len() as u64;
            assert_eq!(found, 150 - millis / 40, "{name} {millis}");
        }
    }
}

/// Frames that a decoder cannot show, because they refer to others before the cut, are not missing.
#[test]
fn files_cut_at_an_open_group_raise_no_alarm() {
    let files = Files::new();
    for (codec, extension) in [
        (
            "libx265 -preset ultrafast -x265-params log-level=none:open-gop=1:keyint=25:bframes=4",
            "mkv",
        ),
        (
            "libx264 -preset ultrafast -x264-params open-gop=1:keyint=20:bframes=3",
            "mkv",
        ),
        (
            "libx265 -preset ultrafast -x265-params log-level=none:open-gop=1:keyint=25:bframes=4",
            "ts",
        ),
    ] {
        let name = codec.split(' ').next().unwrap();
        let whole = files.make(
            &format!("{name}.whole.mkv"),
            &format!("{PICTURE} {SOUND} -pix_fmt yuv420p -c:v {codec} -c:a aac"),
        );
        let cut = files.make(
            &format!("{name}.cut.{extension}"),
            &format!("-ss 2.3 -i {} -c copy", whole.display()),
        );
        let job = FileJob {
            overwrite: true,
            ..FileJob::new(&cut, files.path("out.mkv"))
        };
        check(&job, "verified: ");
        let (before, after) = (
            judged(&cut, Kind::Picture),
            judged(&job.output, Kind::Picture),
        );
        assert_eq!(before.len(), after.len(), "{name}.{extension}");
    }
}

/// The ffmpeg filter that removes the transport stream headers from AAC.
const WITHOUT_ADTS: &str = "-bsf:a aac_adtstoasc";

/// Returns the number of channels that ffprobe's decoder finds in the sound.
fn channels(path: &Path) -> usize {
    let found = ffprobe(path, "-select_streams a:0 -show_entries stream=channels");
    // A track of a transport stream is listed twice, because its program lists it, too.
    let first = found.lines().next().unwrap();
    first.trim_matches(',').parse().unwrap()
}

#[test]
fn layouts_without_a_number_in_adts_are_encoded_anew() {
    let files = Files::new();
    for (layout, is_copied) in [
        ("mono", true),
        ("3.0", true),
        ("5.1", true),
        ("7.1", true),
        ("7.1(wide)", false),
        ("2.1", false),
        ("quad", false),
        ("5.1(side)", false),
        ("6.1", false),
    ] {
        let name = layout.replace(['(', ')'], "");
        let sound = format!("{BEEP},aformat=channel_layouts={layout}");
        let input = files.make(
            &format!("{name}.mp4"),
            &format!("{FLASH} {sound} {H264} -c:a aac"),
        );
        let job = FileJob::new(&input, files.path(&format!("{name}.ts")));
        check(&job, "verified: ");
        let heard = if is_copied { channels(&input) } else { 6 };
        assert_eq!(channels(&job.output), heard, "{layout}");
        let moved = beep_after_flash(&job.output) - beep_after_flash(&input);
        assert!(moved.abs() < 0.0015, "{layout}: {moved} s");
        let is_equal = sound_hash(&job.output, WITHOUT_ADTS) == sound_hash(&input, "");
        assert_eq!(is_equal, is_copied, "{layout}");
    }
}

#[test]
fn seven_channels_and_bass_of_a_transport_stream_keep_their_number() {
    let files = Files::new();
    let sound = format!("{BEEP},aformat=channel_layouts=7.1");
    let input = files.make("in.ts", &format!("{FLASH} {sound} {H264} -c:a aac"));
    for extension in ["mp4", "mov", "mkv"] {
        let job = FileJob::new(&input, files.path(&format!("out.{extension}")));
        check(&job, "verified: ");
        assert_eq!(channels(&job.output), 8, "{extension}");
        assert_eq!(
            sound_hash(&job.output, ""),
            sound_hash(&input, WITHOUT_ADTS),
            "{extension}"
        );
    }
}

/// An encoder holds back the last samples before a gap, and would output them after it.
#[test]
fn encoded_sound_stops_where_it_did() {
    let files = Files::new();
    for codec in ["pcm_s16le", "flac", "aac"] {
        let whole = format!("{PICTURE} -f lavfi -i sine=500:r=48000:d=6 {H264} -c:a {codec}");
        let whole = files.make(&format!("{codec}.mkv"), &whole);
        let input = with_gap(&files, &whole, 0.65, 1.2);
        let before = silence(&input);
        for extension in ["mp4", "mov", "ts", "mkv", "webm"] {
            let job = FileJob {
                audio: AudioMode::Encode,
                ..FileJob::new(&input, files.path(&format!("{codec}.out.{extension}")))
            };
            check(&job, "verified: ");
            // What ffmpeg plays of a codec's run-in shifts both ends equally.
            let after = silence(&job.output);
            let moved = [after.0 - before.0, after.1 - before.1];
            let name = format!("{codec} {extension}: {moved:?} s");
            assert!((moved[0] - moved[1]).abs() < 0.005, "{name}");
            assert!(moved[0].abs() < 0.022, "{name}");
        }
    }
}

/// Returns `whole` without the sound packets from `begin` to `end`, in seconds.
fn with_gap(files: &Files, whole: &Path, begin: f64, end: f64) -> PathBuf {
    let extension = whole.extension().unwrap().to_str().unwrap();
    let drop = format!("-bsf:a noise=drop='between(pts*tb\\,{begin}\\,{end})'");
    let path = format!(
        "gap.{}.{extension}",
        whole.file_stem().unwrap().to_str().unwrap()
    );
    files.make(
        &path,
        &format!("-i {} -map 0 -c copy {drop}", whole.display()),
    )
}

/// Gaps near the end, or at the beginning of a range, affect the lengths and the beginning of sound.
#[test]
fn gaps_at_the_edges_raise_no_alarm() {
    let files = Files::new();
    let film = |extension: &str| {
        let name = format!("film.{extension}");
        files.make(&name, &format!("{FLASH} {BEEP} {H264} -c:a aac"))
    };
    let late_gap = with_gap(&files, &film("mkv"), 3.2, 3.7);
    for extension in ["mkv", "mp4"] {
        let job = FileJob::new(&late_gap, files.path(&format!("late.{extension}")));
        check(&job, "verified: ");
    }
    let gap = with_gap(&files, &film("mp4"), 2.0, 2.5);
    for start in [1.8, 2.0, 2.2] {
        let job = FileJob {
            audio: AudioMode::Encode,
            start: Some(Pts((start * 1e9) as u64)),
            overwrite: true,
            ..FileJob::new(&gap, files.path("range.mp4"))
        };
        check(&job, "verified: ");
    }
    let beep = BEEP.replace("-f lavfi", "-itsoffset 1.5 -f lavfi");
    let late = files.make("late.mp4", &format!("{FLASH} {beep} {H264} -c:a aac"));
    for extension in ["mp4", "ts", "mkv"] {
        let job = FileJob {
            audio: AudioMode::Encode,
            end: Some(Pts(1_100_000_000)),
            ..FileJob::new(&late, files.path(&format!("silent.{extension}")))
        };
        check(&job, "verified: ");
        let tracks = ffprobe(&job.output, "-select_streams a -show_entries stream=index");
        assert_eq!(tracks.trim(), "", "{extension}");
    }
}

/// Returns the loudness of each of `frequencies` in each channel.
///
/// # Shapes
/// - result: `[channels][frequencies]`
fn loudness(path: &Path, frequencies: &[f64]) -> Vec<Vec<f64>> {
    let n_channels = channels(path);
    let path = path.to_str().unwrap();
    let args = "-map 0:a:0 -ss 1 -t 1 -ar 48000 -f f32le -";
    let mut all = vec!["-v", "error", "-i", path];
    all.extend(args.split(' '));
    let bytes = run_tool("ffmpeg", &all).stdout;
    let samples: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    let n_moments = samples.len() / n_channels;
    let amplitude = |channel: usize, frequency: f64| {
        let phases = (0..n_moments).map(|moment| {
            let sample = f64::from(samples[moment * n_channels + channel]);
            let angle = std::f64::consts::TAU * frequency * moment as f64 / 48_000.0;
            [sample * angle.cos(), sample * angle.sin()]
        });
        let sum = phases.fold([0.0, 0.0], |sum, part| [sum[0] + part[0], sum[1] + part[1]]);
        2.0 * sum[0].hypot(sum[1]) / n_moments as f64
    };
    (0..n_channels)
        .map(|channel| frequencies.iter().map(|f| amplitude(channel, *f)).collect())
        .collect()
}

/// Each channel has its own tone, which keeps its loudness and its place, in 5.1 if there are more than two channels.
#[test]
fn encoded_channels_stay_in_their_places() {
    const HALF: f64 = std::f64::consts::FRAC_1_SQRT_2;
    let files = Files::new();
    // The place and loudness of each channel in 5.1 (left, right, center, LFE, back left and back right).
    let whole = |place: usize| vec![(place, 1.0)];
    let layouts = [
        ("stereo", vec![whole(0), whole(1)]),
        ("3.0", vec![whole(0), whole(1), whole(2)]),
        ("quad", vec![whole(0), whole(1), whole(4), whole(5)]),
        (
            "5.0",
            vec![whole(0), whole(1), whole(2), whole(4), whole(5)],
        ),
        ("5.1", (0..6).map(whole).collect()),
        ("5.1(side)", (0..6).map(whole).collect()),
        (
            "6.1",
            vec![
                whole(0),
                whole(1),
                whole(2),
                whole(3),
                vec![(4, HALF), (5, HALF)],
                whole(4),
                whole(5),
            ],
        ),
        (
            "7.1",
            vec![
                whole(0),
                whole(1),
                whole(2),
                whole(3),
                whole(4),
                whole(5),
                vec![(4, HALF)],
                vec![(5, HALF)],
            ],
        ),
    ];
    for (layout, places) in layouts {
        // An LFE channel carries nothing above 120 Hz.
        let bass = places.iter().position(|places| places == &whole(3));
        let frequency = |channel| match Some(channel) == bass {
            true => 90.0,
            false => 300.0 + 200.0 * channel as f64,
        };
        let frequencies: Vec<f64> = (0..places.len()).map(frequency).collect();
        let tones = frequencies.iter().map(|f| format!("0.2*sin({f}*2*PI*t)"));
        let tones = tones.collect::<Vec<_>>().join("|");
        let sound = format!("-f lavfi -i aevalsrc={tones}:c={layout}:s=48000:d=4");
        let name = layout.replace(['(', ')'], "");
        for codec in ["flac", "pcm_s16le"] {
            let input = files.make(
                &format!("{name}.{codec}.mkv"),
                &format!("{FLASH} {sound} {H264} -c:a {codec}"),
            );
            // Matroska does not specify the places of uncompressed channels.
            if codec == "pcm_s16le" && !["stereo", "3.0", "5.1"].contains(&layout) {
                continue;
            }
            for extension in ["mp4", "ts", "webm"] {
                let job = FileJob {
                    audio: AudioMode::Encode,
                    ..FileJob::new(&input, files.path(&format!("{name}.{codec}.{extension}")))
                };
                check(&job, "verified: ");
                let heard = loudness(&job.output, &frequencies);
                for (channel, heard) in heard.iter().enumerate() {
                    for (tone, heard) in heard.iter().enumerate() {
                        let gain = places[tone].iter().find(|(place, _)| *place == channel);
                        let expected = gain.map_or(0.0, |(_, gain)| 0.2 * gain);
                        assert!(
                            (heard - expected).abs() < 0.012,
                            "{layout} {codec} {extension}: tone {tone} in channel {channel} at {heard}, not {expected}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn cuts_by_ffmpeg_raise_no_alarm() {
    let files = Files::new();
    let whole = files.make("whole.mkv", &format!("{PICTURE} {SOUND} {H264} -c:a aac"));
    for start in [0.5, 0.7, 1.3, 2.05] {
        let input = files.make(
            &format!("{start}.mp4"),
            &format!("-ss {start} -i {} -map 0 -c copy", whole.display()),
        );
        for extension in ["mkv", "mp4"] {
            let job = FileJob::new(&input, files.path(&format!("{start}.out.{extension}")));
            check(&job, "verified: ");
        }
    }
}

#[test]
fn uncompressed_sound_of_discs_is_decoded_or_refused() {
    let files = Files::new();
    let disc = |name: &str, layout: &str, format: &str| {
        let sound = format!("{BEEP},aformat=channel_layouts={layout}");
        files.make(
            name,
            &format!("{FLASH} {sound} {H264} -c:a pcm_bluray -sample_fmt {format}"),
        )
    };
    let job = FileJob::new(disc("16.m2ts", "stereo", "s16"), files.path("16.mp4"));
    run(&job).unwrap();
    let moved = beep_after_flash(&job.output) - beep_after_flash(&job.input);
    assert!(moved.abs() < 0.0015, "{moved} s");
    for input in [
        disc("24.m2ts", "stereo", "s32"),
        disc("mono.m2ts", "mono", "s16"),
    ] {
        let job = FileJob::new(&input, files.path("refused.mp4"));
        let refusal = run(&job).unwrap_err().to_string();
        assert_eq!(
            refusal,
            format!(
                "GStreamer cannot decode uncompressed disc audio of one channel or of more than 16 bits correctly; use \
                 --audio drop to leave it out: {input:?}"
            )
        );
    }
}

#[test]
fn gaps_in_uncompressed_sound_are_refused_with_the_way_out_where_it_is_copied_into_mov() {
    let files = Files::new();
    let whole = files.make("pcm.mkv", &format!("{FLASH} {BEEP} {H264} -c:a pcm_s16le"));
    let input = with_gap(&files, &whole, 1.0, 1.5);
    let job = FileJob::new(&input, files.path("out.mov"));
    let refusal = run(&job).unwrap_err().to_string();
    let told = "the sound has gaps, which the output cannot hold in uncompressed sound; use --audio encode: ";
    assert!(refusal.starts_with(told), "{refusal}");
}

/// Returns the begin and end of the one silent part of the sound in seconds, by ffmpeg, including gaps.
fn silence(path: &Path) -> (f64, f64) {
    let filters = "aresample=async=1,silencedetect=noise=-40dB:d=0.1";
    let path = path.to_str().unwrap();
    let args = ["-v", "info", "-i", path, "-af", filters, "-f", "null", "-"];
    let log = String::from_utf8(run_tool("ffmpeg", &args).stderr).unwrap();
    let after = |name: &str| -> f64 {
        let rest = log.split(name).nth(1).unwrap().trim_start();
        rest.split_whitespace().next().unwrap().parse().unwrap()
    };
    (after("silence_start:"), after("silence_end:"))
}

#[test]
fn aac_of_a_transport_stream_whose_layout_has_no_number_is_left_out_and_told() {
    let files = Files::new();
    let sound = format!("{BEEP},aformat=channel_layouts=quad");
    let quad = files.make("quad.mp4", &format!("{FLASH} {sound} {H264} -c:a aac"));
    let copy = format!("-i {} -c copy", quad.display());
    for name in ["in.ts", "in.m2ts"] {
        let input = files.make(name, &copy);
        for (audio, complaint) in [
            (AudioMode::Copy, Some("the result has 0 of 1 audio tracks")),
            (AudioMode::Drop, None),
        ] {
            let job = FileJob {
                audio,
                overwrite: true,
                ..FileJob::new(&input, files.path("out.mp4"))
            };
            let n_frames = run(&job).unwrap();
            let verification = verify::compare(&job, None).unwrap().with_written(n_frames);
            let said = verification.complaint();
            assert_eq!(said.as_deref(), complaint, "{name}: {verification}");
        }
    }
}

/// Demuxers and parsers report less about E-AC-3 than its decoder.
#[test]
fn channels_that_only_the_decoder_tells_are_encoded() {
    let files = Files::new();
    for (layout, n_channels) in [
        ("stereo", 2),
        ("quad", 4),
        ("5.0(side)", 5),
        ("5.1(side)", 6),
    ] {
        for from in ["mkv", "ts"] {
            let name = layout.replace(['(', ')'], "");
            let sound = format!("{BEEP},aformat=channel_layouts={layout}");
            let input = files.make(
                &format!("{name}.{from}"),
                &format!("{FLASH} {sound} {H264} -c:a eac3"),
            );
            for extension in ["webm", "mkv", "mp4", "ts"] {
                let job = FileJob {
                    audio: AudioMode::Encode,
                    ..FileJob::new(&input, files.path(&format!("{name}.{from}.{extension}")))
                };
                check(&job, "verified: ");
                let heard = if n_channels > 2 { 6 } else { n_channels };
                assert_eq!(channels(&job.output), heard, "{layout} {from} {extension}");
            }
        }
    }
}

#[test]
fn ac3_of_a_blu_ray_comes_out() {
    let files = Files::new();
    let input = files.make("in.m2ts", &format!("{FLASH} {BEEP} {H264} -c:a ac3"));
    for extension in ["mp4", "mkv", "ts"] {
        let job = FileJob::new(&input, files.path(&format!("out.{extension}")));
        check(&job, "verified: ");
        let moved = beep_after_flash(&job.output) - beep_after_flash(&input);
        assert!(moved.abs() < 0.0015, "{extension}: {moved} s");
    }
}

#[test]
fn dts_of_a_transport_stream_comes_out() {
    let files = Files::new();
    for name in ["in.ts", "in.m2ts"] {
        let input = files.make(name, &format!("{FLASH} {BEEP} {H264} -c:a dca -strict -2"));
        let read = packets(&input, Kind::Sound);
        for extension in ["mp4", "mkv", "ts"] {
            let job = FileJob::new(&input, files.path(&format!("{name}.out.{extension}")));
            check(&job, "verified: ");
            let moved = beep_after_flash(&job.output) - beep_after_flash(&input);
            assert!(moved.abs() < 0.0015, "{name} {extension}: {moved} s");
        }
        let hashes = |packets: &[Packet]| packets.iter().map(|p| p.hash).collect::<Vec<_>>();
        for extension in ["mkv", "ts"] {
            let copied = packets(&files.path(&format!("{name}.out.{extension}")), Kind::Sound);
            assert_eq!(hashes(&copied), hashes(&read), "{name} {extension}");
        }
        // Recordings may begin in the middle of a packet or with other data.
        let bytes = std::fs::read(&input).unwrap();
        for n_junk in [1, 188, 1000] {
            let late = files.write(
                &format!("late.{name}"),
                [&vec![b'x'; n_junk][..], &bytes].concat(),
            );
            let job = FileJob::new(&late, files.path(&format!("{n_junk}.{name}.mkv")));
            check(&job, "verified: ");
            let copied = packets(&job.output, Kind::Sound);
            assert_eq!(
                hashes(&copied),
                hashes(&read),
                "{name} after {n_junk} bytes"
            );
        }
    }
}

#[test]
fn pictures_that_no_parser_gives_a_length_keep_the_last_one() {
    let files = Files::new();
    for (name, codec) in [
        ("vp9.mp4", "-c:v libvpx-vp9 -b:v 1M"),
        ("av1.mp4", "-c:v libsvtav1 -preset 12"),
        ("png.mov", "-c:v png"),
    ] {
        let input = files.make(name, &format!("{FLASH} {BEEP} {codec} -c:a aac"));
        for (output, chosen) in [
            ("a.mp4", None),
            ("b.mov", None),
            ("c.mp4", Some(VideoCodec::X265)),
        ] {
            let job = FileJob {
                codec: chosen,
                ..FileJob::new(&input, files.path(&format!("{name}.{output}")))
            };
            check(&job, "verified: ");
            assert_eq!(
                judged(&job.output, Kind::Picture),
                judged(&input, Kind::Picture)
            );
        }
    }
}

#[test]
fn matroska_loses_no_picture_at_its_edges() {
    let files = Files::new();
    // The first frame comes after the first sound.
    let input = files.make(
        "mpeg2.mkv",
        &format!("{PICTURE} {SOUND} -c:v mpeg2video -bf 2 -c:a mp2"),
    );
    for extension in ["mkv", "mp4", "ts"] {
        let job = FileJob::new(&input, files.path(&format!("out.{extension}")));
        assert_eq!(check(&job, "verified: ").frames_out, 150, "{extension}");
    }
    for (name, codec) in [
        // With sound, GStreamer's MPEG-4 parser itself raises errors.
        ("mpeg4", "mpeg4 -bf 2 -an"),
        ("h264", "libx264 -bf 3 -c:a aac"),
        ("mpeg2", "mpeg2video -bf 2 -c:a aac"),
    ] {
        let input = files.make(
            &format!("{name}.range.mkv"),
            &format!("{PICTURE} {SOUND} -c:v {codec}"),
        );
        for (start, end) in [(1000, 2000), (0, 2000), (1000, 5700), (2400, 2600)] {
            for extension in ["mp4", "mkv"] {
                let job = FileJob {
                    start: (start > 0).then_some(Pts(start * 1_000_000)),
                    end: Some(Pts(end * 1_000_000)),
                    overwrite: true,
                    ..FileJob::new(&input, files.path(&format!("range.{extension}")))
                };
                check(&job, "verified: ");
            }
        }
    }
}

#[test]
fn ranges_of_matroska_without_an_index_begin_with_a_picture() {
    let files = Files::new();
    for (name, codec) in [
        (
            "h264.mkv",
            "libx264 -g 250 -sc_threshold 0 -bf 2 -pix_fmt yuv420p -c:a aac",
        ),
        ("vp9.webm", "libvpx-vp9 -b:v 1M -g 999 -c:a libopus"),
        ("mpeg2.mkv", "mpeg2video -g 100 -bf 2 -q:v 2 -c:a mp2"),
    ] {
        let input = files.make(name, &format!("{PICTURE} {SOUND} -c:v {codec} -live 1"));
        let job = FileJob {
            start: Some(Pts(3_000_000_000)),
            end: Some(Pts(4_000_000_000)),
            crf: Some(5),
            ..FileJob::new(&input, files.path(&format!("{name}.mkv")))
        };
        check(&job, "verified: ");
        // The first frame shown is the one that the source shows at that time.
        let gray = |path: &Path, from: &str| {
            let raw = path.with_extension("raw");
            let args = format!(
                "-i {} {from} -frames:v 1 -vf scale=16:12:flags=area -pix_fmt gray -f rawvideo",
                path.display()
            );
            ffmpeg(&args, &raw);
            std::fs::read(raw).unwrap()
        };
        let (there, here) = (gray(&input, "-ss 3.06"), gray(&job.output, "-ss 0.06"));
        let pairs = there.iter().zip(&here).map(|(a, b)| a.abs_diff(*b));
        let mean = pairs.map(f64::from).sum::<f64>() / there.len() as f64;
        assert!(mean < 6.0, "{name}: {mean}");
    }
}

#[test]
fn a_late_matroska_file_has_ranges() {
    let files = Files::new();
    for secs in [5, 36_000] {
        let input = film(
            &files,
            &format!("{secs}.mkv"),
            &format!("aac -output_ts_offset {secs}"),
        );
        for (start, end) in [(1300, 2700), (0, 2000), (4000, 5900)] {
            let job = FileJob {
                start: (start > 0).then_some(Pts(start * 1_000_000)),
                end: Some(Pts(end * 1_000_000)),
                overwrite: true,
                ..FileJob::new(&input, files.path("out.mp4"))
            };
            check(&job, "verified: ");
        }
    }
}

/// Opus is presented earlier than its blocks state, by its codec delay.
#[test]
fn ranges_of_matroska_with_opus_begin_where_they_are_asked_to() {
    let files = Files::new();
    for (name, args) in [
        ("plain.webm", "-c:v libvpx -b:v 500k -c:a libopus"),
        ("late.mkv", "-c:v libx264 -c:a libopus -output_ts_offset 5"),
        (
            "half.mkv",
            "-c:v libx264 -c:a libopus -output_ts_offset 0.5",
        ),
        ("aac.mkv", "-c:v libx264 -c:a aac -output_ts_offset 0.5"),
    ] {
        let scene = "-f lavfi -i testsrc2=size=320x240:rate=25:duration=4 -f lavfi -i sine=frequency=440:duration=4";
        let input = files.make(name, &format!("{scene} -pix_fmt yuv420p {args}"));
        for (start, end) in [
            (None, None),
            (Some(1_010), None),
            (Some(1_300), Some(2_700)),
        ] {
            let millis = |time: u64| Pts(time * 1_000_000);
            for to in ["mkv", "webm", "mp4"] {
                if (name, to) == ("aac.mkv", "webm") {
                    continue;
                }
                let job = FileJob {
                    start: start.map(millis),
                    end: end.map(millis),
                    overwrite: true,
                    ..FileJob::new(&input, files.path(&format!("out.{to}")))
                };
                run(&job).unwrap();
                let verification = verify::compare(&job, None).unwrap();
                assert!(
                    verification.whole(),
                    "{name} {start:?} {to}: {verification}"
                );
                let shift = verification.max_sound_shift_nanos;
                assert!(shift <= 1_000_000, "{name} {start:?} {to}: {verification}");
            }
        }
    }
}

/// Containers round frame durations, or state them in storage order.
#[test]
fn a_range_begins_with_the_frame_that_is_shown_there() {
    let files = Files::new();
    let vfr =
        "testsrc2=size=160x120:rate=60:duration=6,select='not(mod(n\\,7))+lt(mod(n\\,50)\\,10)'";
    for (name, picture, args, starts) in [
        (
            "30.mkv",
            "testsrc2=size=160x120:rate=30:duration=4",
            "-c:v libx264 -c:a aac",
            &[1_000, 1_007, 1_021, 2_034][..],
        ),
        (
            "30.webm",
            "testsrc2=size=160x120:rate=30:duration=4",
            "-c:v libvpx -b:v 1M -c:a libopus",
            &[1_000, 1_007],
        ),
        (
            "ntsc.mkv",
            "testsrc2=size=160x120:rate=30000/1001:duration=4",
            "-c:v mpeg4 -c:a flac",
            &[1_001, 2_002],
        ),
        (
            "vfr.mp4",
            vfr,
            "-vsync vfr -c:v libx264 -c:a aac",
            &[500, 1_010, 2_000, 2_900, 4_000],
        ),
        (
            "vfr.mkv",
            vfr,
            "-vsync vfr -c:v libx264 -bf 0 -c:a aac",
            &[500, 2_000, 4_000],
        ),
    ] {
        let sound = "-f lavfi -i sine=frequency=440:sample_rate=48000:duration=3";
        let input = files.make(
            name,
            &format!("-f lavfi -i {picture} {sound} -pix_fmt yuv420p {args}"),
        );
        for start in starts {
            for end in [None, Some(start + 900)] {
                for to in ["mp4", "mkv"] {
                    let millis = |time: u64| Pts(time * 1_000_000);
                    let job = FileJob {
                        start: Some(millis(*start)),
                        end: end.map(millis),
                        overwrite: true,
                        ..FileJob::new(&input, files.path(&format!("out.{to}")))
                    };
                    check(&job, "verified: ");
                    // The frame shown at the start, and those after it, by ffprobe.
                    let all = judged(&input, Kind::Picture);
                    let micros = |millis: u64| millis as i64 * 1_000;
                    let (from, until) = (micros(*start), end.map_or(i64::MAX, micros));
                    let begun = all.iter().filter(|time| **time <= from + 999).count();
                    let shown: Vec<i64> =
                        all.iter().skip(begun.saturating_sub(1)).copied().collect();
                    let shown = shown.iter().filter(|time| **time < until);
                    let expected: Vec<i64> = shown.map(|time| (time - from).max(0)).collect();
                    let found = judged(&job.output, Kind::Picture);
                    assert_eq!(found.len(), expected.len(), "{name} {start} {end:?} {to}");
                    for (found_at, expected_at) in found.iter().zip(&expected) {
                        let error = (found_at - found[0]) - (expected_at - expected[0]);
                        assert!(
                            error.abs() <= 1_100,
                            "{name} {start} {end:?} {to}: {found_at} for {expected_at}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn opus_in_mp4_and_mov_says_its_delay() {
    let files = Files::new();
    let input = film(&files, "in.mkv", "libopus");
    let late = files.make(
        "late.mkv",
        &format!("{PICTURE} -itsoffset 0.3 {SOUND} {H264} -c:a libopus"),
    );
    for (input, start, expected) in [(&input, Some(1.3), 0.0), (&late, None, 0.3)] {
        for extension in ["mp4", "mov"] {
            let job = FileJob {
                start: start.map(|secs: f64| Pts((secs * 1e9) as u64)),
                overwrite: true,
                ..FileJob::new(input, files.path(&format!("out.{extension}")))
            };
            check(&job, "verified: ");
            // Players skip as much as the description states: 312 samples at 48,000 per second.
            let first = ffprobe(
                &job.output,
                "-select_streams a -show_entries frame=pts_time",
            );
            let first: f64 = first
                .lines()
                .next()
                .unwrap()
                .trim_end_matches(',')
                .parse()
                .unwrap();
            assert!(
                (first - expected).abs() < 0.05,
                "{extension}: {first} s, expected {expected} s"
            );
            let bytes = std::fs::read(&job.output).unwrap();
            // The header of the unfinished file is still there, before the valid one.
            let at = bytes.windows(4).rposition(|kind| kind == b"dOps").unwrap();
            assert_eq!(
                bytes[at + 4..at + 12],
                [0, 1, 1, 0x38, 0, 0, 0xbb, 0x80],
                "{extension}"
            );
            let mut swapped = bytes;
            swapped[at + 6..at + 8].reverse();
            std::fs::write(&job.output, swapped).unwrap();
            let complaint = verify::compare(&job, None).unwrap().complaint();
            assert_eq!(
                complaint.as_deref(),
                Some("players skip the first 298.7 ms of the sound instead of 6.5 ms"),
                "{extension}"
            );
        }
    }
}

#[test]
fn a_range_before_the_first_frame_is_called_empty() {
    let files = Files::new();
    let film = film(&files, "film.mp4", "aac");
    let input = files.make(
        "late.mp4",
        &format!("-itsoffset 3 -i {} -c copy", film.display()),
    );
    let job = FileJob {
        start: Some(Pts(500_000_000)),
        end: Some(Pts(2_700_000_000)),
        ..FileJob::new(&input, files.path("out.mp4"))
    };
    let error = run(&job).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("the video has no frames between 0.5 s and 2.7 s: {input:?}")
    );
}

#[test]
fn joints_of_recordings_move_no_sound() {
    let files = Files::new();
    let parts =
        ["a.mp4", "b.mp4"].map(|name| files.make(name, &format!("{FLASH} {BEEP} {H264} -c:a aac")));
    let list = files.path("list.txt");
    let lines = parts.map(|part| format!("file '{}'\n", part.display()));
    std::fs::write(&list, lines.concat()).unwrap();
    let input = files.make(
        "in.mp4",
        &format!("-f concat -safe 0 -i {} -c copy", list.display()),
    );
    for extension in ["mkv", "mp4"] {
        let job = FileJob::new(&input, files.path(&format!("out.{extension}")));
        let verification = check(&job, "verified: ");
        assert!(
            verification.max_sound_shift_nanos <= 1_000_000,
            "{verification}"
        );
    }
}

#[test]
fn telephone_s_sound_is_copied_and_cut_as_samples_are() {
    let files = Files::new();
    for codec in ["pcm_alaw", "pcm_mulaw"] {
        let input = film(&files, &format!("{codec}.mov"), codec);
        for extension in ["mov", "mkv"] {
            let job = FileJob::new(
                &input,
                files.path(&format!("{codec}.{extension}.{extension}")),
            );
            assert_eq!(
                check(&job, "verified: ").audio_equal,
                Some(true),
                "{codec} {extension}"
            );
            assert_eq!(
                sound_hash(&job.output, ""),
                sound_hash(&input, ""),
                "{codec} {extension}"
            );
            let range = FileJob {
                start: Some(Pts(500_000_000)),
                end: Some(Pts(2_700_000_000)),
                overwrite: true,
                ..job
            };
            check(&range, "verified: ");
            assert!(
                judged(&range.output, Kind::Sound)[0].abs() <= 1000,
                "{codec} {extension}"
            );
        }
    }
}

#[test]
fn sound_that_a_transport_stream_calls_private_data_comes_out() {
    let files = Files::new();
    for sound in ["aac", "mp2", "libmp3lame"] {
        let name = format!("{sound}.m2ts");
        let input = files.make(&name, &format!("{FLASH} {BEEP} {H264} -c:a {sound}"));
        let hashes = |path: &Path| -> Vec<u64> {
            packets(path, Kind::Sound).iter().map(|p| p.hash).collect()
        };
        for extension in ["mp4", "mkv", "ts"] {
            let job = FileJob::new(&input, files.path(&format!("{sound}.{extension}")));
            check(&job, "verified: ");
            assert_eq!(hashes(&job.output), hashes(&input), "{sound} {extension}");
            let moved = beep_after_flash(&job.output) - beep_after_flash(&input);
            assert!(moved.abs() < 0.0015, "{sound} {extension}: {moved} s");
        }
    }
}

#[test]
fn uncompressed_sound_of_a_range_is_cut_to_the_sample() {
    const RATE: usize = 48_000;
    let files = Files::new();
    let input = film(&files, "in.mkv", "pcm_s16le");
    let decoded = |path: &Path| -> Vec<u8> {
        let raw = path.with_extension("raw");
        ffmpeg(&format!("-i {} -map 0:a -f s16le", path.display()), &raw);
        std::fs::read(raw).unwrap()
    };
    let whole = decoded(&input);
    for (name, start, end) in [("out.mkv", 1.0, 2.5), ("out.mov", 1.013, 3.0)] {
        let nanos = |secs: f64| Some(Pts((secs * 1e9) as u64));
        let job = FileJob {
            start: nanos(start),
            end: nanos(end),
            ..FileJob::new(&input, files.path(name))
        };
        check(&job, "verified: ");
        let part = decoded(&job.output);
        // Matroska counts in milliseconds.
        let most = RATE / 1000;
        let n_samples = part.len() / 2;
        assert!(
            n_samples.abs_diff(((end - start) * RATE as f64) as usize) <= most,
            "{name}: {n_samples}"
        );
        let at = (start * RATE as f64) as usize;
        let place = (at - most..at + most).find(|at| whole[2 * at..].starts_with(&part));
        assert!(place.is_some(), "{name}");
    }
}

#[test]
fn sound_that_comes_too_late_is_told() {
    let files = Files::new();
    // So little picture that the sound only arrives after all of it has been read.
    let input = files.make(
        "in.vob",
        "-f lavfi -i color=red:size=32x32:rate=25:duration=6 -f lavfi -i sine=duration=6 -c:v mpeg2video -c:a mp2 -f vob",
    );
    let job = FileJob::new(&input, files.path("out.mp4"));
    let (mut source, sink) = vitscope::media::open(&job).unwrap();
    pass_on(&mut source, sink).unwrap();
    let late = verify::compare(&job, None)
        .unwrap()
        .with_late_tracks(source.n_late_tracks());
    assert_eq!(
        late.complaint().as_deref(),
        Some("1 audio track started too late in the file to be written")
    );
}

#[test]
fn pictures_too_small_to_encode_are_refused() {
    let files = Files::new();
    let input = files.make(
        "in.mkv",
        "-f lavfi -i testsrc2=size=16x8:rate=25:duration=1 -c:v ffv1",
    );
    assert_eq!(
        check(&FileJob::new(&input, files.path("out.mkv")), "verified: ").frames_out,
        25
    );
    for extension in ["mp4", "mov", "webm"] {
        let job = FileJob::new(&input, files.path(&format!("out.{extension}")));
        let error = run(&job).unwrap_err().to_string();
        let expected = "the video is 16x8, but the encoder and container require at least 16x16";
        assert!(error.contains(expected), "{extension}: {error}");
        assert!(
            !job.output.exists() && !job.part_path().exists(),
            "{extension}"
        );
    }
}

#[test]
fn true_hd_of_a_transport_stream_is_left_out_and_told() {
    let files = Files::new();
    for name in ["in.ts", "in.m2ts"] {
        let input = files.make(
            name,
            &format!("{FLASH} {BEEP} {H264} -c:a truehd -strict -2"),
        );
        for extension in ["mp4", "mkv", "ts"] {
            let job = FileJob {
                overwrite: true,
                ..FileJob::new(&input, files.path(&format!("out.{extension}")))
            };
            assert_eq!(run(&job).unwrap(), 100, "{name} {extension}");
            let complaint = verify::compare(&job, None).unwrap().complaint();
            let told = Some("the result has 0 of 1 audio tracks");
            assert_eq!(complaint.as_deref(), told, "{name} {extension}");
        }
    }
}

#[test]
fn packets_that_were_encoded_anew_are_not_called_equal() {
    let files = Files::new();
    let sounds = "-map 0 -map 1 -map 1 -c:a:0 dca -strict -2 -c:a:1 ac3";
    let input = files.make("in.ts", &format!("{FLASH} {BEEP} {H264} {sounds}"));
    let verification = check(&FileJob::new(&input, files.path("out.mp4")), "verified: ");
    // 4 s in packets of 1,536 samples.
    let said = verification.to_string();
    assert!(said.contains("125 sound packets equal, 0.000 ms"), "{said}");
    assert!(said.contains("; other sound re-encoded; "), "{said}");
}

/// Samples that an encoder received before a seek stay in it.
#[test]
fn encoded_sound_of_a_range_stays_with_its_picture() {
    let files = Files::new();
    let pts = |secs: f64| Pts((secs * 1e9) as u64);
    for (name, sound) in [("in.mkv", "pcm_s16le"), ("in.ts", "mp2"), ("in.mp4", "aac")] {
        let input = files.make(name, &format!("{FLASH} {BEEP} {H264} -c:a {sound}"));
        let before = beep_after_flash(&input);
        for (start, end) in [
            (Some(1.0), None),
            (None, Some(3.0)),
            (Some(0.48), Some(3.5)),
        ] {
            let job = FileJob {
                start: start.map(pts),
                end: end.map(pts),
                audio: AudioMode::Encode,
                overwrite: true,
                ..FileJob::new(&input, files.path(&format!("{name}.out.mp4")))
            };
            check(&job, "verified: ");
            let moved = beep_after_flash(&job.output) - before;
            assert!(moved.abs() < 0.0015, "{name} {start:?} {end:?}: {moved} s");
        }
    }
}

#[test]
fn streams_that_pass_the_clock_s_wrap_are_whole() {
    let files = Files::new();
    check_whole(&files, &film(&files, "opus.ts", "libopus"));
    let input = film(&files, "wrap.ts", "mp2 -output_ts_offset 95439");
    check_whole(&files, &input);
    // Here tsdemux rounds the end of a frame past the beginning of the range.
    let input = film(&files, "rounded.ts", "aac -output_ts_offset 95442.3");
    let range = FileJob {
        start: Some(Pts(1_000_000_000)),
        ..FileJob::new(&input, files.path("range.mp4"))
    };
    assert_eq!(check(&range, "verified: ").frames_out, 125);
}

/// Returns one small file of each kind.
fn small_files() -> &'static [Vec<u8>] {
    static FILES: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    FILES.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let made = [
            ("a.mp4", "-c:a aac"),
            ("b.mp4", "-c:a aac -movflags frag_keyframe"),
            ("c.mov", "-c:a pcm_s16le"),
            ("d.mkv", "-c:a libopus"),
            ("e.ts", "-c:a aac"),
            ("f.ts", "-c:a ac3"),
        ];
        let read = made.map(|(name, sound)| {
            let path = folder.path().join(name);
            let picture = "-f lavfi -i testsrc2=size=32x32:rate=25:duration=1";
            let tone = "-f lavfi -i sine=duration=1:sample_rate=48000";
            ffmpeg(&format!("{picture} {tone} {H264} -b:a 32k {sound}"), &path);
            std::fs::read(path).unwrap()
        });
        read.to_vec()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A damaged file ends in an answer, not in a panic, a hang, or an allocation for data that does not exist.
    #[test]
    fn damaged_files_are_read_or_refused(
        file_idx in 0_usize..6,
        cut in 0.0..1.2_f64,
        flips in prop::collection::vec((0.0..1.0_f64, any::<u8>()), 0..12),
    ) {
        let mut bytes = small_files()[file_idx].clone();
        for (place, value) in flips {
            let at = (place * bytes.len() as f64) as usize;
            bytes[at] = value;
        }
        bytes.truncate((cut * bytes.len() as f64) as usize);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        if let Ok(contents) = demux::read(file.path()) {
            let n_packets: usize = contents.tracks.iter().map(|track| track.packets.len()).sum();
            prop_assert!(n_packets <= bytes.len(), "{n_packets} packets in {} bytes", bytes.len());
        }
    }
}

/// Demuxers seek to the guessed beginning of a range, or to a place where B-frames are lost.
#[test]
fn ranges_of_program_streams_and_avi_begin_where_they_should() {
    let files = Files::new();
    let pts = |secs: f64| Pts((secs * 1e9).round() as u64);
    for (name, args) in [
        ("b.vob", "-c:v mpeg2video -bf 2 -c:a mp2 -f vob"),
        ("plain.mpg", "-c:v mpeg1video -bf 0 -c:a mp2"),
        ("silent.vob", "-an -c:v mpeg2video -bf 2 -f vob"),
        ("b.avi", "-c:v mpeg4 -bf 2 -c:a libmp3lame"),
    ] {
        let scene = "-f lavfi -i testsrc2=size=160x120:rate=25:duration=4";
        let input = files.make(name, &format!("{scene} {BEEP} {args}"));
        for (start, end, n_frames) in [
            (0.52, None, 87),
            (1.0, None, 75),
            (1.04, None, 74),
            (2.0, Some(3.0), 25),
            (3.0, None, 25),
            (0.0, Some(1.0), 25),
        ] {
            for extension in ["mkv", "mp4"] {
                let job = FileJob {
                    start: Some(pts(start)),
                    end: end.map(pts),
                    overwrite: true,
                    ..FileJob::new(&input, files.path(&format!("out.{extension}")))
                };
                run(&job).unwrap();
                let what = format!("{name} from {start} to {end:?} in {extension}");
                let times = judged(&job.output, Kind::Picture);
                let first = times.first().copied().unwrap_or_default();
                let own: Vec<i64> = times.iter().map(|time| time - first).collect();
                let expected: Vec<i64> = (0..n_frames).map(|frame| frame * 40_000).collect();
                let close = |(a, b): (&i64, &i64)| (a - b).abs() <= 1000;
                assert_eq!(own.len(), expected.len(), "{what}: {times:?}");
                assert!(own.iter().zip(&expected).all(close), "{what}: {times:?}");
                if extension == "mp4" {
                    assert!(first < 1000, "{what}: {times:?}");
                }
            }
        }
        // With little picture, the sound comes too late in a file to be used.
        if !matches!(name, "silent.vob" | "plain.mpg") {
            let input = files.make(name, &format!("{FLASH} {BEEP} {args}"));
            // For AVI pictures stored in a different order, ffmpeg guesses the times.
            let whole = match name.ends_with(".avi") {
                true => {
                    let whole = FileJob::new(&input, files.path(&format!("whole.{name}.mkv")));
                    run(&whole).unwrap();
                    whole.output
                }
                false => input.clone(),
            };
            let job = FileJob {
                start: Some(pts(1.0)),
                overwrite: true,
                ..FileJob::new(&input, files.path("out.mkv"))
            };
            run(&job).unwrap();
            let moved = beep_after_flash(&job.output) - beep_after_flash(&whole);
            assert!(moved.abs() < 0.03, "{name}: {moved} s");
        }
    }
}

#[test]
fn ranges_of_laced_sound_keep_every_packet() {
    let files = Files::new();
    for codec in ["libvorbis", "aac", "libopus"] {
        let plain = unlaced(&files, codec);
        let input = files.path(&format!("{codec}.mkv"));
        lace(&plain, &input, 2);
        let n_packets = |input: &Path| {
            let job = FileJob {
                start: Some(Pts(1_000_000_000)),
                overwrite: true,
                ..FileJob::new(input, files.path("out.mkv"))
            };
            run(&job).unwrap();
            packets(&job.output, Kind::Sound).len()
        };
        // At either end, a lace of eight is either included or not.
        let (whole, laced) = (n_packets(&plain), n_packets(&input));
        assert!(laced.abs_diff(whole) <= 8, "{codec}: {laced} of {whole}");
    }
}

#[test]
fn edits_that_repeat_or_go_back_are_refused() {
    let files = Files::new();
    let whole = files.make(
        "whole.mp4",
        &format!("{PICTURE} {SOUND} {H264} -c:a aac -movie_timescale 1000 -use_editlist 1"),
    );
    let whole = std::fs::read(whole).unwrap();
    for edits in [
        [(800, Some(480)), (800, Some(480))],
        [(800, Some(2080)), (800, Some(480))],
    ] {
        let input = files.write("edited.mp4", with_edits(&whole, &edits));
        let job = FileJob::new(&input, files.path("out.mp4"));
        super::media::check_refused(
            &job,
            "the edit list repeats parts, goes back or changes the speed, which is not supported: ",
        );
    }
    // Everything is slightly later, and the run-in of the sound would come while nothing is shown yet.
    let edits = [(400, None), (2000, Some(0))];
    let input = files.write("late.mp4", with_edits(&whole, &edits));
    let job = FileJob::new(&input, files.path("late.out.mp4"));
    run(&job).unwrap();
    let complaint = verify::compare(&job, None).unwrap().complaint();
    let is_loss = |text: &String| text.contains(" in, ") || text.contains("duration changed");
    let lost = complaint.filter(is_loss);
    assert_eq!(lost, None);
}

/// Returns the boxes of `bytes`: kind and range.
fn boxes(bytes: &[u8]) -> Vec<(&[u8], std::ops::Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(|| {
        let len = u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().unwrap()) as usize;
        let place = at..at + len;
        at = place.end;
        Some((&bytes[place.start + 4..place.start + 8], place))
    })
    .collect()
}

fn boxed(kind: &[u8], content: &[u8]) -> Vec<u8> {
    let len = u32::try_from(8 + content.len()).unwrap();
    [&len.to_be_bytes()[..], kind, content].concat()
}

/// Returns `content` with other edits of each track: the duration of each edit, and its start in the track, both in
/// milliseconds; without a start, nothing is shown. The track begins where its only edit began.
fn with_edits(content: &[u8], edits: &[(u32, Option<u32>)]) -> Vec<u8> {
    boxes(content)
        .into_iter()
        .flat_map(|(kind, place)| {
            let inner = &content[place.start + 8..place.end];
            match kind {
                b"moov" | b"trak" => boxed(kind, &with_edits(inner, edits)),
                b"edts" => {
                    let first = u32::from_be_bytes(inner[20..24].try_into().unwrap());
                    let mdhd = content.windows(4).position(|kind| kind == b"mdhd").unwrap();
                    let scale = content[mdhd + 16..mdhd + 20].try_into().unwrap();
                    let scale = u32::from_be_bytes(scale);
                    let n_edits = u32::try_from(edits.len()).unwrap();
                    let mut list = [[0; 4], n_edits.to_be_bytes()].concat();
                    for (shown, start) in edits {
                        let start = start.map_or(u32::MAX, |start| first + start * scale / 1000);
                        for number in [*shown, start, 0x1_0000] {
                            list.extend(number.to_be_bytes());
                        }
                    }
                    boxed(b"edts", &boxed(b"elst", &list))
                }
                b"mvhd" | b"tkhd" => {
                    let shown: u32 = edits.iter().map(|(shown, _)| shown).sum();
                    let at = if kind == b"mvhd" { 16 } else { 20 };
                    let mut header = content[place].to_vec();
                    header[8 + at..8 + at + 4].copy_from_slice(&shown.to_be_bytes());
                    header
                }
                _ => content[place].to_vec(),
            }
        })
        .collect()
}

/// Peak of the sound that a player hears in decibels, and its length in samples.
fn peak_and_length(path: &Path) -> (f64, usize) {
    let path = path.to_str().unwrap();
    let args = [
        "-v", "error", "-i", path, "-vn", "-ac", "1", "-f", "f32le", "-",
    ];
    let samples = std::process::Command::new("ffmpeg")
        .args(args)
        .output()
        .unwrap()
        .stdout;
    let levels = samples.chunks_exact(4).map(|sample| {
        let sample: [u8; 4] = sample.try_into().unwrap();
        f64::from(f32::from_le_bytes(sample).abs())
    });
    let peak = levels.fold(0.0, f64::max);
    (20.0 * peak.max(1e-6).log10(), samples.len() / 4)
}

/// What an edit list leaves out is loud, the rest is silent.
#[test]
fn sound_that_an_edit_list_leaves_out_is_not_heard() {
    let files = Files::new();
    let loud = "-f lavfi -i aevalsrc=0.5*sin(2764*t)*between(t\\,0.92\\,3.0799):s=48000:d=6";
    for (name, sound, extension, audio) in [
        ("alac.mp4", "alac", "mkv", AudioMode::Encode),
        ("alac2.mp4", "alac", "mp4", AudioMode::Encode),
        ("flac.mp4", "flac -strict -2", "mkv", AudioMode::Encode),
        ("pcm.mov", "pcm_s16le", "mov", AudioMode::Copy),
        ("pcm2.mov", "pcm_s16le", "mkv", AudioMode::Encode),
        ("law.mov", "pcm_mulaw", "mov", AudioMode::Copy),
    ] {
        let whole = files.make(
            &format!("whole_{name}"),
            &format!("{PICTURE} {loud} {H264} -c:a {sound} -movie_timescale 1000 -use_editlist 1"),
        );
        let edits = [(920, Some(0)), (1000, Some(3080))];
        let whole = std::fs::read(whole).unwrap();
        let input = files.write(name, with_edits(&whole, &edits));
        for start in [0, 400] {
            let job = FileJob {
                start: (start > 0).then_some(Pts(start * 1_000_000)),
                audio,
                overwrite: true,
                ..FileJob::new(&input, files.path(&format!("out.{extension}")))
            };
            check(&job, "verified: ");
            let (peak, n_samples) = peak_and_length(&job.output);
            assert!(peak < -60.0, "{name} from {start} ms: {peak} dB");
            let secs = n_samples as f64 / 48e3;
            let expected = (1920 - start) as f64 / 1000.0;
            assert!(
                (secs - expected).abs() < 0.06,
                "{name} from {start} ms: {secs} s"
            );
        }
    }
}

/// Samples of uncompressed sound are cut where an edit begins and ends, whatever packets they are stored in.
#[test]
fn uncompressed_sound_of_edits_is_cut_to_the_sample() {
    let files = Files::new();
    for sound in ["pcm_s16le", "pcm_s24le", "pcm_mulaw"] {
        let whole = files.make(
            "whole.mov",
            &format!("{PICTURE} {SOUND} {H264} -c:a {sound} -movie_timescale 1000 -use_editlist 1"),
        );
        let whole = std::fs::read(whole).unwrap();
        for edits in [
            &[(1800, Some(0))][..],
            &[(1800, Some(500))],
            &[(1800, Some(100))],
            &[(1000, Some(0)), (800, Some(1200))],
        ] {
            let input = files.write("in.mov", with_edits(&whole, edits));
            for extension in ["mov", "mkv"] {
                let job = FileJob {
                    overwrite: true,
                    ..FileJob::new(&input, files.path(&format!("out.{extension}")))
                };
                check(&job, "verified: ");
                let (_, n_samples) = peak_and_length(&job.output);
                assert_eq!(n_samples, 86_400, "{sound} {edits:?} {extension}");
            }
        }
    }
}

#[test]
fn sound_that_was_cut_off_before_the_picture_is_not_copied() {
    let files = Files::new();
    for (name, sound, n_heard_secs) in [
        ("mp2.mp4", "mp2", 2.0),
        ("mp3.mp4", "libmp3lame", 2.0),
        ("ac3.mp4", "ac3", 2.0),
        ("flac.mp4", "flac -strict -2", 2.0),
    ] {
        let whole = files.make(
            &format!("whole_{name}"),
            &format!("{PICTURE} {SOUND} {H264} -c:a {sound} -movie_timescale 1000 -use_editlist 1"),
        );
        let whole = std::fs::read(whole).unwrap();
        let input = files.write(name, with_edits(&whole, &[(2000, Some(120))]));
        for extension in ["mkv", "ts", "mp4"] {
            if name == "flac.mp4" && extension == "ts" {
                continue;
            }
            let job = FileJob {
                overwrite: true,
                ..FileJob::new(&input, files.path(&format!("out.{extension}")))
            };
            check(&job, "verified: ");
            let begins = |stream| {
                let entries = format!("-select_streams {stream} -show_entries stream=start_time");
                let start = ffprobe(&job.output, &entries);
                let mut fields = start.split([',', '\n']);
                fields.find_map(|field| field.parse::<f64>().ok()).unwrap()
            };
            let lead = begins("v:0") - begins("a:0");
            // The packet that the edit begins in is whole.
            assert!(
                (-0.01..0.09).contains(&lead),
                "{name} {extension}: {lead} s"
            );
            // The last packet, too.
            let heard = heard_secs(&job.output) - n_heard_secs;
            assert!(
                (-0.06..0.15).contains(&heard),
                "{name} {extension}: {heard} s more"
            );
        }
    }
}

/// ffmpeg also follows several edits, and decodes what it shows.
#[test]
fn parts_of_a_track_come_one_after_the_other() {
    let files = Files::new();
    for (name, sound, codec) in [
        ("plain.mp4", "aac", H264.replace("-bf 2", "-bf 0")),
        ("reordered.mp4", "aac", H264.to_owned()),
        ("mp3.mp4", "libmp3lame", H264.to_owned()),
    ] {
        let whole = files.make(
            &format!("whole_{name}"),
            &format!(
                "{PICTURE} {SOUND} {codec} -c:a {sound} -movie_timescale 1000 -use_editlist 1"
            ),
        );
        let whole = std::fs::read(whole).unwrap();
        for (edits, n_frames) in [
            (&[(1000, Some(0)), (1000, Some(3000))][..], 50),
            (
                &[(1000, Some(520)), (440, Some(2520)), (600, Some(5000))],
                51,
            ),
        ] {
            let input = files.write(name, with_edits(&whole, edits));
            let frames = |path: &Path| judged(path, Kind::Picture);
            assert_eq!(frames(&input).len(), n_frames, "{name} {edits:?}: ffmpeg");
            let job = FileJob {
                overwrite: true,
                ..FileJob::new(&input, files.path("out.mp4"))
            };
            run(&job).unwrap();
            assert_eq!(frames(&job.output), frames(&input), "{name} {edits:?}");
            let verification = verify::compare(&job, None).unwrap();
            assert_eq!(
                verification.complaint(),
                None,
                "{name} {edits:?}: {verification}"
            );
            let similarity = super::media::similarity(&input, &job.output);
            assert!(similarity > 30.0, "{name} {edits:?}: {similarity} dB");
        }
        // If there is nothing between two parts, ffmpeg makes up frames.
        let edits = [(1000, Some(0)), (1000, None), (1000, Some(3000))];
        let input = files.write(name, with_edits(&whole, &edits));
        let job = FileJob {
            overwrite: true,
            ..FileJob::new(&input, files.path("out.mp4"))
        };
        run(&job).unwrap();
        let times = (0..25).chain(50..75).map(|frame| frame * 40_000);
        let times: Vec<i64> = times.collect();
        assert_eq!(judged(&job.output, Kind::Picture), times, "{name}");
        let verification = verify::compare(&job, None).unwrap();
        assert_eq!(verification.complaint(), None, "{name}: {verification}");

        // A range that begins in the first part and ends in the second.
        let edits = [(1000, Some(0)), (1000, Some(3000))];
        let input = files.write(name, with_edits(&whole, &edits));
        for (start, end, n_frames) in [(520, 1520, 25), (1200, 1800, 15), (0, 400, 10)] {
            let job = FileJob {
                start: Some(Pts(start * 1_000_000)),
                end: Some(Pts(end * 1_000_000)),
                overwrite: true,
                ..FileJob::new(&input, files.path("range.mp4"))
            };
            assert_eq!(run(&job).unwrap(), n_frames, "{name} from {start}");
            let times: Vec<i64> = (0..n_frames as i64).map(|frame| frame * 40_000).collect();
            assert_eq!(
                judged(&job.output, Kind::Picture),
                times,
                "{name} from {start}"
            );
            let verification = verify::compare(&job, None).unwrap();
            assert_eq!(
                verification.complaint(),
                None,
                "{name} from {start}: {verification}"
            );
        }
    }
}
