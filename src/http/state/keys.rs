//! The keys that callers must have, and their quotas.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::error::ApiError;

/// Tokens that a key may have scored at once after a pause, in seconds of its rate.
const BURST_SECONDS: f64 = 10.0;

/// The keys of a server; none of their texts is kept.
#[derive(Debug, Default)]
pub struct Keys {
    /// Where they come from; without a file everybody may ask.
    file: Option<PathBuf>,
    keys: RwLock<Vec<Arc<Key>>>,
}

/// One caller.
#[derive(Debug)]
pub(in crate::http) struct Key {
    name: String,
    digest: [u8; 32],
    quota: Option<Quota>,
}

/// A token bucket that may go into debt: a request larger than the burst is served, and then paid off.
#[derive(Debug)]
struct Quota {
    per_second: f64,
    state: Mutex<(f64, Instant)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysFile {
    keys: Vec<KeyEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    name: String,
    key: String,
    tokens_per_second: Option<f64>,
}

impl Keys {
    /// Reads a keys file: TOML with a table `[[keys]]` for each of `name`, `key` and, optionally,
    /// `tokens_per_second`.
    ///
    /// # Errors
    /// A file that cannot be read, is not as described, or holds no key, a short one or one twice. No
    /// message holds a key.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        Ok(Self { file: Some(file.to_owned()), keys: RwLock::new(parse(file)?) })
    }

    /// Reads the file again. A key that stays as it was keeps what it has used of its quota, and a request
    /// that was let in goes on.
    ///
    /// # Errors
    /// As [`Keys::read`]; the keys stay as they were.
    pub fn reload(&self) -> anyhow::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let mut read = parse(file)?;
        let mut keys = self.keys.write();
        for key in &mut read {
            if let Some(known) = keys.iter().find(|known| known.is_same(key)) {
                *key = known.clone();
            }
        }
        tracing::info!(keys = read.len(), "keys file read again");
        *keys = read;
        Ok(())
    }

    /// Whether requests need a key.
    pub fn are_set(&self) -> bool {
        self.file.is_some()
    }

    /// The key that the request carries: `Authorization: Bearer KEY`, or, for clients that can be
    /// given a URL alone, the password of `http://anything:KEY@host`.
    pub(in crate::http) fn find(&self, headers: &HeaderMap) -> Option<Arc<Key>> {
        let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, rest) = value.split_once(' ')?;
        let key = match scheme.to_ascii_lowercase().as_str() {
            "bearer" => rest.trim().to_owned(),
            "basic" => {
                let text = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
                text.split_once(':')?.1.to_owned()
            }
            _ => return None,
        };
        let digest = digest(&key);
        // All of them, whichever matches: the time must not tell.
        let mut found = None;
        for key in self.keys.read().iter() {
            if bool::from(key.digest.ct_eq(&digest)) {
                found = Some(key.clone());
            }
        }
        found
    }
}

/// The keys of a file.
fn parse(file: &Path) -> anyhow::Result<Vec<Arc<Key>>> {
    let name = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("auth.keys_file: {name}"))?;
    // The parser's own message would quote the line, and with it the key.
    let parsed: KeysFile = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        anyhow::anyhow!(
            "auth.keys_file: {name}: line {line}: expected [[keys]] tables with `name`, `key` and \
                 optionally `tokens_per_second`"
        )
    })?;
    anyhow::ensure!(!parsed.keys.is_empty(), "auth.keys_file: {name}: there is no key in it");
    let mut keys: Vec<Arc<Key>> = Vec::new();
    for entry in parsed.keys {
        let rate = entry.tokens_per_second;
        let KeyEntry { name: key, .. } = &entry;
        anyhow::ensure!(
            entry.key.len() >= 16
                && entry.key.is_ascii()
                && !entry.key.contains(char::is_whitespace),
            "auth.keys_file: {name}: key `{key}` must be at least 16 ASCII characters without spaces"
        );
        anyhow::ensure!(
            rate.is_none_or(|rate| rate.is_finite() && rate > 0.0),
            "auth.keys_file: {name}: key `{key}`: tokens_per_second must be above 0"
        );
        let digest = digest(&entry.key);
        anyhow::ensure!(
            keys.iter().all(|other| other.name != *key && other.digest != digest),
            "auth.keys_file: {name}: key `{key}` is there twice"
        );
        keys.push(Arc::new(Key { name: entry.name, digest, quota: rate.map(Quota::new) }));
    }
    Ok(keys)
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

impl Key {
    /// Whether both are the same line of a file.
    fn is_same(&self, other: &Self) -> bool {
        let rate = |key: &Self| key.quota.as_ref().map(|quota| quota.per_second);
        self.digest == other.digest && self.name == other.name && rate(self) == rate(other)
    }

    /// Takes tokens from the key's quota.
    ///
    /// # Errors
    /// 429 where it is used up.
    pub(in crate::http) fn charge(&self, tokens: usize) -> Result<(), ApiError> {
        let Some(quota) = &self.quota else { return Ok(()) };
        quota.take(tokens, Instant::now()).map_err(|seconds| {
            let message = format!(
                "key `{}` may have {} tokens a second scored; try again in {seconds} s",
                self.name, quota.per_second
            );
            ApiError::rate_limited(message, seconds)
        })
    }
}

impl Quota {
    fn new(per_second: f64) -> Self {
        Self { per_second, state: Mutex::new((per_second * BURST_SECONDS, Instant::now())) }
    }

    /// Takes tokens while any are left, or answers the seconds until some are.
    fn take(&self, tokens: usize, now: Instant) -> Result<(), u64> {
        let mut state = self.state.lock();
        let (left, at) = *state;
        let gained = now.saturating_duration_since(at).as_secs_f64() * self.per_second;
        let left = (left + gained).min(self.per_second * BURST_SECONDS);
        let allowed = left > 0.0;
        *state = (if allowed { left - tokens as f64 } else { left }, at.max(now));
        if allowed { Ok(()) } else { Err((1.0 - left / self.per_second).ceil() as u64) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    #[test]
    fn a_quota_allows_a_burst_then_its_rate_and_debts_are_paid() {
        let quota = Quota::new(100.0);
        let start = quota.state.lock().1;
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        assert_eq!(quota.take(900, at(0.0)), Ok(()));
        // The last hundred of the burst are worth a request of any size.
        assert_eq!(quota.take(600, at(0.0)), Ok(()));
        assert_eq!(quota.take(1, at(0.0)), Err(6));
        // Refusals cost nothing.
        assert_eq!(quota.take(1, at(4.0)), Err(2));
        assert_eq!(quota.take(1, at(5.1)), Ok(()));
        // A long pause gives no more than the burst.
        assert_eq!(quota.take(1000, at(1000.0)), Ok(()));
        assert!(quota.take(1, at(1000.0)).is_err());
        // A clock that seems to go back changes nothing.
        assert!(quota.take(1, at(0.0)).is_err());
    }

    #[test]
    fn a_key_that_stays_keeps_what_it_has_used() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |rate: u32| {
            let text = format!(
                "[[keys]]\nname = \"a\"\nkey = \"0123456789abcdef\"\ntokens_per_second = {rate}\n"
            );
            std::fs::write(&file, text).unwrap();
        };
        write(1);
        let keys = Keys::read(file.path()).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, "Bearer 0123456789abcdef".parse().unwrap());
        let charge = || keys.find(&headers).unwrap().charge(1000);
        charge().unwrap();
        keys.reload().unwrap();
        assert!(charge().is_err());
        // Another rate is a new quota.
        write(2);
        keys.reload().unwrap();
        charge().unwrap();
        std::fs::write(&file, "keys = []").unwrap();
        assert!(keys.reload().is_err());
        assert!(charge().is_err(), "the keys did not stay as they were");
    }

    #[test]
    fn a_key_is_found_by_its_whole_text_only() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "[[keys]]\nname = \"a\"\nkey = \"0123456789abcdef\"\n\
                    [[keys]]\nname = \"b\"\nkey = \"fedcba9876543210\"\n";
        std::fs::write(&file, text).unwrap();
        let keys = Keys::read(file.path()).unwrap();
        let find = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            keys.find(&headers).map(|key| key.name.clone())
        };
        assert_eq!(find("Bearer 0123456789abcdef").as_deref(), Some("a"));
        assert_eq!(find("bearer fedcba9876543210").as_deref(), Some("b"));
        let basic = |text: &str| find(&format!("Basic {}", STANDARD.encode(text)));
        assert_eq!(basic("anyone:fedcba9876543210").as_deref(), Some("b"));
        for wrong in ["Bearer 0123456789abcde", "Bearer", "Bearer ", "0123456789abcdef", "Basic !"]
        {
            assert_eq!(find(wrong), None, "{wrong}");
        }
        assert_eq!(basic("fedcba9876543210"), None);
    }
}
