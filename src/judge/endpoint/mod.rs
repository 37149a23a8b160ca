//! A judge behind an OpenAI-compatible server: `POST /v1/chat/completions`.

mod completion;
mod refusal;

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::{Response, Uri};

use crate::judge::session::{AskError, Judge, Question};
use crate::judge::session::{Unjudged, UnjudgedReason};

/// Where questions are posted, below the base URL.
const PATH: &str = "/chat/completions";
/// The greatest answer of a server that is read, in bytes.
const MAX_BODY: u64 = 4 << 20;

/// How a server is told of an answer's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseFormat {
    /// `response_format` has the schema: the server lets the model write nothing else.
    JsonSchema,
    /// `response_format` asks for some JSON object; the prompt has the schema.
    JsonObject,
    /// The prompt has the schema.
    None,
}

/// What is asked where.
#[derive(Debug, Clone)]
pub struct EndpointSettings {
    /// Base URL up to and including `/v1`.
    pub endpoint: String,
    /// What the server calls the model.
    pub model: String,
    /// Sent as a bearer token.
    pub api_key: Option<String>,
    /// Time for a whole answer.
    pub time_out: Duration,
    /// How the server is told of the answer's form.
    pub response_format: ResponseFormat,
    /// Longest answer, in tokens.
    pub max_tokens: u32,
}

/// A model behind a server.
pub struct Endpoint {
    agent: Agent,
    url: String,
    settings: EndpointSettings,
}

impl Endpoint {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// A URL that is none, no time, or no tokens.
    pub fn new(settings: EndpointSettings) -> anyhow::Result<Self> {
        let base = settings.endpoint.trim_end_matches('/');
        let uri: Uri = base.parse().with_context(|| format!("--endpoint: {base:?} is no URL"))?;
        ensure!(
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.query().is_none(),
            "--endpoint: {base:?} is no base URL, such as https://api.openai.com/v1"
        );
        ensure!(
            !base.ends_with(PATH),
            "--endpoint: {base:?} should end before {PATH}, as in https://api.openai.com/v1"
        );
        ensure!(!settings.time_out.is_zero(), "--timeout-s: must be at least 1");
        ensure!(settings.max_tokens > 0, "--max-tokens: must be at least 1");
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // A redirected POST becomes a GET.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(settings.time_out))
            .build()
            .new_agent();
        Ok(Self { agent, url: format!("{base}{PATH}"), settings })
    }

    fn request(&self, question: &Question, seed: u64) -> Value {
        let schema = &question.schema;
        let mut system = question.system.to_owned();
        if self.settings.response_format != ResponseFormat::JsonSchema {
            system.push_str("\n\nAnswer with one JSON object and nothing else. Its JSON schema:\n");
            system.push_str(&schema.schema.to_string());
        }
        let mut request = json!({
            "model": self.settings.model,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": question.user},
            ],
            "temperature": 0,
            "seed": seed,
            "max_tokens": self.settings.max_tokens,
        });
        match self.settings.response_format {
            ResponseFormat::JsonSchema => {
                request["response_format"] = json!({
                    "type": "json_schema",
                    "json_schema": {"name": schema.name, "strict": true, "schema": schema.schema},
                });
            }
            ResponseFormat::JsonObject => {
                request["response_format"] = json!({"type": "json_object"});
            }
            ResponseFormat::None => {}
        }
        request
    }

    /// Posts a body; the answer's head and body, whatever its status.
    fn post(&self, request: &Value) -> Result<(Response<()>, String), ureq::Error> {
        let mut post = self.agent.post(&self.url);
        if let Some(key) = &self.settings.api_key {
            post = post.header("Authorization", format!("Bearer {key}"));
        }
        let (head, mut body) = post.send_json(request)?.into_parts();
        let text = body.with_config().limit(MAX_BODY).lossy_utf8(true).read_to_string()?;
        Ok((Response::from_parts(head, ()), text))
    }
}

impl Judge for Endpoint {
    fn name(&self) -> &str {
        &self.settings.model
    }

    fn ask(&self, question: &Question, seed: u64) -> Result<String, AskError> {
        let (head, body) =
            self.post(&self.request(question, seed)).map_err(|error| self.not_reached(&error))?;
        if head.status().is_success() {
            return completion::text(&body);
        }
        Err(refusal::of(&self.url, &head, &body))
    }
}

impl Endpoint {
    /// What a request counts as to which there is no whole answer.
    fn not_reached(&self, error: &ureq::Error) -> AskError {
        let reason = match error {
            ureq::Error::BadUri(_)
            | ureq::Error::Http(_)
            | ureq::Error::InvalidProxyUrl
            | ureq::Error::Tls(_)
            | ureq::Error::Pem(_)
            | ureq::Error::Rustls(_) => {
                return AskError::Fatal(format!("{}: {error}", self.url));
            }
            ureq::Error::Timeout(_) => UnjudgedReason::TimeOut,
            ureq::Error::BodyExceedsLimit(_) => UnjudgedReason::InvalidResponse,
            _ => UnjudgedReason::Connection,
        };
        AskError::Later { unjudged: Unjudged::new(reason, error.to_string()), after: None }
    }
}
