//! Requests that cannot be served: what each is answered, and that the server goes on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;

use crate::support::server::{Server, UNCACHED, bits, pair, shared_server};
use serde_json::{Value, json};

/// A body for `POST /reward`, and its answer: status, code, pointer.
struct Case {
    name: &'static str,
    body: Vec<u8>,
    expected: (u16, &'static str, Option<&'static str>),
}

fn case(
    name: &'static str,
    body: impl Into<Vec<u8>>,
    status: u16,
    code: &'static str,
    pointer: Option<&'static str>,
) -> Case {
    Case { name, body: body.into(), expected: (status, code, pointer) }
}

fn not_json(name: &'static str, body: impl Into<Vec<u8>>) -> Case {
    case(name, body, 400, "invalid_json", None)
}

fn invalid(name: &'static str, body: impl Into<Vec<u8>>, pointer: &'static str) -> Case {
    case(name, body, 400, "invalid_request", Some(pointer))
}

/// A request of one good input and these fields.
fn with(fields: Value) -> String {
    let mut body = json!({"inputs": [{"text": "good"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body.to_string()
}

/// A request of a good input and this one.
fn item(item: &str) -> String {
    format!(r#"{{"inputs": [{{"text": "good"}}, {item}]}}"#)
}

fn cases() -> Vec<Case> {
    let messages = |last: &str| {
        json!({"messages": [{"role": "user", "content": "a"}, {"role": last, "content": "b"}]})
            .to_string()
    };
    let nothing = |item: Value| json!({"inputs": [item.clone(), item]}).to_string();
    let unprocessable = |name, item| case(name, nothing(item), 422, "unprocessable", None);
    vec![
        not_json("no body", ""),
        not_json("not JSON", "inputs=good"),
        not_json("truncated JSON", &with(json!({}))[..20]),
        not_json("two values", format!("{0} {0}", with(json!({})))),
        not_json("NaN", r#"{"inputs": [{"text": "good"}], "step": NaN}"#),
        not_json("a number beyond all floats", r#"{"inputs": [{"text": "good"}], "step": 1e999}"#),
        not_json("broken UTF-8", b"{\"inputs\": [{\"text\": \"go\xff\xfeod\"}]}"),
        not_json("half a surrogate pair", r#"{"inputs": [{"text": "\ud800"}]}"#),
        not_json("a control character in a string", "{\"inputs\": [{\"text\": \"a\nb\"}]}"),
        not_json(
            "deep nesting in an input",
            item(&format!("{{\"prompt\": {}", "[".repeat(10_000))),
        ),
        not_json("deep nesting", "[".repeat(10_000)),
        invalid("a field twice", r#"{"inputs": [{"text": "a"}], "step": 1, "step": 2}"#, ""),
        invalid("a field of an input twice", item(r#"{"text": "a", "text": "b"}"#), "/inputs/1"),
        invalid("a number", "3", ""),
        invalid("null", "null", ""),
        invalid("no inputs field", "{}", ""),
        invalid("no inputs", r#"{"inputs": []}"#, "/inputs"),
        invalid("inputs of a wrong type", r#"{"inputs": "good"}"#, "/inputs"),
        invalid(
            "a long text as inputs",
            json!({"inputs": "a".repeat(100_000)}).to_string(),
            "/inputs",
        ),
        invalid("an input that is a string", item(r#""good""#), "/inputs/1"),
        invalid("an input that is a list of values", item(r#"["a", "b"]"#), "/inputs/1"),
        invalid("a body that is a list of values", r#"[[{"text": "good"}], "run"]"#, ""),
        invalid("a step beyond what JSON keeps", with(json!({"step": 1_u64 << 53})), "/step"),
        invalid("two forms", item(r#"{"text": "a", "input_ids": [1]}"#), "/inputs/1"),
        invalid("a form and half another", item(r#"{"text": "a", "response": "b"}"#), "/inputs/1"),
        invalid("the user speaks last", item(&messages("user")), "/inputs/1/messages/1"),
        invalid("the system speaks last", item(&messages("system")), "/inputs/1/messages/1"),
        invalid("an unknown field", with(json!({"temperature": 1})), "/temperature"),
        invalid("a pointer that needs escapes", with(json!({"a/b~c": 1})), "/a~1b~0c"),
        invalid("an unknown field of an input", item(r#"{"txt": "a"}"#), "/inputs/1/txt"),
        invalid("a wrong type", item(r#"{"text": 5}"#), "/inputs/1/text"),
        invalid("a negative token id", item(r#"{"input_ids": [1, -2]}"#), "/inputs/1/input_ids/1"),
        invalid(
            "a token id of 33 bits",
            item(r#"{"input_ids": [4294967296]}"#),
            "/inputs/1/input_ids/0",
        ),
        invalid(
            "a message without text",
            item(r#"{"messages": [{"role": "assistant"}]}"#),
            "/inputs/1/messages/0",
        ),
        invalid(
            "text that is no string",
            item(r#"{"messages": [{"role": "assistant", "content": null}]}"#),
            "/inputs/1/messages/0/content",
        ),
        // The forms of a prompt are tried one after the other: the pointer ends there.
        invalid(
            "a wrong type inside a prompt",
            item(r#"{"prompt": [{"role": "user", "content": 3}], "response": "a"}"#),
            "/inputs/1/prompt",
        ),
        invalid("a negative step", with(json!({"step": -1})), "/step"),
        invalid("a broken step", with(json!({"step": 1.5})), "/step"),
        invalid("a step as text", with(json!({"step": "1"})), "/step"),
        invalid("huge samples", with(json!({"samples": 1_000_000})), "/samples"),
        invalid("negative samples", with(json!({"samples": -1})), "/samples"),
        invalid("no time", with(json!({"deadline_ms": 0})), "/deadline_ms"),
        invalid("a year", with(json!({"deadline_ms": 31_536_000_000_u64})), "/deadline_ms"),
        invalid("the longest time", with(json!({"deadline_ms": u64::MAX})), "/deadline_ms"),
        invalid("a run without a name", with(json!({"run": ""})), "/run"),
        invalid("control characters in a run", with(json!({"run": "a\nb\u{0}"})), "/run"),
        invalid("a long run", with(json!({"run": "r".repeat(1000)})), "/run"),
        invalid("a run of another type", with(json!({"run": ["a"]})), "/run"),
        invalid("an unknown role", with(json!({"role": "boss"})), "/role"),
        invalid("an unknown format", with(json!({"latents_format": "hex"})), "/latents_format"),
        invalid("a flag as text", with(json!({"truncate": "yes"})), "/truncate"),
        unprocessable("no text at all", json!({})),
        unprocessable("an empty text", json!({"text": ""})),
        unprocessable("half a pair", json!({"prompt": "a"})),
        unprocessable("beyond the context", json!({"input_ids": vec![1; 100_000]})),
        unprocessable("an unknown token", json!({"input_ids": [4_000_000_000_u32]})),
        case(
            "10,000 inputs",
            json!({"inputs": vec![json!({"text": "a"}); 10_000]}).to_string(),
            413,
            "too_many_inputs",
            None,
        ),
        case(
            "20 MB",
            json!({"inputs": [{"text": "a".repeat(20_000_000)}]}).to_string(),
            413,
            "body_too_large",
            None,
        ),
        case(
            "one millisecond",
            json!({
                "inputs": vec![json!({"text": "many words ".repeat(100)}); 256],
                "deadline_ms": 1,
            })
            .to_string(),
            408,
            "deadline_exceeded",
            None,
        ),
    ]
}

#[test]
fn a_bad_request_is_named_and_the_server_goes_on() {
    let server = Server::start(UNCACHED);
    let good = [pair("Is it late?", "Yes.")];
    let expected = bits(&server.score(&good), 0);
    for Case { name, body, expected: (status, code, pointer) } in cases() {
        let answer = server.post_bytes("/reward", &body);
        let found = answer.error();
        assert_eq!((found.0, &*found.1, found.2.as_deref()), (status, code, pointer), "{name}");
        // An answer must not throw the request back, nor speak of the code.
        assert!(answer.text.len() < 1000, "{name}: {:.1000}", answer.text);
        assert_eq!(bits(&server.score(&good), 0), expected, "after {name}");
    }
    assert_eq!(server.metric("inform_queue_tokens"), [(String::new(), 0.0)]);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn every_error_is_counted_by_its_code() {
    let server = Server::start(&[]);
    server.post_bytes("/reward", b"{");
    server.post_bytes("/reward", b"{}");
    server.post_bytes("/reward", b"{}");
    server.get("/nowhere");
    server.send("POST", "/health", &[], b"");
    let counts = server.metric("inform_requests_total");
    for (route, code, count) in [
        ("/reward", "invalid_json", 1.0),
        ("/reward", "invalid_request", 2.0),
        ("unmatched", "not_found", 1.0),
        ("/health", "method_not_allowed", 1.0),
    ] {
        let found = counts.iter().find(|(labels, _)| {
            labels.contains(&format!("\"{route}\"")) && labels.contains(&format!("\"{code}\""))
        });
        assert_eq!(found.map(|(_, count)| *count), Some(count), "{route} {code}: {counts:?}");
    }
}

#[test]
fn only_json_is_read() {
    let server = shared_server();
    let body = with(json!({}));
    for (content_type, status) in [
        (None, 415),
        (Some("text/plain"), 415),
        (Some("application/x-www-form-urlencoded"), 415),
        (Some("application/jsonp"), 415),
        (Some("application/json"), 200),
        (Some("Application/JSON; charset=utf-8"), 200),
        (Some("application/vnd.api+json"), 200),
    ] {
        let headers: Vec<(&str, &str)> =
            content_type.iter().map(|value| ("content-type", *value)).collect();
        let answer = server.send("POST", "/reward", &headers, body.as_bytes());
        assert_eq!(answer.status, status, "{content_type:?}: {}", answer.text);
        if status != 200 {
            assert_eq!(answer.error().1, "unsupported_media_type");
        }
    }
}

#[test]
fn unknown_routes_methods_and_names_are_answered_as_errors() {
    let server = Server::start(&[]);
    for (method, path, status, code, pointer) in [
        ("DELETE", "/", 405, "method_not_allowed", None),
        ("GET", "/rewards", 404, "not_found", None),
        ("POST", "/reward/", 404, "not_found", None),
        ("GET", "/reward", 405, "method_not_allowed", None),
        ("DELETE", "/reward", 405, "method_not_allowed", None),
        ("POST", "/metrics", 405, "method_not_allowed", None),
        ("GET", "/runs/nobody", 404, "unknown_run", None),
        ("DELETE", "/runs/nobody", 404, "unknown_run", None),
        ("GET", "/runs/nobody/evaluations", 404, "unknown_run", None),
        ("POST", "/runs/nobody/evaluate", 404, "unknown_run", None),
        ("GET", "/runs/%FF", 400, "invalid_request", None),
        ("GET", "/runs/a/evaluations?from_step=x", 400, "invalid_request", Some("/from_step")),
        ("GET", "/runs/a/evaluations?from_step=-1", 400, "invalid_request", Some("/from_step")),
    ] {
        let answer = server.send(method, path, &[("content-type", "application/json")], b"");
        let found = answer.error();
        let found = (found.0, &*found.1, found.2.as_deref());
        assert_eq!(found, (status, code, pointer), "{method} {path}");
        // RFC 9110 asks for the methods that the route takes.
        assert_eq!(answer.header("allow").is_some(), status == 405, "{method} {path}");
    }
}

#[test]
fn tokenize_refuses_what_scoring_refuses() {
    let server = shared_server();
    for (body, status, code) in [
        ("{", 400, "invalid_json"),
        (r#"{"inputs": [{"text": "a", "input_ids": [1]}]}"#, 400, "invalid_request"),
        (r#"{"inputs": [{"text": "a"}], "step": 1}"#, 400, "invalid_request"),
    ] {
        let found = server.post_bytes("/tokenize", body.as_bytes()).error();
        assert_eq!((found.0, &*found.1), (status, code), "{body}");
    }
    let many = json!({"inputs": vec![json!({"text": "a"}); 10_000]});
    assert_eq!(server.post("/tokenize", &many).error().1, "too_many_inputs");
    let mixed = json!({"inputs": [{"text": "a"}, {"text": ""}, {"input_ids": [u32::MAX]}]});
    let answer = server.post("/tokenize", &mixed).ok();
    assert!(answer["input_ids"][0].is_array() && answer["errors"][0].is_null());
    for (index, code) in [(1, "empty_input"), (2, "unknown_token")] {
        assert!(answer["input_ids"][index].is_null());
        assert_eq!(answer["errors"][index]["code"], code);
    }
}

#[test]
fn what_is_not_http_does_no_harm() {
    let server = shared_server();
    let huge_header =
        format!("GET /health HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
        b"GET\r\n\r\n",
        b"POST /reward HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /reward HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{\"inputs\"",
        huge_header.as_bytes(),
    ] {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        // The server may hang up before all is sent or read.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
        assert_eq!(server.get("/health").status, 200);
    }
    server.score(&[pair("Is it late?", "Yes.")]);
}

#[test]
fn a_full_queue_refuses_whole_requests_and_recovers() {
    let server =
        Server::start(&["--set", "engine.queue_tokens=600", "--set", "engine.token_budget=600"]);
    let (clients, requests) = (16, 6);
    let item = |client: usize| json!({"text": format!("{client} {}", "many words ".repeat(100))});
    let alone: Vec<_> =
        (0..clients).map(|client| bits(&server.score(&[item(client)]), 0)).collect();
    let start = Barrier::new(clients);
    let mut refused = 0;
    let mut scored = 0;
    std::thread::scope(|scope| {
        let tasks: Vec<_> = (0..clients)
            .map(|client| {
                let (server, start, alone) = (server.client(), &start, &alone);
                scope.spawn(move || {
                    start.wait();
                    let answers = (0..requests).map(|_| {
                        let inputs = json!({"inputs": vec![item(client); 4], "cache": false});
                        let answer = server.post("/reward", &inputs);
                        if answer.status == 200 {
                            (0..4).for_each(|i| assert_eq!(bits(&answer.json(), i), alone[client]));
                            return true;
                        }
                        assert_eq!(answer.error(), (503, "queue_full".to_owned(), None));
                        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
                        assert!(seconds > 0);
                        false
                    });
                    answers.collect::<Vec<bool>>()
                })
            })
            .collect();
        for task in tasks {
            for answered in task.join().unwrap() {
                *(if answered { &mut scored } else { &mut refused }) += 1;
            }
        }
    });
    assert!(scored > 0 && refused > 0, "{scored} scored, {refused} refused");
    assert_eq!(server.metric("inform_queue_tokens"), [(String::new(), 0.0)]);
    assert_eq!(bits(&server.score(&[item(0)]), 0), alone[0]);
}
