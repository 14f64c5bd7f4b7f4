//! Journal of measurements so far, in memory and optionally in a file from which a later run can resume.
//!
//! The file is in JSON Lines format. The first line holds the run's settings and identifies files of other runs. Each
//! further line holds the scores of one method on one image. A line truncated by a crash is measured again.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::suite::Score;
use vitscope_core::error::{Error, Result};

/// Scores by method and image.
#[derive(Default)]
pub struct Journal {
    file: Option<(PathBuf, File)>,
    scores: HashMap<String, HashMap<usize, Vec<Score>>>,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    name: String,
    picture: usize,
    scores: Vec<Score>,
}

impl Journal {
    /// Resumes a run with the same `settings`, or creates a file.
    ///
    /// # Errors
    /// [`Error::Config`] if the file belongs to a run with other settings or is not a journal; [`Error::Io`] if it
    /// cannot be read or written.
    pub fn open(path: &Path, settings: &str) -> Result<Self> {
        let io = |error| Error::io(path, error);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        let mut file = file.map_err(io)?;
        let header = serde_json::to_string(settings).unwrap_or_default() + "\n";
        let mut reader = BufReader::new(&mut file);
        let mut line = String::new();
        reader.read_line(&mut line).map_err(io)?;
        let mut whole = line.len() as u64;
        let mut scores: HashMap<String, HashMap<usize, Vec<Score>>> = HashMap::new();
        if whole > 0 && line != header {
            return Err(Error::Config(format!(
                "file belongs to another run, expected one with settings {settings:?}: {path:?}"
            )));
        }
        loop {
            line.clear();
            reader.read_line(&mut line).map_err(io)?;
            let Some(Ok(Line {
                name,
                picture,
                scores: found,
            })) = line.strip_suffix('\n').map(serde_json::from_str)
            else {
                break;
            };
            whole += line.len() as u64;
            scores.entry(name).or_default().insert(picture, found);
        }
        file.set_len(whole).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        if whole == 0 {
            file.write_all(header.as_bytes()).map_err(io)?;
        }
        Ok(Self {
            file: Some((path.to_owned(), file)),
            scores,
        })
    }

    /// Returns the scores of a method on an image, if known.
    pub fn scores(&self, name: &str, picture: usize) -> Option<&[Score]> {
        Some(self.scores.get(name)?.get(&picture)?)
    }

    /// Stores the scores of a method on an image.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn add(&mut self, name: &str, picture: usize, scores: Vec<Score>) -> Result<()> {
        if let Some((path, file)) = &mut self.file {
            let line = Line {
                name: name.to_owned(),
                picture,
                scores: scores.clone(),
            };
            let line =
                serde_json::to_string(&line).map_err(|error| Error::Data(error.to_string()))?;
            file.write_all((line + "\n").as_bytes())
                .map_err(|error| Error::io(&*path, error))?;
        }
        let of_method = self.scores.entry(name.to_owned()).or_default();
        of_method.insert(picture, scores);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SETTINGS: &str = "eval saco --seed 0";

    fn scores(value: f64) -> Vec<Score> {
        vec![Score {
            value: Some(value),
            points: vec![0.1, 1.0 / 3.0],
        }]
    }

    #[test]
    fn what_was_measured_is_there_when_the_file_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.jsonl");
        let mut journal = Journal::open(&path, SETTINGS).unwrap();
        journal.add("rollout", 3, scores(0.1)).unwrap();
        journal.add("rollout", 4, scores(1.0 / 3.0)).unwrap();
        drop(journal);
        let journal = Journal::open(&path, SETTINGS).unwrap();
        assert_eq!(journal.scores("rollout", 4), Some(&*scores(1.0 / 3.0)));
        assert_eq!(journal.scores("rollout", 5), None);
        assert_eq!(journal.scores("chefer", 4), None);
    }

    #[test]
    fn a_line_that_was_cut_off_is_forgotten_and_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.jsonl");
        let mut journal = Journal::open(&path, SETTINGS).unwrap();
        journal.add("rollout", 3, scores(0.1)).unwrap();
        journal.add("rollout", 4, scores(0.2)).unwrap();
        drop(journal);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        let mut journal = Journal::open(&path, SETTINGS).unwrap();
        assert!(journal.scores("rollout", 3).is_some());
        assert_eq!(journal.scores("rollout", 4), None);
        journal.add("rollout", 4, scores(0.2)).unwrap();
        drop(journal);
        assert_eq!(fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn a_file_of_another_run_is_refused_and_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.jsonl");
        drop(Journal::open(&path, SETTINGS).unwrap());
        let before = fs::read(&path).unwrap();
        let error = Journal::open(&path, "eval saco --seed 1").err().unwrap();
        assert!(error.to_string().contains("another run"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}
