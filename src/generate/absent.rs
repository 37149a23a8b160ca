//! What stands for the generator in a program without mistral.rs.

use std::convert::Infallible;

use serde_json::Value;

use super::call::{Generated, GeneratorSettings, Sampling};
use crate::checkpoint::Message;

/// A language model, which this program was built without: there is none.
#[derive(Debug)]
pub struct Generator(Infallible);

impl Generator {
    /// Never loads.
    ///
    /// # Errors
    /// Says how to build a program that does.
    pub fn load(_: &GeneratorSettings) -> anyhow::Result<Self> {
        anyhow::bail!(
            "this program was built without mistral.rs; build it with the feature, `cargo build --release --features \
             mistralrs`, to let a model write"
        )
    }

    /// What the model is called.
    pub fn name(&self) -> &str {
        match self.0 {}
    }

    /// Hash of its weights.
    pub fn weights(&self) -> &str {
        match self.0 {}
    }

    /// Where it runs.
    pub fn device(&self) -> &'static str {
        match self.0 {}
    }

    /// Sequences that are decoded at once.
    pub fn sequences(&self) -> usize {
        match self.0 {}
    }

    /// Token ids of a conversation.
    ///
    /// # Errors
    /// None: there is no generator.
    pub fn encode(&self, _: &[Message]) -> anyhow::Result<Vec<u32>> {
        match self.0 {}
    }

    /// Writes what follows.
    ///
    /// # Errors
    /// None: there is no generator.
    pub fn generate(
        &self,
        _: &[u32],
        _: &Sampling,
        _: u64,
        _: Option<&Value>,
    ) -> anyhow::Result<Generated> {
        match self.0 {}
    }
}
