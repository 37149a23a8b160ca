//! What a run is given over HTTP: a baseline, settings, shaped rewards.

use crate::support::server::{Client, Server, bits, float, pair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

fn answers() -> Vec<Value> {
    let answer = |number: usize| {
        let things = ["a kettle", "the piano", "a tent", "sourdough", "an old map"];
        let thing = things[number % things.len()];
        pair(&format!("What about {thing}?"), &format!("{thing}: {}", "well, ".repeat(1 + number)))
    };
    (0..20).map(answer).collect()
}

/// The distances that a run's baseline gives to some answers.
fn distances(client: &Client, run: &str) -> Vec<f64> {
    let inputs = &answers()[..4];
    let body = json!({"inputs": inputs, "run": run, "role": "eval", "return_latents": false});
    let answer = client.reward(&body);
    let items = answer["items"].as_array().unwrap();
    items.iter().map(|item| item["mahalanobis"].as_f64().unwrap()).collect()
}

fn evaluate(client: &Client, run: &str) -> Value {
    client.post(&format!("/runs/{run}/evaluate"), &json!({})).ok()
}

#[test]
fn latents_and_texts_make_the_same_baseline() {
    let server = Server::start(&[]);
    let scored = server.score(&answers());
    let checkpoint = distances(&server, "json");
    let body = json!({
        "latents": scored["latents"], "rewards": scored["rewards"], "weights": scored["weights"],
        "prompts": answers().iter().map(|answer| answer["prompt"].clone()).collect::<Vec<_>>(),
    });
    let given = server.put("/runs/json/baseline", &body).ok();
    let expected = json!({
        "run": "json", "baseline": "uploaded", "baseline_version": 1, "baseline_samples": 20,
        "mahalanobis": true, "errors": []
    });
    assert_eq!(given, expected);
    let uploaded = distances(&server, "json");
    assert_ne!(uploaded, checkpoint);

    let bytes: Vec<u8> = (0..20)
        .flat_map(|index| bits(&scored, index).1)
        .flat_map(|bits| f32::from_bits(bits).to_le_bytes())
        .collect();
    let body = json!({"latents": STANDARD.encode(bytes), "dimension": 32});
    assert_eq!(server.put("/runs/base64/baseline", &body).ok()["baseline_samples"], 20);
    assert_eq!(distances(&server, "base64"), uploaded);

    // Texts, of which one cannot be scored.
    let mut inputs = answers();
    inputs.insert(3, json!({"text": ""}));
    let given = server.put("/runs/texts/baseline", &json!({"inputs": inputs})).ok();
    assert_eq!((&given["baseline_samples"], &given["errors"][0]["index"]), (&json!(20), &json!(3)));
    assert_eq!(given["errors"][0]["code"], "empty_input");
    assert_eq!(distances(&server, "texts"), uploaded);
    assert_eq!(server.read("/runs/texts")["samples"], 0, "a baseline is not the policy's");

    // Evaluations name the version that they were compared with.
    server.reward(&json!({"inputs": answers(), "run": "texts"}));
    let row = evaluate(&server, "texts");
    assert_eq!((&row["baseline"], &row["baseline_version"]), (&json!("uploaded"), &json!(1)));
    assert_eq!(row["baseline_samples"], 20);
    let again = server.put("/runs/texts/baseline", &json!({"inputs": answers()[..9]})).ok();
    assert_eq!(again["baseline_version"], 2);
    assert_eq!(server.read("/runs/texts")["baseline_samples"], 9);
    server.reward(&json!({"inputs": answers(), "run": "texts"}));
    assert_eq!(evaluate(&server, "texts")["baseline_version"], 2);

    // Answers that are recorded later replace it when there are enough.
    let body = json!({"inputs": answers(), "run": "texts", "role": "baseline"});
    server.reward(&body);
    server.reward(&json!({"inputs": answers(), "run": "texts"}));
    assert_eq!(evaluate(&server, "texts")["baseline"], "uploaded");
    server.reward(&body);
    server.reward(&json!({"inputs": answers(), "run": "texts"}));
    let row = evaluate(&server, "texts");
    assert_eq!((&row["baseline"], &row["baseline_version"]), (&json!("recorded"), &json!(3)));
}

#[test]
fn what_is_no_baseline_is_refused_with_its_place() {
    let server = Server::start(&["--set", "monitor.max_window=256"]);
    let row = vec![0.5; 32];
    let refused = |body: Value| server.put("/runs/r/baseline", &body).error();
    let unusable = |pointer: &str| (422, "unprocessable".to_owned(), Some(pointer.to_owned()));
    for (body, pointer) in [
        (json!({}), ""),
        (json!({"latents": [row], "inputs": answers()}), ""),
        (json!({"latents": []}), "/latents"),
        (json!({"latents": [row, [0.5]]}), "/latents/1"),
        (json!({"latents": [vec![1e300; 32]]}), "/latents/0"),
        (json!({"latents": "AAAA", "dimension": 32}), "/latents"),
        (json!({"latents": "not base64!", "dimension": 32}), "/latents"),
        (json!({"latents": "AAAA"}), "/dimension"),
        (json!({"latents": [row], "dimension": 8}), "/dimension"),
        (json!({"latents": [row], "rewards": [1, 2]}), "/rewards"),
        (json!({"latents": [row], "prompts": [null, "a"]}), "/prompts"),
        (json!({"inputs": []}), "/inputs"),
        (json!({"inputs": answers(), "rewards": [1]}), "/rewards"),
    ] {
        assert_eq!(refused(body.clone()), unusable(pointer), "{body}");
    }
    let (status, code, _) = refused(json!({"latents": [row], "weights": "sha256:0123"}));
    assert_eq!((status, code.as_str()), (409, "other_weights"));
    let (status, code, _) = refused(json!({"latents": vec![row.clone(); 257]}));
    assert_eq!((status, code.as_str()), (413, "too_many_inputs"));
    let (status, code, pointer) = refused(json!({"latents": 5}));
    assert_eq!(
        (status, code.as_str(), pointer.as_deref()),
        (400, "invalid_request", Some("/latents"))
    );
    let (status, code, _) = refused(json!({"inputs": [{"text": ""}]}));
    assert_eq!((status, code.as_str()), (422, "unprocessable"));
    let long = format!("/runs/{}/baseline", "x".repeat(129));
    assert_eq!(server.put(&long, &json!({"latents": [row]})).status, 400);
    assert_eq!(server.get("/runs/r").status, 404, "nothing was made of it");

    // One latent has no covariance: there is a baseline and no distance.
    let given = server.put("/runs/r/baseline", &json!({"latents": [row]})).ok();
    assert_eq!((&given["mahalanobis"], &given["baseline_samples"]), (&json!(false), &json!(1)));
}

#[test]
fn a_run_has_settings_of_its_own() {
    let server = Server::start(&[]);
    let config = json!({
        "window": 4, "min_window": 2, "csi": {"noise": "drop"}, "alerts": {"kinds": ["mop"]},
    });
    let run = server.put("/runs/own/config", &config).ok();
    let expected = json!({
        "window": 4, "min_window": 2,
        "csi": {"eps": 0.5, "min_samples": 5, "noise": "drop"},
        "early_stop": {"max_ratio": 10.0, "absolute_floor": 0.01},
        "alerts": {"kinds": ["mop"], "consecutive": 3, "length_ratio": 1.5},
        "shaping": {"gamma": 0.0, "spread": 0.0, "beta_kl": 0.0},
    });
    for (name, value) in expected.as_object().unwrap() {
        for (key, value) in value.as_object().into_iter().flatten() {
            assert_eq!(run["config"][name][key], *value, "{name}.{key}");
        }
    }
    assert_eq!((&run["samples"], &run["config"]["window"]), (&json!(0), &json!(4)));
    server.reward(&json!({"inputs": answers()[..9], "run": "own"}));
    server.reward(&json!({"inputs": answers()[..9], "run": "other"}));
    let row = evaluate(&server, "own");
    assert_eq!((&row["number"], &row["samples"]), (&json!(2), &json!(1)));
    assert_eq!(evaluate(&server, "other")["samples"], 9);

    // What is left out stays; the open window too.
    server.reward(&json!({"inputs": answers()[..3], "run": "own"}));
    let run = server.put("/runs/own/config", &json!({"csi": {"eps": 0.25}, "window": 3})).ok();
    assert_eq!(run["config"]["csi"]["noise"], "drop");
    assert_eq!((&run["config"]["csi"]["eps"], &run["open_window"]), (&json!(0.25), &json!(3)));
    server.reward(&json!({"inputs": answers()[..1], "run": "own"}));
    server.reward(&json!({"inputs": answers()[..1], "run": "own"}));
    assert_eq!(evaluate(&server, "own")["samples"], 1);
    let rows = server.read("/runs/own/evaluations");
    let sizes: Vec<_> =
        rows["evaluations"].as_array().unwrap().iter().map(|r| &r["samples"]).collect();
    assert_eq!(sizes, [4, 4, 1, 4, 1]);

    for (config, status, pointer) in [
        (json!({"window": "many"}), 400, "/window"),
        (json!({"history": 5}), 400, "/history"),
        (json!({"csi": {"noise": "loud"}}), 400, "/csi/noise"),
        (json!({"csi": null}), 400, "/csi"),
        (json!({"window": 0}), 422, "/window"),
        (json!({"window": 4097}), 422, "/window"),
        (json!({"shaping": {"gamma": -1}}), 422, "/shaping"),
        (json!({"early_stop": {"max_ratio": 0}}), 422, "/early_stop"),
        (json!({"alerts": {"kinds": ["loud"]}}), 400, "/alerts/kinds/0"),
        (json!({"alerts": {"consecutive": 0}}), 422, "/alerts"),
    ] {
        let (found, _, at) = server.put("/runs/own/config", &config).error();
        assert_eq!((found, at.as_deref()), (status, Some(pointer)), "{config}");
        assert_eq!(server.put("/runs/new/config", &config).status, status);
    }
    assert_eq!(server.read("/runs/own")["config"], run["config"]);
    assert_eq!(server.get("/runs/new").status, 404, "nothing was made of it");
}

#[test]
fn without_a_baseline_what_needs_none_is_monitored() {
    let server = Server::start(&["--model", "tests/golden/tiny/linear"]);
    let inputs: Vec<Value> = (1..41).map(|id| json!({"input_ids": [id, id + 1]})).collect();
    server.reward(&json!({"inputs": inputs, "run": "r"}));
    let row = evaluate(&server, "r");
    assert!(row["csi"].is_null() && row["baseline"].is_null(), "{row}");
    assert!(row["reason"].as_str().unwrap().contains("baseline"), "{row}");
    assert!(row["reward_mean"].is_number() && row["distinct_ratio"] == 1.0, "{row}");
    let config = json!({"shaping": {"gamma": 1}});
    server.put("/runs/r/config", &config).ok();
    let answer = server.post("/reward", &json!({"inputs": inputs, "run": "r"}));
    assert_eq!(answer.error().0, 422);
    assert!(answer.text.contains("PUT /runs/{run}/baseline"), "{}", answer.text);
}

#[test]
fn rewards_are_shaped_for_the_policy_alone() {
    let server = Server::start(&[]);
    let plain = server.reward(&json!({"inputs": answers(), "run": "plain", "samples": 8}));
    assert!(plain.get("raw_rewards").is_none());
    let shaping = json!({"shaping": {"gamma": 0.25, "spread": 0.5}});
    server.put("/runs/shaped/config", &shaping).ok();
    let body = json!({"inputs": answers(), "run": "shaped", "samples": 8});
    let shaped = server.reward(&body);
    for index in 0..20 {
        let raw = float(&plain["rewards"][index]);
        assert_eq!(float(&shaped["raw_rewards"][index]).to_bits(), raw.to_bits());
        let item = &shaped["items"][index];
        assert_eq!(item["mahalanobis"], plain["items"][index]["mahalanobis"]);
        let terms = 0.25 * item["mahalanobis"].as_f64().unwrap()
            + 0.5 * f64::from(float(&item["reward_std"]));
        let expected = f64::from(raw) - terms;
        assert!((f64::from(float(&shaped["rewards"][index])) - expected).abs() < 1e-6);
        assert_ne!(shaped["rewards"][index], plain["rewards"][index]);
    }
    // The monitor and answers of other roles have the model's rewards.
    server.reward(&json!({"inputs": answers(), "run": "plain", "samples": 8}));
    server.reward(&body);
    let (own, other) = (evaluate(&server, "shaped"), evaluate(&server, "plain"));
    assert_eq!(own["reward_mean"], other["reward_mean"]);
    for role in ["eval", "baseline"] {
        let answer = server.reward(&json!({"inputs": answers(), "run": "shaped", "role": role}));
        assert_eq!(answer["rewards"], plain["rewards"], "{role}");
        assert!(answer.get("raw_rewards").is_none());
    }
    let answer = server.post("/reward", &json!({"inputs": answers(), "run": "shaped"}));
    assert_eq!(answer.error().0, 422);
    assert!(answer.text.contains("`samples`"), "{}", answer.text);

    // Every protocol gives what the trainer is to use.
    server.put("/runs/shaped/config", &json!({"shaping": {"spread": 0}})).ok();
    let texts = json!({"query": ["A text.", "Another one."]});
    let rewards =
        |run: &str| server.post(&format!("/get_reward?run={run}"), &texts).ok()["rewards"].clone();
    let inputs =
        json!({"inputs": [{"text": "A text."}, {"text": "Another one."}], "run": "shaped"});
    assert_eq!(rewards("shaped"), server.reward(&inputs)["rewards"]);
    assert_eq!(rewards("plain"), server.reward(&inputs)["raw_rewards"]);
}

#[test]
fn the_divergence_from_the_reference_is_taken_off_where_it_is_sent() {
    let server = Server::start(&["--set", "monitor.shaping.beta_kl=0.5"]);
    let mut inputs = answers();
    for (index, input) in inputs.iter_mut().enumerate() {
        input["log_probability"] = json!(-10.0 - index as f64);
        input["reference_log_probability"] = json!(-14.0);
    }
    inputs[1].as_object_mut().unwrap().remove("reference_log_probability");
    inputs[2]["log_probability"] = json!(1e308);
    inputs[2]["reference_log_probability"] = json!(-1e308);
    let answer = server.score(&inputs);
    for index in 0..20 {
        let (reward, error) = (&answer["rewards"][index], &answer["items"][index]["error"]["code"]);
        match index {
            1 => assert_eq!((reward, error), (&Value::Null, &json!("shaping_unavailable"))),
            2 => assert_eq!((reward, error), (&Value::Null, &json!("non_finite_reward"))),
            _ => {
                let raw = f64::from(float(&answer["raw_rewards"][index]));
                let expected = (raw - 0.5 * (4.0 - index as f64)) as f32;
                assert_eq!(float(reward).to_bits(), expected.to_bits());
            }
        }
    }
    assert!(answer["raw_rewards"][1].is_null());
    // Where it is off, what is sent does not matter.
    let plain = Server::start(&[]).score(&inputs);
    assert!(plain["rewards"].as_array().unwrap().iter().all(Value::is_number));
}
