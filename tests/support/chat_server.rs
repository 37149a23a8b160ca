//! An OpenAI-compatible server whose every answer is scripted.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Value,
    pub(crate) at: Instant,
}

impl Request {
    /// What is asked about.
    pub(crate) fn user(&self) -> &str {
        self.body["messages"][1]["content"].as_str().unwrap()
    }
}

/// What the server does.
pub(crate) enum Reply {
    /// Status line, header lines, and body.
    Http(&'static str, String, String),
    /// The head of a longer answer, and a closed connection.
    HalfWay,
    /// Nothing, for a long time.
    Silence,
}

/// A completion with this content.
pub(crate) fn content(content: impl Into<Value>) -> Reply {
    choice(json!({"role": "assistant", "content": content.into()}), "stop")
}

/// A completion with this message.
pub(crate) fn choice(message: Value, finish_reason: &str) -> Reply {
    let choice = json!({"index": 0, "message": message, "finish_reason": finish_reason});
    status("200 OK", "", &json!({"object": "chat.completion", "choices": [choice]}).to_string())
}

/// Another status, with headers that end in CRLF each.
pub(crate) fn status(status: &'static str, headers: &str, body: &str) -> Reply {
    Reply::Http(status, headers.to_owned(), body.to_owned())
}

/// Replies to a request and the number of times that the same question came before.
type Script = dyn Fn(&Request, usize) -> Reply + Send + Sync;

/// A server on this machine.
pub(crate) struct ChatServer {
    /// Its base URL.
    pub(crate) url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl ChatServer {
    pub(crate) fn start(script: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let script: Arc<Script> = Arc::new(script);
        let log = requests.clone();
        let seen: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (script, log, seen) = (script.clone(), log.clone(), seen.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &*script, &log, &seen));
            }
        });
        Self { url, requests }
    }

    /// All requests so far, in the order in which they came.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

/// One request a connection.
fn serve(
    mut stream: TcpStream,
    script: &Script,
    log: &Mutex<Vec<Request>>,
    seen: &Mutex<HashMap<String, usize>>,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut first = String::new();
    if reader.read_line(&mut first).unwrap_or(0) == 0 {
        return;
    }
    let (mut length, mut authorization) = (0, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let request = Request {
        path: first.split(' ').nth(1).unwrap().to_owned(),
        authorization,
        body: serde_json::from_slice(&body).unwrap(),
        at: Instant::now(),
    };
    let before = {
        let mut seen = seen.lock().unwrap();
        let count = seen.entry(request.user().to_owned()).or_default();
        *count += 1;
        *count - 1
    };
    log.lock().unwrap().push(request.clone());
    match script(&request, before) {
        Reply::Http(status, headers, body) => {
            // Whoever was killed meanwhile does not read it.
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
                body.len()
            );
        }
        Reply::HalfWay => {
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{{\"choices\"");
        }
        Reply::Silence => std::thread::sleep(Duration::from_secs(60)),
    }
    let _ = stream.shutdown(Shutdown::Both);
}
