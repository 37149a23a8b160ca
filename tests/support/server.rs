//! The real server as a child process, and a client for it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::http::{HeaderMap, Request};

/// Longest wait for anything. Far beyond what a busy machine needs: it only ends a test that hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

const LISTENING: &str = "listening on ";

/// Flags of a server that computes every text anew, for what is to hold whoever computes.
pub(crate) const UNCACHED: &[&str] = &["--set", "cache.max_bytes=0"];

/// The server's program, without settings from this process's environment.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inform-server"));
    command.stdin(Stdio::null());
    in_the_repository(&mut command);
    command
}

/// A server on the demo checkpoint for tests that only read; what they score goes to runs of their own. It ends with the tests:
/// then the shell's input closes.
pub(crate) fn shared_server() -> &'static Server {
    static SERVER: LazyLock<Server> = LazyLock::new(|| {
        let mut command = Command::new("sh");
        command.args(["-c", "\"$0\" --port 0 </dev/null & cat; kill $!"]);
        command.arg(env!("CARGO_BIN_EXE_inform-server")).stdin(Stdio::piped());
        in_the_repository(&mut command);
        Server::spawn(command)
    });
    &SERVER
}

/// Without settings from this process's environment.
fn in_the_repository(command: &mut Command) {
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdout(Stdio::null());
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("INFORM"))
    {
        command.env_remove(name);
    }
}

/// A started server; stopped when dropped.
pub(crate) struct Server {
    process: Child,
    reader: Option<JoinHandle<()>>,
    log: Arc<Mutex<String>>,
    client: Client,
}

impl Server {
    /// The demo checkpoint on a free port.
    pub(crate) fn start(flags: &[&str]) -> Self {
        let mut command = program();
        command.args(["--port", "0"]).args(flags);
        Self::spawn(command)
    }

    /// Starts a prepared command and waits until it listens.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (found, address) = channel();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let reader = std::thread::spawn({
            let log = log.clone();
            move || {
                for line in lines.map_while(Result::ok) {
                    if let Some((_, rest)) = line.split_once(LISTENING) {
                        // A JSON log goes on behind the address.
                        let url = rest.split(['"', ' ', '\u{1b}']).next().unwrap_or_default();
                        let _ = found.send(url.to_owned());
                    }
                    let mut log = log.lock().unwrap();
                    log.push_str(&line);
                    log.push('\n');
                }
            }
        });
        let url = Self::wait_for(&address, &mut process, &log);
        Self { process, reader: Some(reader), log, client: Client::new(url) }
    }

    fn wait_for(address: &Receiver<String>, process: &mut Child, log: &Mutex<String>) -> String {
        address.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let _ = process.kill();
            panic!("the server did not listen; its log:\n{}", log.lock().unwrap())
        })
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The process's number.
    pub(crate) fn process(&self) -> u32 {
        self.process.id()
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.process.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Waits for the end of the process; answers its status and the whole log.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let status = wait(&mut self.process);
        self.reader.take().unwrap().join().unwrap();
        (status, self.log())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl std::ops::Deref for Server {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// Waits for the end of a process that is to end by itself.
pub(crate) fn wait(process: &mut Child) -> ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status;
        }
        if started.elapsed() > PATIENCE {
            let _ = process.kill();
            panic!("the process did not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A client of one server; threads may share it.
#[derive(Clone)]
pub(crate) struct Client {
    agent: ureq::Agent,
    url: String,
}

impl Client {
    fn new(url: String) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build();
        Self { agent: config.into(), url }
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Sends a request as it is; an error is one of the connection.
    pub(crate) fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, ureq::Error> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = if matches!(method, "GET" | "DELETE") {
            self.agent.run(request.body(()).unwrap())?
        } else {
            self.agent.run(request.body(body).unwrap())?
        };
        let text = response.body_mut().with_config().limit(1 << 30).read_to_string()?;
        Ok(Answer { status: response.status().as_u16(), headers: response.headers().clone(), text })
    }

    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        self.try_send(method, path, headers, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], &[])
    }

    /// The JSON that a path answers.
    pub(crate) fn read(&self, path: &str) -> Value {
        self.get(path).ok()
    }

    /// Posts bytes that claim to be JSON.
    pub(crate) fn post_bytes(&self, path: &str, body: &[u8]) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_bytes(path, body.to_string().as_bytes())
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> Answer {
        let headers = [("content-type", "application/json")];
        self.send("PUT", path, &headers, body.to_string().as_bytes())
    }

    /// A successful `POST /reward`.
    pub(crate) fn reward(&self, body: &Value) -> Value {
        self.post("/reward", body).ok()
    }

    /// A successful `POST /reward` of these inputs, with nothing else set.
    pub(crate) fn score(&self, inputs: &[Value]) -> Value {
        self.reward(&json!({ "inputs": inputs }))
    }

    /// The values of a metric, by its labels as they are written.
    pub(crate) fn metric(&self, name: &str) -> Vec<(String, f64)> {
        let text = self.get("/metrics").text;
        let values = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let labels = series.strip_prefix(name)?;
            let whole = labels.is_empty() || labels.starts_with('{');
            whole.then(|| (labels.to_owned(), value.parse().unwrap()))
        });
        values.collect()
    }
}

/// An answer, whatever its status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|error| panic!("{error}: {} {:?}", self.status, self.text))
    }

    /// The JSON of a success.
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        Some(self.headers.get(name)?.to_str().unwrap())
    }

    /// Status, code and pointer of an error answer. Every one has a message and the request's id.
    pub(crate) fn error(&self) -> (u16, String, Option<String>) {
        let body = self.json();
        let error = &body["error"];
        assert!(!error["message"].as_str().unwrap().is_empty(), "{body}");
        assert_eq!(error["request_id"].as_str(), self.header("x-request-id"), "{body}");
        let pointer = error.get("pointer").map(|pointer| pointer.as_str().unwrap().to_owned());
        (self.status, error["code"].as_str().unwrap().to_owned(), pointer)
    }
}

/// A question and its answer as an input.
pub(crate) fn pair(prompt: &str, response: &str) -> Value {
    json!({"prompt": prompt, "response": response})
}

/// A number of an answer as the 32-bit float that the server had.
pub(crate) fn float(value: &Value) -> f32 {
    value.as_f64().unwrap_or_else(|| panic!("not a number: {value}")) as f32
}

pub(crate) fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(float).collect()
}

/// The bits of an input's reward and latent.
pub(crate) fn bits(answer: &Value, index: usize) -> (u32, Vec<u32>) {
    let latent = floats(&answer["latents"][index]);
    let latent = latent.into_iter().map(f32::to_bits).collect();
    (float(&answer["rewards"][index]).to_bits(), latent)
}

/// A pair as the demo's chat template writes it.
pub(crate) fn templated(prompt: &str, response: &str) -> String {
    format!("<|user|>\n{prompt}<|end|>\n<|assistant|>\n{response}<|end|>\n")
}

/// Every foreign scoring route with a body of one input.
pub(crate) fn scoring_routes(prompt: &str, response: &str) -> Vec<(&'static str, Value)> {
    let text = templated(prompt, response);
    vec![
        ("/get_reward", json!({"query": [text]})),
        ("/slime", json!({"prompt": prompt, "response": response})),
        ("/v1/score/evaluation", json!({"messages": [text]})),
        ("/", json!({"inputs": text})),
        ("/v1/embeddings", json!({"input": text})),
        ("/classify", json!({"input": text})),
        ("/classify", json!({"text": text})),
        ("/pooling", json!({"input": text})),
        ("/score", json!({"text_1": prompt, "text_2": response})),
        ("/v1/score", json!({"text_1": prompt, "text_2": response})),
        ("/v1/score", json!({"query": prompt, "items": response})),
        ("/rerank", json!({"query": prompt, "documents": [response]})),
        ("/rerank", json!({"query": prompt, "texts": [response]})),
        ("/v1/rerank", json!({"query": prompt, "documents": [response]})),
        ("/v2/rerank", json!({"query": prompt, "documents": [response]})),
        ("/predict", json!({"inputs": text})),
    ]
}
