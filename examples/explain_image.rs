//! Explains one image with the embedded model and saves the overlay.
//!
//! ```text
//! image → resize → model + gates → attribution → overlay → PNG
//! ```
//!
//! Run: `cargo run --release --example explain_image -- IN.jpg OUT.png`
//! Prints the answer.
#![expect(clippy::print_stdout, reason = "an example tells what it found")]

use std::path::Path;

use anyhow::bail;
use vitscope::explain::Method;
use vitscope::overlay::Overlay;
use vitscope::{Request, View, picture};

fn main() -> anyhow::Result<()> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let [input, output] = paths.as_slice() else {
        bail!("usage: explain_image IN OUT");
    };
    let request = Request {
        methods: vec![Method::DiffMask],
        ..Request::default()
    };
    let view = View::open(&request)?;
    let picture = picture::read(Path::new(input))?.image;
    let found = view.explain_image(&picture)?;
    found.draw(&picture, Overlay::default())?.save(output)?;
    println!("{}", found.answer());
    Ok(())
}
