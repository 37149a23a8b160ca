//! What every request passes through: keys, quotas, time-outs, compression, logs.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::server::{PATIENCE, Server, bits, pair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const KEY: &str = "marmalade-0123456789";
const OTHER: &str = "quince-9876543210abc";

/// A keys file, which lives as long as the folder.
fn keys(folder: &tempfile::TempDir, text: &str) -> (PathBuf, String) {
    let file = folder.path().join("keys.toml");
    std::fs::write(&file, text).unwrap();
    let setting = format!("auth.keys_file={}", file.display());
    (file, setting)
}

fn two_keys(folder: &tempfile::TempDir) -> String {
    keys(
        folder,
        &format!(
            "[[keys]]\nname = \"a\"\nkey = \"{KEY}\"\n\
             [[keys]]\nname = \"b\"\nkey = \"{OTHER}\"\ntokens_per_second = 1\n"
        ),
    )
    .1
}

const OPEN: [&str; 6] = ["/health", "/ready", "/metrics", "/info", "/v1/models", "/openapi.json"];

#[test]
fn every_route_but_the_open_ones_asks_for_a_key() {
    let scratch = tempfile::tempdir().unwrap();
    let server = Server::start(&["--set", &two_keys(&scratch)]);
    let document = server.read("/openapi.json");
    let mut closed = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            let url = path.replace("{run}", "default");
            let headers = [("content-type", "application/json")];
            let answer = server.send(&method, &url, &headers, b"{}");
            if OPEN.contains(&path.as_str()) {
                assert_eq!(answer.status, 200, "{method} {path}");
                continue;
            }
            assert_eq!(answer.error(), (401, "unauthorized".to_owned(), None), "{method} {path}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            let bearer = format!("Bearer {KEY}");
            let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
            assert_ne!(server.send(&method, &url, &headers, b"{}").status, 401, "{method} {path}");
            closed += 1;
        }
    }
    assert!(closed >= 20, "{closed}");
    assert_eq!(server.get("/no/such/route").error().0, 401);
}

#[test]
fn a_key_comes_as_bearer_or_as_a_password() {
    let scratch = tempfile::tempdir().unwrap();
    let server = Server::start(&["--set", &two_keys(&scratch)]);
    let body = json!({"inputs": [pair("Is it late?", "Yes.")]}).to_string();
    let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
    for (value, status) in [
        (format!("Bearer {KEY}"), 200),
        (format!("bearer {OTHER}"), 200),
        (basic(&format!("anyone:{KEY}")), 200),
        (format!("Bearer {}", &KEY[..KEY.len() - 1]), 401),
        (format!("Bearer {KEY}x"), 401),
        ("Bearer ".to_owned(), 401),
        (KEY.to_owned(), 401),
        (basic(KEY), 401),
        ("Basic ????".to_owned(), 401),
    ] {
        let headers = [("content-type", "application/json"), ("authorization", &*value)];
        let answer = server.send("POST", "/reward", &headers, body.as_bytes());
        assert_eq!(answer.status, status, "{value}");
    }
}

#[test]
fn a_key_has_its_own_quota() {
    let scratch = tempfile::tempdir().unwrap();
    let server = Server::start(&["--set", &two_keys(&scratch)]);
    let ask = |key: &str, path: &str, body: &Value| {
        let value = format!("Bearer {key}");
        let headers = [("content-type", "application/json"), ("authorization", &*value)];
        server.send("POST", path, &headers, body.to_string().as_bytes())
    };
    let native = json!({"inputs": [{"text": "many words ".repeat(100)}]});
    // Larger than the burst: served, then paid off.
    assert_eq!(ask(OTHER, "/reward", &native).status, 200);
    let refused = ask(OTHER, "/reward", &native);
    assert_eq!(refused.error(), (429, "rate_limited".to_owned(), None));
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() > 1);
    // verl would end its training at a 429.
    let refused = ask(OTHER, "/classify", &json!({"input": "a"}));
    assert_eq!(refused.error(), (503, "rate_limited".to_owned(), None));
    assert!(refused.header("retry-after").is_some());
    // Nobody else pays for it.
    assert_eq!(ask(KEY, "/reward", &native).status, 200);
}

#[test]
fn a_keys_file_that_is_wrong_stops_the_start_without_showing_a_key() {
    let scratch = tempfile::tempdir().unwrap();
    for text in [
        "",
        "keys = []",
        "key = \"marmalade-0123456789\"",
        "[[keys]]\nname = \"a\"\nkey = marmalade-0123456789\n",
        "[[keys]]\nname = \"a\"\nkey = \"marmalade\"\n",
        "[[keys]]\nname = \"a\"\nkey = \"marmalade-0123456789\"\ntokens_per_second = 0\n",
        "[[keys]]\nname = \"a\"\nkey = \"marmalade-0123456789\"\nrate = 3\n",
        "[[keys]]\nname = \"a\"\nkey = \"marmalade-0123456789\"\n\
         [[keys]]\nname = \"b\"\nkey = \"marmalade-0123456789\"\n",
    ] {
        let (_, setting) = keys(&scratch, text);
        let mut command = crate::support::server::program();
        command.args(["--port", "0", "--set", &setting]).stderr(std::process::Stdio::piped());
        let output = command.output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}: {errors}");
        assert!(errors.contains("auth.keys_file"), "{errors}");
        assert!(!errors.contains("marmalade"), "{errors}");
    }
}

#[test]
fn keys_are_read_again_at_sighup() {
    let scratch = tempfile::tempdir().unwrap();
    let line = |name: &str, key: &str| format!("[[keys]]\nname = \"{name}\"\nkey = \"{key}\"\n");
    let (file, setting) = keys(&scratch, &line("a", KEY));
    let server = Server::start(&["--set", &setting]);
    let status = |key: &str| {
        let value = format!("Bearer {key}");
        server.send("GET", "/runs", &[("authorization", &*value)], b"").status
    };
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let started = Instant::now();
        while !done() {
            assert!(started.elapsed() < PATIENCE, "{what}: {}", server.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    assert_eq!((status(KEY), status(OTHER)), (200, 401));
    std::fs::write(&file, line("a", KEY) + &line("b", OTHER)).unwrap();
    assert_eq!(status(OTHER), 401, "nobody asked for it");
    server.signal("HUP");
    until("the new key", &|| status(OTHER) == 200);
    assert_eq!(status(KEY), 200);
    std::fs::write(&file, line("b", OTHER)).unwrap();
    server.signal("HUP");
    until("the end of the old key", &|| status(KEY) == 401);
    // What cannot be read changes nothing, and is named without showing a key.
    std::fs::write(&file, format!("[[keys]]\nname = \"c\"\nkey = {OTHER}\n")).unwrap();
    server.signal("HUP");
    until("the complaint", &|| server.log().contains("the keys stay as they were"));
    assert_eq!((status(KEY), status(OTHER)), (401, 200));
    assert!(server.log().contains("keys.toml: line 3"), "{}", server.log());
    assert!(!server.log().contains("quince"), "{}", server.log());
}

/// Whatever happens to a request, nothing of it is in the logs but its route, its code and its id.
#[test]
fn a_log_holds_no_key_and_no_text() {
    let scratch = tempfile::tempdir().unwrap();
    let server =
        Server::start(&["--set", &two_keys(&scratch), "--set", "limits.default_deadline_ms=1"]);
    let secret = "rhubarb";
    let long = "rhubarb and ".repeat(3000);
    let document = server.read("/openapi.json");
    for path in document["paths"].as_object().unwrap().keys() {
        for key in [KEY, OTHER, "rhubarb-not-a-key-at-all"] {
            for body in [
                json!({"inputs": secret, "query": [secret], "texts": [secret], "text": secret}),
                json!({"inputs": [{"prompt": secret, "response": long}]}),
                json!({"query": [long], "input": secret, "messages": [secret]}),
                json!(secret),
            ] {
                let value = format!("Bearer {key}");
                let headers = [("content-type", "application/json"), ("authorization", &*value)];
                let path = format!("{}?run={secret}", path.replace("{run}", "r"));
                // Where no body is read, the connection may end before all of it is sent.
                let _ = server.try_send("POST", &path, &headers, body.to_string().as_bytes());
                let broken = format!("{{\"{secret}\": {body}");
                let _ = server.try_send("POST", &path, &headers, broken.as_bytes());
            }
        }
    }
    for (path, body) in crate::support::server::scoring_routes(secret, "rhubarb and custard") {
        for key in [KEY, OTHER] {
            let value = format!("Bearer {key}");
            let headers = [("content-type", "application/json"), ("authorization", &*value)];
            let _ = server.try_send("POST", path, &headers, body.to_string().as_bytes());
        }
    }
    server.signal("TERM");
    let (_, log) = server.wait();
    assert!(log.contains("listening on"));
    for text in [secret, "marmalade", "quince", &STANDARD.encode(KEY)] {
        assert!(!log.contains(text), "{log}");
    }
}

#[test]
fn a_log_holds_no_text_that_was_scored() {
    let server = Server::start(&[]);
    for (path, body) in crate::support::server::scoring_routes("rhubarb?", "rhubarb!") {
        let headers = [("content-type", "application/json"), ("x-timing", "true")];
        let answer = server.send("POST", path, &headers, body.to_string().as_bytes());
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    }
    server.signal("TERM");
    let (_, log) = server.wait();
    assert!(log.contains("listening on") && !log.contains("rhubarb"), "{log}");
}

/// The durations of a `Server-Timing` header, in milliseconds.
fn durations(answer: &crate::support::server::Answer) -> Vec<(String, f64)> {
    let header = answer.header("server-timing").unwrap_or_default();
    let metrics = header.split(", ").filter(|metric| !metric.is_empty());
    let parts = metrics.map(|metric| metric.split_once(";dur=").unwrap());
    parts.map(|(name, time)| (name.to_owned(), time.parse().unwrap())).collect()
}

#[test]
fn every_protocol_says_where_the_time_went() {
    let server = Server::start(crate::support::server::UNCACHED);
    let routes = crate::support::server::scoring_routes("Is it late?", "Yes.");
    for (path, body) in routes.iter().chain(&[("/reward", json!({"inputs": [pair("a", "b")]}))]) {
        let ask = |timing| {
            let headers = [("content-type", "application/json"), ("x-timing", timing)];
            server.send("POST", path, &headers, body.to_string().as_bytes())
        };
        let times = durations(&ask("true"));
        let names: Vec<&str> = times.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["queue", "device"], "{path}");
        assert!(times[0].1 >= 0.0 && times[1].1 > 0.0, "{path}: {times:?}");
        assert!(ask("false").header("server-timing").is_none(), "{path}");
    }
    // The body of /reward tells the same of each input; one that failed has no times.
    let body = json!({"inputs": [pair("a", "b"), {"text": ""}, pair("c", "d")], "timing": true});
    let headers = [("content-type", "application/json"), ("x-timing", "true")];
    let answer = server.send("POST", "/reward", &headers, body.to_string().as_bytes());
    let (times, items) = (durations(&answer), answer.ok()["items"].clone());
    let names: Vec<&str> = times.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["queue", "device", "queue-0", "device-0", "queue-2", "device-2"]);
    for (name, field, index) in
        [("queue-0", "queue_ms", 0), ("device-0", "device_ms", 0), ("device-2", "device_ms", 2)]
    {
        let found = times.iter().find(|(other, _)| other == name).unwrap().1;
        let expected = items[index]["timing"][field].as_f64().unwrap();
        assert!((found - expected).abs() < 0.001, "{name}: {times:?} {items}");
    }
    let longest = |what: &str| {
        let of = times.iter().filter(|(name, _)| name.starts_with(&format!("{what}-")));
        of.map(|(_, time)| *time).fold(0.0, f64::max)
    };
    assert_eq!((times[0].1, times[1].1), (longest("queue"), longest("device")));
}

/// Bodies that are not JSON: whoever refuses them without a word about that has not read them.
/// Ends other threads' work where it is dropped.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_full_queue_refuses_before_the_body_is_read() {
    let flags = ["--set", "engine.queue_tokens=8000", "--set", "engine.token_budget=200"];
    let server = Server::start(&flags);
    let long = json!({"inputs": vec![json!({"text": "many words ".repeat(400)}); 8],
        "cache": false, "run": "flood"})
    .to_string();
    let expected = bits(&server.score(&[pair("Is it late?", "Yes.")]), 0);
    let json_header = ("content-type", "application/json");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also where a check fails: the scope waits for its threads.
        let _ending = Ending(&done);
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let _ = server.try_send("POST", "/reward", &[json_header], long.as_bytes());
                }
            });
        }
        let until_refused = |path: &str| {
            let started = Instant::now();
            loop {
                assert!(started.elapsed() < PATIENCE, "{path} is never refused");
                let headers = [json_header, ("x-run-id", "flood")];
                let answer = server.send("POST", path, &headers, b"{");
                if answer.status != 400 {
                    return answer;
                }
            }
        };
        for path in ["/reward", "/get_reward", "/classify", "/v1/embeddings", "/slime"] {
            let refused = until_refused(path);
            assert_eq!(refused.error(), (503, "queue_full".to_owned(), None), "{path}");
            let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=60).contains(&wait), "{wait}");
        }
        // TEI's clients are told in their way.
        let refused = until_refused("/predict");
        assert_eq!((refused.status, &refused.json()["error_type"]), (503, &json!("Overloaded")));
        // A run that did not fill the queue is scored.
        let polite = json!({"inputs": [pair("Is it late?", "Yes.")], "cache": false});
        for _ in 0..20 {
            let headers = [json_header, ("x-run-id", "polite")];
            let answer = server.send("POST", "/reward", &headers, polite.to_string().as_bytes());
            assert_eq!(bits(&answer.ok(), 0), expected);
        }
    });
    // Thousands of refusals are a line of the log.
    let lines = server.log().matches("requests were refused").count();
    assert!((1..20).contains(&lines), "{}", server.log());
}

/// Reads until the other end hangs up.
fn rest(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    // A reset is a way to hang up, too.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn a_head_that_trickles_is_given_up() {
    let server = Server::start(&["--set", "limits.header_timeout_ms=300"]);
    let mut silent = TcpStream::connect(server.address()).unwrap();
    let mut slow = TcpStream::connect(server.address()).unwrap();
    let started = Instant::now();
    for byte in "GET /health HTTP/1.1\r\nX-Slow: ".bytes().chain(std::iter::repeat(b'a')) {
        if slow.write_all(&[byte]).is_err() {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "the server waits for ever");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!rest(&mut slow).starts_with("HTTP/1.1 200"));
    assert_eq!(rest(&mut silent), "");
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_body_that_trickles_is_given_up_and_others_are_served_meanwhile() {
    let server = Server::start(&["--set", "limits.body_timeout_ms=500"]);
    let head = "POST /reward HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
                Content-Length: 100000\r\n\r\n";
    let mut slow: Vec<TcpStream> = (0..64)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            stream.set_nonblocking(true).unwrap();
            stream
        })
        .collect();
    let expected = bits(&server.score(&[pair("Is it late?", "Yes.")]), 0);
    let started = Instant::now();
    let mut answered = 0;
    while answered < slow.len() {
        assert!(started.elapsed() < PATIENCE, "{answered} answered");
        answered = 0;
        for stream in &mut slow {
            let _ = stream.write(b" ");
            let mut byte = [0];
            answered += usize::from(!matches!(stream.peek(&mut byte), Err(error)
                if error.kind() == std::io::ErrorKind::WouldBlock));
        }
        assert_eq!(bits(&server.score(&[pair("Is it late?", "Yes.")]), 0), expected);
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut timed_out = 0;
    for stream in &mut slow {
        stream.set_nonblocking(false).unwrap();
        let text = rest(stream);
        timed_out += usize::from(text.starts_with("HTTP/1.1 408") && text.contains("read_timeout"));
    }
    // A client that was still sending may see the connection end before the answer.
    assert!(timed_out > 0);
    let counts = server.metric("inform_requests_total");
    let count: f64 =
        counts.iter().filter(|(labels, _)| labels.contains("read_timeout")).map(|(_, n)| n).sum();
    assert_eq!(count, 64.0);
}

/// A client keeps its connection after an answer that its request's body had no part in.
#[test]
fn a_connection_outlives_a_body_that_nobody_wanted() {
    let scratch = tempfile::tempdir().unwrap();
    let server = Server::start(&["--set", &two_keys(&scratch)]);
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = "x".repeat(100_000);
    for (head, status) in [
        ("POST /reward HTTP/1.1\r\n".to_owned(), "401"),
        (format!("POST /nowhere HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n"), "404"),
        (format!("POST /health HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n"), "405"),
        (format!("POST /reward HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n"), "415"),
        (format!("POST /runs/none/evaluate HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n"), "404"),
    ] {
        let request = format!("{head}Host: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).unwrap();
        let answer = answer(&mut stream);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(!answer.to_lowercase().contains("connection: close"), "{answer}");
    }
    // One that is too much to read, or not sent until it is asked for, ends the connection, and is told so.
    for (head, sent) in [("", (1 << 20) + 1), ("Expect: 100-continue\r\n", 0)] {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!(
            "POST /reward HTTP/1.1\r\nHost: a\r\n{head}Content-Length: {}\r\n\r\n",
            1 << 30
        );
        stream.write_all(request.as_bytes()).unwrap();
        let _ = stream.write_all(&vec![b'x'; sent]);
        let answer = answer(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    }
}

/// The head of an answer, whose body is read too.
fn answer(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.to_lowercase().split("content-length: ").nth(1).unwrap().to_owned();
    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
    stream.read_exact(&mut vec![0; length]).unwrap();
    head
}

/// How many files this process may open.
fn open_files() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    line.split_whitespace().nth(3).and_then(|soft| soft.parse().ok()).unwrap_or(1024)
}

#[test]
fn ten_thousand_connections_are_served() {
    let server = Server::start(&[]);
    let wanted = 10_000;
    let connections = wanted.min(open_files().saturating_sub(500));
    if connections < wanted {
        println!("the limit of open files allows {connections} connections");
    }
    let expected = bits(&server.score(&[pair("Is it late?", "Yes.")]), 0);
    let mut open: Vec<TcpStream> =
        (0..connections).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    // Each of them is served, twice, while all are open.
    for _ in 0..2 {
        for stream in &mut open {
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        }
        for stream in &mut open {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut answer = Vec::new();
            let mut buffer = [0; 512];
            while !answer.ends_with(b"ok\n") {
                let read = stream.read(&mut buffer).unwrap();
                assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
                answer.extend_from_slice(&buffer[..read]);
            }
            assert!(answer.starts_with(b"HTTP/1.1 200"));
        }
    }
    assert_eq!(bits(&server.score(&[pair("Is it late?", "Yes.")]), 0), expected);
    drop(open);
    server.signal("TERM");
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn connections_beyond_the_limit_wait_for_their_turn() {
    let server = Server::start(&["--set", "limits.max_connections=2"]);
    let held: Vec<TcpStream> =
        (0..2).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    let mut waiting = TcpStream::connect(server.address()).unwrap();
    waiting.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(waiting.read(&mut [0; 16]).is_err(), "a third connection was served");
    drop(held);
    assert!(rest(&mut waiting).starts_with("HTTP/1.1 200"));
}

#[test]
fn long_answers_are_compressed_for_those_who_ask() {
    let server = Server::start(&[]);
    let inputs: Vec<Value> = (0..100).map(|i| pair("Count.", &"one ".repeat(i + 1))).collect();
    let body = json!({"inputs": inputs}).to_string();
    let raw = |accept: &str, body: &str| {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let head = format!(
            "POST /reward HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{accept}\
             Connection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        rest(&mut stream).to_ascii_lowercase()
    };
    let gzip = "Accept-Encoding: gzip\r\n";
    let packed = raw(gzip, &body);
    assert!(packed.contains("content-encoding: gzip"), "{packed:.500}");
    let plain = raw("", &body);
    assert!(!plain.contains("content-encoding") && plain.contains("\"rewards\""));
    assert!(packed.len() < plain.len());
    let short = json!({"inputs": [pair("a", "b")], "return_latents": false}).to_string();
    assert!(!raw(gzip, &short).contains("content-encoding"));
}
