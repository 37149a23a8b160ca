//! Forms of GELU.

use serde::Serialize;

/// The activation of an MLP that is not SwiGLU: GELU (Hendrycks and Gimpel 2016).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gelu {
    /// `x Phi(x)`, with the normal distribution function.
    Exact,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    Tanh,
}
