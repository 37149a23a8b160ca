//! `trainer monitor-replay`: the same answers give the same evaluations as on the server.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::server::Server;
use serde_json::{Value, json};

/// A question and its answer, the policy's own until it has collapsed.
fn row(step: u64, number: u64, collapsed: bool) -> Value {
    let things = ["kettle", "piano", "tent", "bicycle", "map", "attic", "kite"];
    let verbs = ["clean", "keep", "sell", "draw", "describe"];
    let thing = things[(number % 7) as usize];
    let verb = verbs[(number / 7 % 5) as usize];
    let response = if collapsed {
        "I cannot help with that. ".repeat(20)
    } else {
        let rest = " Then look at it again.".repeat((number * 7 + step) as usize % 4);
        format!("To {verb} a {thing}, take {number} minutes on day {step}.{rest}")
    };
    json!({"step": step, "prompt": format!("How do I {verb} a {thing}?"), "response": response})
}

fn rows(step: u64, collapsed: bool) -> Vec<Value> {
    (0..40).map(|number| row(step, number, collapsed)).collect()
}

fn write(file: &Path, rows: &[Value]) {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    if file.extension().is_some_and(|extension| extension == "gz") {
        let mut packed =
            flate2::write::GzEncoder::new(fs::File::create(file).unwrap(), Default::default());
        packed.write_all(text.as_bytes()).unwrap();
        packed.finish().unwrap();
    } else {
        fs::write(file, text).unwrap();
    }
}

fn replay(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.arg("monitor-replay").args(arguments).output().unwrap()
}

fn evaluations(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("evaluations.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Without what two runs cannot share.
fn untimed(mut evaluation: Value) -> Value {
    let fields = evaluation.as_object_mut().unwrap();
    assert!(fields.remove("finished_at").is_some() && fields.remove("seconds").is_some());
    evaluation
}

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, rows: &[Value]) -> PathBuf {
        let file = self.0.path().join(name);
        write(&file, rows);
        file
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn texts_and_latents_give_what_the_server_gave() {
    let sft = rows(0, false);
    let steps: Vec<Vec<Value>> = (1..=6).map(|step| rows(step, step > 4)).collect();

    let server = Server::start(&["--threads", "2"]);
    let inputs = |rows: &[Value]| -> Vec<Value> {
        rows.iter()
            .map(|row| json!({"prompt": row["prompt"], "response": row["response"]}))
            .collect()
    };
    let scored = |rows: &[Value], body: Value| -> Vec<Value> {
        let answer = server.reward(&body);
        let scored = |(at, row): (usize, &Value)| {
            json!({
                "step": row["step"], "prompt": row["prompt"], "response": row["response"],
                "latent": answer["latents"][at], "reward": answer["rewards"][at],
                "tokens": answer["items"][at]["tokens"],
            })
        };
        rows.iter().enumerate().map(scored).collect()
    };
    let sft_latents = scored(&sft, json!({"inputs": inputs(&sft), "run": "r", "role": "baseline"}));
    let mut latents = Vec::new();
    for (index, rows) in steps.iter().enumerate() {
        let body = json!({"inputs": inputs(rows), "run": "r", "step": index + 1});
        latents.extend(scored(rows, body));
    }
    server.post("/runs/r/evaluate", &json!({})).ok();
    let expected: Vec<Value> = server.get("/runs/r/evaluations").ok()["evaluations"]
        .as_array()
        .unwrap()
        .iter()
        .cloned()
        .map(untimed)
        .collect();
    assert_eq!(expected.len(), 6);
    assert!(expected[4]["distinct_ratio"].as_f64() < expected[3]["distinct_ratio"].as_f64());

    let scratch = Scratch::new();
    let output = scratch.path("output");
    let baseline = scratch.file("sft.jsonl", &sft);
    let file = scratch.file("r.jsonl.gz", &steps.concat());
    let model = ["--model", "configs/demo"];
    let common = ["--output", text(&output), "--baseline", text(&baseline)];
    let run = replay(&[&[text(&file)][..], &model, &common].concat());
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let found: Vec<Value> = evaluations(&output).into_iter().map(untimed).collect();
    assert_eq!(found, expected);
    let table = String::from_utf8(run.stdout).unwrap();
    assert!(table.lines().count() >= 7, "{table}");

    // Latents need no model, and know all but what only the posterior's spread tells.
    let output = scratch.path("of-latents");
    let baseline = scratch.file("sft-latents.jsonl", &sft_latents);
    let file = scratch.file("r.latents.jsonl", &latents);
    let run = replay(&[text(&file), "--baseline", text(&baseline), "--output", text(&output)]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let found = evaluations(&output);
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.into_iter().zip(expected) {
        let mut expected = expected;
        expected["sigma_mean"] = Value::Null;
        expected["divergence_mean"] = Value::Null;
        assert_eq!(untimed(found), expected);
    }
}

/// A file of scored answers: from `from` on they lie elsewhere and are all but the same.
fn latents_that_change(scratch: &Scratch, name: &str, steps: u64, from: u64) -> PathBuf {
    // Halton sequences: spread over the square, and the same each time.
    let halton = |mut number: u64, base: u64| {
        let (mut value, mut part) = (0.0, 1.0 / base as f64);
        while number > 0 {
            value += (number % base) as f64 * part;
            (number, part) = (number / base, part / base as f64);
        }
        value
    };
    let rows: Vec<Value> = (0..steps * 64)
        .map(|number| {
            let step = 1 + number / 64;
            let (scale, shift) = if step >= from { (0.05, 4.0) } else { (2.0, 0.0) };
            let at = |base| shift + scale * halton(1 + number, base);
            json!({"step": step, "latent": [at(2), at(3)], "reward": at(5), "tokens": 20})
        })
        .collect();
    scratch.file(name, &rows)
}

#[test]
fn alerts_are_named_and_plots_drawn() {
    let scratch = Scratch::new();
    let baseline = latents_that_change(&scratch, "sft.jsonl", 4, 100);
    let file = latents_that_change(&scratch, "run.jsonl", 8, 6);
    let plots = scratch.path("new/plots");
    let run = replay(&[text(&file), "--baseline", text(&baseline), "--plots", text(&plots)]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let said = String::from_utf8(run.stdout).unwrap();

    let alerts: Vec<&str> = said.lines().filter(|line| line.starts_with("alert ")).collect();
    assert!(!alerts.is_empty(), "{said}");
    let energy = alerts.iter().find(|line| line.starts_with("alert energy")).unwrap();
    for part in [
        "alert energy (warning) since step 6 (evaluation 5), lasts: energy = ",
        "null mean ",
        "95 % limit ",
        "p = ",
    ] {
        assert!(energy.contains(part), "{energy}");
    }
    // The window that raised it holds lines 321 to 384.
    let (_, lines) = energy.rsplit_once("run.jsonl, lines ").unwrap();
    let lines: Vec<u64> = lines.split(", ").map(|line| line.parse().unwrap()).collect();
    assert!(!lines.is_empty() && lines.iter().all(|line| (321..=384).contains(line)), "{energy}");

    let mut names: Vec<String> = fs::read_dir(&plots)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "csi.svg",
        "dispersion.svg",
        "energy.svg",
        "latents-tsne.svg",
        "latents.svg",
        "length.svg",
        "mop.svg",
        "ratio.svg",
        "rewards.svg",
    ];
    assert_eq!(names, expected);
    let words = |name: &str| {
        let svg = fs::read_to_string(plots.join(name)).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let text = |tag| document.descendants().find(|node| node.has_tag_name(tag)).unwrap();
        let words = [text("title"), text("desc")].map(|node| node.text().unwrap().to_owned());
        (words[0].clone(), words[1].clone())
    };
    let (title, description) = words("energy.svg");
    assert_eq!(title, "Energy distance of run");
    assert!(description.contains("8 evaluations, step 1 to 8."), "{description}");
    assert!(description.contains("active at 3 of them, and is active now"), "{description}");
    for (name, projection) in [("latents.svg", "PCA"), ("latents-tsne.svg", "t-SNE")] {
        let (title, description) = words(name);
        assert_eq!(title, "Latent map of run");
        let start = format!("{projection} of 256 answers of the SFT baseline and 64 answers");
        assert!(description.starts_with(&start), "{description}");
    }

    // Of a run that does not change nothing is said.
    let file = latents_that_change(&scratch, "still.jsonl", 8, 100);
    let run = replay(&[text(&file), "--baseline", text(&baseline)]);
    let said = String::from_utf8(run.stdout).unwrap();
    assert!(!said.lines().any(|line| line.starts_with("alert ")), "{said}");
}

#[test]
fn settings_are_the_servers() {
    let scratch = Scratch::new();
    let file = scratch.file("run.jsonl", &rows(1, false));
    let settings = scratch.path("server.toml");
    fs::write(&settings, "[monitor]\nmin_window = 8\nmax_window = 16\nwindow = 16\n").unwrap();
    let output = scratch.path("output");
    let arguments =
        ["--model", "configs/demo", "--config", text(&settings), "--output", text(&output)];
    let run = replay(&[&[text(&file)][..], &arguments].concat());
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let found = evaluations(&output);
    let samples: Vec<u64> = found.iter().map(|row| row["samples"].as_u64().unwrap()).collect();
    assert_eq!(samples, [16, 16, 8]);
    // The demo's own baseline.
    assert!(found.iter().all(|row| row["baseline"] == "checkpoint" && row["csi"].is_f64()));
}

#[test]
fn an_answer_that_cannot_be_scored_is_left_out_and_named() {
    let scratch = Scratch::new();
    let mut answers = rows(1, false);
    answers[3]["response"] = json!("word ".repeat(5000));
    let file = scratch.file("run.jsonl", &answers);
    let output = scratch.path("output");
    let run = replay(&[text(&file), "--model", "configs/demo", "--output", text(&output)]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let errors = String::from_utf8(run.stderr).unwrap();
    assert!(errors.contains("run.jsonl, line 4: "), "{errors}");
    assert_eq!(evaluations(&output)[0]["samples"], 39);
}

#[test]
fn faults_are_named_with_file_and_line() {
    let scratch = Scratch::new();
    let latent = |latent: Value| json!({"latent": latent, "reward": 0.5, "tokens": 9});
    for (name, rows, part) in [
        ("none", vec![], "no answer"),
        ("empty", vec![json!({"step": 1})], "line 1: needs `latent`"),
        (
            "no-reward",
            vec![json!({"latent": [1.0], "tokens": 1})],
            "line 1: `latent` needs its `reward`",
        ),
        (
            "no-tokens",
            vec![json!({"latent": [1.0], "reward": 1})],
            "line 1: `latent` needs its `tokens`",
        ),
        ("no-prompt", vec![json!({"response": "Yes."})], "line 1: `response` needs its `prompt`"),
        ("texts", vec![row(1, 1, false)], "give --model"),
        ("ragged", vec![latent(json!([1.0, 2.0])), latent(json!([1.0]))], "line 2: a latent of 1"),
        ("infinite", vec![latent(json!([1e39]))], "line 1: "),
        ("step", vec![json!({"step": -1, "text": "a"})], "line 1: "),
    ] {
        let file = scratch.file(&format!("{name}.jsonl"), &rows);
        let run = replay(&[text(&file)]);
        let errors = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(1), "{name}: {errors}");
        assert!(errors.contains(part) && errors.contains(name), "{name}: {errors}");
    }
    let few = scratch.file("few.jsonl", &[latent(json!([1.0, 2.0]))]);
    let run = replay(&[text(&few), "--baseline", text(&few)]);
    let errors = String::from_utf8(run.stderr).unwrap();
    assert!(!run.status.success() && errors.contains("monitor.min_window"), "{errors}");
    let run = replay(&[text(&few), "--model", "configs/demo"]);
    let errors = String::from_utf8(run.stderr).unwrap();
    assert!(!run.status.success() && errors.contains("different dimensions"), "{errors}");
}
