//! Settings of the logs.

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// Settings of the logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A level, or directives as `info,inform::monitor=debug`.
    pub filter: String,
    /// Text for people or JSON for machines.
    pub format: LogFormat,
    /// Where trace spans go by OTLP over HTTP, as `http://host:4318/v1/traces`; empty for nowhere. Needs
    /// the feature `otlp`.
    pub otlp_endpoint: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Text, otlp_endpoint: String::new() }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One line of text.
    Text,
    /// One JSON object a line.
    Json,
}

/// The filter of the logs.
///
/// # Errors
/// Where it does not parse.
pub fn filter(config: &LogConfig) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(&config.filter).map_err(|error| anyhow::anyhow!("log.filter: {error}"))
}
