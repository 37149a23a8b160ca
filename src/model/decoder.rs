//! The decoder of every family, over packed sequences: what [`DecoderConfig`] describes.

use std::ops::Range;

use crate::checkpoint::{
    Architecture, Biases, CheckpointError, DecoderConfig, DecoderTensors, MlpKind, NormKind,
    Residual, TensorSource,
};
use crate::layer::{AttentionShape, Gelu};
use crate::ops::{DecoderOps, OpsError, Packing, QueryRows, TrainingOps};

/// A decoder: token embedding, layers, final norm.
#[derive(Debug)]
pub struct Decoder<O: DecoderOps> {
    /// Absent where the first layers are.
    embedding: Option<O::Table>,
    /// The layers from `first_layer` on.
    layers: Vec<Layer<O>>,
    first_layer: usize,
    norm: O::Scale,
    config: DecoderConfig,
}

#[derive(Debug)]
struct Layer<O: DecoderOps> {
    attention: AttentionShape,
    attention_norm: O::Scale,
    projection: AttentionInputs<O>,
    /// Of each head's queries and keys.
    query_key_norm: Option<(O::Scale, O::Scale)>,
    attention_output: O::Weight,
    mlp_norm: O::Scale,
    mlp: Mlp<O>,
    down: O::Weight,
    residual: LayerResidual<O>,
    epsilon: f32,
}

/// The inputs of attention.
#[derive(Debug)]
enum AttentionInputs<O: DecoderOps> {
    /// Every row is a query: `[q | k | v]` is one product.
    All(O::Weight),
    /// Only the pooled rows are queries, as in the last layer: queries of those, `[k | v]` of all rows.
    Last { query: O::Weight, key_value: O::Weight },
}

/// What comes before the MLP's last product.
#[derive(Debug)]
enum Mlp<O: DecoderOps> {
    SwiGlu(O::GatedWeight),
    GeGlu(O::GatedWeight, Gelu),
    Plain(O::Weight, Gelu),
}

/// [`Residual`] with its norms.
#[derive(Debug)]
enum LayerResidual<O: DecoderOps> {
    Sequential,
    Parallel,
    Normed { attention: O::Scale, mlp: O::Scale },
}

/// Loads a decoder's tensors by Llama's names.
struct Loader<'a, O: DecoderOps> {
    ops: &'a O,
    config: &'a DecoderConfig,
    tensors: DecoderTensors<'a>,
}

impl<O: DecoderOps> Loader<'_, O> {
    fn norm(&self, name: &str) -> Result<O::Scale, CheckpointError> {
        let (scale, columns) = (format!("{name}.weight"), self.config.hidden_size);
        match self.config.architecture.norm {
            NormKind::Rms => self.ops.scale(&self.tensors, &scale, columns),
            NormKind::Layer => {
                self.ops.layer_scale(&self.tensors, &scale, &format!("{name}.bias"), columns)
            }
        }
    }

    /// A weight of parts that are named without `.weight`.
    fn weight(
        &self,
        parts: &[(&str, usize)],
        columns: usize,
        has_bias: bool,
    ) -> Result<O::Weight, CheckpointError> {
        let named = |suffix: &str| -> Vec<(String, usize)> {
            parts.iter().map(|(name, rows)| (format!("{name}.{suffix}"), *rows)).collect()
        };
        let (weights, biases) = (named("weight"), named("bias"));
        let parts: Vec<(&str, usize)> =
            weights.iter().map(|(name, rows)| (name.as_str(), *rows)).collect();
        if !has_bias {
            return self.ops.weight(&self.tensors, &parts, columns);
        }
        let biases: Vec<&str> = biases.iter().map(|(name, _)| name.as_str()).collect();
        self.ops.biased_weight(&self.tensors, &parts, &biases, columns)
    }

    fn mlp(&self, layer: &str) -> Result<Mlp<O>, CheckpointError> {
        let DecoderConfig { hidden_size: hidden, intermediate_size: inner, .. } = *self.config;
        let up = format!("{layer}.mlp.up_proj");
        let gated = || {
            let (gate, up) = (format!("{layer}.mlp.gate_proj.weight"), format!("{up}.weight"));
            self.ops.gated_weight(&self.tensors, &gate, &up, inner, hidden)
        };
        Ok(match self.config.architecture.mlp {
            MlpKind::SwiGlu => Mlp::SwiGlu(gated()?),
            MlpKind::GeGlu(gelu) => Mlp::GeGlu(gated()?, gelu),
            MlpKind::Plain(gelu) => {
                let has_bias = self.config.architecture.biases.mlp;
                Mlp::Plain(self.weight(&[(&up, inner)], hidden, has_bias)?, gelu)
            }
        })
    }

    fn layer(&self, index: usize) -> Result<Layer<O>, CheckpointError> {
        let DecoderConfig { hidden_size: hidden, intermediate_size: inner, .. } = *self.config;
        let Architecture { biases, residual, query_key_norm, .. } = &self.config.architecture;
        let Biases { query_key_value, attention_output, mlp: mlp_bias } = *biases;
        let layer = format!("model.layers.{index}");
        let name = |suffix: &str| format!("{layer}.{suffix}");
        let attention = *self.config.attention_of(index);
        let query_columns = attention.output_columns();
        let key_value_columns = attention.key_value_heads * attention.head_dim;
        let (query, key, value) =
            (name("self_attn.q_proj"), name("self_attn.k_proj"), name("self_attn.v_proj"));
        let query = (query.as_str(), query_columns);
        let key_value = [(key.as_str(), key_value_columns), (value.as_str(), key_value_columns)];
        let projection = if index + 1 < self.config.num_hidden_layers {
            let all = [query, key_value[0], key_value[1]];
            AttentionInputs::All(self.weight(&all, hidden, query_key_value)?)
        } else {
            AttentionInputs::Last {
                query: self.weight(&[query], hidden, query_key_value)?,
                key_value: self.weight(&key_value, hidden, query_key_value)?,
            }
        };
        let head_norm = |suffix: &str| {
            let name = name(&format!("self_attn.{suffix}.weight"));
            self.ops.scale(&self.tensors, &name, attention.head_dim)
        };
        let query_key_norm = match query_key_norm {
            true => Some((head_norm("q_norm")?, head_norm("k_norm")?)),
            false => None,
        };
        let output = name("self_attn.o_proj");
        let (mlp_norm, residual) = match residual {
            Residual::Sequential => ("post_attention_layernorm", LayerResidual::Sequential),
            Residual::Parallel => ("post_attention_layernorm", LayerResidual::Parallel),
            Residual::Normed => {
                let attention = self.norm(&name("post_attention_layernorm"))?;
                let mlp = self.norm(&name("post_feedforward_layernorm"))?;
                ("pre_feedforward_layernorm", LayerResidual::Normed { attention, mlp })
            }
        };
        Ok(Layer {
            attention,
            attention_norm: self.norm(&name("input_layernorm"))?,
            projection,
            query_key_norm,
            attention_output: self.weight(&[(&output, hidden)], query_columns, attention_output)?,
            mlp_norm: self.norm(&name(mlp_norm))?,
            mlp: self.mlp(&layer)?,
            down: self.weight(&[(&name("mlp.down_proj"), hidden)], inner, mlp_bias)?,
            residual,
            epsilon: self.config.rms_norm_eps,
        })
    }
}

impl<O: DecoderOps> Layer<O> {
    /// What the attention of this layer reads: `[q | k | v]`, or `[k | v]`.
    fn project(&self, ops: &O, x: &O::Matrix) -> Result<O::Matrix, OpsError> {
        let normed = ops.norm(x, &self.attention_norm, self.epsilon)?;
        let (weight, query_columns) = match &self.projection {
            AttentionInputs::All(weight) => (weight, self.attention.output_columns()),
            AttentionInputs::Last { key_value, .. } => (key_value, 0),
        };
        let mut projected = ops.linear(&normed, weight)?;
        if let Some((query, key)) = &self.query_key_norm {
            let keys = query_columns..query_columns + self.attention.key_value_columns() / 2;
            if query_columns > 0 {
                projected = ops.head_norms(projected, 0..query_columns, query, self.epsilon)?;
            }
            projected = ops.head_norms(projected, keys, key, self.epsilon)?;
        }
        Ok(projected)
    }

    /// Queries of the pooled rows, where only those are.
    fn last_queries(&self, ops: &O, x: &O::Matrix) -> Result<Option<O::Matrix>, OpsError> {
        let AttentionInputs::Last { query, .. } = &self.projection else { return Ok(None) };
        let normed = ops.norm(x, &self.attention_norm, self.epsilon)?;
        let queries = ops.linear(&normed, query)?;
        Ok(Some(match &self.query_key_norm {
            Some((norm, _)) => {
                ops.head_norms(queries, 0..self.attention.output_columns(), norm, self.epsilon)?
            }
            None => queries,
        }))
    }

    /// What follows this layer's attention.
    fn after_attention(
        &self,
        ops: &O,
        attended: &O::Operand,
        x: O::Matrix,
    ) -> Result<O::Matrix, OpsError> {
        match &self.residual {
            LayerResidual::Sequential => {
                let x = ops.linear_add(attended, &self.attention_output, x)?;
                let inner = self.inner(ops, &x)?;
                ops.linear_add(&inner, &self.down, x)
            }
            LayerResidual::Parallel => {
                let inner = self.inner(ops, &x)?;
                let x = ops.linear_add(attended, &self.attention_output, x)?;
                ops.linear_add(&inner, &self.down, x)
            }
            LayerResidual::Normed { attention, mlp } => {
                let output = ops.linear(attended, &self.attention_output)?;
                let x = ops.norm_add(&output, attention, self.epsilon, x)?;
                let output = ops.linear(&self.inner(ops, &x)?, &self.down)?;
                ops.norm_add(&output, mlp, self.epsilon, x)
            }
        }
    }

    /// The MLP up to its last product.
    fn inner(&self, ops: &O, x: &O::Matrix) -> Result<O::Operand, OpsError> {
        let normed = ops.norm(x, &self.mlp_norm, self.epsilon)?;
        match &self.mlp {
            Mlp::SwiGlu(gate_up) => ops.gated_linear(&normed, gate_up),
            Mlp::GeGlu(gate_up, gelu) => ops.gelu_gated_linear(&normed, gate_up, *gelu),
            Mlp::Plain(up, gelu) => ops.gelu_linear(&normed, up, *gelu),
        }
    }
}

impl<O: DecoderOps> Decoder<O> {
    /// Loads the embedding, the layers and the final norm; with a `first_layer` above 0 only the layers from there on and
    /// the norm, for hidden states that something else computes.
    ///
    /// # Errors
    /// A part that the device has not got, a missing tensor, a wrong shape or type.
    pub fn load(
        ops: &O,
        config: &DecoderConfig,
        source: &dyn TensorSource,
        first_layer: usize,
    ) -> Result<Self, CheckpointError> {
        ops.supports(config)?;
        let loader = Loader { ops, config, tensors: config.tensors(source) };
        let embedding = "model.embed_tokens.weight";
        let embedding = (first_layer == 0)
            .then(|| ops.table(&loader.tensors, embedding, config.vocab_size, config.hidden_size))
            .transpose()?;
        Ok(Self {
            embedding,
            layers: (first_layer..config.num_hidden_layers)
                .map(|index| loader.layer(index))
                .collect::<Result<_, _>>()?,
            first_layer,
            norm: loader.norm("model.norm")?,
            config: config.clone(),
        })
    }

    /// Scale and epsilon of the final norm.
    pub fn norm(&self) -> (&O::Scale, f32) {
        (&self.norm, self.config.rms_norm_eps)
    }

    /// Columns of the hidden states.
    pub fn hidden_size(&self) -> usize {
        self.config.hidden_size
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
        let x = ops.embed(table, packing.ids())?;
        match self.config.architecture.embedding_scale {
            Some(factor) => ops.scaled(x, factor),
            None => Ok(x),
        }
    }

    /// Takes every row to the attention of layer `index`: from that of the layer before, whose inputs are
    /// `previous`, or, without them, from `x` that enters the layer. Gives what enters the layer, `[rows, hidden]`, and
    /// what its attention reads.
    ///
    /// # Errors
    /// A failing device.
    pub fn next_projection(
        &self,
        ops: &O,
        index: usize,
        x: O::Matrix,
        previous: Option<&O::Projection>,
        layout: &O::Layout,
    ) -> Result<(O::Matrix, O::Projection), OpsError> {
        let layer = &self.layers[index - self.first_layer];
        let work = |ops: &O, attended: Option<O::Operand>, x: O::Matrix| {
            let x = match attended {
                Some(attended) => {
                    let before = &self.layers[index - 1 - self.first_layer];
                    before.after_attention(ops, &attended, x)?
                }
                None => x,
            };
            let projected = layer.project(ops, &x)?;
            Ok((x, projected))
        };
        let queries = match layer.projection {
            AttentionInputs::All(_) => QueryRows::All,
            AttentionInputs::Last { .. } => QueryRows::LastOfSequence,
        };
        ops.next_projection(x, previous, layout, &layer.attention, queries, work)
    }

    /// The last layer, for the last token of each sequence: from what [`Decoder::next_projection`] gave for it to
    /// `[sequences, hidden]` before the final norm.
    ///
    /// # Errors
    /// A failing device.
    pub fn last_layer(
        &self,
        ops: &O,
        x: &O::Matrix,
        projection: &O::Projection,
        layout: &O::Layout,
        packing: &Packing,
    ) -> Result<O::Matrix, OpsError> {
        let x = ops.gather(x, &packing.last_rows())?;
        let Some(layer) = self.layers.last() else { return Ok(x) };
        let Some(queries) = layer.last_queries(ops, &x)? else { return Ok(x) };
        let attended = ops.last_attention(queries, projection, layout)?;
        layer.after_attention(ops, &attended, x)
    }

    /// What enters layer `index`: `[rows, hidden]`.
    ///
    /// # Errors
    /// A failing device.
    pub fn layer_input(
        &self,
        ops: &O,
        packing: &Packing,
        index: usize,
    ) -> Result<O::Matrix, OpsError> {
        let layout = self.layout(ops, packing)?;
        let (mut x, mut projection) = (self.embed(ops, packing)?, None);
        for layer in self.first_layer..=index {
            let (entered, next) =
                self.next_projection(ops, layer, x, projection.as_ref(), &layout)?;
            (x, projection) = (entered, Some(next));
        }
        Ok(x)
    }

    /// Hidden states before the final norm at each sequence's last token: `[sequences, hidden]`. `x` is what enters
    /// the first of [`Decoder::layers`].
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
            let (entered, next) =
                self.next_projection(ops, index, x, projection.as_ref(), &layout)?;
            (x, projection) = (entered, Some(next));
        }
        match &projection {
            Some(projection) => self.last_layer(ops, &x, projection, &layout, packing),
            None => ops.gather(&x, &packing.last_rows()),
        }
    }
}

impl<O: TrainingOps> Decoder<O>
where
    O::Matrix: Clone,
{
    /// One layer, not the last, for every row: from what enters it to what enters the next. What it keeps in between
    /// can be had again from `x` alone.
    ///
    /// # Errors
    /// A failing operation.
    pub fn layer(
        &self,
        ops: &O,
        index: usize,
        x: &O::Matrix,
        layout: &O::Layout,
    ) -> Result<O::Matrix, OpsError> {
        let layer = &self.layers[index - self.first_layer];
        let attended = ops.attention(&layer.project(ops, x)?, layout, &layer.attention)?;
        layer.after_attention(ops, &attended, x.clone())
    }
}
