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
    projection: Projection<O>,
    attention_output: O::Weight,
    mlp_norm: O::Scale,
    gate_up: O::GatedWeight,
    down: O::Weight,
}

/// The inputs of attention.
#[derive(Debug)]
enum Projection<O: Ops> {
    /// Every row asks: `[q | k | v]` is one product.
    All(O::Weight),
    /// Only the pooled rows ask, as in the last layer: queries of those, `[k | v]` of all rows.
    Last { query: O::Weight, key_value: O::Weight },
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
        let query_columns = shape.output_columns();
        let key_value_columns = shape.key_value_heads * shape.head_dim;
        let (query, key, value) =
            (name("self_attn.q_proj"), name("self_attn.k_proj"), name("self_attn.v_proj"));
        let query = (query.as_str(), query_columns);
        let key_value = [(key.as_str(), key_value_columns), (value.as_str(), key_value_columns)];
        let projection = if index + 1 < config.num_hidden_layers {
            Projection::All(ops.weight(source, &[query, key_value[0], key_value[1]], hidden)?)
        } else {
            Projection::Last {
                query: ops.weight(source, &[query], hidden)?,
                key_value: ops.weight(source, &key_value, hidden)?,
            }
        };
        Ok(Self {
            attention_norm: ops.scale(source, &name("input_layernorm"), hidden)?,
            projection,
            attention_output: ops.weight(
                source,
                &[(&name("self_attn.o_proj"), hidden)],
                query_columns,
            )?,
            mlp_norm: ops.scale(source, &name("post_attention_layernorm"), hidden)?,
            gate_up: ops.gated_weight(
                source,
                &name("mlp.gate_proj"),
                &name("mlp.up_proj"),
                inner,
                hidden,
            )?,
            down: ops.weight(source, &[(&name("mlp.down_proj"), hidden)], inner)?,
        })
    }

    /// One row a packed token in; out, one row a packed token, or a pooled one from the last layer.
    fn forward(
        &self,
        ops: &O,
        x: O::Matrix,
        batch: &Batch<'_, O>,
        config: &DecoderConfig,
    ) -> Result<O::Matrix, OpsError> {
        let normed = ops.rms_norm(&x, &self.attention_norm, config.rms_norm_eps)?;
        let (attended, x) = match &self.projection {
            Projection::All(qkv) => {
                let qkv = ops.linear(&normed, qkv)?;
                (ops.attention(qkv, &batch.layout, &config.attention)?, x)
            }
            Projection::Last { query, key_value } => {
                let last = batch.packing.last_rows();
                let query = ops.linear(&ops.gather_operand(&normed, &last)?, query)?;
                let key_value = ops.linear(&normed, key_value)?;
                let attended =
                    ops.last_attention(query, key_value, &batch.layout, &config.attention)?;
                (attended, ops.gather(&x, &last)?)
            }
        };
        let x = ops.linear_add(&attended, &self.attention_output, x)?;
        let normed = ops.rms_norm(&x, &self.mlp_norm, config.rms_norm_eps)?;
        let inner = ops.gated_linear(&normed, &self.gate_up)?;
        ops.linear_add(&inner, &self.down, x)
    }
}

/// A batch as the layers see it.
struct Batch<'a, O: Ops> {
    packing: &'a Packing,
    layout: O::Layout,
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
        let batch = Batch { packing, layout: ops.layout(packing, &self.config.attention)? };
        let mut x = ops.embed(&self.embedding, packing.ids())?;
        for layer in &self.layers {
            x = layer.forward(ops, x, &batch, &self.config)?;
        }
        ops.head_norm(&x, &self.norm, self.config.rms_norm_eps)
    }
}
