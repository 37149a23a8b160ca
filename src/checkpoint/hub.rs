//! Models by the id that a hub knows them by: `owner/name`, `owner/name@revision`, `owner/name/FILE.gguf`.
//!
//! What the hub's cache on this machine has is taken from there (`HF_HUB_CACHE`, else `HF_HOME`; the layout is the
//! Python library's). Else it is downloaded into that cache, in builds with the feature `hub`.

use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::tensors::{INDEX_FILE, SINGLE_FILE, shards};
use super::{CONFIG_FILE, CheckpointError, TOKENIZER_FILE};

const DEFAULT_REVISION: &str = "main";

/// A model of a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HubModel {
    /// `owner/name`.
    pub(super) repository: String,
    /// A GGUF file in it, instead of all of it.
    file: Option<String>,
    /// Branch, tag or commit.
    revision: String,
}

impl HubModel {
    /// Reads an id; `None` for what is none, such as a path.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (place, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
        let is_name = |name: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            name.chars().all(allowed)
                && name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && !name.contains("..")
        };
        let parts: Vec<&str> = place.split('/').collect();
        if !parts.iter().all(|part| is_name(part)) || !revision.split('/').all(is_name) {
            return None;
        }
        let (owner, name, file) = match parts.as_slice() {
            [owner, name] => (owner, name, None),
            [owner, name, file] if file.ends_with(".gguf") => (owner, name, Some(*file)),
            _ => return None,
        };
        Some(Self {
            repository: format!("{owner}/{name}"),
            file: file.map(str::to_owned),
            revision: revision.to_owned(),
        })
    }

    /// The folder or the GGUF file on this machine.
    ///
    /// # Errors
    /// Where neither the cache nor the hub has all of it.
    pub(super) fn locate(&self) -> Result<PathBuf, CheckpointError> {
        let cache = cache().map_err(|message| self.wrong(message))?;
        let missing = match self.cached(&cache)? {
            Ok(path) => return Ok(path),
            Err(missing) => missing,
        };
        let place = cache.path().display();
        if is_offline() {
            let message = format!("the cache {place} has no {missing}, and HF_HUB_OFFLINE is set");
            return Err(self.wrong(message));
        }
        self.download(&cache).map_err(|error| {
            self.wrong(format!("the cache {place} has no {missing}, and {error}"))
        })?;
        self.cached(&cache)?.map_err(|missing| self.wrong(format!("it has no {missing}")))
    }

    /// The folder or the file in the cache, or what of it is missing.
    fn cached(&self, cache: &Cache) -> Result<Result<PathBuf, String>, CheckpointError> {
        let file = self.file.as_deref().unwrap_or(CONFIG_FILE);
        let repository = self.in_cache(cache, &self.revision);
        let by_commit = repository.pointer_path(&self.revision).join(file);
        let found = Some(by_commit).filter(|file| file.exists()).or_else(|| repository.get(file));
        let Some(found) = found else { return Ok(Err(file.to_owned())) };
        if self.file.is_some() {
            return Ok(Ok(found));
        }
        let folder = found.parent().unwrap_or(&found);
        Ok(match missing(folder)? {
            None => Ok(folder.to_owned()),
            Some(missing) => Err(missing),
        })
    }

    fn in_cache(&self, cache: &Cache, revision: &str) -> CacheRepo {
        cache.repo(self.at(revision))
    }

    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repository.clone(), RepoType::Model, revision.to_owned())
    }

    fn wrong(&self, message: String) -> CheckpointError {
        CheckpointError::Hub { model: self.repository.clone(), message }
    }

    #[cfg(not(feature = "hub"))]
    fn download(&self, _: &Cache) -> Result<(), String> {
        Err("this build downloads nothing: build it with `--features hub`, or bring the model there by the hub's \
             own tools"
            .to_owned())
    }

    /// Brings what is missing into the cache. All files are of one commit, whatever happens on the hub meanwhile.
    #[cfg(feature = "hub")]
    fn download(&self, cache: &Cache) -> Result<(), String> {
        use hf_hub::api::sync::ApiBuilder;

        let failed = |error: hf_hub::api::sync::ApiError| format!("the hub gives none: {error}");
        let mut builder = ApiBuilder::from_env().with_cache_dir(cache.path().clone());
        if let Ok(token) = std::env::var("HF_TOKEN") {
            builder = builder.with_token(Some(token));
        }
        let api = builder.build().map_err(failed)?;
        let info = api.repo(self.at(&self.revision)).info().map_err(failed)?;
        let names: Vec<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
        let commit = api.repo(self.at(&info.sha));
        for name in names.iter().filter(|name| self.wants(name, &names)) {
            commit.get(name).map_err(failed)?;
        }
        self.in_cache(cache, &self.revision)
            .create_ref(&info.sha)
            .map_err(|error| error.to_string())
    }

    /// Whether a file of the repository belongs to the model. Some have the weights several times.
    #[cfg(feature = "hub")]
    fn wants(&self, name: &str, all: &[&str]) -> bool {
        if let Some(file) = &self.file {
            return name == file;
        }
        let is_shard = name.starts_with("model-") && name.ends_with(".safetensors");
        match all.contains(&SINGLE_FILE) {
            _ if super::source::TEXT_FILES.contains(&name) => true,
            _ if [CONFIG_FILE, super::BASELINE_FILE].contains(&name) => true,
            true => name == SINGLE_FILE,
            false => name == INDEX_FILE || is_shard,
        }
    }
}

/// The first file that a folder lacks for being a checkpoint.
fn missing(folder: &Path) -> Result<Option<String>, CheckpointError> {
    let lacks = |name: &str| !folder.join(name).exists();
    let mut needed = vec![CONFIG_FILE.to_owned(), TOKENIZER_FILE.to_owned()];
    match lacks(INDEX_FILE) || !lacks(SINGLE_FILE) {
        true => needed.push(SINGLE_FILE.to_owned()),
        false => needed.extend(shards(&folder.join(INDEX_FILE))?),
    }
    Ok(needed.into_iter().find(|name| lacks(name)))
}

fn cache() -> Result<Cache, String> {
    if let Some(folder) = std::env::var_os("HF_HUB_CACHE") {
        return Ok(Cache::new(folder.into()));
    }
    if std::env::var_os("HF_HOME").is_none() && std::env::home_dir().is_none() {
        return Err("there is no home directory: set HF_HOME".to_owned());
    }
    Ok(Cache::from_env())
}

fn is_offline() -> bool {
    let value = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
    ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str())
}
