//! Runs, windows, and the statistics of latents.

mod alerts;
mod csi;
mod mahalanobis;
mod neighbours;
mod null;
mod replay;
mod run_settings;
mod runs;
mod statistics;
mod statistics_golden;
