//! Hidden states of frozen layers, computed once and kept.

mod compute;
mod depth;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(not(feature = "cuda"))]
#[path = "gpu_absent.rs"]
mod gpu;
mod inference;
mod store;

pub use compute::Compute;
pub(super) use compute::ordinal;
pub use depth::Depth;
pub use inference::Inference;
pub(super) use inference::Loaded;
pub use store::FeatureStore;
pub(super) use store::entering;
