//! Models from the Hugging Face hub, downloaded once into the cache shared with its Python tools.
//!
//! The cache is the first one set of `$HF_HUB_CACHE`, `$HUGGINGFACE_HUB_CACHE`, `$HF_HOME/hub`,
//! `$XDG_CACHE_HOME/huggingface/hub` and `~/.cache/huggingface/hub`. `HF_ENDPOINT` selects another hub, and
//! `HF_HUB_OFFLINE=1` disables network access. A token stored by `hf auth login` is used.

use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo};
use tracing::{debug, info};

use super::folder::{ALL, CONFIG, check_config, first_missing, weights_elsewhere};
use crate::{Error, Result};

/// Bytes between log messages about the progress of a download.
const REPORT_BYTES: usize = 64 << 20;

/// The cache folder for models from the hub.
pub fn cache_folder() -> PathBuf {
    cache().path().clone()
}

/// Locates the cache like `huggingface_hub`.
fn cache() -> Cache {
    let given = folder_in("HF_HUB_CACHE").or_else(|| folder_in("HUGGINGFACE_HUB_CACHE"));
    Cache::new(given.unwrap_or_else(|| home().join("hub")))
}

/// The folder where the hub's Python tools keep their data.
fn home() -> PathBuf {
    let user = || std::env::home_dir().unwrap_or_default().join(".cache");
    folder_in("HF_HOME").unwrap_or_else(|| {
        let caches = folder_in("XDG_CACHE_HOME").unwrap_or_else(user);
        caches.join("huggingface")
    })
}

/// The folder given by an environment variable.
fn folder_in(variable: &str) -> Option<PathBuf> {
    let value = std::env::var_os(variable).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

/// The cache folder of a model, which is downloaded if necessary.
///
/// # Errors
/// [`Error::Model`] if the model is not in the cache and cannot be downloaded.
pub(super) fn fetch(id: &str) -> Result<PathBuf> {
    let cache = cache();
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

/// Downloads a model into the cache, even if an older version is there, and returns its folder.
///
/// # Errors
/// [`Error::Model`] if it cannot be downloaded.
pub fn pull(id: &str) -> Result<PathBuf> {
    let cache = cache();
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

/// The folder of the cached version, if it has all required files.
fn cached(repo: &CacheRepo) -> Option<PathBuf> {
    let is_there = |file: &str| repo.get(file).is_some();
    match first_missing(is_there) {
        Some(_) => None,
        None => Some(repo.get(CONFIG)?.parent()?.to_owned()),
    }
}

fn download(id: &str, cache: &Cache) -> Result<PathBuf, Failure> {
    let mut api = ApiBuilder::from_cache(cache.clone())
        .with_token(Cache::new(home().join("hub")).token())
        .with_progress(false);
    if let Ok(endpoint) = std::env::var("HF_ENDPOINT") {
        api = api.with_endpoint(endpoint);
    }
    let api = api.build()?;
    let repo = api.model(id.to_owned());
    let offered: Vec<String> = repo
        .info()?
        .siblings
        .into_iter()
        .map(|file| file.rfilename)
        .collect();
    let offers = |file: &str| offered.iter().any(|name| name == file);
    if let Some(missing) = first_missing(offers) {
        if offers(CONFIG) {
            // If the model is not of a supported kind, that is the more accurate error.
            let path = repo.download(CONFIG)?;
            let text = fs::read(&path).map_err(|error| Failure::Ours(Error::io(&path, error)))?;
            check_config(&text)
                .map_err(|error| Failure::Ours(Error::Model(format!("{error}: {id:?}"))))?;
        }
        let hint = weights_elsewhere(missing, offers);
        return Err(Failure::Ours(Error::Model(format!(
            "hub model has no {missing}{hint}: {id:?}"
        ))));
    }
    let mut folder = PathBuf::new();
    for file in ALL.into_iter().filter(|file| offers(file)) {
        folder = download_file(&repo, file)?;
    }
    debug!("{id} is in {:?}", cache.path());
    Ok(folder)
}

/// Downloads one file and returns its folder.
fn download_file(repo: &ApiRepo, file: &str) -> Result<PathBuf, ApiError> {
    let path = repo.download_with_progress(file, Spoken::default())?;
    Ok(path.parent().map(Path::to_owned).unwrap_or_default())
}

/// Logs the progress of a download.
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

/// Describes an error. The hub responds with 401 to requests for both nonexistent and private models.
fn reason(error: &ApiError) -> String {
    let text = error.to_string();
    match ["401", "403", "404"]
        .iter()
        .any(|status| text.ends_with(status))
    {
        true => format!("{text}: the hub has no such model, or access to it is restricted"),
        false => text,
    }
}
