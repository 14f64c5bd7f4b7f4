//! `vitscope devices`: the cameras of this machine.

use vitscope::live::cameras;
use vitscope::media;

use crate::exit::Exit;

/// Prints the cameras and the formats that they can send.
pub fn run() -> anyhow::Result<Exit> {
    media::init()?;
    let cameras = cameras()?;
    if cameras.is_empty() {
        println!("no cameras found");
    }
    for (index, camera) in cameras.iter().enumerate() {
        match &camera.path {
            Some(path) => println!("{index}  {}  {path}", camera.name),
            None => println!("{index}  {}", camera.name),
        }
        for format in &camera.formats {
            println!("     {format}");
        }
    }
    Ok(Exit::Whole)
}
