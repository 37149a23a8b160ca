//! What is computed of one window: each statistic in a file of its own.
//!
//! Distances of pairs are what costs, so that one walk over the pairs within the window and one over
//! those with the baseline serve all statistics that ask for them (`pairs.rs`); what depends on the
//! baseline alone is computed once (`reference.rs`).

pub mod correlation;
pub mod csi;
pub mod dispersion;
pub mod energy;
mod gram;
pub mod mahalanobis;
pub mod nearest;
pub mod neighbours;
pub mod null;
pub(super) mod pairs;
mod parameters;
pub mod pca;
pub mod prompt_index;
pub mod reference;
pub mod rewards;
pub mod tsne;

pub use parameters::StatisticsParameters;
