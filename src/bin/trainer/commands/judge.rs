//! `trainer judge`: its command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use inform::generate::GeneratorSettings;
use inform::judge::{
    AskPolicy, Compare, Endpoint, EndpointSettings, Judge, LocalJudge, OverOptimisation,
    ResponseFormat,
};

use crate::args::ComputeArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum JudgeCommand {
    /// Which answers are over-optimised, and whether a reward model's latents tell
    OverOptimisation {
        /// Answers, and labels where they are known: JSONL, JSONL.gz or Parquet
        #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
        answers: Vec<PathBuf>,
        #[command(flatten)]
        judge: JudgeArguments,
        /// Checkpoint whose rewards and latents are compared with the verdicts
        #[arg(long, value_name = "CHECKPOINT")]
        model: Option<PathBuf>,
        /// SFT answers that its latents are compared with, instead of its own baseline
        #[arg(long, value_name = "FILE", requires = "model")]
        baseline: Option<PathBuf>,
        #[command(flatten)]
        computing: ComputeArgs,
    },
    /// Whose answers are better: each pair of answers to the same prompt is judged in both orders
    Compare {
        /// Answers: JSONL, JSONL.gz or Parquet
        #[arg(long, value_name = "FILE")]
        answers: PathBuf,
        /// Answers that they are compared with
        #[arg(long, value_name = "FILE")]
        against: PathBuf,
        #[command(flatten)]
        judge: JudgeArguments,
    },
}

/// Who judges, and where verdicts go.
#[derive(Debug, Args)]
pub(crate) struct JudgeArguments {
    /// OpenAI-compatible server: its base URL up to and including /v1
    #[arg(long, value_name = "URL", requires = "judge_model", required_unless_present = "local")]
    endpoint: Option<String>,
    /// What the server calls the model that judges
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    judge_model: Option<String>,
    /// A language model on this machine, instead of a server: a folder, a GGUF file, or owner/name of a hub
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["endpoint", "judge_model"])]
    local: Option<PathBuf>,
    /// Quantise the weights of --local when they are loaded: q8_0, q6k, q5k, q4k, or another type of mistral.rs
    #[arg(long, value_name = "TYPE", requires = "local")]
    quantise: Option<String>,
    /// Run --local on the CPU even where this program can use a GPU
    #[arg(long, requires = "local")]
    cpu: bool,
    /// Environment variable with the API key; where it is not set, none is sent
    #[arg(long, value_name = "NAME", default_value = "OPENAI_API_KEY")]
    api_key_env: String,
    /// Questions under way at a time
    #[arg(long, default_value_t = 8)]
    concurrency: usize,
    /// Seconds for a whole answer
    #[arg(long, default_value_t = 60)]
    timeout_s: u64,
    /// Attempts for each question
    #[arg(long, default_value_t = 5)]
    attempts: u32,
    /// How the server is told of the answer's form
    #[arg(long, value_enum, default_value_t = Format::JsonSchema)]
    response_format: Format,
    /// Longest answer of the judge, in tokens
    #[arg(long, default_value_t = 512)]
    max_tokens: u32,
    /// Folder for the verdicts and the report; verdicts that are there are not asked for again
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Print JSON instead of Markdown
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    JsonSchema,
    JsonObject,
    None,
}

impl From<Format> for ResponseFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::JsonSchema => Self::JsonSchema,
            Format::JsonObject => Self::JsonObject,
            Format::None => Self::None,
        }
    }
}

impl JudgeArguments {
    fn judge(&self) -> anyhow::Result<Box<dyn Judge>> {
        let (Some(endpoint), Some(model)) = (&self.endpoint, &self.judge_model) else {
            let model = self.local.clone().context("--endpoint or --local: one is needed")?;
            let settings =
                GeneratorSettings { model, quantise: self.quantise.clone(), cpu: self.cpu };
            return Ok(Box::new(LocalJudge::load(&settings, self.max_tokens as usize)?));
        };
        let api_key = match std::env::var(&self.api_key_env) {
            Ok(key) => Some(key).filter(|key| !key.is_empty()),
            Err(std::env::VarError::NotPresent) => None,
            Err(error) => return Err(error).context(self.api_key_env.clone()),
        };
        Ok(Box::new(Endpoint::new(EndpointSettings {
            endpoint: endpoint.clone(),
            model: model.clone(),
            api_key,
            time_out: Duration::from_secs(self.timeout_s),
            response_format: self.response_format.into(),
            max_tokens: self.max_tokens,
        })?))
    }

    fn policy(&self) -> AskPolicy {
        AskPolicy { concurrency: self.concurrency, attempts: self.attempts }
    }
}

pub(crate) fn run(command: JudgeCommand) -> anyhow::Result<()> {
    match command {
        JudgeCommand::OverOptimisation { answers, judge, model, baseline, computing } => {
            let report = OverOptimisation {
                answers: &answers,
                judge: judge.judge()?.as_ref(),
                policy: judge.policy(),
                model: model.as_deref(),
                baseline: baseline.as_deref(),
                compute: computing.into(),
                output: judge.output.as_deref(),
            }
            .run()?;
            print(&report, &report.markdown(), judge.json)?;
            judge.output.map_or(Ok(()), |folder| report.write(&folder))
        }
        JudgeCommand::Compare { answers, against, judge } => {
            let report = Compare {
                answers: &answers,
                against: &against,
                judge: judge.judge()?.as_ref(),
                policy: judge.policy(),
                output: judge.output.as_deref(),
            }
            .run()?;
            print(&report, &report.markdown(), judge.json)?;
            judge.output.map_or(Ok(()), |folder| report.write(&folder))
        }
    }
}

fn print(report: &impl serde::Serialize, markdown: &str, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        print!("{markdown}");
    }
    Ok(())
}
