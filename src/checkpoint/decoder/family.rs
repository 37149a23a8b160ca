//! The families of decoders, and what transformers calls them.

use std::fmt;

use serde::Serialize;

/// A family of decoders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Touvron et al. 2023.
    #[default]
    Llama,
    /// Jiang et al. 2023.
    Mistral,
    /// Yang et al. 2024.
    Qwen2,
    /// Yang et al. 2025.
    Qwen3,
    /// Black et al. 2022; Pythia (Biderman et al. 2023).
    GptNeoX,
    /// Abdin et al. 2024.
    Phi3,
    /// Gemma team 2024.
    Gemma2,
    /// Gemma team 2025; texts only.
    Gemma3,
}

/// What follows a family's name in `architectures`.
const CLASSES: [&str; 5] =
    ["ForCausalLM", "Model", "ForSequenceClassification", "ForTokenClassification", "ForInfoRM"];

impl Family {
    const ALL: [Self; 8] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::GptNeoX,
        Self::Phi3,
        Self::Gemma2,
        Self::Gemma3,
    ];

    /// What its classes in transformers begin with.
    fn name(self) -> &'static str {
        match self {
            Self::Llama => "Llama",
            Self::Mistral => "Mistral",
            Self::Qwen2 => "Qwen2",
            Self::Qwen3 => "Qwen3",
            Self::GptNeoX => "GPTNeoX",
            Self::Phi3 => "Phi3",
            Self::Gemma2 => "Gemma2",
            Self::Gemma3 => "Gemma3Text",
        }
    }

    /// The family of a class of transformers, or of an InfoRM built like one.
    pub(in crate::checkpoint) fn of(architecture: &str) -> Option<Self> {
        let stem = CLASSES.iter().find_map(|class| architecture.strip_suffix(class))?;
        // Gemma 3's text model comes as `Gemma3ForCausalLM` and `Gemma3TextModel`.
        let stem = if stem == "Gemma3" { "Gemma3Text" } else { stem };
        Self::ALL.into_iter().find(|family| family.name() == stem)
    }

    /// The family of a `model_type`.
    pub(in crate::checkpoint) fn of_model_type(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.model_type() == model_type)
    }

    /// What transformers calls it in `model_type`.
    pub(crate) fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::GptNeoX => "gpt_neox",
            Self::Phi3 => "phi3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
        }
    }

    /// Whether a tensor is some family's backbone's, by its name.
    pub(in crate::checkpoint) fn is_backbone(name: &str) -> bool {
        Self::ALL.iter().any(|family| name.starts_with(family.prefix()))
    }

    /// The architectures that are known, for an error.
    pub(in crate::checkpoint) fn known() -> String {
        let llama = CLASSES.map(|class| format!("Llama{class}")).join(", ");
        let others: Vec<&str> = Self::ALL[1..].iter().map(|family| family.name()).collect();
        format!("{llama}, and the same of {}", others.join(", "))
    }

    /// The class that computes the family's decoder with a head.
    pub(crate) fn class(self, has_latent: bool) -> String {
        let class = if has_latent { "ForInfoRM" } else { "ForSequenceClassification" };
        format!("{}{class}", self.name())
    }

    /// What the names of the backbone's tensors begin with.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::GptNeoX => "gpt_neox.",
            _ => "model.",
        }
    }

    /// Whether its tensors are other ones than Llama's: several weights in one, or norms' scales less 1.
    pub(in crate::checkpoint) fn has_own_layout(self) -> bool {
        matches!(self, Self::GptNeoX | Self::Phi3 | Self::Gemma2 | Self::Gemma3)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name().trim_end_matches("Text"))
    }
}
