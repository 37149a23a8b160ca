//! Flags of what scores with a checkpoint.

use clap::{Args, ValueEnum};
use inform::config::DeviceChoice;
use inform::ops::cpu::Precision;
use inform::train::Compute;

/// Where and how hidden states are computed.
#[derive(Debug, Args)]
pub(crate) struct ComputeArgs {
    /// The processor, `cpu`, or a GPU, `cuda` or `cuda:N`
    #[arg(long, default_value = "cpu", value_parser = device)]
    device: DeviceChoice,
    /// Threads that score; 0 for one a processor
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Precision of products, best that of serving; bf16 on a GPU
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
}

fn device(text: &str) -> Result<DeviceChoice, String> {
    match DeviceChoice::try_from(text.to_owned()) {
        Ok(DeviceChoice::Auto) | Err(_) => Err("expected cpu, cuda or cuda:N".to_owned()),
        device => device,
    }
}

impl From<ComputeArgs> for Compute {
    fn from(ComputeArgs { device, threads, dtype }: ComputeArgs) -> Self {
        let dtype = match dtype {
            Dtype::F32 => Precision::F32,
            Dtype::Bf16 => Precision::Bf16,
        };
        Self::new(device, dtype, threads)
    }
}
