//! The reward server's command line.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use inform::config::ServerConfig;
use inform::verify::Verified;

/// Keeps freed memory for the next batch: returning it to the system costs as much as the arithmetic.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves an InfoRM or standard reward model over HTTP, and watches each training run for reward
/// over-optimisation.
///
/// Settings: flag over environment (INFORM_PORT, INFORM_MONITOR__WINDOW, ...) over the configuration
/// file over the default.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Configuration file, TOML
    #[arg(long, value_name = "FILE", env = "INFORM_CONFIG")]
    config: Option<PathBuf>,
    /// Checkpoint folder, GGUF file, or owner/name of a model hub [default: configs/demo]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long)]
    host: Option<String>,
    /// Port to listen on; 0 takes a free one [default: 8080]
    #[arg(long)]
    port: Option<String>,
    /// Devices to score on: auto, cpu, cuda (all GPUs) or cuda:0,1 [default: auto]
    #[arg(long)]
    device: Option<String>,
    /// Precision of products: f32, bf16, or auto: f32 on the CPU, bf16 on GPUs [default: auto]
    #[arg(long)]
    dtype: Option<String>,
    /// What computes hidden states: own, or mistralrs where this program was built with it [default: own]
    #[arg(long)]
    encoder: Option<String>,
    /// Threads of the CPU device; 0 for one a processor [default: 0]
    #[arg(long)]
    threads: Option<String>,
    /// Any other setting, by its dotted key, as monitor.window=512; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
}

/// What to do instead of serving.
#[derive(Debug, Subcommand)]
enum Command {
    /// Check a configuration file, with the environment's settings over it
    CheckConfig {
        /// Configuration file, TOML
        file: PathBuf,
    },
    /// Print the API in the OpenAPI format
    Openapi,
    /// Compare the model's rewards with those of a file; exit code 1 where one differs
    Verify {
        /// Inputs with their rewards, JSONL or JSONL.gz
        #[arg(long, value_name = "FILE")]
        against: PathBuf,
    },
    /// Ask the server that has the same settings whether it answers; for health checks
    Health,
    /// Print a completion script
    Completions {
        /// The shell that is to read it
        shell: Shell,
    },
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let named = [
        ("model", arguments.model),
        ("host", arguments.host),
        ("port", arguments.port),
        ("device", arguments.device),
        ("dtype", arguments.dtype),
        ("encoder", arguments.encoder),
        ("threads", arguments.threads),
    ];
    let mut flags = arguments.set;
    flags.extend(named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
    let file = match &arguments.command {
        Some(Command::CheckConfig { file }) => Some(file),
        _ => arguments.config.as_ref(),
    };
    let config = || ServerConfig::read(file.map(PathBuf::as_path), &flags);
    let result = match arguments.command {
        Some(Command::Openapi) => print(inform::http::openapi_json().as_bytes()),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "inform-server", &mut script);
            print(&script)
        }
        ref command => match config() {
            Err(error) => {
                eprintln!("error: {error:#}");
                return ExitCode::from(2);
            }
            Ok(config) => match command {
                Some(Command::CheckConfig { .. }) => inform::server::check(&config),
                Some(Command::Health) => health(&config),
                Some(Command::Verify { against }) => verify(&config, against),
                _ => inform::server::run(config),
            },
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print(bytes: &[u8]) -> anyhow::Result<()> {
    std::io::stdout().write_all(bytes).context("standard output")
}

fn verify(config: &ServerConfig, file: &Path) -> anyhow::Result<()> {
    let verified = Verified::run(config, file)?;
    print(format!("{verified}\n").as_bytes())?;
    anyhow::ensure!(verified.passed(), "the rewards are not those of {}", file.display());
    Ok(())
}

/// Time that a server has to say that it is well.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

fn health(config: &ServerConfig) -> anyhow::Result<()> {
    // A server on all addresses is on this machine's own.
    let host: IpAddr = match config.host {
        IpAddr::V4(host) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(host) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        host => host,
    };
    let address = SocketAddr::from((host, config.port));
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, HEALTH_TIMEOUT)?;
        stream.set_read_timeout(Some(HEALTH_TIMEOUT))?;
        write!(stream, "GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = ask().with_context(|| format!("no answer from {address}"))?;
    let status = answer.lines().next().unwrap_or_default();
    anyhow::ensure!(status.contains(" 200 "), "{address} answers {status:?}");
    Ok(())
}
