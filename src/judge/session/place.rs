//! What a question is about.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::train::Origin;

/// In which order the answers of a pair were shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::judge) enum Order {
    /// The answer of `--answers` first.
    Given,
    /// The answer of `--against` first.
    Swapped,
}

/// What a question is about. Displayed as a message.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::judge) struct AnswerPlace {
    #[serde(flatten)]
    pub(in crate::judge) origin: Origin,
    /// The answer's number in its line's `responses`, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::judge) response: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::judge) order: Option<Order>,
}

impl fmt::Display for AnswerPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.origin.fmt(f)?;
        if let Some(response) = self.response {
            write!(f, ", response {response}")?;
        }
        match self.order {
            None => Ok(()),
            Some(Order::Given) => f.write_str(", as given"),
            Some(Order::Swapped) => f.write_str(", swapped"),
        }
    }
}
