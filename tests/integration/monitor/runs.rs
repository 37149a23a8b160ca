//! The monitor over HTTP: windows, baselines, early stopping, and what becomes of a run.

use std::time::{Duration, Instant};

use crate::support::server::{Client, PATIENCE, Server, pair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use inform::checkpoint::{Baseline, Message};
use inform::monitor::prompt_fingerprint;
use inform::monitor::statistics::csi::{CsiParameters, csi};
use ndarray::Array2;
use serde_json::{Value, json};

/// Enough for a window, and for a baseline, at the default `monitor.min_window`.
const TEXTS: usize = 40;

/// Questions with different answers, as an SFT model might give them.
fn answers() -> Vec<Value> {
    let things = [
        "a kettle",
        "the piano",
        "a tent",
        "sourdough",
        "a bicycle",
        "an old map",
        "the attic",
        "a kite",
    ];
    let asks = [
        ("How do I clean", "Warm water and a soft cloth are enough for"),
        ("Where should I keep", "A dry shelf away from the sun suits"),
        ("What is the story of", "Nobody knows for certain, but people have long liked"),
        ("How long does it take to learn about", "Give it a few weeks, and be patient with"),
        ("Is it safe to leave children with", "Stay close by the first time they meet"),
    ];
    let pairs = asks.iter().flat_map(|(ask, answer)| {
        things.iter().enumerate().map(move |(number, thing)| {
            let extra = " Ask again if anything is unclear.".repeat(number % 3);
            pair(&format!("{ask} {thing}?"), &format!("{answer} {thing}.{extra}"))
        })
    });
    let pairs: Vec<Value> = pairs.collect();
    assert_eq!(pairs.len(), TEXTS);
    pairs
}

/// The same answer to every question.
fn refusals() -> Vec<Value> {
    let refuse = |mut input: Value| {
        input["prompt"] = json!("Any question.");
        input["response"] = json!("I cannot help with that. ".repeat(12));
        input
    };
    answers().into_iter().map(refuse).collect()
}

/// In another order: requests of one step may arrive in any.
fn shuffled(mut inputs: Vec<Value>, seed: usize) -> Vec<Value> {
    let count = inputs.len();
    for index in 1..count {
        inputs.swap(index, (index * 31 + seed * 17 + seed * index * 7) % (index + 1));
    }
    inputs
}

fn send(client: &Client, run: &str, step: Option<u64>, inputs: &[Value]) -> Value {
    client.reward(&json!({"inputs": inputs, "run": run, "step": step}))
}

fn record(client: &Client, run: &str, inputs: &[Value]) -> Value {
    let body = json!({
        "inputs": inputs, "run": run, "role": "baseline", "latents_format": "base64-f32"
    });
    client.reward(&body)
}

fn evaluate(client: &Client, run: &str) -> Value {
    client.post(&format!("/runs/{run}/evaluate"), &json!({})).ok()
}

fn evaluations(client: &Client, run: &str) -> Vec<Value> {
    let rows = client.read(&format!("/runs/{run}/evaluations"));
    rows["evaluations"].as_array().unwrap().clone()
}

/// Waits for what the monitor's thread does in its own time.
fn until(what: &str, done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What is known of a run; no fields where the monitor has not seen it yet.
fn seen(client: &Client, run: &str) -> Value {
    client.get(&format!("/runs/{run}")).json()
}

fn gauge(client: &Client, name: &str, run: &str) -> Option<f64> {
    let label = format!("{{run=\"{run}\"}}");
    client.metric(name).into_iter().find(|(labels, _)| *labels == label).map(|(_, value)| value)
}

/// Rows of latents in `base64-f32`.
fn latents(answer: &Value) -> Array2<f64> {
    let rows = answer["latents"].as_array().unwrap();
    let bytes: Vec<u8> =
        rows.iter().flat_map(|row| STANDARD.decode(row.as_str().unwrap()).unwrap()).collect();
    let values: Vec<f64> = bytes
        .chunks_exact(4)
        .map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap())))
        .collect();
    Array2::from_shape_vec((rows.len(), values.len() / rows.len()), values).unwrap()
}

#[test]
fn a_policy_that_stays_at_its_baseline_is_never_stopped() {
    for noise in ["paper", "singletons", "drop"] {
        let server = Server::start(&["--set", &format!("monitor.csi.noise={noise}")]);
        record(&server, "steady", &answers());
        for step in 0..24 {
            // Sometimes the same order, sometimes another.
            let seed = if step % 3 == 0 { step as usize } else { 0 };
            send(&server, "steady", Some(step), &shuffled(answers(), seed));
        }
        evaluate(&server, "steady");
        let rows = evaluations(&server, "steady");
        assert_eq!(rows.len(), 24);
        for row in &rows {
            assert_eq!(row["early_stop"], false, "{noise}: {row}");
            assert_eq!((&row["samples"], &row["baseline"]), (&json!(TEXTS), &json!("recorded")));
        }
        assert_eq!(gauge(&server, "inform_early_stop", "steady"), Some(0.0));
        let answer = send(&server, "steady", Some(99), &answers()[..1]);
        assert_eq!(answer["run"]["id"], "steady");
        assert_eq!(answer["run"]["step"], 23);
        assert_eq!(answer["run"]["early_stop"], false);
    }
}

/// The same answers in another order have the same CSI but for its last bits.
#[test]
fn the_order_of_answers_stops_nothing() {
    // Many terms, none of them zero: single points away from a baseline of other texts.
    let flags = ["--set", "monitor.csi.noise=singletons", "--set", "monitor.csi.eps=0.05"];
    let server = Server::start(&flags);
    for step in 0..60 {
        let inputs = shuffled(answers(), if step < 20 { 0 } else { step });
        send(&server, "r", None, &inputs);
        let row = evaluate(&server, "r");
        assert_eq!(row["early_stop"], false, "{row}");
    }
}

#[test]
fn a_policy_that_collapses_to_one_refusal_is_stopped_and_stays_so() {
    for noise in ["paper", "singletons"] {
        let server = Server::start(&["--set", &format!("monitor.csi.noise={noise}")]);
        record(&server, "collapse", &answers());
        record(&server, "healthy", &answers());
        for step in 0..8 {
            send(&server, "collapse", Some(step), &answers());
            send(&server, "healthy", Some(step), &answers());
        }
        // The step after a jump completes its window.
        send(&server, "collapse", Some(8), &refusals());
        send(&server, "collapse", Some(9), &answers());
        until("nine windows", || seen(&server, "collapse")["evaluations"] == 9);
        let rows = evaluations(&server, "collapse");
        assert!(rows[..8].iter().all(|row| row["early_stop"] == false), "{noise}: {rows:?}");
        let jump = &rows[8];
        assert_eq!((&jump["early_stop"], &jump["last_step"]), (&json!(true), &json!(8)), "{jump}");
        assert_eq!(jump["clusters"], 1);
        assert!(jump["reason"].as_str().unwrap().starts_with("CSI "), "{jump}");

        let status = send(&server, "collapse", Some(9), &answers()[..1])["run"].clone();
        assert_eq!((&status["early_stop"], &status["step"]), (&json!(true), &json!(8)));
        assert_eq!(status["reason"], jump["reason"]);
        assert_eq!(gauge(&server, "inform_early_stop", "collapse"), Some(1.0));

        // Good answers do not take it back, nor does it touch another run.
        for step in 10..14 {
            send(&server, "collapse", Some(step), &answers());
        }
        let last = evaluate(&server, "collapse");
        assert_eq!((&last["early_stop"], &last["last_step"]), (&json!(true), &json!(13)));
        assert!(!last["reason"].is_null());
        assert_eq!(gauge(&server, "inform_early_stop", "collapse"), Some(1.0));
        assert_eq!(evaluate(&server, "healthy")["early_stop"], false);
        assert_eq!(gauge(&server, "inform_early_stop", "healthy"), Some(0.0));
        let view = server.read("/runs/collapse");
        assert_eq!(view["early_stop"], true);
        assert_eq!(view["stopped_at"]["last_step"], 8);
        assert_eq!(view["last_evaluation"]["last_step"], 13);
    }
}

#[test]
fn an_answer_names_the_alerts_of_its_run() {
    let server = Server::start(&[]);
    for (run, inputs) in [("collapse", refusals()), ("healthy", answers())] {
        record(&server, run, &answers());
        for step in 0..4 {
            send(&server, run, Some(step), &inputs);
        }
        let last = evaluate(&server, run);
        let status = send(&server, run, Some(4), &inputs[..1])["run"].clone();
        assert_eq!((&status["step"], &status["alerts"]), (&json!(3), &last["alerts"]));
        let kinds = status["alerts"].as_array().unwrap();
        if run == "healthy" {
            assert!(kinds.is_empty(), "{last}");
        } else {
            assert!(kinds.contains(&json!("collapse")), "{last}");
            let view = server.read(&format!("/runs/{run}"));
            let lasting = |alert: &&Value| alert["resolved_at"].is_null();
            let lasting = view["alerts"].as_array().unwrap().iter().filter(lasting).count();
            assert_eq!(kinds.len(), lasting);
        }
    }
}

#[test]
fn csi_is_that_of_the_latents_that_were_answered() {
    let server = Server::start(&[]);
    let baseline = latents(&record(&server, "r", &answers()));
    let mut parts = Vec::new();
    let mut policy = answers();
    policy.truncate(25);
    policy.extend(refusals().into_iter().take(12));
    // Several requests make one window.
    for inputs in policy.chunks(10) {
        let body = json!({"inputs": inputs, "run": "r", "latents_format": "base64-f32"});
        parts.push(latents(&server.reward(&body)));
    }
    let views: Vec<_> = parts.iter().map(Array2::view).collect();
    let policy = ndarray::concatenate(ndarray::Axis(0), &views).unwrap();
    let row = evaluate(&server, "r");
    let expected = csi(policy.view(), baseline.view(), &CsiParameters::default()).unwrap();
    for (name, expected) in [
        ("csi", expected.csi),
        ("csi_per_sample", expected.per_sample),
        ("noise_fraction", expected.noise_fraction),
    ] {
        let found = row[name].as_f64().unwrap();
        assert!((found - expected).abs() <= 1e-12 * expected.abs(), "{name}: {found} {expected}");
    }
    assert_eq!(row["clusters"], expected.clusters);
    assert_eq!((&row["samples"], &row["baseline_samples"]), (&json!(37), &json!(TEXTS)));
    assert_eq!(evaluations(&server, "r"), std::slice::from_ref(&row));
    for (metric, key) in [
        ("inform_csi", "csi"),
        ("inform_csi_per_sample", "csi_per_sample"),
        ("inform_noise_fraction", "noise_fraction"),
    ] {
        assert_eq!(gauge(&server, metric, "r"), row[key].as_f64(), "{metric}");
    }
}

#[test]
fn the_checkpoint_is_the_baseline_until_enough_is_recorded() {
    let server = Server::start(&["--set", "monitor.min_window=10"]);
    let own = server.read("/info")["baseline_samples"].clone();
    let texts = answers();
    let mut origins = Vec::new();
    for recorded in [&texts[..0], &texts[..9], &texts[9..10]] {
        if !recorded.is_empty() {
            record(&server, "r", recorded);
        }
        send(&server, "r", None, &texts[..12]);
        let row = evaluate(&server, "r");
        origins.push((row["baseline"].clone(), row["baseline_samples"].clone()));
    }
    let checkpoint = (json!("checkpoint"), own);
    assert_eq!(origins, [checkpoint.clone(), checkpoint, (json!("recorded"), json!(10))]);
    // Only the policy's answers are samples of the run.
    assert_eq!(server.read("/runs/r")["samples"], 36);
}

/// A server of the demo with the baseline that `change` makes of these answers, and a window of others.
fn window_against(scored: &Value, change: impl Fn(&mut Baseline)) -> (Value, Value) {
    let latents = latents(scored);
    let prompt = |input: &Value| {
        prompt_fingerprint(&[Message::new("user", input["prompt"].as_str().unwrap())])
    };
    let mut baseline = Baseline {
        dimension: latents.ncols(),
        latents: latents.iter().map(|&value| value as f32).collect(),
        rewards: None,
        prompts: Some(answers().iter().map(prompt).collect()),
        weights: scored["weights"].as_str().unwrap().to_owned(),
        source: "answers of this test".to_owned(),
    };
    change(&mut baseline);
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir("configs/demo").unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let bytes = baseline.to_bytes().unwrap();
    std::fs::write(folder.path().join("baseline.safetensors"), bytes).unwrap();
    let server = Server::start(&["--model", folder.path().to_str().unwrap()]);
    let others = answers().into_iter().enumerate().map(|(number, mut input)| {
        input["response"] = json!(format!("Try it {number} times, and then rest."));
        if number % 2 == 1 {
            input["prompt"] = json!(format!("Question {number}?"));
        }
        input
    });
    let others: Vec<Value> = others.collect();
    let body = json!({"inputs": others, "run": "r", "latents_format": "base64-f32"});
    let answer = server.reward(&body);
    (answer, evaluate(&server, "r"))
}

#[test]
fn rewards_and_prompts_of_the_checkpoints_baseline_are_used() {
    let demo = Server::start(&[]);
    let body = json!({"inputs": answers(), "role": "eval", "latents_format": "base64-f32"});
    let scored = demo.reward(&body);

    let (answer, without) = window_against(&scored, |baseline| baseline.prompts = None);
    assert_eq!(
        (&without["baseline"], &without["baseline_samples"]),
        (&json!("checkpoint"), &json!(TEXTS))
    );
    assert!(without["saturation"].is_null() && without["paired_distance"].is_null(), "{without}");
    assert_eq!(without["paired_samples"], 0);
    let said = "the baseline has no rewards: no saturation; the baseline names no prompts: no paired distance";
    assert!(without["reason"].as_str().unwrap().ends_with(said), "{without}");

    let rewards = answer["rewards"].as_array().unwrap().iter();
    let rewards: Vec<f32> = rewards.map(|reward| reward.as_f64().unwrap() as f32).collect();
    let mut sorted = rewards.clone();
    sorted.sort_by(f32::total_cmp);
    let limit = sorted[TEXTS / 3];
    let above = rewards.iter().filter(|&&reward| reward > limit).count();
    assert!(above > 0 && above < TEXTS, "{rewards:?}");
    let (answer, with) =
        window_against(&scored, |baseline| baseline.rewards = Some(vec![limit; TEXTS]));
    assert_eq!(with["saturation"], above as f64 / TEXTS as f64);
    // Every other prompt is one of the baseline, which has an answer to each.
    let (own, sft) = (latents(&answer), latents(&scored));
    let distances: Vec<f64> = (0..TEXTS)
        .step_by(2)
        .map(|row| (&own.row(row) - &sft.row(row)).mapv(|part| part * part).sum().sqrt())
        .collect();
    let mean = distances.iter().sum::<f64>() / distances.len() as f64;
    assert_eq!(with["paired_samples"], distances.len());
    let found = with["paired_distance"].as_f64().unwrap();
    assert!((found / mean - 1.0).abs() < 1e-9, "{found}, not {mean}");
    assert!(with["reason"].as_str().is_none_or(|reason| !reason.contains("baseline")), "{with}");

    let (_, with) = window_against(&scored, |_| {});
    let reason = with["reason"].as_str().unwrap();
    assert!(reason.ends_with("; the baseline has no rewards: no saturation"), "{with}");
}

#[test]
fn without_a_baseline_a_window_says_what_is_missing() {
    let server = Server::start(&["--model", "tests/golden/tiny/linear"]);
    assert_eq!(server.read("/info")["baseline_samples"], 0);
    let inputs: Vec<Value> = (0..4).map(|id| json!({"input_ids": [10 + id, 20, 30]})).collect();
    let answer = send(&server, "r", None, &inputs);
    assert!(answer["items"][0]["mahalanobis"].is_null());
    let row = evaluate(&server, "r");
    assert!(row["csi"].is_null() && row["baseline"].is_null());
    assert_eq!(row["early_stop"], false);
    assert!(row["reason"].as_str().unwrap().contains("no baseline"));
    assert!(row["reward_mean"].is_f64() && row["tokens_mean"] == 4.0);
}

#[test]
fn windows_end_with_their_step_or_when_they_are_full() {
    let one = |step: Option<u64>| (step, 1);
    // Settings; answers by step; the windows as (first step, last step, samples); what stays open.
    for (min, max, sent, windows, open) in [
        // By count.
        (2, 100, vec![one(None); 17], vec![(None, None, 8), (None, None, 8)], 1),
        (2, 100, vec![(None, 17)], vec![(None, None, 8), (None, None, 8)], 1),
        // By step; one that arrives late joins the open window.
        (
            2,
            100,
            vec![(Some(1), 3), (Some(2), 2), (Some(1), 1), (Some(2), 1), (Some(3), 1)],
            vec![(Some(1), Some(1), 3), (Some(1), Some(2), 4)],
            1,
        ),
        // Small steps are merged.
        (
            4,
            100,
            vec![(Some(1), 1), (Some(2), 2), (Some(3), 1), (Some(4), 5), (Some(7), 1)],
            vec![(Some(1), Some(3), 4), (Some(4), Some(4), 5)],
            1,
        ),
        // Large ones are cut.
        (2, 10, vec![(Some(1), 25)], vec![(Some(1), Some(1), 10), (Some(1), Some(1), 10)], 5),
        // Where steps are named, only `max_window` counts.
        (2, 100, vec![(Some(0), 20), (Some(1), 1)], vec![(Some(0), Some(0), 20)], 1),
    ] {
        let server = Server::start(&[
            "--set",
            "monitor.window=8",
            "--set",
            &format!("monitor.min_window={min}"),
            "--set",
            &format!("monitor.max_window={max}"),
        ]);
        for (step, count) in &sent {
            let inputs: Vec<Value> = answers().into_iter().take(*count).collect();
            send(&server, "r", *step, &inputs);
        }
        let total: usize = sent.iter().map(|(_, count)| count).sum();
        until("all samples", || seen(&server, "r")["samples"] == total);
        until("all windows", || seen(&server, "r")["evaluations"] == windows.len());
        let rows = evaluations(&server, "r");
        let found: Vec<_> = rows
            .iter()
            .map(|row| {
                let samples = row["samples"].as_u64().unwrap();
                (row["first_step"].as_u64(), row["last_step"].as_u64(), samples)
            })
            .collect();
        assert_eq!(found, windows, "{sent:?}");
        assert_eq!(server.read("/runs/r")["open_window"], open, "{sent:?}");
        let numbers: Vec<_> = rows.iter().map(|row| row["number"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (0..windows.len() as u64).collect::<Vec<_>>());
    }
}

#[test]
fn evaluations_can_be_read_from_a_step_on() {
    let server = Server::start(&["--set", "monitor.history=4"]);
    for step in 0..6 {
        send(&server, "r", Some(step), &answers()[..6]);
        evaluate(&server, "r");
    }
    let steps = |query: &str| -> Vec<u64> {
        let rows = server.read(&format!("/runs/r/evaluations{query}"));
        let rows = rows["evaluations"].as_array().unwrap().clone();
        rows.iter().map(|row| row["last_step"].as_u64().unwrap()).collect()
    };
    // The history is bounded; the count goes on.
    assert_eq!(steps(""), [2, 3, 4, 5]);
    assert_eq!(steps("?from_step=4"), [4, 5]);
    assert!(steps("?from_step=6").is_empty());
    assert_eq!(server.read("/runs/r")["evaluations"], 6);
    assert_eq!(gauge(&server, "inform_evaluations_total", "r"), Some(6.0));
}

#[test]
fn an_empty_window_is_not_evaluated() {
    let server = Server::start(&[]);
    send(&server, "r", None, &answers()[..6]);
    evaluate(&server, "r");
    let again = server.post("/runs/r/evaluate", &json!({}));
    assert_eq!(again.error(), (409, "empty_window".to_owned(), None));
    // A run that has only a baseline has no window either.
    record(&server, "b", &answers());
    assert_eq!(server.post("/runs/b/evaluate", &json!({})).error().0, 409);
    until("the baseline", || server.read("/runs/b")["baseline_samples"] == TEXTS);
}

#[test]
fn answers_of_an_evaluation_are_not_monitored() {
    let server = Server::start(&[]);
    let body = json!({"inputs": answers(), "run": "eval", "role": "eval"});
    assert!(server.reward(&body)["run"].is_null());
    // What another run sends comes later, and is there.
    send(&server, "other", None, &answers()[..2]);
    evaluate(&server, "other");
    assert_eq!(server.get("/runs/eval").status, 404);
    // Nor do they add to a run that exists.
    let mut body = body;
    body["run"] = json!("other");
    assert_eq!(server.reward(&body)["run"]["id"], "other");
    assert_eq!(server.post("/runs/other/evaluate", &json!({})).status, 409);
    assert_eq!(server.read("/runs/other")["samples"], 2);
}

#[test]
fn a_deleted_run_is_gone_with_its_metrics_and_may_begin_again() {
    let server = Server::start(&[]);
    record(&server, "r", &answers());
    for step in 0..4 {
        send(&server, "r", Some(step), if step < 3 { answers() } else { refusals() }.as_slice());
        evaluate(&server, "r");
    }
    assert_eq!(gauge(&server, "inform_early_stop", "r"), Some(1.0));
    let removed = server.send("DELETE", "/runs/r", &[], b"");
    assert_eq!((removed.status, removed.text.as_str()), (204, ""));
    for path in ["/runs/r", "/runs/r/evaluations"] {
        assert_eq!(server.get(path).error().1, "unknown_run");
    }
    assert_eq!(server.send("DELETE", "/runs/r", &[], b"").status, 404);
    assert!(!server.get("/metrics").text.contains("run=\"r\""));

    // Neither the baseline nor the verdict is remembered.
    assert!(send(&server, "r", Some(0), &answers())["run"].is_null());
    let row = evaluate(&server, "r");
    assert_eq!((&row["number"], &row["early_stop"]), (&json!(0), &json!(false)));
    assert_eq!(row["baseline"], "checkpoint");
}

#[test]
fn the_run_that_was_idle_longest_makes_room() {
    let server = Server::start(&["--set", "monitor.max_runs=2"]);
    let texts = answers();
    for run in ["first", "second"] {
        send(&server, run, Some(1), &texts[..6]);
        evaluate(&server, run);
    }
    // The first is used again, so the second is idle when a third comes.
    send(&server, "first", Some(2), &texts[..6]);
    send(&server, "third", Some(1), &texts[..6]);
    evaluate(&server, "third");
    let runs = server.read("/runs");
    let names: Vec<&str> =
        runs["runs"].as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["first", "third"]);
    assert_eq!(server.get("/runs/second").status, 404);
    assert_eq!(gauge(&server, "inform_evaluations_total", "second"), None);
    assert_eq!(gauge(&server, "inform_evaluations_total", "first"), Some(1.0));
}

#[test]
fn failing_inputs_are_no_samples() {
    let server = Server::start(&[]);
    let inputs = [answers()[0].clone(), json!({"text": ""}), json!({"input_ids": [u32::MAX]})];
    send(&server, "r", None, &inputs);
    assert_eq!(evaluate(&server, "r")["samples"], 1);
}

/// Distances to a larger baseline are smaller: that is no change of the policy.
#[test]
fn a_growing_baseline_stops_nothing() {
    let server = Server::start(&["--set", "monitor.min_window=8"]);
    let texts = answers();
    record(&server, "r", &texts[..8]);
    for more in [12, 16, 32, 40] {
        for _ in 0..4 {
            send(&server, "r", None, &texts[..20]);
            let row = evaluate(&server, "r");
            assert_eq!(row["early_stop"], false, "{row}");
        }
        record(&server, "r", &texts[..more]);
    }
    send(&server, "r", None, &texts[..20]);
    // Of 8, 20, 36, 68 and 108 recorded: renewed whenever they had doubled.
    assert_eq!(evaluate(&server, "r")["baseline_samples"], 68);
}

#[test]
fn a_window_that_is_too_small_judges_nothing() {
    let server = Server::start(&["--set", "monitor.min_window=8"]);
    let texts = answers();
    for _ in 0..4 {
        send(&server, "r", None, &texts);
        evaluate(&server, "r");
    }
    send(&server, "r", None, &refusals()[..1]);
    let row = evaluate(&server, "r");
    assert!(row["csi"].is_number());
    assert!(row["csi_change"].is_null());
    assert_eq!(row["early_stop"], false);
    assert!(row["reason"].as_str().unwrap().contains("too few"), "{row}");
    // The next whole window is compared with the last whole one.
    send(&server, "r", None, &texts);
    assert_eq!(evaluate(&server, "r")["csi_change"], 0.0);
}

/// More neighbours than there are latents are no neighbours, and cost no memory.
#[test]
fn a_run_may_ask_for_more_neighbours_than_there_are() {
    let server = Server::start(&[]);
    let most = (1_u64 << 53) - 1;
    let csi = json!({"eps_mode": "calibrated", "min_samples": most});
    server.put("/runs/r/config", &json!({"csi": csi, "statistics": {"neighbours": most}})).ok();
    server.reward(&json!({"inputs": answers(), "run": "r"}));
    let evaluation = evaluate(&server, "r");
    assert!(evaluation["knn_distance"].is_null() && evaluation["csi"].is_null(), "{evaluation}");
    assert!(evaluation["mahalanobis_mean"].is_number(), "{evaluation}");
    for beyond in
        [json!({"csi": {"min_samples": most + 1}}), json!({"statistics": {"neighbours": most + 1}})]
    {
        assert_eq!(server.put("/runs/r/config", &beyond).status, 422);
    }
}
