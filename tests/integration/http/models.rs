//! Several models on one server, each beside the same model served alone.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::support::golden::{golden, with_tokenizer};
use crate::support::server::{Answer, Server, UNCACHED, bits, pair, program, scoring_routes};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The demo, and beside it a linear InfoRM, and a head with three objectives.
struct Served {
    folder: TempDir,
    server: Server,
}

/// A configuration file of the demo with further models.
fn configuration(folder: &Path, journal: &str) -> String {
    let objectives = folder.join("objectives");
    if !objectives.exists() {
        with_tokenizer(&golden("heads/objectives"), &objectives);
    }
    format!(
        "[[models]]\nname = \"helpful\"\nmodel = {:?}\n\n[[models]]\nname = \"three\"\nmodel = {:?}\n\
         objectives.weights = [1.0, 0.5, -2.0]\n\n[monitor.journal]\npath = {journal:?}\nflush_ms = 0\n",
        golden("tiny/linear"),
        objectives
    )
}

fn start(folder: &Path, journal: &str) -> Server {
    let file = folder.join("server.toml");
    fs::write(&file, configuration(folder, journal)).unwrap();
    Server::start(&["--config", file.to_str().unwrap()])
}

impl Served {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = start(folder.path(), "");
        Self { folder, server }
    }
}

fn alone(name: &str) -> Server {
    Server::start(&[&["--model", golden(name).to_str().unwrap()], UNCACHED].concat())
}

#[test]
fn each_model_gives_what_it_gives_alone() {
    let Served { server, folder } = Served::new();
    let (demo, linear) = (Server::start(UNCACHED), alone("tiny/linear"));
    let inputs = json!([pair("Is it late?", "Yes."), {"text": "The answer is 12."}]);
    let body = json!({ "inputs": inputs });
    let of = |name: &str| json!({ "inputs": inputs, "model": name });
    let (first, second) = (demo.reward(&body), linear.reward(&body));
    for (found, expected, name) in [
        (server.reward(&body), &first, "demo"),
        (server.reward(&of("demo")), &first, "demo"),
        (server.reward(&of("helpful")), &second, "helpful"),
        (server.post("/reward?model=helpful", &body).ok(), &second, "helpful"),
    ] {
        assert_eq!(found["model"], name);
        assert_eq!(found["weights"], expected["weights"]);
        for index in 0..2 {
            assert_eq!(bits(&found, index), bits(expected, index));
        }
    }
    assert_ne!(first["rewards"], second["rewards"]);
    let three = server.reward(&of("three"));
    assert_eq!(three["items"][0]["objectives"].as_object().unwrap().len(), 3);
    assert_eq!(three["latents"], Value::Null);
    // Each tokenises with its own tokenizer.
    let ids = |path: &str| server.post(path, &body).ok()["input_ids"].clone();
    assert_eq!(ids("/tokenize"), demo.post("/tokenize", &body).ok()["input_ids"]);
    assert_eq!(ids("/tokenize?model=helpful"), linear.post("/tokenize", &body).ok()["input_ids"]);
    drop(folder);
}

#[test]
fn every_protocol_chooses_by_url_and_those_with_a_model_by_body() {
    let Served { server, folder } = Served::new();
    let linear = alone("tiny/linear");
    let text = "The answer is 12.";
    let mut routes = vec![
        ("/get_reward", json!({"query": [text]})),
        ("/slime", json!({"prompt": text, "response": ""})),
        ("/v1/score/evaluation", json!({"messages": [text]})),
        ("/", json!({"inputs": text})),
        ("/predict", json!({"inputs": text})),
    ];
    let with_model = [
        ("/v1/embeddings", json!({"input": text})),
        ("/v1/embeddings", json!({"input": text, "model": "helpful-latents"})),
        ("/classify", json!({"input": text})),
        ("/classify", json!({"text": text})),
        ("/pooling", json!({"input": text})),
        ("/score", json!({"text_1": "Is it late?", "text_2": "Yes."})),
        ("/v1/score", json!({"query": text, "items": ["Yes."]})),
        ("/v2/rerank", json!({"query": text, "documents": ["Yes."]})),
    ];
    // What differs from call to call, and how the models are called.
    let compared = |answer: &Value| {
        let mut answer = answer.clone();
        if let Some(fields) = answer.as_object_mut() {
            for key in ["id", "created", "model"] {
                fields.remove(key);
            }
        }
        answer
    };
    for (path, body) in &with_model {
        let mut named = body.clone();
        let mut own = body.clone();
        if body.get("model").is_none() {
            named["model"] = json!("helpful");
        } else {
            own["model"] = json!("linear-latents");
        }
        let found = server.post(path, &named).ok();
        assert_eq!(compared(&found), compared(&linear.post(path, &own).ok()), "{path}");
        let mut unnamed = body.clone();
        unnamed.as_object_mut().unwrap().remove("model");
        assert_ne!(compared(&found), compared(&server.post(path, &unnamed).ok()), "{path}");

        named["model"] = json!("nobody");
        let refused = server.post(path, &named);
        assert_eq!((refused.status, refused.error().1.as_str()), (404, "unknown_model"), "{path}");
        assert!(refused.text.contains("demo, helpful, three"), "{}", refused.text);
        // Alone it may be called anything.
        assert_eq!(linear.post(path, &named).status, 200, "{path}");
        if body.get("model").is_none() {
            routes.push((path, body.clone()));
        }
    }
    for (path, body) in &routes {
        let found = server.post(&format!("{path}?model=helpful"), body).ok();
        assert_eq!(compared(&found), compared(&linear.post(path, body).ok()), "{path}");
        assert_ne!(compared(&found), compared(&server.post(path, body).ok()), "{path}");
        assert_eq!(server.post(&format!("{path}?model=nobody"), body).status, 404, "{path}");
    }
    // The URL wins.
    let body = json!({"input": text, "model": "some-reward-model"});
    let found = server.post("/pooling?model=helpful&run=r", &body).ok();
    assert_eq!(found["data"], linear.post("/pooling", &body).ok()["data"]);
    assert_eq!(server.post("/runs/r/evaluate?model=helpful", &json!({})).ok()["samples"], 1);
    assert_eq!(server.get("/runs/r").status, 404);

    let models = server.read("/v1/models");
    let names: Vec<&str> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["demo", "demo-latents", "helpful", "helpful-latents", "three"]);
    drop(folder);
}

#[test]
fn the_native_route_refuses_a_model_that_is_not_served() {
    let Served { server, folder } = Served::new();
    let body = |name: &str| json!({"inputs": [{"text": "a"}], "model": name});
    let code = |answer: Answer| (answer.status, answer.error().1);
    let unknown = (404, "unknown_model".to_owned());
    assert_eq!(code(server.post("/reward", &body("nobody"))), unknown);
    assert_eq!(code(server.post("/reward?model=nobody", &body("demo"))), unknown);
    let differs = server.post("/reward?model=helpful", &body("demo")).error();
    assert_eq!(differs, (400, "invalid_request".to_owned(), Some("/model".to_owned())));
    assert_eq!(server.post("/reward?model=helpful", &body("helpful")).status, 200);
    let one = Server::start(&[]);
    assert_eq!(code(one.post("/reward", &body("helpful"))), unknown);
    assert_eq!(one.post("/reward?model=demo", &body("demo")).status, 200);
    // What a URL calls the only model does not matter, on routes that refuse other unknown parameters either.
    assert_eq!(one.post("/reward?model=nobody", &body("demo")).status, 200);
    assert_eq!(one.post("/runs/default/evaluate?model=nobody", &json!({})).status, 200);
    assert_eq!(one.get("/runs/default/evaluations?model=nobody&from_step=3").status, 200);
    drop(folder);
}

/// Status, type and body of an error, without the request's id.
fn whole_error(answer: &Answer) -> (u16, Option<&str>, Value) {
    let mut body = answer.json();
    // TEI's error is a text, with the id beside it.
    for fields in ["/error", ""] {
        if let Some(Value::Object(fields)) = body.pointer_mut(fields) {
            fields.remove("request_id");
        }
    }
    (answer.status, answer.header("content-type"), body)
}

#[test]
fn an_unknown_model_is_answered_alike_whether_the_url_or_the_body_names_it() {
    let Served { server, folder } = Served::new();
    let mut routes = scoring_routes("Is it late?", "Yes.");
    routes.push(("/reward", json!({"inputs": [{"text": "a"}]})));
    for (path, body) in &routes {
        let by_url = server.post(&format!("{path}?model=nobody"), body);
        let mut named = body.clone();
        named["model"] = json!("nobody");
        let by_body = server.post(path, &named);
        assert_eq!(whole_error(&by_url), whole_error(&by_body), "{path}");
        assert!(by_url.text.contains("unknown_model") && by_url.status == 404, "{}", by_url.text);
        // So is what else is wrong with the name.
        let twice = server.post(&format!("{path}?model=demo&model=demo"), body);
        assert_eq!(twice.status, 400, "{path}");
        let is_tei = |answer: &Answer| answer.json().get("error_type").is_some();
        assert_eq!(is_tei(&twice), is_tei(&by_body), "{path}: {}", twice.text);
    }
    let tei = server.post("/predict?model=nobody", &json!({"inputs": "a"})).json();
    assert_eq!((&tei["error_type"], &tei["code"]), (&json!("Validation"), &json!("unknown_model")));
    let open_ai = server.post("/v1/embeddings?model=nobody", &json!({"input": "a"})).json();
    assert_eq!(open_ai["error"]["type"], "invalid_request_error");
    for path in ["/runs?model=nobody", "/info?model=nobody", "/v1/models?model=nobody"] {
        assert_eq!(server.get(path).error().1, "unknown_model", "{path}");
    }
    assert_eq!(server.get("/nowhere?model=nobody").error().1, "not_found");
    // Each is counted as its route's.
    let counted = server.metric("inform_requests_total");
    let count = |route: &str, code: &str| -> f64 {
        let labels = [format!("route=\"{route}\""), format!("code=\"{code}\"")];
        let found = counted.iter().filter(|(l, _)| labels.iter().all(|label| l.contains(label)));
        found.map(|(_, value)| value).sum()
    };
    assert_eq!(count("/predict", "unknown_model"), 3.0);
    assert_eq!(count("/runs", "unknown_model"), 1.0);
    assert_eq!((count("unmatched", "unknown_model"), count("unmatched", "not_found")), (0.0, 1.0));
    drop(folder);
}

#[test]
fn a_url_that_names_a_model_in_other_ways_is_not_the_first_models() {
    let Served { server, folder } = Served::new();
    let body = |more: &str| json!({"inputs": [{"text": format!("a word {more}")}], "run": "r"});
    server.reward(&body("1"));
    server.post("/reward?model=helpful", &body("2")).ok();
    for path in ["/runs/r/evaluate", "/runs/r/evaluate?model=helpful"] {
        server.post(path, &json!({})).ok();
    }
    // Twice is not once, nor none.
    for query in ["model=helpful&model=helpful", "model=a&x=1&%6dodel=b", "model&model="] {
        let (status, code, pointer) =
            server.send("DELETE", &format!("/runs/r?{query}"), &[], &[]).error();
        let found = (status, code.as_str(), pointer.as_deref());
        assert_eq!(found, (400, "invalid_request", Some("/model")), "{query}");
    }
    let model = |query: &str| server.read(&format!("/info?{query}"))["model"].clone();
    for query in ["%6Dodel=helpful", "model=help%66ul", "a=1&model=helpful&b", "&model=helpful&"] {
        assert_eq!(model(query), "helpful", "{query}");
    }
    for query in ["a=model", "remodel=helpful", "Model=helpful", ""] {
        assert_eq!(model(query), "demo", "{query}");
    }
    for query in ["model", "model=", "model=helpful+", "model=%FF"] {
        assert_eq!(server.get(&format!("/info?{query}")).error().1, "unknown_model", "{query}");
    }
    assert_eq!(server.send("DELETE", "/runs/r?%6Dodel=helpful", &[], &[]).status, 204);
    assert_eq!(server.get("/runs/r?model=helpful").status, 404);
    assert_eq!(server.get("/runs/r").status, 200, "the first model's run");
    drop(folder);
}

#[test]
fn runs_metrics_and_information_are_each_models_own() {
    let Served { server, folder } = Served::new();
    let inputs: Vec<Value> = (1..9).map(|i| json!({"text": "word ".repeat(i)})).collect();
    server.reward(&json!({"inputs": inputs, "run": "a"}));
    server.reward(&json!({"inputs": inputs, "run": "b", "model": "helpful"}));
    let runs = |path: &str| -> Vec<String> {
        let runs = server.read(path)["runs"].as_array().unwrap().clone();
        runs.iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect()
    };
    // An evaluation comes after all samples that were answered before.
    for path in ["/runs/a/evaluate", "/runs/b/evaluate?model=helpful"] {
        assert_eq!(server.post(path, &json!({})).ok()["samples"], 8);
    }
    assert_eq!((runs("/runs"), runs("/runs?model=helpful")), (vec!["a".into()], vec!["b".into()]));
    assert_eq!(server.get("/runs/b").status, 404);
    let evaluations = server.read("/runs/b/evaluations?from_step=0&model=helpful");
    assert!(evaluations["evaluations"].is_array());
    assert_eq!(server.get("/runs/b/rewards.svg?width=300&model=helpful").status, 200);
    assert_eq!(server.get("/runs?model=three").error().1, "no_latents");
    let rows: Vec<Vec<f32>> = (0..3).map(|row| vec![row as f32; 8]).collect();
    let latents = json!({ "latents": rows });
    assert_eq!(server.put("/runs/b/baseline?model=helpful", &latents).status, 200);
    assert_eq!(server.send("DELETE", "/runs/b?model=helpful", &[], &[]).status, 204);
    assert!(runs("/runs?model=helpful").is_empty());

    let page = server.get("/?model=helpful").text;
    assert!(page.contains("href=\".?model=helpful\"") && page.contains(">demo</a>"), "{page}");

    let samples = server.metric("inform_run_samples_total");
    assert_eq!(samples, [("{run=\"a\",model=\"demo\"}".to_owned(), 8.0)]);
    let logical: Vec<f64> = server
        .metric("inform_tokens_total")
        .into_iter()
        .filter(|(labels, _)| labels.contains("kind=\"logical\""))
        .map(|(_, value)| value)
        .collect();
    assert_eq!(logical.len(), 2, "of demo and helpful");
    let text = server.get("/metrics").text;
    assert_eq!(text.matches("# TYPE inform_reward histogram").count(), 1);

    let info = server.read("/info");
    let other = server.read("/info?model=helpful");
    assert_eq!((&info["model"], &other["model"]), (&json!("demo"), &json!("helpful")));
    assert_eq!(info["models"], other["models"]);
    assert_eq!(info["models"][1]["weights"], other["weights"]);
    assert_eq!(info["models"][2]["latent_dim"], Value::Null);
    assert!(Server::start(&[]).read("/info").get("models").is_none());
    assert_eq!(server.get("/ready").status, 200);

    server.signal("TERM");
    let (_, log) = server.wait();
    for (run, model) in [("a", "demo"), ("b", "helpful")] {
        let of_run = |line: &&str| {
            line.contains("window evaluated") && line.contains(&format!("run=\"{run}\""))
        };
        let line = log.lines().find(of_run).unwrap_or_else(|| panic!("{log}"));
        assert!(line.contains(&format!("model{{name=\"{model}\"}}")), "{line}");
    }
    drop(folder);
}

#[test]
fn each_model_has_a_journal_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("runs.redb");
    let journal = journal.to_str().unwrap();
    let inputs: Vec<Value> = (1..9).map(|i| json!({"text": "word ".repeat(i)})).collect();
    let server = start(folder.path(), journal);
    server.reward(&json!({"inputs": inputs, "run": "a"}));
    server.reward(&json!({"inputs": inputs, "run": "b", "model": "helpful"}));
    server.signal("TERM");
    assert!(server.wait().0.success());
    assert!(folder.path().join("runs.redb").is_file());
    assert!(folder.path().join("runs-helpful.redb").is_file());
    let server = start(folder.path(), journal);
    assert_eq!(server.read("/runs/a")["samples"], 8);
    assert_eq!(server.read("/runs/b?model=helpful")["samples"], 8);
}

#[test]
fn names_that_do_not_do_are_refused_at_the_start_and_by_check_config() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("server.toml");
    let journal = folder.path().join("runs.redb");
    let output = |arguments: &[&str]| {
        let mut command = program();
        let output = command.args(arguments).stderr(Stdio::piped()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let demo = |name: &str| (name.to_owned(), "configs/demo");
    for (models, code, parts) in [
        (vec![demo("a/b")], 2, ["models.0.name", "a/b"]),
        (vec![("x".to_owned(), "no-such-folder")], 1, ["models: x", "no-such-folder"]),
        // Found before anything is opened.
        (vec![demo("x"), demo("x")], 2, ["models.1.name", "two models are called x"]),
        (vec![demo("x-latents"), demo("x")], 2, ["models.1.name", "found x beside x-latents"]),
        (vec![demo("x"), demo("y"), demo("x-latents")], 2, ["models.2.name", "`-latents`"]),
        // The first is called as its folder is.
        (vec![demo("x"), demo("demo")], 1, ["models.1.name", "two models are called demo"]),
        (vec![demo("demo-latents")], 1, ["models.0.name", "found demo-latents beside demo"]),
    ] {
        let tables: Vec<String> = models
            .iter()
            .map(|(name, model)| format!("[[models]]\nname = {name:?}\nmodel = {model:?}\n"))
            .collect();
        fs::write(&file, format!("{}[monitor.journal]\npath = {journal:?}\n", tables.concat()))
            .unwrap();
        let path = file.to_str().unwrap();
        for arguments in [vec!["--port", "0", "--config", path], vec!["check-config", path]] {
            let (found, errors) = output(&arguments);
            assert_eq!(found, Some(code), "{arguments:?}: {errors}");
            for part in parts {
                assert!(errors.contains(part), "{arguments:?}: no {part:?} in {errors}");
            }
        }
    }
    assert!(!journal.exists(), "a model was started");
    // No clash: nothing else is called `x`.
    fs::write(&file, "[[models]]\nname = \"x-latents\"\nmodel = \"configs/demo\"\n").unwrap();
    assert_eq!(output(&["check-config", file.to_str().unwrap()]).0, Some(0));
}

#[test]
fn a_further_model_may_be_an_ensemble() {
    let model = golden("tiny/linear");
    let set = format!(
        "models=[{{name=\"pair\",model={model:?},ensemble={{members=[{model:?}],aggregate=\"wco\"}}}}]"
    );
    let server = Server::start(&["--set", &set]);
    let body = json!({"inputs": [{"text": "The answer is 12."}], "model": "pair"});
    let (found, alone) = (server.reward(&body), alone("tiny/linear"));
    let expected = alone.reward(&json!({"inputs": body["inputs"]}));
    assert_eq!(bits(&found, 0), bits(&expected, 0));
    assert_eq!(found["items"][0]["members"].as_array().unwrap().len(), 2);
    assert_eq!(found["items"][0]["variance"], 0.0);
    assert_eq!(server.read("/info?model=pair")["ensemble"]["aggregate"], "wco");
    assert!(server.read("/info").get("ensemble").is_none());
}
