//! What the README shows is what a new user gets.

use crate::support::server::Server;
use serde_json::Value;

/// The first code block of that language after `heading`.
fn block<'a>(readme: &'a str, heading: &str, language: &str) -> &'a str {
    let after = readme.split_once(heading).unwrap().1;
    let start = after.split_once(&format!("```{language}\n")).unwrap().1;
    start.split_once("```").unwrap().0
}

#[test]
fn the_answer_in_the_readme_is_the_servers() {
    let readme = std::fs::read_to_string("README.md").unwrap();
    let command = block(&readme, "## Score", "sh");
    let body = command.split_once("-d '").unwrap().1.split_once('\'').unwrap().0;
    let shown: Value = serde_json::from_str(block(&readme, "## Score", "json")).unwrap();

    let server = Server::start(&[]);
    let answer = server.reward(&serde_json::from_str(body).unwrap());

    // Instruction sets differ in the last digits.
    let close = |a: &Value, b: &Value| {
        let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
        assert!((a - b).abs() < 1e-4 * b.abs().max(1.0), "{a} against {b}");
    };
    for index in 0..2 {
        close(&answer["rewards"][index], &shown["rewards"][index]);
        let (item, item_shown) = (&answer["items"][index], &shown["items"][index]);
        close(&item["mahalanobis"], &item_shown["mahalanobis"]);
        assert_eq!(item["tokens"], item_shown["tokens"]);
    }
    assert_eq!(answer["weights"], shown["weights"]);
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&answer), keys(&shown));
    assert_eq!(keys(&answer["items"][0]), keys(&shown["items"][0]));
}
