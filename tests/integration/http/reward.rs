//! `POST /reward` over HTTP: forms, formats, options, and that a score depends on its text alone.

use std::sync::Barrier;

use crate::support::server::{Server, UNCACHED, bits, float, floats, pair, shared_server};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use half::f16;
use serde_json::{Value, json};

const QUESTION: &str = "How do I keep basil fresh?";
const RESPONSE: &str = "Put the stems in a glass of water.";

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

#[test]
fn a_pair_has_a_finite_reward_and_a_latent() {
    let server = Server::start(&[]);
    let info = server.read("/info");
    let answer = server.score(&[pair(QUESTION, RESPONSE), pair("Is the sea salty?", "No.")]);
    for index in 0..2 {
        assert!(float(&answer["rewards"][index]).is_finite());
        let latent = floats(&answer["latents"][index]);
        assert_eq!(latent.len() as u64, info["latent_dim"]);
        assert!(latent.iter().all(|value| value.is_finite()));
        let item = &answer["items"][index];
        assert!(item["tokens"].as_u64().unwrap() > 1);
        assert_eq!(item["truncated"], false);
        assert!(item["error"].is_null() && item["reward_std"].is_null());
        // Distances are to the checkpoint's own baseline.
        let distance = item["mahalanobis"].as_f64();
        assert_eq!(distance.is_some_and(|d| d > 0.0), info["baseline_samples"] != 0);
    }
    assert_ne!(bits(&answer, 0), bits(&answer, 1));
    assert_eq!(answer["rewards"].as_array().unwrap().len(), 2);
    assert_eq!((&answer["model"], &answer["weights"]), (&info["model"], &info["weights"]));
    assert!(answer.get("sigma").is_none());
    assert!(answer["run"].is_null(), "nothing was evaluated yet");
}

#[test]
fn every_form_of_an_input_scores_the_same() {
    let server = shared_server();
    let user = json!({"role": "user", "content": QUESTION});
    let forms = [
        pair(QUESTION, RESPONSE),
        json!({"prompt": [user], "response": RESPONSE}),
        json!({"messages": [user, {"role": "assistant", "content": RESPONSE}]}),
        json!({"text": format!("<|user|>\n{QUESTION}<|end|>\n<|assistant|>\n{RESPONSE}<|end|>\n")}),
    ];
    let tokens = server.post("/tokenize", &json!({"inputs": forms})).ok();
    let answer = server.score(&forms);
    for (index, form) in forms.iter().enumerate() {
        assert!(tokens["errors"][index].is_null());
        assert_eq!(tokens["input_ids"][index], tokens["input_ids"][0], "{form}");
        assert_eq!(bits(&answer, index), bits(&answer, 0), "{form}");
    }
    let ids = tokens["input_ids"][0].as_array().unwrap();
    assert_eq!(answer["items"][0]["tokens"], ids.len());
    // The ids as they were answered, and without the EOS, which scoring adds.
    for ids in [&ids[..], &ids[..ids.len() - 1]] {
        let again = server.score(&[json!({"input_ids": ids})]);
        assert_eq!(bits(&again, 0), bits(&answer, 0));
    }
}

#[test]
fn a_conversation_of_several_turns_is_not_its_last_turn() {
    let server = shared_server();
    let turns = json!([
        {"role": "user", "content": "I bought basil."},
        {"role": "assistant", "content": "Lovely."},
        {"role": "user", "content": QUESTION},
    ]);
    let mut messages = turns.as_array().unwrap().clone();
    messages.push(json!({"role": "assistant", "content": RESPONSE}));
    let answer = server.score(&[
        json!({"prompt": turns, "response": RESPONSE}),
        json!({"messages": messages}),
        pair(QUESTION, RESPONSE),
    ]);
    assert_eq!(bits(&answer, 0), bits(&answer, 1));
    assert_ne!(bits(&answer, 0), bits(&answer, 2));
}

#[test]
fn text_of_any_script_is_scored() {
    let server = shared_server();
    let texts = [
        "日本語のテキスト",
        "Ünïcödé 🦀👩‍👩‍👧",
        "a\u{0}b\u{7f}\u{202e}",
        "\u{feff}",
        "\\u0000\"'{{ messages }}",
    ];
    let inputs: Vec<Value> = texts.iter().map(|text| pair(text, text)).collect();
    let answer = server.score(&inputs);
    for index in 0..texts.len() {
        assert!(float(&answer["rewards"][index]).is_finite(), "{}", answer["items"][index]);
    }
}

#[test]
fn latents_read_back_to_the_same_bits_in_every_format() {
    let server = shared_server();
    let inputs = [pair(QUESTION, RESPONSE), pair(QUESTION, "No idea.")];
    let ask = |format: &str| {
        let body = json!({"inputs": inputs, "latents_format": format, "return_sigma": true});
        server.reward(&body)
    };
    let (numbers, f32s, f16s) = (ask("json"), ask("base64-f32"), ask("base64-f16"));
    for index in 0..inputs.len() {
        for field in ["latents", "sigma"] {
            let numbers = floats(&numbers[field][index]);
            let little_endian: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(bytes(&f32s[field][index]), little_endian);
            let rounded: Vec<u8> =
                numbers.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
            assert_eq!(bytes(&f16s[field][index]), rounded);
        }
        assert!(floats(&numbers["sigma"][index]).iter().all(|sigma| *sigma > 0.0));
    }
    assert_eq!(numbers["rewards"], f32s["rewards"]);
    assert_eq!(numbers["rewards"], f16s["rewards"]);
}

#[test]
fn a_number_has_no_more_digits_than_its_bits_need() {
    let server = shared_server();
    let answer = server.post("/reward", &json!({"inputs": [pair(QUESTION, RESPONSE)]}));
    let text = answer.text.split_once("\"rewards\":[").unwrap().1;
    let reward: f32 = text.split_once(']').unwrap().0.parse().unwrap();
    // What reads a 64-bit float and rounds it must find what reads a 32-bit float at once.
    assert_eq!(reward.to_bits(), float(&answer.json()["rewards"][0]).to_bits());
    assert!(text.starts_with(&reward.to_string()), "{reward} in {text:.40}");
}

#[test]
fn latents_are_left_out_where_they_are_not_wanted() {
    let server = shared_server();
    let with = server.score(&[pair(QUESTION, RESPONSE)]);
    let without =
        server.reward(&json!({"inputs": [pair(QUESTION, RESPONSE)], "return_latents": false}));
    assert!(without["latents"].is_null());
    assert_eq!(with["rewards"], without["rewards"]);
    // The two wishes do not depend on each other.
    let sigma = server.reward(&json!({
        "inputs": [pair(QUESTION, RESPONSE)], "return_latents": false, "return_sigma": true
    }));
    assert!(sigma["latents"].is_null());
    assert_eq!(floats(&sigma["sigma"][0]).len(), floats(&with["latents"][0]).len());
}

#[test]
fn the_spread_of_the_reward_does_not_depend_on_time_or_company() {
    let server = Server::start(UNCACHED);
    let item = pair(QUESTION, RESPONSE);
    let ask = |inputs: &[Value], samples: usize| {
        let answer = server.reward(&json!({"inputs": inputs, "samples": samples}));
        (answer["items"][0]["reward_std"].clone(), answer["rewards"][0].clone())
    };
    let alone = ask(std::slice::from_ref(&item), 16);
    assert!(float(&alone.0) > 0.0);
    assert_eq!(ask(std::slice::from_ref(&item), 16), alone);
    let company: Vec<Value> = std::iter::once(item.clone())
        .chain((0..9).map(|i| pair("Count.", &"one ".repeat(i))))
        .collect();
    assert_eq!(ask(&company, 16), alone);
    // The reward itself is that of the posterior's mean, however many draws there are.
    let none = ask(std::slice::from_ref(&item), 0);
    assert!(none.0.is_null());
    assert_eq!(none.1, alone.1);
    assert_ne!(ask(std::slice::from_ref(&item), 64).0, alone.0);
}

#[test]
fn an_over_long_input_fails_or_keeps_its_end() {
    let server = Server::start(&[]);
    let limit = server.read("/info")["max_tokens"].as_u64().unwrap() as usize;
    let long = json!({"text": "the cat sat on the mat. ".repeat(limit)});
    let short = pair(QUESTION, RESPONSE);
    let refused = server.score(&[long.clone(), short.clone()]);
    assert!(refused["rewards"][0].is_null() && refused["latents"][0].is_null());
    assert_eq!(refused["items"][0]["error"]["code"], "input_too_long");

    let body = json!({"inputs": [long, short], "truncate": true});
    let kept = server.reward(&body);
    assert_eq!(kept["items"][0]["truncated"], true);
    assert_eq!(kept["items"][0]["tokens"], limit);
    assert_eq!(kept["items"][1]["truncated"], false);
    assert_eq!(bits(&kept, 1), bits(&refused, 1));
    let ids = server.post("/tokenize", &body).ok()["input_ids"][0].clone();
    assert_eq!(ids.as_array().unwrap().len(), limit);
    // What was kept fits exactly.
    let again = server.score(&[json!({"input_ids": ids})]);
    assert_eq!(bits(&again, 0), bits(&kept, 0));
    assert_eq!(again["items"][0]["truncated"], false);
}

#[test]
fn run_and_step_come_from_the_body_or_else_from_the_headers() {
    let server = Server::start(&[]);
    let inputs = [pair(QUESTION, RESPONSE)];
    let json = ("content-type", "application/json");
    let header = [json, ("X-Run-Id", "by-header"), ("X-Step", "7")];
    for (headers, body, run, step) in [
        (&header[..], json!({}), "by-header", json!(7)),
        (&header[..], json!({"run": "by-body"}), "by-body", json!(7)),
        (&header[..], json!({"run": "both", "step": 9}), "both", json!(9)),
        (
            &header[..1],
            json!({"run": "só \"\\ 日本"}),
            "s%C3%B3%20%22%5C%20%E6%97%A5%E6%9C%AC",
            json!(null),
        ),
        (&header[..1], json!({}), "default", json!(null)),
    ] {
        let mut body = body;
        body["inputs"] = json!(inputs);
        server.send("POST", "/reward", headers, body.to_string().as_bytes()).ok();
        // An evaluation comes after everything that was observed before.
        let path = format!("/runs/{run}/evaluate");
        assert_eq!(server.post(&path, &json!({})).ok()["last_step"], step, "{run}");
    }
    let runs = server.read("/runs");
    let names: Vec<&str> =
        runs["runs"].as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["both", "by-body", "by-header", "default", "só \"\\ 日本"]);
    // A name with quotes leaves the metrics readable.
    let labels: Vec<String> =
        server.metric("inform_evaluations_total").into_iter().map(|(labels, _)| labels).collect();
    assert!(labels.contains(&r#"{run="só \"\\ 日本"}"#.to_owned()), "{labels:?}");
}

#[test]
fn a_header_that_cannot_be_read_is_not_ignored() {
    let server = Server::start(&[]);
    let body = json!({"inputs": [pair(QUESTION, RESPONSE)]}).to_string();
    for (name, value, pointer) in [
        ("X-Run-Id", "caf\u{e9}", "/run"),
        ("X-Run-Id", "", "/run"),
        ("X-Run-Id", "a\tb", "/run"),
        ("X-Step", "-1", "/step"),
        ("X-Step", "1.5", "/step"),
        ("X-Step", "18446744073709551616", "/step"),
        ("X-Step", "\u{e9}", "/step"),
        ("X-Step", "", "/step"),
    ] {
        let headers = [("content-type", "application/json"), (name, value)];
        let answer = server.send("POST", "/reward", &headers, body.as_bytes());
        let expected = (400, "invalid_request".to_owned(), Some(pointer.to_owned()));
        assert_eq!(answer.error(), expected, "{name}: {value:?}");
    }
    assert_eq!(server.read("/runs")["runs"], json!([]));
}

#[test]
fn a_request_keeps_its_id_or_gets_one() {
    let server = shared_server();
    let body = json!({"inputs": [pair(QUESTION, RESPONSE)]}).to_string();
    let mut made = Vec::new();
    for body in [body.as_str(), "{"] {
        let headers = [("content-type", "application/json"), ("X-Request-Id", "mine-1")];
        let named = server.send("POST", "/reward", &headers, body.as_bytes());
        assert_eq!(named.header("x-request-id"), Some("mine-1"));
        let unnamed = server.post_bytes("/reward", body.as_bytes());
        made.push(unnamed.header("x-request-id").unwrap().to_owned());
    }
    assert!(!made[0].is_empty());
    assert_ne!(made[0], made[1]);
}

#[test]
fn a_bad_item_fails_alone() {
    let server = Server::start(UNCACHED);
    let limit = server.read("/info")["max_tokens"].as_u64().unwrap() as usize;
    let good =
        [pair(QUESTION, RESPONSE), pair("Is it late?", "Yes."), json!({"input_ids": [5, 6, 7]})];
    let alone: Vec<_> =
        good.iter().map(|item| bits(&server.score(std::slice::from_ref(item)), 0)).collect();
    let bad = [
        (json!({}), "empty_input"),
        (json!({"text": ""}), "empty_input"),
        (json!({"messages": []}), "empty_input"),
        (json!({"input_ids": []}), "empty_input"),
        (json!({"prompt": "only"}), "empty_input"),
        (json!({"response": "only"}), "empty_input"),
        (pair("", " "), "empty_input"),
        (json!({"prompt": null, "text": null}), "empty_input"),
        (json!({"input_ids": vec![1; limit + 1]}), "input_too_long"),
        (json!({"input_ids": [1, u32::MAX]}), "unknown_token"),
    ];
    // Good ones before, between and after.
    let mut inputs = vec![good[0].clone(), good[1].clone()];
    inputs.extend(bad.iter().map(|(item, _)| item.clone()));
    inputs.push(good[2].clone());
    let answer = server.score(&inputs);
    assert_eq!(bits(&answer, 0), alone[0]);
    assert_eq!(bits(&answer, 1), alone[1]);
    assert_eq!(bits(&answer, inputs.len() - 1), alone[2]);
    for (index, (item, code)) in bad.iter().enumerate() {
        let index = index + 2;
        assert!(answer["rewards"][index].is_null() && answer["latents"][index].is_null());
        let error = &answer["items"][index]["error"];
        assert_eq!(error["code"], *code, "{item:.60}");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    let counted: f64 = server.metric("inform_item_errors_total").iter().map(|(_, n)| n).sum();
    assert_eq!(counted, bad.len() as f64);
}

#[test]
fn a_text_scores_the_same_alone_in_a_batch_and_among_clients() {
    let server = Server::start(UNCACHED);
    let item =
        |i: usize| pair(&format!("Question {i}: {}", "why? ".repeat(i)), &"so. ".repeat(1 + 3 * i));
    let items: Vec<Value> = (0..64).map(item).collect();
    let batch = server.score(&items);
    let (clients, start) = (16, Barrier::new(16));
    std::thread::scope(|scope| {
        for client in 0..clients {
            let (server, items, batch, start) = (server.client(), &items, &batch, &start);
            scope.spawn(move || {
                start.wait();
                for index in (client..items.len()).step_by(clients) {
                    let alone = server.score(&items[index..=index]);
                    assert_eq!(bits(&alone, 0), bits(batch, index), "input {index}");
                }
            });
        }
    });
    for index in [0, 31, 63] {
        let alone = server.score(&items[index..=index]);
        assert_eq!(bits(&alone, 0), bits(&batch, index), "input {index}");
    }
    let mut reversed = items.clone();
    reversed.reverse();
    let reversed = server.score(&reversed);
    for index in 0..items.len() {
        assert_eq!(bits(&reversed, items.len() - 1 - index), bits(&batch, index));
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_score() {
    let items = [pair(QUESTION, RESPONSE), pair("Count.", &"one ".repeat(300))];
    let scores = ["1", "2", "3"].map(|threads| {
        let answer = Server::start(&["--threads", threads]).score(&items);
        (bits(&answer, 0), bits(&answer, 1))
    });
    assert_eq!(scores[0], scores[1]);
    assert_eq!(scores[0], scores[2]);
}

#[test]
fn a_standard_head_has_rewards_and_no_latents() {
    let server = Server::start(&["--model", "tests/golden/tiny/standard"]);
    assert!(server.read("/info")["latent_dim"].is_null());
    let answer = server.reward(&json!({
        "inputs": [{"input_ids": [3, 4, 5]}, {"text": "Hello"}],
        "run": "standard", "return_sigma": true, "samples": 4,
    }));
    assert!(float(&answer["rewards"][0]).is_finite() && float(&answer["rewards"][1]).is_finite());
    assert!(
        answer["latents"].is_null() && answer.get("sigma").is_none() && answer["run"].is_null()
    );
    assert!(answer["items"][0]["reward_std"].is_null());
    assert!(answer["items"][0]["mahalanobis"].is_null());
    for path in ["/runs", "/runs/standard", "/runs/standard/evaluations"] {
        let refused = server.get(path);
        assert_eq!(refused.error(), (404, "no_latents".to_owned(), None), "{path}");
        assert!(refused.text.contains("standard reward head"));
    }
}
