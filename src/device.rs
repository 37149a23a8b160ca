//! From the settings to models on devices.

use anyhow::Context;

use crate::config::{DeviceChoice, DtypeChoice, ServerConfig};
use crate::encoder::{self, EncoderChoice, EncoderInfo, Loaded};
use crate::model::Scorer;
use crate::ops::cpu::{CpuOps, Precision};
use crate::served::ServedModel;

/// A model on every device that it is to be scored on.
#[allow(missing_debug_implementations)]
pub struct Devices {
    /// One model a device.
    pub scorers: Vec<Box<dyn Scorer>>,
    /// What was taken.
    pub name: String,
    /// Precision of products.
    pub precision: Precision,
    /// What computes hidden states, where it is not this program.
    pub encoder: Option<EncoderInfo>,
}

impl Devices {
    /// Loads the model where the settings say. `auto` takes every GPU that can serve it, else the
    /// processor, and says which.
    ///
    /// # Errors
    /// A device or precision that cannot be had, naming the setting; a checkpoint that does not fit.
    pub fn load(config: &ServerConfig, served: &ServedModel) -> anyhow::Result<Self> {
        if config.encoder == EncoderChoice::MistralRs {
            let Loaded { scorer, device, precision, info } = encoder::load(config, served)?;
            return Ok(Self {
                scorers: vec![scorer],
                name: device,
                precision,
                encoder: Some(info),
            });
        }
        match &config.device {
            DeviceChoice::Cpu => cpu(config, served),
            DeviceChoice::Cuda(ordinals) => gpu::load(config, served, ordinals).context("device"),
            DeviceChoice::Auto if config.dtype == DtypeChoice::F32 => cpu(config, served),
            DeviceChoice::Auto => match gpu::serving(config, served)? {
                Some(devices) => Ok(devices),
                None => cpu(config, served),
            },
        }
    }
}

fn cpu(config: &ServerConfig, served: &ServedModel) -> anyhow::Result<Devices> {
    let precision = match config.dtype {
        DtypeChoice::Bf16 => Precision::Bf16,
        DtypeChoice::Auto | DtypeChoice::F32 => Precision::F32,
    };
    let ops = CpuOps::new(config.threads, precision).context("dtype or threads")?;
    let name =
        format!("cpu ({}, {} threads, {})", ops.isa().name(), ops.threads(), precision.name());
    let model = served.load(ops)?;
    Ok(Devices { scorers: vec![model], name, precision, encoder: None })
}

#[cfg(feature = "cuda")]
mod gpu {
    use super::*;
    use crate::checkpoint::CheckpointError;
    use crate::ops::cuda::{CudaError, CudaOps};

    /// The model on every GPU, or `None`, with a warning, where none can serve it.
    pub(super) fn serving(
        config: &ServerConfig,
        served: &ServedModel,
    ) -> anyhow::Result<Option<Devices>> {
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
    pub(super) fn load(
        config: &ServerConfig,
        served: &ServedModel,
        ordinals: &[usize],
    ) -> anyhow::Result<Devices> {
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
        Ok(Devices { scorers, name, precision: Precision::Bf16, encoder: None })
    }
}

/// What a build without the feature says.
#[cfg(not(feature = "cuda"))]
pub(crate) const NO_GPU: &str = "this build knows no GPU: build it with `--features cuda`";

#[cfg(not(feature = "cuda"))]
mod gpu {
    use super::*;

    pub(super) fn serving(_: &ServerConfig, _: &ServedModel) -> anyhow::Result<Option<Devices>> {
        if std::path::Path::new("/proc/driver/nvidia").exists() {
            tracing::warn!("there is an NVIDIA GPU, and {NO_GPU}; serving on the CPU");
        }
        Ok(None)
    }

    pub(super) fn load(_: &ServerConfig, _: &ServedModel, _: &[usize]) -> anyhow::Result<Devices> {
        anyhow::bail!(NO_GPU)
    }
}
