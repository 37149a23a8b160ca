//! What handlers work with: the models of this server, and the one that a request is for.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::error::ApiError;
use super::keys::Keys;
use super::plot_cache::PlotCache;
use crate::checkpoint::HeadConfig;
use crate::config::{LATENTS, ServerConfig};
use crate::encoder::EncoderInfo;
use crate::engine::{Engine, Tokeniser};
use crate::metrics::Metrics;
use crate::model_loader::{EnsembleInfo, Objective};
use crate::monitor::Monitor;

/// The parts that handlers of one model's requests work with.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct App {
    pub engine: Engine,
    /// `None` for a checkpoint whose head has no latents.
    pub monitor: Option<Monitor>,
    /// Set when the server begins to shut down.
    pub draining: Arc<AtomicBool>,
    pub encoder: Tokeniser,
    pub metrics: Metrics,
    pub config: ServerConfig,
    /// Name of the checkpoint's folder, or what the settings call a further model.
    pub model: String,
    pub weights: String,
    /// Hash of the weights that latents are of: those of an ensemble's first member.
    pub latent_weights: String,
    pub objectives: Vec<Objective>,
    pub ensemble: Option<EnsembleInfo>,
    pub head: HeadConfig,
    pub latent_dim: Option<usize>,
    pub baseline_samples: usize,
    /// The devices, in words.
    pub device: String,
    /// Precision of products.
    pub dtype: &'static str,
    /// What computes hidden states, where it is not this program.
    pub foreign_encoder: Option<EncoderInfo>,
    pub keys: Arc<Keys>,
    pub plots: Arc<PlotCache>,
}

/// What every handler sees: the model that the request is for, and those beside it. Cheap to clone: every request does,
/// several times.
#[derive(Debug, Clone)]
pub struct AppState {
    app: Arc<App>,
    all: Arc<[Arc<App>]>,
}

impl Deref for AppState {
    type Target = App;

    fn deref(&self) -> &App {
        &self.app
    }
}

impl AppState {
    /// A server of these models, which must have different names. Requests that name none are for the first.
    pub fn new(first: App, others: Vec<App>) -> Self {
        let app = Arc::new(first);
        let others = others.into_iter().map(Arc::new);
        Self { all: std::iter::once(app.clone()).chain(others).collect(), app }
    }

    /// Every model, the first one first.
    pub fn each(&self) -> impl Iterator<Item = Self> {
        self.all.iter().map(|app| Self { app: app.clone(), all: self.all.clone() })
    }

    /// Whether there is more than one model.
    pub fn has_several(&self) -> bool {
        self.all.len() > 1
    }

    /// Whether this is the model of requests that name none.
    pub(in crate::http) fn is_first(&self) -> bool {
        Arc::ptr_eq(&self.app, &self.all[0])
    }

    /// The model of a name.
    ///
    /// # Errors
    /// 404 with the names that are known.
    pub(in crate::http) fn named(&self, name: &str) -> Result<Self, ApiError> {
        // A checkpoint may be called something that ends so itself.
        let found = self.each().find(|state| state.model == name).or_else(|| {
            self.each().find(|state| name.strip_suffix(LATENTS) == Some(state.model.as_str()))
        });
        found.ok_or_else(|| self.unknown(name))
    }

    /// Whether this model is the one that a native body names, if it names one.
    ///
    /// # Errors
    /// As [`AppState::named`]; and where the URL has named another.
    pub(in crate::http) fn check_is(&self, name: Option<&str>) -> Result<(), ApiError> {
        match name {
            Some(name) if name != self.model => {
                if self.all.iter().all(|model| model.model != name) {
                    return Err(self.unknown(name));
                }
                let message = format!("{name}, and the URL names {}", self.model);
                Err(ApiError::invalid("/model", message))
            }
            _ => Ok(()),
        }
    }

    pub(in crate::http) fn unknown(&self, name: &str) -> ApiError {
        let known: Vec<&str> = self.all.iter().map(|model| model.model.as_str()).collect();
        let message = format!("there is no model {name:?}; served are {}", known.join(", "));
        ApiError::new(StatusCode::NOT_FOUND, "unknown_model", message)
    }

    /// The model of a scoring request that was read: the one of its URL, else of its body's field `model`. While one model
    /// is served, what a client of another server calls it does not matter.
    ///
    /// # Errors
    /// As [`AppState::named`].
    pub(in crate::http) fn of_body(
        &self,
        chosen: Option<NamedInUrl>,
        body: &[u8],
    ) -> Result<Self, ApiError> {
        #[derive(Deserialize)]
        struct Named {
            model: Option<Value>,
        }
        if chosen.is_some() || !self.has_several() {
            return Ok(self.clone());
        }
        // What is wrong with the body will be said by whoever reads the rest of it.
        match serde_json::from_slice(body) {
            Ok(Named { model: Some(Value::String(name)) }) => self.named(&name),
            _ => Ok(self.clone()),
        }
    }
}

/// Mark of a request whose URL named its model.
#[derive(Debug, Clone, Copy)]
pub(in crate::http) struct NamedInUrl;
