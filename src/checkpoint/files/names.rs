//! Names of a checkpoint's files.

/// Name of the configuration file in a checkpoint folder.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the tokenizer's file in a checkpoint folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Name of the file that names the special tokens.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// Name of the chat template's file.
pub const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Name of the baseline file in a checkpoint folder.
pub const BASELINE_FILE: &str = "baseline.safetensors";

/// The weights, where they are one file.
pub(in crate::checkpoint) const SINGLE_FILE: &str = "model.safetensors";
/// The list of the weights' files, where they are several.
pub(in crate::checkpoint) const INDEX_FILE: &str = "model.safetensors.index.json";

/// Files that may name special tokens.
pub(crate) const TOKEN_FILES: [&str; 2] = [TOKENIZER_CONFIG_FILE, "special_tokens_map.json"];

/// Files that decide a text's token ids, here and in the libraries that read the folder too.
pub(in crate::checkpoint) const TEXT_FILES: [&str; 8] = [
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    TEMPLATE_FILE,
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];
