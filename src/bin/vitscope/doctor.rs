//! `vitscope doctor`: what this machine has and lacks, and which Debian package provides what is missing.

use std::path::Path;

use vitscope::live::{cameras, plugin_file};
use vitscope::models::{self, DeviceChoice};
use vitscope::{media, pipeline};
use vitscope_video::media::elements::{available, package};

use crate::exit::Exit;

/// Something that the program can do.
struct Ability {
    what: &'static str,
    /// One element of each of these groups is required.
    elements: &'static [&'static [&'static str]],
    /// Whether nothing works without it.
    vital: bool,
}

const fn vital(what: &'static str, elements: &'static [&'static [&'static str]]) -> Ability {
    Ability {
        what,
        elements,
        vital: true,
    }
}

const fn extra(what: &'static str, elements: &'static [&'static [&'static str]]) -> Ability {
    Ability {
        what,
        elements,
        vital: false,
    }
}

const ABILITIES: &[Ability] = &[
    vital(
        "read video files",
        &[
            &["filesrc"],
            &["parsebin"],
            &["decodebin3"],
            &["videoconvert"],
            &["videoflip"],
        ],
    ),
    vital("decode H.264", &[&["avdec_h264", "openh264dec"]]),
    vital("encode video", &[&["x264enc", "openh264enc", "vp8enc"]]),
    vital("write mp4", &[&["mp4mux"], &["h264parse"]]),
    extra("write mkv", &[&["matroskamux"]]),
    extra("write webm", &[&["webmmux"]]),
    extra("encode sound as AAC", &[&["avenc_aac", "voaacenc"]]),
    extra("encode sound as Opus", &[&["opusenc"]]),
    extra("cameras", &[&["v4l2src", "pipewiresrc", "libcamerasrc"]]),
    extra("cameras via PipeWire", &[&["pipewiresrc"]]),
    extra("RTSP input", &[&["rtspsrc"]]),
    extra("HTTP input", &[&["souphttpsrc"]]),
    extra("screen capture", &[&["ximagesrc"]]),
    extra(
        "window",
        &[
            &["autovideosink"],
            &["ximagesink", "xvimagesink", "glimagesink", "waylandsink"],
        ],
    ),
    extra("web page", &[&["jpegenc"]]),
    extra("RTSP output", &[&["rtspclientsink"]]),
    extra("HLS output", &[&["hlssink2"], &["x264enc", "openh264enc"]]),
    extra("virtual camera", &[&["v4l2sink"]]),
];

/// Encoders, best first, with the license of the library behind each.
const ENCODERS: [(&str, &str); 4] = [
    ("x264enc", "H.264, GPL library"),
    ("openh264enc", "H.264 baseline, BSD library"),
    ("vp8enc", "VP8, BSD library"),
    ("vp9enc", "VP9, BSD library"),
];

/// Frame sizes for which memory is reported, in pixels of 12 bits each.
const FRAMES: [(&str, usize); 2] = [("1080p", 1920 * 1080), ("2160p", 3840 * 2160)];

/// Prints what is available; fails if something essential is missing.
pub fn run() -> anyhow::Result<Exit> {
    media::init()?;
    println!("vitscope      {}", env!("CARGO_PKG_VERSION"));
    println!("GStreamer     {}", media::version());
    match plugin_file() {
        Some(path) => println!("plugin        {}", path.display()),
        None => println!("plugin        not installed for gst-launch-1.0; run `make plugin`"),
    }
    compute();
    cached_models();
    memory();
    match cameras()?.len() {
        0 => println!("cameras       none found by GStreamer"),
        n_cameras => println!("cameras       {n_cameras}, see `vitscope devices`"),
    }
    println!("\nencoders");
    for (factory, licence) in ENCODERS {
        println!("  {factory:22}{}", state(licence, &lacking(&[&[factory]])));
    }
    println!("\nabilities");
    let mut whole = true;
    for ability in ABILITIES {
        let lacking = lacking(ability.elements);
        whole &= lacking.is_empty() || !ability.vital;
        println!("  {:22}{}", ability.what, state("yes", &lacking));
    }
    match whole {
        true => Ok(Exit::Whole),
        false => {
            println!("\nvideo files cannot be explained until the missing elements are installed");
            Ok(Exit::Failed)
        }
    }
}

/// Returns the groups of alternative elements of which none is installed.
fn lacking<'a>(elements: &[&'a [&'static str]]) -> Vec<&'a [&'static str]> {
    let is_there = |any: &&[&str]| any.iter().any(|factory| available(factory));
    let alternatives = elements.iter().copied();
    alternatives.filter(|any| !is_there(any)).collect()
}

/// Describes how to install what is missing, or returns `present` if nothing is.
fn state(present: &str, lacking: &[&[&'static str]]) -> String {
    let Some(any) = lacking.first() else {
        return present.to_owned();
    };
    let mut packages: Vec<&str> = (lacking.iter())
        .filter_map(|any| any.iter().find_map(|factory| package(factory)))
        .collect();
    packages.dedup();
    match packages.is_empty() {
        true => format!("missing: element {}", any.join(" or ")),
        false => format!("missing: apt install {}", packages.join(" ")),
    }
}

fn compute() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        "CPU           {cores} cores, {}",
        vitscope_kernels::instructions()
    );
    match DeviceChoice::Cuda(0).open() {
        Ok(_) => println!("GPU           CUDA device 0"),
        Err(error) => println!("GPU           none: {error}"),
    }
}

/// Prints the embedded models and the number of downloaded ones.
fn cached_models() {
    println!(
        "models        {} (embedded)",
        models::embedded_names().collect::<Vec<_>>().join(", ")
    );
    #[cfg(feature = "hub")]
    {
        let folder = models::cache_folder();
        let downloaded = downloaded(&folder);
        println!(
            "model cache   {} ({downloaded} downloaded)",
            folder.display()
        );
    }
}

/// Counts the models in the hub's cache.
#[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "there is no cache"))]
fn downloaded(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("models--"))
        .count()
}

/// Prints the memory for held frames, which is bounded because every channel is.
fn memory() {
    let n_frames = pipeline::MOST_FRAMES + media::MOST_FRAMES;
    let sizes = FRAMES.map(|(name, n_pixels)| {
        let megabytes = (n_frames * n_pixels * 3 / 2) as f64 / 1e6;
        format!("{megabytes:.0} MB of {name}")
    });
    println!("frames held   at most {n_frames}: {}", sizes.join(", "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_of_the_list_has_a_package() {
        let abilities = ABILITIES.iter().flat_map(|ability| ability.elements.iter());
        let factories = abilities.flat_map(|any| any.iter().copied());
        for factory in factories.chain(ENCODERS.map(|(factory, _)| factory)) {
            assert!(package(factory).is_some(), "{factory}");
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        assert_eq!("yes", state("yes", &[]));
        let text = state("yes", &[&["rtspclientsink"], &["jpegenc"]]);
        let packages = ["rtspclientsink", "jpegenc"].map(|factory| package(factory).unwrap());
        assert_eq!(format!("missing: apt install {}", packages.join(" ")), text);
        assert_eq!(
            "missing: element nosuch or other",
            state("yes", &[&["nosuch", "other"]])
        );
    }
}
