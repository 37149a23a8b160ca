//! From GGUF's tensors to those of a Hugging Face folder: names, and what a conversion does to values.

use super::config;
use super::file::GgufFile;
use crate::checkpoint::decoder::Family;
use crate::checkpoint::files::CheckpointError;

/// How a file has a tensor's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::checkpoint) enum StoredForm {
    /// As Hugging Face has them.
    AsItIs,
    /// As GGUF has rotary pairs, in each of so many heads.
    Pairs {
        /// Heads that the rows are, at least one.
        heads: usize,
    },
    /// One more than Hugging Face has them: scales of norms.
    OneMore,
}

/// What a tensor is called in a Hugging Face folder.
pub(super) struct TensorNames {
    family: Family,
    heads: usize,
    key_value_heads: usize,
}

impl TensorNames {
    pub(super) fn of(gguf: &GgufFile) -> Result<Self, CheckpointError> {
        let (architecture, family) = config::architecture(gguf)?;
        let heads = gguf.size(&format!("{architecture}.attention.head_count"))?;
        let key = format!("{architecture}.attention.head_count_kv");
        let key_value_heads = gguf.optional(&key, GgufFile::size)?.unwrap_or(heads);
        Ok(Self { family, heads, key_value_heads })
    }

    /// The name, and how GGUF has the values. A tensor that no model here reads keeps its name.
    pub(super) fn place(&self, name: &str) -> (String, StoredForm) {
        let whole = match name {
            "token_embd.weight" => Some("model.embed_tokens.weight"),
            "output_norm.weight" => Some("model.norm.weight"),
            "output.weight" => Some("lm_head.weight"),
            _ => None,
        };
        if let Some(whole) = whole {
            return (whole.to_owned(), self.stored(whole));
        }
        let parts = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let Some((layer, (part, suffix))) =
            parts.and_then(|(layer, rest)| Some((layer, rest.rsplit_once('.')?)))
        else {
            return (name.to_owned(), StoredForm::AsItIs);
        };
        let is_gemma = self.is_gemma();
        let part = match part {
            "attn_norm" => "input_layernorm",
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_qkv" => "self_attn.qkv_proj",
            "attn_q_norm" => "self_attn.q_norm",
            "attn_k_norm" => "self_attn.k_norm",
            "attn_output" => "self_attn.o_proj",
            "post_attention_norm" => "post_attention_layernorm",
            "ffn_norm" if is_gemma => "pre_feedforward_layernorm",
            "ffn_norm" => "post_attention_layernorm",
            "post_ffw_norm" => "post_feedforward_layernorm",
            "ffn_gate" => "mlp.gate_proj",
            // Both in one.
            "ffn_up" if self.family == Family::Phi3 => "mlp.gate_up_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            _ => return (name.to_owned(), StoredForm::AsItIs),
        };
        let name = format!("model.layers.{layer}.{part}.{suffix}");
        let stored = self.stored(&name);
        (name, stored)
    }

    fn is_gemma(&self) -> bool {
        matches!(self.family, Family::Gemma2 | Family::Gemma3)
    }

    fn stored(&self, name: &str) -> StoredForm {
        let is_llama = self.family == Family::Llama;
        match name {
            _ if is_llama && name.contains(".q_proj.") => StoredForm::Pairs { heads: self.heads },
            _ if is_llama && name.contains(".k_proj.") => {
                StoredForm::Pairs { heads: self.key_value_heads }
            }
            _ if self.is_gemma() && name.ends_with("norm.weight") => StoredForm::OneMore,
            _ => StoredForm::AsItIs,
        }
    }
}
