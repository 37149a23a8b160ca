//! What stands for the encoder in a program without mistral.rs.

use super::loaded::EncodedModel;
use crate::config::ServerConfig;
use crate::model_loader::ServedModel;

/// Never loads.
///
/// # Errors
/// Says how to build a program that does.
pub fn load(_: &ServerConfig, _: &ServedModel) -> anyhow::Result<EncodedModel> {
    anyhow::bail!(
        "encoder: this program was built without mistral.rs; build it with `cargo build --release --features mistralrs`"
    )
}
