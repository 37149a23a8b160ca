//! GPUs of a build with the feature `cuda`.

use crate::checkpoint::CheckpointError;
use crate::config::{DtypeChoice, ServerConfig};
use crate::model::Scorer;
use crate::model_loader::ServedModel;
use crate::ops::cuda::{CudaError, CudaOps};

/// One model a GPU, and what the GPUs are called.
type Gpus = (Vec<Box<dyn Scorer>>, String);

/// The model on every GPU, or `None`, with a warning, where none can serve it.
pub(in crate::placement) fn serving(
    config: &ServerConfig,
    served: &ServedModel,
) -> anyhow::Result<Option<Gpus>> {
    let reason = match CudaOps::count() {
        Ok(0) => "the driver knows no device".to_owned(),
        Ok(_) => match load(config, served, &[]) {
            Ok(devices) => return Ok(Some(devices)),
            Err(error) => match (error.downcast_ref(), error.downcast_ref()) {
                (Some(CudaError::TooOld { .. }), _)
                | (_, Some(CheckpointError::Unsupported(_))) => error.to_string(),
                // A card that could serve and does not is no reason to be a hundred times slower.
                _ => return Err(error.context("device")),
            },
        },
        Err(error) => error.to_string(),
    };
    tracing::warn!(reason, "no GPU to serve on: serving on the CPU");
    Ok(None)
}

/// The model on the named GPUs, or on all where none is named.
pub(in crate::placement) fn load(
    config: &ServerConfig,
    served: &ServedModel,
    ordinals: &[usize],
) -> anyhow::Result<Gpus> {
    anyhow::ensure!(
        config.dtype != DtypeChoice::F32,
        "GPUs multiply in bf16: leave `dtype` at auto, or say `device = \"cpu\"`"
    );
    let count = CudaOps::count()?;
    anyhow::ensure!(count > 0, "the driver knows no GPU");
    let all: Vec<usize> = (0..count).collect();
    let ordinals = if ordinals.is_empty() { &all } else { ordinals };
    let mut scorers: Vec<Box<dyn Scorer>> = Vec::with_capacity(ordinals.len());
    let (mut names, mut first) = (Vec::with_capacity(ordinals.len()), None);
    for &ordinal in ordinals {
        let ops = CudaOps::new(ordinal, &config.cuda.product_rows)?;
        names.push(format!("cuda:{ordinal} ({}, bf16)", ops.name()));
        let model = served.load(ops)?;
        // Compiles and measures everything that the first batch would wait for.
        let scores = model.score(&[&[0]])?;
        anyhow::ensure!(
            *first.get_or_insert_with(|| scores.clone()) == scores,
            "cuda:{ordinal} gives other bits than cuda:{}: a text's reward would depend on where it is \
             scored; name devices of one kind in `device`",
            ordinals[0]
        );
        scorers.push(model);
    }
    let name = names.join(", ");
    Ok((scorers, name))
}
