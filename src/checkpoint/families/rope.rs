//! Rotary embedding in `config.json`: base, share of rotated channels, scaling.
//!
//! Older releases of transformers write `rope_theta` and `rope_scaling`, newer ones `rope_parameters` with all of it.

use serde_json::{Map, Value};

use crate::checkpoint::files::{CheckpointError, ConfigKeys};
use crate::layer::{AttentionShape, RopeFactors, RopeScaling};

/// Where the scaling stands.
const OBJECTS: [&str; 2] = ["rope_scaling", "rope_parameters"];

/// What `config.json` says of rotary embedding.
#[derive(Debug, Clone, Copy)]
pub(super) struct RopeKeys {
    pub(super) theta: f64,
    /// Share of a head's channels that are rotated.
    pub(super) partial: f64,
    pub(super) scaling: RopeScaling,
}

impl RopeKeys {
    /// Reads the keys of a model whose layers all have the same.
    pub(super) fn read(keys: &ConfigKeys<'_>) -> Result<Self, CheckpointError> {
        Self::read_or(keys, |_| Ok(()))
    }

    /// As [`RopeKeys::read`], after `complete` has added what the object may leave out.
    pub(super) fn read_or(
        keys: &ConfigKeys<'_>,
        complete: impl Fn(&mut Map<String, Value>) -> Result<(), CheckpointError>,
    ) -> Result<Self, CheckpointError> {
        let mut found = (OBJECTS[1], Map::new());
        for name in OBJECTS.into_iter().rev() {
            if let Some(map) = keys.object(name)? {
                found = (name, map);
            }
        }
        let (name, mut map) = found;
        complete(&mut map)?;
        Self::of(keys, name, &map)
    }

    /// From the object that is called `name`, and the keys beside it.
    pub(super) fn of(
        keys: &ConfigKeys<'_>,
        name: &str,
        map: &Map<String, Value>,
    ) -> Result<Self, CheckpointError> {
        let prefix = format!("{name}.");
        let own = keys.within(map, &prefix);
        let beside = |key| match own.positive(key)? {
            Some(value) => Ok(Some(value)),
            None => keys.positive(key),
        };
        Ok(Self {
            theta: beside("rope_theta")?.unwrap_or(10_000.0),
            partial: beside("partial_rotary_factor")?.unwrap_or(1.0),
            scaling: scaling(keys, &own)?,
        })
    }

    /// Lays base, rotated channels and scaling into a shape.
    pub(super) fn into_shape(
        self,
        keys: &ConfigKeys<'_>,
        shape: AttentionShape,
    ) -> Result<AttentionShape, CheckpointError> {
        let channels = (shape.head_dim as f64 * self.partial) as usize;
        if channels == 0 || channels > shape.head_dim || !channels.is_multiple_of(2) {
            let message = format!(
                "must leave an even number of each head's {} channels, leaves {channels}",
                shape.head_dim
            );
            return Err(keys.wrong("partial_rotary_factor", message));
        }
        if let RopeScaling::LongRope { short_factor, .. } = self.scaling
            && short_factor.values().len() != channels / 2
        {
            let (found, expected) = (short_factor.values().len(), channels / 2);
            let message = format!("{found} factors, a head has {expected} frequencies");
            return Err(keys.wrong("short_factor", message));
        }
        Ok(AttentionShape {
            rope_theta: self.theta,
            rotary_dim: (channels < shape.head_dim).then_some(channels),
            rope_scaling: self.scaling,
            ..shape
        })
    }
}

fn scaling(keys: &ConfigKeys<'_>, own: &ConfigKeys<'_>) -> Result<RopeScaling, CheckpointError> {
    let mut key = "rope_type";
    let mut kind: Option<String> = own.get(key)?;
    if kind.is_none() {
        key = "type";
        kind = own.get(key)?;
    }
    let factor = || own.positive("factor")?.ok_or_else(|| own.wrong("factor", "is missing"));
    let original = || original(keys, own);
    match kind.as_deref().unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
        "dynamic" => Ok(RopeScaling::Dynamic { factor: factor()? }),
        "llama3" => {
            let number = |key| own.positive(key)?.ok_or_else(|| own.wrong(key, "is missing"));
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if low >= high {
                let message = format!("must be above low_freq_factor, {high} is not above {low}");
                return Err(own.wrong("high_freq_factor", message));
            }
            Ok(RopeScaling::Llama3 {
                factor: factor()? as f32,
                low_freq_factor: low as f32,
                high_freq_factor: high as f32,
                original_max_position_embeddings: original()?,
            })
        }
        "yarn" => yarn(keys, own, original()?),
        "longrope" => longrope(keys, own, original()?),
        other => Err(own.wrong(
            key,
            format!(
                "found {other:?}, supported are default, linear, dynamic, llama3, yarn and longrope"
            ),
        )),
    }
}

/// Tokens of a text in the first training.
fn original(keys: &ConfigKeys<'_>, own: &ConfigKeys<'_>) -> Result<usize, CheckpointError> {
    const KEY: &str = "original_max_position_embeddings";
    // The key beside the object wins in transformers, too.
    let original = match keys.get(KEY)? {
        Some(value) => Some(value),
        None => own.get(KEY)?,
    };
    match original {
        Some(0) => Err(own.wrong(KEY, "must be at least 1")),
        Some(value) => Ok(value),
        None => keys.count("max_position_embeddings"),
    }
}

/// How much longer texts became.
fn factor(
    keys: &ConfigKeys<'_>,
    own: &ConfigKeys<'_>,
    original: usize,
) -> Result<f64, CheckpointError> {
    match own.positive("factor")? {
        Some(factor) => Ok(factor),
        None => Ok(keys.count("max_position_embeddings")? as f64 / original as f64),
    }
}

/// Of texts up to the original length: what the long factors are for depends on a text's length.
fn longrope(
    keys: &ConfigKeys<'_>,
    own: &ConfigKeys<'_>,
    original: usize,
) -> Result<RopeScaling, CheckpointError> {
    let factor = factor(keys, own, original)?;
    let attention_factor = match own.positive("attention_factor")? {
        Some(factor) => factor,
        None if factor > 1.0 => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
        None => 1.0,
    };
    let factors: Vec<f32> = own.required("short_factor")?;
    if !factors.iter().all(|factor| factor.is_finite() && *factor > 0.0) {
        return Err(own.wrong("short_factor", "must all be above 0"));
    }
    let short_factor = RopeFactors::new(&factors)
        .ok_or_else(|| own.wrong("short_factor", format!("{} are too many", factors.len())))?;
    Ok(RopeScaling::LongRope {
        short_factor,
        attention_factor: attention_factor as f32,
        original_max_position_embeddings: original,
    })
}

fn yarn(
    keys: &ConfigKeys<'_>,
    own: &ConfigKeys<'_>,
    original: usize,
) -> Result<RopeScaling, CheckpointError> {
    let factor = factor(keys, own, original)?;
    // Peng et al. 2023, equation 22, and its later form with two coefficients.
    let attention = |coefficient: f64| match factor > 1.0 {
        true => 0.1 * coefficient * factor.ln() + 1.0,
        false => 1.0,
    };
    let attention_factor = match own.positive("attention_factor")? {
        Some(factor) => factor,
        None => match (own.get::<f64>("mscale")?, own.get::<f64>("mscale_all_dim")?) {
            (Some(one), Some(all)) if one != 0.0 && all != 0.0 => attention(one) / attention(all),
            _ => attention(1.0),
        },
    };
    let (fast, slow) =
        (own.positive("beta_fast")?.unwrap_or(32.0), own.positive("beta_slow")?.unwrap_or(1.0));
    if slow >= fast {
        let message = format!("must be above beta_slow, {fast} is not above {slow}");
        return Err(own.wrong("beta_fast", message));
    }
    Ok(RopeScaling::Yarn {
        factor: factor as f32,
        attention_factor: attention_factor as f32,
        beta_fast: fast,
        beta_slow: slow,
        original_max_position_embeddings: original,
        truncate: own.or("truncate", true)?,
    })
}
