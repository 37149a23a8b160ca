//! From GGUF's tokenizer to the files that the `tokenizers` library and transformers read.
//!
//! GGUF names a model (`gpt2`: byte-level BPE; `llama`: SentencePiece's BPE with byte fallback) and, for the
//! former, how text is split before it (`tokenizer.ggml.pre`). What it cannot say, that Phi-3's tokens take the spaces
//! behind them, is known here as it is in llama.cpp.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::config;
use super::file::GgufFile;
use crate::checkpoint::decoder::Family;
use crate::checkpoint::files::CheckpointError;

const MODEL_KEY: &str = "tokenizer.ggml.model";
const SPLIT_KEY: &str = "tokenizer.ggml.pre";
const TOKENS_KEY: &str = "tokenizer.ggml.tokens";
const SCORES_KEY: &str = "tokenizer.ggml.scores";
const TYPES_KEY: &str = "tokenizer.ggml.token_type";
const MERGES_KEY: &str = "tokenizer.ggml.merges";
const SPACE_KEY: &str = "tokenizer.ggml.add_space_prefix";
const ADD_BOS_KEY: &str = "tokenizer.ggml.add_bos_token";

/// Numbers in `tokenizer.ggml.token_type`.
mod token_type {
    pub(super) const NORMAL: i64 = 1;
    pub(super) const UNKNOWN: i64 = 2;
    pub(super) const CONTROL: i64 = 3;
    pub(super) const USER_DEFINED: i64 = 4;
    pub(super) const BYTE: i64 = 6;
}

/// Tokens of Phi-3's that leave the spaces behind them to the text; all others that are cut out before merging take them.
const KEEPING_SPACES: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

/// SentencePiece's space.
const SPACE: &str = "\u{2581}";

/// `tokenizer.json`.
pub(super) fn tokenizer_json(gguf: &GgufFile) -> Result<Value, CheckpointError> {
    let tokens = gguf.list(TOKENS_KEY, "texts", Value::as_str)?;
    let types = gguf.optional(TYPES_KEY, |gguf, key| gguf.list(key, "numbers", Value::as_i64))?;
    let types = types.unwrap_or_else(|| vec![token_type::NORMAL; tokens.len()]);
    if types.len() != tokens.len() {
        let message = format!("{} types for {} tokens", types.len(), tokens.len());
        return Err(gguf.wrong(TYPES_KEY, message));
    }
    let model = gguf.text(MODEL_KEY)?;
    // Phi-4 has this architecture, too, with byte-level BPE.
    let is_phi3 = model == "llama" && config::architecture(gguf)?.1 == Family::Phi3;
    let (mut tokenizer, adds_bos) = match model {
        "gpt2" => byte_level(gguf, &tokens)?,
        "llama" => sentence_piece(gguf, &tokens, &types)?,
        found => {
            let message = format!(
                "found \"{found}\", this build reads \"gpt2\" (byte-level BPE) and \"llama\" (SentencePiece)"
            );
            return Err(gguf.wrong(MODEL_KEY, message));
        }
    };
    let added = tokens.iter().zip(&types).enumerate().filter_map(|(id, (token, kind))| {
        let special = match *kind {
            token_type::UNKNOWN | token_type::CONTROL => true,
            token_type::USER_DEFINED => false,
            _ => return None,
        };
        Some(json!({
            "id": id, "content": token, "special": special,
            "single_word": false, "lstrip": false, "normalized": false,
            "rstrip": is_phi3 && !KEEPING_SPACES.contains(token),
        }))
    });
    tokenizer["added_tokens"] = added.collect();
    let adds_bos = gguf.optional(ADD_BOS_KEY, boolean)?.unwrap_or(adds_bos);
    if let Some(bos) = special_token(gguf, &tokens, "bos")?.filter(|_| adds_bos) {
        tokenizer["post_processor"] = starting_with(&bos, &tokens);
    }
    Ok(tokenizer)
}

/// `tokenizer_config.json`.
pub(super) fn tokenizer_config(gguf: &GgufFile) -> Result<Value, CheckpointError> {
    let tokens = gguf.list(TOKENS_KEY, "texts", Value::as_str)?;
    let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
    for (ours, theirs) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
        if let Some(token) = special_token(gguf, &tokens, theirs)? {
            config[format!("{ours}_token")] = json!(token);
        }
    }
    Ok(config)
}

fn boolean(gguf: &GgufFile, key: &str) -> Result<bool, CheckpointError> {
    gguf.value(key, "true or false", Value::as_bool)
}

/// The text of a token that the metadata names by its id.
fn special_token(
    gguf: &GgufFile,
    tokens: &[&str],
    name: &str,
) -> Result<Option<String>, CheckpointError> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(id) = gguf.optional(&key, GgufFile::size)? else { return Ok(None) };
    match tokens.get(id) {
        Some(token) => Ok(Some((*token).to_owned())),
        None => Err(gguf.wrong(&key, format!("found {id}, there are {} tokens", tokens.len()))),
    }
}

/// A post-processor that starts each text with BOS.
fn starting_with(bos: &str, tokens: &[&str]) -> Value {
    let special = json!({"SpecialToken": {"id": bos, "type_id": 0}});
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let id = tokens.iter().position(|token| *token == bos);
    json!({
        "type": "TemplateProcessing",
        "single": [special, sequence("A")],
        "pair": [special, sequence("A"), sequence("B")],
        "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
    })
}

fn vocabulary(tokens: &[&str]) -> Map<String, Value> {
    tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect()
}

/// Byte-level BPE, and whether it adds BOS where the metadata does not say.
fn byte_level(gguf: &GgufFile, tokens: &[&str]) -> Result<(Value, bool), CheckpointError> {
    let merges = gguf.list(MERGES_KEY, "texts", Value::as_str)?;
    let merges = merges
        .into_iter()
        .map(|merge| {
            merge.split_once(' ').filter(|(_, right)| !right.contains(' ')).ok_or_else(|| {
                gguf.wrong(MERGES_KEY, format!("found {merge:?}, expected two tokens and a space"))
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let Splitting { normalizer, steps, ignore_merges, adds_bos } = splitting(gguf)?;
    let tokenizer = json!({
        "version": "1.0",
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
        },
        "model": {
            "type": "BPE",
            "ignore_merges": ignore_merges,
            "vocab": vocabulary(tokens),
            "merges": merges,
        },
    });
    Ok((tokenizer, adds_bos))
}

/// What is done to a text before byte-level BPE.
struct Splitting {
    normalizer: Value,
    steps: Vec<Value>,
    /// Whether a piece that is a token as it is needs no merges to get there.
    ignore_merges: bool,
    adds_bos: bool,
}

/// The regular expression of GPT-2 is a part of this step.
fn bytes(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex,
    })
}

fn split(pattern: &str) -> Value {
    json!({
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false,
    })
}

fn digits() -> Value {
    json!({"type": "Digits", "individual_digits": true})
}

/// The pattern of cl100k's kind: contractions, words with what stands before them, up to so many digits,
/// punctuation with the line feeds behind it, and spaces.
fn words(digits: &str) -> Value {
    split(&format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ))
}

/// Names are llama.cpp's; what they stand for is what the models' own `tokenizer.json` does.
fn splitting(gguf: &GgufFile) -> Result<Splitting, CheckpointError> {
    let plain = |steps: Vec<Value>| Splitting {
        normalizer: Value::Null,
        steps,
        ignore_merges: false,
        adds_bos: false,
    };
    Ok(match gguf.optional(SPLIT_KEY, GgufFile::text)?.unwrap_or("default") {
        "gpt-2" | "phi-2" | "olmo" | "mpt" | "jais" | "exaone4" => plain(vec![bytes(true)]),
        "smollm" | "starcoder" | "refact" | "codeshell" | "exaone" | "minerva-7b" => {
            plain(vec![digits(), bytes(true)])
        }
        "command-r" => {
            Splitting { normalizer: json!({"type": "NFC"}), ..plain(vec![digits(), bytes(true)]) }
        }
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" | "lfm2" => Splitting {
            ignore_merges: true,
            adds_bos: true,
            ..plain(vec![words(r"\p{N}{1,3}"), bytes(false)])
        },
        "dbrx" | "smaug-bpe" => plain(vec![words(r"\p{N}{1,3}"), bytes(false)]),
        "qwen2" | "deepseek-r1-qwen" | "megrez" => Splitting {
            normalizer: json!({"type": "NFC"}),
            ..plain(vec![words(r"\p{N}"), bytes(false)])
        },
        "tekken" => {
            let upper = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]";
            let lower = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]";
            let before = r"[^\r\n\p{L}\p{N}]?";
            let pattern = split(&format!(
                r"{before}{upper}*{lower}+|{before}{upper}+{lower}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ));
            Splitting { ignore_merges: true, adds_bos: true, ..plain(vec![pattern, bytes(false)]) }
        }
        // Files from before May 2024 do not say; this is what llama.cpp does with them.
        "default" => plain(vec![
            split(r"[\p{P}\$\+<=>\^~\|]+"),
            split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
            split(r"\p{N}+"),
            split("[0-9][0-9][0-9]"),
            bytes(false),
        ]),
        found => {
            let message = format!(
                "found \"{found}\", this build knows gpt-2, smollm, starcoder, llama-bpe, qwen2, tekken, \
                 command-r and those that split as one of them; use the model's Hugging Face folder"
            );
            return Err(gguf.wrong(SPLIT_KEY, message));
        }
    })
}

/// SentencePiece's BPE with byte fallback. It has scores instead of merges: of all neighbours whose
/// concatenation is a token, those with the best score are merged first.
fn sentence_piece(
    gguf: &GgufFile,
    tokens: &[&str],
    types: &[i64],
) -> Result<(Value, bool), CheckpointError> {
    let scores = gguf.list(SCORES_KEY, "numbers", Value::as_f64)?;
    if scores.len() != tokens.len() {
        let message = format!("{} scores for {} tokens", scores.len(), tokens.len());
        return Err(gguf.wrong(SCORES_KEY, message));
    }
    let pieces: HashMap<&str, usize> = tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| types[*id] == token_type::NORMAL)
        .map(|(id, token)| (*token, id))
        .collect();
    let mut parts = pieces.clone();
    // SentencePiece also merges characters that are no pieces themselves, as Gemma's tab: `tokenizers` has to know them.
    let bytes: Vec<(String, usize)> = tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| types[*id] == token_type::BYTE)
        .filter_map(|(id, token)| {
            let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
            let byte = u8::from_str_radix(digits, 16).ok().filter(u8::is_ascii)?;
            Some((char::from(byte).to_string(), id))
        })
        .collect();
    for (character, id) in &bytes {
        parts.entry(character).or_insert(*id);
    }
    let mut merges: Vec<(usize, usize, usize, [&str; 2])> = Vec::new();
    for (token, &id) in &pieces {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&left_id), Some(&right_id)) = (parts.get(left), parts.get(right)) {
                merges.push((id, left_id, right_id, [left, right]));
            }
        }
    }
    merges.sort_unstable_by(|a, b| {
        let score = |id: usize| scores[id];
        score(b.0).partial_cmp(&score(a.0)).unwrap_or(Ordering::Equal).then(a.cmp(b))
    });
    let merges: Vec<[&str; 2]> = merges.into_iter().map(|(.., parts)| parts).collect();
    let mut vocabulary = vocabulary(tokens);
    for part in merges.iter().flatten() {
        vocabulary.entry(*part).or_insert_with(|| json!(parts[part]));
    }

    let prefixed = gguf.optional(SPACE_KEY, boolean)?.unwrap_or(true);
    let replaced = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let normalizers = match prefixed {
        true => json!([{"type": "Prepend", "prepend": SPACE}, replaced]),
        false => json!([replaced]),
    };
    let unknown = match special_token(gguf, tokens, "unknown")? {
        Some(token) => Some(token),
        None => types
            .iter()
            .position(|kind| *kind == token_type::UNKNOWN)
            .map(|id| tokens[id].to_owned()),
    };
    let tokenizer = json!({
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]},
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": true,
            "byte_fallback": true,
            "vocab": vocabulary,
            "merges": merges,
        },
    });
    Ok((tokenizer, true))
}
