//! The command line: settings and their order, documentation that keeps up, and what is said when the
//! server cannot start.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use crate::support::server::{Server, pair, program, wait};
use inform::checkpoint::Baseline;
use inform::config::ServerConfig;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

fn root(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Exit code and standard error of a start that is to fail.
fn failure(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = program();
    command.args(["--port", "0"]).args(arguments).envs(environment.iter().copied());
    let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut errors = process.stderr.take().unwrap();
    let status = wait(&mut process);
    let mut text = String::new();
    errors.read_to_string(&mut text).unwrap();
    (status.code(), text)
}

fn assert_fails(arguments: &[&str], environment: &[(&str, &str)], code: i32, parts: &[&str]) {
    let (found, text) = failure(arguments, environment);
    assert_eq!(found, Some(code), "{arguments:?} {environment:?}: {text}");
    for part in parts {
        assert!(text.contains(part), "{arguments:?} {environment:?}: no {part:?} in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn a_flag_wins_over_the_environment_that_over_the_file_that_over_the_default() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("server.toml");
    // One key set everywhere, one without the flag, one in the file alone, one nowhere.
    fs::write(&file, "[limits]\nmax_inputs = 2\nmax_samples = 2\nmax_body_bytes = 2222\n").unwrap();
    let mut command = program();
    command.args(["--port", "0", "--threads", "1", "--set", "limits.max_inputs=4"]);
    command.arg("--config").arg(&file);
    command.envs([
        ("INFORM_LIMITS__MAX_INPUTS", "3"),
        ("INFORM_LIMITS__MAX_SAMPLES", "3"),
        ("INFORM_THREADS", "2"),
    ]);
    let info = Server::spawn(command).read("/info");
    let limits = &info["limits"];
    assert_eq!(limits["max_inputs"], 4);
    assert_eq!(limits["max_samples"], 3);
    assert_eq!(limits["max_body_bytes"], 2222);
    let defaults = ServerConfig::default().limits;
    assert_eq!(limits["max_deadline_ms"], defaults.max_deadline_ms);
    assert!(info["device"].as_str().unwrap().contains("1 thread"), "{info}");

    // The file may be named by the environment, too.
    let mut command = program();
    command.args(["--port", "0"]).env("INFORM_CONFIG", &file);
    assert_eq!(Server::spawn(command).read("/info")["limits"]["max_inputs"], 2);
}

#[test]
fn a_setting_that_is_wrong_is_named_with_its_place() {
    let scratch = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = scratch.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let unknown = file("unknown.toml", "[monitor]\nwindwo = 3\n");
    let typed = file("typed.toml", "[limits]\nmax_inputs = \"many\"\n");
    let broken = file("broken.toml", "[limits\nmax_inputs = 1\n");
    let negative = file("negative.toml", "threads = -1\n");
    let missing = scratch.path().join("nowhere.toml");
    let missing = missing.to_str().unwrap();
    for (arguments, environment, parts) in [
        (&["--config", &unknown][..], &[][..], &["windwo", "unknown.toml"][..]),
        (&["--config", &typed], &[], &["limits.max_inputs", "typed.toml", "many"]),
        (&["--config", &broken], &[], &["broken.toml", "line 1"]),
        (&["--config", &negative], &[], &["threads", "negative.toml", "-1"]),
        (&["--config", missing], &[], &["nowhere.toml", "no such file"]),
        (&[], &[("INFORM_MONITOR__WINDWO", "3")], &["windwo", "INFORM_"]),
        (&[], &[("INFORM_WINDOW", "3")], &["window", "INFORM_"]),
        (&[], &[("INFORM_LIMITS__MAX_INPUTS", "many")], &["limits.max_inputs", "many"]),
        (&["--set", "monitor.windwo=3"], &[], &["windwo"]),
        (&["--set", "limits.max_inputs=many"], &[], &["limits.max_inputs", "many", "command line"]),
        (&["--set", "limits.max_inputs=0"], &[], &["limits.max_inputs", "at least 1"]),
        (&["--set", "engine.queue_tokens=0"], &[], &["engine.queue_tokens", "at least 1"]),
        (&["--set", "limits.default_deadline_ms=0"], &[], &["limits.default_deadline_ms"]),
        (&["--set", "monitor.window=5000"], &[], &["monitor.max_window"]),
        (&["--set", "monitor.csi.eps=0"], &[], &["monitor.csi", "eps"]),
        (&["--set", "monitor.csi.noise=loud"], &[], &["monitor.csi.noise", "loud"]),
        (&["--set", "monitor.early_stop.max_ratio=-1"], &[], &["monitor.early_stop", "max_ratio"]),
        (&["--set", "log.format=xml"], &[], &["log.format", "xml"]),
        (&["--set", "limits"], &[], &["KEY=VALUE"]),
        (&["--port", "70000"], &[], &["port", "70000"]),
        (&["--host", "nowhere"], &[], &["host", "IP address", "command line"]),
        (&["--device", "abacus"], &[], &["device", "abacus"]),
        (&["--prot", "1"], &[], &["--prot"]),
    ] {
        // `--port 0` stands before them all and is replaced where the case names another.
        let arguments: Vec<&str> = arguments.to_vec();
        if arguments.first() == Some(&"--port") {
            let output = program().args(&arguments).stderr(Stdio::piped()).output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{text}");
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
            continue;
        }
        assert_fails(&arguments, environment, 2, parts);
    }
    assert_fails(&["--set", "log.filter=inform=loud"], &[], 1, &["log.filter"]);
}

/// Every key with its value, dotted.
fn flatten(prefix: &str, value: &toml::Value, keys: &mut BTreeMap<String, toml::Value>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&key, value, keys);
            }
        }
        value => {
            keys.insert(prefix.to_owned(), value.clone());
        }
    }
}

fn defaults() -> BTreeMap<String, toml::Value> {
    let mut keys = BTreeMap::new();
    flatten("", &toml::Value::try_from(ServerConfig::default()).unwrap(), &mut keys);
    keys
}

#[test]
fn the_shipped_file_holds_every_key_with_its_default() {
    let text = fs::read_to_string(root("configs/server.toml")).unwrap();
    let mut keys = BTreeMap::new();
    flatten("", &toml::Value::Table(text.parse().unwrap()), &mut keys);
    assert_eq!(keys, defaults());
    let read = ServerConfig::read(Some(&root("configs/server.toml")), &[]).unwrap();
    assert_eq!(read, ServerConfig::default());
}

#[test]
fn the_documentation_names_every_key_with_its_default() {
    let text = fs::read_to_string(root("docs/configuration.md")).unwrap();
    let documented: BTreeMap<String, String> =
        rows(&text).into_iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    let written: BTreeMap<String, String> = defaults()
        .into_iter()
        .map(|(key, value)| match value {
            toml::Value::String(text) => (key, text),
            toml::Value::Float(number) => (key, number.to_string()),
            value => (key, value.to_string()),
        })
        .collect();
    assert_eq!(documented, written);
}

/// The cells of a table's rows whose first one is code, without the code's quotes.
fn rows(markdown: &str) -> Vec<Vec<String>> {
    let rows = markdown.lines().filter(|line| line.starts_with("| `"));
    let cell = |cell: &str| cell.trim().trim_matches('`').to_owned();
    rows.map(|row| row.trim_matches('|').split('|').map(cell).collect()).collect()
}

#[test]
fn the_documentation_names_every_metric() {
    let server = Server::start(&["--set", "monitor.min_window=4"]);
    // Something for every metric: a failing input, a baseline with rewards and prompts, and windows
    // that differ.
    server.score(&[pair("Is it late?", "Yes."), json!({})]);
    let sft: Vec<Value> = (1..41).map(|i| pair("one two three", &"z w".repeat(i))).collect();
    server.reward(&json!({"inputs": sft, "run": "r", "role": "baseline"}));
    for (step, text) in ["a", "bb", "ccc", "d d d d", "one two three"].into_iter().enumerate() {
        let inputs: Vec<Value> = (0..6).map(|i| pair(text, &text.repeat(i + 1))).collect();
        server.reward(&json!({"inputs": inputs, "run": "r", "step": step}));
        server.post("/runs/r/evaluate", &json!({})).ok();
    }
    let text = server.get("/metrics").text;
    let found: BTreeMap<String, String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect();
    let documentation = fs::read_to_string(root("docs/metrics.md")).unwrap();
    let documented = rows(&documentation);
    let kinds: BTreeMap<String, String> =
        documented.iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    assert_eq!(kinds, found);
    // Every label of the documentation is on the metric, and the other way round.
    for row in &documented {
        let mut expected: Vec<&str> =
            row[2].split(',').map(|label| label.trim().trim_matches('`')).collect();
        expected.retain(|label| !label.is_empty());
        expected.sort_unstable();
        let line = text.lines().find(|line| {
            let rest = line.strip_prefix(row[0].as_str()).unwrap_or_default();
            ["{", " ", "_bucket{"].iter().any(|next| rest.starts_with(next))
        });
        let line = line.unwrap_or_else(|| panic!("{} has no value", row[0]));
        let labels = line.split_once('{').map_or("", |(_, labels)| labels);
        let mut labels: Vec<&str> =
            labels.split(',').filter_map(|label| Some(label.split_once("=\"")?.0)).collect();
        labels.retain(|label| *label != "le");
        labels.sort_unstable();
        assert_eq!(labels, expected, "{line}");
    }
}

/// A copy of the tiny checkpoint, changed by `change`.
fn changed(folder: &Path, change: impl Fn(&Path)) {
    for entry in fs::read_dir(root("tests/golden/tiny/linear")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    change(folder);
}

/// Changes a JSON file.
fn json_file(folder: &Path, name: &str, change: impl Fn(&mut serde_json::Map<String, Value>)) {
    let file = folder.join(name);
    let mut json: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    change(json.as_object_mut().unwrap());
    fs::write(file, json.to_string()).unwrap();
}

/// Writes the weights again, each tensor as `change` makes it: its new shape, or `None` to leave it
/// out. A larger shape is filled up with zeros.
fn weights(folder: &Path, change: impl Fn(&str, &[usize]) -> Option<Vec<usize>>) {
    let file = folder.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let kept: Vec<_> = tensors
        .tensors()
        .into_iter()
        .filter_map(|(name, tensor)| {
            let shape = change(&name, tensor.shape())?;
            let mut data = tensor.data().to_vec();
            data.resize(shape.iter().product::<usize>() * tensor.dtype().bitsize() / 8, 0);
            Some((name, tensor.dtype(), shape, data))
        })
        .collect();
    let views = kept.iter().map(|(name, dtype, shape, data)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

const NORM: &str = "model.layers.1.input_layernorm.weight";

#[test]
fn a_broken_checkpoint_is_named_with_what_was_found_and_expected() {
    type Change = fn(&Path);
    let cases: &[(&str, Change, &[&str])] = &[
        (
            "truncated weights",
            |folder| {
                let file = folder.join("model.safetensors");
                let bytes = fs::read(&file).unwrap();
                fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
            },
            &["model.safetensors", "truncated"],
        ),
        (
            "weights of three bytes",
            |folder| fs::write(folder.join("model.safetensors"), "abc").unwrap(),
            &["model.safetensors", "not a whole safetensors file"],
        ),
        (
            "no weights",
            |folder| fs::remove_file(folder.join("model.safetensors")).unwrap(),
            &["model.safetensors", "No such file"],
        ),
        (
            "a Git LFS pointer for weights",
            |folder| {
                let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
                fs::write(folder.join("model.safetensors"), pointer).unwrap();
            },
            &["model.safetensors", "not a whole safetensors file"],
        ),
        (
            "a missing tensor",
            |folder| weights(folder, |name, shape| (name != NORM).then(|| shape.to_vec())),
            &["model.safetensors", NORM, "[64]"],
        ),
        (
            "a missing head",
            |folder| {
                weights(folder, |name, shape| {
                    (!name.starts_with("encode_head")).then(|| shape.to_vec())
                });
            },
            &["model.safetensors", "encode_head.weight", "[16, 64]"],
        ),
        (
            "a wrong shape",
            |folder| {
                weights(folder, |name, shape| {
                    Some(if name == NORM { vec![65] } else { shape.to_vec() })
                });
            },
            &["model.safetensors", NORM, "[65]", "[64]"],
        ),
        (
            "a weight that is not a number",
            |folder| {
                let file = folder.join("model.safetensors");
                let mut bytes = fs::read(&file).unwrap();
                let end = bytes.len();
                bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
                fs::write(file, bytes).unwrap();
            },
            &["model.safetensors", "not finite"],
        ),
        (
            "an unknown architecture",
            |folder| {
                json_file(folder, "config.json", |json| {
                    json["architectures"] = json!(["MambaForCausalLM"]);
                });
            },
            &["config.json", "architectures", "MambaForCausalLM", "LlamaForInfoRM"],
        ),
        (
            "an unknown type of rotary embedding",
            |folder| {
                json_file(folder, "config.json", |json| {
                    json.insert("rope_scaling".to_owned(), json!({"rope_type": "spiral"}));
                });
            },
            &["config.json", "rope_scaling.rope_type", "spiral", "llama3"],
        ),
        (
            "a wrong latent_dim",
            |folder| {
                json_file(folder, "config.json", |json| json["latent_dim"] = json!(9));
            },
            &["model.safetensors", "decode_head.weight", "[1, 8]", "[1, 9]"],
        ),
        (
            "a misspelt latent_dim",
            |folder| {
                json_file(folder, "config.json", |json| {
                    let value = json.remove("latent_dim").unwrap();
                    json.insert("latent_dimm".to_owned(), value);
                });
            },
            &["config.json", "`latent_dim`"],
        ),
        (
            "a missing key",
            |folder| {
                json_file(folder, "config.json", |json| {
                    json.remove("hidden_size").unwrap();
                });
            },
            &["config.json", "hidden_size"],
        ),
        (
            "heads that do not divide",
            |folder| {
                json_file(folder, "config.json", |json| json["num_key_value_heads"] = json!(3));
            },
            &["config.json", "num_key_value_heads", "3", "4"],
        ),
        (
            "a configuration that is not JSON",
            |folder| fs::write(folder.join("config.json"), "{").unwrap(),
            &["config.json", "not valid JSON"],
        ),
        (
            "no tokenizer",
            |folder| fs::remove_file(folder.join("tokenizer.json")).unwrap(),
            &["tokenizer.json", "No such file"],
        ),
        (
            "a broken tokenizer",
            |folder| fs::write(folder.join("tokenizer.json"), "{}").unwrap(),
            &["tokenizer.json"],
        ),
        (
            "an unknown EOS",
            |folder| {
                json_file(folder, "tokenizer_config.json", |json| {
                    json["eos_token"] = json!("</s>")
                });
            },
            &["tokenizer_config.json", "eos_token", "</s>"],
        ),
        (
            "no EOS",
            |folder| {
                json_file(folder, "tokenizer_config.json", |json| {
                    json.remove("eos_token").unwrap();
                });
            },
            &["tokenizer_config.json", "eos_token"],
        ),
        (
            "a broken chat template",
            |folder| fs::write(folder.join("chat_template.jinja"), "{% for %}").unwrap(),
            &["chat_template.jinja"],
        ),
        (
            "a foreign baseline",
            |folder| {
                let baseline = Baseline {
                    latents: vec![0.5; 8],
                    dimension: 8,
                    rewards: None,
                    prompts: None,
                    weights: "sha256:0123".to_owned(),
                    source: "another checkpoint".to_owned(),
                };
                let bytes = baseline.to_bytes().unwrap();
                fs::write(folder.join("baseline.safetensors"), bytes).unwrap();
            },
            &["baseline.safetensors", "sha256:0123", "make it again"],
        ),
    ];
    for (name, change, parts) in cases {
        let scratch = tempfile::tempdir().unwrap();
        changed(scratch.path(), change);
        let folder = scratch.path().to_str().unwrap();
        println!("{name}");
        assert_fails(&["--model", folder], &[], 1, parts);
    }
    // The copy itself is sound.
    let scratch = tempfile::tempdir().unwrap();
    changed(scratch.path(), |_| ());
    let server = Server::start(&["--model", scratch.path().to_str().unwrap()]);
    server.score(&[json!({"text": "sound"})]);
}

#[test]
fn no_checkpoint_and_a_port_in_use_are_named() {
    assert_fails(&["--model", "no/such/folder"], &[], 1, &["no/such/folder", "No such file"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = program().args(["--port", &port]).stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in [port.as_str(), "cannot listen", "in use"] {
        assert!(text.contains(part), "{text}");
    }
}

/// A folder may be called as a number is: training writes `checkpoints/500`.
#[test]
fn a_folder_may_be_called_by_a_number() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("500");
    fs::create_dir(&folder).unwrap();
    changed(&folder, |_| ());
    for flag in [&["--model", "500"], &["--set", "model=500"], &["--set", "model=\"500\""]] {
        let mut command = program();
        command.current_dir(scratch.path()).args(["--port", "0"]).args(flag);
        assert_eq!(Server::spawn(command).read("/info")["model"], "500");
    }
}

#[test]
fn a_log_that_is_not_read_by_a_person_has_no_colours() {
    let server = Server::start(&[]);
    server.signal("TERM");
    let (_, log) = server.wait();
    assert!(!log.contains('\u{1b}'), "{log:?}");
    let server = Server::start(&["--set", "log.format=json"]);
    let client = server.client();
    assert_eq!(client.get("/health").status, 200);
    server.signal("TERM");
    let (_, log) = server.wait();
    for line in log.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

/// The text of the requests is nobody's business, whatever happens to them.
#[test]
fn a_log_holds_no_text_of_a_request() {
    let server = Server::start(&["--set", "log.filter=info"]);
    let secret = "marmalade";
    server.score(&[pair(secret, secret), json!({"text": ""})]);
    server.post("/reward", &json!({"inputs": secret}));
    server
        .post("/reward", &json!({"inputs": [{"messages": [{"role": "user", "content": secret}]}]}));
    server.signal("TERM");
    let (_, log) = server.wait();
    assert!(!log.contains(secret), "{log}");
}

/// Exit code, standard output and standard error of a command that ends by itself.
fn output(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = program();
    command.args(arguments).envs(environment.iter().copied());
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_configuration_can_be_checked_without_serving() {
    let scratch = tempfile::tempdir().unwrap();
    let file = |text: &str| {
        let path = scratch.path().join("server.toml");
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (code, out, errors) = output(&["check-config", "configs/server.toml"], &[]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert!(out.contains("configs/demo"), "{out}");
    for (text, code, part) in [
        ("prot = 1\n", 2, "prot"),
        ("[limits]\nmax_inputs = 0\n", 2, "limits.max_inputs"),
        ("[log]\nfilter = \"inform=loud\"\n", 1, "log.filter"),
        ("[auth]\nkeys_file = \"no/such/file\"\n", 1, "auth.keys_file"),
        ("model = \"no/such/folder\"\n", 1, "no/such/folder"),
    ] {
        let (found, _, errors) = output(&["check-config", &file(text)], &[]);
        assert_eq!(found, Some(code), "{text}: {errors}");
        assert!(errors.contains(part), "{errors}");
    }
    let environment = [("INFORM_LIMITS__MAX_INPUTS", "many")];
    let (code, _, errors) = output(&["check-config", "configs/server.toml"], &environment);
    assert_eq!(code, Some(2), "{errors}");
    assert_eq!(output(&["check-config"], &[]).0, Some(2));
    assert_eq!(output(&["check-config", "no/such/file.toml"], &[]).0, Some(2));
}

#[test]
fn health_asks_the_server_of_the_same_settings() {
    let server = Server::start(&[]);
    let port = server.address().rsplit_once(':').unwrap().1.to_owned();
    for (arguments, environment) in [
        (vec!["--port", &*port, "health"], vec![]),
        (vec!["--port", &*port, "--host", "0.0.0.0", "health"], vec![]),
        (vec!["health"], vec![("INFORM_PORT", &*port)]),
    ] {
        let (code, _, errors) = output(&arguments, &environment);
        assert_eq!(code, Some(0), "{arguments:?}: {errors}");
    }
    drop(server);
    let (code, _, errors) = output(&["--port", &port, "health"], &[]);
    assert_eq!(code, Some(1));
    assert!(errors.contains(&port), "{errors}");
}

#[test]
fn shells_get_completions() {
    for (shell, part) in [("bash", "check-config"), ("zsh", "--model"), ("fish", "completions")] {
        let (code, out, _) = output(&["completions", shell], &[]);
        assert_eq!(code, Some(0));
        assert!(out.contains(part) && out.contains("inform-server"), "{shell}");
    }
    assert_eq!(output(&["completions", "abacus"], &[]).0, Some(2));
}

/// An endpoint that nothing is sent to must not be accepted in silence.
#[cfg(not(feature = "otlp"))]
#[test]
fn a_build_without_otlp_says_so() {
    let setting = "log.otlp_endpoint=http://127.0.0.1:4318/v1/traces";
    assert_fails(&["--set", setting], &[], 1, &["log.otlp_endpoint", "--features otlp"]);
}
