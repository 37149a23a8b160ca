//! `trainer judge --local`: a judge in mistral.rs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::folders::{Scratch, set_config};
use serde_json::{Value, json};

/// A small language model with random weights, and room for the guidelines.
fn language_model(scratch: &Scratch) -> PathBuf {
    let folder = scratch.copy("tiny/linear", "judge");
    set_config(&folder, |keys| {
        keys.insert("architectures".to_owned(), json!(["LlamaForCausalLM"]));
        keys.insert("tie_word_embeddings".to_owned(), json!(true));
        keys.insert("max_position_embeddings".to_owned(), json!(8192));
    });
    folder
}

fn judge(command: &str, model: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trainer"))
        .args(["judge", command, "--local", model.to_str().unwrap(), "--json"])
        .args(more)
        .output()
        .unwrap()
}

fn write(file: &Path, rows: &[Value]) {
    fs::write(file, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
}

fn answers(responses: &[&str]) -> Vec<Value> {
    let row = |(n, response): (usize, &&str)| json!({"prompt": format!("Question {n}?"), "response": response});
    responses.iter().enumerate().map(row).collect()
}

/// A judge with random weights never ends the reason, whose letters the grammar leaves to it.
#[test]
fn an_answer_without_an_end_is_counted_and_named() {
    let scratch = Scratch::new();
    let model = language_model(&scratch);
    let file = scratch.path("answers.jsonl");
    write(&file, &answers(&["One.", "Two."]));
    let output = scratch.path("output");
    let more = [
        "--answers",
        file.to_str().unwrap(),
        "--max-tokens",
        "8",
        "--attempts",
        "2",
        "--output",
        output.to_str().unwrap(),
    ];
    let run = judge("over-optimisation", &model, &more);
    let error = String::from_utf8(run.stderr).unwrap();
    assert!(!run.status.success(), "{error}");
    assert!(error.contains("answers.jsonl, line 2: length: cut off after 8 tokens"), "{error}");
    let kept = fs::read_to_string(output.join("verdicts.jsonl")).unwrap();
    let kept: Vec<Value> = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(kept.len(), 2);
    for record in kept {
        assert_eq!(record["attempts"], 2);
        assert_eq!(record["unjudged"]["reason"], "length");
        let name = record["judge"].as_str().unwrap();
        assert!(name.starts_with("judge (sha256:"), "{name}");
    }
}

#[test]
fn a_question_beyond_the_context_is_named() {
    let scratch = Scratch::new();
    let model = language_model(&scratch);
    set_config(&model, |keys| {
        keys.insert("max_position_embeddings".to_owned(), json!(64));
    });
    let file = scratch.path("answers.jsonl");
    write(&file, &answers(&["One."]));
    let run = judge("over-optimisation", &model, &["--answers", file.to_str().unwrap()]);
    let error = String::from_utf8(run.stderr).unwrap();
    assert!(!run.status.success() && error.contains("answers.jsonl, line 1: too_long"), "{error}");
}

/// What it thinks is of no account: it has 135M parameters.
#[test]
#[ignore = "takes a minute"]
fn smollm2_answers_in_the_form_that_is_asked_for() {
    let Some(model) = std::env::var_os("SMOLLM2_FOLDER").map(PathBuf::from) else {
        println!("skipped: SMOLLM2_FOLDER names no folder");
        return;
    };
    let scratch = Scratch::new();
    let (file, against) = (scratch.path("answers.jsonl"), scratch.path("against.jsonl"));
    write(&file, &answers(&["It is blue."]));
    write(&against, &answers(&["no no no no no no no no no no no no"]));
    let (file, against) = (file.to_str().unwrap(), against.to_str().unwrap());
    let verdicts = |command: &str, more: &[&str]| -> Vec<Value> {
        let output = scratch.path(command);
        let common = ["--answers", file, "--max-tokens", "160", "--attempts", "2", "--output"];
        judge(command, &model, &[&common[..], &[output.to_str().unwrap()], more].concat());
        let kept = fs::read_to_string(output.join("verdicts.jsonl")).unwrap();
        kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let found = verdicts("over-optimisation", &[]);
    assert_eq!(found.len(), 1);
    // The form does not keep it from contradicting itself.
    let contradicts = found[0]["unjudged"]["reason"] == "inconsistent";
    assert!(found[0]["verdict"]["over_optimised"].is_boolean() || contradicts, "{found:?}");
    let found = verdicts("compare", &["--against", against]);
    assert_eq!(found.len(), 2);
    for record in found {
        let preferred = record["verdict"]["preferred"].as_str();
        let is_one = preferred.is_some_and(|p| ["first", "second", "tie"].contains(&p));
        assert!(is_one, "{record}");
    }
}
