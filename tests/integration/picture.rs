//! Properties of the picture: colors, dynamic range, fields, alpha and orientation, checked by ffmpeg and ffprobe.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::path::{Path, PathBuf};
use std::process::Command;

use vitscope::media::{self, FileJob, HdrMode, VideoCodec, verify};

use crate::media::{Files, check_copy, check_refused, ffprobe, picture, run, similarity};

/// Five frames of SMPTE bars: flat colors.
const BARS: &str = "-f lavfi -i smptebars=size=320x240:rate=25:duration=0.2";
const H264: &str = "-c:v libx264 -preset veryfast -crf 4 -pix_fmt yuv420p";
const COLORS: &str = "color_range,color_space,color_transfer,color_primaries";
const BT709: &str = "-colorspace bt709 -color_trc bt709 -color_primaries bt709";

/// Runs ffmpeg, which writes raw bytes to its standard output.
fn raw(input: &Path, args: &str) -> Vec<u8> {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(input)
        .args(args.split_whitespace())
        .args(["-f", "rawvideo", "-"])
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    output.stdout
}

/// Returns R, G and B of the first frame on a grid of 20 × 15 places, as ffmpeg reads the file's colors.
fn levels(input: &Path) -> Vec<u8> {
    raw(
        input,
        "-frames:v 1 -vf format=rgb24,scale=20:15:flags=area -pix_fmt rgb24",
    )
}

/// Difference that nine of ten places do not exceed (edges blur the others), and the mean difference.
fn differences(a: &[u8], b: &[u8]) -> (u8, f64) {
    assert_eq!(a.len(), b.len());
    let mut differences: Vec<u8> = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).collect();
    differences.sort_unstable();
    let mean = differences.iter().map(|d| f64::from(*d)).sum::<f64>() / a.len() as f64;
    (differences[differences.len() * 9 / 10], mean)
}

/// Asserts that nine of ten places have the same colors within one level.
fn check_levels(input: &Path, output: &Path) {
    check_levels_within(1, input, output);
}

/// Asserts the same within `n_levels` levels.
fn check_levels_within(n_levels: u8, input: &Path, output: &Path) {
    let (most, mean) = differences(&levels(input), &levels(output));
    assert!(
        most <= n_levels && mean < 1.0,
        "{input:?} to {output:?}: colors differ by {most}, {mean:.2} on average"
    );
}

fn fine(input: &Path, output: &Path) -> FileJob {
    FileJob {
        crf: Some(2),
        overwrite: true,
        ..FileJob::new(input, output)
    }
}

/// Returns the colors that ffprobe reads, which it repeats for each program of a transport stream.
fn tags(path: &Path) -> String {
    let tags = picture(path, COLORS);
    let tags = tags.lines().next().unwrap().trim_end_matches(',');
    // Both names stand for the same matrix.
    tags.replace("bt470bg", "smpte170m")
}

#[test]
fn colors_that_only_the_bitstream_describes_are_kept() {
    let files = Files::new();
    let full = "-vf scale=out_range=full -color_range pc";
    let full_709 =
        &format!("-vf scale=out_range=full:out_color_matrix=bt709 -color_range pc {BT709}");
    let limited_709 = &format!("-vf scale=out_color_matrix=bt709 -color_range tv {BT709}");
    let jpeg = "-c:v mjpeg -q:v 1 -pix_fmt yuvj420p";
    let vp9 = "-c:v libvpx-vp9 -b:v 2M -pix_fmt yuv420p";
    let sources = [
        ("full.ts", H264, full),
        ("full_709.ts", H264, full_709),
        ("limited_709.ts", H264, limited_709),
        ("mpeg2.ts", "-c:v mpeg2video -q:v 1", limited_709),
        ("full.avi", H264, full),
        ("full_709.avi", H264, full_709),
        ("limited_709.avi", H264, limited_709),
        ("full.mp4", H264, full),
        ("full.mkv", H264, full),
        ("full.webm", vp9, full),
        ("full_709.webm", vp9, full_709),
        ("jpeg.avi", jpeg, ""),
        ("jpeg.mov", jpeg, ""),
        ("jpeg.mkv", jpeg, ""),
    ];
    for (name, codec, colors) in sources {
        let input = files.make(name, &format!("{BARS} {colors} {codec}"));
        for output in ["out.mp4", "out.mkv", "out.ts"] {
            let job = fine(&input, &files.path(output));
            run(&job).unwrap();
            assert_eq!(tags(&job.output), tags(&input), "{name} to {output}");
            check_levels(&input, &job.output);
        }
    }
}

#[test]
fn codecs_that_cannot_say_their_colors_get_converted_ones() {
    let files = Files::new();
    let full_709 =
        &format!("-vf scale=out_range=full:out_color_matrix=bt709 -color_range pc {BT709}");
    let input = files.make("in.mp4", &format!("{BARS} {full_709} {H264}"));
    for (codec, name) in [
        (VideoCodec::Vp8, "out.webm"),
        (VideoCodec::Vp9, "out.webm"),
        (VideoCodec::OpenH264, "out.ts"),
        (VideoCodec::OpenH264, "out.mp4"),
    ] {
        let job = FileJob {
            codec: Some(codec),
            ..fine(&input, &files.path(name))
        };
        run(&job).unwrap();
        // The other encoders have no finer quantizer.
        let n_levels = if codec == VideoCodec::Vp9 { 1 } else { 2 };
        check_levels_within(n_levels, &input, &job.output);
    }
}

/// The matrix is that of VP8, so that only the range differs.
#[test]
fn a_full_range_becomes_a_limited_one_where_nothing_else_differs() {
    let files = Files::new();
    let gray = "-f lavfi -i color=0xf0f0f0:size=160x120:rate=25:duration=0.4";
    let colors = "-f lavfi -i color=0xc08060:size=160x120:rate=25:duration=0.4";
    let full = "-vf scale=out_color_matrix=bt601:out_range=full,format=yuvj420p -color_range pc -colorspace smpte170m";
    for (name, scene) in [("gray", gray), ("colors", colors)] {
        for (extension, codec) in [("mp4", "-c:v libx264 -qp 1"), ("mkv", "-c:v mjpeg -q:v 1")] {
            let input = files.make(
                &format!("{name}.{extension}"),
                &format!("{scene} {full} {codec}"),
            );
            for (codec, output) in [
                (VideoCodec::Vp8, "out.webm"),
                (VideoCodec::OpenH264, "out.mp4"),
                (VideoCodec::X264, "out.mp4"),
            ] {
                let job = FileJob {
                    codec: Some(codec),
                    ..fine(&input, &files.path(output))
                };
                run(&job).unwrap();
                let (most, _) = differences(&levels(&input), &levels(&job.output));
                assert!(most <= 2, "{input:?} to {codec}: colors differ by {most}");
            }
        }
    }
}

#[test]
fn gray_is_black_at_zero_where_nobody_says_else() {
    let files = Files::new();
    let ramp =
        "-f lavfi -i color=gray:size=160x120:rate=25:duration=0.4,format=gray,geq=lum='X*255/159'";
    for (name, codec) in [("in.mov", "png"), ("in.mkv", "ffv1")] {
        let input = files.make(name, &format!("{ramp} -c:v {codec}"));
        let job = fine(&input, &files.path("out.mp4"));
        run(&job).unwrap();
        let gray = |path: &Path| raw(path, "-frames:v 1 -pix_fmt gray");
        let pairs = gray(&input).into_iter().zip(gray(&job.output));
        let most = pairs.map(|(a, b)| a.abs_diff(b)).max();
        assert!(most.unwrap() <= 2, "{name}: {most:?}");
    }
}

#[test]
fn vp8_is_bt601_in_high_definition_too() {
    let files = Files::new();
    let bars = "-f lavfi -i smptebars=size=1280x720:rate=25:duration=0.2";
    let input = files.make(
        "in.webm",
        &format!("{bars} -c:v libvpx -b:v 9M -auto-alt-ref 0"),
    );
    let job = fine(&input, &files.path("out.mp4"));
    run(&job).unwrap();
    assert_eq!(picture(&job.output, "color_space"), "smpte170m");
    check_levels(&input, &job.output);
}

/// Makes ten frames of `scene` in HDR and in SDR, both produced by zimg.
fn hdr_and_sdr(files: &Files, scene: &str, transfer: &str) -> [PathBuf; 2] {
    let scene = format!("-f lavfi -t 0.4 -i {scene}");
    let sdr = "scale=out_color_matrix=bt709,\
               setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709";
    let sdr: String = sdr.split_whitespace().collect();
    // White is at 203 cd/m², as in BT.2408.
    let hdr = format!(
        "{sdr},zscale=t=linear:npl=203,format=gbrpf32le,\
         zscale=t={transfer}:p=2020:m=2020_ncl:r=limited:npl=203,format=yuv420p10le"
    );
    let hdr: String = hdr.split_whitespace().collect();
    let x265 = format!(
        "-c:v libx265 -preset ultrafast -crf 8 -x265-params \
         log-level=none:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
    );
    [
        files.make("hdr.mkv", &format!("{scene} -vf {hdr} {x265}")),
        files.make("sdr.mp4", &format!("{scene} -vf {sdr} {H264}")),
    ]
}

/// Computes Pearson's correlation.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let products = |a: &[f64], b: &[f64], mean_a: f64, mean_b: f64| -> f64 {
        let pairs = a.iter().zip(b);
        pairs.map(|(a, b)| (a - mean_a) * (b - mean_b)).sum()
    };
    products(a, b, mean_a, mean_b)
        / (products(a, a, mean_a, mean_a) * products(b, b, mean_b, mean_b)).sqrt()
}

#[test]
fn high_dynamic_range_is_mapped_to_the_standard_one() {
    let files = Files::new();
    for transfer in ["smpte2084", "arib-std-b67"] {
        // Light below white is preserved: mid gray stays mid gray.
        let [hdr, sdr] = hdr_and_sdr(&files, "color=c=0x808080:size=320x240:rate=25", transfer);
        for name in ["out.mp4", "out.webm"] {
            let job = fine(&hdr, &files.path(name));
            run(&job).unwrap();
            let (most, _) = differences(&levels(&sdr), &levels(&job.output));
            assert!(most <= 3, "{transfer} to {name}: gray is {most} off");
        }
        let [hdr, sdr] = hdr_and_sdr(&files, "testsrc2=size=320x240:rate=25", transfer);
        let job = fine(&hdr, &files.path("out.mp4"));
        run(&job).unwrap();
        assert_eq!(picture(&job.output, COLORS), "tv,bt709,bt709,bt709");
        let as_numbers = |path| levels(path).into_iter().map(f64::from).collect::<Vec<_>>();
        let alike = correlation(&as_numbers(&sdr), &as_numbers(&job.output));
        assert!(alike > 0.95, "{transfer}: {alike}");
    }
}

/// Returns the luma of the first frame in ten bits.
fn deep_luma(path: &Path, n_pixels: usize) -> Vec<u16> {
    let bytes = raw(path, "-frames:v 1 -pix_fmt yuv420p10le");
    let samples = bytes.as_chunks().0.iter().take(n_pixels);
    samples.map(|&sample| u16::from_le_bytes(sample)).collect()
}

/// Returns the mean difference of samples in code values.
fn mean_difference(before: &[u16], after: &[u16]) -> f64 {
    assert_eq!(before.len(), after.len());
    let pairs = before.iter().zip(after);
    let off: u32 = pairs.map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
    f64::from(off) / before.len() as f64
}

#[test]
fn ten_bits_stay_where_the_encoder_has_them() {
    let files = Files::new();
    // A ramp of 128 levels, 33 in eight bits.
    let ramp = "-f lavfi -i color=size=512x64:rate=25:duration=1 \
                -vf format=yuv420p10le,geq=lum=300+X/4:cb=480+Y/2:cr=512";
    let x265 = "-c:v libx265 -preset ultrafast -x265-params log-level=none:lossless=1";
    let vp9 = "-c:v libvpx-vp9 -lossless 1 -pix_fmt yuv420p10le";
    let upright = files.make("upright.mp4", &format!("{ramp} {x265}"));
    let turned = "-c copy -metadata:s:v rotate=180";
    let turned = format!("-i {} {turned}", upright.display());
    for (input, args) in [
        ("hevc.mp4", format!("{ramp} {x265}")),
        ("hevc.ts", format!("{ramp} {x265}")),
        ("prores.mov", format!("{ramp} -c:v prores_ks -profile:v 3")),
        ("vp9.webm", format!("{ramp} {vp9}")),
        ("turned.mp4", turned),
    ] {
        let input = files.make(input, &args);
        for (codec, output, n_levels) in [
            (VideoCodec::X265, "out.mp4", 120),
            (VideoCodec::X265, "out.mov", 120),
            (VideoCodec::X265, "out.mkv", 120),
            (VideoCodec::X265, "out.ts", 120),
            (VideoCodec::Vp9, "out.webm", 120),
            (VideoCodec::X264, "out.mp4", 30),
        ] {
            let job = FileJob {
                codec: Some(codec),
                ..fine(&input, &files.path(output))
            };
            run(&job).unwrap();
            let verification = verify::compare(&job, None).unwrap();
            assert_eq!(verification.complaint(), None, "{input:?} to {output}");
            let n_pixels = 512 * 64;
            let (before, after) = (
                deep_luma(&input, n_pixels),
                deep_luma(&job.output, n_pixels),
            );
            let mut levels = after.clone();
            levels.sort_unstable();
            levels.dedup();
            let is_deep = codec != VideoCodec::X264;
            assert_eq!(
                levels.len() >= 100,
                is_deep,
                "{input:?} to {output}: {levels:?}"
            );
            assert!(
                levels.len() >= n_levels,
                "{input:?} to {output}: {levels:?}"
            );
            let mean = mean_difference(&before, &after);
            let most = if is_deep { 1.0 } else { 2.5 };
            assert!(mean < most, "{input:?} to {output}: luma is {mean} off");
        }
    }
}

#[test]
fn a_high_dynamic_range_is_kept_where_it_is_asked_for() {
    let files = Files::new();
    let wide = "colorprim=bt2020:transfer=bt2020-10:colormatrix=bt2020nc";
    let wide = files.make(
        "wide.mkv",
        &format!("{BARS} -pix_fmt yuv420p10le -c:v libx265 -x265-params log-level=none:{wide}"),
    );
    for name in ["out.mp4", "out.webm"] {
        let job = FileJob {
            hdr: HdrMode::Keep,
            ..fine(&wide, &files.path(name))
        };
        run(&job).unwrap();
        assert_eq!(tags(&job.output), tags(&wide), "BT.2020 to {name}");
    }
    for transfer in ["smpte2084", "arib-std-b67"] {
        let [hdr, _] = hdr_and_sdr(&files, "testsrc2=size=320x240:rate=25", transfer);
        let light = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1):max-cll=1000,400";
        let colors = format!("colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc");
        let hdr = files.make(
            "light.mkv",
            &format!(
                "-i {} -c:v libx265 -preset ultrafast -crf 4 -x265-params log-level=none:{colors}:{light}",
                hdr.display()
            ),
        );
        for name in ["out.mp4", "out.mkv", "out.ts", "out.webm"] {
            let job = FileJob {
                hdr: HdrMode::Keep,
                ..fine(&hdr, &files.path(name))
            };
            run(&job).unwrap();
            assert_eq!(tags(&job.output), tags(&hdr), "{transfer} to {name}");
            let n_pixels = 320 * 240;
            let (before, after) = (deep_luma(&hdr, n_pixels), deep_luma(&job.output, n_pixels));
            let mean = mean_difference(&before, &after);
            assert!(mean < 3.0, "{transfer} to {name}: luma is {mean} off");
            if name == "out.webm" {
                // VP9's bitstream does not carry this information, only the container does.
                let said = "stream_side_data=max_luminance,min_luminance,max_content";
                let light = ffprobe(
                    &job.output,
                    &format!("-select_streams v -show_entries {said}"),
                );
                assert!(
                    light.contains("1000/1") || light.contains("10000000/10000"),
                    "{light}"
                );
            } else {
                let light = |path| {
                    let said = "frame_side_data=max_luminance,max_content";
                    ffprobe(
                        path,
                        &format!("-select_streams v -read_intervals %+#1 -show_entries {said}"),
                    )
                };
                assert_eq!(light(&job.output), light(&hdr), "{transfer} to {name}");
            }
        }
        let job = FileJob {
            hdr: HdrMode::Keep,
            codec: Some(VideoCodec::X264),
            ..FileJob::new(&hdr, files.path("refused.mp4"))
        };
        check_refused(
            &job,
            "codec x264 writes 8 bits per sample, which is too few to keep HDR, expected x265",
        );
    }
}

/// Returns the attributions of each frame of `input`, explained by the default model, and the log.
#[cfg(all(feature = "cli", feature = "embedded-models"))]
fn attributions(files: &Files, input: &Path) -> (Vec<Vec<f64>>, String) {
    attributions_with(files, input, &[])
}

/// Returns the same with further options.
#[cfg(all(feature = "cli", feature = "embedded-models"))]
fn attributions_with(files: &Files, input: &Path, options: &[&str]) -> (Vec<Vec<f64>>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_vitscope"))
        .arg("file")
        .arg(input)
        .arg(files.path("explained.mp4"))
        .args(["--overwrite", "--progress", "none", "--scores", "-"])
        .args(["--target", "bird"])
        .args(options)
        .output()
        .unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{log}");
    let records = String::from_utf8(output.stdout).unwrap();
    let maps = records.lines().filter_map(|line| {
        let record: vitscope::sidecar::Record = serde_json::from_str(line).ok()?;
        let map = record.maps?.into_iter().next()?;
        Some(map.attribution.into_iter().map(f64::from).collect())
    });
    (maps.collect(), log)
}

/// For a photograph, the maps of its HDR version match those of its SDR version, and better than if the HDR is not
/// declared.
#[test]
#[cfg(all(feature = "cli", feature = "embedded-models"))]
fn the_model_sees_the_scene_and_not_its_high_dynamic_range() {
    let files = Files::new();
    let bird = concat!(env!("CARGO_MANIFEST_DIR"), "/models/everyday/cockatoo.png");
    let scene = format!("movie={bird}:loop=0,setpts=N/25/TB,crop=iw/2:ih/2:0:0,scale=320x240");
    for (transfer, name) in [("smpte2084", "PQ"), ("arib-std-b67", "HLG")] {
        let [hdr, sdr] = hdr_and_sdr(&files, &scene, transfer);
        let (expected, _) = attributions(&files, &sdr);
        let alike = |maps: &[Vec<f64>]| {
            let pairs = maps.iter().zip(&expected);
            let sum: f64 = pairs
                .map(|(got, expected)| correlation(got, expected))
                .sum();
            sum / maps.len() as f64
        };
        let (got, log) = attributions(&files, &hdr);
        assert_eq!(got.len(), 10, "{log}");
        let said = format!("the video is HDR ({name}), tone-mapping it to SDR");
        assert_eq!(log.matches(&said).count(), 1, "{log}");

        // If HDR is kept in the output, the model sees the same.
        let (kept, log) = attributions_with(&files, &hdr, &["--hdr", "keep", "--mode", "original"]);
        assert!(!log.contains("HDR"), "{log}");
        // But for the rounding to 8 bits, which depends on the instructions that the scene was made with.
        for (kept, mapped) in kept.iter().zip(&got) {
            let alike = correlation(kept, mapped);
            assert!(alike > 0.99, "{transfer}: {alike}");
        }
        assert_eq!(tags(&files.path("explained.mp4")), tags(&hdr));

        let tags = "transfer_characteristics=1:colour_primaries=1:matrix_coefficients=1";
        let untold = files.make(
            "untold.ts",
            &format!("-i {} -c copy -bsf:v hevc_metadata={tags}", hdr.display()),
        );
        let (untold, log) = attributions(&files, &untold);
        assert!(!log.contains("HDR"), "{log}");
        let (told, untold) = (alike(&got), alike(&untold));
        assert!(told > 0.95 && told > untold, "{transfer}: {told} {untold}");
    }
}

#[test]
fn interlaced_pictures_become_as_many_whole_ones() {
    let files = Files::new();
    let fields = "-f lavfi -i testsrc2=size=320x240:rate=50:duration=1 -vf interlace=lowpass=0";
    let mpeg2 = "-c:v mpeg2video -q:v 2 -bf 2 -flags +ilme+ildct";
    let h264 = &format!("{H264} -bf 2 -flags +ilme+ildct");
    for (name, codec, scan) in [
        ("top.ts", mpeg2, "tff"),
        ("top.mp4", h264, "tff"),
        ("bottom.mkv", &format!("{h264} -x264-params bff=1"), "bff"),
    ] {
        let input = files.make(name, &format!("{fields}:scan={scan} {codec}"));
        let output = check_copy(&files, &input, "out.mp4", 1000);
        std::fs::rename(&output, files.path("checked.mp4")).unwrap();
        let output = files.path("checked.mp4");
        assert_eq!(picture(&output, "field_order"), "progressive", "{name}");
        // Each frame shows the scene at the time of its first field.
        let whole = files.make(
            "whole.mp4",
            &format!("-f lavfi -i testsrc2=size=320x240:rate=50:duration=1 -vf select=not(mod(n\\,2)) -fps_mode passthrough {H264}"),
        );
        let similarity = similarity(&whole, &output);
        assert!(similarity > 25.0, "{name}: {similarity} dB");
    }
}

/// The decoder classifies a stream by its first picture.
#[test]
fn fields_after_progressive_pictures_become_whole_pictures_too() {
    let files = Files::new();
    let mpeg2 = "-c:v mpeg2video -q:v 2";
    let scene = "-f lavfi -i testsrc2=size=320x240:rate=50:duration=1";
    files.make("a.ts", &format!("{scene} -vf fps=25 {mpeg2}"));
    let fields = "-vf interlace=lowpass=0 -flags +ilme+ildct";
    files.make("b.ts", &format!("{scene} {fields} {mpeg2}"));
    let list = files.path("list.txt");
    std::fs::write(&list, "file a.ts\nfile b.ts\n").unwrap();
    for name in ["in.ts", "in.mkv"] {
        let input = files.make(name, &format!("-f concat -i {} -c copy", list.display()));
        let output = files.path("out.mp4");
        run(&fine(&input, &output)).unwrap();
        let whole =
            format!("-f lavfi -i testsrc2=size=320x240:rate=50:duration=1 -vf fps=25 {H264}");
        let whole = files.make("whole.mp4", &whole);
        let second = files.make(
            "second.mp4",
            &format!("-ss 1 -i {} {H264}", output.display()),
        );
        let (combed, similarity) = (
            similarity(&whole, &files.path("b.ts")),
            similarity(&whole, &second),
        );
        assert!(
            similarity > combed + 1.0,
            "{name}: {similarity} and {combed} dB"
        );
    }
}

#[test]
fn progressive_pictures_in_interlaced_streams_stay_as_they_are() {
    let files = Files::new();
    let input = files.make(
        "in.ts",
        "-f lavfi -i testsrc2=size=320x240:rate=25:duration=1 -c:v mpeg2video -q:v 2 -bf 2",
    );
    let output = check_copy(&files, &input, "out.mp4", 1000);
    assert!(similarity(&input, &output) > 33.0);
}

#[test]
fn pictures_with_alpha_are_laid_over_black() {
    let files = Files::new();
    // The left half is opaque, the right half is half transparent.
    let scene = "-f lavfi -i color=0xc08040:size=320x240:rate=25:duration=0.4 \
                 -vf format=rgba,geq=r=p(X\\,Y):g=p(X\\,Y):b=p(X\\,Y):a=if(lt(X\\,160)\\,255\\,128)";
    for (name, codec) in [
        ("in.mov", "-c:v qtrle"),
        ("in.mkv", "-c:v ffv1 -pix_fmt bgra"),
        ("png.mov", "-c:v png"),
        ("in.webm", "-c:v libvpx-vp9 -pix_fmt yuva420p -b:v 1M"),
        (
            "vp8.webm",
            "-c:v libvpx -pix_fmt yuva420p -b:v 1M -auto-alt-ref 0",
        ),
    ] {
        let input = files.make(name, &format!("{scene} {codec}"));
        let job = fine(&input, &files.path("out.mp4"));
        run(&job).unwrap();
        let rgb = raw(
            &job.output,
            "-frames:v 1 -vf scale=4:3:flags=area -pix_fmt rgb24",
        );
        let close =
            |got: &[u8], want: [u8; 3]| got.iter().zip(want).all(|(a, b)| a.abs_diff(b) <= 6);
        assert!(close(&rgb[..3], [0xc0, 0x80, 0x40]), "{name}: {rgb:?}");
        assert!(close(&rgb[9..12], [0x60, 0x40, 0x20]), "{name}: {rgb:?}");
    }
}

/// Replaces bytes at an offset from the place where `find` occurs.
fn patch(
    files: &Files,
    input: &Path,
    name: &str,
    find: &[u8],
    skip: usize,
    bytes: &[u8],
) -> PathBuf {
    let mut file = std::fs::read(input).unwrap();
    let at = file
        .windows(find.len())
        .position(|window| window == find)
        .unwrap()
        + skip;
    file[at..at + bytes.len()].copy_from_slice(bytes);
    let path = files.path(name);
    std::fs::write(&path, file).unwrap();
    path
}

#[test]
fn all_eight_directions_of_an_mp4_are_applied() {
    let files = Files::new();
    let scene = "-f lavfi -i testsrc2=size=320x240:rate=25:duration=0.4";
    let upright = files.make("in.mp4", &format!("{scene} {H264}"));
    for [a, b, c, d] in [
        [1, 0, 0, 1],
        [0, 1, -1, 0],
        [-1, 0, 0, -1],
        [0, -1, 1, 0],
        [-1, 0, 0, 1],
        [1, 0, 0, -1],
        [0, 1, 1, 0],
        [0, -1, -1, 0],
    ] {
        let one = 1_i32 << 16;
        let matrix = [a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30];
        let matrix: Vec<u8> = matrix.iter().flat_map(|n: &i32| n.to_be_bytes()).collect();
        // A track header of version 0: its name, then 40 bytes up to the matrix.
        let input = patch(&files, &upright, "turned.mp4", b"tkhd", 44, &matrix);
        let job = fine(&input, &files.path("out.mp4"));
        run(&job).unwrap();
        // ffmpeg rotates its input by the same matrix.
        let similarity = similarity(&input, &job.output);
        assert!(similarity > 30.0, "{a} {b} {c} {d}: {similarity} dB");
    }
}

#[test]
fn the_roll_of_a_matroska_is_applied() {
    let files = Files::new();
    let scene = "-f lavfi -i testsrc2=size=320x240:rate=25:duration=0.4";
    let upright = files.make("in.mkv", &format!("{scene} {H264} -color_range tv {BT709}"));
    // RFC 9559: counterclockwise.
    for (roll, filter) in [
        (90_f32, "transpose=cclock"),
        (-90.0, "transpose=clock"),
        (180.0, "hflip,vflip"),
    ] {
        // The colors are replaced by the projection and a void element of the same total length.
        let mut file = std::fs::read(&upright).unwrap();
        // Identifiers before the name of the codec are random numbers.
        let codec = file.windows(7).position(|name| name == b"V_MPEG4").unwrap();
        let at = file[codec..].windows(2).position(|id| id == [0x55, 0xb0]);
        let at = codec + at.unwrap();
        let (size, head) = match file[at + 2] {
            1 => (file[at + 9] as usize, 10),
            size => (usize::from(size & 0x7f), 3),
        };
        let mut projection = [&[0x76, 0x75, 0x84][..], &roll.to_be_bytes()].concat();
        projection.extend([0xec, 0x80 | (size - 9) as u8]);
        projection.resize(size, 0);
        file[at..at + 2].copy_from_slice(&[0x76, 0x70]);
        file[at + head..at + head + size].copy_from_slice(&projection);
        let input = files.path("turned.mkv");
        std::fs::write(&input, file).unwrap();
        let job = fine(&input, &files.path("out.mkv"));
        run(&job).unwrap();
        let turned = files.make(
            "turned.mp4",
            &format!("-i {} -vf {filter} {H264}", upright.display()),
        );
        assert!(similarity(&turned, &job.output) > 30.0, "{roll}");
    }
}

#[test]
fn pictures_drawn_over_the_last_one_keep_their_times() {
    let files = Files::new();
    let uneven = "-f lavfi -i testsrc2=size=320x240:rate=10:duration=2 \
                  -vf select=not(mod(n\\,3))+not(mod(n\\,7)) -fps_mode vfr";
    for (name, codec) in [("rle.mov", "-c:v qtrle"), ("cinepak.mov", "-c:v cinepak")] {
        check_times(&files, &files.make(name, &format!("{uneven} {codec}")));
    }
}

fn check_times(files: &Files, input: &Path) {
    let job = fine(input, &files.path("out.mp4"));
    run(&job).unwrap();
    let times = |path| ffprobe(path, "-select_streams v -show_entries packet=pts_time");
    let secs = |text: String| -> Vec<f64> {
        let times = text
            .lines()
            .map(|line| line.trim_matches(',').parse().unwrap());
        let mut times: Vec<f64> = times.collect();
        times.sort_by(f64::total_cmp);
        times
    };
    let (before, after) = (secs(times(input)), secs(times(&job.output)));
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        assert!((before - after).abs() < 0.002, "{before} became {after}");
    }
}

#[test]
#[cfg(feature = "cli")]
fn pictures_that_no_decoder_takes_are_refused() {
    let files = Files::new();
    let scene = "-f lavfi -i testsrc2=size=64x64:rate=25:duration=0.4";
    for (name, args, told) in [
        (
            "gray.mkv",
            "-c:v ffv1 -pix_fmt gray10le",
            "grayscale with 10 bits per sample",
        ),
        (
            "old.avi",
            "-c:v ffv1 -level 1 -pix_fmt yuv440p",
            "4:4:0 with 8 bits per sample",
        ),
        (
            "deep.mkv",
            "-c:v ffv1 -pix_fmt yuva420p16le",
            "4:2:0 with 16 bits per sample and an alpha channel",
        ),
        (
            "gray.mp4",
            "-c:v libx265 -pix_fmt gray10le -x265-params log-level=none",
            "grayscale with 10 bits per sample",
        ),
    ] {
        let input = files.make(name, &format!("{scene} {args}"));
        let out = files.path("out.mp4");
        let run = Command::new(env!("CARGO_BIN_EXE_vitscope"))
            .args(["file", "--model", "cifar10"])
            .args([&input, &out])
            // GStreamer occasionally warns if it is stopped while a demuxer announces its streams.
            .env_remove("G_DEBUG")
            .output()
            .unwrap();
        let said = String::from_utf8(run.stderr).unwrap();
        let expected =
            format!("error: the video is {told}, which GStreamer cannot decode: {input:?}\n");
        assert!(said.ends_with(&expected), "{said}");
        assert_eq!(run.status.code(), Some(1), "{name}");
        assert!(
            !out.exists() && !files.path("out.mp4.part").exists(),
            "{name}"
        );
    }
}

#[test]
#[cfg(feature = "cli")]
fn a_line_says_what_becomes_of_the_picture_and_what_gets_lost() {
    let files = Files::new();
    let scene = "-f lavfi -i testsrc2=size=320x240:rate=25:duration=0.4";
    let tone = "-f lavfi -i sine=frequency=440:duration=0.4";
    let cover = files.make("cover.jpg", &format!("{scene} -frames:v 1"));
    let chapters = files.path("chapters.txt");
    let text = ";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=400\ntitle=One\n";
    std::fs::write(&chapters, text).unwrap();
    let chapters = format!("-i {} -map_chapters 1", chapters.display());
    let two_tones =
        format!("{tone} {tone} -map 0 -map 1 -map 2 -disposition:a:0 0 -disposition:a:1 default");
    let attach = format!(
        "-attach {} -metadata:s:t mimetype=image/jpeg",
        cover.display()
    );
    let font = files.path("font.ttf");
    std::fs::write(&font, [0; 64]).unwrap();
    let attach_font = format!("-attach {} -metadata:s:t mimetype=font/ttf", font.display());
    let titled = format!("{tone} -map 0 -map 1 -metadata:s:a title=Commentary -c:a aac");
    let interlaced = format!("-vf interlace -flags +ilme+ildct {H264}");
    let see_through = "-vf format=argb,colorchannelmixer=aa=0.5 -c:v qtrle";
    let deep = "-c:v libx264 -pix_fmt yuv420p10le";
    for (input, args, output, expected) in [
        ("plain.mp4", H264, "mp4", &[][..]),
        (
            "fields.mp4",
            &interlaced,
            "mp4",
            &["the video is interlaced, producing one frame per pair of fields"],
        ),
        (
            "fields.ts",
            "-vf interlace -flags +ilme+ildct -c:v mpeg2video -q:v 2",
            "mp4",
            &["the video is interlaced, producing one frame per pair of fields"],
        ),
        (
            "alpha.mov",
            see_through,
            "mp4",
            &[
                "the video is RGB, writing 4:2:0: color at half the width and height",
                "the video has transparency, compositing it over black",
            ],
        ),
        (
            "deep.mp4",
            deep,
            "mp4",
            &[
                "the video has more than 8 bits per sample, writing 8; a 10-bit encoder \
               (`--codec x265`, vp9 in WebM) keeps 10",
            ],
        ),
        (
            "half.mp4",
            "-c:v libx264 -pix_fmt yuv422p",
            "mp4",
            &["the video is 4:2:2, writing 4:2:0: color at half the height"],
        ),
        (
            "whole.mp4",
            "-c:v libx264 -pix_fmt yuv444p",
            "mp4",
            &["the video is 4:4:4, writing 4:2:0: color at half the width and height"],
        ),
        (
            "half.mov",
            "-c:v mjpeg -pix_fmt yuvj422p",
            "mp4",
            &["the video is 4:2:2, writing 4:2:0: color at half the height"],
        ),
        (
            "whole.avi",
            "-c:v mjpeg -pix_fmt yuvj444p",
            "mp4",
            &["the video is 4:4:4, writing 4:2:0: color at half the width and height"],
        ),
        ("quarter.mov", "-c:v mjpeg -pix_fmt yuvj420p", "mp4", &[]),
        (
            "rgb.avi",
            "-c:v rawvideo -pix_fmt bgr24",
            "mp4",
            &["the video is RGB, writing 4:2:0: color at half the width and height"],
        ),
        (
            "alpha.webm",
            "-c:v libvpx-vp9 -b:v 1M -vf format=yuva420p,colorchannelmixer=aa=0.5 -auto-alt-ref 0",
            "mp4",
            &["the video has transparency, compositing it over black"],
        ),
        (
            "alpha8.webm",
            "-c:v libvpx -b:v 1M -vf format=yuva420p,colorchannelmixer=aa=0.5 -auto-alt-ref 0",
            "mp4",
            &["the video has transparency, compositing it over black"],
        ),
        (
            "odd.mkv",
            "-vf scale=97:321 -c:v libvpx-vp9 -b:v 1M -pix_fmt yuv420p",
            "mp4",
            &[
                "the encoder accepts only even sizes, repeating the last column or row: 97x321 becomes 98x322",
            ],
        ),
        (
            "chapters.mp4",
            &format!("{chapters} {H264}"),
            "mkv",
            &["not copied: chapters"],
        ),
        ("chapters.mkv", &format!("{chapters} {H264}"), "mkv", &[]),
        (
            "chapters2.mkv",
            &format!("{chapters} {H264}"),
            "mp4",
            &["not copied: chapters"],
        ),
        (
            "code.mov",
            &format!("{H264} -timecode 01:02:03:04"),
            "mp4",
            &["not copied: timecode"],
        ),
        (
            "cover.mkv",
            &format!("{H264} {attach}"),
            "mkv",
            &["not copied: cover art"],
        ),
        ("cover2.mkv", &format!("{H264} {attach}"), "mp4", &[]),
        (
            "font.mkv",
            &format!("{H264} {attach_font}"),
            "mkv",
            &["not copied: attachments"],
        ),
        ("title.mkv", &format!("{titled} {H264}"), "mkv", &[]),
        (
            "title2.mkv",
            &format!("{titled} {H264}"),
            "ts",
            &["not copied: track titles"],
        ),
        (
            "tones.mp4",
            &format!("{two_tones} {H264} -c:a aac"),
            "mp4",
            &["not copied: default flags of audio tracks"],
        ),
        (
            "tones.mkv",
            &format!("{two_tones} {H264} -c:a aac"),
            "mkv",
            &["not copied: default flags of audio tracks"],
        ),
    ] {
        let input = files.make(input, &format!("{scene} {args}"));
        let run = Command::new(env!("CARGO_BIN_EXE_vitscope"))
            .arg("file")
            .args([&input, &files.path(&format!("out.{output}"))])
            .args(["--overwrite", "--progress", "none", "--model"])
            .arg(crate::common::fixture("vit_a"))
            .output()
            .unwrap();
        let log = String::from_utf8(run.stderr).unwrap();
        assert!(run.status.success(), "{log}");
        let warned = log
            .lines()
            .filter_map(|line| line.trim().strip_prefix("WARN "));
        let said: Vec<&str> = warned
            .filter(|line| !line.contains("neither video nor audio"))
            .collect();
        assert_eq!(said, expected, "{input:?} to {output}");
    }
}

#[test]
fn inputs_that_cannot_be_read_are_named() {
    let files = Files::new();
    let output = files.path("out.mp4");
    let refused =
        |input: &Path, expected: &str| check_refused(&FileJob::new(input, &output), expected);
    let scene = "-f lavfi -i testsrc2=size=320x240:rate=10:duration=1";
    for (name, args, pictures) in [
        ("moving.webp", "-c:v libwebp_anim", "a WebP picture"),
        ("moving.gif", "", "a GIF picture"),
        ("moving.png", "-f apng", "a PNG picture"),
        (
            "moving.mjpeg",
            "-c:v mjpeg",
            "bare JPEG pictures without timestamps",
        ),
    ] {
        let input = files.make(name, &format!("{scene} {args}"));
        refused(
            &input,
            &format!("the input contains {pictures}, expected a video: "),
        );
    }
    refused(
        Path::new("-"),
        "standard input can be read only once, expected a file: ",
    );
    for address in ["http://localhost/in.mp4", "https://localhost/in.mp4"] {
        refused(
            Path::new(address),
            "the input is a URL, expected a file; use `vitscope live` to read streams: ",
        );
    }
    let playlist = files.path("live.m3u8");
    std::fs::write(&playlist, "#EXTM3U\n#EXTINF:1,\na.ts\n").unwrap();
    refused(
        &playlist,
        "the input is a playlist, expected a video file; use `vitscope live` to play it: ",
    );
    let pipe = files.path("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    refused(
        &pipe,
        "the input is a pipe or a device, which can be read only once, ",
    );
}

#[test]
fn a_file_may_be_named_by_its_address() {
    let read = |address: &str| media::local_file(Path::new(address)).map_err(|err| err.to_string());
    assert_eq!(read("in.mp4"), Ok("in.mp4".into()));
    assert_eq!(read("file:///a%20b/in.mp4"), Ok("/a b/in.mp4".into()));
    let error = read("file://elsewhere%/in.mp4").unwrap_err();
    assert!(error.starts_with("not a valid file URL ("), "{error}");
}
