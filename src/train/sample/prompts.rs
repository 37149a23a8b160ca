//! The prompts that are answered, from files.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::checkpoint::Message;
use crate::train::data::{
    BadLines, LeftOut, Origin, PROMPT_COLUMNS, PROMPT_FORMS, Reason, prompt, read_rows,
};

/// A prompt to answer.
#[derive(Debug, Clone)]
pub(super) struct SamplePrompt {
    pub(super) messages: Vec<Message>,
    pub(super) origin: Origin,
}

/// The prompts, each once, and the lines that repeat an earlier one.
///
/// # Errors
/// A file that cannot be read, a line that is no prompt: names the file and the line. No prompt at all.
pub(super) fn read_prompts(files: &[PathBuf]) -> anyhow::Result<(Vec<SamplePrompt>, Vec<LeftOut>)> {
    let (lines, _) = read_rows(files, &PROMPT_COLUMNS, BadLines::Refuse, read_prompt)?;
    ensure!(!lines.is_empty(), "no prompt in {files:?}");
    let mut first: HashMap<Vec<(String, String)>, Origin> = HashMap::new();
    let (mut prompts, mut left_out) = (Vec::new(), Vec::new());
    for prompt in lines {
        let turn = |message: &Message| (message.role.clone(), message.content.clone());
        let key: Vec<_> = prompt.messages.iter().map(turn).collect();
        if let Some(earlier) = first.get(&key) {
            // It would get the same samples again.
            let detail = format!("the same prompt as {earlier}");
            left_out.push(LeftOut { origin: prompt.origin, reason: Reason::Duplicate, detail });
        } else {
            first.insert(key, prompt.origin.clone());
            prompts.push(prompt);
        }
    }
    Ok((prompts, left_out))
}

fn read_prompt(row: &Value, origin: &Origin) -> anyhow::Result<SamplePrompt> {
    ensure!(row.is_object(), "expected an object with {PROMPT_FORMS}");
    let messages = prompt(row)?.with_context(|| format!("needs {PROMPT_FORMS}"))?;
    let last = messages.last().context("`messages`: is empty")?;
    ensure!(last.role != "assistant", "ends with the assistant's turn: there is nothing to answer");
    ensure!(
        messages.iter().any(|message| !message.content.trim().is_empty()),
        "the prompt is empty"
    );
    Ok(SamplePrompt { messages, origin: origin.clone() })
}
