//! From the settings to models on devices.

mod gpu;

use anyhow::Context;

use crate::config::{DeviceChoice, DtypeChoice, EncoderChoice, ServerConfig};
use crate::encoder::{self, EncodedModel, EncoderInfo};
use crate::model::Scorer;
use crate::model_loader::ServedModel;
use crate::ops::cpu::{CpuOps, Precision};
#[cfg(not(feature = "cuda"))]
pub(crate) use gpu::NO_GPU;

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
            let EncodedModel { scorer, device, precision, info } = encoder::load(config, served)?;
            return Ok(Self {
                scorers: vec![scorer],
                name: device,
                precision,
                encoder: Some(info),
            });
        }
        match &config.device {
            DeviceChoice::Cpu => cpu(config, served),
            DeviceChoice::Cuda(ordinals) => {
                gpu::load(config, served, ordinals).map(on_gpus).context("device")
            }
            DeviceChoice::Auto if config.dtype == DtypeChoice::F32 => cpu(config, served),
            DeviceChoice::Auto => match gpu::serving(config, served)? {
                Some(gpus) => Ok(on_gpus(gpus)),
                None => cpu(config, served),
            },
        }
    }
}

fn on_gpus((scorers, name): (Vec<Box<dyn Scorer>>, String)) -> Devices {
    Devices { scorers, name, precision: Precision::Bf16, encoder: None }
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
