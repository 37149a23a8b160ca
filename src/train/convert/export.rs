//! `trainer export`: a folder that transformers loads as a `*ForSequenceClassification`.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value, json};

use super::merge::widest;
use crate::checkpoint::{
    Checkpoint, CheckpointError, CheckpointParts, CheckpointSource, DecodeKind, HeadConfig,
    SpecialToken, StandardHead, TOKEN_FILES, TOKENIZER_CONFIG_FILE, TensorLayout, TensorSource,
    TensorValues, WeightType, check_output, padding_token, write_checkpoint_parts,
};
use crate::train::fit::CARD_FILE;
use crate::train::init::{HEAD_KEYS, is_buffer, name_type};

/// The head's tensor, as transformers names it.
const SCORE: &str = "score.weight";

/// What is exported, and how.
#[derive(Debug, Clone)]
pub struct ExportSettings<'a> {
    /// The checkpoint: a folder, a GGUF file or a hub id.
    pub model: &'a Path,
    /// Folder to write.
    pub output: &'a Path,
    /// Whether an InfoRM head becomes one row of weights.
    pub fold_head: bool,
    /// Type in which weights are stored; `None` for that of the checkpoint, and F32 for a folded head.
    pub weight_type: Option<WeightType>,
}

/// Writes a checkpoint as a folder that transformers' `AutoModelForSequenceClassification` loads. An InfoRM head with a
/// linear decode becomes `W_dec W_enc[:d]`, computed in f64: the reward of the posterior's mean, without the latent.
/// Weights are of rewards before their normalisation; its numbers stay in `config.json`, where transformers does not read
/// them.
///
/// # Errors
/// An InfoRM head that is not to be folded, or cannot be; a standard head with a bias; a checkpoint that cannot be read, or has no head; a folder that
/// cannot be written.
pub fn export(settings: &ExportSettings<'_>) -> anyhow::Result<()> {
    let ExportSettings { model, output, fold_head, weight_type } = settings;
    check_output(output, &[model.to_path_buf()])?;
    let checkpoint = Checkpoint::open_without_baseline(model)?;
    let (config, tensors) = (&checkpoint.config, &checkpoint.tensors);
    let hidden = config.decoder.hidden_size;
    let head = match &config.head {
        HeadConfig::Inform { decode: DecodeKind::Gated, .. } => bail!(
            "{}: transformers cannot compute this head: its gated decode (`use_complex_decoder`) is not linear, and no \
             `{SCORE}` says the same; serve it, or train one with `head.decode = \"linear\"`",
            model.display()
        ),
        HeadConfig::Inform { .. } if !fold_head => bail!(
            "{}: transformers has no InfoRM head; with --fold-head its rewards are kept, and its latents are lost",
            model.display()
        ),
        HeadConfig::Inform { latent_dim, encode_head_prefix, decode_head_prefix, .. } => {
            ExportedHead::Folded(Folded {
                encode: format!("{encode_head_prefix}.weight"),
                decode: format!("{decode_head_prefix}.weight"),
                latent_dim: *latent_dim,
            })
        }
        HeadConfig::Standard(_) if *fold_head => {
            bail!(
                "{}: --fold-head: this head is not an InfoRM's, leave the flag out",
                model.display()
            )
        }
        HeadConfig::Standard(standard) => {
            let head = StandardHead::find(standard, hidden, tensors)?;
            if let Some(bias) = &head.bias {
                bail!(
                    "{}: transformers' `{SCORE}` has no bias, and this head has one, `{bias}`",
                    model.display()
                );
            }
            ExportedHead::Standard(head)
        }
    };

    let prefix = config.decoder.architecture.family.prefix();
    let mut layout = Vec::new();
    for (name, stored, shape) in tensors.headers() {
        let is_score = head.weight() == Some(name);
        if !(is_score || name.starts_with(prefix)) || is_buffer(name) {
            continue;
        }
        layout.push(TensorLayout {
            name: if is_score { SCORE } else { name }.to_owned(),
            shape: shape.to_vec(),
            weight_type: weight_type.unwrap_or(WeightType::holding(&stored)),
        });
    }
    let backbone = widest(layout.iter().filter(|tensor| tensor.name != SCORE));
    let labels = match &head {
        ExportedHead::Standard(head) => head.labels.len(),
        ExportedHead::Folded(_) => {
            let weight_type = weight_type.unwrap_or(WeightType::F32);
            let shape = vec![1, hidden];
            layout.push(TensorLayout { name: SCORE.to_owned(), shape, weight_type });
            1
        }
    };

    let source = CheckpointSource::open(model)?;
    let padding = padding_token(&source, &config.decoder, &checkpoint.encoder.policy().eos)?;
    let files = text_files(&source, &padding)?;
    let folded = head.weight().is_none();
    let card = Card { checkpoint: &checkpoint, padding: &padding, folded };
    let files = files.into_iter().chain([(CARD_FILE.to_owned(), card.markdown().into_bytes())]);
    let parts = CheckpointParts {
        config: config_keys(&checkpoint, source.config_keys()?, labels, backbone, &padding),
        values: &|TensorLayout { name, shape, .. }| match &head {
            ExportedHead::Folded(head) if name == SCORE => {
                Ok(TensorValues::F32(head.row(tensors, hidden)?))
            }
            ExportedHead::Standard(head) if name == SCORE => {
                tensors.values(&head.weight, &[labels, hidden])
            }
            _ => tensors.values(name, shape),
        },
        layout,
        files: files.collect(),
    };
    write_checkpoint_parts(output, &parts, |_| Ok::<_, CheckpointError>((None, Vec::new())))?;
    Ok(())
}

/// What becomes `score.weight`.
enum ExportedHead {
    Standard(StandardHead),
    Folded(Folded),
}

impl ExportedHead {
    /// The tensor that it is stored in, where it is one.
    fn weight(&self) -> Option<&str> {
        match self {
            Self::Standard(head) => Some(&head.weight),
            Self::Folded(_) => None,
        }
    }
}

/// An InfoRM head with a linear decode.
struct Folded {
    encode: String,
    decode: String,
    latent_dim: usize,
}

impl Folded {
    /// `W_dec W_enc[:d]`, `[hidden]`: the first `d` rows of `W_enc` make the posterior's mean.
    fn row(&self, tensors: &dyn TensorSource, hidden: usize) -> Result<Vec<f32>, CheckpointError> {
        let encode = tensors.f32(&self.encode, &[2 * self.latent_dim, hidden])?;
        let decode = tensors.f32(&self.decode, &[1, self.latent_dim])?;
        let mut row = vec![0f64; hidden];
        for (&weight, encode) in decode.iter().zip(encode.chunks_exact(hidden)) {
            let products = encode.iter().map(|&value| f64::from(weight) * f64::from(value));
            row.iter_mut().zip(products).for_each(|(sum, product)| *sum += product);
        }
        Ok(row.into_iter().map(|value| value as f32).collect())
    }
}

/// `config.json` in transformers' words. `dtype`, in which it loads a model unless it is told otherwise, is the backbone's.
fn config_keys(
    checkpoint: &Checkpoint,
    mut keys: Map<String, Value>,
    labels: usize,
    backbone: WeightType,
    padding: &SpecialToken,
) -> Map<String, Value> {
    let family = checkpoint.config.decoder.architecture.family;
    keys.retain(|key, _| !HEAD_KEYS.contains(&key.as_str()));
    keys.insert("architectures".to_owned(), json!([family.class(false)]));
    keys.insert("model_type".to_owned(), json!(family.model_type()));
    keys.entry("dtype").or_insert_with(|| json!(backbone.config_name()));
    name_type(&mut keys, backbone);
    keys.insert("pad_token_id".to_owned(), json!(padding.id));
    keys.insert("num_labels".to_owned(), json!(labels));
    let named = keys.get("id2label").and_then(Value::as_object).map(Map::len);
    if named != Some(labels) {
        let name =
            |label: usize| if labels == 1 { "reward".to_owned() } else { format!("LABEL_{label}") };
        let names: Map<String, Value> =
            (0..labels).map(|label| (label.to_string(), json!(name(label)))).collect();
        let labels: Map<String, Value> =
            (0..labels).map(|label| (name(label), json!(label))).collect();
        keys.insert("id2label".to_owned(), json!(names));
        keys.insert("label2id".to_owned(), json!(labels));
    }
    // Else transformers' pipelines answer a sigmoid of the reward.
    keys.entry("problem_type").or_insert_with(|| json!("regression"));
    keys
}

/// The tokenizer's files, naming the padding token where they name special tokens.
fn text_files(
    source: &CheckpointSource,
    padding: &SpecialToken,
) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut files = source.text_files()?;
    if !files.iter().any(|(name, _)| name == TOKENIZER_CONFIG_FILE) {
        files.push((TOKENIZER_CONFIG_FILE.to_owned(), b"{}".to_vec()));
    }
    for (name, contents) in &mut files {
        if TOKEN_FILES.contains(&name.as_str()) {
            let mut keys: Value = serde_json::from_slice(contents).with_context(|| name.clone())?;
            ensure!(keys.is_object(), "{name}: expected an object");
            keys["pad_token"] = json!(padding.text);
            *contents = serde_json::to_vec_pretty(&keys)?;
        }
    }
    Ok(files)
}

/// What the model card says.
struct Card<'a> {
    checkpoint: &'a Checkpoint,
    padding: &'a SpecialToken,
    folded: bool,
}

impl Card<'_> {
    fn markdown(&self) -> String {
        let Checkpoint { name, weights, config, encoder, .. } = self.checkpoint;
        let (eos, padding) = (&encoder.policy().eos.text, &self.padding.text);
        let mut card = format!(
            "# {name}, for transformers\n\n\
             A reward model, written by `trainer export` from the checkpoint `{name}` with the weights\n`{weights}`.\n\n"
        );
        if self.folded {
            card.push_str(
                "Its InfoRM head is folded into one row, `score = W_decode W_encode[:d]`: rewards are those of the\n\
                 latent's posterior mean, as the checkpoint's own. The latent itself, its spread and whatever a monitor\n\
                 makes of them are lost.\n\n",
            );
        }
        if let Some(scale) = config.reward_scale {
            let (mean, std) = (scale.mean, scale.std);
            card.push_str(&format!(
                "The checkpoint normalises rewards, transformers does not: what it computes is `r`, and the checkpoint's\n\
                 reward is `(r - mean) / std` with `mean` {mean} and `std` {std}, as `config.json` has them.\n\n"
            ));
        }
        card.push_str(&format!(
            "A reward is read at the EOS, `{eos}`, which ends every text. transformers reads it at the last token that is\n\
             not padding: so the padding token is another one, `{padding}`.\n\n\
             ```python\n\
             from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n\
             model = AutoModelForSequenceClassification.from_pretrained(FOLDER, dtype=\"float32\")\n\
             tokenizer = AutoTokenizer.from_pretrained(FOLDER)\n\n\n\
             def rewards(conversations):\n    \
                 texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]\n    \
                 stripped = [text.rstrip() for text in texts]\n    \
                 eos = tokenizer.eos_token\n    \
                 texts = [short if short.endswith(eos) else text + eos for text, short in zip(texts, stripped)]\n    \
                 batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors=\"pt\")\n    \
                 return model(batch[\"input_ids\"], batch[\"attention_mask\"]).logits[:, 0]\n\
             ```\n"
        ));
        card
    }
}
