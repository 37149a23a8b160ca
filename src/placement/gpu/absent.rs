//! What stands for GPUs in a build without the feature `cuda`.

use crate::config::ServerConfig;
use crate::model::Scorer;
use crate::model_loader::ServedModel;

/// One model a GPU, and what the GPUs are called.
type Gpus = (Vec<Box<dyn Scorer>>, String);

/// What such a build says.
pub(crate) const NO_GPU: &str = "this build knows no GPU: build it with `--features cuda`";

pub(in crate::placement) fn serving(
    _: &ServerConfig,
    _: &ServedModel,
) -> anyhow::Result<Option<Gpus>> {
    if std::path::Path::new("/proc/driver/nvidia").exists() {
        tracing::warn!("there is an NVIDIA GPU, and {NO_GPU}; serving on the CPU");
    }
    Ok(None)
}

pub(in crate::placement) fn load(
    _: &ServerConfig,
    _: &ServedModel,
    _: &[usize],
) -> anyhow::Result<Gpus> {
    anyhow::bail!(NO_GPU)
}
