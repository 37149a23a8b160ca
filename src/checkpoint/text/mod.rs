//! From text to the token ids that are scored: chat template, tokenizer, and one EOS at the end.

mod date;
mod encoder;
mod encoding;
mod message;
mod padding;
mod policy;
mod template;

pub use encoder::TextEncoder;
pub use encoding::{EncodeError, Encoding};
pub use message::{Input, Message};
pub(crate) use padding::padding_token;
pub use policy::{BosPolicy, EosPolicy, Pooling, SpecialToken, TextPolicy};
