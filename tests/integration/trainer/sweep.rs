//! `trainer sweep` over heads of a tiny frozen backbone, and plots of evaluations.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

use crate::support::golden::golden;
use inform::checkpoint::Checkpoint;
use inform::train::TrainingRecord;
use serde_json::{Value, json};
use tempfile::TempDir;

const GRID: &str = "
seed = [0, 1]
head.kind = [\"inform\", \"standard\"]
head.latent_dim = [2, 4]
loss.beta = [0.1, 0.01]
";
const WEIGHTS: &str = "model.safetensors";

struct Workshop {
    folder: TempDir,
    data: PathBuf,
}

impl Workshop {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("pairs.jsonl");
        let pair = |number: usize| {
            let prompt = format!("How do I wash {number} plates?");
            let kind = ["Gladly: use warm water.", "Happy to help: soak them."][number % 2];
            json!({"prompt": prompt, "chosen": kind, "rejected": "Find out yourself."})
        };
        let text: String = (0..80).map(|number| format!("{}\n", pair(number))).collect();
        fs::write(&data, text).unwrap();
        let workshop = Self { folder, data };
        let base = format!(
            "output = {:?}\nthreads = 1\nmode = \"head\"\nweight_type = \"f32\"\nstart.folder = {:?}\n\
             [data]\nfiles = [{:?}]\ntrain_pairs = 60\nmax_tokens = 128\n[optimiser]\nlearning_rate = 1e-2\n\
             [schedule]\nepochs = 2\npairs_per_step = 16\n[card]\ntitle = \"One of a sweep\"\n",
            workshop.path("alone"),
            golden("tiny/linear"),
            workshop.data,
        );
        fs::write(workshop.path("base.toml"), base).unwrap();
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn settings(&self, grid: &str) -> PathBuf {
        let (base, output) = (self.path("base.toml"), self.path("out"));
        let file = self.path("sweep.toml");
        fs::write(&file, format!("base = {base:?}\noutput = {output:?}\n[grid]\n{grid}")).unwrap();
        file
    }

    fn sweep(&self, grid: &str) -> Output {
        trainer(&["sweep", "--config", text(&self.settings(grid))])
    }

    fn runs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("out")).unwrap().map(|entry| entry.unwrap());
        let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
        let mut names: Vec<String> =
            folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.retain(|name| name != "features");
        names.sort();
        names
    }

    fn report(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("out/sweep.json")).unwrap()).unwrap()
    }

    fn written(&self, run: &str) -> SystemTime {
        fs::metadata(self.path("out").join(run).join(WEIGHTS)).unwrap().modified().unwrap()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn trainer(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trainer")).args(arguments).output().unwrap()
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn failed(output: &Output) -> String {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    error
}

/// A document that an XML parser takes, with the words of its description.
fn described(file: &Path) -> String {
    let svg = fs::read_to_string(file).unwrap();
    let document = roxmltree::Document::parse(&svg).unwrap();
    let words = document.descendants().find(|node| node.has_tag_name("desc")).unwrap();
    words.text().unwrap().to_owned()
}

#[test]
fn every_setting_is_trained_once_and_compared() {
    let workshop = Workshop::new();
    let table = succeeded(&workshop.sweep(GRID));
    // A standard head has neither latent nor beta.
    let expected = [
        "inform-d2-beta0.01-seed0",
        "inform-d2-beta0.01-seed1",
        "inform-d2-beta0.1-seed0",
        "inform-d2-beta0.1-seed1",
        "inform-d4-beta0.01-seed0",
        "inform-d4-beta0.01-seed1",
        "inform-d4-beta0.1-seed0",
        "inform-d4-beta0.1-seed1",
        "standard-seed0",
        "standard-seed1",
    ];
    assert_eq!(workshop.runs(), expected);
    // All of them over one set of features.
    assert_eq!(fs::read_dir(workshop.path("out/features")).unwrap().count(), 1);

    let report = workshop.report();
    assert_eq!(report["failed"], json!([]));
    let record =
        |run: &str| TrainingRecord::read(&workshop.path("out").join(run)).unwrap().unwrap();
    for run in report["runs"].as_array().unwrap() {
        let name = run["name"].as_str().unwrap();
        let TrainingRecord { config, report: found, .. } = record(name);
        assert_eq!(run["seed"], config.seed);
        assert_eq!(run["held_out"], serde_json::to_value(&found.held_out).unwrap());
        assert_eq!(run["calibration_error"], json!(found.calibration_error));
        let latents = found.latents.as_ref();
        assert_eq!(run["kl"], json!(latents.map(|latents| latents.kl)));
        assert_eq!(run["active_units"], json!(latents.map(|latents| latents.active_units)));
        assert_eq!(
            run["latent_dim"].as_u64().map(|dimension| dimension as usize),
            latents.map(|l| l.dimension())
        );
        assert!(table.contains(&format!("| {name} | {} |", found.held_out_pairs)), "{table}");
    }
    let settings = report["settings"].as_array().unwrap();
    assert_eq!(settings.len(), 5);
    for setting in settings {
        let own = report["runs"].as_array().unwrap().iter().filter(|run| {
            ["kind", "latent_dim", "beta"].iter().all(|key| run[key] == setting[key])
        });
        let accuracies: Vec<f64> =
            own.map(|run| run["held_out"]["accuracy"].as_f64().unwrap()).collect();
        assert_eq!((setting["seeds"].as_u64(), accuracies.len()), (Some(2), 2));
        let (a, b) = (accuracies[0], accuracies[1]);
        let expected = json!({"mean": (a + b) / 2.0, "least": a.min(b), "most": a.max(b)});
        assert_eq!(setting["accuracy"], expected);
    }
    assert_eq!(table, fs::read_to_string(workshop.path("out/sweep.md")).unwrap());
    assert_eq!(table.lines().filter(|line| line.starts_with("| inform |")).count(), 4, "{table}");
    let words = described(&workshop.path("out/sweep.svg"));
    for line in ["inform-d2", "inform-d4"] {
        assert!(words.contains(&format!("held-out accuracy, {line}: ")), "{words}");
        assert!(words.contains(&format!("active units, {line}: ")), "{words}");
    }
    assert!(words.contains("at 0.01") && words.contains("at 0.1"), "{words}");

    // A run is what `trainer fit` makes of the same settings.
    let base = fs::read_to_string(workshop.path("base.toml")).unwrap();
    let alone = format!("{base}[head]\nlatent_dim = 4\n[loss]\nbeta = 0.01\n");
    fs::write(workshop.path("alone.toml"), alone).unwrap();
    let config = workshop.path("alone.toml");
    succeeded(&trainer(&["fit", "--config", text(&config), "--seed", "1"]));
    let weights = |folder: PathBuf| Checkpoint::open(&folder).unwrap().weights;
    let swept = weights(workshop.path("out/inform-d4-beta0.01-seed1"));
    assert_eq!(weights(workshop.path("alone")), swept);
    assert_ne!(weights(workshop.path("out/inform-d4-beta0.01-seed0")), swept);

    // What is complete is kept, what is missing or new is trained.
    let before: Vec<SystemTime> = expected.iter().map(|run| workshop.written(run)).collect();
    fs::remove_dir_all(workshop.path("out").join(expected[3])).unwrap();
    let more = GRID.replace("[0.1, 0.01]", "[0.001, 0.1, 0.01]");
    succeeded(&workshop.sweep(&more));
    assert_eq!(workshop.runs().len(), 14);
    for (number, (run, before)) in expected.iter().zip(before).enumerate() {
        assert_eq!(workshop.written(run) == before, number != 3, "{run}");
    }
    assert_eq!(workshop.report()["runs"].as_array().unwrap().len(), 14);

    // Checkpoints of other settings are not overwritten.
    fs::write(workshop.path("base.toml"), base.replace("1e-2", "2e-2")).unwrap();
    let error = failed(&workshop.sweep(GRID));
    assert!(error.contains("trained with other settings or data"), "{error}");
    assert_eq!(workshop.runs().len(), 14);
}

#[test]
fn a_run_that_fails_is_named_and_the_others_go_on() {
    let workshop = Workshop::new();
    // The loss is infinite.
    let output = workshop
        .sweep("head.latent_dim = [2]\nloss.beta = [1e300, 0.1]\ndata.label_noise = [0.25]");
    let error = failed(&output);
    let name = "inform-d2-beta1e300-noise0.25-seed0";
    assert!(error.contains(&format!("these runs failed: {name}")), "{error}");
    assert_eq!(workshop.runs(), ["inform-d2-beta0.1-noise0.25-seed0"]);
    let report = workshop.report();
    assert_eq!(report["failed"][0]["name"], name);
    assert!(report["failed"][0]["error"].as_str().unwrap().contains("the loss is"), "{report}");
    assert_eq!(report["runs"].as_array().unwrap().len(), 1);
    let record = TrainingRecord::read(&workshop.path("out").join(&workshop.runs()[0])).unwrap();
    assert_eq!(record.unwrap().report.label_noise_pairs, 15);
}

#[test]
fn settings_that_are_wrong_are_named_before_anything_is_trained() {
    let workshop = Workshop::new();
    for (grid, expected) in [
        ("heads = 3", "unknown field `heads`"),
        ("head.width = [3]", "unknown field `width`"),
        ("head.kind = [\"other\"]", "unknown variant `other`"),
        ("seed = 3", "seed"),
        (
            "head.latent_dim = [2, 0]",
            "inform-d0-beta0.1-seed0: head.latent_dim: must be at least 1",
        ),
        ("data.label_noise = [2.0]", "data.label_noise: must be from 0 to 1"),
    ] {
        let error = failed(&workshop.sweep(grid));
        assert!(error.contains(expected), "{expected:?} is not in {error:?}");
        assert!(!workshop.path("out").exists());
    }
    fs::remove_file(workshop.path("base.toml")).unwrap();
    let error = failed(&workshop.sweep("seed = [1]"));
    assert!(error.contains("sweep.toml: `base`") && error.contains("base.toml"), "{error}");
}

#[test]
fn evaluations_are_drawn() {
    let workshop = Workshop::new();
    let (model, data) = (golden("tiny/linear"), text(&workshop.data));
    let plots = workshop.path("plots");
    let arguments = ["--data", data, "--plots", text(&plots), "--json"];
    let command = [&["eval", "--model", text(&model)], arguments.as_slice()].concat();
    let found: Value = serde_json::from_str(&succeeded(&trainer(&command))).unwrap();

    let file = plots.join("calibration.svg");
    let svg = fs::read_to_string(&file).unwrap();
    let bins = found["calibration"].as_array().unwrap();
    assert!(!bins.is_empty());
    assert_eq!(svg.matches("class=\"hit\"").count(), bins.len());
    assert!(described(&file).contains("share of pairs, prefers the chosen answer: "));
    let count = found["margins"].as_array().unwrap().len();
    let words = described(&plots.join("margins.svg"));
    assert!(words.contains(&format!("pairs: {count} bars of 80 in all")), "{words}");
    let words = described(&plots.join("kl.svg"));
    let (active, all) = (found["latents"]["active_units"].as_u64().unwrap(), 8);
    assert!(words.contains(&format!(" active: {active} bars")), "{words}");
    assert!(words.contains(&format!(" not active: {} bars", all - active)), "{words}");

    // Several: a folder each. A standard head has no latents to draw.
    fs::remove_dir_all(&plots).unwrap();
    let standard = golden("tiny/standard");
    let both = [&["eval", "--model", text(&model), text(&standard)], arguments.as_slice()].concat();
    succeeded(&trainer(&both));
    for (folder, has_latents) in [("linear", true), ("standard", false)] {
        for (name, is_there) in [("calibration", true), ("margins", true), ("kl", has_latents)] {
            assert_eq!(plots.join(folder).join(format!("{name}.svg")).exists(), is_there, "{name}");
        }
    }
    let twice = [&["eval", "--model", text(&model), text(&model)], arguments.as_slice()].concat();
    assert!(failed(&trainer(&twice)).contains("two checkpoints are called linear"));
}
