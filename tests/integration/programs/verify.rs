//! Rewards that a checkpoint is known to give, checked by command and at the start.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::support::golden::golden;
use crate::support::server::{Server, program};
use serde_json::{Value, json};

fn write(file: &Path, lines: &[Value]) {
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    fs::write(file, lines.join("\n")).unwrap();
}

/// Exit code, standard output and standard error of the command.
fn verify(model: &str, file: &Path, flags: &[&str]) -> (Option<i32>, String, String) {
    let mut command = program();
    command.args(["--model", model]).args(flags).arg("verify").arg("--against").arg(file);
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn rewards_of_the_server_itself_agree_in_every_form() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("rewards.jsonl");
    let server = Server::start(&[]);
    let inputs = [
        json!({"prompt": "Is it late?", "response": "Yes."}),
        json!({"prompt": [{"role": "user", "content": "Hello"}], "response": "Hi."}),
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
        json!({"text": "an answer of which nothing is known"}),
        json!({"input_ids": [5, 6, 7]}),
    ];
    let rewards = server.score(&inputs)["rewards"].clone();
    let lines: Vec<Value> = inputs
        .iter()
        .zip(rewards.as_array().unwrap())
        .map(|(input, reward)| {
            let mut line = input.clone();
            line["reward"] = reward.clone();
            line["tolerance"] = json!(0);
            line
        })
        .collect();
    write(&file, &lines);
    let (code, out, errors) = verify("configs/demo", &file, &[]);
    assert_eq!(code, Some(0), "{out}{errors}");
    assert!(out.contains("5 of 5 rewards agree"), "{out}");
}

#[test]
fn rewards_that_differ_are_listed() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("rewards.jsonl");
    let model = golden("tiny/linear");
    let model = model.to_str().unwrap();
    let server = Server::start(&["--model", model]);
    let reward =
        |text: &str| server.score(&[json!({"text": text})])["rewards"][0].as_f64().unwrap();
    let (first, second) = (reward("The answer is 12."), reward("The answer is here."));
    let lines = [
        json!({"text": "The answer is 12.", "reward": first}),
        json!({"text": "The answer is here.", "reward": second + 0.5}),
        json!({"text": "The answer is here.", "reward": second + 0.5, "tolerance": 0.6}),
        json!({"text": "word ".repeat(600), "reward": 0.0}),
    ];
    write(&file, &lines);
    let (code, out, errors) = verify(model, &file, &[]);
    assert_eq!(code, Some(1), "{out}{errors}");
    let row = out.lines().find(|line| line.contains("The answer is here.")).unwrap();
    for part in ["    2 ", "5.00e-1", "1.00e-3"] {
        assert!(row.contains(part), "{part}: {out}");
    }
    for part in ["    4 ", "not scored", "the limit is 512", "2 of 4 rewards agree"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    assert!(errors.contains("rewards.jsonl"), "{errors}");

    write(&file, &lines[..2]);
    assert_eq!(verify(model, &file, &["--set", "verify.tolerance=0.6"]).0, Some(0));
}

#[test]
fn a_server_whose_rewards_differ_does_not_start() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("rewards.jsonl");
    let setting = format!("verify.file={}", file.display());
    let server = Server::start(&[]);
    let reward = server.score(&[json!({"text": "known"})])["rewards"][0].as_f64().unwrap();

    write(&file, &[json!({"text": "known", "reward": reward})]);
    let started = Server::start(&["--set", &setting]);
    assert!(started.log().contains("1 of 1 rewards agree"), "{}", started.log());

    write(&file, &[json!({"text": "known", "reward": reward - 1.0})]);
    let mut command = program();
    command.args(["--port", "0", "--set", &setting]);
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    for part in ["verify.file", "not served", "known", "0 of 1 rewards agree"] {
        assert!(errors.contains(part), "{part}: {errors}");
    }
}

#[test]
fn bad_files_are_named_with_their_line() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("rewards.jsonl");
    let good = json!({"text": "known", "reward": 0.5}).to_string();
    for (line, parts) in [
        ("{", &["line 2"][..]),
        ("[1]", &["line 2"]),
        (r#"{"text": "a"}"#, &["line 2", "`reward` is missing"]),
        (r#"{"text": "a", "reward": "high"}"#, &["line 2", "`reward`", "high"]),
        (r#"{"text": "a", "reward": 1, "tolerance": -1}"#, &["line 2", "`tolerance`", "-1"]),
        (r#"{"text": "a", "rewrad": 1, "reward": 1}"#, &["line 2", "rewrad"]),
        (r#"{"reward": 1}"#, &["line 2", "`prompt` with `response`"]),
        (r#"{"text": "a", "input_ids": [1], "reward": 1}"#, &["line 2", "more than one form"]),
        (r#"{"input_ids": [-1], "reward": 1}"#, &["line 2", "-1"]),
    ] {
        fs::write(&file, format!("{good}\n{line}\n")).unwrap();
        let (code, _, errors) = verify("configs/demo", &file, &[]);
        assert_eq!(code, Some(1), "{errors}");
        for part in parts.iter().chain(&["rewards.jsonl"]) {
            assert!(errors.contains(part), "{part}: {errors}");
        }
    }
    fs::write(&file, "\n").unwrap();
    let (code, _, errors) = verify("configs/demo", &file, &[]);
    assert!(code == Some(1) && errors.contains("no reward to compare with"), "{errors}");
    let (code, _, errors) = verify("configs/demo", &scratch.path().join("nowhere"), &[]);
    assert!(code == Some(1) && errors.contains("nowhere"), "{errors}");
}

/// The policy by which texts become token ids, and what names it, is told.
#[test]
fn info_tells_the_text_policy() {
    let folder = golden("tiny/gated");
    let server = Server::start(&["--model", folder.to_str().unwrap()]);
    let text = &server.read("/info")["text"];
    assert_eq!(text["bos"], json!({"text": "<|bos|>", "id": 0}));
    assert_eq!(text["eos"], json!({"text": "<|end|>", "id": 1}));
    assert_eq!(text["bos_policy"], "added_where_missing");
    assert_eq!(text["eos_policy"], "appended_where_missing");
    assert_eq!(text["pooling"], "last_token");
    assert_eq!(text["template_date"], "2024-07-26");
    for (key, file) in [("tokenizer", "tokenizer.json"), ("template", "chat_template.jinja")] {
        let output =
            std::process::Command::new("sha256sum").arg(folder.join(file)).output().unwrap();
        let sum = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text[key], format!("sha256:{}", sum.split(' ').next().unwrap()), "{key}");
    }
    let other = Server::start(&["--model", golden("tiny/linear").to_str().unwrap()]);
    assert_eq!(other.read("/info")["text"]["bos_policy"], "as_written");
}
