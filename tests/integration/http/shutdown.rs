//! Shutting down: what was accepted is answered, and nothing more is accepted.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::server::{PATIENCE, Server, bits, float, pair};
use serde_json::{Value, json};

const CLIENTS: usize = 16;
const CUT_OFF: &str = "connections were still open";

fn item(number: usize) -> Value {
    pair(&format!("Question {number}: {}", "why? ".repeat(100)), &"so. ".repeat(1 + number))
}

fn until(what: &str, done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn every_accepted_request_is_answered() {
    for signal in ["TERM", "INT"] {
        let server = Server::start(&[]);
        let inputs = |client: usize| (0..24).map(|i| item(client + i)).collect::<Vec<_>>();
        // Loads what the first request loads, and gives a number to compare with.
        let expected = bits(&server.score(&[item(0)]), 0);
        let tokens = |server: &Server, kind: &str| -> f64 {
            let counts = server.metric("inform_tokens_total");
            counts.iter().filter(|(labels, _)| labels.contains(kind)).map(|(_, n)| n).sum()
        };
        let already = tokens(&server, "logical");
        let all: usize = (0..CLIENTS)
            .map(|client| {
                let body = json!({"inputs": inputs(client)});
                let ids = server.post("/tokenize", &body).ok()["input_ids"].clone();
                let lengths =
                    ids.as_array().unwrap().iter().map(|ids| ids.as_array().unwrap().len());
                lengths.sum::<usize>()
            })
            .sum();
        std::thread::scope(|scope| {
            let tasks: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let server = server.client();
                    scope.spawn(move || {
                        // On a busy machine the default deadline would refuse some.
                        let body = json!({"inputs": inputs(client), "cache": false, "deadline_ms": 600_000});
                        server.post("/reward", &body)
                    })
                })
                .collect();
            until("all requests to be admitted", || {
                tokens(&server, "logical") >= already + all as f64
            });
            server.signal(signal);
            for (client, task) in tasks.into_iter().enumerate() {
                let answer = task.join().unwrap().ok();
                let rewards = answer["rewards"].as_array().unwrap();
                assert_eq!(rewards.len(), 24);
                assert!(rewards.iter().all(|reward| float(reward).is_finite()));
                if client == 0 {
                    assert_eq!(bits(&answer, 0), expected);
                }
            }
        });
        let address = server.address().to_owned();
        let (status, log) = server.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("stopped") && !log.contains(CUT_OFF), "{log}");
        assert!(TcpStream::connect(address).is_err(), "somebody still listens");
    }
}

/// Clients that go on sending see whole answers, refusals, or no connection, never half an answer.
#[test]
fn clients_that_go_on_are_never_cut_off_in_an_answer() {
    let server = Server::start(&[]);
    let scored = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (server, scored) = (server.client(), &scored);
            scope.spawn(move || {
                let body = json!({"inputs": [item(client)], "cache": false}).to_string();
                let headers = [("content-type", "application/json")];
                for _ in 0..100_000 {
                    match server.try_send("POST", "/reward", &headers, body.as_bytes()) {
                        Ok(answer) if answer.status == 200 => {
                            // The JSON is whole.
                            assert!(float(&answer.json()["rewards"][0]).is_finite());
                            scored.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(answer) => {
                            assert_eq!(answer.error(), (503, "draining".to_owned(), None));
                            return;
                        }
                        Err(ureq::Error::Io(_) | ureq::Error::ConnectionFailed) => return,
                        Err(error) => panic!("{error:?}"),
                    }
                }
            });
        }
        until("some answers", || scored.load(Ordering::Relaxed) >= 2 * CLIENTS);
        server.signal("TERM");
    });
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains(CUT_OFF), "{log}");
}

#[test]
fn idle_connections_do_not_hold_the_server_up() {
    let server = Server::start(&[]);
    let silent = TcpStream::connect(server.address()).unwrap();
    let mut kept = TcpStream::connect(server.address()).unwrap();
    kept.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    kept.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    server.signal("TERM");
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains(CUT_OFF), "{log}");
    drop((silent, kept));
}

#[test]
fn a_request_that_never_ends_is_given_up_after_the_grace_period() {
    let server = Server::start(&["--set", "shutdown_grace_ms=300"]);
    let mut half = TcpStream::connect(server.address()).unwrap();
    let head = "POST /reward HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
                Content-Length: 50\r\n\r\n{";
    half.write_all(head.as_bytes()).unwrap();
    // Another connection's answer comes after the server has seen the first.
    server.score(&[item(0)]);
    server.signal("TERM");
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains(CUT_OFF), "{log}");
}
