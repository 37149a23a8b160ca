//! The Llama family of decoders (Touvron et al. 2023), over packed sequences.

use std::ops::Range;

use crate::checkpoint::{CheckpointError, DecoderConfig, TensorSource};
use crate::ops::autograd::AutogradOps;
use crate::ops::{Ops, OpsError, Packing};

/// A decoder: token embedding, layers, final norm. Tensor names are Hugging Face's `model.*`.
#[derive(Debug)]
pub struct Llama<O: Ops> {
    /// Absent where the first layers are.
    embedding: Option<O::Table>,
    /// The layers from `first_layer` on.
    layers: Vec<Layer<O>>,
    first_layer: usize,
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
    /// Loads `model.embed_tokens`, `model.layers.*` and `model.norm`; with a `first_layer` above 0 only the layers from
    /// there on and the norm, for hidden states that something else computes.
    ///
    /// # Errors
    /// A missing tensor, a wrong shape or type.
    pub fn load(
        ops: &O,
        config: &DecoderConfig,
        source: &dyn TensorSource,
        first_layer: usize,
    ) -> Result<Self, CheckpointError> {
        let embedding = "model.embed_tokens.weight";
        let embedding = (first_layer == 0)
            .then(|| ops.table(source, embedding, config.vocab_size, config.hidden_size))
            .transpose()?;
        Ok(Self {
            embedding,
            layers: (first_layer..config.num_hidden_layers)
                .map(|index| Layer::load(ops, config, index, source))
                .collect::<Result<_, _>>()?,
            first_layer,
            norm: ops.scale(source, "model.norm.weight", config.hidden_size)?,
            config: config.clone(),
        })
    }

    /// Scale and epsilon of the final norm.
    pub fn norm(&self) -> (&O::Scale, f32) {
        (&self.norm, self.config.rms_norm_eps)
    }

    /// The layers that are loaded.
    pub fn layers(&self) -> Range<usize> {
        self.first_layer..self.config.num_hidden_layers
    }

    /// What attention needs to know of a batch.
    ///
    /// # Errors
    /// A failing device.
    pub fn layout(&self, ops: &O, packing: &Packing) -> Result<O::Layout, OpsError> {
        ops.layout(packing, &self.config.attention)
    }

    /// What enters the first layer: `[rows, hidden]`.
    ///
    /// # Errors
    /// A failing device.
    ///
    /// # Panics
    /// If the first layers were not loaded.
    pub fn embed(&self, ops: &O, packing: &Packing) -> Result<O::Matrix, OpsError> {
        let table = self.embedding.as_ref().expect("layers from the first on");
        ops.embed(table, packing.ids())
    }

    /// Takes every row to the attention of layer `index`: from that of the layer before, whose inputs are
    /// `previous`, or, without them, from `x` that enters the layer. Gives what enters the layer, `[rows, hidden]`, and
    /// what its attention reads.
    ///
    /// # Errors
    /// A failing device.
    pub fn advance(
        &self,
        ops: &O,
        index: usize,
        x: O::Matrix,
        previous: Option<&O::Projection>,
        layout: &O::Layout,
    ) -> Result<(O::Matrix, O::Projection), OpsError> {
        let DecoderConfig { attention: shape, rms_norm_eps: epsilon, .. } = &self.config;
        let layer = &self.layers[index - self.first_layer];
        let work = |ops: &O, attended: Option<O::Operand>, x: O::Matrix| {
            let x = match attended {
                Some(attended) => {
                    let before = &self.layers[index - 1 - self.first_layer];
                    before.finish(ops, &attended, x, *epsilon)?
                }
                None => x,
            };
            let projected = layer.project(ops, &x, *epsilon)?;
            Ok((x, projected))
        };
        let asks = matches!(layer.projection, Projection::All(_));
        ops.advance(x, previous, layout, shape, asks, work)
    }

    /// The last layer, for the last token of each sequence: from what [`Llama::advance`] gave for it to
    /// `[sequences, hidden]` before the final norm.
    ///
    /// # Errors
    /// A failing device.
    pub fn finish(
        &self,
        ops: &O,
        x: &O::Matrix,
        projection: &O::Projection,
        layout: &O::Layout,
        packing: &Packing,
    ) -> Result<O::Matrix, OpsError> {
        let epsilon = self.config.rms_norm_eps;
        let x = ops.gather(x, &packing.last_rows())?;
        let Some(layer) = self.layers.last() else { return Ok(x) };
        let Projection::Last { query, .. } = &layer.projection else { return Ok(x) };
        let normed = ops.rms_norm(&x, &layer.attention_norm, epsilon)?;
        let queries = ops.linear(&normed, query)?;
        let attended = ops.last_attention(queries, projection, layout)?;
        layer.finish(ops, &attended, x, epsilon)
    }

    /// What enters layer `index`: `[rows, hidden]`.
    ///
    /// # Errors
    /// A failing device.
    pub fn entering(
        &self,
        ops: &O,
        packing: &Packing,
        index: usize,
    ) -> Result<O::Matrix, OpsError> {
        let layout = self.layout(ops, packing)?;
        let (mut x, mut projection) = (self.embed(ops, packing)?, None);
        for layer in self.first_layer..=index {
            let (advanced, next) = self.advance(ops, layer, x, projection.as_ref(), &layout)?;
            (x, projection) = (advanced, Some(next));
        }
        Ok(x)
    }

    /// Hidden states before the final norm at each sequence's last token: `[sequences, hidden]`. `x` is what enters
    /// the first of [`Llama::layers`].
    ///
    /// # Errors
    /// A failing device.
    pub fn pooled(
        &self,
        ops: &O,
        packing: &Packing,
        mut x: O::Matrix,
    ) -> Result<O::Matrix, OpsError> {
        let layout = self.layout(ops, packing)?;
        let mut projection = None;
        for index in self.layers() {
            let (advanced, next) = self.advance(ops, index, x, projection.as_ref(), &layout)?;
            (x, projection) = (advanced, Some(next));
        }
        match &projection {
            Some(projection) => self.finish(ops, &x, projection, &layout, packing),
            None => ops.gather(&x, &packing.last_rows()),
        }
    }
}

impl Llama<AutogradOps> {
    /// One layer, not the last, for every row: from what enters it to what enters the next. What it keeps in between
    /// can be had again from `x` alone.
    ///
    /// # Errors
    /// A failing operation.
    pub fn layer(
        &self,
        ops: &AutogradOps,
        index: usize,
        x: &<AutogradOps as Ops>::Matrix,
        layout: &<AutogradOps as Ops>::Layout,
    ) -> Result<<AutogradOps as Ops>::Matrix, OpsError> {
        let layer = &self.layers[index - self.first_layer];
        let epsilon = self.config.rms_norm_eps;
        let attended = ops.attention(&layer.project(ops, x, epsilon)?, layout)?;
        layer.finish(ops, &attended, x.clone(), epsilon)
    }
}
