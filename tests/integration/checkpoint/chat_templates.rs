//! Conversations under the chat templates of many models, against transformers; templates that fail.
//!
//! `tests/golden/chat_templates.py` makes the golden values.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::support::golden::{Golden, golden};
use inform::checkpoint::{
    BosPolicy, Checkpoint, CheckpointError, Input, Message, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

#[derive(Deserialize)]
struct Chats {
    templates: BTreeMap<String, String>,
    conversations: Vec<Vec<Message>>,
}

fn chats() -> Chats {
    serde_json::from_slice(&fs::read(golden("chat/chat.json")).unwrap()).unwrap()
}

/// A checkpoint with this template, the golden tokenizer, and further keys of `tokenizer_config.json`.
fn folder(template: &str, settings: &[(&str, Value)]) -> TempDir {
    let scratch = tempfile::tempdir().unwrap();
    let (source, target) = (golden("tiny/linear"), scratch.path());
    fs::copy(source.join("model.safetensors"), target.join("model.safetensors")).unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    config["vocab_size"] = json!(900);
    config["max_position_embeddings"] = json!(100_000);
    fs::write(target.join("config.json"), config.to_string()).unwrap();
    fs::copy(golden("chat/tokenizer.json"), target.join(TOKENIZER_FILE)).unwrap();
    let mut keys = json!({"bos_token": "<|bos|>", "eos_token": "<|end|>"});
    for (key, value) in settings {
        keys[key] = value.clone();
    }
    fs::write(target.join(TOKENIZER_CONFIG_FILE), keys.to_string()).unwrap();
    fs::write(target.join(TEMPLATE_FILE), template).unwrap();
    scratch
}

fn open(folder: &Path) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::open(folder)
}

#[test]
fn ids_are_those_of_transformers() {
    let Chats { templates, conversations } = chats();
    assert!(templates.len() >= 7 && conversations.len() >= 40);
    let expected = Golden::read("chat/chat.safetensors");
    let refused = expected.u32("refused");
    let mut rows = expected.sequences().into_iter().zip(refused);
    let (mut compared, mut refusals) = (0, 0);
    for (name, template) in &templates {
        let scratch = folder(template, &[]);
        let encoder = open(scratch.path()).unwrap().encoder;
        for messages in &conversations {
            let (expected, refused) = rows.next().unwrap();
            match encoder.encode(&Input::Messages(messages.clone()), false) {
                Ok(found) => {
                    assert_eq!(found.ids, expected, "{name}: {messages:?}");
                    compared += 1;
                }
                Err(error) => {
                    assert_eq!(error.code(), "template_error", "{name}: {messages:?}: {error}");
                    assert_eq!(refused, 1, "{name}: {messages:?}: {error}");
                    refusals += 1;
                }
            }
        }
    }
    assert!(rows.next().is_none());
    println!(
        "{compared} conversations have the ids of transformers, {refusals} are refused by both"
    );
}

/// Templates of released models, as llama.cpp has them in its folder `models/templates`, and what the golden script
/// made of them.
#[test]
fn released_templates_render_as_in_transformers() {
    #[derive(Deserialize)]
    struct Rendered {
        source: String,
        texts: Vec<Option<String>>,
    }
    #[derive(Deserialize)]
    struct Released {
        conversations: Vec<Vec<Message>>,
        templates: BTreeMap<String, Rendered>,
    }
    let Some(file) = std::env::var_os("RENDERED_TEMPLATES") else {
        println!("skipped: RENDERED_TEMPLATES does not name what chat_templates.py wrote");
        return;
    };
    let released: Released = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let (mut same, mut failures) = (0, Vec::new());
    for (name, Rendered { source, texts }) in &released.templates {
        let scratch = folder(source, &[]);
        if texts.iter().all(Option::is_none) {
            println!("{name}: transformers renders nothing");
            continue;
        }
        let encoder = match open(scratch.path()) {
            Ok(checkpoint) => checkpoint.encoder,
            Err(error) => {
                failures.push(format!("{name}: {error}"));
                continue;
            }
        };
        for (messages, expected) in released.conversations.iter().zip(texts) {
            let found = encoder.render(messages).ok();
            if found == *expected {
                same += 1;
            } else {
                failures.push(format!(
                    "{name}: {messages:?}\n found {:?} {found:?}\n expected {expected:?}",
                    encoder.render(messages).err().map(|error| error.to_string())
                ));
                break;
            }
        }
    }
    println!("{same} conversations under {} templates are the same", released.templates.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, text)| Message::new(role, *text)).collect()
}

#[test]
fn templates_that_no_conversation_survives_are_refused_at_the_start() {
    let endless = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}";
    let recursive = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    for (template, parts) in [
        (endless, ["10000000 steps", "for ever"]),
        (recursive, ["failed", "recursion"]),
        ("{{ raise_exception('not today') }}", ["failed", "not today"]),
        ("{% for message in messages %}", ["syntax error", "unexpected end"]),
        ("{{ messages | unheard_of }}", ["unheard_of", "unknown"]),
        ("{{ strftime_now('%Q') }}", ["strftime_now", "%Q"]),
    ] {
        let scratch = folder(template, &[]);
        let error = open(scratch.path()).unwrap_err().to_string();
        println!("{error}");
        for part in parts.iter().chain(&["chat_template.jinja"]) {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}

#[test]
fn a_conversation_that_a_template_does_not_survive_fails_alone() {
    let template = "{{ messages[0].content }}{% if messages | length > 3 %}\
                    {% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}{% endif %}";
    let scratch = folder(template, &[]);
    let encoder = open(scratch.path()).unwrap().encoder;
    let short = messages(&[("user", "a"), ("assistant", "b")]);
    let long = [short.clone(), short.clone()].concat();
    let error = encoder.encode(&Input::Messages(long), false).unwrap_err();
    assert_eq!(error.code(), "template_error");
    assert!(error.to_string().contains("for ever"), "{error}");
    assert!(encoder.encode(&Input::Messages(short), false).is_ok());
}

/// A thousand turns are far from the limit of steps.
#[test]
fn long_conversations_are_rendered() {
    for (name, template) in &chats().templates {
        let scratch = folder(template, &[]);
        let encoder = open(scratch.path()).unwrap().encoder;
        let turns = messages(&[("user", "a"), ("assistant", "b")].repeat(1000));
        let text = encoder.render(&turns).unwrap();
        assert!(text.len() > 4000, "{name}");
    }
}

/// Python's `datetime(2023, 2, 9).strftime(..)`.
#[test]
fn templates_are_told_the_date_of_their_checkpoint() {
    let template =
        "{{ strftime_now('%A %a %d %-d %e|%B %b %m|%Y %y|%j %F %H:%M:%S %I %p 100%%') }}";
    let turns = messages(&[("user", "a"), ("assistant", "b")]);
    let scratch = folder(template, &[("chat_template_date", json!("2023-02-09"))]);
    let encoder = open(scratch.path()).unwrap().encoder;
    assert_eq!(
        encoder.render(&turns).unwrap(),
        "Thursday Thu 09 9  9|February Feb 02|2023 23|040 2023-02-09 00:00:00 12 AM 100%"
    );
    assert_eq!(encoder.policy().template_date, "2023-02-09");
    for wrong in
        [json!("2023-02-29"), json!("9.2.2023"), json!("2023-2-09"), json!(2023), json!("")]
    {
        let scratch = folder(template, &[("chat_template_date", wrong)]);
        let error = open(scratch.path()).unwrap_err().to_string();
        assert!(
            error.contains("`chat_template_date`") && error.contains("expected a date"),
            "{error}"
        );
    }
}

/// BOS stands once at the start of every input where the tokenizer adds one, whoever wrote it.
#[test]
fn bos_is_neither_doubled_nor_lost() {
    let with_bos = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let scratch = folder(with_bos, &[]);
    let plain = open(scratch.path()).unwrap().encoder;
    assert_eq!(plain.policy().bos_policy, BosPolicy::AsWritten);

    let mut tokenizer: Value =
        serde_json::from_slice(&fs::read(scratch.path().join(TOKENIZER_FILE)).unwrap()).unwrap();
    let bos = plain.policy().bos.clone().unwrap();
    let token = json!({"SpecialToken": {"id": bos.text, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    tokenizer["post_processor"] = json!({
        "type": "TemplateProcessing", "single": [token, text], "pair": [token, text],
        "special_tokens": {"<|bos|>": {"id": bos.text, "ids": [bos.id], "tokens": [bos.text]}},
    });
    fs::write(scratch.path().join(TOKENIZER_FILE), tokenizer.to_string()).unwrap();
    let adding = open(scratch.path()).unwrap().encoder;
    assert_eq!(adding.policy().bos_policy, BosPolicy::AddedWhereMissing);

    let turns = Input::Messages(messages(&[("user", "a"), ("assistant", "b")]));
    let (bare, written) = (Input::Text("ab".into()), Input::Text("<|bos|>ab<|end|>\n".into()));
    let ids = |input: &Input| adding.encode(input, false).unwrap().ids;
    assert_eq!(ids(&bare), ids(&written));
    assert_eq!(ids(&turns), plain.encode(&turns, false).unwrap().ids);
    for input in [&bare, &written, &turns] {
        let ids = ids(input);
        assert_eq!(ids.iter().filter(|id| **id == bos.id).count(), 1, "{input:?}");
        assert_eq!(ids[0], bos.id);
    }
    assert!(!plain.encode(&bare, false).unwrap().ids.contains(&bos.id));
}
