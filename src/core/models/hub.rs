//! Models of the Hugging Face hub, downloaded once into the cache that its Python tools use too.
//!
//! The cache is `$HF_HUB_CACHE`, `$HUGGINGFACE_HUB_CACHE`, `$HF_HOME/hub`, `$XDG_CACHE_HOME/huggingface/hub` or
//! `~/.cache/huggingface/hub`, the first that is set; `HF_ENDPOINT` names another hub, and with
//! `HF_HUB_OFFLINE=1` nothing is asked of the network. A token that `hf auth login` left there is used.

use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo};
use tracing::{debug, info};

use super::folder::{ALL, CONFIG, check_config, first_missing, weights_elsewhere};
use crate::{Error, Result};

/// A download speaks up each time so many more of its bytes have come.
const REPORT_BYTES: usize = 64 << 20;

/// Where models of the hub are kept.
pub fn cache_folder() -> PathBuf {
    cache().path().clone()
}

/// As `huggingface_hub` finds it.
fn cache() -> Cache {
    let given = folder_in("HF_HUB_CACHE").or_else(|| folder_in("HUGGINGFACE_HUB_CACHE"));
    Cache::new(given.unwrap_or_else(|| home().join("hub")))
}

/// Where the hub's Python tools keep all that is theirs.
fn home() -> PathBuf {
    let user = || std::env::home_dir().unwrap_or_default().join(".cache");
    folder_in("HF_HOME").unwrap_or_else(|| {
        let caches = folder_in("XDG_CACHE_HOME").unwrap_or_else(user);
        caches.join("huggingface")
    })
}

/// The folder that an environment variable names.
fn folder_in(variable: &str) -> Option<PathBuf> {
    let value = std::env::var_os(variable).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

/// The folder of a model of the hub in the cache, where it is after a download if need be.
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

/// Downloads a model of the hub into the cache, even if it is there in an older version; gives its folder.
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

/// The folder of the cached version, if all files are there that a model cannot do without.
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
            // What lacks a file may be no model of a kind that is known here, which is the truer reason.
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
        true => format!("{text}: the hub has no such model, or access to it is restricted"),
        false => text,
    }
}
