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

    /// What the attention of this layer reads.
    fn project(&self, ops: &O, x: &O::Matrix, epsilon: f32) -> Result<O::Matrix, OpsError> {
        let normed = ops.rms_norm(x, &self.attention_norm, epsilon)?;
        match &self.projection {
            Projection::All(weight) | Projection::Last { key_value: weight, .. } => {
                ops.linear(&normed, weight)
            }
        }
    }

    /// What follows this layer's attention.
    fn finish(
        &self,
        ops: &O,
        attended: &O::Operand,
        x: O::Matrix,
        epsilon: f32,
    ) -> Result<O::Matrix, OpsError> {
        let x = ops.linear_add(attended, &self.attention_output, x)?;
        let normed = ops.rms_norm(&x, &self.mlp_norm, epsilon)?;
        let inner = ops.gated_linear(&normed, &self.gate_up)?;
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

    /// Scale and epsilon of the final norm.
    pub fn norm(&self) -> (&O::Scale, f32) {
        (&self.norm, self.config.rms_norm_eps)
    }

    /// Hidden states before the final norm at each sequence's last token: `[sequences, hidden]`.
    ///
    /// # Errors
    /// A failing device.
    pub fn pooled(&self, ops: &O, packing: &Packing) -> Result<O::Matrix, OpsError> {
        let DecoderConfig { attention: shape, rms_norm_eps: epsilon, .. } = &self.config;
        let layout = ops.layout(packing, shape)?;
        let mut x = ops.embed(&self.embedding, packing.ids())?;
        let mut projection = None;
        let mut before: Option<&Layer<O>> = None;
        for layer in &self.layers {
            let asks = matches!(layer.projection, Projection::All(_));
            let work = |ops: &O, attended: Option<O::Operand>, x: O::Matrix| {
                let x = match (before, attended) {
                    (Some(before), Some(attended)) => before.finish(ops, &attended, x, *epsilon)?,
                    _ => x,
                };
                let projected = layer.project(ops, &x, *epsilon)?;
                Ok((x, projected))
            };
            let (advanced, next) =
                ops.advance(x, projection.as_ref(), &layout, shape, asks, work)?;
            (x, projection, before) = (advanced, Some(next), Some(layer));
        }
        let mut x = ops.gather(&x, &packing.last_rows())?;
        if let (Some(layer), Some(projection)) = (before, &projection)
            && let Projection::Last { query, .. } = &layer.projection
        {
            let normed = ops.rms_norm(&x, &layer.attention_norm, *epsilon)?;
            let queries = ops.linear(&normed, query)?;
            let attended = ops.last_attention(queries, projection, &layout)?;
            x = layer.finish(ops, &attended, x, *epsilon)?;
        }
        Ok(x)
    }
}
