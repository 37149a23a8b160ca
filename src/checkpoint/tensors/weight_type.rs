//! Types in which weights are stored.

use half::{bf16, f16};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::values::TensorValues;

/// Type in which weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightType {
    /// 16-bit brain floats, rounded to nearest even.
    #[default]
    Bf16,
    /// 16-bit IEEE floats, rounded to nearest even.
    F16,
    /// 32-bit floats.
    F32,
}

impl WeightType {
    /// The type that holds a stored type's values: itself, or F32.
    pub(crate) fn holding(stored: &str) -> Self {
        match stored {
            "BF16" => Self::Bf16,
            "F16" => Self::F16,
            _ => Self::F32,
        }
    }

    /// What `dtype` of `config.json` calls it.
    pub(crate) fn config_name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::F32 => "float32",
        }
    }

    pub(in crate::checkpoint) fn dtype(self) -> Dtype {
        match self {
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
            Self::F32 => Dtype::F32,
        }
    }
}

impl TensorValues {
    /// Rounded to nearest even where the type holds fewer digits.
    pub(in crate::checkpoint) fn stored_as(self, weight_type: WeightType) -> Self {
        match (self, weight_type) {
            (Self::Bf16(values), WeightType::Bf16) => Self::Bf16(values),
            (Self::F16(values), WeightType::F16) => Self::F16(values),
            (values, weight_type) => {
                let values = Vec::<f32>::from(values);
                match weight_type {
                    WeightType::F32 => Self::F32(values),
                    WeightType::Bf16 => {
                        Self::Bf16(values.into_iter().map(bf16::from_f32).collect())
                    }
                    WeightType::F16 => Self::F16(values.into_iter().map(f16::from_f32).collect()),
                }
            }
        }
    }
}
