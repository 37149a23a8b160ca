//! Preference pairs from Parquet files: those that pyarrow writes, and what of them is damaged.
//!
//! `tests/golden/parquet.py` makes the files.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::golden::golden;
use inform::train::{BadLines, Origin, Pair, read_pairs};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const GOOD: [&str; 4] = ["texts", "messages", "conversations", "bytes"];
const ROWS: usize = 11;
/// The bad row of files that have one, from 1.
const BAD: usize = 5;

fn file(name: &str) -> PathBuf {
    golden("parquet").join(name)
}

fn refused(file: &Path) -> String {
    format!("{:#}", read_pairs(&[file.to_owned()], BadLines::Refuse).unwrap_err())
}

#[test]
fn rows_are_the_pairs_that_the_same_lines_are() {
    for name in GOOD {
        let from = |extension: &str| {
            let file = file(&format!("{name}.{extension}"));
            read_pairs(&[file], BadLines::Refuse).unwrap().0
        };
        let parquet = file(&format!("{name}.parquet"));
        let expected: Vec<Pair> = from("jsonl")
            .into_iter()
            .map(|pair| {
                let origin = Origin { file: parquet.as_path().into(), line: pair.origin.line };
                Pair { origin, ..pair }
            })
            .collect();
        assert_eq!(expected.len(), ROWS);
        assert_eq!(from("parquet"), expected, "{name}");
    }
}

#[test]
fn a_row_that_is_no_pair_is_refused_or_left_out() {
    for (name, reason) in [
        ("null", "`chosen`"),
        ("nan", "`margin`: expected a finite number"),
        ("utf8", "`chosen`: not valid UTF-8"),
        ("role", "`chosen`: a message without `role`"),
        ("none", "`chosen`"),
    ] {
        let file = file(&format!("bad_{name}.parquet"));
        let place = format!("{}, row {BAD}: ", file.display());
        let refused = refused(&file);
        assert!(refused.starts_with(&place) && refused.contains(reason), "{name}: {refused}");

        let (pairs, bad) = read_pairs(&[file], BadLines::Drop).unwrap();
        assert_eq!((pairs.len(), bad.len()), (ROWS - 1, 1), "{name}");
        let bad = bad[0].to_string();
        assert!(bad.starts_with(&place) && bad.contains(reason), "{name}: {bad}");
        let numbers = (1..=ROWS).filter(|&number| number != BAD);
        assert!(pairs.iter().map(|pair| pair.origin.line).eq(numbers), "{name}");
    }
}

#[test]
fn a_column_that_is_missing_or_of_another_type_is_named() {
    for (name, reason) in [
        ("missing", ", row 1: `rejected`: no `rejected`"),
        ("numbers", ", row 1: `chosen`: expected a list of messages"),
        ("list", ", row 1: `rejected`: a message without `role`"),
        ("margin", ", row 1: `margin`: expected a number"),
        ("date", ", row 1: `margin`: expected text, a number, a list or a struct"),
        ("other", ": no column `chosen`"),
    ] {
        let file = file(&format!("bad_{name}.parquet"));
        let refused = refused(&file);
        assert!(refused.starts_with(&format!("{}{reason}", file.display())), "{name}: {refused}");
        assert!(read_pairs(&[file], BadLines::Drop).is_err(), "{name}");
    }
}

/// Cut anywhere, or with bytes of another value: an error that names the file, or other pairs.
#[test]
fn damage_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("damaged.parquet");
    // What the library says when it panics is no news here.
    std::panic::set_hook(Box::new(|_| {}));
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut errors = 0;
    for name in GOOD {
        let whole = fs::read(file(&format!("{name}.parquet"))).unwrap();
        let cut = (0..40).map(|part| whole[..part * whole.len() / 40].to_vec());
        let flipped = (0..150).map(|_| {
            let mut bytes = whole.clone();
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
            bytes
        });
        let flipped: Vec<_> = flipped.collect();
        for (number, bytes) in cut.chain(flipped).enumerate() {
            fs::write(&damaged, bytes).unwrap();
            let read = read_pairs(std::slice::from_ref(&damaged), BadLines::Refuse);
            assert!(number >= 40 || read.is_err(), "{name} cut to {number} 40ths is no error");
            if let Err(error) = read {
                errors += 1;
                let said = format!("{error:#}");
                assert!(said.starts_with(&damaged.display().to_string()), "{name}: {said}");
            }
            // What comes before the damage may be kept.
            if let Ok((pairs, bad)) = read_pairs(std::slice::from_ref(&damaged), BadLines::Drop) {
                assert!(pairs.len() + bad.len() <= ROWS + 1, "{name}: {bad:?}");
            }
        }
    }
    let _ = std::panic::take_hook();
    assert!(errors > 160, "{errors}");
}

#[test]
fn files_of_both_forms_go_together() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain.parquet");
    fs::write(&plain, "{}\n").unwrap();
    assert!(refused(&plain).starts_with(&plain.display().to_string()), "{}", refused(&plain));
    let absent = folder.path().join("absent.parquet");
    assert!(refused(&absent).contains("absent.parquet: No such file"), "{}", refused(&absent));

    let files = [file("texts.jsonl"), file("messages.parquet")];
    assert_eq!(read_pairs(&files, BadLines::Refuse).unwrap().0.len(), 2 * ROWS);
}
