//! Data that is not as it should be: named by file and line, refused or left out, never a panic.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::{Compression, write::GzEncoder};
use inform::checkpoint::Checkpoint;
use inform::train::{BadLines, PairLimits, Reason, encode_pairs, read_pairs};
use serde_json::{Value, json};

/// Lines of the good file.
const LINES: usize = 12;
/// The line that is spoilt, from 1.
const SPOILT: usize = 5;
const LIMITS: PairLimits = PairLimits { max_tokens: 512, deduplicate: true };

fn good(number: usize) -> Value {
    json!({
        "prompt": [{"role": "user", "content": format!("Which number is it? Hint {number}.")}],
        "chosen": [{"role": "assistant", "content": format!("It is {number}, of course.")}],
        "rejected": [{"role": "assistant", "content": "No idea."}],
        "subset": "numbers",
        "margin": 0.5,
    })
}

fn lines() -> Vec<Vec<u8>> {
    (1..=LINES).map(|number| good(number).to_string().into_bytes()).collect()
}

fn joined(lines: &[Vec<u8>]) -> Vec<u8> {
    lines.iter().flat_map(|line| [line.as_slice(), b"\n"].concat()).collect()
}

/// The good file with another line at [`SPOILT`].
fn with_line(line: impl Into<Vec<u8>>) -> Vec<u8> {
    let mut lines = lines();
    lines[SPOILT - 1] = line.into();
    joined(&lines)
}

/// The good file with a line changed by `change`.
fn changed(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value = good(SPOILT);
    change(&mut value);
    with_line(value.to_string())
}

fn zipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn answer(text: &str) -> Value {
    json!([{"role": "assistant", "content": text}])
}

/// Name of the file, its bytes, and what the message must say of the line.
type Case = (&'static str, Vec<u8>, &'static str);

/// Files with a line that is no pair. Their other lines are good.
fn malformed() -> Vec<Case> {
    let good_line = good(SPOILT).to_string();
    let invalid =
        [&good_line.as_bytes()[..40], &[0xff, 0xfe], &good_line.as_bytes()[40..]].concat();
    vec![
        ("utf8.jsonl", with_line(invalid.clone()), "not valid UTF-8"),
        ("utf8.jsonl.gz", zipped(&with_line(invalid)), "not valid UTF-8"),
        ("lone.jsonl", with_line(b"\xc3".to_vec()), "not valid UTF-8"),
        ("half.jsonl", with_line(&good_line.as_bytes()[..60]), "not valid JSON"),
        ("words.jsonl", with_line("chosen,rejected"), "not valid JSON"),
        ("nul.jsonl", with_line(vec![0u8; 16]), "not valid JSON"),
        ("two.jsonl", with_line(format!("{good_line}{good_line}")), "not valid JSON"),
        ("nan.jsonl", with_line(good_line.replace("0.5", "NaN")), "not valid JSON"),
        ("escape.jsonl", with_line(good_line.replace("numbers", "\\ud800")), "not valid JSON"),
        ("deep.jsonl", with_line("[".repeat(100_000)), "not valid JSON"),
        ("number.jsonl", with_line("7"), "expected an object"),
        ("null.jsonl", with_line("null"), "expected an object"),
        ("list.jsonl", with_line(format!("[{good_line}]")), "expected an object"),
        ("text.jsonl", with_line("\"chosen\""), "expected an object"),
        ("empty.jsonl", with_line("{}"), "no `chosen`"),
        (
            "chosen.jsonl",
            changed(|v| _ = v.as_object_mut().unwrap().remove("chosen")),
            "no `chosen`",
        ),
        (
            "rejected.jsonl",
            changed(|v| _ = v.as_object_mut().unwrap().remove("rejected")),
            "no `rejected`",
        ),
        ("case.jsonl", with_line(good_line.replace("chosen", "Chosen")), "no `chosen`"),
        ("nothing.jsonl", changed(|v| v["chosen"] = Value::Null), "`chosen`"),
        ("true.jsonl", changed(|v| v["chosen"] = json!(true)), "`chosen`"),
        ("index.jsonl", changed(|v| v["rejected"] = json!(3)), "`rejected`"),
        ("object.jsonl", changed(|v| v["rejected"] = json!({"role": "assistant"})), "`rejected`"),
        ("none.jsonl", changed(|v| v["chosen"] = json!([])), "`chosen`"),
        ("texts.jsonl", changed(|v| v["chosen"] = json!(["It is five."])), "`chosen`"),
        ("role.jsonl", changed(|v| v["chosen"] = json!([{"content": "5"}])), "`chosen`"),
        ("content.jsonl", changed(|v| v["chosen"] = json!([{"role": "assistant"}])), "`chosen`"),
        ("flag.jsonl", changed(|v| v["chosen"][0]["content"] = json!(true)), "`chosen`"),
        ("user.jsonl", changed(|v| v["rejected"][0]["role"] = json!("user")), "`rejected`"),
        ("prompt.jsonl", changed(|v| v["prompt"] = json!(5)), "`prompt`"),
        ("prompts.jsonl", changed(|v| v["prompt"] = json!(["Which?"])), "`prompt`"),
        ("system.jsonl", changed(|v| v["system"] = json!(["Be kind."])), "`system`"),
        ("subset.jsonl", changed(|v| v["subset"] = json!(3)), "`subset`"),
        ("margin.jsonl", changed(|v| v["margin"] = json!("large")), "`margin`"),
        (
            "scores.jsonl",
            changed(|v| {
                v["score_chosen"] = json!("8");
                v["score_rejected"] = json!(3);
            }),
            "`score_chosen`",
        ),
        (
            "transcript.jsonl",
            with_line(json!({"chosen": "It is five.", "rejected": "No."}).to_string()),
            "`chosen`",
        ),
        (
            "open.jsonl",
            with_line(
                json!({"chosen": "\n\nHuman: Which?", "rejected": "\n\nHuman: Which?"}).to_string(),
            ),
            "`chosen`",
        ),
    ]
}

/// Files that end too early, or are no archives: whatever line it is that cannot be read.
fn unreadable() -> Vec<Case> {
    let whole = zipped(&joined(&lines()));
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    let mut tail = whole.clone();
    let end = tail.len() - 6;
    tail[end] ^= 0xff;
    vec![
        ("truncated.jsonl.gz", whole[..whole.len() / 2].to_vec(), "cannot be read further"),
        ("footless.jsonl.gz", whole[..whole.len() - 4].to_vec(), "cannot be read further"),
        ("flipped.jsonl.gz", flipped, "line "),
        ("checksum.jsonl.gz", tail, "cannot be read further"),
        ("plain.jsonl.gz", joined(&lines()), "cannot be read further"),
    ]
}

/// Files with a pair of which nothing is to be learned.
fn useless() -> Vec<Case> {
    let mut twice = lines();
    twice[SPOILT - 1] = twice[0].clone();
    vec![
        ("equal.jsonl", changed(|v| v["chosen"] = v["rejected"].clone()), "the same"),
        ("blank.jsonl", changed(|v| v["chosen"] = answer("")), "an answer is empty"),
        ("spaces.jsonl", changed(|v| v["rejected"] = answer(" \n\t ")), "an answer is empty"),
        ("long.jsonl", changed(|v| v["chosen"] = answer(&"word ".repeat(200_000))), "tokens"),
        ("twice.jsonl", joined(&twice), "an earlier pair is the same"),
    ]
}

fn written(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let file = folder.join(name);
    fs::write(&file, bytes).unwrap();
    file
}

#[test]
fn lines_that_are_no_pairs_are_refused_or_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let cases = malformed();
    assert!(cases.len() + unreadable().len() + useless().len() >= 40);
    for (name, bytes, reason) in cases {
        let file = written(folder.path(), name, &bytes);
        let place = format!("{}, line {SPOILT}", file.display());
        let files = [file];
        let refused = format!("{:#}", read_pairs(&files, BadLines::Refuse).unwrap_err());
        assert!(refused.starts_with(&place) && refused.contains(reason), "{name}: {refused}");

        let (pairs, bad) = read_pairs(&files, BadLines::Drop).unwrap();
        assert_eq!((pairs.len(), bad.len()), (LINES - 1, 1), "{name}");
        let said = bad[0].to_string();
        assert!(said.starts_with(&place) && said.contains(reason), "{name}: {said}");
        assert_eq!((bad[0].reason, bad[0].origin.line), (Reason::BadLine, SPOILT), "{name}");
        let numbers = (1..=LINES).filter(|&number| number != SPOILT);
        assert!(pairs.iter().map(|pair| pair.origin.line).eq(numbers), "{name}");
    }
}

#[test]
fn what_cannot_be_read_further_ends_its_file_only() {
    let folder = tempfile::tempdir().unwrap();
    let other = written(folder.path(), "other.jsonl", &joined(&lines()));
    for (name, bytes, reason) in unreadable() {
        let file = written(folder.path(), name, &bytes);
        let start = format!("{}, line ", file.display());
        let files = [file, other.clone()];
        let refused = format!("{:#}", read_pairs(&files, BadLines::Refuse).unwrap_err());
        assert!(refused.starts_with(&start) && refused.contains(reason), "{name}: {refused}");

        let (pairs, bad) = read_pairs(&files, BadLines::Drop).unwrap();
        let bad: Vec<String> = bad.iter().map(ToString::to_string).collect();
        assert!(bad.iter().all(|bad| bad.starts_with(&start)), "{name}: {bad:?}");
        assert!(bad.iter().any(|bad| bad.contains(reason)), "{name}: {bad:?}");
        assert!((LINES..=2 * LINES).contains(&pairs.len()), "{name}: {}", pairs.len());
        assert_eq!(pairs.iter().filter(|pair| *pair.origin.file == *other).count(), LINES);
    }
}

#[test]
fn pairs_that_teach_nothing_are_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let encoder = Checkpoint::open(Path::new("configs/demo")).unwrap().encoder;
    for (name, bytes, reason) in useless() {
        let file = written(folder.path(), name, &bytes);
        let place = format!("{}, line {SPOILT}: ", file.display());
        let (pairs, bad) = read_pairs(&[file], BadLines::Refuse).unwrap();
        assert_eq!((pairs.len(), bad.len()), (LINES, 0), "{name}");
        let (kept, dropped) = encode_pairs(&encoder, &pairs, LIMITS).unwrap();
        assert_eq!((kept.len(), dropped.pairs.len()), (LINES - 1, 1), "{name}: {dropped:?}");
        let said = dropped.pairs[0].to_string();
        assert!(said.starts_with(&place) && said.contains(reason), "{name}: {said}");
    }
}

#[test]
fn nothing_but_bad_lines_is_an_error_that_names_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), "bad.jsonl", b"{}\n[]\n");
    let said =
        format!("{:#}", read_pairs(std::slice::from_ref(&file), BadLines::Drop).unwrap_err());
    assert!(said.contains("no preference pair") && said.contains("line 1"), "{said}");
    let file = written(folder.path(), "empty.jsonl", b"");
    assert!(read_pairs(&[file], BadLines::Drop).is_err());
    assert!(read_pairs(&[folder.path().join("absent.jsonl")], BadLines::Drop).is_err());
}

#[test]
fn columns_of_common_data_sets_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let whole = |text: &str| json!([{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}]);
    let forms = [
        json!({"prompt": "Q", "chosen": "A", "rejected": "B"}),
        json!({"question": "Q", "chosen": "A", "rejected": "B", "system": ""}),
        json!({"instruction": "Q", "chosen": answer("A"), "rejected": answer("B")}),
        json!({"chosen": whole("A"), "rejected": whole("B")}),
        json!({"prompt": "Q", "chosen": whole("A"), "rejected": whole("B"), "score_chosen": 8.0, "score_rejected": 6.5}),
        json!({"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B", "margin": 1.5}),
    ];
    let text: String = forms.iter().map(|form| format!("{form}\n")).collect();
    let file = written(folder.path(), "forms.jsonl", text.as_bytes());
    let (pairs, _) = read_pairs(&[file], BadLines::Refuse).unwrap();
    for pair in &pairs {
        let texts = |side: &[inform::checkpoint::Message]| -> Vec<String> {
            side.iter().map(|m| format!("{}: {}", m.role, m.content)).collect()
        };
        assert_eq!(texts(&pair.chosen), ["user: Q", "assistant: A"]);
        assert_eq!(texts(&pair.rejected), ["user: Q", "assistant: B"]);
    }
    let margins: Vec<Option<f32>> = pairs.iter().map(|pair| pair.margin).collect();
    assert_eq!(margins, [None, None, None, None, Some(1.5), Some(1.5)]);

    let with_system =
        json!({"system": "Be kind.", "question": "Q", "chosen": "A", "rejected": "B"});
    let file = written(folder.path(), "system.jsonl", with_system.to_string().as_bytes());
    let (pairs, _) = read_pairs(&[file], BadLines::Refuse).unwrap();
    assert_eq!(pairs[0].chosen[0].role, "system");
    assert_eq!(pairs[0].chosen.len(), 3);
}

/// Whether or not such files can be read: see `tests/integration/trainer/parquet.rs`.
#[cfg(not(feature = "parquet"))]
#[test]
fn parquet_without_the_feature_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), "pairs.parquet", b"PAR1");
    let said = format!("{:#}", read_pairs(&[file], BadLines::Drop).unwrap_err());
    assert!(said.contains("pairs.parquet: ") && said.contains("--features parquet"), "{said}");
}
