//! Whether a checkpoint gives the rewards that it is known to give: a file of inputs with their rewards, made where
//! the checkpoint was made, is scored before anything is served.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::{Map, Value};

use crate::checkpoint::{Input, TextEncoder};
use crate::config::{ServerConfig, VerifyConfig};
use crate::input::lone_input;
use crate::lines::lines;
use crate::model::Scorer;
use crate::model_loader::ServedModel;
use crate::placement::Devices;

/// A line of the file.
struct Expectation {
    line: usize,
    input: Input,
    reward: f64,
    tolerance: f64,
}

/// A reward that is not what it should be.
#[derive(Debug)]
struct Difference {
    line: usize,
    input: Input,
    expected: f64,
    tolerance: f64,
    found: Result<f64, String>,
}

/// What became of a file's rewards. Its text is a table of those that differ, and how many there are.
#[derive(Debug)]
pub struct Verified {
    file: PathBuf,
    checked: usize,
    differences: Vec<Difference>,
    /// Largest difference of those that were scored.
    largest: f64,
}

impl Verified {
    /// Loads the model that the settings name, and compares its rewards with those of `file`.
    ///
    /// # Errors
    /// A checkpoint that cannot be loaded, or a file or line that cannot be read.
    pub fn run(config: &ServerConfig, file: &Path) -> anyhow::Result<Self> {
        let expectations = read(file, config.verify.tolerance)?;
        let served = ServedModel::open(config)?;
        let devices = Devices::load(config, &served)?;
        let scorer = devices.scorers.first().context("device: none")?;
        let budget = config.engine.token_budget;
        compare(file, expectations, &served.checkpoint.encoder, scorer.as_ref(), budget)
    }

    /// Compares the rewards of a loaded model with those of the file that the settings name, if they name one.
    ///
    /// # Errors
    /// A file or line that cannot be read, and rewards that differ.
    pub fn at_start(
        config: &ServerConfig,
        encoder: &TextEncoder,
        scorer: &dyn Scorer,
    ) -> anyhow::Result<()> {
        let VerifyConfig { file, tolerance } = &config.verify;
        if file.as_os_str().is_empty() {
            return Ok(());
        }
        let budget = config.engine.token_budget;
        let verified = read(file, *tolerance)
            .and_then(|expectations| compare(file, expectations, encoder, scorer, budget))
            .context("verify.file")?;
        ensure!(verified.passed(), "verify.file: this checkpoint is not served\n{verified}");
        tracing::info!("{verified}");
        Ok(())
    }

    /// Whether every reward is as the file has it.
    pub fn passed(&self) -> bool {
        self.differences.is_empty()
    }
}

fn read(file: &Path, tolerance: f64) -> anyhow::Result<Vec<Expectation>> {
    let name = file.display();
    let mut expectations = Vec::new();
    for (number, text) in lines(file)?.enumerate() {
        let line = number + 1;
        let at = || format!("{name}, line {line}");
        let text = text.with_context(at)?;
        if !text.trim().is_empty() {
            expectations.push(expectation(line, &text, tolerance).with_context(at)?);
        }
    }
    ensure!(!expectations.is_empty(), "{name}: no reward to compare with");
    Ok(expectations)
}

fn expectation(line: usize, text: &str, tolerance: f64) -> anyhow::Result<Expectation> {
    let mut fields: Map<String, Value> = serde_json::from_str(text)?;
    let mut number = |key: &str| match fields.remove(key) {
        None => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => anyhow::bail!("`{key}`: found {value}, expected a number"),
        },
    };
    // Rewards are 32-bit floats, and are printed as the decimals that read back as such.
    let reward = f64::from(number("reward")?.context("`reward` is missing")? as f32);
    let tolerance = number("tolerance")?.unwrap_or(tolerance);
    ensure!(tolerance >= 0.0, "`tolerance`: must not be negative, found {tolerance}");
    let input = lone_input(Value::Object(fields)).map_err(anyhow::Error::msg)?;
    Ok(Expectation { line, input, reward, tolerance })
}

fn compare(
    file: &Path,
    expectations: Vec<Expectation>,
    encoder: &TextEncoder,
    scorer: &dyn Scorer,
    token_budget: usize,
) -> anyhow::Result<Verified> {
    let checked = expectations.len();
    let encoded: Vec<Result<Vec<u32>, String>> = expectations
        .iter()
        .map(|expectation| match encoder.encode(&expectation.input, false) {
            Ok(encoding) => Ok(encoding.ids),
            Err(error) => Err(error.to_string()),
        })
        .collect();
    let sequences: Vec<&[u32]> = encoded.iter().flatten().map(Vec::as_slice).collect();
    let mut rewards = Vec::with_capacity(sequences.len());
    let mut rest = sequences.as_slice();
    while !rest.is_empty() {
        let mut tokens = 0;
        let fitting = rest.iter().take_while(|sequence| {
            tokens += sequence.len();
            tokens <= token_budget
        });
        let (batch, later) = rest.split_at(fitting.count().max(1));
        rewards.extend(scorer.score(batch)?.into_iter().map(|score| f64::from(score.reward)));
        rest = later;
    }
    let mut rewards = rewards.into_iter();
    let mut verified =
        Verified { file: file.to_owned(), checked, differences: Vec::new(), largest: 0.0 };
    for (expectation, encoded) in expectations.into_iter().zip(encoded) {
        let Expectation { line, input, reward: expected, tolerance } = expectation;
        let found = encoded.and_then(|_| rewards.next().ok_or_else(|| "no reward".to_owned()));
        let agrees = found.as_ref().is_ok_and(|found| (found - expected).abs() <= tolerance);
        if let Ok(found) = found {
            verified.largest = verified.largest.max((found - expected).abs());
        }
        if !agrees {
            verified.differences.push(Difference { line, input, expected, tolerance, found });
        }
    }
    Ok(verified)
}

/// Characters of an input in the table.
const SHOWN: usize = 40;

/// The end of an input, where it differs from others.
fn shown(input: &Input) -> String {
    let text = match input {
        Input::Messages(messages) => {
            messages.last().map(|message| message.content.clone()).unwrap_or_default()
        }
        Input::Text(text) | Input::ExactText(text) => text.clone(),
        Input::Tokens(ids) => format!("{} token ids", ids.len()),
    };
    let skipped = text.chars().count().saturating_sub(SHOWN);
    let end: String = text.chars().skip(skipped).collect();
    format!("{}{:?}", if skipped > 0 { ".." } else { "" }, end)
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, checked, differences, largest } = self;
        if !differences.is_empty() {
            writeln!(f, " line   expected      found  difference  tolerance  input")?;
        }
        for Difference { line, input, expected, tolerance, found } in differences {
            match found {
                Ok(found) => writeln!(
                    f,
                    "{line:5} {expected:10.6} {found:10.6} {:11.2e} {tolerance:10.2e}  {}",
                    (found - expected).abs(),
                    shown(input)
                )?,
                Err(error) => writeln!(f, "{line:5} {expected:10.6} not scored: {error}")?,
            }
        }
        let agreeing = checked - differences.len();
        write!(
            f,
            "{}: {agreeing} of {checked} rewards agree, the largest difference is {largest:.2e}",
            file.display()
        )
    }
}
