//! Decoder families: how each writes `config.json`, and how it lays out its tensors.
//!
//! A family is a file with `read`, from `config.json` to a `DecoderConfig`, and, where its tensors are not named or laid
//! out as Llama's, `place`, by which `tensors.rs` reads and stores them. `model/decoder.rs` computes whatever they describe.

mod common_keys;
mod gemma2;
mod gemma3;
mod gpt_neox;
mod llama;
mod mistral;
mod phi3;
mod place;
mod qwen2;
mod qwen3;
mod reader;
mod rope;
mod tensors;

pub(crate) use place::TensorPlace;
pub(in crate::checkpoint) use reader::read_decoder;
pub use tensors::DecoderTensors;
