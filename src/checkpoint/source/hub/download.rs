//! Downloads into the hub's cache.

use hf_hub::Cache;
use hf_hub::api::sync::{ApiBuilder, ApiError};

use super::model::HubModel;
use crate::checkpoint::files::{BASELINE_FILE, CONFIG_FILE, INDEX_FILE, SINGLE_FILE, TEXT_FILES};

/// Brings what is missing into the cache. All files are of one commit, whatever happens on the hub meanwhile.
pub(super) fn download(model: &HubModel, cache: &Cache) -> Result<(), String> {
    let failed = |error: ApiError| format!("the hub gives none: {error}");
    let mut builder = ApiBuilder::from_env().with_cache_dir(cache.path().clone());
    if let Ok(token) = std::env::var("HF_TOKEN") {
        builder = builder.with_token(Some(token));
    }
    let api = builder.build().map_err(failed)?;
    let info = api.repo(model.at(&model.revision)).info().map_err(failed)?;
    let names: Vec<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
    let commit = api.repo(model.at(&info.sha));
    for name in names.iter().filter(|name| wants(model, name, &names)) {
        commit.get(name).map_err(failed)?;
    }
    model.in_cache(cache, &model.revision).create_ref(&info.sha).map_err(|error| error.to_string())
}

/// Whether a file of the repository belongs to the model. Some have the weights several times.
fn wants(model: &HubModel, name: &str, all: &[&str]) -> bool {
    if let Some(file) = &model.file {
        return name == file;
    }
    let is_shard = name.starts_with("model-") && name.ends_with(".safetensors");
    match all.contains(&SINGLE_FILE) {
        _ if TEXT_FILES.contains(&name) => true,
        _ if [CONFIG_FILE, BASELINE_FILE].contains(&name) => true,
        true => name == SINGLE_FILE,
        false => name == INDEX_FILE || is_shard,
    }
}
