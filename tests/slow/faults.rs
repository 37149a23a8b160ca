//! What goes wrong around the engine while the server runs: clients that hang up, weights that are not
//! numbers, a clock that jumps, more work than there is time for.

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::support::server::{PATIENCE, Server, UNCACHED, bits, pair, program};
use serde_json::{Value, json};

fn item(number: usize) -> Value {
    pair(&format!("Question {number}: {}", "why? ".repeat(20)), &"so. ".repeat(1 + number % 200))
}

fn total(server: &Server, name: &str) -> f64 {
    server.metric(name).iter().map(|(_, value)| value).sum()
}

fn tokens(server: &Server, kind: &str) -> f64 {
    let counts = server.metric("inform_tokens_total");
    counts.iter().filter(|(labels, _)| labels.contains(kind)).map(|(_, n)| n).sum()
}

#[test]
fn clients_that_hang_up_mid_batch_cost_the_others_nothing() {
    let server = Server::start(UNCACHED);
    let good: Vec<Value> = (0..8).map(item).collect();
    let alone: Vec<_> =
        good.iter().map(|item| bits(&server.score(std::slice::from_ref(item)), 0)).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for client in 0..4 {
            let (server, done) = (&server, &done);
            scope.spawn(move || {
                let mut number = 1000 * client;
                while !done.load(Ordering::Relaxed) {
                    number += 16;
                    let inputs: Vec<Value> = (number..number + 16).map(item).collect();
                    let body = json!({ "inputs": inputs }).to_string();
                    let head = format!(
                        "POST /reward HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
                         Content-Length: {}\r\n\r\n",
                        body.len()
                    );
                    let mut stream = TcpStream::connect(server.address()).unwrap();
                    stream.write_all(head.as_bytes()).unwrap();
                    stream.write_all(body.as_bytes()).unwrap();
                    // Some hang up before the device has begun, some while it works.
                    std::thread::sleep(Duration::from_millis(number as u64 % 9));
                }
            });
        }
        for _ in 0..40 {
            let answer = server.score(&good);
            for (index, alone) in alone.iter().enumerate() {
                assert_eq!(bits(&answer, index), *alone);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    let started = Instant::now();
    while total(&server, "inform_queue_tokens") > 0.0 {
        assert!(started.elapsed() < PATIENCE, "work of those who left still waits");
        std::thread::sleep(Duration::from_millis(5));
    }
    let (logical, computed) = (tokens(&server, "logical"), tokens(&server, "computed"));
    let shared = tokens(&server, "shared");
    println!("{logical} tokens admitted, {} never computed", logical - computed - shared);
    assert_eq!(bits(&server.score(&good), 7), alone[7]);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

/// A copy of the demo checkpoint in which the reward is as much of a latent dimension as a weight can be.
fn overflowing_demo(folder: &Path, dimension: usize) {
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        let from = Path::new("configs/demo").join(name);
        if from.exists() {
            std::fs::copy(from, folder.join(name)).unwrap();
        }
    }
    let mut bytes = std::fs::read("configs/demo/model.safetensors").unwrap();
    // The format: length of the header, header, data.
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let offset = tensors["decode_head.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    let start = 8 + header + offset + 2 * dimension;
    bytes[start..start + 2].copy_from_slice(&half::bf16::MAX.to_le_bytes());
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn a_reward_that_overflows_fails_its_text_alone() {
    const DIMENSION: usize = 25;
    let folder = tempfile::tempdir().unwrap();
    overflowing_demo(folder.path(), DIMENSION);
    let whole = Server::start(UNCACHED);
    let broken = Server::start(&["--model", folder.path().to_str().unwrap()]);
    let inputs: Vec<Value> = (0..60)
        .map(|number| {
            let ids: Vec<usize> = (0..20).map(|place| 800 + 13 * number + place).collect();
            json!({"input_ids": ids})
        })
        .collect();
    // The latents are those of the whole demo: only what follows them is another.
    let expected = whole.score(&inputs);
    let overflows = |number: usize| {
        let mean = expected["latents"][number][DIMENSION].as_f64().unwrap() as f32;
        (mean * half::bf16::MAX.to_f32()).is_infinite()
    };
    let failing: Vec<usize> = (0..60).filter(|&number| overflows(number)).collect();
    assert!((5..55).contains(&failing.len()), "{failing:?}");
    for pass in 0..2 {
        let answer = broken.score(&inputs);
        for number in 0..60 {
            let item = &answer["items"][number];
            if failing.contains(&number) {
                assert_eq!(item["error"]["code"], "non_finite_reward");
                assert!(answer["rewards"][number].is_null() && answer["latents"][number].is_null());
                assert!(item["reward_std"].is_null());
                assert_eq!(item["cached"], false);
            } else {
                assert!(answer["rewards"][number].as_f64().unwrap().abs() > 1e30);
                assert_eq!(answer["latents"][number], expected["latents"][number]);
                assert_eq!(item["cached"], pass == 1);
            }
        }
    }
    let alone = broken.score(&inputs[failing[0]..=failing[0]]);
    assert_eq!(alone["items"][0]["error"]["code"], "non_finite_reward");
    let errors = (2 * failing.len() + 1) as f64;
    assert_eq!(total(&broken, "inform_item_errors_total"), errors);
}

/// Gives every look at the wall clock an error of a day, now forward, now back.
const JUMPING_CLOCK: &str = r#"
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long jump(void) {
    static int calls;
    return __sync_fetch_and_add(&calls, 1) % 2 ? 86400 : -86400;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = (int)syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        time->tv_sec += jump();
    return result;
}

int gettimeofday(struct timeval *time, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}
"#;

#[test]
fn a_wall_clock_that_jumps_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("clock.c"), folder.path().join("clock.so"));
    std::fs::write(&source, JUMPING_CLOCK).unwrap();
    let compiler = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status()
        .expect("a C compiler, which the build needs too");
    assert!(compiler.success());
    let mut command = program();
    command.args(["--port", "0"]).env("LD_PRELOAD", &library);
    let server = Server::spawn(command);

    let steady = Server::start(&[]);
    let mut jumps = Vec::new();
    for step in 0..20 {
        let inputs: Vec<Value> = (0..40).map(|number| item(100 * step + number)).collect();
        let body = json!({"inputs": inputs, "run": "r", "step": step, "timing": true});
        let (answer, expected) = (server.reward(&body), steady.reward(&body));
        for index in 0..inputs.len() {
            assert_eq!(bits(&answer, index), bits(&expected, index));
            let timing = &answer["items"][index]["timing"];
            for part in ["queue_ms", "device_ms"] {
                let time = timing[part].as_f64().unwrap();
                assert!(time >= 0.0 && time < PATIENCE.as_secs_f64() * 1e3, "{timing}");
            }
        }
        let evaluation = server.post("/runs/r/evaluate", &json!({})).ok();
        jumps.push(evaluation["finished_at"].as_f64().unwrap());
        // Deadlines end what they should, and nothing else.
        let late = json!({
            "inputs": vec![json!({"text": "many words ".repeat(100)}); 256],
            "deadline_ms": 1, "cache": false,
        });
        assert_eq!(server.post("/reward", &late).error().0, 408);
    }
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!(
        jumps.iter().all(|time| (time - now).abs() > 80_000.0),
        "the clock did not jump: {jumps:?}"
    );
    for name in ["inform_queue_seconds_sum", "inform_request_seconds_sum"] {
        let sum = total(&server, name);
        assert!((0.0..80_000.0).contains(&sum), "{name}: {sum}");
    }
}

/// The server's resident memory in bytes.
fn resident(server: &Server) -> usize {
    let pages = std::fs::read_to_string(format!("/proc/{}/statm", server.process())).unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * rustix::param::page_size()
}

#[test]
fn an_overload_is_refused_and_then_forgotten() {
    let flags = ["--set", "engine.queue_tokens=16384", "--set", "engine.token_budget=4096"];
    let server = Server::start(&flags);
    let expected = bits(&server.score(&[item(0)]), 0);
    let before = resident(&server);
    let most = AtomicUsize::new(before);
    let (scored, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..64 {
            let (server, most, scored, refused) = (&server, &most, &scored, &refused);
            scope.spawn(move || {
                let agent = server.client();
                let mut number = 100_000 * client;
                while started.elapsed() < Duration::from_secs(5) {
                    number += 8;
                    let inputs: Vec<Value> = (number..number + 8).map(item).collect();
                    let answer = agent.post("/reward", &json!({ "inputs": inputs }));
                    if answer.status == 200 {
                        let answer = answer.json();
                        let rewards = answer["rewards"].as_array().unwrap();
                        assert!(rewards.len() == 8 && rewards.iter().all(Value::is_number));
                        scored.fetch_add(1, Ordering::Relaxed);
                    } else {
                        assert_eq!(answer.error(), (503, "queue_full".to_owned(), None));
                        let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
                        assert!(wait > 0);
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                    if client == 0 {
                        most.fetch_max(resident(server), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let (scored, refused) = (scored.into_inner(), refused.into_inner());
    let grown = most.into_inner() - before;
    println!("{scored} scored, {refused} refused, {} MB more", grown >> 20);
    assert!(scored > 0 && refused > 0, "{scored} scored, {refused} refused");
    // 16,384 waiting tokens are little; the rest is 64 connections, and scores that are kept.
    assert!(grown < 256 << 20, "{grown} bytes more");
    assert_eq!(total(&server, "inform_queue_tokens"), 0.0);
    assert_eq!(bits(&server.reward(&json!({"inputs": [item(0)], "cache": false})), 0), expected);
}
