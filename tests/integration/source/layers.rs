//! Imports point down: no file imports what stands above it, and neither files nor folders import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::imports::imports;

/// The modules of the crate, the highest first. `docs/architecture.md` has the same list.
const LAYERS: [&str; 27] = [
    "bin",
    "server",
    "http",
    "judge",
    "replay",
    "train",
    "verify",
    "placement",
    "encoder",
    "model_loader",
    "config",
    "plots",
    "engine",
    "monitor",
    "generate",
    "model",
    "ops",
    "input",
    "checkpoint",
    "layer",
    "json",
    "lines",
    "metrics",
    "telemetry",
    "pointer",
    "isa",
    "allocator",
];

type Graph = BTreeMap<String, BTreeSet<String>>;

/// What is wrong with the imports of these files.
fn faults(files: &BTreeMap<String, String>) -> Vec<String> {
    let of_files = imports(files);
    let of_folders = between(&of_files, folder);
    let of_layers = between(&of_files, layer);
    let mut faults = Vec::new();
    for (from, targets) in &of_layers {
        let Some(place) = LAYERS.iter().position(|layer| layer == from) else {
            faults.push(format!("`{from}` is no layer: add it to LAYERS and docs/architecture.md"));
            continue;
        };
        let above = targets.iter().filter(|target| LAYERS[..place].contains(&target.as_str()));
        faults.extend(
            above.map(|target| format!("`{from}` imports `{target}`, which stands above it")),
        );
    }
    for (what, graph) in [("folders", &of_folders), ("files", &of_files)] {
        let circle = circle(graph);
        faults.extend(circle.map(|circle| format!("{what} in a circle: {}", circle.join(" -> "))));
    }
    faults
}

/// The folder of a file; a file beside `lib.rs` counts as one.
fn folder(file: &str) -> String {
    file.rsplit_once('/').map_or_else(|| layer(file), |(folder, _)| folder.to_owned())
}

fn layer(file: &str) -> String {
    file.split('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned()
}

/// The imports between groups of files. The crate's root belongs to none.
fn between(files: &Graph, group: fn(&str) -> String) -> Graph {
    let mut groups = Graph::new();
    for (file, targets) in files.iter().filter(|(file, _)| *file != "lib.rs") {
        let from = group(file);
        let targets = targets.iter().filter(|target| *target != "lib.rs").map(|file| group(file));
        let targets = targets.filter(|target| *target != from).collect::<Vec<_>>();
        groups.entry(from).or_default().extend(targets);
    }
    groups
}

/// Nodes that import each other in a circle, if any do.
fn circle(graph: &Graph) -> Option<Vec<String>> {
    fn visit(
        node: &str,
        graph: &Graph,
        done: &mut BTreeSet<String>,
        way: &mut Vec<String>,
    ) -> bool {
        way.push(node.to_owned());
        if let Some(first) = way[..way.len() - 1].iter().position(|other| other == node) {
            way.drain(..first);
            return true;
        }
        if !done.contains(node) {
            let targets = graph.get(node).into_iter().flatten();
            for target in targets {
                if visit(target, graph, done, way) {
                    return true;
                }
            }
            done.insert(node.to_owned());
        }
        way.pop();
        false
    }
    let (mut done, mut way) = (BTreeSet::new(), Vec::new());
    graph.keys().any(|node| visit(node, graph, &mut done, &mut way)).then_some(way)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Texts of all Rust files below a folder, by their paths below `src`.
fn read(folder: &Path, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root().join("src")).unwrap().to_str().unwrap().to_owned();
            files.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn imports_point_down() {
    let mut files = BTreeMap::new();
    read(&root().join("src"), &mut files);
    assert!(files.len() > 250, "{}", files.len());
    let found: usize = imports(&files).values().map(BTreeSet::len).sum();
    assert!(found > 1000, "{found} imports were read");
    let faults = faults(&files);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let unknown: Vec<_> = LAYERS
        .iter()
        .filter(|layer| !files.keys().any(|file| self::layer(file) == **layer))
        .collect();
    assert!(unknown.is_empty(), "no such modules: {unknown:?}");
}

#[test]
fn the_layers_are_those_of_the_documentation() {
    let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let (_, list) = text.split_once("Layers, the highest first:\n\n```\n").unwrap();
    let list: Vec<&str> = list.split("```").next().unwrap().split_whitespace().collect();
    assert_eq!(list, LAYERS);
}

#[test]
fn an_import_upwards_and_circles_are_found() {
    let faults_of = |files: &[(&str, &str)]| {
        let files = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned()));
        faults(&files.collect())
    };
    let down = [
        ("lib.rs", "pub mod engine; pub mod ops;"),
        ("engine/mod.rs", "mod queue;\nmod work;\npub use queue::Queue;"),
        (
            "engine/queue.rs",
            "use super::work::{self, Work};\n// use super::Queue;\nfn f() { crate::ops::g() }",
        ),
        (
            "engine/work.rs",
            "pub(in crate::engine) struct Work;\n#[cfg(test)]\nmod tests { use super::super::queue::Queue; }",
        ),
        ("ops/mod.rs", "pub fn g() {}"),
        (
            "bin/trainer/main.rs",
            "mod commands;\nuse inform::engine::Queue;\nfn main() { commands::run() }",
        ),
        ("bin/trainer/commands.rs", "use inform::ops::g;"),
    ];
    assert_eq!(faults_of(&down), Vec::<String>::new());
    let with = |file: &'static str, text: &'static str| {
        let others = down.into_iter().filter(|(other, _)| *other != file);
        faults_of(&others.chain([(file, text)]).collect::<Vec<_>>())
    };
    let upwards = with("ops/mod.rs", "use crate::engine::Queue;");
    assert!(
        upwards.contains(&"`ops` imports `engine`, which stands above it".to_owned()),
        "{upwards:?}"
    );
    for text in ["use super::{queue::Queue as Other, Thing};", "fn f() -> super::queue::Queue {}"] {
        let circle = with("engine/work.rs", text);
        assert!(
            circle.iter().any(|fault| fault.starts_with("files in a circle: engine/")),
            "{circle:?}"
        );
    }
    let facade = with("engine/work.rs", "use crate::engine::Queue;");
    assert!(facade.iter().any(|fault| fault.contains("engine/mod.rs")), "{facade:?}");
    let folders = faults_of(&[
        ("ops/mod.rs", "mod cpu;\nmod error;"),
        ("ops/error.rs", ""),
        ("ops/cpu/mod.rs", "use crate::ops::error::Error;"),
        ("ops/device.rs", "use super::cpu::CpuOps;"),
    ]);
    assert_eq!(folders.len(), 1, "{folders:?}");
    assert!(folders[0].starts_with("folders in a circle: ops -> ops/cpu -> ops"), "{folders:?}");
    let program = with("bin/trainer/commands.rs", "use crate::Arguments;");
    assert!(program.iter().any(|fault| fault.contains("bin/trainer/main.rs")), "{program:?}");
}
