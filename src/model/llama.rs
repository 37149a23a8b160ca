//! The Llama family of decoders (Touvron et al. 2023), over packed sequences.

use crate::checkpoint::{CheckpointError, DecoderConfig, TensorSource};
use crate::ops::{Ops, OpsError, Packing};

/// A decoder: token embedding, layers, final norm. Tensor names are Hugging Face's `model.*`.
#[derive(Debug)]
pub struct Llama<O: Ops> {
    embedding: O::Table,
    layers: Vec<Layer<O>>,
    norm: O::Scale,
    config: DecoderConfig,
}

#[derive(Debug)]
struct Layer<O: Ops> {
    attention_norm: O::Scale,
    qkv: O::Weight,
    attention_output: O::Weight,
    mlp_norm: O::Scale,
    gate_up: O::Weight,
    down: O::Weight,
}

impl<O: Ops> Layer<O> {
    fn load(
        ops: &O,
        config: &DecoderConfig,
        index: usize,
        source: &dyn TensorSource,
    ) -> Result<Self, CheckpointError> {
        let name = |suffix: &str| format!("model.layers.{index}.{suffix}.weight");
        let hidden = config.hidden_size;
        let inner = config.intermediate_size;
        let shape = &config.attention;
        let query = shape.output_columns();
        let key_value = shape.key_value_heads * shape.head_dim;
        Ok(Self {
            attention_norm: ops.scale(source, &name("input_layernorm"), hidden)?,
            qkv: ops.weight(
                source,
                &[
                    (&name("self_attn.q_proj"), query),
                    (&name("self_attn.k_proj"), key_value),
                    (&name("self_attn.v_proj"), key_value),
                ],
                hidden,
            )?,
            attention_output: ops.weight(source, &[(&name("self_attn.o_proj"), hidden)], query)?,
            mlp_norm: ops.scale(source, &name("post_attention_layernorm"), hidden)?,
            gate_up: ops.weight(
                source,
                &[(&name("mlp.gate_proj"), inner), (&name("mlp.up_proj"), inner)],
                hidden,
            )?,
            down: ops.weight(source, &[(&name("mlp.down_proj"), hidden)], inner)?,
        })
    }

    fn forward(
        &self,
        ops: &O,
        x: O::Matrix,
        layout: &O::Layout,
        config: &DecoderConfig,
    ) -> Result<O::Matrix, OpsError> {
        let normed = ops.rms_norm(&x, &self.attention_norm, config.rms_norm_eps)?;
        let qkv = ops.linear(&normed, &self.qkv)?;
        let attended = ops.attention(qkv, layout, &config.attention)?;
        let x = ops.linear_add(&attended, &self.attention_output, x)?;
        let normed = ops.rms_norm(&x, &self.mlp_norm, config.rms_norm_eps)?;
        let inner = ops.swiglu(ops.linear(&normed, &self.gate_up)?)?;
        ops.linear_add(&inner, &self.down, x)
    }
}

impl<O: Ops> Llama<O> {
    /// Loads `model.embed_tokens`, `model.layers.*` and `model.norm`.
    ///
    /// # Errors
    /// A missing tensor, a wrong shape or type.
    pub fn load(
        ops: &O,
        config: &DecoderConfig,
        source: &dyn TensorSource,
    ) -> Result<Self, CheckpointError> {
        let embedding = "model.embed_tokens.weight";
        Ok(Self {
            embedding: ops.table(source, embedding, config.vocab_size, config.hidden_size)?,
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::load(ops, config, index, source))
                .collect::<Result<_, _>>()?,
            norm: ops.scale(source, "model.norm.weight", config.hidden_size)?,
            config: config.clone(),
        })
    }

    /// Hidden states after the final norm at each sequence's last token: `[sequences, hidden]`.
    ///
    /// # Errors
    /// A failing device.
    pub fn last_hidden(&self, ops: &O, packing: &Packing) -> Result<O::Matrix, OpsError> {
        let layout = ops.layout(packing, &self.config.attention)?;
        let mut x = ops.embed(&self.embedding, packing.ids())?;
        for layer in &self.layers {
            x = layer.forward(ops, x, &layout, &self.config)?;
        }
        let pooled = ops.gather_rows(&x, &packing.last_rows())?;
        ops.rms_norm(&pooled, &self.norm, self.config.rms_norm_eps)
    }
}
