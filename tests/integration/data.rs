//! Data sets by reference, and folders of pictures.
#![expect(
    clippy::unwrap_used,
    reason = "a failing helper of a test shall end the test"
)]

use std::path::Path;

use image::{Rgb, RgbImage};
use vitscope::data::folder::Folder;
use vitscope::data::{self, Dataset, Halves};
use vitscope::frame::FrameSize;
use vitscope::frame::placement::ResizeRule;
use vitscope::frame::resize::Resampling;

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
