//! Models by the id that a hub knows them by: `owner/name`, `owner/name@revision`, `owner/name/FILE.gguf`.
//!
//! What the hub's cache on this machine has is taken from there (`HF_HUB_CACHE`, else `HF_HOME`; the layout is the
//! Python library's). Else it is downloaded into that cache, in builds with the feature `hub`.

#[cfg(not(feature = "hub"))]
mod absent;
#[cfg(feature = "hub")]
mod download;
mod model;

use std::path::PathBuf;

use hf_hub::Cache;

use crate::checkpoint::files::CheckpointError;
#[cfg(not(feature = "hub"))]
use absent::download;
#[cfg(feature = "hub")]
use download::download;
pub(in crate::checkpoint) use model::HubModel;

/// The folder or the GGUF file on this machine.
///
/// # Errors
/// Where neither the cache nor the hub has all of it.
pub(in crate::checkpoint) fn locate(model: &HubModel) -> Result<PathBuf, CheckpointError> {
    let cache = cache().map_err(|message| model.wrong(message))?;
    let missing = match model.cached(&cache)? {
        Ok(path) => return Ok(path),
        Err(missing) => missing,
    };
    let place = cache.path().display();
    if is_offline() {
        let message = format!("the cache {place} has no {missing}, and HF_HUB_OFFLINE is set");
        return Err(model.wrong(message));
    }
    download(model, &cache)
        .map_err(|error| model.wrong(format!("the cache {place} has no {missing}, and {error}")))?;
    model.cached(&cache)?.map_err(|missing| model.wrong(format!("it has no {missing}")))
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
