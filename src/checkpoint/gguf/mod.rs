//! GGUF files: quantised weights, configuration, tokenizer and chat template in one, as llama.cpp writes them.
//!
//! A file is translated into the files of a Hugging Face folder, which the rest reads: `config.json` from the
//! metadata ([`config`]), the tokenizer's files ([`tokenizer`]), and tensors by Hugging Face's names ([`names`]).

mod blocks;
mod config;
mod container;
mod file;
mod folder;
mod names;
mod tokenizer;

pub(in crate::checkpoint) use blocks::BlockType;
pub use folder::Gguf;
pub(in crate::checkpoint) use names::StoredForm;
