//! The imports of Rust files, read from their text: every path of a `use` or of an expression that leads to another file.

use std::collections::{BTreeMap, BTreeSet};

/// A module's path from the crate's root; programs are modules of `bin`.
type Module = Vec<String>;

/// For each file of `files` (path below `src` to text) the files that it imports. Test modules import what they like.
pub(super) fn imports(files: &BTreeMap<String, String>) -> BTreeMap<String, BTreeSet<String>> {
    let modules: BTreeMap<Module, &str> =
        files.keys().map(|file| (module(file), file.as_str())).collect();
    let imports = files.iter().map(|(file, text)| {
        let this = module(file);
        let mut found = BTreeSet::new();
        for path in paths(&without_tests(&without_comments(text))) {
            let Some(absolute) = absolute(&path, &this, &modules) else { continue };
            let target = (0..=absolute.len()).rev().find_map(|end| modules.get(&absolute[..end]));
            found
                .extend(target.filter(|target| *target != file).map(|target| (*target).to_owned()));
        }
        (file.clone(), found)
    });
    imports.collect()
}

/// The module that a file is.
fn module(file: &str) -> Module {
    let mut names: Module = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if names.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        names.pop();
    }
    names
}

/// A path from the crate's root; `None` where it leads out of the crate, or names what is in scope.
fn absolute(path: &[String], this: &[String], modules: &BTreeMap<Module, &str>) -> Option<Module> {
    let is_program = this.first().is_some_and(|first| first == "bin");
    let joined = |start: &[String], rest: &[String]| [start, rest].concat();
    match path[0].as_str() {
        "crate" if is_program => Some(joined(&this[..2], &path[1..])),
        "crate" => Some(path[1..].to_vec()),
        "inform" if is_program => Some(path[1..].to_vec()),
        "self" => Some(joined(this, &path[1..])),
        "super" => {
            let above = path.iter().take_while(|segment| *segment == "super").count();
            Some(joined(&this[..this.len().checked_sub(above)?], &path[above..]))
        }
        child => {
            let child = joined(this, &[child.to_owned()]);
            modules.contains_key(&child).then(|| joined(&child, &path[1..]))
        }
    }
}

fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).fold(
        String::new(),
        |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        },
    )
}

/// Without the items that only tests are compiled with, and without `pub(in path)`.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(start) =
        ["#[cfg(test)]", "#[cfg(all(test"].iter().filter_map(|a| rest.find(a)).min()
    {
        kept.push_str(&rest[..start]);
        let item = &rest[start..];
        let end = item.find([';', '{']).map_or(item.len(), |at| match item.as_bytes()[at] {
            b';' => at + 1,
            _ => at + block(&item[at..]),
        });
        rest = &item[end..];
    }
    kept.push_str(rest);
    let mut parts = kept.split("pub(in ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once(')').map_or(part, |(_, rest)| rest))
}

/// Bytes of the block in braces that a text begins with.
fn block(text: &str) -> usize {
    let mut depth = 0;
    for (at, letter) in text.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

/// Every path of at least two segments; a group of imports gives one for each of its leaves.
fn paths(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_word) {
        rest = path(&rest[start..], &[], &mut found);
    }
    found
}

fn is_word(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

/// Reads the path that `text` begins with, behind `prefix`; gives the text after it.
fn path<'a>(text: &'a str, prefix: &[String], found: &mut Vec<Vec<String>>) -> &'a str {
    let end = text.find(|letter| !is_word(letter)).unwrap_or(text.len());
    let segments = [prefix, &[text[..end].to_owned()]].concat();
    let rest = &text[end..];
    let Some(behind) = rest.strip_prefix("::") else {
        if segments.len() > 1 {
            found.push(segments);
        }
        return rest;
    };
    if let Some(group) = behind.strip_prefix('{') {
        let end = block(behind);
        leaves(&group[..end.saturating_sub(2)], &segments, found);
        return &behind[end..];
    }
    if behind.starts_with(is_word) {
        return path(behind, &segments, found);
    }
    // `*`, or generic arguments.
    found.push(segments);
    behind
}

/// Reads the members of a group.
fn leaves(group: &str, prefix: &[String], found: &mut Vec<Vec<String>>) {
    let mut rest = group;
    while let Some(start) = rest.find(is_word) {
        rest = path(&rest[start..], prefix, found);
        // `as name` gives no path of its own.
        if let Some(alias) = rest.strip_prefix(" as ") {
            rest = &alias[alias.find(',').unwrap_or(alias.len())..];
        }
    }
}
