//! `trainer best-of-n` from files of samples.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::folders::{Scratch, set_config};
use crate::support::golden::golden;
use inform::checkpoint::{Checkpoint, Input, Message};
use inform::model::{RewardModel, Scorer};
use inform::ops::cpu::{CpuOps, Precision};
use inform::train::{best_of_n_kl, expected_best};
use serde_json::{Value, json};

const PROMPTS: usize = 40;
const RESPONSES: usize = 5;
const N: [usize; 3] = [1, 2, 5];

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/demo")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn prompt(number: usize) -> String {
    let things = ["kettle", "piano", "tent", "bicycle", "map"];
    format!("How do I clean {number} old {}s?", things[number % 5])
}

fn response(prompt: usize, number: usize) -> String {
    let rest = " Then dry it.".repeat((prompt * 3 + number * 2) % 4);
    ["Use soap.", "I cannot help.", "Ask somebody else.", "With vinegar, slowly.", "Why?"][number]
        .to_owned()
        + &rest
}

/// A line a response.
fn rows() -> Vec<Value> {
    let row = |at: usize| {
        let (prompt_number, number) = (at / RESPONSES, at % RESPONSES);
        json!({"prompt": prompt(prompt_number), "response": response(prompt_number, number)})
    };
    (0..PROMPTS * RESPONSES).map(row).collect()
}

fn write(file: &Path, rows: &[Value]) {
    fs::write(file, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
}

fn trainer(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trainer")).args(arguments).output().unwrap()
}

fn best_of_n(samples: &Path, proxies: &[&Path], gold: &Path, more: &[&str]) -> Output {
    let proxies: Vec<&str> = proxies.iter().map(|proxy| text(proxy)).collect();
    let given = ["best-of-n", "--samples", text(samples), "--gold", text(gold), "--proxy"];
    trainer(&[&given[..], &proxies, more].concat())
}

fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn with_n<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["--n", "1", "2", "5"][..], more].concat()
}

fn assert_refused(output: &Output, parts: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    for part in parts {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
}

/// The mean over all subsets of `n` of what `value` says of the one chosen, by going through them.
fn enumerated(proxy: &[f64], values: &[f64], n: usize) -> f64 {
    let (mut sum, mut subsets) = (0.0, 0);
    for mask in 0..1u32 << proxy.len() {
        if mask.count_ones() as usize != n {
            continue;
        }
        let members: Vec<usize> = (0..proxy.len()).filter(|at| mask & (1 << at) != 0).collect();
        let most = members.iter().map(|&at| proxy[at]).fold(f64::NEG_INFINITY, f64::max);
        let best: Vec<f64> =
            members.iter().filter(|&&at| proxy[at] == most).map(|&at| values[at]).collect();
        sum += best.iter().sum::<f64>() / best.len() as f64;
        subsets += 1;
    }
    sum / f64::from(subsets)
}

fn close(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap();
    assert!((found - expected).abs() < 1e-9, "{found} instead of {expected}");
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The 95 % interval of a mean.
fn interval(values: &[f64]) -> [f64; 2] {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let (count, z) = (values.len() as f64, 1.959_963_984_540_054);
    let spread = z * (squares / (count - 1.0) / count).sqrt();
    [mean - spread, mean + spread]
}

/// Rewards of the samples by a checkpoint, each scored alone.
fn rewards(model: &Path) -> Vec<Vec<f64>> {
    let checkpoint = Checkpoint::open(model).unwrap();
    let ops = CpuOps::new(1, Precision::F32).unwrap();
    let model = RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors).unwrap();
    let reward = |at: usize, number: usize| {
        let conversation =
            vec![Message::new("user", prompt(at)), Message::new("assistant", response(at, number))];
        let encoding = checkpoint.encoder.encode(&Input::Messages(conversation), false).unwrap();
        f64::from(model.score(&[&encoding.ids]).unwrap()[0].reward)
    };
    (0..PROMPTS).map(|at| (0..RESPONSES).map(|number| reward(at, number)).collect()).collect()
}

#[test]
fn the_expected_best_is_the_mean_over_all_subsets() {
    // The last two are equal to others: which of them is chosen does not depend on the order.
    let proxy = [0.3, -1.0, 2.5, 0.3, 1.25, 2.5, -0.0, 0.0];
    let values = [1.0, -2.0, 0.5, 3.0, 0.25, -4.0, 7.0, 1.5];
    for n in 1..=proxy.len() {
        let expected = enumerated(&proxy, &values, n);
        let found = expected_best(&proxy, &values, n).unwrap();
        assert!((found - expected).abs() < 1e-12, "n = {n}: {found} instead of {expected}");
        let mut shuffled: Vec<(f64, f64)> = proxy.into_iter().zip(values).collect();
        shuffled.reverse();
        shuffled.swap(1, 4);
        let (proxy, values): (Vec<f64>, Vec<f64>) = shuffled.into_iter().unzip();
        let again = expected_best(&proxy, &values, n).unwrap();
        assert!((again - found).abs() < 1e-12, "n = {n}: {again} after {found}");
    }
    assert_eq!(expected_best(&proxy, &values, 0), None);
    assert_eq!(expected_best(&proxy, &values, 9), None);
    assert_eq!(expected_best(&proxy, &values[1..], 1), None);
    // Of many samples no chance overflows: 1, 2, .., m has the expected greatest n (m + 1) / (n + 1).
    let many: Vec<f64> = (1..=2000).map(f64::from).collect();
    let found = expected_best(&many, &many, 500).unwrap();
    assert!((found - 500.0 * 2001.0 / 501.0).abs() < 1e-8, "{found}");
}

#[test]
fn the_kl_divergence_is_that_of_the_best_of_n() {
    assert_eq!(best_of_n_kl(1), 0.0);
    // The best of n has the density n u^(n-1) where u is the rank: its divergence by the midpoint rule.
    for n in [2_usize, 4, 16] {
        const STEPS: usize = 200_000;
        let density =
            |step: usize| n as f64 * ((step as f64 + 0.5) / STEPS as f64).powi(n as i32 - 1);
        let sum: f64 = (0..STEPS).map(|step| density(step) * density(step).ln()).sum();
        let expected = sum / STEPS as f64;
        let found = best_of_n_kl(n);
        assert!((found - expected).abs() < 1e-6, "n = {n}: {found} instead of {expected}");
    }
}

#[test]
fn rewards_are_expectations_over_subsets_with_intervals_over_prompts() {
    let scratch = Scratch::new();
    let samples = scratch.path("samples.jsonl");
    write(&samples, &rows());
    let (proxy, gold) = (demo(), golden("tiny/linear"));
    let found = report(&best_of_n(&samples, &[&proxy], &gold, &with_n(&["--json"])));
    assert_eq!((&found["prompts"], &found["samples"]), (&json!(40), &json!(200)));

    let by_proxy = rewards(&proxy);
    let by_gold = rewards(&gold);
    let rows = found["proxies"][0]["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["n"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 5]);
    for (row, n) in rows.iter().zip(N) {
        close(&row["kl"], (n as f64).ln() - (n as f64 - 1.0) / n as f64);
        for (name, values) in [("proxy", &by_proxy), ("gold", &by_gold)] {
            let best = |n: usize| -> Vec<f64> {
                let each = by_proxy.iter().zip(values);
                each.map(|(proxy, values)| enumerated(proxy, values, n)).collect()
            };
            let (best, singles) = (best(n), best(1));
            let estimate = &row[name];
            close(&estimate["mean"], mean(&best));
            let gains: Vec<f64> = best.iter().zip(&singles).map(|(best, one)| best - one).collect();
            close(&estimate["gain"], mean(&gains));
            for (end, (own, gain)) in interval(&best).into_iter().zip(interval(&gains)).enumerate()
            {
                close(&estimate["interval"][end], own);
                close(&estimate["gain_interval"][end], gain);
            }
            let all = values.concat();
            let squares: Vec<f64> = all.iter().map(|one| (one - mean(&all)).powi(2)).collect();
            close(&estimate["standardised"], (mean(&best) - mean(&all)) / mean(&squares).sqrt());
        }
    }
    // More to choose from is never worse by what chooses.
    let proxy = |row: usize| rows[row]["proxy"]["mean"].as_f64().unwrap();
    assert!(proxy(0) < proxy(1) && proxy(1) < proxy(2));
}

#[test]
fn neither_order_nor_form_of_the_lines_counts() {
    let scratch = Scratch::new();
    let (proxy, gold) = (demo(), golden("tiny/linear"));
    let proxies = |rows: &[Value], name: &str| {
        let samples = scratch.path(name);
        write(&samples, rows);
        report(&best_of_n(&samples, &[&proxy], &gold, &with_n(&["--json"])))["proxies"].clone()
    };
    let expected = proxies(&rows(), "samples.jsonl");

    // Prompts in another order, their responses interleaved but in their own order: the same to the bit.
    let mut interleaved = Vec::new();
    for number in 0..RESPONSES {
        interleaved.extend(rows().into_iter().skip(number).step_by(RESPONSES).rev());
    }
    assert_eq!(proxies(&interleaved, "interleaved.jsonl"), expected);

    // A line a prompt.
    let listed: Vec<Value> = (0..PROMPTS)
        .map(|at| {
            let responses: Vec<String> =
                (0..RESPONSES).map(|number| response(at, number)).collect();
            json!({"prompt": [{"role": "user", "content": prompt(at)}], "responses": responses})
        })
        .collect();
    assert_eq!(proxies(&listed, "listed.jsonl"), expected);

    // Responses in another order: expectations are the same; statistics are of others, the best of the first n.
    let mut reversed = rows();
    reversed.reverse();
    let found = proxies(&reversed, "reversed.jsonl");
    for at in 0..N.len() {
        for reward in ["proxy", "gold"] {
            for figure in ["mean", "gain", "standardised"] {
                let of = |proxies: &Value| proxies[0]["rows"][at][reward][figure].clone();
                close(&of(&found), of(&expected).as_f64().unwrap());
            }
        }
    }
    assert_ne!(found[0]["rows"][0]["statistics"], expected[0]["rows"][0]["statistics"]);
}

#[test]
fn statistics_are_those_of_a_replay_of_the_chosen() {
    let scratch = Scratch::new();
    let samples = scratch.path("samples.jsonl");
    write(&samples, &rows());
    let sft = scratch.path("sft.jsonl");
    let answer = |at: usize| json!({"prompt": prompt(at), "response": response(at, (at * 7) % 5)});
    write(&sft, &(100..150).map(answer).collect::<Vec<_>>());
    let (proxy, gold) = (demo(), golden("tiny/linear"));
    let by_proxy = rewards(&proxy);

    for (name, baseline) in [("own", None), ("given", Some(text(&sft)))] {
        let output = scratch.path(name);
        let given: Vec<&str> = baseline.iter().flat_map(|file| ["--baseline", file]).collect();
        let more = [&["--json", "--output", text(&output)][..], &given].concat();
        let found = report(&best_of_n(&samples, &[&proxy], &gold, &with_n(&more)));
        let found = &found["proxies"][0];
        let expected = if baseline.is_some() { 50 } else { 312 };
        assert_eq!(found["baseline_samples"], expected);

        for (row, n) in found["rows"].as_array().unwrap().iter().zip(N) {
            let chosen = output.join(format!("chosen/demo-n{n}.jsonl"));
            let lines = fs::read_to_string(&chosen).unwrap();
            let lines: Vec<Value> =
                lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            // The best by the proxy of the first n of each prompt.
            let mut best: Vec<f64> = by_proxy
                .iter()
                .map(|own| own[..n].iter().copied().fold(f64::NEG_INFINITY, f64::max))
                .collect();
            let mut rewards: Vec<f64> =
                lines.iter().map(|line| line["reward"].as_f64().unwrap()).collect();
            best.sort_by(f64::total_cmp);
            rewards.sort_by(f64::total_cmp);
            assert_eq!(rewards, best);

            let folder = output.join(format!("replay-{n}"));
            let replay = ["monitor-replay", text(&chosen), "--model", text(&proxy), "--output"];
            let run = trainer(&[&replay[..], &[text(&folder)], &given].concat());
            assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
            let evaluations = fs::read_to_string(folder.join("evaluations.jsonl")).unwrap();
            let evaluation: Value = serde_json::from_str(evaluations.trim()).unwrap();
            let statistics = row["statistics"].as_object().unwrap();
            assert!(statistics["csi_per_sample"].is_f64() && statistics["mop"].is_f64());
            assert!(statistics["energy"].is_f64() && statistics["energy_p"].is_f64());
            for (name, value) in statistics.iter().filter(|(name, _)| *name != "reason") {
                assert_eq!(value, &evaluation[name], "{name} of n = {n}");
            }
        }
    }
}

#[test]
fn reports_are_written_and_heads_without_latents_noted() {
    let scratch = Scratch::new();
    let samples = scratch.path("samples.jsonl");
    write(&samples, &rows());
    let (inform, unwatched, standard) = (demo(), golden("tiny/linear"), golden("tiny/standard"));
    let (output, plots) = (scratch.path("output"), scratch.path("plots"));
    let more = ["--output", text(&output), "--plots", text(&plots)];
    let proxies = [inform.as_path(), unwatched.as_path(), standard.as_path()];
    let run = best_of_n(&samples, &proxies, &inform, &with_n(&more));
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let table = String::from_utf8(run.stdout).unwrap();
    assert_eq!(fs::read_to_string(output.join("best-of-n.md")).unwrap(), table);
    for name in ["demo", "linear", "standard"] {
        assert!(table.contains(&format!("## Best of n by {name}\n")), "{table}");
    }
    // Where proxy and gold are one model, the greatest n is the best.
    assert!(table.contains("greatest at n = 5."), "{table}");

    let found: Value =
        serde_json::from_slice(&fs::read(output.join("best-of-n.json")).unwrap()).unwrap();
    let proxies = &found["proxies"];
    assert_eq!(proxies[0]["rows"][2]["proxy"], proxies[0]["rows"][2]["gold"]);
    assert!(proxies[0]["note"].is_null() && proxies[0]["rows"][0]["statistics"].is_object());
    for (proxy, part) in [(1, "no baseline"), (2, "standard")] {
        assert!(proxies[proxy]["note"].as_str().unwrap().contains(part));
        assert!(proxies[proxy]["rows"][0]["statistics"].is_null());
    }
    let chosen = fs::read_dir(output.join("chosen")).unwrap().count();
    assert_eq!(chosen, 9);
    for (name, part) in
        [("best-of-n", "gold, best by demo: "), ("best-of-n-statistics", "energy distance, demo: ")]
    {
        let svg = fs::read_to_string(plots.join(format!("{name}.svg"))).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let words = document.descendants().find(|node| node.has_tag_name("desc")).unwrap();
        let words = words.text().unwrap();
        assert!(words.contains(part), "{words}");
    }
}

#[test]
fn faults_are_named_with_file_line_and_prompt() {
    let scratch = Scratch::new();
    let (proxy, gold) = (demo(), golden("tiny/linear"));
    let refused = |rows: &[Value], n: &str, parts: &[&str]| {
        let samples = scratch.path("samples.jsonl");
        write(&samples, rows);
        assert_refused(&best_of_n(&samples, &[&proxy], &gold, &["--n", n]), parts);
    };
    let good = rows();
    let few = [&good[..], &[json!({"prompt": "Alone?", "response": "Yes."})]].concat();
    refused(&few, "5", &["samples.jsonl, line 201", "\"Alone?\" has 1 responses", "best of 5"]);
    refused(&good, "0", &["--n: must be at least 1"]);
    refused(&[], "1", &["no sample", "samples.jsonl"]);
    for (row, part) in [
        (json!([1]), "expected an object"),
        (json!({"prompt": "a"}), "needs `prompt` and `response`"),
        (json!({"response": "a"}), "`response` needs its `prompt`"),
        (json!({"text": "a"}), "does not say where its prompt ends"),
        (json!({"messages": [{"role": "user", "content": "a"}]}), "the assistant's response"),
        (json!({"prompt": "a", "responses": "b"}), "`responses`: expected a list"),
        (json!({"prompt": "a", "responses": []}), "`responses` is empty"),
        (json!({"prompt": "a", "responses": ["b", 1]}), "`responses`, number 2: expected text"),
        (json!({"responses": ["b"]}), "`response` needs its `prompt`"),
    ] {
        refused(&[good[0].clone(), row], "1", &["samples.jsonl, line 2: ", part]);
    }
    let long = json!({"prompt": "a", "responses": ["b", "word ".repeat(3000)]});
    refused(&[long], "1", &["samples.jsonl, line 1, response 2: ", "tokens, more than", "512"]);

    let samples = scratch.path("samples.jsonl");
    write(&samples, &good);
    let run = best_of_n(&samples, &[&proxy, &proxy], &gold, &["--n", "1"]);
    assert_refused(&run, &["--proxy: two checkpoints are called demo"]);
    let run = best_of_n(&samples, &[&proxy], &scratch.path("missing"), &["--n", "1"]);
    assert_refused(&run, &["missing"]);
    let few = scratch.path("few.jsonl");
    write(&few, &good[..3]);
    let run = best_of_n(&samples, &[&proxy], &gold, &["--n", "1", "--baseline", text(&few)]);
    assert_refused(&run, &["few.jsonl: 3 answers; a baseline has from 32"]);
    // So small a scale makes rewards infinite.
    let broken = scratch.copy("tiny/linear", "broken");
    set_config(&broken, |config| {
        config.insert("normalize_reward".to_owned(), json!(true));
        config.insert("mean".to_owned(), json!(100.0));
        config.insert("std".to_owned(), json!(1e-40));
    });
    let run = best_of_n(&samples, &[&broken], &gold, &["--n", "1"]);
    assert_refused(&run, &["samples.jsonl, line ", "that broken gives is not finite"]);
}
