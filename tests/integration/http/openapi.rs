//! `openapi/openapi.json`: it is the code's, and what it shows works.

use std::collections::BTreeSet;

use crate::support::server::{program, shared_server};
use serde_json::{Map, Value};

fn committed() -> Value {
    serde_json::from_str(&std::fs::read_to_string("openapi/openapi.json").unwrap()).unwrap()
}

#[test]
fn the_committed_file_is_the_codes() {
    let text = std::fs::read_to_string("openapi/openapi.json").unwrap();
    assert!(
        text == inform::http::openapi_json(),
        "make it again: cargo run --release -- openapi > openapi/openapi.json"
    );
    let mut command = program();
    let output = command.arg("openapi").stdout(std::process::Stdio::piped()).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
    assert_eq!(shared_server().get("/openapi.json").text, text);
}

/// Where the URL chooses among several models, it may name one that is not there, or two.
#[test]
fn routes_of_one_model_say_how_it_is_chosen() {
    let document = committed();
    let mut of_a_model = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let parameters = operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
            let has_model = parameters.iter().any(|parameter| parameter["name"] == "model");
            assert!(has_model || !path.starts_with("/runs"), "{method} {path}");
            if has_model {
                let responses = &operation["responses"];
                let unknown = responses["404"]["description"].as_str().unwrap_or_default();
                assert!(unknown.contains("unknown_model"), "{method} {path}: {responses}");
                let invalid = responses["400"]["description"].as_str().unwrap_or_default();
                assert!(invalid.contains("invalid_request"), "{method} {path}: {responses}");
                of_a_model += 1;
            }
        }
    }
    assert!(of_a_model >= 25, "{of_a_model}");
}

/// The request examples of an operation.
fn examples(operation: &Value) -> Vec<Value> {
    let media = &operation["requestBody"]["content"]["application/json"];
    let several = media["examples"].as_object().cloned().unwrap_or_default();
    let several = several.into_iter().map(|(_, example)| example["value"].clone());
    several.chain(media.get("example").cloned()).collect()
}

#[test]
fn every_example_is_answered_as_described() {
    let server = shared_server();
    let document = committed();
    let mut posted = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in ["post", "put"] {
            let Some(operation) =
                operations.get(method).filter(|found| found.get("requestBody").is_some())
            else {
                continue;
            };
            let examples = examples(operation);
            assert!(!examples.is_empty(), "{path} has no example");
            let path = path.replace("{run}", "example");
            let headers = [("content-type", "application/json")];
            for example in examples {
                let body = example.to_string();
                let answer = server.send(&method.to_uppercase(), &path, &headers, body.as_bytes());
                assert_eq!(answer.status, 200, "{path} {example}: {}", answer.text);
                posted += 1;
            }
        }
    }
    assert!(posted >= 20, "{posted}");
}

/// Every reference in the document.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(text) if key == "$ref" => {
                        found.insert(text.clone());
                    }
                    value => references(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[test]
fn nothing_that_is_referred_to_is_missing() {
    let document = committed();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

/// The documentation names every field that `/reward` takes and gives.
#[test]
fn the_documentation_names_every_native_field() {
    let document = committed();
    let text = std::fs::read_to_string("docs/api.md").unwrap();
    let empty = Map::new();
    for schema in [
        "RewardRequest",
        "RewardResponse",
        "Item",
        "RunStatus",
        "Evaluation",
        "RunView",
        "Info",
        "BaselineRequest",
        "BaselineResponse",
        "RunConfig",
    ] {
        let schema = &document["components"]["schemas"][schema];
        for field in schema["properties"].as_object().unwrap_or(&empty).keys() {
            let named =
                text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == field);
            assert!(named, "docs/api.md does not name `{field}`");
        }
    }
    for path in document["paths"].as_object().unwrap().keys() {
        assert!(
            ["`", "?", "\n"].iter().any(|end| text.contains(&format!(" {path}{end}")))
                || path == "/",
            "docs/api.md does not name {path}"
        );
    }
}
