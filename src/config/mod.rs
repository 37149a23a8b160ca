//! The server's settings: flags over environment over TOML over defaults.
//!
//! Every key is described in `docs/configuration.md`.

mod device;
mod encoder;
mod limits;
mod model;
mod server;
mod verify;

pub use device::{CudaConfig, DeviceChoice, DtypeChoice};
pub use encoder::{EncoderChoice, EncoderConfig};
pub use limits::{AuthConfig, Limits};
pub use model::{EnsembleConfig, LATENTS, NamedModel, ObjectivesConfig};
pub use server::ServerConfig;
pub use verify::VerifyConfig;
