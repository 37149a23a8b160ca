//! `trainer sample`, and the commands that let a model write first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::folders::{Scratch, set_config};
use serde_json::{Value, json};

fn trainer(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trainer")).args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn prompts(count: usize) -> Vec<Value> {
    let things = ["kettle", "piano", "tent", "bicycle", "map", "lamp", "coat"];
    let prompt = |n: usize| format!("How do I clean {n} old {}s?", things[n % things.len()]);
    (0..count).map(|n| json!({"prompt": prompt(n)})).collect()
}

fn write(file: &Path, rows: &[Value]) {
    fs::write(file, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
}

/// A small language model with random weights.
fn language_model(scratch: &Scratch) -> PathBuf {
    let folder = scratch.copy("tiny/linear", "policy");
    set_config(&folder, |keys| {
        keys.insert("architectures".to_owned(), json!(["LlamaForCausalLM"]));
        keys.insert("tie_word_embeddings".to_owned(), json!(true));
    });
    folder
}

#[test]
fn settings_and_prompts_that_are_wrong_are_named_before_the_model_is_loaded() {
    let scratch = Scratch::new();
    let (file, output) = (scratch.path("prompts.jsonl"), scratch.path("samples.jsonl"));
    let refused = |arguments: &[&str], rows: &[Value], expected: &str| {
        write(&file, rows);
        let mut all = vec!["sample", "--model", "nowhere", "--prompts", text(&file), "--output"];
        all.push(text(&output));
        all.extend(arguments);
        let run = trainer(&all);
        let error = String::from_utf8(run.stderr).unwrap();
        assert!(!run.status.success() && error.contains(expected), "{expected}: {error}");
    };
    let good = prompts(2);
    refused(&["--samples", "0"], &good, "--samples: must be at least 1");
    refused(&["--max-new-tokens", "0"], &good, "--max-new-tokens: must be at least 1");
    refused(&["--temperature=-1"], &good, "--temperature: must be 0 or more");
    refused(&["--temperature", "nan"], &good, "--temperature: must be 0 or more");
    refused(&["--top-p", "1.5"], &good, "--top-p: must be from 0 to 1");
    for (row, expected) in [
        (
            json!({"response": "a"}),
            "prompts.jsonl, line 2: needs `prompt`, `instruction` or `messages`",
        ),
        (json!({"prompt": 3}), "prompts.jsonl, line 2: `prompt`"),
        (json!({"prompt": "  "}), "prompts.jsonl, line 2: the prompt is empty"),
        (json!({"messages": []}), "prompts.jsonl, line 2: `messages`: is empty"),
        (
            json!({"messages": [{"role": "assistant", "content": "a"}]}),
            "prompts.jsonl, line 2: ends with the assistant's turn",
        ),
        (json!([1]), "prompts.jsonl, line 2: expected an object"),
    ] {
        refused(&[], &[good[0].clone(), row], expected);
    }
    refused(&[], &[], "no prompt in");
    fs::write(&output, "").unwrap();
    refused(&[], &good, "samples.jsonl: is there already");
}

#[cfg(not(feature = "mistralrs"))]
#[test]
fn a_program_without_the_feature_says_how_to_build_one_with_it() {
    let scratch = Scratch::new();
    let (file, output) = (scratch.path("prompts.jsonl"), scratch.path("samples.jsonl"));
    write(&file, &prompts(1));
    let model = language_model(&scratch);
    let run = trainer(&[
        "sample",
        "--model",
        text(&model),
        "--prompts",
        text(&file),
        "--output",
        text(&output),
    ]);
    let error = String::from_utf8(run.stderr).unwrap();
    assert!(!run.status.success() && error.contains("--features mistralrs"), "{error}");
}

#[cfg(feature = "mistralrs")]
mod with_mistralrs {
    use std::collections::BTreeMap;
    use std::process::Stdio;
    use std::thread;
    use std::time::{Duration, Instant};

    use inform::checkpoint::Message;
    use inform::generate::{Finish, Generator, GeneratorSettings, Sampling};

    use super::*;

    /// Prompts and samples of the longer checks.
    const PROMPTS: usize = 16;
    const SAMPLES: usize = 4;

    struct Sampler<'a> {
        scratch: &'a Scratch,
        model: PathBuf,
        new_tokens: usize,
        temperature: &'static str,
    }

    /// Of a model with random weights, which is sure of each token.
    const HOT: &str = "6";

    impl Sampler<'_> {
        fn command(&self, rows: &[Value], output: &Path, more: &[&str]) -> Command {
            let file = self.scratch.path("prompts.jsonl");
            write(&file, rows);
            let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
            command
                .args(["sample", "--model", text(&self.model), "--prompts", text(&file)])
                .args(["--output", text(output), "--max-new-tokens", &self.new_tokens.to_string()])
                .args(["--temperature", self.temperature])
                .args(more);
            command
        }

        fn sample(&self, rows: &[Value], name: &str, more: &[&str]) -> (Vec<Value>, Value) {
            let output = self.scratch.path(name);
            let run = self.command(rows, &output, more).output().unwrap();
            assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
            (lines(&output), serde_json::from_slice(&run.stdout).unwrap())
        }
    }

    fn lines(file: &Path) -> Vec<Value> {
        let text = fs::read_to_string(file).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Responses by prompt and sample.
    fn responses(rows: &[Value]) -> BTreeMap<(String, u64), String> {
        let one = |row: &Value| {
            let prompt = row["prompt"][0]["content"].as_str().unwrap().to_owned();
            let response = row["response"].as_str().unwrap().to_owned();
            ((prompt, row["sample"].as_u64().unwrap()), response)
        };
        rows.iter().map(one).collect()
    }

    fn same_text_by_seed(sampler: &Sampler<'_>) {
        let samples = SAMPLES.to_string();
        let more = ["--samples", samples.as_str(), "--seed", "5"];
        let rows = prompts(PROMPTS);
        let (found, report) = sampler.sample(&rows, "samples.jsonl", &more);
        let all = responses(&found);
        assert_eq!(all.len(), PROMPTS * SAMPLES);
        let place = |row: &Value| (row["prompt"][0]["content"].clone(), row["sample"].clone());
        let order: Vec<_> = found.iter().map(place).collect();
        let asked = rows.iter().map(|row| row["prompt"].clone());
        let expected =
            asked.flat_map(|prompt| (0..SAMPLES).map(move |n| (prompt.clone(), json!(n))));
        assert_eq!(order, expected.collect::<Vec<_>>());
        assert_eq!(report["written"], PROMPTS * SAMPLES);
        let tokens: u64 = found.iter().map(|row| row["tokens"].as_u64().unwrap()).sum();
        assert_eq!(report["tokens"], tokens);
        let different: std::collections::BTreeSet<&String> = all.values().collect();
        assert!(different.len() > PROMPTS * SAMPLES / 2, "{} different", different.len());

        // In another order, with fewer samples and fewer prompts, the same; a repeated prompt once.
        let mut others: Vec<Value> = rows[4..10].iter().rev().cloned().collect();
        others.push(others[0].clone());
        let (found, _) =
            sampler.sample(&others, "others.jsonl", &["--samples", "2", "--seed", "5"]);
        assert_eq!(found.len(), 12);
        for (key, response) in responses(&found) {
            assert_eq!(all[&key], response, "{key:?}");
        }
        let (found, _) = sampler.sample(&rows[..1], "seed.jsonl", &["--seed", "6"]);
        assert_ne!(responses(&found).values().next(), all.values().next());

        // Killed and started again until it is there: the same file.
        let output = sampler.scratch.path("killed.jsonl");
        let progress = sampler.scratch.path("killed.jsonl.progress");
        let mut kills = 0;
        for target in [3, 11, 12, 40] {
            let mut command = sampler.command(&rows, &output, &more);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let begun = Instant::now();
            let drawn = || fs::read_to_string(&progress).map_or(0, |text| text.lines().count());
            while drawn() < target && child.try_wait().unwrap().is_none() {
                assert!(begun.elapsed() < Duration::from_secs(600));
                thread::sleep(Duration::from_millis(1));
            }
            kills += usize::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
            if kills == 2 {
                // As if the last line had not been written to its end.
                let text = fs::read(&progress).unwrap();
                fs::write(&progress, &text[..text.len() - 3]).unwrap();
            }
        }
        assert!(kills >= 2, "{kills}");
        let run = sampler.command(&rows, &output, &more).output().unwrap();
        let report: Value = serde_json::from_slice(&run.stdout).unwrap();
        assert!(report["resumed"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(
            fs::read_to_string(&output).unwrap(),
            fs::read_to_string(sampler.scratch.path("samples.jsonl")).unwrap()
        );
        assert!(!progress.exists());
    }

    #[test]
    fn a_sample_follows_from_seed_prompt_and_number() {
        let scratch = Scratch::new();
        let model = language_model(&scratch);
        same_text_by_seed(&Sampler { scratch: &scratch, model, new_tokens: 64, temperature: HOT });
    }

    fn smollm2() -> Option<PathBuf> {
        let folder = std::env::var_os("SMOLLM2_FOLDER").map(PathBuf::from);
        if folder.is_none() {
            println!("skipped: SMOLLM2_FOLDER names no folder");
        }
        folder
    }

    /// Some six minutes: 4,096 tokens, three times.
    #[test]
    #[ignore = "takes minutes"]
    fn a_sample_of_smollm2_follows_from_seed_prompt_and_number() {
        let Some(model) = smollm2() else { return };
        let scratch = Scratch::new();
        same_text_by_seed(&Sampler {
            scratch: &scratch,
            model,
            new_tokens: 64,
            temperature: "0.8",
        });
    }

    #[test]
    fn smollm2_writes_greedily_what_it_writes_in_transformers() {
        let Some(model) = smollm2() else { return };
        let golden: Value = serde_json::from_slice(
            &fs::read(crate::support::golden::golden("greedy.json")).unwrap(),
        )
        .unwrap();
        let rows = golden["rows"].as_array().unwrap();
        let new_tokens = golden["new_tokens"].as_u64().unwrap() as usize;
        let scratch = Scratch::new();
        let sampler = Sampler { scratch: &scratch, model, new_tokens, temperature: "0" };
        let (found, _) = sampler.sample(rows, "greedy.jsonl", &[]);
        let same =
            found.iter().zip(rows).filter(|(found, row)| found["response"] == row["response"]);
        assert!(same.count() >= 9, "{found:#?}");
    }

    /// Decoded at once on the CPU, each would get the last one's attention.
    fn together_as_alone(model: PathBuf, new_tokens: usize) {
        let settings = GeneratorSettings { model, quantise: None, cpu: true };
        let generator = Generator::load(&settings).unwrap();
        let sampling =
            Sampling { temperature: 0.0, max_new_tokens: new_tokens, ..Sampling::default() };
        let prompts: Vec<Vec<u32>> =
            ["What is rain?", "Count to 9", "Sing", "Why?", "A boat and a tree"]
                .iter()
                .map(|prompt| generator.encode(&[Message::new("user", *prompt)]).unwrap())
                .collect();
        let generate = |prompt: &Vec<u32>| generator.generate(prompt, &sampling, 0, None).unwrap();
        let alone: Vec<_> = prompts.iter().map(generate).collect();
        let together: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> =
                prompts.iter().map(|prompt| scope.spawn(move || generate(prompt))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(alone, together);
        assert!(alone.iter().any(|text| text.tokens != alone[0].tokens));
        assert!(
            alone.iter().all(|text| {
                (text.finish == Finish::Length) == (text.tokens.len() == new_tokens)
            })
        );
    }

    #[test]
    fn prompts_that_are_submitted_together_get_the_answers_that_they_get_alone() {
        let scratch = Scratch::new();
        together_as_alone(language_model(&scratch), 32);
    }

    #[test]
    fn prompts_that_are_submitted_to_smollm2_together_get_the_answers_that_they_get_alone() {
        let Some(model) = smollm2() else { return };
        together_as_alone(model, 24);
    }

    #[test]
    fn what_was_begun_with_other_settings_is_not_gone_on_with() {
        let scratch = Scratch::new();
        let sampler = Sampler {
            scratch: &scratch,
            model: language_model(&scratch),
            new_tokens: 4,
            temperature: HOT,
        };
        let rows = prompts(2);
        let output = scratch.path("samples.jsonl");
        let progress = scratch.path("samples.jsonl.progress");
        let (found, _) = sampler.sample(&rows, "samples.jsonl", &[]);
        let record = fs::read_to_string(scratch.path("samples.jsonl.json")).unwrap();
        let record: Value = serde_json::from_str(&record).unwrap();
        assert_eq!(record["temperature"], 6.0);
        assert_eq!(record["top_p"], 0.9);
        assert_eq!(record["max_new_tokens"], 4);
        let begin = |output: &Path| {
            fs::remove_file(output).unwrap();
            let line = json!({"prompt_number": 0, "sample": 0, "response": "kept", "tokens": 1, "finish": "stop"});
            fs::write(&progress, format!("{record}\n{line}\n")).unwrap();
        };
        begin(&output);
        let refused = |rows: &[Value], more: &[&str], expected: &str| {
            let run = sampler.command(rows, &output, more).output().unwrap();
            let error = String::from_utf8(run.stderr).unwrap();
            assert!(!run.status.success() && error.contains(expected), "{error}");
        };
        refused(&rows, &["--seed", "1"], "begun with another model, other prompts or settings");
        refused(&prompts(3), &[], "begun with another model, other prompts or settings");
        let run = sampler.command(&rows, &output, &[]).output().unwrap();
        assert!(run.status.success());
        let resumed = lines(&output);
        assert_eq!(resumed[0]["response"], "kept");
        assert_eq!(resumed[1], found[1]);
        begin(&output);
        fs::write(&progress, "{}\n").unwrap();
        refused(&rows, &[], "damaged; delete it to begin anew");
    }

    #[test]
    fn a_prompt_that_leaves_no_room_is_named() {
        let scratch = Scratch::new();
        let sampler = Sampler {
            scratch: &scratch,
            model: language_model(&scratch),
            new_tokens: 4,
            temperature: HOT,
        };
        let rows = [prompts(1)[0].clone(), json!({"prompt": "a".repeat(5000)})];
        let run = sampler.command(&rows, &scratch.path("samples.jsonl"), &[]).output().unwrap();
        let error = String::from_utf8(run.stderr).unwrap();
        assert!(!run.status.success() && error.contains("prompts.jsonl, line 2: "), "{error}");
    }

    #[test]
    fn weights_are_quantised_where_that_is_asked_for() {
        let scratch = Scratch::new();
        let sampler = Sampler {
            scratch: &scratch,
            model: language_model(&scratch),
            new_tokens: 32,
            temperature: HOT,
        };
        let (plain, _) = sampler.sample(&prompts(4), "plain.jsonl", &[]);
        let (quantised, report) =
            sampler.sample(&prompts(4), "quantised.jsonl", &["--quantise", "q4_0"]);
        assert_eq!(report["quantise"], "q4_0");
        assert_ne!(responses(&plain), responses(&quantised));
        let output = scratch.path("unknown.jsonl");
        let run = sampler.command(&prompts(1), &output, &["--quantise", "q99"]).output().unwrap();
        let error = String::from_utf8(run.stderr).unwrap();
        assert!(!run.status.success() && error.contains("--quantise: "), "{error}");
    }

    #[test]
    fn a_baseline_and_the_best_of_n_are_made_of_fresh_samples() {
        let scratch = Scratch::new();
        let policy = language_model(&scratch);
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/demo");
        let model = scratch.path("model");
        fs::create_dir(&model).unwrap();
        for file in fs::read_dir(&demo).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), model.join(file.file_name())).unwrap();
        }
        let (asked, answers) = (scratch.path("prompts.jsonl"), scratch.path("answers.jsonl"));
        write(&asked, &prompts(150));
        let from =
            ["--sample-from", text(&policy), "--prompts", text(&asked), "--max-new-tokens", "6"];
        let run = |command: &[&str]| {
            let run = trainer(&[command, &from].concat());
            assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
            run
        };
        let made = run(&[
            "baseline",
            "--model",
            text(&model),
            "--data",
            text(&answers),
            "--drop-bad-lines",
        ]);
        let made: Value = serde_json::from_slice(&made.stdout).unwrap();
        let samples = made["samples"].as_u64().unwrap();
        assert!((20..=150).contains(&samples), "{samples}");
        assert_eq!(lines(&answers).len(), 150);

        let file = scratch.path("samples.jsonl");
        let best = |more: &[&str]| {
            let command = [
                "best-of-n",
                "--samples",
                text(&file),
                "--proxy",
                text(&model),
                "--gold",
                text(&demo),
                "--n",
                "1",
                "4",
                "--json",
            ];
            [&command, more].concat().iter().map(|part| (*part).to_owned()).collect::<Vec<_>>()
        };
        let command = best(&from);
        let drawn = trainer(&command.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
        assert_eq!(lines(&file).len(), 600);
        // From the file that is there now, the same.
        let command = best(&[]);
        let again = trainer(&command.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(drawn.stdout, again.stdout);
        let report: Value = serde_json::from_slice(&drawn.stdout).unwrap();
        assert_eq!(report["proxies"][0]["baseline_samples"], samples);
        assert!(report["proxies"][0]["rows"][1]["statistics"]["energy"].is_number());
    }
}
