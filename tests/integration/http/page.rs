//! The page and the plots over HTTP: what they show, that names are text, and what is not there.

use std::time::{Duration, Instant};

use crate::support::server::{Answer, Client, PATIENCE, Server, pair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use roxmltree::Document;
use serde_json::{Value, json};

const CURVES: [&str; 7] = ["csi", "energy", "mop", "ratio", "rewards", "length", "dispersion"];
const HOSTILE: &str = "</title><script>alert(1)</script>\"'&/ {{ 7*7 }}";

/// Different answers, of which each round has others.
fn answers(round: usize, count: usize) -> Vec<Value> {
    let things =
        ["a kettle", "the piano", "a tent", "sourdough", "a bicycle", "an old map", "a kite"];
    (0..count)
        .map(|number| {
            let thing = things[(number * 3 + round) % things.len()];
            let extra = " Ask again if anything is unclear.".repeat((number + round) % 4);
            let often = (number * 7 + round * 5) % 11;
            pair(
                &format!("How often do I look after {thing}?"),
                &format!("Every {often} days is enough for {thing}.{extra}"),
            )
        })
        .collect()
}

/// A run with a baseline and some evaluated steps.
fn train(client: &Client, run: &str, steps: std::ops::Range<usize>) {
    if steps.start == 0 {
        let inputs = answers(100, 60);
        client.reward(&json!({"inputs": inputs, "run": run, "role": "baseline"}));
    }
    for step in steps.clone() {
        client.reward(&json!({"inputs": answers(step, 40), "run": run, "step": step}));
    }
    let path = format!("/runs/{}/evaluate", encoded(run));
    let last = client.post(&path, &json!({})).ok();
    assert_eq!(last["number"], json!(steps.end - 1), "{last}");
}

/// A name as a segment of a path, or a value of a query.
fn encoded(name: &str) -> String {
    name.bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || byte == b'-' {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

fn page(client: &Client, run: &str) -> String {
    let answer = client.get(&format!("/?run={}", encoded(run)));
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.text
}

/// The plot as a document; what every plot has is checked.
fn plot(client: &Client, path: &str) -> (String, String, String) {
    let answer = client.get(path);
    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    assert_eq!(answer.header("content-type"), Some("image/svg+xml"));
    let document = Document::parse(&answer.text).unwrap_or_else(|error| {
        panic!("{path}: {error}\n{}", answer.text);
    });
    let svg = document.root_element();
    assert_eq!(svg.attribute("role"), Some("img"), "{path}");
    let text = |tag: &str| {
        let element =
            svg.children().find(|child| child.has_tag_name(("http://www.w3.org/2000/svg", tag)));
        element.and_then(|element| element.text()).unwrap_or_default().to_owned()
    };
    let named = svg.attribute("aria-labelledby").unwrap();
    for id in named.split(' ') {
        assert!(svg.children().any(|child| child.attribute("id") == Some(id)), "{path}: {id}");
    }
    (text("title"), text("desc"), answer.text)
}

/// Elements of a plot with this tag and attribute.
fn count(svg: &str, tag: &str, attribute: (&str, &str)) -> usize {
    let document = Document::parse(svg).unwrap();
    let wanted = |node: &roxmltree::Node<'_, '_>| {
        node.tag_name().name() == tag && node.attribute(attribute.0) == Some(attribute.1)
    };
    document.descendants().filter(wanted).count()
}

#[test]
fn every_plot_is_well_formed_and_says_what_it_shows() {
    let server = Server::start(&[]);
    train(&server, "ppo-7", 0..6);
    let rows = server.read("/runs/ppo-7/evaluations");
    let rows = rows["evaluations"].as_array().unwrap();
    for name in CURVES {
        let (title, words, svg) = plot(&server, &format!("/runs/ppo-7/{name}.svg"));
        assert!(title.ends_with(" of ppo-7"), "{title}");
        assert!(words.contains("6 evaluations, step 0 to 5."), "{name}: {words}");
        // Each evaluation tells its numbers where the pointer rests.
        let panels = if name == "length" { 2 } else { 1 };
        assert_eq!(count(&svg, "rect", ("class", "hit")), 6 * panels, "{name}");
    }
    let (_, words, _) = plot(&server, "/runs/ppo-7/rewards.svg");
    let last = rows.last().unwrap()["reward_mean"].as_f64().unwrap();
    assert!(
        words.contains(&format!("mean reward: last {}", inform::plots::short(last))),
        "{words}"
    );

    let (title, words, svg) = plot(&server, "/runs/ppo-7/latents.svg");
    assert_eq!(title, "Latent map of ppo-7");
    assert!(words.starts_with("PCA of 60 answers of the SFT baseline and 40 answers"), "{words}");
    // Sixty SFT answers and one in the legend.
    assert_eq!(count(&svg, "circle", ("fill", "#0072B2")), 61);
    assert_eq!(count(&svg, "polygon", ("fill", "#C64F00")), 41);
    assert_eq!(count(&svg, "circle", ("class", "hit")), 10);

    let (_, words, svg) = plot(&server, "/runs/ppo-7/latents.svg?projection=tsne&theme=dark");
    assert!(words.starts_with("t-SNE of 60 answers"), "{words}");
    assert_eq!(count(&svg, "circle", ("fill", "#0072B2")), 61);
    assert!(!svg.contains("prefers-color-scheme"));
    assert!(plot(&server, "/runs/ppo-7/csi.svg").2.contains("prefers-color-scheme"));
}

#[test]
fn a_plot_has_the_size_and_changes_with_the_next_evaluation_alone() {
    let server = Server::start(&[]);
    train(&server, "a", 0..3);
    let path = "/runs/a/csi.svg?width=300&height=200";
    let first = server.get(path);
    let document = Document::parse(&first.text).unwrap();
    let svg = document.root_element();
    assert_eq!((svg.attribute("width"), svg.attribute("height")), (Some("300"), Some("200")));
    let tag = first.header("etag").unwrap().to_owned();
    let again = server.send("GET", path, &[("if-none-match", &tag)], b"");
    assert_eq!((again.status, again.text.as_str()), (304, ""));
    assert_eq!(again.header("etag"), Some(tag.as_str()));
    train(&server, "a", 3..4);
    let later = server.send("GET", path, &[("if-none-match", &tag)], b"");
    assert_eq!(later.status, 200);
    assert_ne!(later.text, first.text);
}

#[test]
fn what_is_not_there_or_not_right_is_said() {
    let server = Server::start(&[]);
    train(&server, "a", 0..1);
    let missing = |path: &str| server.get(path).error();
    assert_eq!(missing("/runs/b/csi.svg"), (404, "unknown_run".to_owned(), None));
    assert_eq!(missing("/runs/b/latents.svg"), (404, "unknown_run".to_owned(), None));
    assert_eq!(missing("/runs/a/csv.svg"), (404, "not_found".to_owned(), None));
    assert_eq!(missing("/runs/a/csi"), (404, "not_found".to_owned(), None));
    assert_eq!(missing("/assets/page.html"), (404, "not_found".to_owned(), None));
    for (query, pointer) in [
        ("width=100", "/width"),
        ("height=9999", "/height"),
        ("width=wide", ""),
        ("projection=umap", ""),
        ("theme=blue", ""),
        ("colour=red", ""),
    ] {
        let (status, code, at) = missing(&format!("/runs/a/csi.svg?{query}"));
        assert_eq!((status, code.as_str(), at.as_deref()), (400, "invalid_request", Some(pointer)));
    }
    // A client may ask all plots alike: a curve takes no notice of the map's projection.
    let curve = server.get("/runs/a/csi.svg");
    assert_eq!(curve.status, 200);
    assert_eq!(server.get("/runs/a/csi.svg?projection=tsne").text, curve.text);
    let page = server.get("/?run=b");
    assert_eq!(page.status, 404);
    assert!(page.text.contains("There is no such run") && page.text.contains(">a</a>"));
}

#[test]
fn the_page_lists_runs_and_shows_one() {
    let server = Server::start(&[]);
    let empty = server.get("/");
    assert!(empty.text.contains("No answer was scored yet"), "{}", empty.text);
    assert_eq!(empty.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = empty.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");

    train(&server, "ppo-7", 0..6);
    server.reward(&json!({"inputs": answers(0, 3), "run": "filling"}));
    let started = Instant::now();
    while !server.get("/").text.contains("filling") {
        assert!(started.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
    let list = server.get("/").text;
    assert!(list.contains("<a href=\"?run=ppo%2D7\">ppo-7</a>"), "{list}");
    assert!(list.contains("first window is filling"));

    let one = page(&server, "ppo-7");
    for name in CURVES.iter().chain(&["latents"]) {
        assert!(one.contains(&format!("<title id=\"plot-{name}-title\">")), "{name}");
    }
    assert!(one.contains("60 SFT answers, recorded"), "{one}");
    // The table names the answers that the map marks.
    let svg = plot(&server, "/runs/ppo-7/latents.svg").2;
    let request = svg.split("<title>Request ").nth(1).unwrap().split(',').next().unwrap();
    assert!(one.contains(&format!("<code>{request}</code>")), "{request}");

    let style = server.get("/assets/page.css");
    assert_eq!(style.header("content-type"), Some("text/css; charset=utf-8"));
    assert!(style.text.contains("prefers-color-scheme"));
    assert_eq!(server.get("/assets/page.js").status, 200);
    Document::parse(&server.get("/assets/icon.svg").text).unwrap();
    // Nothing on the page is from elsewhere, and nothing is written into it that the policy forbids.
    for forbidden in ["style=", "<style", "onclick", "http://", "https://"] {
        let found = one.replace("http://www.w3.org/2000/svg", "").contains(forbidden);
        assert!(!found, "{forbidden}");
    }
}

#[test]
fn a_name_is_text_wherever_it_stands() {
    let server = Server::start(&[]);
    train(&server, HOSTILE, 0..2);
    let request = "<b>\"'&";
    let headers = [("content-type", "application/json"), ("x-request-id", request)];
    let body = json!({"inputs": answers(2, 40), "run": HOSTILE, "step": 2}).to_string();
    server.send("POST", "/reward", &headers, body.as_bytes()).ok();
    let path = format!("/runs/{}", encoded(HOSTILE));
    server.post(&format!("{path}/evaluate"), &json!({})).ok();
    for html in [
        server.get("/").text,
        page(&server, HOSTILE),
        server.get(&format!("/?run={}", encoded("<b>"))).text,
    ] {
        for harm in ["<script>", "</title><script", "<b>", "49"] {
            let found = html.replace("id=\"plot-", "").match_indices(harm).count();
            assert!(harm == "49" || found == 0, "{harm} in {html}");
        }
        assert!(!html.contains("\"'&/ 49"));
    }
    let (title, _, _) = plot(&server, &format!("{path}/csi.svg"));
    assert_eq!(title, format!("CSI per sample of {HOSTILE}"));
    let (_, _, svg) = plot(&server, &format!("{path}/latents.svg"));
    assert!(Document::parse(&svg).unwrap().descendants().any(|node| {
        node.text().is_some_and(|text| text.starts_with(&format!("Request {request}, input ")))
    }));
}

#[test]
fn a_run_without_a_baseline_shows_what_needs_none() {
    let model = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir("configs/demo").unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "baseline.safetensors" {
            std::fs::copy(entry.path(), model.path().join(entry.file_name())).unwrap();
        }
    }
    let server = Server::start(&["--model", model.path().to_str().unwrap()]);
    server.reward(&json!({"inputs": answers(0, 40), "run": "bare", "step": 0}));
    server.post("/runs/bare/evaluate", &json!({})).ok();
    let one = page(&server, "bare");
    assert!(one.contains("no baseline") && one.contains("Without a baseline there is no distance"));
    let (_, words, svg) = plot(&server, "/runs/bare/latents.svg");
    assert!(words.starts_with("PCA of 0 answers of the SFT baseline and 40 answers"), "{words}");
    assert_eq!(count(&svg, "circle", ("fill", "#0072B2")), 0);
    let (_, words, _) = plot(&server, "/runs/bare/rewards.svg");
    assert!(words.contains("mean reward: last"), "{words}");
    let (_, _, svg) = plot(&server, "/runs/bare/csi.svg");
    assert!(svg.contains("baseline"), "{svg}");
}

#[test]
fn a_standard_head_has_no_runs_to_show() {
    let server = Server::start(&["--model", "tests/golden/tiny/standard"]);
    let answer = server.get("/");
    assert_eq!(answer.status, 200);
    assert!(answer.text.contains("standard reward head"), "{}", answer.text);
    assert_eq!(server.get("/?run=a").status, 404);
    assert_eq!(server.get("/runs/a/csi.svg").error(), (404, "no_latents".to_owned(), None));
}

#[test]
fn a_browser_is_asked_for_the_key_and_other_sites_may_not_use_it() {
    let key = "a-key-of-enough-letters";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, format!("[[keys]]\nname = \"a\"\nkey = \"{key}\"\n")).unwrap();
    let setting = format!("auth.keys_file={}", file.path().display());
    let server = Server::start(&["--set", &setting]);
    let challenges = |answer: &Answer| {
        let all = answer.headers.get_all("www-authenticate").iter();
        all.map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let program = server.get("/");
    assert_eq!((program.status, challenges(&program)), (401, vec!["Bearer".to_owned()]));
    let browser = server.send("GET", "/", &[("accept", "text/html,*/*")], b"");
    assert_eq!(browser.status, 401);
    assert!(challenges(&browser).iter().any(|one| one.starts_with("Basic realm=")));
    let basic = format!("Basic {}", STANDARD.encode(format!("anything:{key}")));
    let known = [("accept", "text/html"), ("authorization", basic.as_str())];
    assert_eq!(server.send("GET", "/", &known, b"").status, 200);
    assert_eq!(server.send("GET", "/assets/page.css", &known, b"").status, 200);

    for (site, status) in
        [("cross-site", 403), ("same-site", 403), ("same-origin", 404), ("none", 404)]
    {
        let headers = [("sec-fetch-site", site), ("authorization", basic.as_str())];
        let answer = server.send("POST", "/runs/a/evaluate", &headers, b"");
        assert_eq!(answer.status, status, "{site}: {}", answer.text);
        assert_eq!(server.send("GET", "/", &headers, b"").status, 200);
    }
}
