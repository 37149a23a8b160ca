//! The journal: what a monitor knows after its process was killed, its disk was full, its file damaged.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::server::{Client, PATIENCE, Server, pair, program, wait};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};

/// Settings that make many small windows.
const WINDOWS: &[&str] =
    &["--set", "monitor.window=24", "--set", "monitor.min_window=8", "--set", "threads=1"];

/// How often the process is killed; `.ci/full` asks for more.
const KILLS: usize = 8;

/// A server with a journal in `file`.
fn journalled(file: &Path, flags: &[&str]) -> Server {
    let path = format!("monitor.journal.path={}", file.to_str().unwrap());
    let mut all = vec!["--set", path.as_str()];
    all.extend(WINDOWS);
    all.extend(flags);
    Server::start(&all)
}

/// How a server ends that cannot start; its standard error.
fn refused(flags: &[&str]) -> String {
    let output = program().args(["--port", "0"]).args(flags).stderr(Stdio::piped()).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

/// The inputs of a run's request of that number: the same ones every time.
fn request(run: &str, number: usize) -> Value {
    let mut random = ChaCha8Rng::seed_from_u64(number as u64);
    let count = random.random_range(1..6);
    let inputs: Vec<Value> = (0..count)
        .map(|_| {
            let question = format!("Question {}, please?", random.random_range(0..12));
            pair(&question, &"well, so. ".repeat(random.random_range(1..9)))
        })
        .collect();
    json!({"inputs": inputs, "run": run, "step": number / 9, "return_latents": false})
}

fn inputs(run: &str, number: usize) -> u64 {
    request(run, number)["inputs"].as_array().unwrap().len() as u64
}

/// The number of the request that follows on so many samples; fails where they end within a request.
fn next_request(run: &str, samples: u64) -> usize {
    let (mut number, mut sum) = (0, 0);
    while sum < samples {
        sum += inputs(run, number);
        number += 1;
    }
    assert_eq!(sum, samples, "{run} ends within request {number}");
    number
}

/// Samples of a run that the server knows.
fn samples(client: &Client, run: &str) -> u64 {
    let answer = client.get(&format!("/runs/{run}"));
    if answer.status == 404 { 0 } else { answer.ok()["samples"].as_u64().unwrap() }
}

/// A run's evaluations, without what a clock says.
fn evaluations(client: &Client, run: &str) -> Vec<Value> {
    let answer = client.get(&format!("/runs/{run}/evaluations"));
    if answer.status == 404 {
        return Vec::new();
    }
    let mut rows = answer.ok()["evaluations"].as_array().unwrap().clone();
    for row in &mut rows {
        for clock in ["finished_at", "seconds"] {
            row.as_object_mut().unwrap().remove(clock).unwrap();
        }
    }
    rows
}

fn value(client: &Client, name: &str) -> f64 {
    client.metric(name).iter().map(|(_, value)| value).sum()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn until_written(client: &Client) {
    until("the journal", || value(client, "inform_journal_pending") == 0.0);
}

/// What a client knows when its server is killed.
#[derive(Default)]
struct Known {
    /// Samples sent, answered, and known to be in the file.
    sent: u64,
    answered: u64,
    written: u64,
    answers: Vec<(Instant, u64)>,
}

/// Sends requests, one after the other, until the server is gone; it begins with `found` samples.
fn load(client: &Client, run: &str, found: u64, gone: &AtomicBool) -> Known {
    let mut known = Known { sent: found, answered: found, ..Known::default() };
    let mut number = next_request(run, found);
    loop {
        known.sent += inputs(run, number);
        let body = request(run, number).to_string();
        let headers = [("content-type", "application/json")];
        match client.try_send("POST", "/reward", &headers, body.as_bytes()) {
            Ok(answer) => assert_eq!(answer.status, 200, "{}", answer.text),
            Err(error) => {
                assert!(gone.load(Ordering::SeqCst), "{error}");
                return known;
            }
        }
        known.answered = known.sent;
        known.answers.push((Instant::now(), known.answered));
        number += 1;
        if number.is_multiple_of(4)
            && let Ok(metrics) = client.try_send("GET", "/metrics", &[], &[])
            && metrics.text.lines().any(|line| line == "inform_journal_pending 0")
        {
            // Nothing waited after the answer, so what was answered is in the file.
            known.written = known.answered;
        }
    }
}

/// Kills the process at random moments under load; what each restart finds is compared with runs that
/// nothing interrupted.
fn kill_and_compare(flush_ms: u64, seed: u64) {
    let kills = std::env::var("JOURNAL_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("journal.redb");
    let flush = format!("monitor.journal.flush_ms={flush_ms}");
    let flags = ["--set", flush.as_str()];
    let runs = ["a", "b", "c"];
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut snapshots: Vec<(usize, u64, Vec<Value>)> = Vec::new();
    let mut worst = Duration::ZERO;
    for _ in 0..kills {
        let server = journalled(&file, &flags);
        let gone = AtomicBool::new(false);
        let alive = Duration::from_millis(random.random_range(20..700));
        let (known, killed) = std::thread::scope(|scope| {
            let clients = runs.map(|run| {
                let (client, gone) = (server.client(), &gone);
                let found = samples(&client, run);
                scope.spawn(move || load(&client, run, found, gone))
            });
            std::thread::sleep(alive);
            gone.store(true, Ordering::SeqCst);
            let killed = Instant::now();
            server.signal("KILL");
            (clients.map(|client| client.join().unwrap()), killed)
        });
        server.wait();
        let server = journalled(&file, &flags);
        for (index, (run, known)) in runs.iter().zip(&known).enumerate() {
            let found = samples(&server, run);
            assert!(found <= known.sent, "{run}: {found} of {} sent", known.sent);
            assert!(found >= known.written, "{run}: {found} of {} written", known.written);
            if flush_ms == 0 {
                assert!(found >= known.answered, "{run}: {found} of {}", known.answered);
            }
            let lost = known.answers.iter().find(|(_, answered)| *answered > found);
            worst = worst.max(lost.map_or(Duration::ZERO, |(at, _)| killed - *at));
            next_request(run, found);
            snapshots.push((index, found, evaluations(&server, run)));
        }
    }
    println!("{kills} kills, flush_ms {flush_ms}: the oldest lost answer was {worst:?} old");

    // Whole runs, with and without interruptions.
    let server = journalled(&file, &flags);
    let reference = Server::start(WINDOWS);
    for (index, run) in runs.iter().enumerate() {
        let end = next_request(run, samples(&server, run)) + 30;
        for number in next_request(run, samples(&server, run))..end {
            server.reward(&request(run, number));
        }
        for number in 0..end {
            reference.reward(&request(run, number));
        }
        let path = format!("/runs/{run}/evaluate");
        server.post(&path, &json!({})).ok();
        reference.post(&path, &json!({})).ok();
        assert_eq!(samples(&server, run), samples(&reference, run));
        let expected = evaluations(&reference, run);
        assert!(expected.len() > 5);
        assert_eq!(evaluations(&server, run), expected);
        for (_, found, rows) in snapshots.iter().filter(|(run, ..)| *run == index) {
            assert_eq!(rows[..], expected[..rows.len()], "{run} after {found} samples");
            let evaluated: u64 = rows.iter().map(|row| row["samples"].as_u64().unwrap()).sum();
            assert!(evaluated <= *found);
        }
    }
    assert_eq!(value(&server, "inform_journal_lost_total"), 0.0);
}

#[test]
fn a_killed_server_goes_on_with_what_was_written() {
    kill_and_compare(100, 1);
}

#[test]
fn without_a_window_nothing_answered_is_missing() {
    kill_and_compare(0, 2);
}

/// An orderly end loses nothing, whatever the window; all that belongs to a run comes back.
#[test]
fn a_restart_brings_everything_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("journal.redb");
    let flags = ["--set", "monitor.journal.flush_ms=60000"];
    let server = journalled(&file, &flags);
    for number in 0..40 {
        let mut body = request("r", number);
        if number < 20 {
            body["role"] = json!("baseline");
        }
        server.reward(&body);
        server.reward(&request("gone", number));
    }
    server.send("DELETE", "/runs/gone", &[], &[]);
    server.reward(&request("gone", 0));
    let config = json!({"window": 16, "shaping": {"beta_kl": 0.5}}).to_string();
    let headers = [("content-type", "application/json")];
    server.send("PUT", "/runs/set/config", &headers, config.as_bytes()).ok();
    let latents = json!({"latents": vec![vec![0.5; 32]; 3], "rewards": [1.0, 2.0, 3.0]});
    let latents = latents.to_string();
    server.send("PUT", "/runs/set/baseline", &headers, latents.as_bytes()).ok();
    until("evaluations", || server.read("/runs/r")["open_window"].as_u64().unwrap() < 24);
    let evaluation = server.post("/runs/r/evaluate", &json!({})).ok();
    let settled = samples(&server, "r");
    server.reward(&request("r", 40));
    until("the last answer", || samples(&server, "r") == settled + inputs("r", 40));
    until("the run", || samples(&server, "gone") == inputs("gone", 0));
    let expected = server.read("/runs");
    let rows = server.read("/runs/r/evaluations");
    server.signal("TERM");
    assert!(server.wait().0.success());

    let server = journalled(&file, &flags);
    assert_eq!(server.read("/runs"), expected);
    assert_eq!(server.read("/runs/r/evaluations"), rows);
    let run = server.read("/runs/r");
    assert_eq!((&run["baseline"], &run["last_evaluation"]), (&json!("recorded"), &evaluation));
    let run = server.read("/runs/set");
    assert_eq!((&run["baseline"], &run["baseline_version"]), (&json!("uploaded"), &json!(1)));
    assert_eq!((&run["config"]["window"], &run["samples"]), (&json!(16), &json!(0)));
    assert_eq!(run["config"]["shaping"]["beta_kl"], 0.5);
    let stopped = server.metric("inform_early_stop");
    assert!(stopped.iter().any(|(labels, _)| labels == "{run=\"r\"}"), "{stopped:?}");
    let next = server.post("/runs/r/evaluate", &json!({})).ok();
    assert_eq!(next["number"].as_u64(), Some(evaluation["number"].as_u64().unwrap() + 1));
}

/// The soft limit of the size of a file that the process may write stands in for a full disk.
fn limit_files(server: &Server, bytes: Option<u64>) {
    let process = Pid::from_raw(server.process().try_into().unwrap());
    let limit = Rlimit { current: bytes, maximum: None };
    prlimit(process, Resource::Fsize, limit).unwrap();
}

#[test]
fn a_full_disk_costs_the_journal_and_not_the_scores() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("journal.redb");
    let path = format!("monitor.journal.path={}", file.to_str().unwrap());
    let start = || {
        let server = program();
        // As on a full disk, a write that is too long is to be an error and no signal.
        let mut command = std::process::Command::new("sh");
        command
            .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
            .arg(server.get_program())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["--port", "0", "--set", &path, "--set", "monitor.max_pending=400"])
            .args(["--set", "monitor.journal.flush_ms=0"])
            .args(WINDOWS);
        Server::spawn(command)
    };
    let server = start();
    let mut sent = 0;
    let mut send = |server: &Server, number: usize| {
        let answer = server.reward(&request("r", number));
        sent += inputs("r", number);
        assert!(answer["rewards"].as_array().unwrap().iter().all(Value::is_number));
        sent
    };
    for number in 0..10 {
        send(&server, number);
    }
    assert_eq!(value(&server, "inform_journal_failed"), 0.0);
    limit_files(&server, Some(fs::metadata(&file).unwrap().len()));
    let mut number = 10;
    until("the failure", || {
        send(&server, number);
        number += 1;
        value(&server, "inform_journal_failed") == 1.0
    });
    let before_loss = number;
    until("a loss", || {
        send(&server, number);
        number += 1;
        value(&server, "inform_journal_lost_total") > 0.0
    });
    assert!(number > before_loss);
    // Nothing of the monitor is missing while the process lives.
    let all = send(&server, number);
    until("the monitor", || samples(&server, "r") == all);
    assert_eq!(value(&server, "inform_monitor_dropped_total"), 0.0);
    limit_files(&server, None);
    until("space", || value(&server, "inform_journal_failed") == 0.0);
    let all = send(&server, number + 1);
    until_written(&server);
    let lost = value(&server, "inform_journal_lost_total");
    let rows = evaluations(&server, "r");
    let log = server.log();
    assert_eq!(log.matches("cannot be written").count(), 1, "{log}");
    assert_eq!(log.matches("is written again").count(), 1, "{log}");
    server.signal("KILL");
    server.wait();
    let server = start();
    assert!(lost > 0.0);
    assert_eq!(samples(&server, "r"), all);
    assert_eq!(evaluations(&server, "r"), rows);
}

#[test]
fn the_file_keeps_within_its_size_and_forgets_the_oldest() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("journal.redb");
    let limit = 2 << 20;
    let size = format!("monitor.journal.max_bytes={limit}");
    let flags = ["--set", &size, "--set", "monitor.journal.flush_ms=0"];
    let server = journalled(&file, &flags);
    let inputs: Vec<Value> =
        (0..256).map(|number| json!({"input_ids": [number + 1, number + 2]})).collect();
    for step in 0..120 {
        let body = json!({"inputs": inputs, "run": "r", "step": step, "return_latents": false});
        server.reward(&body);
        // One at a time: an evaluator that is behind takes several steps as one window.
        until("the evaluation", || server.read("/runs/r")["evaluations"] == step);
        let bytes = fs::metadata(&file).unwrap().len();
        assert!(bytes <= limit, "{bytes} after {step} steps");
    }
    until("the window", || server.read("/runs/r")["open_window"] == 256);
    until_written(&server);
    let kept = evaluations(&server, "r");
    server.signal("KILL");
    server.wait();
    let server = journalled(&file, &flags);
    let rows = evaluations(&server, "r");
    assert_eq!(samples(&server, "r"), 120 * 256);
    assert_eq!(kept.len(), 119);
    assert!(rows.len() > 4 && rows.len() < kept.len(), "{} of {}", rows.len(), kept.len());
    assert_eq!(rows[..], kept[kept.len() - rows.len()..]);
    assert_eq!(server.read("/runs/r")["evaluations"], kept.len());
    assert_eq!(server.read("/runs/r")["open_window"], 256);

    // A smaller limit holds from the start on.
    drop(server);
    let smaller = journalled(&file, &["--set", "monitor.journal.max_bytes=1048576"]);
    assert!(fs::metadata(&file).unwrap().len() <= 1 << 20);
    assert!(evaluations(&smaller, "r").len() < rows.len());
    assert_eq!(samples(&smaller, "r"), 120 * 256);
}

#[test]
fn what_is_too_old_goes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("journal.redb");
    let server = journalled(&file, &[]);
    for number in 0..40 {
        server.reward(&request("r", number));
    }
    // The evaluator may be behind on a busy machine.
    let sent: u64 = (0..40).map(|number| inputs("r", number)).sum();
    until("the samples", || samples(&server, "r") == sent);
    until("the evaluations", || value(&server, "inform_evaluations_pending") == 0.0);
    let view = server.read("/runs/r");
    // Evaluations are in the file when it has ended by itself.
    server.signal("TERM");
    assert_eq!(server.wait().0.code(), Some(0));
    let whole = journalled(&file, &["--set", "monitor.journal.max_age_s=1000000"]);
    assert_eq!(whole.read("/runs/r"), view);
    drop(whole);
    let started = Instant::now();
    loop {
        // Every start reads what the one before has left.
        let server = journalled(&file, &["--set", "monitor.journal.max_age_s=1"]);
        let run = server.read("/runs/r");
        assert_eq!(run["samples"], view["samples"]);
        assert_eq!(run["evaluations"], view["evaluations"]);
        if evaluations(&server, "r").is_empty() && run["open_window"] == 0 {
            return;
        }
        assert!(started.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn weights_are_kept_apart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("journal.redb");
    let tiny = ["--model", "tests/golden/tiny/linear"];
    let send = |server: &Server| {
        server.reward(&json!({"inputs": [{"input_ids": [1, 2, 3]}], "run": "r"}));
        until_written(server);
        samples(server, "r")
    };
    assert_eq!(send(&journalled(&file, &[])), 1);
    assert_eq!(send(&journalled(&file, &tiny)), 1);
    assert_eq!(send(&journalled(&file, &[])), 2);
    assert_eq!(send(&journalled(&file, &tiny)), 2);
}

#[test]
fn a_file_that_cannot_be_used_stops_the_start_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("journal.redb");
    let path = format!("monitor.journal.path={}", file.to_str().unwrap());
    let flags = ["--set", path.as_str()];
    let server = journalled(&file, &["--set", "monitor.journal.flush_ms=0"]);
    for number in 0..20 {
        server.reward(&request("r", number));
    }
    let error = refused(&flags);
    assert!(error.contains("another server has it open"), "{error}");
    drop(server);

    let whole = fs::read(&file).unwrap();
    let cases: [(&str, Vec<u8>); 4] = [
        ("no journal", b"Something else, kept in a file of this name.\n".repeat(400)),
        ("cut off", whole[..whole.len() / 2].to_vec()),
        ("short", whole[..100].to_vec()),
        ("zeros", vec![0; whole.len()]),
    ];
    for (name, bytes) in cases {
        fs::write(&file, &bytes).unwrap();
        let error = refused(&flags);
        assert!(error.contains(file.to_str().unwrap()), "{name}: {error}");
        assert!(error.contains("move it away"), "{name}: {error}");
    }
    fs::write(&file, &whole).unwrap();
    let mut process = program().args(["--port", "0"]).args(flags).spawn().unwrap();
    process.kill().unwrap();
    wait(&mut process);
    assert!(samples(&journalled(&file, &[]), "r") > 0);

    let missing = folder.path().join("missing/journal.redb");
    let error = refused(&["--set", &format!("monitor.journal.path={}", missing.display())]);
    assert!(error.contains("missing/journal.redb"), "{error}");
}
