//! Stands for downloads in builds without the feature `hub`.

use hf_hub::Cache;

use super::model::HubModel;

/// Says how to build a program that downloads.
pub(super) fn download(_: &HubModel, _: &Cache) -> Result<(), String> {
    Err("this build downloads nothing: build it with `--features hub`, or bring the model there by the hub's \
         own tools"
        .to_owned())
}
