//! Where, and in which precision, is scored.

use serde::{Deserialize, Serialize};

/// Devices to score on: `auto`, `cpu`, `cuda` or `cuda:0,1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// Every GPU that this build and machine have, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// GPUs by their numbers, from 0; empty for all.
    Cuda(Vec<usize>),
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("found \"{text}\", expected auto, cpu, cuda, or cuda:0 or cuda:0,1");
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(Vec::new())),
            _ => {
                let numbers = text.strip_prefix("cuda:").ok_or_else(wrong)?.split(',');
                let numbers: Vec<usize> = numbers
                    .map(|n| n.trim().parse().map_err(|_| wrong()))
                    .collect::<Result<_, _>>()?;
                let mut distinct = numbers.clone();
                distinct.sort_unstable();
                distinct.dedup();
                if distinct.len() < numbers.len() {
                    return Err(format!("{text} names a GPU twice"));
                }
                Ok(Self::Cuda(numbers))
            }
        }
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        match choice {
            DeviceChoice::Auto => "auto".to_owned(),
            DeviceChoice::Cpu => "cpu".to_owned(),
            DeviceChoice::Cuda(numbers) if numbers.is_empty() => "cuda".to_owned(),
            DeviceChoice::Cuda(numbers) => {
                let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
                format!("cuda:{}", numbers.join(","))
            }
        }
    }
}

/// A precision of products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DtypeChoice {
    /// f32 on the processor, bf16 on GPUs.
    Auto,
    /// 32-bit floats; not on GPUs.
    F32,
    /// 16-bit brain floats.
    Bf16,
}

/// Settings of GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CudaConfig {
    /// Rows of one call of cuBLAS: a batch is cut into such pieces, of which those are used that give
    /// every row the same bits.
    pub product_rows: Vec<usize>,
}

impl Default for CudaConfig {
    fn default() -> Self {
        Self { product_rows: vec![128, 512, 2048] }
    }
}
