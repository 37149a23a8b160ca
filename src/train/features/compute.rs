//! Where, and in which precision, a checkpoint is computed.

use anyhow::Context;

use crate::checkpoint::Checkpoint;
use crate::config::DeviceChoice;
use crate::ops::cpu::{CpuOps, Precision};

use super::gpu;
use super::inference::{Inference, Loaded};

/// Where and how hidden states are computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compute {
    device: DeviceChoice,
    dtype: Precision,
    threads: usize,
    dtype_key: &'static str,
}

impl Compute {
    /// Products in `dtype` on the processor, with so many threads (0 for one a processor), or on a GPU.
    pub fn new(device: DeviceChoice, dtype: Precision, threads: usize) -> Self {
        Self { device, dtype, threads, dtype_key: "dtype" }
    }

    /// The same, whose errors call the precision by another key.
    pub(in crate::train) fn with_dtype_key(self, dtype_key: &'static str) -> Self {
        Self { dtype_key, ..self }
    }

    /// Precision of products.
    pub fn dtype(&self) -> Precision {
        self.dtype
    }

    /// Refuses settings that cannot be, and a GPU that is not there.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> anyhow::Result<()> {
        let DeviceChoice::Cuda(ordinals) = &self.device else {
            // What is computed differs in the last digits: no machine should decide that.
            anyhow::ensure!(
                self.device == DeviceChoice::Cpu,
                "device: expected cpu, cuda or cuda:N"
            );
            return Ok(());
        };
        anyhow::ensure!(
            ordinals.len() <= 1,
            "device: the trainer uses one GPU, {} are named",
            ordinals.len()
        );
        anyhow::ensure!(
            self.dtype == Precision::Bf16,
            "{}: GPUs multiply in bf16: say `bf16`, or `cpu` for the device",
            self.dtype_key
        );
        gpu::check(ordinal(ordinals))
    }

    /// Loads a checkpoint's model, from `first_layer` on.
    ///
    /// # Errors
    /// A setting that [`Compute::check`] refuses, a device that cannot be had, or tensors that do not fit.
    pub fn load(
        &self,
        checkpoint: &Checkpoint,
        first_layer: usize,
    ) -> anyhow::Result<Box<dyn Inference>> {
        self.check()?;
        match &self.device {
            DeviceChoice::Cuda(ordinals) => gpu::load(ordinal(ordinals), checkpoint, first_layer),
            DeviceChoice::Cpu | DeviceChoice::Auto => {
                let ops = CpuOps::new(self.threads, self.dtype).context(self.dtype_key)?;
                let Checkpoint { config, tensors, .. } = checkpoint;
                Ok(Box::new(Loaded::on_cpu(ops, config, tensors, first_layer)?))
            }
        }
    }
}

/// The one GPU that is named, or the first.
pub(in crate::train) fn ordinal(ordinals: &[usize]) -> usize {
    ordinals.first().copied().unwrap_or(0)
}
