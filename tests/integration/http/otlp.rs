//! Trace spans by OTLP: `cargo test --release --features otlp --test integration otlp`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::channel;

use crate::support::server::{PATIENCE, Server, pair};
use serde_json::json;

#[test]
fn requests_are_exported_as_spans_and_hold_no_text() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/v1/traces", collector.local_addr().unwrap());
    let (sent, received) = channel();
    std::thread::spawn(move || {
        for stream in collector.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).unwrap() <= 2 {
                    break;
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                head += &line;
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            stream.get_mut().write_all(answer).unwrap();
            let _ = sent.send((head, String::from_utf8_lossy(&body).into_owned()));
        }
    });
    let server = Server::start(&["--set", &format!("log.otlp_endpoint={endpoint}")]);
    server.reward(&json!({"inputs": [pair("marmalade", "marmalade")]}));
    server.signal("TERM");
    // What waits is sent at the end.
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    let (head, body) = received.recv_timeout(PATIENCE).unwrap();
    assert!(head.starts_with("POST /v1/traces"), "{head}");
    for part in ["request", "/reward", "request_id", "inform"] {
        assert!(body.contains(part), "{part} in {body:?}");
    }
    assert!(!body.contains("marmalade"), "{body:?}");
}
