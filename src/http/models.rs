//! Several models on one server: which one a request is for.
//!
//! Each has its own engine, cache, monitor and tokeniser. `?model=NAME` in the URL chooses on every route, before anything
//! else looks at the request; where there is none, the body's `model` does on routes that score.

use std::ops::Deref;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, Request};
use axum::http::{StatusCode, Uri};
use serde::Deserialize;
use serde_json::Value;
use tower::ServiceExt;
use utoipa::IntoParams;

use super::App;
use super::error::ApiError;

/// What is appended to a model's name for latents instead of rewards.
pub(super) const LATENTS: &str = "-latents";

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
    pub(super) fn is_first(&self) -> bool {
        Arc::ptr_eq(&self.app, &self.all[0])
    }

    /// The model of a name.
    ///
    /// # Errors
    /// 404 with the names that are known.
    pub(super) fn named(&self, name: &str) -> Result<Self, ApiError> {
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
    pub(super) fn check_is(&self, name: Option<&str>) -> Result<(), ApiError> {
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

    fn unknown(&self, name: &str) -> ApiError {
        let known: Vec<&str> = self.all.iter().map(|model| model.model.as_str()).collect();
        let message = format!("there is no model {name:?}; served are {}", known.join(", "));
        ApiError::new(StatusCode::NOT_FOUND, "unknown_model", message)
    }

    /// The model of a scoring request that was read: the one of its URL, else of its body's field `model`. While one model
    /// is served, what a client of another server calls it does not matter.
    ///
    /// # Errors
    /// As [`AppState::named`].
    pub(super) fn of_body(&self, chosen: Option<Chosen>, body: &[u8]) -> Result<Self, ApiError> {
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
pub(super) struct Chosen;

/// Sends each request to the router of the model that its URL names, without the name, or else to the first. `unknown`
/// makes a router that answers with an error.
pub(super) fn dispatch(
    state: &AppState,
    router: impl Fn(AppState) -> Router,
    unknown: impl Fn(ApiError) -> Router + Clone + Send + Sync + 'static,
) -> Router {
    let routers: Arc<[(AppState, Router)]> =
        state.each().map(|state| (state.clone(), router(state))).collect();
    let service = tower::service_fn(move |mut request: Request| {
        let router = match take_model(request.uri_mut()) {
            None => routers[0].1.clone(),
            Some(name) => {
                request.extensions_mut().insert(Chosen);
                match routers.iter().find(|(state, _)| state.model == name) {
                    Some((_, router)) => router.clone(),
                    // While there is one, it does not matter what a URL calls it.
                    None if routers.len() == 1 => routers[0].1.clone(),
                    None => unknown(routers[0].0.unknown(&name)),
                }
            }
        };
        router.oneshot(request)
    });
    Router::new().fallback_service(service)
}

/// Names a model in a URL.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ModelQuery {
    /// Which of several models; default the first
    #[param(nullable = false)]
    model: Option<String>,
}

/// Takes `model` out of a URL's query.
fn take_model(uri: &mut Uri) -> Option<String> {
    let query = uri.query()?;
    if !query.contains("model=") {
        return None;
    }
    let named = Query::<ModelQuery>::try_from_uri(uri).ok()?;
    let rest: Vec<&str> = query.split('&').filter(|pair| !pair.starts_with("model=")).collect();
    let rest = rest.join("&");
    let (path, separator) = (uri.path(), if rest.is_empty() { "" } else { "?" });
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{path}{separator}{rest}").parse().ok()?);
    *uri = Uri::from_parts(parts).ok()?;
    named.0.model
}
