//! Decoder families: how each writes `config.json`, and how it lays out its tensors.
//!
//! A family is a file with `read`, from `config.json` to a [`DecoderConfig`], and, where its tensors are not named or laid
//! out as Llama's, `place`, by which `layout.rs` reads and stores them. `model/decoder.rs` computes whatever they describe.

mod gemma2;
mod gemma3;
mod gpt_neox;
mod keys;
mod layout;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod rope;

use std::fmt;

use serde::Serialize;

use super::{Architecture, CheckpointError, DecoderConfig};
use crate::layer::{AttentionShape, RopeScaling};
pub(super) use keys::Keys;
pub use layout::DecoderTensors;
use layout::FusedRows;
pub(crate) use layout::Place;
use rope::Rope;

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
    pub(super) fn of(architecture: &str) -> Option<Self> {
        let stem = CLASSES.iter().find_map(|class| architecture.strip_suffix(class))?;
        // Gemma 3's text model comes as `Gemma3ForCausalLM` and `Gemma3TextModel`.
        let stem = if stem == "Gemma3" { "Gemma3Text" } else { stem };
        Self::ALL.into_iter().find(|family| family.name() == stem)
    }

    /// The family of a `model_type`.
    pub(super) fn of_model_type(model_type: &str) -> Option<Self> {
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
    pub(super) fn is_backbone(name: &str) -> bool {
        Self::ALL.iter().any(|family| name.starts_with(family.prefix()))
    }

    /// The architectures that are known, for an error.
    pub(super) fn known() -> String {
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
            Self::GptNeoX => gpt_neox::PREFIX,
            _ => "model.",
        }
    }

    /// Whether its tensors are other ones than Llama's: several weights in one, or norms' scales less 1.
    pub(super) fn has_own_layout(self) -> bool {
        matches!(self, Self::GptNeoX | Self::Phi3 | Self::Gemma2 | Self::Gemma3)
    }

    /// Reads what `config.json` says of the decoder.
    pub(super) fn read(self, keys: &Keys<'_>) -> Result<DecoderConfig, CheckpointError> {
        let mut decoder = match self {
            Self::Llama => llama::read(keys),
            Self::Mistral => mistral::read(keys),
            Self::Qwen2 => qwen2::read(keys),
            Self::Qwen3 => qwen3::read(keys),
            Self::GptNeoX => gpt_neox::read(keys),
            Self::Phi3 => phi3::read(keys),
            Self::Gemma2 => gemma2::read(keys),
            Self::Gemma3 => gemma3::read(keys),
        }?;
        decoder.architecture.family = self;
        if let RopeScaling::LongRope { original_max_position_embeddings: original, .. } =
            decoder.attention.rope_scaling
        {
            decoder.max_position_embeddings = decoder.max_position_embeddings.min(original);
        }
        // A window over the longest text is none.
        let longest = decoder.max_position_embeddings;
        let sliding = decoder.architecture.sliding.iter_mut().map(|sliding| &mut sliding.attention);
        for shape in sliding.chain([&mut decoder.attention]) {
            shape.window = shape.window.filter(|&window| window < longest);
        }
        Ok(decoder)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name().trim_end_matches("Text"))
    }
}

/// A decoder of Llama's keys and layers with these heads.
fn base(keys: &Keys<'_>, attention: AttentionShape) -> Result<DecoderConfig, CheckpointError> {
    Ok(DecoderConfig {
        vocab_size: keys.count("vocab_size")?,
        hidden_size: keys.even("hidden_size")?,
        intermediate_size: keys.even("intermediate_size")?,
        num_hidden_layers: keys.count("num_hidden_layers")?,
        attention,
        max_position_embeddings: keys.count("max_position_embeddings")?,
        rms_norm_eps: keys.or("rms_norm_eps", 1e-6)?,
        architecture: Architecture::default(),
    })
}

/// Heads and their width; without `head_dim` that is `default`, or what the hidden size leaves each.
fn heads(keys: &Keys<'_>, default: Option<usize>) -> Result<AttentionShape, CheckpointError> {
    let heads = keys.count("num_attention_heads")?;
    let key_value_heads = keys.or("num_key_value_heads", heads)?;
    if key_value_heads == 0 || !heads.is_multiple_of(key_value_heads) {
        return Err(keys.wrong(
            "num_key_value_heads",
            format!("{key_value_heads} does not divide the {heads} query heads"),
        ));
    }
    let hidden_size = keys.even("hidden_size")?;
    let head_dim = keys.or("head_dim", default.unwrap_or(hidden_size / heads))?;
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(keys.wrong("head_dim", format!("must be even, found {head_dim}")));
    }
    Ok(AttentionShape { heads, key_value_heads, head_dim, ..AttentionShape::default() })
}

/// Adds the rotary embedding of layers that all have the same; every channel must be rotated.
fn with_whole_rope(
    keys: &Keys<'_>,
    shape: AttentionShape,
) -> Result<AttentionShape, CheckpointError> {
    let rope = Rope::read(keys)?;
    if rope.partial != 1.0 {
        return Err(keys.wrong("partial_rotary_factor", "this family rotates all channels"));
    }
    rope.into_shape(keys, shape)
}

/// The window of `sliding_window`: `default` where the key is missing, none where it is null.
fn window(keys: &Keys<'_>, default: Option<usize>) -> Result<Option<usize>, CheckpointError> {
    match keys.unless_null("sliding_window", default)? {
        Some(0) => Err(keys.wrong("sliding_window", "must be at least 1")),
        window => Ok(window),
    }
}

/// Which layers slide: as `layer_types` lists them, else as `default` says.
fn sliding_layers(
    keys: &Keys<'_>,
    count: usize,
    default: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, CheckpointError> {
    let Some(kinds) = keys.get::<Vec<String>>("layer_types")? else {
        return Ok((0..count).map(default).collect());
    };
    if kinds.len() != count {
        let message = format!("names {} layers, num_hidden_layers is {count}", kinds.len());
        return Err(keys.wrong("layer_types", message));
    }
    let slides = |kind: &String| match kind.as_str() {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(keys.wrong(
            "layer_types",
            format!("found {other:?}, known are \"full_attention\" and \"sliding_attention\""),
        )),
    };
    kinds.iter().map(slides).collect()
}
