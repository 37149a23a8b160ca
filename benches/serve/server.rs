//! Servers as child processes, and what the system says of them.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use axum::routing::post;
use axum::{Json, Router};

use crate::ServerOptions;

/// A started server; stopped when dropped.
pub(crate) struct Server {
    process: Child,
    pub(crate) url: String,
}

const LISTENING: &str = "listening on ";

impl Server {
    pub(crate) fn start(options: &ServerOptions) -> anyhow::Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_inform-server"));
        command.args(["--port", "0", "--model"]).arg(&options.model);
        for setting in &options.set {
            command.args(["--set", setting]);
        }
        Self::spawn(command)
    }

    /// This program as a server that only echoes.
    pub(crate) fn start_echo() -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("echo");
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> anyhow::Result<Self> {
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(process.stderr.take().context("no log")?).lines();
        let mut log = String::new();
        let url = loop {
            let Some(line) = lines.next().transpose()? else {
                anyhow::bail!("the server did not start:\n{log}");
            };
            if let Some((_, url)) = line.split_once(LISTENING) {
                break url.split_whitespace().next().unwrap_or_default().to_owned();
            }
            log.push_str(&line);
            log.push('\n');
        };
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Ok(Self { process, url })
    }

    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(&self.process.id().to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a process has used, from `/proc` (proc(5)).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Processor time in user and system mode.
    pub(crate) processor_seconds: f64,
    /// Resident memory.
    pub(crate) megabytes: f64,
}

impl Usage {
    pub(crate) fn of(process: &str) -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The name in parentheses may hold anything.
        let fields = stat.rsplit_once(')').context("no fields")?.1;
        let field = |index: usize| -> anyhow::Result<f64> {
            Ok(fields.split_whitespace().nth(index).context("too few fields")?.parse()?)
        };
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let page = rustix::param::page_size() as f64;
        // Fields 14, 15 and 24 of the page; the first after the name is number 3.
        Ok(Self {
            processor_seconds: (field(11)? + field(12)?) / ticks,
            megabytes: field(21)? * page / 1e6,
        })
    }
}

/// Answers any JSON with itself.
pub(crate) fn echo() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let echo = async |Json(value): Json<serde_json::Value>| Json(value);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        eprintln!("{LISTENING}http://{}", listener.local_addr()?);
        axum::serve(listener, Router::new().route("/reward", post(echo))).await?;
        Ok(())
    })
}
