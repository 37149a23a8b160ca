//! The HTTP API: routes, limits, and what every request passes through.

mod admission;
mod auth;
mod baseline;
mod body;
mod caller;
pub mod connections;
mod error;
mod inputs;
mod models;
mod object;
mod operations;
mod page;
mod plots;
mod protocols;
mod refusals;
mod reward;
mod runs;
mod scoring;
mod timing;
mod unread;
mod whole;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tracing::Instrument;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::checkpoint::{HeadConfig, Message};
use crate::config::ServerConfig;
use crate::encoder::EncoderInfo;
use crate::engine::{Engine, Tokeniser};
use crate::metrics::Metrics;
use crate::monitor::Monitor;
use crate::served::{EnsembleInfo, Objective};
pub use auth::Keys;
use error::{AnyError, ApiError, ErrorAnswer};
pub(crate) use inputs::lone_input;
pub use models::AppState;
pub use plots::PlotCache;
use refusals::Refusals;
use timing::Timing;

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

/// Answers of fewer bytes are sent as they are: packing them costs more than it saves.
const COMPRESSED_FROM: u16 = 8192;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// All routes, with their documentation.
fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(ApiDocument::openapi())
        .routes(routes!(reward::reward))
        .routes(routes!(operations::tokenize))
        .routes(routes!(runs::list))
        .routes(routes!(runs::show, runs::remove))
        .routes(routes!(runs::evaluations))
        .routes(routes!(runs::evaluate))
        .routes(routes!(baseline::put))
        .routes(routes!(runs::configure))
        .routes(routes!(plots::plot))
        .routes(routes!(page::page))
        .routes(routes!(page::asset))
        .routes(routes!(operations::health))
        .routes(routes!(operations::ready))
        .routes(routes!(operations::metrics))
        .routes(routes!(operations::info))
        .routes(routes!(operations::openapi))
        .layer(from_fn(models::check_url))
        .merge(protocols::routes())
}

/// What is said of the API as a whole.
#[derive(OpenApi)]
#[openapi(
    info(title = "inform-server", description = "Reward-model server for RLHF"),
    security(("key" = [])),
    components(schemas(Message, ErrorAnswer, AnyError)),
    modifiers(&KeyScheme)
)]
struct ApiDocument;

struct KeyScheme;

impl Modify for KeyScheme {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("Asked for where the server has a keys file"));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("key", SecurityScheme::Http(scheme.build()));
    }
}

/// The API in the OpenAPI format, as JSON.
pub fn openapi_json() -> String {
    // Serialising what was just built cannot fail.
    let mut document = serde_json::to_value(routes().to_openapi()).unwrap_or_default();
    bound_integers(&mut document);
    let mut json = serde_json::to_string_pretty(&document).unwrap_or_default();
    json.push('\n');
    json
}

/// Gives every integer without a greatest value that of numbers which all JSON readers keep exactly (RFC 8259, section 6):
/// larger ones are refused where they do not fit.
fn bound_integers(value: &mut serde_json::Value) {
    use serde_json::{Value, json};
    const LARGEST: u64 = (1 << 53) - 1;
    match value {
        Value::Object(keys) => {
            let is_integer = match keys.get("type") {
                Some(Value::String(name)) => name == "integer",
                Some(Value::Array(names)) => names.iter().any(|name| name == "integer"),
                _ => false,
            };
            if is_integer && !keys.contains_key("maximum") {
                keys.insert("maximum".to_owned(), json!(LARGEST));
            }
            keys.values_mut().for_each(bound_integers);
        }
        Value::Array(values) => values.iter_mut().for_each(bound_integers),
        _ => {}
    }
}

/// The service behind every connection.
pub fn router(state: AppState) -> Router {
    models::dispatch(&state, router_of_model)
}

/// The routes of one model, in what every request passes through.
fn router_of_model(state: AppState) -> Router {
    let stack = ServiceBuilder::new()
        .layer(from_fn_with_state(state.clone(), unread::finish))
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(CompressionLayer::new().compress_when(SizeAbove::new(COMPRESSED_FROM)))
        .layer(from_fn_with_state((state.clone(), Arc::default()), observe))
        .layer(CatchPanicLayer::custom(|_| {
            ApiError::internal("the server failed on this request; its log says why")
                .into_response()
        }))
        .layer(from_fn_with_state(state.clone(), auth::check))
        .layer(DefaultBodyLimit::disable());
    Router::from(routes())
        .fallback(async || {
            ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is no such route")
        })
        .method_not_allowed_fallback(async || {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this route takes another method",
            )
        })
        .layer(stack)
        .with_state(state)
}

/// Counts and times requests, and logs each with its route, never its text.
async fn observe(
    State((state, refusals)): State<(AppState, Arc<Refusals>)>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let request_id = request_id(request.headers());
    let span = tracing::info_span!("request", method = %request.method(), route, request_id);
    let timing = Timing::asked(request.headers());
    if let Some(timing) = &timing {
        request.extensions_mut().insert(timing.clone());
    }
    let mut response = next.run(request).instrument(span.clone()).await;
    if let Some(timing) = timing {
        timing.write(response.headers_mut());
    }
    let _entered = span.enter();
    let seconds = started.elapsed().as_secs_f64();
    let status = response.status();
    let error = response.extensions().get::<ApiError>().cloned();
    let code = match &error {
        Some(error) => error.code().to_owned(),
        None => status.as_u16().to_string(),
    };
    state.metrics.requests.with_label_values(&[&route, &code]).inc();
    state.metrics.request_seconds.with_label_values(&[&route]).observe(seconds);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        tracing::debug!(code, seconds, "request refused");
        if let Some(count) = refusals.count() {
            tracing::warn!(code, count, "requests were refused");
        }
    } else if status.is_server_error() {
        tracing::warn!(code, seconds, "request failed");
    } else {
        tracing::debug!(code, seconds, "request");
    }
    error.map_or(response, |error| error.answer(&request_id))
}

fn request_id(headers: &axum::http::HeaderMap) -> String {
    let value = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}
