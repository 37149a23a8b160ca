//! A model by its id, and what of it the cache has.

use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use crate::checkpoint::files::{
    CONFIG_FILE, CheckpointError, INDEX_FILE, SINGLE_FILE, TOKENIZER_FILE,
};
use crate::checkpoint::tensors::shards;

const DEFAULT_REVISION: &str = "main";

/// A model of a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::checkpoint) struct HubModel {
    /// `owner/name`.
    pub(in crate::checkpoint) repository: String,
    /// A GGUF file in it, instead of all of it.
    pub(super) file: Option<String>,
    /// Branch, tag or commit.
    pub(super) revision: String,
}

impl HubModel {
    /// Reads an id; `None` for what is none, such as a path.
    pub(in crate::checkpoint) fn parse(text: &str) -> Option<Self> {
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

    /// The folder or the file in the cache, or what of it is missing.
    pub(super) fn cached(&self, cache: &Cache) -> Result<Result<PathBuf, String>, CheckpointError> {
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

    pub(super) fn in_cache(&self, cache: &Cache, revision: &str) -> CacheRepo {
        cache.repo(self.at(revision))
    }

    pub(super) fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repository.clone(), RepoType::Model, revision.to_owned())
    }

    pub(super) fn wrong(&self, message: String) -> CheckpointError {
        CheckpointError::Hub { model: self.repository.clone(), message }
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
