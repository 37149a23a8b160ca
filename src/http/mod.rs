//! The HTTP API: routes, limits, and what every request passes through.

mod handlers;
mod middleware;
mod page;
mod protocols;
mod routes;
mod scoring;
mod state;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};

use middleware::{auth, drain_body, model_choice, request_log};
pub use routes::openapi_json;
use routes::routes;
use state::{ApiError, REQUEST_ID};
pub use state::{App, AppState, Keys, PlotCache};

/// Answers of fewer bytes are sent as they are: packing them costs more than it saves.
const COMPRESSED_FROM: u16 = 8192;

/// The service behind every connection.
pub fn router(state: AppState) -> Router {
    model_choice::dispatch(&state, router_of_model)
}

/// The routes of one model, in what every request passes through.
fn router_of_model(state: AppState) -> Router {
    let stack = ServiceBuilder::new()
        .layer(from_fn_with_state(state.clone(), drain_body::finish))
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(CompressionLayer::new().compress_when(SizeAbove::new(COMPRESSED_FROM)))
        .layer(from_fn_with_state((state.clone(), Arc::default()), request_log::observe))
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
pub use middleware::connections;
