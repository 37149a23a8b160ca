//! The protocols that trainers and inference servers speak already. Each file turns one protocol's
//! bodies into the scoring call of [`super::scoring`] and its outcomes back.
//!
//! Unlike on native routes, fields that the server has no use for are ignored: these clients send
//! many.

mod conversion;
mod hugging_face;
mod llama_factory;
mod openai;
mod openrlhf;
mod sglang;
mod shared;
mod slime;
mod tei;
mod vllm;

use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::middleware::model_choice;
use crate::http::state::{ApiError, AppState, ErrorShape};

/// All foreign routes.
pub(super) fn routes() -> OpenApiRouter<AppState> {
    let plain = OpenApiRouter::new()
        .routes(routes!(openrlhf::get_reward))
        .routes(routes!(slime::slime))
        .routes(routes!(llama_factory::score_evaluation))
        .layer(from_fn(|request, next| errors_as(ErrorShape::Native, request, next)));
    let open_ai = OpenApiRouter::new()
        .routes(routes!(openai::embeddings))
        .routes(routes!(openai::models))
        .routes(routes!(vllm::pooling))
        .routes(routes!(vllm::score))
        .routes(routes!(vllm::rerank_v1))
        .routes(routes!(vllm::rerank_v2))
        .routes(routes!(shared::classify))
        .routes(routes!(shared::score_v1))
        .routes(routes!(shared::rerank))
        .layer(from_fn(|request, next| errors_as(ErrorShape::OpenAi, request, next)));
    let tei = OpenApiRouter::new()
        .routes(routes!(hugging_face::text_classification))
        .routes(routes!(tei::predict))
        .layer(from_fn(|request, next| errors_as(ErrorShape::Tei, request, next)));
    plain.merge(open_ai).merge(tei)
}

/// Rewrites errors as the protocol's clients expect them.
async fn errors_as(shape: ErrorShape, request: Request, next: Next) -> Response {
    let mut response = model_choice::check_url(request, next).await;
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        return axum::response::IntoResponse::into_response(error.foreign(shape));
    }
    response
}
