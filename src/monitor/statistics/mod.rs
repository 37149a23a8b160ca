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

pub(super) use correlation::spearman;
pub(super) use csi::{Clustering, CsiError, CsiParameters, EpsMode, LatentSet};
pub(super) use dispersion::{distinct_ratio, total_variance};
pub(super) use energy::{average, combine};
pub(super) use mahalanobis::Mahalanobis;
pub(super) use nearest::{k_distances, kth};
pub(super) use pairs::{Points, between, within};
pub use parameters::StatisticsParameters;
pub(super) use reference::Reference;
pub(super) use rewards::{Groups, Quantiles, moments, share_above};
