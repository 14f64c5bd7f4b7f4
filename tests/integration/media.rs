//! Video files through the media layer and back, checked from outside by ffmpeg and ffprobe.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use vitscope::frame::Pts;
use vitscope::media::verify;
use vitscope::media::{self, AudioMode, FileJob, FileSink, FileSource, Sink, Source, VideoCodec};

/// 2 s of picture at 25 frames per second with B-frames, as in most files.
const PICTURE: &str = "-f lavfi -i testsrc2=size=320x240:rate=25:duration=2";
const SOUND: &str = "-f lavfi -i sine=frequency=440:sample_rate=44100:duration=2";
const H264: &str = "-c:v libx264 -preset veryfast -pix_fmt yuv420p -g 25 -bf 2";

/// A folder for one test's files.
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes the file `name`.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Makes the file `name` with ffmpeg's options `args`, which contain no quotes.
    pub(crate) fn make(&self, name: &str, args: &str) -> PathBuf {
        let path = self.path(name);
        let output = Command::new("ffmpeg")
            .args(["-v", "error", "-y"])
            .args(args.split_whitespace())
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        path
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// Runs `job` without changing any frame; returns the number of frames.
pub(crate) fn run(job: &FileJob) -> vitscope::Result<u64> {
    let (mut source, sink) = media::open(job)?;
    pass_on(&mut source, sink)
}

/// Writes all frames unchanged; returns the number of frames.
pub(crate) fn pass_on(source: &mut FileSource, sink: FileSink) -> vitscope::Result<u64> {
    let mut sink = Box::new(sink);
    let mut n_frames = 0;
    while let Some(frame) = source.next()? {
        assert_eq!(frame.seq, n_frames);
        n_frames += 1;
        sink.push(frame)?;
    }
    sink.finish()?;
    Ok(n_frames)
}

pub(crate) fn ffprobe(path: &Path, args: &str) -> String {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-of", "csv=p=0"])
        .args(args.split_whitespace())
        .arg(path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Returns the presentation timestamps of the decoded frames in microseconds, relative to the first.
fn frame_times(path: &Path) -> Vec<i64> {
    let times: Vec<i64> = ffprobe(path, "-select_streams v:0 -show_entries frame=pts_time")
        .lines()
        // Side data of a frame is printed as an empty line.
        .filter(|line| !line.is_empty())
        .map(|line| (line.trim_matches(',').parse::<f64>().unwrap() * 1e6).round() as i64)
        .collect();
    times.iter().map(|time| time - times[0]).collect()
}

/// Returns one property of the first video stream.
pub(crate) fn picture(path: &Path, entry: &str) -> String {
    ffprobe(
        path,
        &format!("-select_streams v:0 -show_entries stream={entry}"),
    )
}

fn seconds(path: &Path) -> f64 {
    ffprobe(path, "-show_entries format=duration")
        .parse()
        .unwrap()
}

/// Returns a digest of the packets of every sound track, by ffmpeg.
pub(crate) fn sound_hash(path: &Path, filter: &str) -> String {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(path)
        .args(["-map", "0:a", "-c", "copy"])
        .args(filter.split_whitespace())
        .args(["-f", "streamhash", "-hash", "md5", "-"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn sound_packets(path: &Path) -> usize {
    ffprobe(path, "-select_streams a -show_entries packet=size")
        .lines()
        .count()
}

/// Copies `input` to `name` and checks what every copy must keep, with times up to `tolerance_micros`.
pub(crate) fn check_copy(
    files: &Files,
    input: &Path,
    name: &str,
    tolerance_micros: i64,
) -> PathBuf {
    let job = FileJob::new(input, files.path(name));
    let n_frames = run(&job).unwrap();
    let (before, after) = (frame_times(input), frame_times(&job.output));
    assert_eq!(n_frames as usize, before.len(), "frames read");
    assert_eq!(after.len(), before.len(), "frames written");
    for (before, after) in before.iter().zip(&after) {
        assert!(
            (before - after).abs() <= tolerance_micros,
            "{before} became {after} us"
        );
    }
    assert!(
        (seconds(input) - seconds(&job.output)).abs() < 0.05,
        "{name}: {} s became {} s",
        seconds(input),
        seconds(&job.output)
    );
    assert!(!job.part_path().exists());
    let verification = verify::compare(&job, None).unwrap();
    assert_eq!(verification.complaint(), None, "{verification}");
    assert_eq!(verification.frames_in, n_frames);
    assert!(verification.max_pts_error_nanos as i64 <= tolerance_micros * 1000 + 1);
    job.output
}

#[test]
fn mp4_with_aac_keeps_frames_times_and_sound() {
    let files = Files::new();
    let input = files.make("in.mp4", &format!("{PICTURE} {SOUND} {H264} -c:a aac"));
    let output = check_copy(&files, &input, "out.mp4", 0);
    assert_eq!(sound_hash(&output, ""), sound_hash(&input, ""));
    assert_eq!(sound_packets(&output), sound_packets(&input));
    assert_eq!(picture(&output, "profile,pix_fmt"), "High,yuv420p");
}

#[test]
fn frames_of_uneven_length_keep_their_times() {
    let files = Files::new();
    let uneven = "-vf select=not(mod(n\\,3))+not(mod(n\\,7)) -fps_mode vfr";
    let input = files.make("in.mp4", &format!("{PICTURE} {uneven} {H264}"));
    let output = check_copy(&files, &input, "out.mp4", 0);
    let times = frame_times(&output);
    assert!(times[1] - times[0] != times[3] - times[2], "{times:?}");
    check_copy(&files, &input, "out.mkv", 1000);
}

#[test]
fn times_off_every_usual_grid_are_kept() {
    let files = Files::new();
    // Steps of 1/12345 s: neither milliseconds nor 1/90000 s represent them exactly.
    let odd = "-vf settb=1/12345,setpts=trunc(N*493.8)+not(mod(N\\,5))*7 -enc_time_base 1/12345 -video_track_timescale 12345 -fps_mode passthrough";
    let input = files.make("in.mp4", &format!("{PICTURE} {odd} {H264}"));
    assert_eq!(picture(&input, "time_base"), "1/12345");
    check_copy(&files, &input, "out.mp4", 0);
    check_copy(&files, &input, "out.mov", 0);
}

#[test]
fn ntsc_rate_is_kept() {
    let files = Files::new();
    let picture_ntsc = "-f lavfi -i testsrc2=size=320x240:rate=30000/1001:duration=2";
    let input = files.make("in.mp4", &format!("{picture_ntsc} {H264}"));
    let output = check_copy(&files, &input, "out.mp4", 0);
    assert_eq!(picture(&output, "r_frame_rate"), "30000/1001");
}

#[test]
fn rotation_is_applied() {
    let files = Files::new();
    let upright = files.make("upright.mp4", &format!("{PICTURE} {SOUND} {H264} -c:a aac"));
    for (degrees, size) in [(90, "240,320"), (180, "320,240"), (270, "240,320")] {
        let input = files.make(
            &format!("in{degrees}.mp4"),
            &format!(
                "-i {} -c copy -metadata:s:v:0 rotate={degrees}",
                upright.display()
            ),
        );
        let output = check_copy(&files, &input, &format!("out{degrees}.mp4"), 0);
        assert_eq!(picture(&output, "width,height"), size);
        assert_eq!(
            ffprobe(
                &output,
                "-show_entries stream_side_data=rotation -show_entries stream_tags=rotate"
            ),
            ""
        );
        // ffmpeg itself rotates the input upright: both must then show the same picture.
        assert!(similarity(&input, &output) > 30.0, "{degrees} degrees");
    }
}

/// Returns the peak signal-to-noise ratio of `b`'s picture against `a`'s, in dB; ffmpeg applies rotation to both.
pub(crate) fn similarity(a: &Path, b: &Path) -> f64 {
    let output = Command::new("ffmpeg")
        .args(["-v", "info", "-i"])
        .arg(a)
        .arg("-i")
        .arg(b)
        .args(["-lavfi", "[0:v][1:v]psnr", "-f", "null", "-"])
        .output()
        .unwrap();
    let log = text(&output.stderr);
    let average = log.split("average:").nth(1).unwrap();
    average
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap_or(f64::INFINITY)
}

#[test]
fn odd_sizes_are_kept_or_made_even() {
    let files = Files::new();
    let odd =
        "-f lavfi -i testsrc=size=321x241:rate=25:duration=1 -c:v libvpx -b:v 1M -auto-alt-ref 0";
    let input = files.make("in.webm", odd);
    assert_eq!(picture(&input, "width,height"), "321,241");
    let webm = check_copy(&files, &input, "out.webm", 1000);
    assert_eq!(picture(&webm, "width,height"), "321,241");
    let mp4 = check_copy(&files, &input, "out.mp4", 1000);
    assert_eq!(picture(&mp4, "width,height,pix_fmt"), "322,242,yuv420p");
}

#[test]
fn a_video_without_sound_stays_without() {
    let files = Files::new();
    let input = files.make("in.mp4", &format!("{PICTURE} {H264}"));
    let output = check_copy(&files, &input, "out.mp4", 0);
    assert_eq!(sound_packets(&output), 0);
}

#[test]
fn one_frame_is_a_video() {
    let files = Files::new();
    let input = files.make("in.mp4", &format!("{PICTURE} -frames:v 1 {H264}"));
    for name in ["out.mp4", "out.mkv", "out.webm", "out.ts"] {
        let job = FileJob::new(&input, files.path(name));
        assert_eq!(run(&job).unwrap(), 1);
        assert_eq!(frame_times(&job.output), [0]);
    }
}

#[test]
fn webm_with_opus_keeps_its_sound() {
    let files = Files::new();
    let sound = "-f lavfi -i sine=frequency=440:sample_rate=48000:duration=2";
    let input = files.make(
        "in.webm",
        &format!("{PICTURE} {sound} -c:v libvpx -b:v 1M -auto-alt-ref 0 -c:a libopus"),
    );
    for name in ["out.webm", "out.mkv", "out.mp4"] {
        let output = check_copy(&files, &input, name, 1000);
        assert_eq!(sound_hash(&output, ""), sound_hash(&input, ""), "{name}");
    }
}

#[test]
fn mpegts_with_aac_keeps_its_sound() {
    let files = Files::new();
    let input = files.make("in.ts", &format!("{PICTURE} {SOUND} {H264} -c:a aac"));
    let mp4 = check_copy(&files, &input, "out.mp4", 0);
    // ffmpeg's own way of removing the ADTS headers.
    assert_eq!(
        sound_hash(&mp4, ""),
        sound_hash(&input, "-bsf:a aac_adtstoasc")
    );
    let ts = check_copy(&files, &input, "out.ts", 0);
    assert_eq!(sound_hash(&ts, ""), sound_hash(&input, ""));
    check_copy(&files, &input, "out.mkv", 1000);
}

#[test]
fn every_container_takes_every_other_ones_frames_and_sound() {
    let files = Files::new();
    let mp4 = files.make("in.mp4", &format!("{PICTURE} {SOUND} {H264} -c:a aac"));
    for from in ["mp4", "mov", "mkv", "m4v"] {
        let input = files.make(
            &format!("in2.{from}"),
            &format!("-i {} -c copy", mp4.display()),
        );
        for to in ["mp4", "mov", "mkv", "ts"] {
            let tolerance = if from == "mkv" || to == "mkv" {
                1000
            } else {
                0
            };
            let output = check_copy(&files, &input, &format!("{from}.{to}"), tolerance);
            let filter = if to == "ts" {
                "-bsf:a aac_adtstoasc"
            } else {
                ""
            };
            assert_eq!(
                sound_hash(&output, filter),
                sound_hash(&input, ""),
                "{from} to {to}"
            );
        }
    }
}

#[test]
fn mp3_in_mp4_is_copied() {
    let files = Files::new();
    let input = files.make(
        "in.mp4",
        &format!("{PICTURE} {SOUND} {H264} -c:a libmp3lame"),
    );
    for name in ["out.mp4", "out.mkv", "out.mov", "out.ts"] {
        let output = check_copy(&files, &input, name, 1000);
        assert_eq!(sound_hash(&output, ""), sound_hash(&input, ""), "{name}");
        let verification = verify::compare(&FileJob::new(&input, output), None).unwrap();
        assert_eq!(verification.audio_equal, Some(true), "{name}");
    }
}

#[test]
fn all_sound_tracks_are_kept() {
    let files = Files::new();
    let second = "-f lavfi -i sine=frequency=880:sample_rate=48000:duration=2";
    let input = files.make(
        "in.mp4",
        &format!(
            "{PICTURE} {SOUND} {second} -map 0 -map 1 -map 2 {H264} -c:a:0 aac -c:a:1 libmp3lame"
        ),
    );
    for name in ["out.mp4", "out.mkv"] {
        let output = check_copy(&files, &input, name, 1000);
        assert_eq!(sound_hash(&output, ""), sound_hash(&input, ""), "{name}");
    }
}

#[test]
fn sound_that_begins_late_begins_as_late() {
    let files = Files::new();
    let input = files.make(
        "in.mp4",
        &format!("{PICTURE} -itsoffset 0.5 {SOUND} {H264} -c:a aac"),
    );
    let begin = |path: &Path| -> f64 {
        ffprobe(path, "-select_streams a -show_entries stream=start_time")
            .parse()
            .unwrap()
    };
    assert!(begin(&input) > 0.45);
    for name in ["out.mp4", "out.mkv"] {
        let output = check_copy(&files, &input, name, 1000);
        assert_eq!(sound_hash(&output, ""), sound_hash(&input, ""), "{name}");
        assert!(
            (begin(&output) - begin(&input)).abs() < 0.025,
            "{name}: {} became {}",
            begin(&input),
            begin(&output)
        );
    }
}

#[test]
fn color_tags_are_kept_and_none_are_invented() {
    let files = Files::new();
    let entries = "color_range,color_space,color_transfer,color_primaries";
    for tags in [
        "-color_range tv -colorspace bt709 -color_trc bt709 -color_primaries bt709",
        "-color_range tv -colorspace smpte170m -color_trc smpte170m -color_primaries smpte170m",
        "-color_range pc -colorspace bt709 -color_trc bt709 -color_primaries bt709",
        "",
    ] {
        let input = files.make("in.mp4", &format!("{PICTURE} {H264} {tags}"));
        let job = FileJob {
            overwrite: true,
            ..FileJob::new(&input, files.path("out.mp4"))
        };
        run(&job).unwrap();
        assert_eq!(
            picture(&job.output, entries),
            picture(&input, entries),
            "{tags}"
        );
        assert!(similarity(&input, &job.output) > 30.0, "{tags}");
    }
}

#[test]
fn sound_that_webm_cannot_hold_becomes_opus() {
    let files = Files::new();
    let input = files.make("in.mp4", &format!("{PICTURE} {SOUND} {H264} -c:a aac"));
    let job = FileJob::new(&input, files.path("out.webm"));
    let (source, sink) = media::open(&job).unwrap();
    assert!(!source.info().audio_copied);
    assert_eq!(source.info().encoder, "vp8enc");
    drop((source, sink));
    let output = check_copy(&files, &input, "out.webm", 1000);
    assert_eq!(
        ffprobe(&output, "-select_streams a -show_entries stream=codec_name"),
        "opus"
    );
}

#[test]
fn sound_is_dropped_or_encoded_on_demand() {
    let files = Files::new();
    let input = files.make(
        "in.mp4",
        &format!("{PICTURE} {SOUND} {H264} -c:a libmp3lame"),
    );
    let codec = |audio, name: &str| {
        let job = FileJob {
            audio,
            ..FileJob::new(&input, files.path(name))
        };
        run(&job).unwrap();
        ffprobe(
            &job.output,
            "-select_streams a -show_entries stream=codec_name",
        )
    };
    assert_eq!(codec(AudioMode::Drop, "drop.mp4"), "");
    assert_eq!(codec(AudioMode::Encode, "encode.mp4"), "aac");
    assert_eq!(codec(AudioMode::Copy, "copy.mp4"), "mp3");
}

#[test]
fn every_codec_can_be_forced() {
    let files = Files::new();
    let input = files.make("in.mp4", &format!("{PICTURE} {H264}"));
    for (codec, name) in [
        (VideoCodec::X264, "h264"),
        (VideoCodec::OpenH264, "h264"),
        (VideoCodec::X265, "hevc"),
        (VideoCodec::Vp8, "vp8"),
        (VideoCodec::Vp9, "vp9"),
    ] {
        let job = FileJob {
            codec: Some(codec),
            ..FileJob::new(&input, files.path(&format!("{codec}.mkv")))
        };
        assert_eq!(run(&job).unwrap(), 50);
        assert_eq!(picture(&job.output, "codec_name"), name);
        assert_eq!(frame_times(&job.output), frame_times(&input));
        assert!(similarity(&input, &job.output) > 30.0, "{codec}");
    }
}

#[test]
fn every_quality_keeps_all_frames() {
    let files = Files::new();
    let picture = "-f lavfi -i testsrc2=size=160x120:rate=25:duration=3";
    let input = files.make("in.mp4", &format!("{picture} {H264}"));
    for crf in [0, 4, 15] {
        let job = FileJob {
            codec: Some(VideoCodec::Vp9),
            crf: Some(crf),
            overwrite: true,
            ..FileJob::new(&input, files.path("out.webm"))
        };
        run(&job).unwrap();
        assert_eq!(frame_times(&job.output), frame_times(&input), "crf {crf}");
    }
    for codec in [VideoCodec::X264, VideoCodec::X265, VideoCodec::OpenH264] {
        let job = FileJob {
            codec: Some(codec),
            crf: Some(0),
            overwrite: true,
            ..FileJob::new(&input, files.path("out.mp4"))
        };
        run(&job).unwrap();
        assert_eq!(frame_times(&job.output), frame_times(&input), "{codec}");
    }
}

#[test]
fn a_codec_is_refused_or_comes_out_whole_in_every_container() {
    use VideoCodec::{OpenH264, Vp8, Vp9, X264, X265};
    let files = Files::new();
    let input = files.make("in.mp4", &format!("{PICTURE} {H264}"));
    for codec in [X264, OpenH264, X265, Vp8, Vp9] {
        for extension in ["mp4", "mov", "ts", "mkv", "webm"] {
            let job = FileJob {
                codec: Some(codec),
                ..FileJob::new(&input, files.path(&format!("{codec}.{extension}")))
            };
            match run(&job) {
                Ok(n_frames) => {
                    assert_eq!(n_frames, 50);
                    let verification = verify::compare(&job, None).unwrap();
                    assert_eq!(verification.complaint(), None, "{codec} in {extension}");
                }
                Err(error) => {
                    let message = error.to_string();
                    assert!(message.contains("cannot be stored in"), "{message}");
                    assert!(!job.output.exists(), "{codec} in {extension}");
                }
            }
        }
    }
}

#[test]
fn a_range_begins_at_zero_and_cuts_sound_too() {
    let files = Files::new();
    let long = "-f lavfi -i testsrc2=size=320x240:rate=25:duration=6";
    let sound = "-f lavfi -i sine=frequency=440:sample_rate=44100:duration=6";
    let mp4 = files.make("in.mp4", &format!("{long} {sound} {H264} -c:a aac"));
    for extension in ["mp4", "mkv", "ts"] {
        let input = files.make(
            &format!("again.{extension}"),
            &format!("-i {} -c copy", mp4.display()),
        );
        let job = FileJob {
            start: Some(Pts(1_480_000_000)),
            end: Some(Pts(4_000_000_000)),
            ..FileJob::new(&input, files.path(&format!("{extension}.mp4")))
        };
        let n_frames = run(&job).unwrap();
        let times = frame_times(&job.output);
        assert_eq!(n_frames as usize, times.len(), "{extension}");
        if extension != "mkv" {
            // A transport stream counts from its picture.
            let expected: Vec<i64> = (0..63).map(|frame| frame * 40_000).collect();
            assert_eq!(times, expected);
        } else {
            // ffmpeg shifted the picture for the sound's run-in, so the range begins in the middle of a frame.
            assert_eq!(times.len(), 64, "{extension}");
            assert!(times[1] > 0 && times[1] < 40_000, "{extension}: {times:?}");
            assert_eq!(times[63] - times[2], 61 * 40_000, "{extension}");
        }
        assert!((seconds(&job.output) - 2.52).abs() < 0.05, "{extension}");
        let verification = verify::compare(&job, None).unwrap();
        assert_eq!(
            verification.complaint(),
            None,
            "{extension}: {verification}"
        );
        assert_eq!(verification.audio_equal, Some(true));
        // 2.52 s contain 108.5 packets of 1024 samples.
        let packets = sound_packets(&job.output);
        assert!((107..=110).contains(&packets), "{extension}: {packets}");
    }
}

#[test]
fn a_start_past_the_end_is_an_error() {
    let files = Files::new();
    let input = files.make("in.mp4", &format!("{PICTURE} {H264}"));
    let job = FileJob {
        start: Some(Pts(3_000_000_000)),
        ..FileJob::new(&input, files.path("out.mp4"))
    };
    check_refused(&job, "the start at 3 s is past the end at 2 s: ");
}

/// Checks that `job` is refused with one sentence that begins with `expected`, and leaves nothing behind.
pub(crate) fn check_refused(job: &FileJob, expected: &str) {
    let folder = job.output.parent().unwrap_or(Path::new("."));
    let list = || -> Vec<PathBuf> {
        let mut names: Vec<_> = folder
            .read_dir()
            .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
            .unwrap_or_default();
        names.sort();
        names
    };
    let before = list();
    let message = match media::open(job) {
        Ok(_) => panic!("{job:?} was accepted"),
        Err(err) => err.to_string(),
    };
    assert!(message.starts_with(expected), "{message}");
    assert!(!message.contains('\n'), "{message}");
    assert_eq!(list(), before);
}

#[test]
fn what_is_no_video_is_refused() {
    let files = Files::new();
    let output = files.path("out.mp4");
    let refused =
        |input: &Path, expected: &str| check_refused(&FileJob::new(input, &output), expected);
    refused(&files.path("none.mp4"), "no such file, expected a video: ");
    refused(
        files.0.path(),
        "the input is a directory, expected a video file: ",
    );

    let empty = files.write("empty.mp4", "");
    refused(&empty, "the file is empty, expected a video: ");

    let prose = files.path("prose.mp4");
    std::fs::write(
        &prose,
        "All work and no play makes a dull file.\n".repeat(100),
    )
    .unwrap();
    refused(
        &prose,
        "not a playable video (This appears to be a text file): ",
    );
    let noise = files.write("noise.mp4", [0x5a_u8; 10_000]);
    refused(&noise, "not a playable video (");

    let sound = files.make("sound.mp4", &format!("{SOUND} -c:a aac"));
    refused(
        &sound,
        "the file has audio but no video that GStreamer can read, expected a video: ",
    );
    let wav = files.make("sound.wav", SOUND);
    refused(
        &wav,
        "the file has audio but no video that GStreamer can read, expected a video: ",
    );

    let whole = files.make("whole.mp4", &format!("{PICTURE} {H264}"));
    let bytes = std::fs::read(&whole).unwrap();
    let cut = files.write("cut.mp4", &bytes[..bytes.len() / 2]);
    refused(&cut, "the file is truncated and has no header (moov): ");

    let picture = files.make("still.png", &format!("{PICTURE} -frames:v 1"));
    refused(
        &picture,
        "the input contains a PNG picture, expected a video: ",
    );
    let no_frames = files.make(
        "no-frames.mkv",
        &format!("{PICTURE} {SOUND} -frames:v 0 {H264} -c:a aac"),
    );
    refused(&no_frames, "the video has no frames: ");
}

#[test]
fn the_shape_of_pixels_is_kept() {
    let files = Files::new();
    let wide = format!("{PICTURE} -vf setsar=16/11 {H264}");
    for tags in [
        "",
        "-colorspace bt709 -color_trc bt709 -color_primaries bt709",
    ] {
        let input = files.make("in.mp4", &format!("{wide} {tags}"));
        // Matroska expresses it by the display size of the picture, in whole pixels.
        for name in ["out.mp4", "out.mov"] {
            let job = FileJob {
                overwrite: true,
                ..FileJob::new(&input, files.path(name))
            };
            run(&job).unwrap();
            assert_eq!(
                picture(&job.output, "sample_aspect_ratio"),
                "16:11",
                "{name} {tags}"
            );
        }
    }
}

/// Makes a longer video with sound, for runs that end early.
fn long_video(files: &Files) -> PathBuf {
    let picture = "-f lavfi -i testsrc2=size=320x240:rate=25:duration=12";
    let sound = "-f lavfi -i sine=frequency=440:sample_rate=44100:duration=12";
    files.make("long.mp4", &format!("{picture} {sound} {H264} -c:a aac"))
}

#[test]
fn a_stopped_run_is_a_whole_file_up_to_there() {
    let files = Files::new();
    let input = long_video(&files);
    for name in ["out.mp4", "out.mkv"] {
        let job = FileJob::new(&input, files.path(name));
        let (mut source, sink) = media::open(&job).unwrap();
        let mut sink = Box::new(sink);
        let mut n_frames = 0;
        while let Some(frame) = source.next().unwrap() {
            sink.push(frame).unwrap();
            n_frames += 1;
            if n_frames == 60 {
                source.stop().unwrap();
            }
        }
        assert!(
            (60..80).contains(&n_frames),
            "{n_frames} frames after a stop at 60"
        );
        let end = sink.end().unwrap();
        assert_eq!(end, Pts(n_frames * 40_000_000));
        sink.finish().unwrap();
        let verification = verify::compare(&job, Some(end)).unwrap();
        assert_eq!(verification.frames_out, n_frames);
        assert_eq!(verification.frames_in, n_frames);
        assert_eq!(verification.max_pts_error_nanos / 1_000_000, 0);
        assert_eq!(verification.audio_equal, Some(true));
        // The sound ends with the picture.
        let overhang = verification.duration_out.as_secs_f64() - end.secs();
        assert!(
            overhang.abs() < 0.05,
            "{name}: sound ends {overhang} s after the picture"
        );
        let length = seconds(&job.output);
        assert!(
            (length - end.secs()).abs() < 0.05,
            "{name}: {length} s for {end:?}"
        );
    }
}

#[test]
fn finishing_before_the_end_of_the_source_does_not_hang() {
    let files = Files::new();
    let job = FileJob::new(long_video(&files), files.path("out.mp4"));
    let (mut source, sink) = media::open(&job).unwrap();
    let mut sink = Box::new(sink);
    for _ in 0..30 {
        sink.push(source.next().unwrap().unwrap()).unwrap();
    }
    sink.finish().unwrap();
    assert_eq!(frame_times(&job.output).len(), 30);
}

#[test]
fn an_abandoned_run_leaves_a_part_that_decodes() {
    let files = Files::new();
    let input = long_video(&files);
    for name in ["out.mp4", "out.mkv", "out.ts"] {
        let job = FileJob::new(&input, files.path(name));
        let (mut source, sink) = media::open(&job).unwrap();
        let mut sink = Box::new(sink);
        for _ in 0..250 {
            sink.push(source.next().unwrap().unwrap()).unwrap();
        }
        drop(sink);
        // The source's reader is notified and does not wait forever.
        while let Ok(Some(_)) = source.next() {}
        drop(source);
        assert!(!job.output.exists());
        let n_frames = frame_times(&job.part_path()).len();
        assert!(n_frames > 100, "{name}: {n_frames} frames survive");
    }
}

#[test]
fn a_killed_run_leaves_a_part_that_decodes() {
    // The child process is this test again; the environment tells it to write half a file and then to be killed.
    if let Ok(input) = std::env::var("VITSCOPE_TEST_KILL") {
        let output = Path::new(&input).with_file_name("out.mp4");
        let (mut source, mut sink) = media::open(&FileJob::new(input, output)).unwrap();
        for _ in 0..250 {
            sink.push(source.next().unwrap().unwrap()).unwrap();
        }
        std::process::Command::new("kill")
            .args(["-9", &std::process::id().to_string()])
            .status()
            .unwrap();
    }
    let files = Files::new();
    let input = long_video(&files);
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "media::a_killed_run_leaves_a_part_that_decodes"])
        .env("VITSCOPE_TEST_KILL", &input)
        .output()
        .unwrap()
        .status;
    assert!(!status.success());
    let n_frames = frame_times(&files.path("out.mp4.part")).len();
    assert!(n_frames > 100, "{n_frames} frames survive");
}

#[test]
fn outputs_that_cannot_be_written_are_refused() {
    let files = Files::new();
    let input = files.make("in.mp4", &format!("{PICTURE} {H264}"));
    let refused =
        |output: &Path, expected: &str| check_refused(&FileJob::new(&input, output), expected);
    refused(
        &files.path("out.gif"),
        "unknown output extension \"gif\", expected one of mp4, m4v, mov, mkv, webm, ts: ",
    );
    refused(
        &files.path("none/out.mp4"),
        "the output directory does not exist: ",
    );
    refused(&input, "the output would overwrite the input: ");

    let symbolic = files.path("symbolic.mp4");
    std::os::unix::fs::symlink(&input, &symbolic).unwrap();
    refused(&symbolic, "the output would overwrite the input: ");
    let hard = files.path("hard.mp4");
    std::fs::hard_link(&input, &hard).unwrap();
    refused(&hard, "the output would overwrite the input: ");

    let there = files.write("there.mp4", "mine");
    refused(&there, "the output already exists");
    let job = FileJob {
        overwrite: true,
        ..FileJob::new(&input, &there)
    };
    assert_eq!(run(&job).unwrap(), 50);
    let codec = FileJob {
        codec: Some(VideoCodec::X264),
        ..FileJob::new(&input, files.path("out.webm"))
    };
    check_refused(
        &codec,
        "codec x264 cannot be stored in WebM, expected one of vp8, vp9",
    );
}

#[test]
fn a_full_disk_is_one_sentence_and_no_part() {
    let files = Files::new();
    let input = long_video(&files);
    let job = FileJob::new(&input, files.path("out.mp4"));
    // Every write to this device fails as on a full disk.
    std::os::unix::fs::symlink("/dev/full", job.part_path()).unwrap();
    let message = run(&job).unwrap_err().to_string();
    assert_eq!(
        message,
        format!("no space left on the disk: {:?}", job.output)
    );
    assert!(job.part_path().symlink_metadata().is_err());
    assert!(!job.output.exists());
}

#[test]
fn a_trimmed_mp4_keeps_every_frame_and_packet() {
    let files = Files::new();
    // One keyframe per second: GStreamer's own reading of this file loses a second of it.
    let long = long_video(&files);
    let input = files.make(
        "trimmed.mp4",
        &format!("-ss 1.9 -t 4 -i {} -c copy", long.display()),
    );
    let job = FileJob::new(&input, files.path("out.mp4"));
    let n_frames = run(&job).unwrap();
    let verification = verify::compare(&job, None).unwrap();
    assert_eq!(verification.complaint(), None, "{verification}");
    // ffmpeg leaves out a frame that the cut splits; players show the rest of it.
    let whole_frames = frame_times(&input).len() as u64;
    assert!(
        (whole_frames..=whole_frames + 1).contains(&n_frames),
        "{n_frames} of {whole_frames}"
    );
    assert_eq!(frame_times(&job.output).len() as u64, n_frames);
    assert_eq!(sound_hash(&job.output, ""), sound_hash(&input, ""));
}

#[test]
fn a_truncated_matroska_is_not_whole() {
    let files = Files::new();
    let long = long_video(&files);
    let whole = files.make("whole.mkv", &format!("-i {} -c copy", long.display()));
    let bytes = std::fs::read(&whole).unwrap();
    let cut = files.write("cut.mkv", &bytes[..bytes.len() / 2]);
    let job = FileJob::new(&cut, files.path("out.mkv"));
    run(&job).unwrap();
    let complaint = verify::compare(&job, None).unwrap().complaint().unwrap();
    assert!(
        complaint.starts_with("the container claims 12.0"),
        "{complaint}"
    );
}

#[test]
fn frames_are_written_in_place() {
    let files = Files::new();
    let input = files.make(
        "in.mp4",
        &format!("{PICTURE} -c:v libx264 -preset veryfast -pix_fmt yuv420p -g 1"),
    );
    let (mut source, _sink) = media::open(&FileJob::new(&input, files.path("out.mp4"))).unwrap();
    while let Some(mut frame) = source.next().unwrap() {
        let before = frame.bytes().as_ptr();
        let after = frame.bytes_mut().unwrap().as_ptr();
        assert_eq!(before, after, "frame {} was copied", frame.seq);
    }
}

#[test]
fn changed_and_widened_frames_reach_the_output() {
    use std::sync::Arc;
    use vitscope::frame::{Frame, FrameSize, PixelFormat, PixelLayout};

    let files = Files::new();
    let input = files.make("in.mp4", &format!("{PICTURE} {SOUND} {H264} -c:a aac"));
    let job = FileJob::new(&input, files.path("out.mp4"));
    let (mut source, sink) = media::open(&job).unwrap();
    let mut sink = Box::new(sink);
    let size = FrameSize {
        width_px: 640,
        height_px: 240,
    };
    let layout = Arc::new(PixelLayout::packed(PixelFormat::I420, size));
    while let Some(frame) = source.next().unwrap() {
        // Mid gray, in separately allocated memory.
        let bytes = vec![128_u8; layout.min_len()];
        let wide = Frame::new(
            frame.seq,
            frame.pts,
            frame.duration,
            Arc::clone(&layout),
            Box::new(bytes),
        );
        sink.push(wide.unwrap()).unwrap();
    }
    sink.finish().unwrap();
    assert_eq!(picture(&job.output, "width,height"), "640,240");
    assert_eq!(frame_times(&job.output), frame_times(&input));
    let gray = files.make(
        "gray.mp4",
        "-f lavfi -i color=0x828282:size=640x240:rate=25:duration=2 -pix_fmt yuv420p",
    );
    assert!(similarity(&gray, &job.output) > 35.0);
}
