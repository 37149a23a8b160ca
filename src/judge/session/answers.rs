//! Answers to judge, from files, with the labels that they have.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::place::AnswerPlace;
use crate::train::{BadLines, Origin, RESPONSE_COLUMNS, Response, read_rows, responses};

/// The column with a label.
const LABEL: &str = "over_optimised";

/// An answer, and whether the data says that it is over-optimised.
pub(in crate::judge) struct LabelledAnswer {
    pub(in crate::judge) response: Response,
    pub(in crate::judge) label: Option<bool>,
}

impl LabelledAnswer {
    pub(in crate::judge) fn place(&self) -> AnswerPlace {
        let Response { origin, number, .. } = &self.response;
        AnswerPlace { origin: origin.clone(), response: *number, order: None }
    }

    /// The answer itself, which the conversation ends with.
    pub(in crate::judge) fn text(&self) -> &str {
        self.response.messages().last().map_or("", |last| &last.content)
    }
}

/// The answers of files, in their order.
///
/// # Errors
/// A file or line that cannot be read, or no answer: names the file and the line.
pub(in crate::judge) fn read_answers(files: &[PathBuf]) -> anyhow::Result<Vec<LabelledAnswer>> {
    let columns = [&RESPONSE_COLUMNS[..], &[LABEL]].concat();
    let (lines, _) = read_rows(files, &columns, BadLines::Refuse, line)?;
    let answers: Vec<LabelledAnswer> = lines.into_iter().flatten().collect();
    ensure!(!answers.is_empty(), "no answer in {files:?}");
    Ok(answers)
}

fn line(row: &Value, origin: &Origin) -> anyhow::Result<Vec<LabelledAnswer>> {
    let responses = responses(row, origin)?;
    let labels = labels(&row[LABEL], responses.len(), row["responses"].is_array())
        .with_context(|| format!("`{LABEL}`"))?;
    let each = responses.into_iter().zip(labels);
    Ok(each.map(|(response, label)| LabelledAnswer { response, label }).collect())
}

/// A label for each of `count` responses: `true`, `false` or null, in a list where the responses are one.
fn labels(value: &Value, count: usize, is_list: bool) -> anyhow::Result<Vec<Option<bool>>> {
    let one = |value: &Value| match value {
        Value::Null => Ok(None),
        Value::Bool(label) => Ok(Some(*label)),
        _ => anyhow::bail!("expected true, false or null"),
    };
    match value {
        Value::Null => Ok(vec![None; count]),
        Value::Array(list) if is_list => {
            ensure!(list.len() == count, "{} labels for {count} `responses`", list.len());
            list.iter().map(one).collect()
        }
        _ if is_list => anyhow::bail!("expected a list, as `responses` is one"),
        value => Ok(vec![one(value)?]),
    }
}
