//! A checkpoint's files: their names, their JSON, their hashes, what is wrong with them, and how they are written.

mod digest;
mod error;
mod json;
mod keys;
mod names;
mod output;

pub(crate) use digest::combined_hash;
pub(in crate::checkpoint) use digest::{file_hash, named};
pub use error::CheckpointError;
pub(crate) use json::read_json;
pub(in crate::checkpoint) use json::shortest;
pub(in crate::checkpoint) use keys::ConfigKeys;
pub(crate) use names::TOKEN_FILES;
pub use names::{BASELINE_FILE, CONFIG_FILE, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE};
pub(in crate::checkpoint) use names::{INDEX_FILE, SINGLE_FILE, TEXT_FILES};
pub(in crate::checkpoint) use output::{
    Temporary, put_in_place, sync_folder, write_file, write_files,
};
pub(crate) use output::{check_output, parent_and_name, replace_file};
