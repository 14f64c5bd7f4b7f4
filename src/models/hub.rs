//! Models of the Hugging Face hub, downloaded once into the cache that its Python tools use too.
//!
//! The cache is `$HF_HOME/hub` or `~/.cache/huggingface/hub`; `HF_ENDPOINT` names another hub, and with
//! `HF_HUB_OFFLINE=1` nothing is asked of the network. A token that `hf auth login` left there is used.

use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo};
use tracing::info;

use super::folder::{ALL, REQUIRED, weights_elsewhere};
use crate::{Error, Result};

/// A download speaks up each time so many more of its bytes have come.
const REPORT_BYTES: usize = 64 << 20;

/// Where models of the hub are kept.
pub fn cache_folder() -> PathBuf {
    Cache::from_env().path().clone()
}

/// The folder of a model of the hub in the cache, where it is after a download if need be.
///
/// # Errors
/// [`Error::Model`] if the model is not in the cache and cannot be downloaded.
pub(super) fn fetch(id: &str) -> Result<PathBuf> {
    let cache = Cache::from_env();
    if let Some(folder) = cached(&cache.model(id.to_owned())) {
        return Ok(folder);
    }
    let offline = std::env::var("HF_HUB_OFFLINE");
    if offline.is_ok_and(|offline| !matches!(offline.as_str(), "" | "0")) {
        let reason = "HF_HUB_OFFLINE is set";
        return Err(unavailable(id, cache.path(), reason));
    }
    download(id, &cache).map_err(|error| match error {
        Failure::Hub(error) => unavailable(id, cache.path(), &reason(&error)),
        Failure::Ours(error) => error,
    })
}

/// Downloads a model of the hub into the cache, even if it is there in an older version; gives its folder.
///
/// # Errors
/// [`Error::Model`] if it cannot be downloaded.
pub fn pull(id: &str) -> Result<PathBuf> {
    let cache = Cache::from_env();
    download(id, &cache).map_err(|error| match error {
        Failure::Hub(error) => Error::Model(format!(
            "hub model could not be downloaded ({}): {id:?}",
            reason(&error)
        )),
        Failure::Ours(error) => error,
    })
}

enum Failure {
    Hub(ApiError),
    Ours(Error),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Hub(error)
    }
}

/// The folder of the cached version, if all files are there that a model cannot do without.
fn cached(repo: &CacheRepo) -> Option<PathBuf> {
    let paths: Option<Vec<PathBuf>> = REQUIRED.iter().map(|file| repo.get(file)).collect();
    Some(paths?.first()?.parent()?.to_owned())
}

fn download(id: &str, cache: &Cache) -> Result<PathBuf, Failure> {
    let api = ApiBuilder::from_env().with_progress(false).build()?;
    let repo = api.model(id.to_owned());
    let offered: Vec<String> = repo
        .info()?
        .siblings
        .into_iter()
        .map(|file| file.rfilename)
        .collect();
    let offers = |file: &str| offered.iter().any(|name| name == file);
    if let Some(missing) = REQUIRED.into_iter().find(|file| !offers(file)) {
        let hint = weights_elsewhere(missing, offers);
        return Err(Failure::Ours(Error::Model(format!(
            "hub model has no {missing}{hint}: {id:?}"
        ))));
    }
    let mut folder = PathBuf::new();
    for file in ALL.into_iter().filter(|file| offers(file)) {
        folder = download_file(&repo, file)?;
    }
    info!("{id} is in {:?}", cache.path());
    Ok(folder)
}

/// Downloads one file and gives the folder that it is in.
fn download_file(repo: &ApiRepo, file: &str) -> Result<PathBuf, ApiError> {
    let path = repo.download_with_progress(file, Spoken::default())?;
    Ok(path.parent().map(Path::to_owned).unwrap_or_default())
}

/// Says in the log how far a download is.
#[derive(Default)]
struct Spoken {
    file: String,
    bytes: usize,
    of_bytes: usize,
}

impl Progress for Spoken {
    fn init(&mut self, size: usize, filename: &str) {
        *self = Self {
            file: filename.to_owned(),
            bytes: 0,
            of_bytes: size,
        };
    }

    fn update(&mut self, size: usize) {
        let before = self.bytes / REPORT_BYTES;
        self.bytes += size;
        if self.bytes / REPORT_BYTES > before {
            let (done, all) = (self.bytes >> 20, self.of_bytes >> 20);
            info!("downloading {}: {done} of {all} MiB", self.file);
        }
    }

    fn finish(&mut self) {}
}

fn unavailable(id: &str, cache: &Path, reason: &str) -> Error {
    Error::Model(format!(
        "model is not in the cache {cache:?} and could not be downloaded ({reason}): {id:?}"
    ))
}

/// What went wrong, in words. The hub answers 401 for what does not exist as for what is private.
fn reason(error: &ApiError) -> String {
    let text = error.to_string();
    match ["401", "403", "404"]
        .iter()
        .any(|status| text.ends_with(status))
    {
        true => format!("{text}: the hub has no such model, or not for everybody"),
        false => text,
    }
}
