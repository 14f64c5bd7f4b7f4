//! Contents of a file besides picture and sound, checked by ffprobe.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::path::{Path, PathBuf};

use vitscope::media::FileJob;

use crate::media::{Files, ffprobe, run};

const PICTURE: &str = "-f lavfi -i testsrc2=size=320x240:rate=25:duration=1";
const SOUND: &str = "-f lavfi -i sine=frequency=440:duration=1";
const H264: &str = "-c:v libx264 -preset veryfast -pix_fmt yuv420p";

/// Makes a file with titles, a date and two chapters, with or without sound.
fn titled(files: &Files, name: &str, sound: &str) -> PathBuf {
    let words = files.path("words.txt");
    std::fs::write(
        &words,
        ";FFMETADATA1\ntitle=My \\\"Title\\\" für Größe\nartist=Me\ncreation_time=2020-01-02T03:04:05Z\n\
         [CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=500\ntitle=One\n\
         [CHAPTER]\nTIMEBASE=1/1000\nSTART=500\nEND=1000\ntitle=Two\n",
    )
    .unwrap();
    let maps = if sound.is_empty() {
        "-map 1:v"
    } else {
        "-map 1:v -map 2:a -c:a aac"
    };
    files.make(
        name,
        &format!(
            "-i {} {PICTURE} {sound} {maps} -map_metadata 0 -map_chapters 0 {H264}",
            words.display()
        ),
    )
}

/// Returns a tag of the whole file, whose name may be in capitals.
fn tag(path: &Path, name: &str) -> Option<String> {
    let tags = ffprobe(path, "-show_entries format_tags -of default=nw=1");
    tags.lines().find_map(|line| {
        let (key, value) = line.strip_prefix("TAG:")?.split_once('=')?;
        key.eq_ignore_ascii_case(name).then(|| value.to_owned())
    })
}

#[test]
fn titles_and_the_date_are_kept_with_and_without_sound() {
    let files = Files::new();
    for from in ["mp4", "mkv"] {
        for sound in ["", SOUND] {
            let input = titled(&files, &format!("in.{from}"), sound);
            for to in ["mp4", "mov", "mkv"] {
                let job = FileJob {
                    overwrite: true,
                    ..FileJob::new(&input, files.path(&format!("out.{to}")))
                };
                run(&job).unwrap();
                for name in ["title", "artist"] {
                    assert_eq!(tag(&job.output, name), tag(&input, name), "{from} to {to}");
                }
                let date = tag(&job.output, "creation_time");
                assert_eq!(
                    date.as_deref(),
                    Some("2020-01-02T03:04:05.000000Z"),
                    "{from} to {to}"
                );
            }
        }
    }
}

#[test]
fn chapters_of_matroska_are_kept_in_matroska() {
    let files = Files::new();
    let chapters = |path: &Path| {
        ffprobe(
            path,
            "-show_chapters -show_entries chapter=start_time,end_time:chapter_tags=title",
        )
    };
    for sound in ["", SOUND] {
        let input = titled(&files, "in.mkv", sound);
        let job = FileJob {
            overwrite: true,
            ..FileJob::new(&input, files.path("out.mkv"))
        };
        run(&job).unwrap();
        assert_eq!(chapters(&job.output), chapters(&input));
        assert!(chapters(&input).contains("Two"));
    }
}

#[test]
fn tracks_in_matroska_have_the_titles_and_languages_that_they_had() {
    let files = Files::new();
    // An MP4 explicitly says "undetermined", and the name of a title tag may be in capitals.
    let told = |path: &Path| -> Vec<String> {
        let tags = ffprobe(
            path,
            "-show_entries stream_tags=language,title -of default=nw=1",
        );
        let tags = tags.lines().filter(|line| *line != "TAG:language=und");
        tags.map(|line| line.replace("TITLE", "title")).collect()
    };
    for (from, tags) in [
        ("mp4", ""),
        ("mkv", "-metadata:s:a language=ger"),
        (
            "mkv",
            "-metadata:s:v title=Garden -metadata:s:a title=Audio",
        ),
        (
            "mkv",
            "-metadata:s:v language=fre -metadata:s:a title=Birds",
        ),
    ] {
        let args = format!("{PICTURE} {SOUND} {H264} -c:a aac {tags}");
        let input = files.make(&format!("in.{from}"), &args);
        let job = FileJob {
            overwrite: true,
            ..FileJob::new(&input, files.path("out.mkv"))
        };
        run(&job).unwrap();
        assert_eq!(told(&job.output), told(&input), "{tags}");
    }
}

#[test]
fn covers_are_kept_in_mp4() {
    let files = Files::new();
    let cover = files.make("cover.jpg", &format!("{PICTURE} -frames:v 1"));
    let attached = format!(
        "-attach {} -metadata:s:t mimetype=image/jpeg -metadata:s:t filename=cover.jpg",
        cover.display()
    );
    let tagged = format!(
        "-i {} -map 0 -map 1 -c:v:1 copy -disposition:v:1 attached_pic",
        cover.display()
    );
    for (name, args) in [
        ("in.mkv", format!("{PICTURE} {H264} {attached}")),
        ("in.mp4", format!("{PICTURE} {tagged} {H264} -c:v:1 copy")),
    ] {
        let input = files.make(name, &args);
        let job = FileJob {
            overwrite: true,
            ..FileJob::new(&input, files.path("out.mp4"))
        };
        run(&job).unwrap();
        let covers = ffprobe(&job.output, "-show_entries stream_disposition=attached_pic");
        assert_eq!(covers.lines().collect::<Vec<_>>(), ["0", "1"], "{name}");
    }
}
