//! Data sets by reference, and folders of pictures.
#![expect(
    clippy::unwrap_used,
    reason = "a failing helper of a test shall end the test"
)]

use std::path::Path;

use image::{Rgb, RgbImage};
use vitscope::data::folder::Folder;
use vitscope::data::{self, Dataset, Halves, Split, readable};
use vitscope::frame::FrameSize;
use vitscope::frame::placement::ResizeRule;
use vitscope::frame::resize::Resampling;

#[cfg(feature = "media")]
use crate::common::ffmpeg;

const SIZE: FrameSize = FrameSize {
    width_px: 8,
    height_px: 8,
};

fn save(path: &Path, size: (u32, u32), color: [u8; 3]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(size.0, size.1, Rgb(color))
        .save(path)
        .unwrap();
}

fn open(folder: &Path) -> vitscope::Result<Folder> {
    Folder::open(folder, ResizeRule::Stretch(SIZE), Resampling::Bilinear)
}

fn halves(reference: &str) -> vitscope::Result<Halves> {
    data::open(
        reference,
        ResizeRule::Stretch(SIZE),
        Resampling::Bilinear,
        3,
    )
}

#[test]
fn sub_folders_are_classes_in_the_order_of_their_names() {
    let folder = tempfile::tempdir().unwrap();
    save(&folder.path().join("owl/1.png"), (20, 10), [1, 2, 3]);
    save(&folder.path().join("cat/2.PNG"), (5, 9), [4, 5, 6]);
    std::fs::write(folder.path().join("cat/notes.txt"), "no picture").unwrap();
    let pictures = open(folder.path()).unwrap();
    assert_eq!(pictures.classes(), ["cat", "owl"]);
    assert_eq!((pictures.label(0), pictures.label(1)), (Some(0), Some(1)));
    let picture = pictures.picture(1).unwrap();
    assert_eq!((picture.size, picture.rgb.len()), (SIZE, 3 * 64));
    assert_eq!(picture.rgb[..3], [1, 2, 3]);
}

#[test]
fn a_flat_folder_has_no_labels() {
    let folder = tempfile::tempdir().unwrap();
    save(&folder.path().join("a.png"), (8, 8), [9, 9, 9]);
    let pictures = open(folder.path()).unwrap();
    assert_eq!((pictures.len(), pictures.label(0)), (1, None));
    assert!(pictures.classes().is_empty());
}

#[test]
fn folders_that_cannot_be_learned_from_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let message = |path: &Path| open(path).err().unwrap().to_string();
    assert!(message(folder.path()).starts_with("folder has no pictures"));
    assert!(message(&folder.path().join("gone")).starts_with("no such folder"));
    let broken = folder.path().join("cat/broken.png");
    save(&broken, (8, 8), [0; 3]);
    std::fs::write(&broken, b"not a picture").unwrap();
    let text = message(folder.path());
    assert!(
        text.starts_with("picture cannot be read") && text.contains("broken.png"),
        "{text}"
    );
    std::fs::remove_file(&broken).unwrap();
    assert!(message(folder.path()).starts_with("class has no pictures"));
    save(&broken, (8, 8), [0; 3]);
    save(&folder.path().join("loose.png"), (8, 8), [0; 3]);
    assert!(message(folder.path()).starts_with("picture lies beside"));
}

#[test]
fn a_reference_opens_generated_grids_or_a_folder_s_halves() {
    let grids = halves("red-patches").unwrap();
    assert_eq!(grids.train.classes().len(), 10);
    let folder = tempfile::tempdir().unwrap();
    for index in 0..20 {
        save(
            &folder.path().join(format!("{index:02}.png")),
            (8, 8),
            [index; 3],
        );
    }
    let Halves { train, test } = halves(folder.path().to_str().unwrap()).unwrap();
    assert_eq!((train.len(), test.len()), (18, 2));
    assert_eq!(test.picture(1).unwrap().rgb[0], 10);
    assert_eq!(train.picture(0).unwrap().rgb[0], 1);
    save(&folder.path().join("train/x/a.png"), (8, 8), [0; 3]);
    save(&folder.path().join("test/x/b.png"), (8, 8), [7; 3]);
    let Halves { test, .. } = halves(folder.path().to_str().unwrap()).unwrap();
    assert_eq!((test.len(), test.label(0)), (1, Some(0)));
    assert!(halves("no-such-data").is_err());
}

#[test]
fn damaged_pictures_are_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    for index in 0..4 {
        let path = folder.path().join(format!("{index}.png"));
        save(&path, (32, 32), [index, 7, 90]);
    }
    // An invalid header, and a truncated picture.
    std::fs::write(folder.path().join("header.png"), b"no picture").unwrap();
    let cut = folder.path().join("cut.png");
    let noise = RgbImage::from_fn(32, 32, |x, y| Rgb([(x * y) as u8, (x * 7) as u8, y as u8]));
    noise.save(&cut).unwrap();
    let bytes = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    // Decoders silently fill in the missing part of a JPEG.
    let cut = folder.path().join("cut.jpg");
    noise.save(&cut).unwrap();
    let bytes = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() - 40]).unwrap();

    let pictures = open(folder.path()).unwrap();
    assert_eq!(pictures.len(), 6, "what has no header is no picture");
    let all: Vec<usize> = (0..pictures.len()).collect();
    let found = readable(&pictures, &all).unwrap();
    let found: Vec<usize> = found.into_iter().map(|(index, _)| index).collect();
    assert_eq!(found, [0, 1, 2, 3], "the damaged ones are the last by name");
    let named = pictures.unreadable();
    assert_eq!(named.len(), 3, "{named:?}");
    for (named, name) in named.iter().zip(["cut.jpg", "cut.png", "header.png"]) {
        assert!(named.ends_with(&format!("{name}\"")), "{named}");
    }
    assert!(named[0].starts_with("the file ends early"), "{named:?}");
    let message = readable(&pictures, &[5]).unwrap_err().to_string();
    assert!(message.contains("cut.png"), "{message}");
}

#[test]
fn transparent_pictures_lie_on_white() {
    let folder = tempfile::tempdir().unwrap();
    let red = image::Rgba([200, 0, 0, 0]);
    image::RgbaImage::from_pixel(32, 32, red)
        .save(folder.path().join("a.png"))
        .unwrap();
    let picture = open(folder.path()).unwrap().picture(0).unwrap();
    assert!(picture.rgb.iter().all(|&value| value == 255));
}

/// Makes a video that shows one gray per second.
#[cfg(feature = "media")]
fn grays(file: &Path, secs: u32) {
    let source = format!("nullsrc=s=64x48:r=25:d={secs},geq=lum='40+20*floor(T)':cb=128:cr=128");
    let args = format!("-f lavfi -i {source} -c:v libx264 -preset ultrafast -pix_fmt yuv420p");
    ffmpeg(&args, file);
}

#[cfg(feature = "media")]
#[test]
fn a_video_gives_a_picture_for_each_thing_it_shows() {
    let folder = tempfile::tempdir().unwrap();
    let video = folder.path().join("grays.mp4");
    grays(&video, 5);
    let brightness = |data: &dyn Dataset| -> Vec<u8> {
        let pictures = (0..data.len()).map(|index| data.picture(index).unwrap());
        pictures.map(|picture| picture.rgb[0]).collect()
    };
    let Halves { train, test } = halves(video.to_str().unwrap()).unwrap();
    let (train, test) = (brightness(&*train), brightness(&*test));
    assert_eq!((train.len(), test.len()), (4, 1), "{train:?} {test:?}");
    let all = [train, test].concat();
    assert!(all.is_sorted() && all.windows(2).all(|pair| pair[0] + 15 < pair[1]));

    // A folder may hold several videos and also pictures; files that are not videos are named.
    grays(&folder.path().join("more.mkv"), 3);
    save(&folder.path().join("picture.png"), (16, 16), [1, 2, 3]);
    std::fs::write(folder.path().join("notes.mp4"), "no video").unwrap();
    let Halves { train, test } = halves(folder.path().to_str().unwrap()).unwrap();
    assert_eq!((train.len(), test.len()), (4 + 2, 1 + 1 + 1));
    let named = train.unreadable();
    assert!(
        named.len() == 1 && named[0].contains("notes.mp4"),
        "{named:?}"
    );
    let message = halves(folder.path().join("notes.mp4").to_str().unwrap());
    assert!(message.err().unwrap().to_string().contains("notes.mp4"));
}

/// The lists as published, and as CSV.
#[test]
fn celeba_is_read_by_its_lists() {
    let published = [
        (
            "list_attr_celeba.txt",
            "3\nBald Gray_Hair Male\na.jpg -1  1 -1\nb.jpg  1 -1  1\nc.jpg -1 -1  1\n",
        ),
        ("list_eval_partition.txt", "a.jpg 2\nb.jpg 0\nc.jpg 2\n"),
    ];
    let csv = [
        (
            "list_attr_celeba.csv",
            "image_id,Bald,Gray_Hair,Male\na.jpg,-1,1,-1\nb.jpg,1,-1,1\nc.jpg,-1,-1,1\n",
        ),
        (
            "list_eval_partition.csv",
            "image_id,partition\na.jpg,2\nb.jpg,0\nc.jpg,2\n",
        ),
    ];
    for lists in [published, csv] {
        let folder = tempfile::tempdir().unwrap();
        for (name, gray) in [("a", 10), ("b", 20), ("c", 30)] {
            let path = folder.path().join(format!("img_align_celeba/{name}.jpg"));
            save(&path, (16, 16), [gray; 3]);
        }
        for (file, text) in lists {
            std::fs::write(folder.path().join(file), text).unwrap();
        }
        let open = |class: &str| {
            let reference = format!("celeba:{},{class},male", folder.path().display());
            let rule = ResizeRule::Stretch(SIZE);
            data::open_grouped(&reference, Split::Test, rule, Resampling::Bilinear, 0)
        };
        let faces = open("gray_hair").unwrap();
        assert_eq!(faces.len(), 2, "one is of the training half");
        let found: Vec<_> = (0..2)
            .map(|index| (faces.label(index), faces.in_group(index)))
            .collect();
        assert_eq!(found, [(Some(1), Some(false)), (Some(0), Some(true))]);
        assert_eq!(faces.classes(), ["not gray_hair", "gray_hair"]);
        let gray = faces.picture(1).unwrap().rgb[0];
        assert!(gray.abs_diff(30) <= 2, "{gray}");
        let message = open("Wavy").err().unwrap().to_string();
        assert!(message.contains("Bald, Gray_Hair, Male"), "{message}");
    }
    assert!(halves("celeba:nowhere").is_err());
}
