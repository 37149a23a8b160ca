//! Models by a hub's id: from the hub's cache, whose layout is the Python library's, and, in builds with the
//! feature `hub`, from a hub.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::golden::golden;
use crate::support::server::{Server, program};
use serde_json::json;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A cache that has `acme/tiny`, as `huggingface-cli download` leaves it: files by their hash, links by their name.
fn cache(home: &Path) -> PathBuf {
    let model = home.join("hub/models--acme--tiny");
    let snapshot = model.join("snapshots").join(COMMIT);
    for folder in [model.join("blobs"), model.join("refs"), snapshot.clone()] {
        fs::create_dir_all(folder).unwrap();
    }
    for (number, file) in fs::read_dir(golden("tiny/gated")).unwrap().enumerate() {
        let (file, blob) = (file.unwrap(), model.join("blobs").join(number.to_string()));
        fs::copy(file.path(), &blob).unwrap();
        std::os::unix::fs::symlink(&blob, snapshot.join(file.file_name())).unwrap();
    }
    fs::copy(golden("gguf/model.gguf"), snapshot.join("tiny-Q4_1.gguf")).unwrap();
    fs::write(model.join("refs/main"), COMMIT).unwrap();
    fs::write(model.join("refs/v1.0"), COMMIT).unwrap();
    snapshot
}

/// The server with this model, which finds its cache below `home`.
fn server(home: &Path, model: &str) -> Command {
    let mut command = program();
    for name in ["HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE"] {
        command.env_remove(name);
    }
    command.env("HF_HOME", home).args(["--port", "0", "--model", model]);
    command
}

fn refusal(mut command: Command) -> String {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[test]
fn a_model_in_the_cache_is_served_by_its_id() {
    let home = tempfile::tempdir().unwrap();
    cache(home.path());
    let expected = Server::start(&["--model", golden("tiny/gated").to_str().unwrap()]);
    let input = json!({"text": "The answer is 12."});
    let expected =
        (expected.read("/info")["weights"].clone(), expected.score(std::slice::from_ref(&input)));
    let commit = format!("acme/tiny@{COMMIT}");
    for model in ["acme/tiny", "acme/tiny@main", "acme/tiny@v1.0", &commit] {
        let mut command = server(home.path(), model);
        command.env("HF_HUB_OFFLINE", "1");
        let server = Server::spawn(command);
        let info = server.read("/info");
        assert_eq!(info["model"], "acme/tiny");
        assert_eq!(info["weights"], expected.0);
        assert_eq!(server.score(std::slice::from_ref(&input))["rewards"], expected.1["rewards"]);
    }
    // The cache may be named itself.
    let mut command = server(Path::new("/nowhere"), "acme/tiny");
    command.env("HF_HUB_CACHE", home.path().join("hub"));
    assert_eq!(Server::spawn(command).read("/info")["model"], "acme/tiny");
}

#[test]
fn what_the_cache_lacks_is_named() {
    let home = tempfile::tempdir().unwrap();
    let snapshot = cache(home.path());
    let offline = |model: &str| {
        let mut command = server(home.path(), model);
        command.env("HF_HUB_OFFLINE", "1");
        refusal(command)
    };
    for model in ["acme/huge", "acme/tiny@v2.0", "other/tiny"] {
        let text = offline(model);
        for part in [model.split('@').next().unwrap(), "no config.json", "HF_HUB_OFFLINE", "hub"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    // A language model in GGUF is found, and needs a head.
    let text = offline("acme/tiny/tiny-Q4_1.gguf");
    assert!(text.contains("tiny-Q4_1.gguf") && text.contains("trainer init-head"), "{text}");
    assert!(offline("acme/tiny/other.gguf").contains("no other.gguf"));

    let shard = "model-00002-of-00002.safetensors";
    fs::remove_file(snapshot.join(shard)).unwrap();
    let text = offline("acme/tiny");
    assert!(text.contains(&format!("no {shard}")), "{text}");
    #[cfg(not(feature = "hub"))]
    {
        let text = refusal(server(home.path(), "acme/tiny"));
        assert!(text.contains(shard) && text.contains("--features hub"), "{text}");
    }
}

/// A hub of one model on this machine.
#[cfg(feature = "hub")]
mod downloads {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    use super::*;

    pub(super) struct Hub {
        pub(super) address: String,
        pub(super) asked: Arc<Mutex<Vec<String>>>,
    }

    impl Hub {
        pub(super) fn start(folder: PathBuf) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            let asked = Arc::new(Mutex::new(Vec::new()));
            let log = asked.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    answer(stream.unwrap(), &folder, &log);
                }
            });
            Self { address, asked }
        }
    }

    /// One request a connection: the list of files, or a part of one.
    fn answer(mut stream: TcpStream, folder: &Path, log: &Mutex<Vec<String>>) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let Some(Ok(first)) = lines.next() else { return };
        let head: Vec<String> =
            lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let path = first.split(' ').nth(1).unwrap().to_owned();
        log.lock().unwrap().push(path.clone());
        let header = |name: &str| {
            head.iter().find_map(|line| line.to_lowercase().strip_prefix(name).map(str::to_owned))
        };
        let mut send = |status: &str, headers: &str, body: &[u8]| {
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
            )
            .unwrap();
            let _ = stream.write_all(body);
        };
        if path == "/api/models/acme/tiny/revision/main" {
            let names = fs::read_dir(folder)
                .unwrap()
                .map(|file| json!({"rfilename": file.unwrap().file_name().to_string_lossy()}));
            let others =
                ["README.md", "pytorch_model.bin", "onnx/model.onnx", "consolidated.safetensors"];
            let others = others.map(|name| json!({"rfilename": name}));
            let names: Vec<_> = names.chain(others).collect();
            return send(
                "200 OK",
                "",
                json!({"sha": COMMIT, "siblings": names}).to_string().as_bytes(),
            );
        }
        let file = path
            .strip_prefix(&format!("/acme/tiny/resolve/{COMMIT}/"))
            .and_then(|name| fs::read(folder.join(name)).ok());
        let Some(bytes) = file else { return send("404 Not Found", "", b"") };
        let range = header("range: bytes=").unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        let end = end.parse::<usize>().map_or(bytes.len(), |end| end + 1);
        let headers = format!(
            "Content-Range: bytes {start}-{}/{}\r\nETag: \"{}-{}\"\r\nX-Repo-Commit: {COMMIT}\r\n",
            end - 1,
            bytes.len(),
            path.replace('/', "-"),
            bytes.len()
        );
        send("206 Partial Content", &headers, &bytes[start..end]);
    }
}

#[cfg(feature = "hub")]
#[test]
fn a_model_is_downloaded_once() {
    let home = tempfile::tempdir().unwrap();
    let hub = downloads::Hub::start(golden("tiny/gated"));
    let expected = Server::start(&["--model", golden("tiny/gated").to_str().unwrap()]);
    let start = |model: &str| {
        let mut command = server(home.path(), model);
        command.env("HF_ENDPOINT", &hub.address);
        command
    };
    let weights = Server::spawn(start("acme/tiny")).read("/info")["weights"].clone();
    assert_eq!(weights, expected.read("/info")["weights"]);
    let asked = hub.asked.lock().unwrap().len();
    let other = |path: &&String| path.contains("pytorch") || path.contains("README");
    assert_eq!(hub.asked.lock().unwrap().iter().find(other), None);

    Server::spawn(start("acme/tiny")).read("/info");
    assert_eq!(hub.asked.lock().unwrap().len(), asked, "the second start asks for nothing");

    let text = refusal(start("acme/huge"));
    assert!(text.contains("acme/huge") && text.contains("404"), "{text}");
}
