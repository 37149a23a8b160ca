//! What lies on disk: a Hugging Face style folder with an InfoRM or standard reward head.
//!
//! | file | content |
//! |---|---|
//! | `config.json` | the backbone's keys as Hugging Face names them, and the head's: [`ModelConfig`] |
//! | `model.safetensors`, or shards with `model.safetensors.index.json` | `model.*` and the head |
//! | `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` | [`TextEncoder`] |
//! | `baseline.safetensors` | SFT baseline latents, optional: [`Baseline`] |
//!
//! Or a GGUF file, which is read as such a folder; or one of both that a hub has
//! ([`CheckpointSource::open`]).

mod baseline;
mod config;
mod contents;
mod decoder;
mod families;
mod files;
mod gguf;
mod source;
mod tensors;
mod text;
mod weights_hash;
mod write;

pub use baseline::Baseline;
pub use config::{DecodeKind, HeadConfig, ModelConfig, RewardScale, StandardConfig, StandardHead};
pub use contents::Checkpoint;
pub use decoder::{
    Architecture, Biases, DecoderConfig, DecoderPart, Family, MlpKind, NormKind, Residual,
    SlidingLayers,
};
pub use families::DecoderTensors;
pub(crate) use families::TensorPlace;
pub use files::{
    BASELINE_FILE, CONFIG_FILE, CheckpointError, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
};
pub(crate) use files::{
    TOKEN_FILES, check_output, combined_hash, parent_and_name, read_json, replace_file,
};
pub use gguf::Gguf;
pub use source::CheckpointSource;
pub use tensors::{FolderTensors, MemoryTensors, TensorSource, TensorValues, WeightType};
pub(crate) use text::padding_token;
pub use text::{
    BosPolicy, EncodeError, Encoding, EosPolicy, Input, Message, Pooling, SpecialToken,
    TextEncoder, TextPolicy,
};
pub use write::{
    CheckpointFiles, CheckpointParts, TensorLayout, write_checkpoint, write_checkpoint_parts,
};
