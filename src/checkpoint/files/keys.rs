//! Reading of `config.json` key by key, with errors that name the key.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::CheckpointError;

/// The keys of a `config.json`, or of an object in it.
#[derive(Debug, Clone, Copy)]
pub(in crate::checkpoint) struct ConfigKeys<'a> {
    map: &'a Map<String, Value>,
    file: &'a Path,
    /// What an error puts before a key.
    prefix: &'a str,
}

impl<'a> ConfigKeys<'a> {
    pub(in crate::checkpoint) fn new(map: &'a Map<String, Value>, file: &'a Path) -> Self {
        Self { map, file, prefix: "" }
    }

    pub(in crate::checkpoint) fn wrong(
        &self,
        key: &str,
        message: impl Into<String>,
    ) -> CheckpointError {
        CheckpointError::Config {
            file: self.file.to_owned(),
            key: format!("{}{key}", self.prefix),
            message: message.into(),
        }
    }

    /// The value of a key; `None` where it is missing or null.
    pub(in crate::checkpoint) fn get<T: DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<T>, CheckpointError> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone())
                .map(Some)
                .map_err(|error| self.wrong(key, error.to_string())),
        }
    }

    pub(in crate::checkpoint) fn or<T: DeserializeOwned>(
        &self,
        key: &str,
        default: T,
    ) -> Result<T, CheckpointError> {
        Ok(self.get(key)?.unwrap_or(default))
    }

    /// As [`ConfigKeys::or`], with `None` for a null: releases of transformers leave a default out, and write what is switched off.
    pub(in crate::checkpoint) fn unless_null<T: DeserializeOwned>(
        &self,
        key: &str,
        default: Option<T>,
    ) -> Result<Option<T>, CheckpointError> {
        if self.map.contains_key(key) { self.get(key) } else { Ok(default) }
    }

    pub(in crate::checkpoint) fn required<T: DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<T, CheckpointError> {
        self.get(key)?.ok_or_else(|| self.wrong(key, "is missing"))
    }

    /// A whole number of at least 1.
    pub(in crate::checkpoint) fn count(&self, key: &str) -> Result<usize, CheckpointError> {
        match self.required(key)? {
            0 => Err(self.wrong(key, "must be at least 1")),
            value => Ok(value),
        }
    }

    /// A whole number that pairs divide: bf16 products take pairs.
    pub(in crate::checkpoint) fn even(&self, key: &str) -> Result<usize, CheckpointError> {
        let value = self.count(key)?;
        match value.is_multiple_of(2) {
            true => Ok(value),
            false => Err(self.wrong(key, format!("must be even, found {value}"))),
        }
    }

    /// A finite number above zero; `None` where it is missing or null.
    pub(in crate::checkpoint) fn positive(
        &self,
        key: &str,
    ) -> Result<Option<f64>, CheckpointError> {
        let value: Option<f64> = self.get(key)?;
        match value {
            Some(number) if !(number.is_finite() && number > 0.0) => {
                Err(self.wrong(key, format!("must be above 0, found {number}")))
            }
            value => Ok(value),
        }
    }

    /// The keys of an object.
    pub(in crate::checkpoint) fn object(
        &self,
        key: &str,
    ) -> Result<Option<Map<String, Value>>, CheckpointError> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map.clone())),
            Some(other) => Err(self.wrong(key, format!("must be an object, found {other}"))),
        }
    }

    /// ConfigKeys of an object in the same file, which errors name after `prefix`.
    pub(in crate::checkpoint) fn within(
        self,
        map: &'a Map<String, Value>,
        prefix: &'a str,
    ) -> Self {
        Self { map, prefix, ..self }
    }

    /// Refuses a key whose value says something that the family does otherwise here.
    pub(in crate::checkpoint) fn expect<T: DeserializeOwned + PartialEq + std::fmt::Debug>(
        &self,
        key: &str,
        expected: T,
    ) -> Result<(), CheckpointError> {
        match self.get::<T>(key)? {
            Some(found) if found != expected => {
                Err(self.wrong(key, format!("found {found:?}, supported is {expected:?}")))
            }
            _ => Ok(()),
        }
    }
}
