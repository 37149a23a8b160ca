//! `trainer merge`: the average of checkpoints' weights (WARM, Ramé et al. 2024).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::checkpoint::{
    BASELINE_FILE, Checkpoint, CheckpointError, CheckpointParts, CheckpointSource, HeadConfig,
    ModelConfig, StandardHead, TensorLayout, TensorSource, TensorValues, WeightType, check_output,
    write_checkpoint_parts,
};
use crate::model::Head;
use crate::ops::cpu::{CpuOps, Precision};
use crate::train::fit::CARD_FILE;
use crate::train::init::{is_buffer, name_type, text_files};

/// Name of the file in a merged checkpoint that names what it is the average of.
pub const MERGE_FILE: &str = "merge.json";

/// Distance from the average beyond which a checkpoint has little in common with the others. That of `n` heads of random
/// weights of their own is `sqrt(n - 1)`.
const FAR: f64 = 0.5;

/// What is merged into what.
#[derive(Debug, Clone)]
pub struct MergeSettings<'a> {
    /// The checkpoints: folders, GGUF files or hub ids.
    pub models: &'a [PathBuf],
    /// Weight of each in the average, above 0, whatever their sum; empty for equal ones.
    pub weights: &'a [f64],
    /// Folder to write.
    pub output: &'a Path,
    /// Type in which the average is stored; `None` for the inputs' type, and for F32 where they differ.
    pub weight_type: Option<WeightType>,
}

/// What a merged checkpoint is the average of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergeRecord {
    /// Hash of the average's weights.
    pub weights: String,
    /// The checkpoints.
    pub inputs: Vec<MergedInput>,
    /// What the inputs have and the average has not, in words.
    pub not_carried_over: Vec<String>,
}

/// One of the checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergedInput {
    /// What it is called.
    pub name: String,
    /// Hash of its weights.
    pub weights: String,
    /// Its share of the average; all add up to 1.
    pub share: f64,
    /// How far its weights are from the average.
    pub distance: Distance,
}

/// Norm of the difference from the average, as a share of the average's norm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Distance {
    /// Of the decoder's weights.
    pub backbone: f64,
    /// Of all others.
    pub head: f64,
}

/// Writes the weighted average of checkpoints' weights, tensor by tensor, each computed in f64. Tokenizer, chat template
/// and `config.json` are the first one's; baseline and reward normalisation, which are of other weights, are left out.
///
/// # Errors
/// Fewer than two checkpoints, weights that are no positive numbers, checkpoints that differ in anything but their
/// weights (says in what) or have the same ones, one without a reward head, or a folder that cannot be written.
pub fn merge(settings: &MergeSettings<'_>) -> anyhow::Result<MergeRecord> {
    let MergeSettings { models, weights, output, .. } = settings;
    ensure!(models.len() > 1, "--model: an average needs at least two checkpoints");
    ensure!(
        weights.is_empty() || weights.len() == models.len(),
        "--weights: {} numbers for {} checkpoints",
        weights.len(),
        models.len()
    );
    let is_positive = |weight: &&f64| weight.is_finite() && **weight > 0.0;
    if let Some(wrong) = weights.iter().find(|weight| !is_positive(weight)) {
        bail!("--weights: found {wrong}, expected numbers above 0");
    }
    let total: f64 = weights.iter().sum();
    ensure!(
        weights.is_empty() || total.is_normal(),
        "--weights: their sum, {total}, is beyond what numbers can hold"
    );
    check_output(output, models)?;

    let members = models
        .iter()
        .enumerate()
        .map(|(index, model)| {
            let weight = weights.get(index).copied().unwrap_or(1.0);
            Ok(MergeMember { checkpoint: Checkpoint::open_without_baseline(model)?, weight })
        })
        .collect::<Result<Vec<_>, CheckpointError>>()?;
    let (first, others) = members.split_first().context("at least two checkpoints")?;
    for (index, other) in others.iter().enumerate() {
        first.require_same(other)?;
        let is_same = |member: &&MergeMember| member.checkpoint.weights == other.checkpoint.weights;
        if let Some(same) = members[..=index].iter().find(is_same) {
            bail!(
                "--model: {} has the weights of {}; name each once, and its share by --weights",
                other.checkpoint.folder.display(),
                same.checkpoint.folder.display()
            );
        }
    }
    let config = &first.checkpoint.config;
    let (hidden, tensors) = (config.decoder.hidden_size, &first.checkpoint.tensors);
    if config.head.latent_dim().is_some() {
        Head::load(&CpuOps::new(1, Precision::F32)?, &config.head, hidden, tensors)?;
    }
    let head = first.standard_head()?;
    for other in others {
        let labels = |head: &Option<StandardHead>| head.as_ref().map(|head| head.labels.clone());
        let (ours, theirs) = (labels(&head), labels(&other.standard_head()?));
        ensure!(
            ours == theirs,
            "{} cannot be averaged with {}: its labels are {:?}, not {:?}",
            other.checkpoint.folder.display(),
            first.checkpoint.folder.display(),
            theirs.unwrap_or_default(),
            ours.unwrap_or_default()
        );
    }

    let average = Average::of(&members, head.as_ref(), settings.weight_type);
    let not_carried_over = not_carried_over(&members);
    let mut record = None;
    let parts = CheckpointParts {
        config: config_keys(&models[0], &average.layout)?,
        layout: average.layout.clone(),
        values: &|layout| average.values(layout),
        files: text_files(&models[0])?,
    };
    write_checkpoint_parts(output, &parts, |folder| {
        let weights = Checkpoint::open_without_baseline(folder)?.weights;
        let inputs = average.inputs();
        let written = record.insert(MergeRecord { weights, inputs, not_carried_over });
        let files = vec![
            (MERGE_FILE.to_owned(), serde_json::to_vec_pretty(written)?),
            (CARD_FILE.to_owned(), written.to_string().into_bytes()),
        ];
        Ok::<_, anyhow::Error>((None, files))
    })?;
    let record = record.context("a record")?;
    for note in record.not_carried_over.iter().cloned().chain(record.warnings()) {
        eprintln!("{note}");
    }
    Ok(record)
}

/// A checkpoint with its weight.
struct MergeMember {
    checkpoint: Checkpoint,
    weight: f64,
}

impl MergeMember {
    /// The tensors of a standard head; `None` for an InfoRM head.
    fn standard_head(&self) -> Result<Option<StandardHead>, CheckpointError> {
        let Checkpoint { config, tensors, .. } = &self.checkpoint;
        let HeadConfig::Standard(standard) = &config.head else { return Ok(None) };
        StandardHead::find(standard, config.decoder.hidden_size, tensors).map(Some)
    }

    /// Refuses a checkpoint that is not of the same form, or makes other token ids of a text.
    fn require_same(&self, other: &Self) -> anyhow::Result<()> {
        let (ours, theirs) = (&self.checkpoint, &other.checkpoint);
        let refuse = |what: String| -> anyhow::Result<()> {
            bail!(
                "{} cannot be averaged with {}: {what}",
                theirs.folder.display(),
                ours.folder.display()
            )
        };
        let family = |checkpoint: &Checkpoint| checkpoint.config.decoder.architecture.family;
        if family(ours) != family(theirs) {
            return refuse(format!("its family is {}, not {}", family(theirs), family(ours)));
        }
        let config = |checkpoint: &Checkpoint| {
            json!(ModelConfig { reward_scale: None, ..checkpoint.config.clone() })
        };
        if let Some(difference) = difference("", &config(ours), &config(theirs)) {
            return refuse(difference);
        }
        let policy = |checkpoint: &Checkpoint| json!(checkpoint.encoder.policy());
        if let Some(difference) = difference("", &policy(ours), &policy(theirs)) {
            return refuse(format!("its texts become other token ids; {difference}"));
        }
        let shapes = |checkpoint: &Checkpoint| -> BTreeMap<String, Vec<usize>> {
            weights(checkpoint).map(|(name, _, shape)| (name.to_owned(), shape.to_vec())).collect()
        };
        let (ours, theirs) = (shapes(ours), shapes(theirs));
        for (name, shape) in &ours {
            match theirs.get(name) {
                None => return refuse(format!("it has no tensor `{name}`")),
                Some(found) if found != shape => {
                    return refuse(format!(
                        "its tensor `{name}` has shape {found:?}, not {shape:?}"
                    ));
                }
                Some(_) => {}
            }
        }
        match theirs.keys().find(|name| !ours.contains_key(*name)) {
            Some(name) => refuse(format!("it has a tensor `{name}`, which the other has not")),
            None => Ok(()),
        }
    }
}

/// Name, stored type and shape of a checkpoint's tensors, less those that are no weights.
fn weights(checkpoint: &Checkpoint) -> impl Iterator<Item = (&str, String, &[usize])> {
    checkpoint.tensors.headers().filter(|(name, ..)| !is_buffer(name))
}

/// The first key in which two descriptions differ, with both values.
fn difference(key: &str, ours: &Value, theirs: &Value) -> Option<String> {
    let (Value::Object(left), Value::Object(right)) = (ours, theirs) else {
        let differ = || format!("its `{key}` is {theirs}, not {ours}");
        return (ours != theirs).then(differ);
    };
    let added = right.keys().filter(|name| !left.contains_key(*name));
    left.keys().chain(added).find_map(|name| {
        let inner = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
        let value = |map: &Map<String, Value>| map.get(name).cloned().unwrap_or_default();
        difference(&inner, &value(left), &value(right))
    })
}

/// `config.json` of the first checkpoint for the average's weights.
fn config_keys(
    model: &Path,
    layout: &[TensorLayout],
) -> Result<Map<String, Value>, CheckpointError> {
    let mut keys = CheckpointSource::open(model)?.config_keys()?;
    keys.retain(|key, _| key != "mean" && key != "std");
    if let Some(normalises) = keys.get_mut("normalize_reward") {
        *normalises = json!(false);
    }
    name_type(&mut keys, widest(layout));
    Ok(keys)
}

/// The type that holds the values of all tensors.
pub(in crate::train) fn widest<'a>(
    layout: impl IntoIterator<Item = &'a TensorLayout>,
) -> WeightType {
    let mut types = layout.into_iter().map(|tensor| tensor.weight_type);
    let first = types.next().unwrap_or(WeightType::F32);
    if types.all(|weight_type| weight_type == first) { first } else { WeightType::F32 }
}

fn not_carried_over(members: &[MergeMember]) -> Vec<String> {
    let mut notes = Vec::new();
    let has_baseline = |m: &&MergeMember| m.checkpoint.folder.join(BASELINE_FILE).exists();
    if members.iter().any(|member| has_baseline(&member)) {
        notes.push(
            "The inputs' baselines: their latents are of other weights. `trainer baseline` makes one."
                .to_owned(),
        );
    }
    if members.iter().any(|member| member.checkpoint.config.reward_scale.is_some()) {
        notes.push(
            "The inputs' reward normalisation: mean and standard deviation of averaged weights are \
             other ones. Rewards are as the head gives them."
                .to_owned(),
        );
    }
    notes
}

/// The average, a tensor at a time.
struct Average<'a> {
    members: &'a [MergeMember],
    layout: Vec<TensorLayout>,
    /// What begins the names of the decoder's tensors, and of the head's: what is neither has no part in distances.
    parts: [Vec<String>; 2],
    squares: RefCell<Squares>,
}

/// Sums of squares over the tensors that were averaged so far, of the backbone and of the head.
#[derive(Default)]
struct Squares {
    average: [f64; 2],
    /// Of each member's difference from the average.
    differences: Vec<[f64; 2]>,
}

impl<'a> Average<'a> {
    fn of(
        members: &'a [MergeMember],
        head: Option<&StandardHead>,
        weight_type: Option<WeightType>,
    ) -> Self {
        let checkpoint = &members[0].checkpoint;
        let types: Vec<BTreeMap<&str, WeightType>> = members
            .iter()
            .map(|member| {
                let stored = weights(&member.checkpoint);
                stored.map(|(name, stored, _)| (name, WeightType::holding(&stored))).collect()
            })
            .collect();
        let layout = weights(checkpoint).map(|(name, _, shape)| {
            let mut stored = types.iter().filter_map(|types| types.get(name).copied());
            let first = stored.next().unwrap_or(WeightType::F32);
            let common = if stored.all(|other| other == first) { first } else { WeightType::F32 };
            TensorLayout {
                name: name.to_owned(),
                shape: shape.to_vec(),
                weight_type: weight_type.unwrap_or(common),
            }
        });
        let differences = vec![[0.0; 2]; members.len()];
        let head = match (&checkpoint.config.head, head) {
            (HeadConfig::Inform { encode_head_prefix, decode_head_prefix, .. }, _) => {
                [encode_head_prefix, decode_head_prefix].map(|prefix| format!("{prefix}.")).into()
            }
            (_, head) => head.map(|head| head.weight.clone()).into_iter().collect(),
        };
        let backbone = checkpoint.config.decoder.architecture.family.prefix().to_owned();
        Self {
            members,
            layout: layout.collect(),
            parts: [vec![backbone], head],
            squares: RefCell::new(Squares { average: [0.0; 2], differences }),
        }
    }

    /// Rounded once, from f64 to the stored type.
    fn values(&self, layout: &TensorLayout) -> Result<TensorValues, CheckpointError> {
        let TensorLayout { name, shape, weight_type } = layout;
        let mut average = vec![0f64; shape.iter().product()];
        for MergeMember { checkpoint, weight } in self.members {
            let values = checkpoint.tensors.f32(name, shape)?;
            average.iter_mut().zip(values).for_each(|(sum, v)| *sum += weight * f64::from(v));
        }
        let total: f64 = self.members.iter().map(|member| member.weight).sum();
        average.iter_mut().for_each(|sum| *sum /= total);

        let of = |prefixes: &Vec<String>| prefixes.iter().any(|prefix| name.starts_with(prefix));
        if let Some(part) = self.parts.iter().position(of) {
            let squares = &mut *self.squares.borrow_mut();
            squares.average[part] += average.iter().map(|v| v * v).sum::<f64>();
            // Read again rather than kept: a tensor of every member may be too much.
            for (member, difference) in self.members.iter().zip(&mut squares.differences) {
                let values = member.checkpoint.tensors.f32(name, shape)?;
                let both = values.iter().zip(&average);
                difference[part] +=
                    both.map(|(v, mean)| (f64::from(*v) - mean).powi(2)).sum::<f64>();
            }
        }
        let average = average.into_iter();
        Ok(match weight_type {
            WeightType::F32 => TensorValues::F32(average.map(|value| value as f32).collect()),
            WeightType::F16 => TensorValues::F16(average.map(f16::from_f64).collect()),
            WeightType::Bf16 => TensorValues::Bf16(average.map(bf16::from_f64).collect()),
        })
    }

    /// The members, once all tensors are averaged.
    fn inputs(&self) -> Vec<MergedInput> {
        let total: f64 = self.members.iter().map(|member| member.weight).sum();
        let squares = self.squares.borrow();
        let members = self.members.iter().zip(&squares.differences);
        members
            .map(|(MergeMember { checkpoint, weight }, difference)| {
                let of = |part: usize| {
                    (difference[part] / squares.average[part].max(f64::MIN_POSITIVE)).sqrt()
                };
                MergedInput {
                    name: checkpoint.name.clone(),
                    weights: checkpoint.weights.clone(),
                    share: weight / total,
                    distance: Distance { backbone: of(0), head: of(1) },
                }
            })
            .collect()
    }
}

impl MergeRecord {
    /// What speaks against the average being of use.
    fn warnings(&self) -> Vec<String> {
        let far = |distance: fn(&Distance) -> f64| {
            let names = self.inputs.iter().filter(|input| distance(&input.distance) > FAR);
            names.map(|input| input.name.as_str()).collect::<Vec<_>>()
        };
        let parts = [("head", far(|d| d.head)), ("backbone", far(|d| d.backbone))];
        let far = parts.into_iter().filter(|(_, names)| !names.is_empty());
        far.map(|(part, names)| {
            format!(
                "Warning: the {part} of {} has little in common with the others': averages are of use \
                 where all were trained from the same weights, the head's among them.",
                names.join(", ")
            )
        })
        .collect()
    }
}

impl fmt::Display for MergeRecord {
    /// The model card, as Markdown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weights, inputs, not_carried_over } = self;
        let mut rows = String::new();
        for MergedInput { name, weights, share, distance } in inputs {
            let Distance { backbone, head } = distance;
            writeln!(rows, "| `{name}` | {share:.4} | {backbone:.3} | {head:.3} | `{weights}` |")?;
        }
        write!(
            f,
            "# Merged reward model\n\n\
             The weighted average of {} checkpoints' weights (WARM, Ramé et al. 2024), each tensor computed in f64.\n\n\
             | checkpoint | share | distance of the backbone | of the head | weights |\n|---|---|---|---|---|\n{rows}\n\
             A distance is the norm of the difference from the average over the norm of the average.\n\n\
             Weights: `{weights}`. `{MERGE_FILE}` has the same.\n",
            inputs.len()
        )?;
        if !not_carried_over.is_empty() {
            write!(f, "\nNot carried over:\n\n")?;
        }
        not_carried_over.iter().try_for_each(|note| writeln!(f, "- {note}"))?;
        let warnings = self.warnings();
        if !warnings.is_empty() {
            writeln!(f)?;
        }
        warnings.iter().try_for_each(|warning| writeln!(f, "{warning}"))
    }
}
