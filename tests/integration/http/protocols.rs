//! The protocols of trainers and inference servers: each gives the rewards that `/reward` gives, in its
//! own shapes.

use crate::support::server::{
    Answer, Client, Server, bits, float, floats, pair, scoring_routes, shared_server, templated,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const QUESTION: &str = "How do I keep basil fresh?";
const ANSWERS: [&str; 3] = ["Put the stems in a glass of water.", "I cannot say.", "Why?"];

fn texts() -> Vec<String> {
    ANSWERS.iter().map(|answer| templated(QUESTION, answer)).collect()
}

/// The native rewards of the three pairs.
fn rewards(server: &Client) -> Vec<f32> {
    let inputs: Vec<Value> = ANSWERS.iter().map(|answer| pair(QUESTION, answer)).collect();
    floats(&server.score(&inputs)["rewards"])
}

fn sigmoid(reward: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(reward)).exp())) as f32
}

/// What lies at that field of each element.
fn each(list: &Value, field: &str) -> Vec<Value> {
    list.as_array().unwrap().iter().map(|element| element[field].clone()).collect()
}

fn assert_bits(found: &[Value], expected: &[f32]) {
    let found: Vec<u32> = found.iter().map(|value| float(value).to_bits()).collect();
    let expected: Vec<u32> = expected.iter().map(|value| value.to_bits()).collect();
    assert_eq!(found, expected);
}

#[test]
fn openrlhf_in_batches_and_one_by_one() {
    let server = shared_server();
    let (rewards, texts) = (rewards(server), texts());
    let batch = json!({"query": texts, "prompts": texts, "labels": [null, "x", 3]});
    let answer = server.post("/get_reward", &batch).ok();
    assert_bits(answer["rewards"].as_array().unwrap(), &rewards);
    assert_eq!(answer["rewards"], answer["scores"]);
    // OpenRLHF 0.8 joins the lists of all answers by the first one's keys.
    assert_eq!(answer["extra_logs"], json!({}));
    assert!(answer.get("errors").is_none());
    for (text, reward) in texts.iter().zip(&rewards) {
        let one = json!({"query": [text], "prompts": [QUESTION], "labels": [null]});
        let answer = server.post("/get_reward", &one).ok();
        assert_bits(answer["rewards"].as_array().unwrap(), &[*reward]);
    }
    // An empty shard.
    let answer =
        server.post("/get_reward", &json!({"query": [], "prompts": [], "labels": []})).ok();
    assert_eq!(answer, json!({"rewards": [], "scores": [], "extra_logs": {}}));
    // A failed input is null with its reason, never 0; alone it is an error, which is retried.
    let answer = server.post("/get_reward", &json!({"query": [texts[0], ""]})).ok();
    assert_eq!(float(&answer["rewards"][0]), rewards[0]);
    assert!(answer["rewards"][1].is_null() && answer["scores"][1].is_null());
    assert!(answer["errors"][0].is_null());
    assert_eq!(answer["errors"][1]["code"], "empty_input");
    let refused = server.post("/get_reward", &json!({"query": [""]}));
    assert_eq!(refused.error(), (422, "unprocessable".to_owned(), None));
}

#[test]
fn bos_is_neither_doubled_nor_lost() {
    // This checkpoint's tokenizer starts every text with BOS.
    let server = Server::start(&["--model", "tests/golden/tiny/gated"]);
    let messages = json!([
        {"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "Yes."}
    ]);
    let native = server.score(&[json!({"messages": messages})]);
    let expected = [float(&native["rewards"][0])];
    let with_bos = "<|bos|>[Is it late?]<|end|>Yes.<|end|>";
    let without = with_bos.trim_start_matches("<|bos|>");
    for text in [with_bos, without] {
        let answer = server.post("/get_reward", &json!({"query": [text]})).ok();
        assert_bits(answer["rewards"].as_array().unwrap(), &expected);
        let answer = server.post("/classify", &json!({"input": text})).ok();
        assert_bits(answer["data"][0]["probs"].as_array().unwrap(), &expected);
        let answer = server.post("/v1/embeddings", &json!({"input": text})).ok();
        assert_bits(answer["data"][0]["embedding"].as_array().unwrap(), &expected);
    }
    // vLLM's users may ask for the text as it is.
    let exact = |text: &str| {
        let body = json!({"input": text, "add_special_tokens": false});
        server.post("/classify", &body).ok()
    };
    assert_eq!(
        exact(with_bos)["usage"],
        json!({
            "prompt_tokens": native["items"][0]["tokens"],
            "total_tokens": native["items"][0]["tokens"],
            "completion_tokens": 0
        })
    );
    assert_bits(exact(with_bos)["data"][0]["probs"].as_array().unwrap(), &expected);
    let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(tokens(&exact(without)) + 1, tokens(&exact(with_bos)));
    let by_template = server.post("/pooling", &json!({"messages": messages})).ok();
    assert_bits(by_template["data"][0]["data"].as_array().unwrap(), &expected);
}

#[test]
fn verl_on_both_of_its_engines() {
    let server = shared_server();
    let (rewards, texts) = (rewards(server), texts());
    for (text, reward) in texts.iter().zip(&rewards) {
        // The older name of the field, too.
        for field in ["use_activation", "activation"] {
            let body = json!({"model": "/models/reward", "input": text, field: false});
            let answer = server.post("/classify", &body).ok();
            let last = answer["data"].as_array().unwrap().last().unwrap();
            assert_bits(&last["probs"].as_array().unwrap()[0..], &[*reward]);
        }
        let body = json!({"model": "/models/reward", "input": text});
        let answer = server.post("/v1/embeddings", &body).ok();
        let last = answer["data"].as_array().unwrap().last().unwrap();
        assert_bits(last["embedding"].as_array().unwrap(), &[*reward]);
    }
}

#[test]
fn slime_answers_a_bare_number_or_an_object() {
    let server = shared_server();
    let reward = rewards(server)[0];
    let messages = json!([{"role": "user", "content": QUESTION}]);
    let prompt = format!("<|user|>\n{QUESTION}<|end|>\n<|assistant|>\n");
    let by_messages = json!({"prompt": messages, "response": ANSWERS[0], "label": null});
    let response = format!("{}<|end|>", ANSWERS[0]);
    let by_text = json!({"prompt": prompt, "response": response, "label": "x"});
    for body in [&by_messages, &by_text] {
        let answer = server.post("/slime", body);
        assert_eq!(answer.text.parse::<f32>().unwrap().to_bits(), reward.to_bits());
        let answer = server.post("/slime?reward_key=score", body).ok();
        assert_bits(&[answer["score"].clone()], &[reward]);
    }
    let refused = server.post("/slime", &json!({"prompt": "", "response": ""}));
    assert_eq!(refused.error().0, 422);
}

#[test]
fn llama_factory_reads_no_status() {
    let server = Server::start(&[]);
    let (rewards, texts) = (rewards(&server), texts());
    let answer =
        server.post("/v1/score/evaluation", &json!({"model": "model", "messages": texts})).ok();
    assert_bits(answer["scores"].as_array().unwrap(), &rewards);
    let refused = server.post("/v1/score/evaluation", &json!({"model": "model", "messages": [""]}));
    assert_eq!(refused.error().0, 422);
    assert!(refused.json().get("scores").is_none());
}

#[test]
fn hugging_face_classifies_text() {
    let server = shared_server();
    let (rewards, texts) = (rewards(server), texts());
    let answer = server.post("/", &json!({"inputs": texts[0], "parameters": {}})).ok();
    assert_eq!(answer[0][0]["label"], "LABEL_0");
    assert_bits(&[answer[0][0]["score"].clone()], &rewards[..1]);
    let sigmoids = json!({"inputs": texts, "parameters": {"function_to_apply": "sigmoid"}});
    let answer = server.post("/", &sigmoids).ok();
    let scores: Vec<Value> = (0..3).map(|index| answer[index][0]["score"].clone()).collect();
    assert_bits(&scores, &rewards.iter().map(|reward| sigmoid(*reward)).collect::<Vec<_>>());
    // Softmax over one label is always 1.
    let softmax = json!({"inputs": "a", "parameters": {"function_to_apply": "softmax"}});
    assert_eq!(tei_error(&server.post("/", &softmax)), (400, "invalid_request".to_owned()));
}

/// Status and code of an error in the shape of Text Embeddings Inference.
fn tei_error(answer: &Answer) -> (u16, String) {
    let body = answer.json();
    assert!(!body["error"].as_str().unwrap().is_empty(), "{body}");
    assert!(body["error_type"].is_string() && body["request_id"].is_string(), "{body}");
    (answer.status, body["code"].as_str().unwrap().to_owned())
}

#[test]
fn openai_embeddings_are_rewards_or_latents() {
    let server = shared_server();
    let (rewards, texts) = (rewards(server), texts());
    let answer = server.post("/v1/embeddings", &json!({"model": "demo", "input": texts})).ok();
    assert_eq!(answer["object"], "list");
    let embeddings: Vec<Value> =
        each(&answer["data"], "embedding").into_iter().map(|list| list[0].clone()).collect();
    assert_bits(&embeddings, &rewards);
    assert_eq!(each(&answer["data"], "index"), [json!(0), json!(1), json!(2)]);
    let base64 = json!({"model": "demo", "input": texts[1], "encoding_format": "base64"});
    let answer = server.post("/v1/embeddings", &base64).ok();
    let bytes = STANDARD.decode(answer["data"][0]["embedding"].as_str().unwrap()).unwrap();
    assert_eq!(bytes, rewards[1].to_le_bytes());

    let names = each(&server.read("/v1/models")["data"], "id");
    assert_eq!(names, ["demo", "demo-latents"]);
    let native = server.score(&[json!({"text": texts[0]})]);
    let ids = server.post("/tokenize", &json!({"inputs": [{"text": texts[0]}]})).ok();
    for input in [json!(texts[0]), ids["input_ids"][0].clone(), ids["input_ids"].clone()] {
        let answer =
            server.post("/v1/embeddings", &json!({"model": "demo-latents", "input": input})).ok();
        let latent = floats(&answer["data"][0]["embedding"]);
        let latent: Vec<u32> = latent.into_iter().map(f32::to_bits).collect();
        assert_eq!(latent, bits(&native, 0).1);
    }
    // An error as OpenAI's client reads it.
    let refused = server.post("/v1/embeddings", &json!({"model": "demo", "input": {"a": 1}}));
    assert_eq!(refused.error(), (400, "invalid_request".to_owned(), Some("/input".to_owned())));
    let error = &refused.json()["error"];
    assert_eq!(
        (&error["type"], &error["param"]),
        (&json!("invalid_request_error"), &json!("/input"))
    );
}

#[test]
fn vllm_classifies_pools_scores_and_ranks() {
    let server = shared_server();
    let (rewards, texts) = (rewards(server), texts());
    let sigmoids: Vec<f32> = rewards.iter().map(|reward| sigmoid(*reward)).collect();

    let answer = server.post("/classify", &json!({"input": texts, "request_id": "mine"})).ok();
    assert_eq!((&answer["id"], &answer["object"]), (&json!("classify-mine"), &json!("list")));
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(answer["model"], "demo");
    assert_eq!(each(&answer["data"], "label"), ["LABEL_0"; 3]);
    assert_eq!(each(&answer["data"], "num_classes"), [1; 3]);
    let probs = |answer: &Value| -> Vec<Value> {
        each(&answer["data"], "probs").into_iter().map(|probs| probs[0].clone()).collect()
    };
    assert_bits(&probs(&answer), &rewards);
    let activated = server.post("/classify", &json!({"input": texts, "use_activation": true}));
    assert_bits(&probs(&activated.ok()), &sigmoids);

    let parts = json!([{"type": "text", "text": ANSWERS[0]}]);
    let messages =
        json!([{"role": "user", "content": QUESTION}, {"role": "assistant", "content": parts}]);
    let answer = server.post("/pooling", &json!({"messages": messages, "model": null})).ok();
    assert_bits(answer["data"][0]["data"].as_array().unwrap(), &rewards[..1]);
    let body = json!({"input": texts[0], "encoding_format": "base64"});
    let answer = server.post("/pooling", &body).ok();
    let bytes = STANDARD.decode(answer["data"][0]["data"].as_str().unwrap()).unwrap();
    assert_eq!(bytes, rewards[0].to_le_bytes());

    for (path, one, many) in [
        ("/score", "text_1", "text_2"),
        ("/v1/score", "text_1", "text_2"),
        ("/score", "queries", "documents"),
        ("/v1/score", "queries", "items"),
        ("/score", "data_1", "data_2"),
    ] {
        for question in [json!(QUESTION), json!([QUESTION]), json!(vec![QUESTION; 3])] {
            let answer = server.post(path, &json!({one: question, many: ANSWERS})).ok();
            assert_bits(&each(&answer["data"], "score"), &rewards);
            assert_eq!(each(&answer["data"], "object"), ["score"; 3]);
        }
    }
    let uneven = server.post("/score", &json!({"text_1": ["a", "b"], "text_2": ["c"]}));
    assert_eq!(uneven.error().0, 422);

    let mut order: Vec<usize> = (0..3).collect();
    order.sort_by(|a, b| rewards[*b].total_cmp(&rewards[*a]));
    for path in ["/rerank", "/v1/rerank", "/v2/rerank"] {
        let body = json!({"query": QUESTION, "documents": ANSWERS});
        let results = &server.post(path, &body).ok()["results"];
        assert_eq!(each(results, "index"), order.iter().map(|i| json!(i)).collect::<Vec<_>>());
        let sorted: Vec<f32> = order.iter().map(|index| rewards[*index]).collect();
        assert_bits(&each(results, "relevance_score"), &sorted);
        assert_eq!(results[0]["document"]["text"], ANSWERS[order[0]]);
        let body =
            json!({"query": QUESTION, "documents": ANSWERS, "top_n": 2, "use_activation": true});
        let best = &server.post(path, &body).ok()["results"];
        assert_eq!(best.as_array().unwrap().len(), 2);
        assert_eq!(float(&best[0]["relevance_score"]), sigmoids[order[0]]);
    }
}

#[test]
fn vllm_keeps_the_end_where_it_is_told_to() {
    let server = Server::start(&[]);
    let text = texts().remove(0);
    let ids = server.post("/tokenize", &json!({"inputs": [{"text": text}]})).ok();
    let ids = ids["input_ids"][0].as_array().unwrap().clone();
    let end = server.score(&[json!({"input_ids": ids[ids.len() - 5..]})]);
    let kept = server.post("/classify", &json!({"input": text, "truncate_prompt_tokens": 5})).ok();
    assert_bits(kept["data"][0]["probs"].as_array().unwrap(), &[float(&end["rewards"][0])]);
    assert_eq!(kept["usage"]["prompt_tokens"], 5);
    let long = "the cat sat on the mat. ".repeat(2048);
    let refused = server.post("/classify", &json!({"input": long}));
    assert_eq!(refused.error().0, 422);
    let kept = server.post("/classify", &json!({"input": long, "truncate_prompt_tokens": -1})).ok();
    assert_eq!(kept["usage"]["prompt_tokens"], server.read("/info")["max_tokens"]);
    for wrong in [json!(0), json!(-2), json!("5"), json!(1.5)] {
        let refused =
            server.post("/classify", &json!({"input": text, "truncate_prompt_tokens": wrong}));
        assert_eq!(refused.error().0, 400, "{wrong}");
    }
}

#[test]
fn sglang_classifies_and_scores() {
    let server = shared_server();
    let (rewards, texts) = (rewards(server), texts());
    let one = server.post("/classify", &json!({"text": texts[0]})).ok();
    assert_bits(one["embedding"].as_array().unwrap(), &rewards[..1]);
    assert!(one["meta_info"]["prompt_tokens"].as_u64().unwrap() > 1);
    let many = server.post("/classify", &json!({"text": texts})).ok();
    let embeddings: Vec<Value> =
        each(&many, "embedding").into_iter().map(|embedding| embedding[0].clone()).collect();
    assert_bits(&embeddings, &rewards);
    let inputs: Vec<Value> = texts.iter().map(|text| json!({"text": text})).collect();
    let ids = server.post("/tokenize", &json!({"inputs": inputs})).ok()["input_ids"].clone();
    let one = server.post("/classify", &json!({"input_ids": ids[2]})).ok();
    assert_bits(one["embedding"].as_array().unwrap(), &rewards[2..]);
    let many = server.post("/classify", &json!({"input_ids": ids})).ok();
    assert_eq!(many.as_array().unwrap().len(), 3);
    // A list of one is a list.
    assert_eq!(
        server.post("/classify", &json!({"text": [texts[0]]})).ok().as_array().unwrap().len(),
        1
    );
    // The input that failed, and why.
    let mixed = server.post("/classify", &json!({"text": [texts[0], ""]})).ok();
    assert!(mixed[1]["embedding"].is_null());
    assert_eq!(mixed[1]["meta_info"]["error"]["code"], "empty_input");
    for both in
        [json!({"text": "a", "input": "a"}), json!({"text": "a", "input_ids": [1]}), json!({})]
    {
        assert_eq!(server.post("/classify", &both).error().0, 400, "{both}");
    }

    let query = format!("<|user|>\n{QUESTION}<|end|>\n<|assistant|>\n");
    let items: Vec<String> = ANSWERS.iter().map(|answer| format!("{answer}<|end|>")).collect();
    let body =
        json!({"query": query, "items": items, "label_token_ids": [7], "apply_softmax": true});
    let answer = server.post("/v1/score", &body).ok();
    let scores: Vec<Value> =
        answer["scores"].as_array().unwrap().iter().map(|score| score[0].clone()).collect();
    assert_bits(&scores, &rewards);
    let swapped = json!({"query": items[0], "items": query, "item_first": true});
    let answer = server.post("/v1/score", &swapped).ok();
    assert_bits(answer["scores"][0].as_array().unwrap(), &rewards[..1]);
    let (start, end) = ids[0].as_array().unwrap().split_at(3);
    let answer = server.post("/v1/score", &json!({"query": start, "items": [end]})).ok();
    assert_bits(answer["scores"][0].as_array().unwrap(), &rewards[..1]);
    let mixed = server.post("/v1/score", &json!({"query": "text", "items": [[1, 2]]}));
    assert_eq!(mixed.error(), (422, "unprocessable".to_owned(), None));
}

#[test]
fn tei_predicts_and_ranks() {
    let server = shared_server();
    let (rewards, texts) = (rewards(server), texts());
    let raw = |body: Value| {
        let mut body = body;
        body["raw_scores"] = json!(true);
        server.post("/predict", &body).ok()
    };
    let score = |predictions: &Value| predictions[0]["score"].clone();
    assert_bits(&[score(&raw(json!({"inputs": texts[0]})))], &rewards[..1]);
    assert_bits(&[score(&raw(json!({"inputs": [QUESTION, ANSWERS[1]]})))], &rewards[1..2]);
    let batch = raw(json!({"inputs": [[texts[0]], [QUESTION, ANSWERS[1]], [texts[2]]]}));
    assert_bits(&batch.as_array().unwrap().iter().map(score).collect::<Vec<_>>(), &rewards);
    let sigmoids = server.post("/predict", &json!({"inputs": texts[0]})).ok();
    assert_bits(&[score(&sigmoids)], &[sigmoid(rewards[0])]);
    let refused = server.post("/predict", &json!({"inputs": ["a", "b", "c"]}));
    assert_eq!(tei_error(&refused), (400, "invalid_request".to_owned()));
    let refused = server.post("/predict", &json!({"inputs": ""}));
    assert_eq!(tei_error(&refused), (422, "unprocessable".to_owned()));

    let body =
        json!({"query": QUESTION, "texts": ANSWERS, "raw_scores": true, "return_text": true});
    let ranks = server.post("/rerank", &body).ok();
    for rank in ranks.as_array().unwrap() {
        let index = rank["index"].as_u64().unwrap() as usize;
        assert_eq!(float(&rank["score"]).to_bits(), rewards[index].to_bits());
        assert_eq!(rank["text"], ANSWERS[index]);
    }
    let scores: Vec<f32> = each(&ranks, "score").iter().map(float).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b));
    let plain = server.post("/rerank", &json!({"query": QUESTION, "texts": ANSWERS})).ok();
    assert!(plain[0].get("text").is_none());
    let refused = server.post("/rerank", &json!({"query": QUESTION, "texts": 3}));
    assert_eq!(tei_error(&refused), (400, "invalid_request".to_owned()));
    // The same route in vLLM's protocol speaks as vLLM does.
    let refused = server.post("/rerank", &json!({"query": QUESTION, "documents": 3}));
    assert_eq!(refused.error().1, "invalid_request");
}

#[test]
fn every_protocol_feeds_the_monitor() {
    let server = Server::start(&[]);
    let json = ("content-type", "application/json");
    for (number, (path, body)) in scoring_routes(QUESTION, ANSWERS[0]).into_iter().enumerate() {
        let (run, step) = (format!("run-{number}"), number.to_string());
        let headers = [json, ("X-Run-Id", &*run), ("X-Step", &*step)];
        server.send("POST", path, &headers, body.to_string().as_bytes()).ok();
        let evaluation = server.post(&format!("/runs/{run}/evaluate"), &json!({})).ok();
        assert_eq!(evaluation["last_step"], number, "{path}");
        assert_eq!(evaluation["samples"], 1, "{path}");
        // For clients that can be given a URL alone.
        let run = format!("url-{number}");
        server.post(&format!("{path}?run={run}"), &body).ok();
        let evaluation = server.post(&format!("/runs/{run}/evaluate"), &json!({})).ok();
        assert_eq!(evaluation["samples"], 1, "{path}");
    }
}

/// verl gives up training at any 4xx: what may be different a moment later is 503 with a time to wait.
#[test]
fn what_may_pass_is_503_on_foreign_routes() {
    let server = Server::start(&["--set", "limits.default_deadline_ms=1"]);
    let long = "many words ".repeat(900);
    let many = json!({"query": vec![long; 64]});
    let late = server.post("/get_reward", &many);
    assert_eq!(late.error(), (503, "deadline_exceeded".to_owned(), None));
    assert!(late.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
    let inputs: Vec<Value> = (0..64).map(|_| json!({"text": "many words ".repeat(900)})).collect();
    let native = server.post("/reward", &json!({"inputs": inputs}));
    assert_eq!(native.error().0, 408);
}

#[test]
fn foreign_bodies_are_refused_with_the_field_at_fault() {
    let server = Server::start(&["--set", "limits.max_inputs=2"]);
    for (path, body, pointer) in [
        ("/get_reward", json!({}), ""),
        ("/get_reward", json!({"query": "text"}), "/query"),
        ("/get_reward", json!({"query": ["a", 3]}), "/query/1"),
        ("/slime", json!({"prompt": "a"}), ""),
        ("/slime", json!({"prompt": 3, "response": "b"}), "/prompt"),
        ("/v1/score/evaluation", json!({"messages": [{"role": "user"}]}), "/messages/0"),
        ("/classify", json!({"input": 3}), "/input"),
        ("/v1/score", json!({"text_1": "a"}), ""),
        ("/v1/rerank", json!({"query": 3, "documents": []}), "/query"),
    ] {
        let found = server.post(path, &body).error();
        assert_eq!(
            found,
            (400, "invalid_request".to_owned(), Some(pointer.to_owned())),
            "{path} {body}"
        );
    }
    for (path, body) in [
        ("/get_reward", json!({"query": ["a", "b", "c"]})),
        ("/classify", json!({"input": ["a", "b", "c"]})),
        ("/v1/rerank", json!({"query": "a", "documents": ["a", "b", "c"]})),
    ] {
        assert_eq!(server.post(path, &body).error().1, "too_many_inputs", "{path}");
        assert_eq!(server.post_bytes(path, b"{").error().1, "invalid_json", "{path}");
    }
    // A standard head has no latents to embed.
    let server = Server::start(&["--model", "tests/golden/tiny/standard"]);
    assert_eq!(each(&server.read("/v1/models")["data"], "id"), ["standard"]);
    let refused =
        server.post("/v1/embeddings", &json!({"model": "standard-latents", "input": "a"}));
    assert_eq!(refused.error().2.as_deref(), Some("/model"));
}
