//! The samples of each prompt, from files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::ensure;

use crate::monitor::prompt_fingerprint;
use crate::train::data::{BadLines, RESPONSE_COLUMNS, Response, read_rows, responses};

/// Characters of a prompt in a message.
const SHOWN: usize = 60;

/// The responses to each prompt, in the order in which they stand; the prompts in an order that does not depend on theirs.
///
/// # Errors
/// A file or line that cannot be read, and a prompt with fewer than `least` responses: names the file and the line.
pub(super) fn read_samples(files: &[PathBuf], least: usize) -> anyhow::Result<Vec<Vec<Response>>> {
    let (lines, _) = read_rows(files, &RESPONSE_COLUMNS, BadLines::Refuse, responses)?;
    let mut prompts: BTreeMap<u64, Vec<Response>> = BTreeMap::new();
    for response in lines.into_iter().flatten() {
        prompts.entry(prompt_fingerprint(response.prompt())).or_default().push(response);
    }
    ensure!(!prompts.is_empty(), "--samples: no sample in {files:?}");
    if let Some(responses) = prompts.values().find(|responses| responses.len() < least) {
        let prompt = responses[0].prompt().last().map_or("", |message| message.content.as_str());
        let shown: String = prompt.chars().take(SHOWN).collect();
        let more = if shown.len() < prompt.len() { ".." } else { "" };
        anyhow::bail!(
            "{}: the prompt {shown:?}{more} has {} responses, and --n asks for the best of {least}: give more responses, or \
             a lesser --n",
            responses[0].origin,
            responses.len()
        );
    }
    Ok(prompts.into_values().collect())
}
