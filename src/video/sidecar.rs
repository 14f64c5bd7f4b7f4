//! The sidecar: one JSON record per frame, one per line, next to the video or on standard output.
//!
//! [`Record`] specifies the format.

use std::io::{BufWriter, ErrorKind, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use vitscope_core::error::{Error, Result};

/// The record of one frame: a line of the sidecar.
///
/// Every frame has one line, in frame order. The record of a frame that went through the model contains its
/// explanation. Any other record only names the frame whose explanation is shown.
///
/// A live frame may leave before its explanation arrives: its record contains its own explanation, while the frame
/// shows an earlier one. Keys with an unknown value are omitted.
///
/// ```
/// # use vitscope_video as vitscope;
/// let line = r#"{"seq":30,"pts":1001000000,"duration":33366667,"explained":true,"shows":30,
///     "predicted":{"index":2,"label":"bird","probability":0.9132},"not_sure":false,"unfamiliar":false,"grid":[2,2],
///     "maps":[{"method":"diffmask",
///         "class":{"index":2,"label":"bird","probability":0.9132},
///         "kept":0.375,"attribution":[0.0,0.5,1.0,0.0]}]}"#;
/// let record: vitscope::sidecar::Record = serde_json::from_str(line)?;
/// assert_eq!((Some((2, 2)), "diffmask"), (record.grid, record.maps.unwrap()[0].method.as_str()));
///
/// let line = r#"{"seq":31,"pts":1034366667,"duration":33366667,"explained":false,"shows":30}"#;
/// let record: vitscope::sidecar::Record = serde_json::from_str(line)?;
/// assert_eq!((false, Some(30)), (record.explained, record.shows));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Position of the frame in the output, from 0.
    pub seq: u64,
    /// File name, for a series of images; omitted for videos.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Presentation timestamp in nanoseconds.
    pub pts: u64,
    /// Duration of the frame in nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<u64>,
    /// Whether the frame went through the model, which `predicted`, `grid` and `maps` require.
    pub explained: bool,
    /// `seq` of the frame whose explanation is drawn on this one; omitted if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shows: Option<u64>,
    /// The most probable class; omitted if the model has no head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Class>,
    /// The classes that apply, at most 5: the most probable one and others with a probability of at least 0.5; omitted
    /// if the classes of the model are mutually exclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applying: Option<Vec<Class>>,
    /// Whether `predicted` is below the model's threshold, so that the answer is "not sure" or "unfamiliar"; omitted if
    /// the model has no threshold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_sure: Option<bool>,
    /// Whether the probability alone would be sufficient, but the frame is unlike the training pictures of that class;
    /// omitted if the model has no threshold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfamiliar: Option<bool>,
    /// Rows and columns of the patch grid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<(usize, usize)>,
    /// Maps of the first method for all targets, followed by those of the second method, and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maps: Option<Vec<Map>>,
}

/// The map of one method for one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Map {
    /// Name of the method.
    pub method: String,
    /// The explained class; omitted if the model has no head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// The class it is contrasted with, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<Class>,
    /// Mean of the mask's keep values, in 0–1; omitted for methods that produce no mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<f32>,
    /// True if all patches have the same score, which makes the map meaningless; omitted otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub constant: bool,
    /// Displayed scores of the patches, in row-major order from the top left, with four significant digits; higher is
    /// more important.
    pub attribution: Vec<f32>,
    /// Scores of this frame alone, if the displayed ones are smoothed over frames; omitted otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsmoothed: Option<Vec<f32>>,
    /// Keep probability of each patch at each gate, with `diffmask.votes=true`; omitted otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub votes: Option<Vec<Vec<f32>>>,
}

/// A class and its probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Index of the logit.
    pub index: usize,
    /// Name of the class; omitted if the model has no class names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Softmax of the logit, or its sigmoid if classes are not mutually exclusive, in 0–1; four significant digits.
    pub probability: f32,
}

/// Rounds `value` to the four significant digits of a record.
pub fn rounded(value: f32) -> f32 {
    // Every finite float in scientific notation parses as a float again.
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// Writes records, one per line.
pub struct Writer {
    path: PathBuf,
    /// `None` once the reader of a pipe has closed its end.
    out: Option<BufWriter<Box<dyn Write + Send>>>,
}

impl Writer {
    /// Creates a writer to `out`; errors refer to it as `path`.
    pub fn new(out: Box<dyn Write + Send>, path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            out: Some(BufWriter::new(out)),
        }
    }

    /// Adds a line. Does nothing once the reader of a pipe is gone, which is not an error.
    ///
    /// # Errors
    /// [`Error::Io`] if the line cannot be written.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        self.with_out(|out| {
            serde_json::to_writer(&mut *out, record)?;
            out.write_all(b"\n")
        })
    }

    /// Flushes the buffer; more lines may follow.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.with_out(Write::flush)
    }

    /// Flushes the buffer.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn finish(mut self) -> Result<()> {
        self.with_out(Write::flush)
    }

    fn with_out(
        &mut self,
        write: impl FnOnce(&mut BufWriter<Box<dyn Write + Send>>) -> std::io::Result<()>,
    ) -> Result<()> {
        let Some(out) = &mut self.out else {
            return Ok(());
        };
        match write(out) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                // Dropping the buffer would try to write it again.
                drop(self.out.take().map(BufWriter::into_parts));
                Ok(())
            }
            outcome => outcome.map_err(|error| Error::io(&self.path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    fn record() -> Record {
        Record {
            seq: 1,
            file: None,
            pts: 40_000_000,
            duration: None,
            explained: true,
            shows: Some(1),
            predicted: None,
            applying: None,
            not_sure: None,
            unfamiliar: None,
            grid: Some((1, 2)),
            maps: Some(vec![Map {
                method: "rollout".into(),
                class: None,
                against: None,
                kept: None,
                constant: false,
                attribution: vec![rounded(0.123_456), rounded(1.0 / 30_000.0)],
                unsmoothed: None,
                votes: None,
            }]),
        }
    }

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_record_is_one_line_without_its_unknown_keys_and_reads_back() {
        let shared = Shared::default();
        let mut writer = Writer::new(Box::new(shared.clone()), "scores.jsonl");
        writer.write(&record()).unwrap();
        writer.finish().unwrap();
        let text = String::from_utf8(shared.0.lock().unwrap().clone()).unwrap();
        assert_eq!(
            "{\"seq\":1,\"pts\":40000000,\"explained\":true,\"shows\":1,\"grid\":[1,2],\
             \"maps\":[{\"method\":\"rollout\",\"attribution\":[0.1235,0.00003333]}]}\n",
            text
        );
        assert_eq!(record(), serde_json::from_str(&text).unwrap());
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let mut writer = Writer::new(Box::new(Broken(ErrorKind::BrokenPipe)), "-");
        for _ in 0..1000 {
            writer.write(&record()).unwrap();
        }
        writer.finish().unwrap();
    }

    #[test]
    fn a_full_disk_is_a_failure_that_names_the_path() {
        let mut writer = Writer::new(Box::new(Broken(ErrorKind::StorageFull)), "scores.jsonl");
        writer.write(&record()).unwrap();
        let error = writer.finish().unwrap_err().to_string();
        assert!(error.ends_with(": \"scores.jsonl\""), "{error}");
    }

    #[test]
    fn rounding_keeps_four_significant_digits_of_any_size() {
        let check = |expected: f32, value: f32| assert_eq!(expected, rounded(value));
        check(0.0, 0.0);
        check(-1.235, -1.234_56);
        check(123_500.0, 123_456.0);
        check(1.235e-20, 1.234_56e-20);
    }
}
