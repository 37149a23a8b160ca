//! The trainer's program from end to end, on preferences that can be learned: the chosen answer is
//! the courteous one.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::golden::golden;
use flate2::{Compression, write::GzEncoder};
use inform::checkpoint::{CONFIG_FILE, Checkpoint, Message};
use inform::model::{RewardModel, Scorer};
use inform::ops::cpu::{CpuOps, Precision};
use inform::train::{
    BadLines, BaselineReport, CALIBRATION_FILE, Dropped, FitReport, Origin, Pair, PairAccuracy,
    Split, TRAINING_FILE, TrainingRecord, encode_pairs, read_pairs,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const WEIGHTS: &str = "model.safetensors";
/// Usable pairs, and those that the trainer must leave out.
const USABLE: usize = 330;
const TOO_LONG: usize = 4;
const IDENTICAL: usize = 3;
const EMPTY: usize = 2;
const ALL: usize = USABLE + TOO_LONG + IDENTICAL + EMPTY;
const TRAIN: usize = 240;

const SCRATCH: &str = "
[start.scratch]
vocab_size = 400
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 256
";

/// A folder with data files, settings and outputs of one test.
struct Workshop {
    folder: TempDir,
    data: Vec<PathBuf>,
}

/// A finished run.
struct Fitted {
    output: PathBuf,
    report: FitReport,
}

impl Workshop {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("tmp")).unwrap();
        fs::create_dir(folder.path().join("runs")).unwrap();
        let lines = lines();
        let (transcripts, lists) = lines.split_at(lines.len() / 2);
        let data = vec![folder.path().join("one.jsonl.gz"), folder.path().join("two.jsonl")];
        let mut zipped = GzEncoder::new(File::create(&data[0]).unwrap(), Compression::default());
        for line in transcripts {
            writeln!(zipped, "{}", as_transcripts(line)).unwrap();
        }
        zipped.finish().unwrap();
        let mut plain = File::create(&data[1]).unwrap();
        for (number, line) in lists.iter().enumerate() {
            writeln!(plain, "{}\n", as_messages(line, number)).unwrap();
        }
        Self { folder, data }
    }

    fn run(&self, name: &str) -> PathBuf {
        self.folder.path().join("runs").join(name)
    }

    fn settings(&self, start: &str, other: &str) -> String {
        let settings = format!(
            "output = {:?}
            threads = 2
            {start}
            [data]
            files = {:?}
            train_pairs = {TRAIN}
            max_tokens = 128
            [optimiser]
            learning_rate = 1e-2
            [schedule]
            epochs = 3
            pairs_per_step = 16
            {other}",
            self.run("output"),
            self.data
        );
        settings.lines().map(|line| format!("{}\n", line.trim_start())).collect()
    }

    fn trainer(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_trainer"))
            .args(arguments)
            .env("TMPDIR", self.folder.path().join("tmp"))
            .output()
            .unwrap()
    }

    fn start(&self, settings: &str, output: &Path) -> Output {
        let file = self.folder.path().join("settings.toml");
        fs::write(&file, settings).unwrap();
        let output = output.to_str().unwrap();
        self.trainer(&["fit", "--config", file.to_str().unwrap(), "--output", output])
    }

    fn fit(&self, settings: &str, output: &str) -> Fitted {
        let output = self.run(output);
        let stdout = succeeded(self.start(settings, &output));
        self.assert_nothing_temporary();
        Fitted { output, report: serde_json::from_str(&stdout).unwrap() }
    }

    /// Neither beside the outputs nor in the system's folder for temporary files.
    fn assert_nothing_temporary(&self) {
        let names: Vec<_> = fs::read_dir(self.folder.path().join("runs"))
            .unwrap()
            .chain(fs::read_dir(self.folder.path().join("tmp")).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with('.'))
            .collect();
        assert!(names.is_empty(), "{names:?}");
    }

    fn eval(&self, model: &Path, more: &[&str]) -> String {
        let mut arguments = vec!["eval", "--model", model.to_str().unwrap(), "--data"];
        arguments.extend(self.data.iter().map(|file| file.to_str().unwrap()));
        arguments.extend(more);
        succeeded(self.trainer(&arguments))
    }
}

impl Fitted {
    fn checkpoint(&self) -> Checkpoint {
        Checkpoint::open(&self.output).unwrap()
    }

    fn bytes(&self, file: &str) -> Vec<u8> {
        fs::read(self.output.join(file)).unwrap()
    }

    fn record(&self) -> TrainingRecord {
        serde_json::from_slice(&self.bytes(TRAINING_FILE)).unwrap()
    }

    fn config(&self) -> Value {
        serde_json::from_slice(&self.bytes(CONFIG_FILE)).unwrap()
    }
}

fn succeeded(output: Output) -> String {
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// `(prompt, chosen, rejected)`: two pairs for some of the prompts.
fn lines() -> Vec<[String; 3]> {
    let verbs = ["clean", "repair", "paint", "move", "store", "choose"];
    let things = ["bicycle", "wooden table", "kettle", "carpet", "garden bench", "lamp", "clock"];
    let places = ["at home", "in winter", "on a small budget", "without help"];
    let kind = ["Thank you for asking!", "Happy to help!", "What a good question, thank you!"];
    let rude = ["Find out yourself.", "That is obvious.", "Why do you bother me?"];
    let steps = ["Start with the edges", "Take it slowly", "Read the label first"];
    let mut lines = Vec::new();
    for number in 0..USABLE {
        // 168 prompts: most of them twice.
        let verb = verbs[number % 6];
        let thing = things[number / 6 % 7];
        let prompt = format!("How do I {verb} a {thing} {}?", places[number / 42 % 4]);
        let step = steps[number % 3];
        let chosen = format!("{} {step}.", kind[number / 2 % 3]);
        lines.push([prompt, chosen, format!("{} {step}.", rude[number / 3 % 3])]);
    }
    let mut add = |count: usize, line: fn(String) -> [String; 3]| {
        // Among the others, in both files.
        for number in 0..count {
            let prompt = format!("Tell me about number {}.", lines.len());
            lines.insert(number * 97 + 5, line(prompt));
        }
    };
    add(TOO_LONG, |prompt| [prompt, "Gladly. ".repeat(150), "No.".to_owned()]);
    add(IDENTICAL, |prompt| [prompt, "It depends.".to_owned(), "It depends.".to_owned()]);
    add(EMPTY, |_| [" ".to_owned(), String::new(), String::new()]);
    assert_eq!(lines.len(), ALL);
    lines
}

fn as_transcripts([prompt, chosen, rejected]: &[String; 3]) -> Value {
    let transcript = |answer| format!("\n\nHuman: {prompt}\n\nAssistant: {answer}");
    json!({"chosen": transcript(chosen), "rejected": transcript(rejected)})
}

/// The prompt as text or as messages, the answers alone or after the prompt.
fn as_messages([prompt, chosen, rejected]: &[String; 3], number: usize) -> Value {
    let user = json!({"role": "user", "content": prompt});
    let answer = |answer| json!({"role": "assistant", "content": answer});
    match number % 4 {
        0 => json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}),
        1 => json!({"prompt": [user], "chosen": [answer(chosen)], "rejected": [answer(rejected)]}),
        2 => {
            let both = |text| json!([user, answer(text)]);
            json!({"prompt": [user], "chosen": both(chosen), "rejected": both(rejected)})
        }
        _ => {
            let both = |text| json!([user, answer(text)]);
            json!({"chosen": both(chosen), "rejected": both(rejected)})
        }
    }
}

fn inform_head(decode: &str) -> String {
    format!("[loss]\nbeta = 0.01\n[head]\nlatent_dim = 6\ndecode = \"{decode}\"\n")
}

fn assert_learned(report: &FitReport) -> PairAccuracy {
    let losses: Vec<f64> = report.epochs.iter().map(|means| means.loss).collect();
    assert!(losses.is_sorted_by(|a, b| a > b), "{losses:?}");
    assert!(losses[losses.len() - 1] < losses[0] / 2.0, "{losses:?}");
    let accuracy = report.held_out.clone().unwrap();
    assert!(accuracy.accuracy > 0.95, "{accuracy:?}");
    accuracy
}

#[test]
fn both_forms_of_data_are_read_alike() {
    let workshop = Workshop::new();
    let pairs = read_pairs(&workshop.data, BadLines::Refuse).unwrap().0;
    let expected: Vec<Pair> = lines()
        .iter()
        .enumerate()
        .map(|(number, [prompt, chosen, rejected])| {
            // A transcript's turns are trimmed.
            let in_transcript = number < ALL / 2;
            let trim = |text: &str| if in_transcript { text.trim() } else { text }.to_owned();
            let conversation = |answer: &str| {
                vec![Message::new("user", trim(prompt)), Message::new("assistant", trim(answer))]
            };
            let (chosen, rejected) = (conversation(chosen), conversation(rejected));
            let (file, first) = if in_transcript { (0, 0) } else { (1, ALL / 2) };
            // The file of message lists has an empty line after each pair.
            let line = if in_transcript { number + 1 } else { 2 * (number - first) + 1 };
            let origin = Origin { file: workshop.data[file].as_path().into(), line };
            Pair { chosen, rejected, subset: None, margin: None, origin }
        })
        .collect();
    assert_eq!(pairs, expected);
}

#[test]
fn pairs_of_a_prompt_stay_on_one_side() {
    let pairs = read_pairs(&Workshop::new().data, BadLines::Refuse).unwrap().0;
    let prompts = |pairs: &[Pair]| -> HashSet<Vec<Message>> {
        pairs.iter().map(|pair| pair.chosen[..pair.chosen.len() - 1].to_vec()).collect()
    };
    let split = Split { seed: 5, train_pairs: Some(TRAIN) };
    let (train, held_out) = split.apply(pairs.clone());
    assert_eq!((train.len(), held_out.len()), (TRAIN, ALL - TRAIN));
    assert!(prompts(&train).is_disjoint(&prompts(&held_out)));
    assert_eq!(split.apply(pairs.clone()), (train.clone(), held_out));
    assert_ne!(Split { seed: 6, ..split }.apply(pairs.clone()).0, train);
    let (train, _) = Split { seed: 5, train_pairs: None }.apply(pairs);
    assert_eq!(train.len(), ALL * 9 / 10);
}

#[test]
fn trains_from_scratch_and_from_its_own_output() {
    let workshop = Workshop::new();
    let settings = workshop.settings(SCRATCH, &inform_head("linear"));
    // A folder that is in the way is replaced whole.
    fs::create_dir(workshop.run("first")).unwrap();
    fs::write(workshop.run("first").join("old.txt"), "old").unwrap();
    fs::write(workshop.run("first").join(CONFIG_FILE), "{}").unwrap();
    let first = workshop.fit(&settings, "first");
    assert!(!first.output.join("old.txt").exists());

    let report = &first.report;
    let accuracy = assert_learned(report);
    let (train, held_out) = (&report.train_dropped, &report.held_out_dropped);
    assert_eq!(train.too_long + held_out.too_long, TOO_LONG);
    assert_eq!(train.identical + held_out.identical, IDENTICAL);
    assert_eq!(train.empty + held_out.empty, EMPTY);
    let left_out = |d: &Dropped| d.too_long + d.identical + d.empty + d.duplicate;
    assert_all_named(&workshop, &first);
    assert_eq!(report.train_pairs + left_out(train), TRAIN);
    assert_eq!(report.held_out_pairs + left_out(held_out), ALL - TRAIN);
    assert_eq!(report.steps, 3 * report.train_pairs.div_ceil(16));

    // The same figure everywhere, to the digit.
    let record = first.record();
    assert_eq!(record.report, *report);
    let again = workshop.eval(&first.output, &["--held-out", "--json"]);
    assert_eq!(serde_json::from_str::<PairAccuracy>(&again).unwrap(), accuracy);
    let printed = workshop.eval(&first.output, &["--held-out"]);
    let (_, figure) = printed.lines().next().unwrap().split_once("pairs = ").unwrap();
    let card = String::from_utf8(first.bytes("README.md")).unwrap();
    let row = format!("{} of {} = {figure} |", accuracy.correct, accuracy.pairs);
    assert!(card.contains(&row), "{row}\n{card}");
    // What the latents carry, everywhere the same too.
    let latents = report.latents.as_ref().unwrap();
    assert_eq!((latents.answers, latents.dimension()), (2 * accuracy.pairs, 6));
    assert!(latents.active_units > 0 && latents.kl > 0.0, "{latents:?}");
    let evaluated: Value = serde_json::from_str(&again).unwrap();
    assert_eq!(evaluated["latents"], serde_json::to_value(latents).unwrap());
    assert_eq!(evaluated["calibration_error"].as_f64(), report.calibration_error);
    assert!(card.contains(&format!("Of the held-out pairs: {latents}.")), "{card}");
    assert!(printed.contains(&format!("latents: {latents}")), "{printed}");
    // And what the monitor makes of the baseline.
    let calibration: BaselineReport =
        serde_json::from_slice(&first.bytes(CALIBRATION_FILE)).unwrap();
    assert_eq!(calibration.calibration.weights, first.checkpoint().weights);
    assert!(calibration.calibration.energy.is_some(), "{calibration:?}");
    assert!(card.contains(&format!("| Latents | {},", calibration.calibration.source)), "{card}");
    // Several checkpoints, and the parts of the data.
    let table = succeeded(workshop.trainer(&{
        let folder = first.output.to_str().unwrap();
        let mut arguments = vec!["eval", "--held-out", "--model", folder, folder, "--data"];
        arguments.extend(workshop.data.iter().map(|file| file.to_str().unwrap()));
        arguments
    }));
    let (low, high) = accuracy.interval;
    let cell = format!("{:.3} ({low:.3} to {high:.3})", accuracy.accuracy);
    let row = format!("| all | {} | {cell} | {cell} |", accuracy.pairs);
    assert!(table.contains(&row), "{row}\n{table}");
    assert!(table.contains("| chosen shorter |"), "{table}");
    let config = first.config();
    assert_eq!(config["mean"], json!(accuracy.reward_mean));
    assert_eq!(config["std"], json!(accuracy.reward_std));

    check_baseline(&workshop, &first);
    check_log(&first, &["accuracy", "active_dimensions", "kl", "loss", "margin"]);

    let same = workshop.fit(&settings, "same");
    assert_eq!(same.bytes(WEIGHTS), first.bytes(WEIGHTS));
    assert_eq!(same.checkpoint().baseline, first.checkpoint().baseline);
    let other = workshop.fit(&format!("seed = 1\n{settings}"), "other");
    assert_ne!(other.bytes(WEIGHTS), first.bytes(WEIGHTS));

    // From its own output, onto itself.
    let folder = first.output.clone();
    let start = format!("[start]\nfolder = {folder:?}");
    let settings = workshop.settings(&start, &inform_head("linear"));
    let tuned =
        workshop.fit(&settings.replace("learning_rate = 1e-2", "learning_rate = 1e-4"), "first");
    assert!(tuned.report.epochs[0].accuracy > 0.95, "{:?}", tuned.report);
    assert_ne!(tuned.bytes(WEIGHTS), same.bytes(WEIGHTS));
    assert_eq!(tuned.bytes("tokenizer.json"), same.bytes("tokenizer.json"));
    check_baseline(&workshop, &tuned);
}

/// Every pair that was left out stands in the folder with its place and the reason.
fn assert_all_named(workshop: &Workshop, fitted: &Fitted) {
    let text = String::from_utf8(fitted.bytes("dropped.jsonl")).unwrap();
    let mut reasons = std::collections::BTreeMap::new();
    for line in text.lines() {
        let found: Value = serde_json::from_str(line).unwrap();
        let file = Path::new(found["file"].as_str().unwrap());
        let pairs = read_pairs(&[file.to_owned()], BadLines::Refuse).unwrap().0;
        let place = found["line"].as_u64().unwrap() as usize;
        let pair = pairs.iter().find(|pair| pair.origin.line == place).unwrap();
        let answer = &pair.chosen.last().unwrap().content;
        let (reason, detail) = match answer.as_str() {
            "It depends." => ("identical", "both answers are the same"),
            "" => ("empty", "an answer is empty"),
            _ => ("too_long", "tokens, more than 256"),
        };
        assert_eq!(found["reason"], reason, "{found}");
        assert!(found["detail"].as_str().unwrap().ends_with(detail), "{found}");
        assert!(workshop.data.iter().any(|data| data == file), "{found}");
        *reasons.entry(reason).or_insert(0) += 1;
    }
    let expected = [("empty", EMPTY), ("identical", IDENTICAL), ("too_long", TOO_LONG)];
    assert!(reasons.into_iter().eq(expected), "{text}");
}

/// The log has every step, and there is a plot of each of its statistics. TensorBoard reads the events in
/// `tests/trainer_outputs/run.py`.
fn check_log(fitted: &Fitted, plots: &[&str]) {
    let log = String::from_utf8(fitted.bytes("log.jsonl")).unwrap();
    let log: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(log.len(), fitted.report.steps);
    // What was learned tells answers apart.
    let last = &log[log.len() - 1];
    assert!(last["margin"].as_f64().unwrap() > 1.0, "{last}");
    let active = last["active_dimensions"].as_u64();
    assert_eq!(active.is_some(), plots.contains(&"kl"), "{last}");
    assert!(active.is_none_or(|active| (1..=6).contains(&active)), "{last}");

    let names = |folder: &str| {
        let entries = fs::read_dir(fitted.output.join(folder)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert!(
        names("plots").iter().map(|name| name.trim_end_matches(".svg")).eq(plots.iter().copied())
    );
    for name in names("plots") {
        let svg = fs::read_to_string(fitted.output.join("plots").join(&name)).unwrap();
        let svg = roxmltree::Document::parse(&svg).unwrap();
        let polylines = svg.descendants().filter(|node| node.has_tag_name("polyline"));
        assert!(polylines.count() > 0, "{name}");
        let text = svg.descendants().filter(|node| node.has_tag_name("text"));
        assert!(text.filter_map(|node| node.text()).any(|text| text.contains("mean of")), "{name}");
    }
    assert_eq!(names("tensorboard").len(), 1);
}

/// The stored latents are those that the server computes for the same texts, one by one.
fn check_baseline(workshop: &Workshop, fitted: &Fitted) {
    let checkpoint = fitted.checkpoint();
    let record = fitted.record();
    let baseline = checkpoint.baseline.as_ref().unwrap();
    assert_eq!(baseline.weights, checkpoint.weights);
    let (_, held_out) = record.split.apply(read_pairs(&workshop.data, BadLines::Refuse).unwrap().0);
    let (pairs, _) =
        encode_pairs(&checkpoint.encoder, &held_out, record.config.data.limits()).unwrap();
    assert_eq!(baseline.len(), pairs.len());
    let ops = CpuOps::new(1, Precision::F32).unwrap();
    let model = RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors).unwrap();
    for (pair, stored) in pairs.iter().zip(baseline.latents.chunks_exact(baseline.dimension)) {
        let score = model.score(&[&pair.chosen]).unwrap().remove(0);
        assert_eq!(score.latent.unwrap().mean, stored);
    }
}

#[test]
fn gated_decode_and_standard_heads_learn_too() {
    let workshop = Workshop::new();
    let gated = workshop.fit(&workshop.settings(SCRATCH, &inform_head("gated")), "gated");
    assert_learned(&gated.report);
    assert_eq!(gated.config()["use_complex_decoder"], json!(true));
    check_baseline(&workshop, &gated);

    let head = "[head]\nkind = \"standard\"\n[baseline]\nsamples = 5\n";
    let standard = workshop.fit(&workshop.settings(SCRATCH, head), "standard");
    let accuracy = assert_learned(&standard.report);
    assert!(standard.report.epochs.iter().all(|means| means.kl == 0.0));
    check_log(&standard, &["accuracy", "loss", "margin"]);
    assert_eq!(standard.checkpoint().baseline, None);
    assert_eq!(standard.report.latents, None);
    assert!(!standard.output.join(CALIBRATION_FILE).exists());
    let again = workshop.eval(&standard.output, &["--held-out", "--json"]);
    assert_eq!(serde_json::from_str::<PairAccuracy>(&again).unwrap(), accuracy);
}

/// With no learning rate to speak of, the stored weights are the start's.
#[test]
fn keeps_the_head_of_a_folder_but_not_its_normalisation() {
    let workshop = Workshop::new();
    let source = golden("tiny/linear");
    let copy = workshop.run("normalised");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(&source).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    let mut config: Value =
        serde_json::from_slice(&fs::read(source.join(CONFIG_FILE)).unwrap()).unwrap();
    config["normalize_reward"] = json!(true);
    config["mean"] = json!(3.0);
    config["std"] = json!(0.5);
    // A name of the same length leaves the file's header as long as it was.
    config["encode_head_prefix"] = json!("bottleneck_");
    fs::write(copy.join(CONFIG_FILE), config.to_string()).unwrap();
    let mut tensors = fs::read(source.join(WEIGHTS)).unwrap();
    let name = b"encode_head";
    let at = tensors.windows(name.len()).position(|bytes| bytes == name).unwrap();
    tensors[at..at + name.len()].copy_from_slice(b"bottleneck_");
    fs::write(copy.join(WEIGHTS), tensors).unwrap();

    let head = "[head]\nlatent_dim = 8\n[baseline]\nsamples = 20\n";
    let fit = |start: &Path, output: &str| {
        let start = format!("weight_type = \"f32\"\n[start]\nfolder = {start:?}");
        let settings = workshop.settings(&start, head).replace("1e-2", "1e-30");
        workshop.fit(&settings.replace("epochs = 3", "epochs = 1"), output)
    };
    let plain = fit(&source, "plain");
    let weights = |checkpoint: Checkpoint| -> Vec<(String, Vec<f32>)> {
        let memory = checkpoint.tensors.to_memory().unwrap();
        memory.iter().map(|(name, _, values)| (name.to_owned(), values.to_vec())).collect()
    };
    assert_eq!(weights(plain.checkpoint()), weights(Checkpoint::open(&source).unwrap()));
    assert_eq!(plain.checkpoint().baseline.unwrap().len(), 20);

    // The start's normalisation is not the new model's; its names are.
    let raw = fit(&copy, "raw");
    assert_eq!(raw.checkpoint().config.reward_scale, None);
    assert_eq!(raw.config()["encode_head_prefix"], json!("bottleneck_"));
    assert_eq!(raw.report.held_out, plain.report.held_out);
    assert_eq!(raw.config()["mean"], plain.config()["mean"]);
    let latents = |fitted: &Fitted| fitted.checkpoint().baseline.unwrap().latents;
    assert_eq!(latents(&raw), latents(&plain));
}

#[test]
fn a_run_that_fails_says_why_and_leaves_the_output_alone() {
    let workshop = Workshop::new();
    let output = workshop.run("output");
    fs::create_dir(&output).unwrap();
    fs::write(output.join("kept.txt"), "kept").unwrap();
    let refused = workshop.start(&workshop.settings(SCRATCH, &inform_head("linear")), &output);
    let refused = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.contains("runs/output: `output`: is there, and is no checkpoint"), "{refused}");
    fs::write(output.join(CONFIG_FILE), "{}").unwrap();
    let settings = workshop.settings(SCRATCH, &inform_head("linear"));
    let data = workshop.folder.path().join("bad.jsonl");
    let path = |file: &Path| file.display().to_string();

    let fails = |settings: &str, expected: &[&str]| {
        let run = workshop.start(settings, &output);
        let error = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(1), "{error}");
        assert_eq!(run.stdout, b"");
        assert!(error.starts_with("error: ") || error.contains("\nerror: "), "{error}");
        assert!(!error.contains("panicked"), "{error}");
        for expected in expected {
            assert!(error.contains(expected), "{expected:?} is not in {error:?}");
        }
        let names = fs::read_dir(&output).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(
            names.collect::<HashSet<_>>(),
            HashSet::from([CONFIG_FILE.into(), "kept.txt".into()])
        );
        assert_eq!(fs::read_dir(workshop.folder.path().join("runs")).unwrap().count(), 1);
        workshop.assert_nothing_temporary();
    };

    let good = as_transcripts(&lines()[0]).to_string();
    let on_bad_data =
        settings.replacen("[data]\nfiles = [", &format!("[data]\nfiles = [{data:?}, "), 1);
    for (line, expected) in [
        (r#"{"chosen": "#, "not valid JSON"),
        (r#"{"rejected": "\n\nHuman: Hello\n\nAssistant: Hi"}"#, "no `chosen`"),
        (r#"{"chosen": "\n\nHuman: Hello\n\nAssistant: Hi"}"#, "no `rejected`"),
        (
            r#"{"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "d"}"#,
            "`chosen`: does not end with the assistant's answer",
        ),
        (
            r#"{"prompt": "a", "chosen": "b", "rejected": [{"role": "user", "content": "c"}]}"#,
            "`rejected`: does not end with the assistant's answer",
        ),
        (r#"{"prompt": "a", "chosen": [{"role": "assistant"}], "rejected": "b"}"#, "`content`"),
        ("17", "expected an object"),
    ] {
        fs::write(&data, format!("{good}\n{line}\n{good}\n")).unwrap();
        fails(&on_bad_data, &[&format!("{}, line 2", path(&data)), expected]);
    }
    fs::write(&data, "\n").unwrap();
    let files = format!("files = {:?}", workshop.data);
    let only_bad_data = settings.replace(&files, &format!("files = [{data:?}]"));
    fails(&only_bad_data, &["no preference pair", &path(&data)]);
    fs::remove_file(&data).unwrap();
    fails(&on_bad_data, &[&path(&data), "No such file"]);

    for (from, to, expected) in [
        ("[data]", "[data]\nshuffle = true", "unknown field `shuffle`"),
        ("[schedule]", "[schedule]\nwarmup = 3", "unknown field `warmup`"),
        ("max_tokens = 128", "max_tokens = 257", "data.max_tokens: 257 exceeds"),
        ("max_tokens = 128", "max_tokens = 3", "no training pair can be used"),
        ("train_pairs = 240", "train_pairs = 0", "data.train_pairs"),
        ("files = [", "files = [7, ", "a file's path, or { path"),
        ("files = [", "files = [{ path = \"a\", share = 2 }, ", "unknown field `share`"),
        ("files = [", "files = [{ weight = 2 }, ", "missing field `path`"),
        (
            "files = [",
            "files = [{ path = \"a\", weight = 0 }, ",
            "data.files: a: a weight must be above 0",
        ),
        ("files = [", "files = [{ path = \"a\", weight = nan }, ", "a weight must be above 0"),
        ("files = [", "files = [{ path = \"a\", weight = 101 }, ", "at most 100"),
        (
            "files = [",
            "files = [\"a\", { path = \"a\", weight = 2 }, ",
            "data.files: a is named twice",
        ),
        ("= 1e-2", "= 0.0", "optimiser.learning_rate: must be positive"),
        ("= 1e-2", "= -1e-3", "optimiser.learning_rate: must be positive"),
        ("= 1e-2", "= nan", "optimiser.learning_rate: must be positive"),
        ("= 1e-2", "= 1e-2\nclip_norm = inf", "optimiser.clip_norm: must be finite"),
        // The numbers overflow while it trains.
        ("= 1e-2", "= 1e30", "step "),
        ("latent_dim = 6", "latent_dim = 0", "head.latent_dim: must be at least 1"),
        ("hidden_size = 32", "hidden_size = 30", "start.scratch.hidden_size"),
        ("num_key_value_heads = 2", "num_key_value_heads = 3", "num_key_value_heads"),
    ] {
        assert!(settings.contains(from), "{from}");
        fails(&settings.replacen(from, to, 1), &[expected]);
    }
    let missing = "[start]\nfolder = \"missing\"";
    fails(&workshop.settings(missing, &inform_head("linear")), &["missing/config.json"]);
}

/// Half of one file's pairs and two and a half times the other's, in each epoch.
#[test]
fn files_have_weights_in_training_alone() {
    let workshop = Workshop::new();
    let plain = workshop.settings(SCRATCH, "[head]\nlatent_dim = 2\n");
    let [one, two] = [0, 1].map(|file| workshop.data[file].display().to_string());
    let files = format!("files = {:?}", workshop.data);
    let with = |light: &str, heavy: &str| {
        let weighted = format!(
            "files = [{{ path = {one:?}, weight = {light} }}, {{ path = {two:?}, weight = {heavy} }}]"
        );
        plain.replace(&files, &weighted)
    };
    let fitted = workshop.fit(&with("0.5", "2.5"), "output");
    let record = fitted.record();
    let weights: Vec<f64> = record.config.data.files.iter().map(|file| file.weight).collect();
    assert_eq!(weights, [0.5, 2.5]);

    let pairs = read_pairs(&workshop.data, BadLines::Refuse).unwrap().0;
    let (train, _) = record.split.apply(pairs);
    let encoder = fitted.checkpoint().encoder;
    let (train, _) = encode_pairs(&encoder, &train, record.config.data.limits()).unwrap();
    let of = |file: usize| {
        train.iter().filter(|pair| *pair.origin.file == *workshop.data[file]).count() as f64
    };
    let epoch = (0.5 * of(0)).round() as usize + (2.5 * of(1)).round() as usize;
    assert_eq!(fitted.report.steps, 3 * epoch.div_ceil(16));
    let log = String::from_utf8(fitted.bytes("log.jsonl")).unwrap();
    let seen: u64 = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["pairs"].as_u64().unwrap())
        .sum();
    assert_eq!(seen, 3 * epoch as u64);
    // The evaluation knows no weights.
    let again = workshop.eval(&fitted.output, &["--held-out", "--json"]);
    let again: PairAccuracy = serde_json::from_str(&again).unwrap();
    assert_eq!(Some(&again), fitted.report.held_out.as_ref());
    assert_eq!(again.pairs, fitted.report.held_out_pairs);
    let card = String::from_utf8(fitted.bytes("README.md")).unwrap();
    assert!(card.contains("`, weight 2.5 |"), "{card}");

    // A weight of 1 is none.
    let [ones, none] = [with("1", "1.0"), plain.clone()]
        .map(|settings| workshop.fit(&settings.replace("epochs = 3", "epochs = 1"), "output"));
    assert_eq!(ones.bytes(WEIGHTS), none.bytes(WEIGHTS));
    assert_eq!(ones.record().config, none.record().config);

    let light = workshop.start(&with("0.001", "1"), &workshop.run("none"));
    let error = String::from_utf8(light.stderr).unwrap();
    assert!(
        !light.status.success() && error.contains("one.jsonl.gz: with a weight of 0.001"),
        "{error}"
    );
}

#[test]
fn held_out_means_held_out_of_these_very_files() {
    let workshop = Workshop::new();
    let settings = workshop.settings(SCRATCH, "[head]\nlatent_dim = 2\n");
    let fitted = workshop.fit(&settings.replace("epochs = 3", "epochs = 1"), "output");
    let model = fitted.output.to_str().unwrap();
    let one = workshop.data[1].to_str().unwrap();
    let run = workshop.trainer(&["eval", "--model", model, "--data", one, "--held-out"]);
    let error = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(1), "{error}");
    assert!(error.contains("one.jsonl.gz"), "{error}");
    // All pairs of any file can be evaluated.
    succeeded(workshop.trainer(&["eval", "--model", model, "--data", one]));
}

#[test]
fn a_head_is_trained_over_features_of_a_frozen_backbone() {
    let workshop = Workshop::new();
    let base = workshop.fit(&workshop.settings(SCRATCH, &inform_head("linear")), "base");
    let kept = workshop.folder.path().join("features");
    // Another head than the base's, so a fresh one.
    let other = "[loss]\nbeta = 0.01\n[head]\nlatent_dim = 5\ndecode = \"gated\"\n";
    let settings = |mode: &str, more: &str| {
        let start = format!("mode = {mode:?}\n[start]\nfolder = {:?}", base.output);
        workshop.settings(&start, &format!("{other}{more}"))
    };
    let with_folder = settings("head", &format!("[features]\nfolder = {kept:?}"));
    let files = |folder: &Path| -> Vec<PathBuf> {
        let mut files: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    };

    let head = workshop.fit(&with_folder, "head");
    assert!(head.report.held_out.as_ref().unwrap().accuracy > 0.95, "{:?}", head.report);
    assert_eq!(head.report.parameters, 2 * 5 * 32 + 8 * 5 * 5 + 4 * 5);
    let tensors = |fitted: &Fitted| fitted.checkpoint().tensors.to_memory().unwrap();
    let (before, after) = (tensors(&base), tensors(&head));
    let backbone = before.iter().filter(|(name, ..)| name.starts_with("model."));
    for (name, shape, values) in backbone {
        let (_, found_shape, found) = after.iter().find(|(found, ..)| *found == name).unwrap();
        assert_eq!((found_shape, found), (shape, values), "{name}");
    }

    // Kept features, and none, are the same.
    let [backbone] = files(&kept).try_into().unwrap();
    // Of the training, and of the held-out pairs.
    let parts = files(&backbone);
    assert_eq!(parts.len(), 2);
    let written = |file: &PathBuf| fs::metadata(file).unwrap().modified().unwrap();
    let before: Vec<_> = parts.iter().map(written).collect();
    let again = workshop.fit(&with_folder, "again");
    assert_eq!(files(&backbone), parts);
    assert_eq!(parts.iter().map(written).collect::<Vec<_>>(), before);
    // What one run wrote serves a run on other pairs.
    fs::remove_file(&parts[0]).unwrap();
    let mended = workshop.fit(&with_folder, "mended");
    assert_eq!(mended.bytes(WEIGHTS), head.bytes(WEIGHTS));
    assert_eq!(files(&backbone), parts);
    let without = workshop.fit(&settings("head", ""), "without");
    assert_eq!(again.bytes(WEIGHTS), head.bytes(WEIGHTS));
    assert_eq!(without.bytes(WEIGHTS), head.bytes(WEIGHTS));

    // The same loss as that of the whole model, at the first step.
    let one_step = |mode| {
        let settings = settings(mode, "").replace("epochs = 3", "epochs = 1");
        let report = workshop.fit(&settings.replace("step = 16", "step = 500"), mode).report;
        assert_eq!(report.steps, 1);
        report.epochs[0]
    };
    let (full, head_only) = (one_step("full"), one_step("head"));
    assert!((full.loss - head_only.loss).abs() < 1e-5 * full.loss, "{full:?} {head_only:?}");
    assert!((full.kl - head_only.kl).abs() < 1e-5 * full.kl, "{full:?} {head_only:?}");

    fs::write(&parts[1], "no features").unwrap();
    let failed = workshop.start(&with_folder, &workshop.run("failed"));
    let said = String::from_utf8(failed.stderr).unwrap();
    assert!(said.contains("not a part of this backbone's features: delete it"), "{said}");
}

#[test]
fn label_noise_exchanges_a_share_of_the_training_pairs() {
    let workshop = Workshop::new();
    let settings = workshop.settings(SCRATCH, &inform_head("linear"));
    let settings = settings.replace("epochs = 3", "epochs = 1");
    let clean = workshop.fit(&settings, "clean").report;
    assert_eq!(clean.label_noise_pairs, 0);
    let all = settings.replace("[data]", "[data]\nlabel_noise = 1");
    let turned = workshop.fit(&all, "turned");
    assert_eq!(turned.report.label_noise_pairs, turned.report.train_pairs);
    // What is held out is not exchanged: the model learned the opposite.
    assert!(turned.report.held_out.as_ref().unwrap().accuracy < 0.2, "{:?}", turned.report);
    let card = String::from_utf8(turned.bytes("README.md")).unwrap();
    assert!(card.contains(&format!("answers of {} training pairs", turned.report.train_pairs)));
    let some = settings.replace("[data]", "[data]\nlabel_noise = 0.25");
    let some = workshop.fit(&some, "some").report;
    let expected = (0.25 * some.train_pairs as f64).round() as usize;
    assert_eq!(some.label_noise_pairs, expected);
}

#[test]
fn last_layers_are_trained_over_features_of_those_before() {
    let workshop = Workshop::new();
    let base = workshop.fit(&workshop.settings(SCRATCH, &inform_head("linear")), "base");
    let kept = workshop.folder.path().join("features");
    let settings = |mode: &str, more: &str| {
        let start = format!("{mode}\n[start]\nfolder = {:?}", base.output);
        workshop.settings(&start, &format!("[loss]\nbeta = 0.01\n[head]\nlatent_dim = 5\n{more}"))
    };
    let last = "mode = \"last_layers\"\nlast_layers = 1";
    let with_folder = settings(last, &format!("[features]\nfolder = {kept:?}"));

    let fitted = workshop.fit(&with_folder, "last");
    assert!(fitted.report.held_out.as_ref().unwrap().accuracy > 0.95, "{:?}", fitted.report);
    let tensors = |fitted: &Fitted| fitted.checkpoint().tensors.to_memory().unwrap();
    let (before, after) = (tensors(&base), tensors(&fitted));
    for (name, _, values) in before.iter().filter(|(name, ..)| name.starts_with("model.")) {
        let (_, _, found) = after.iter().find(|(found, ..)| *found == name).unwrap();
        let is_trained = name.starts_with("model.layers.1.") || name == "model.norm.weight";
        assert_eq!(found != values, is_trained, "{name}");
    }

    // Kept features, and none, and recomputed activations are the same; one micro-batch is, but for rounding.
    let again = workshop.fit(&with_folder, "again");
    let without = workshop.fit(&settings(last, ""), "without");
    assert_eq!(again.bytes(WEIGHTS), fitted.bytes(WEIGHTS));
    assert_eq!(without.bytes(WEIGHTS), fitted.bytes(WEIGHTS));
    let recompute = settings(&format!("recompute = true\n{last}"), "");
    assert_eq!(workshop.fit(&recompute, "recomputed").bytes(WEIGHTS), fitted.bytes(WEIGHTS));

    // The same loss as that of the whole model, at the first step, however it is divided.
    let one_step = |name: &str, settings: String, tokens: usize| {
        let settings = settings
            .replace("epochs = 3", "epochs = 1")
            .replace("step = 16", &format!("step = 500\nmicro_batch_tokens = {tokens}"));
        let report = workshop.fit(&settings, name).report;
        assert_eq!(report.steps, 1);
        report.epochs[0]
    };
    let whole = one_step("full", settings("mode = \"full\"", ""), 0);
    for (name, mode, tokens) in
        [("last-one", last, 0), ("last-some", last, 300), ("full-some", "mode = \"full\"", 300)]
    {
        let found = one_step(name, settings(mode, ""), tokens);
        assert!((whole.loss - found.loss).abs() < 1e-5 * whole.loss, "{whole:?} {found:?}");
        assert!((whole.kl - found.kl).abs() < 1e-5 * whole.kl, "{whole:?} {found:?}");
    }

    // An evaluation over kept features is that without them.
    let model = fitted.output.to_str().unwrap();
    let data: Vec<&str> = workshop.data.iter().map(|file| file.to_str().unwrap()).collect();
    let evaluate = |more: &[&str]| {
        let arguments = [&["eval", "--json", "--model", model, "--data"], data.as_slice(), more];
        succeeded(workshop.trainer(&arguments.concat()))
    };
    assert_eq!(evaluate(&["--features", kept.to_str().unwrap()]), evaluate(&[]));

    for (wrong, says) in [
        ("mode = \"last_layers\"", "last_layers: at least 1"),
        ("last_layers = 1", "and 0 with others"),
        ("mode = \"last_layers\"\nlast_layers = 2", "train it with `mode = \"full\"`"),
    ] {
        let failed = workshop.start(&settings(wrong, ""), &workshop.run("failed"));
        let said = String::from_utf8(failed.stderr).unwrap();
        assert!(!failed.status.success() && said.contains(says), "{said}");
    }
}

#[test]
fn adapters_are_trained_and_merged() {
    let workshop = Workshop::new();
    let base = workshop.fit(&workshop.settings(SCRATCH, &inform_head("linear")), "base");
    let settings = |lora: &str| {
        let start = format!(
            "mode = \"lora\"\nweight_type = \"f32\"\n[lora]\n{lora}\n[start]\nfolder = {:?}",
            base.output
        );
        workshop.settings(&start, "[loss]\nbeta = 0.01\n[head]\nlatent_dim = 5\n")
    };
    let fitted = workshop.fit(
        &settings("rank = 4\nalpha = 8\ntargets = [\"q_proj\", \"v_proj\", \"down_proj\"]"),
        "lora",
    );
    assert!(fitted.report.held_out.as_ref().unwrap().accuracy > 0.95, "{:?}", fitted.report);

    let config: Value =
        serde_json::from_slice(&fitted.bytes("adapter/adapter_config.json")).unwrap();
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(4), &json!(8.0)));
    let adapter = fitted.bytes("adapter/adapter_model.safetensors");
    let adapter = safetensors::SafeTensors::deserialize(&adapter).unwrap();
    let factor = |layer: &str, which: char| {
        let name = format!("base_model.model.{layer}.lora_{which}.weight");
        let tensor = adapter.tensor(&name).unwrap();
        let values: Vec<f32> =
            tensor.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        (tensor.shape().to_vec(), values)
    };
    let (before, after) = (
        base.checkpoint().tensors.to_memory().unwrap(),
        fitted.checkpoint().tensors.to_memory().unwrap(),
    );
    let mut adapted = 0;
    for (name, shape, values) in before.iter().filter(|(name, ..)| name.starts_with("model.")) {
        let (_, _, found) = after.iter().find(|(found, ..)| *found == name).unwrap();
        let layer = name.strip_suffix(".weight").unwrap();
        if !["q_proj", "v_proj", "down_proj"].iter().any(|target| layer.ends_with(target)) {
            assert_eq!(found, values, "{name} is frozen");
            continue;
        }
        adapted += 1;
        let ((a_shape, a), (b_shape, b)) = (factor(layer, 'A'), factor(layer, 'B'));
        assert_eq!((a_shape, b_shape), (vec![4, shape[1]], vec![shape[0], 4]));
        for (index, (found, value)) in found.iter().zip(values).enumerate() {
            let (row, column) = (index / shape[1], index % shape[1]);
            let product: f32 = (0..4).map(|k| b[row * 4 + k] * a[k * shape[1] + column]).sum();
            assert!((found - value - 2.0 * product).abs() < 1e-5, "{name}, {row}, {column}");
        }
    }
    assert_eq!((adapted, adapter.len()), (6, 12));

    for (wrong, says) in [
        ("rank = 0", "lora.rank"),
        ("targets = []", "lora.targets: name at least one"),
        ("targets = [\"head\"]", "lora.targets: `head` is none of"),
    ] {
        let failed = workshop.start(&settings(wrong), &workshop.run("failed"));
        let said = String::from_utf8(failed.stderr).unwrap();
        assert!(!failed.status.success() && said.contains(says), "{said}");
    }
}
