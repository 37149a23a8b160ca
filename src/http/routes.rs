//! All routes, and what is said of them in the OpenAPI format.

use std::sync::LazyLock;

use axum::http::header;
use axum::middleware::from_fn;
use axum::response::IntoResponse;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::state::{AnyError, AppState, ErrorAnswer};
use crate::checkpoint::Message;
use crate::http::handlers::{baseline, operations, plots, reward, runs};
use crate::http::middleware::model_choice;
use crate::http::{page, protocols};

/// All routes, with their documentation.
pub(super) fn routes() -> OpenApiRouter<AppState> {
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
        .routes(routes!(openapi))
        .layer(from_fn(model_choice::check_url))
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

/// The API in the OpenAPI format
#[utoipa::path(
    get, path = "/openapi.json", tag = "operations", security(()),
    responses((status = 200, body = Object))
)]
async fn openapi() -> impl IntoResponse {
    static DOCUMENT: LazyLock<String> = LazyLock::new(openapi_json);
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}
