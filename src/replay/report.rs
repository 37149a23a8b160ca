//! What a replay found: as a table, as files, as plots.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use crate::monitor::alerts::Alert;
use crate::monitor::early_stop::significant;
use crate::monitor::{Evaluation, Latest, RunView};
use crate::plots::{Curve, Drawing, MapProjection, RunCurves, Size, farthest, project};

/// File of the evaluations in the output folder.
const EVALUATIONS_FILE: &str = "evaluations.jsonl";

/// What came of a replay. Displayed as a table, with a line for each alert.
#[derive(Debug)]
pub struct Replayed {
    /// One a window.
    pub evaluations: Vec<Evaluation>,
    /// The run at its end.
    pub run: RunView,
    /// Its last window.
    pub latest: Option<Latest>,
    /// Answers that could not be scored, with file, line and reason.
    pub skipped: Vec<String>,
}

impl Replayed {
    /// Writes the evaluations into a folder, which is made where it is missing.
    ///
    /// # Errors
    /// A folder or file that cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let mut rows = String::new();
        for evaluation in &self.evaluations {
            rows.push_str(&serde_json::to_string(evaluation)?);
            rows.push('\n');
        }
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let file = folder.join(EVALUATIONS_FILE);
        std::fs::write(&file, &rows).with_context(|| file.display().to_string())
    }

    /// Draws the page's plots into a folder, which is made where it is missing: each curve as
    /// `NAME.svg`, the map of the last window as `latents.svg` (PCA) and `latents-tsne.svg`, which takes
    /// seconds.
    ///
    /// # Errors
    /// A plot that cannot be drawn, a folder or file that cannot be written.
    pub fn plot(&self, folder: &Path) -> anyhow::Result<()> {
        let draw = |name: &str, drawing: Drawing| drawing.save(folder, name);
        let curves = RunCurves::of(&self.run, self.evaluations.clone());
        for curve in Curve::ALL {
            draw(curve.name(), curves.draw(curve, Size::CURVE, true)?)?;
        }
        let Some(latest) = &self.latest else { return Ok(()) };
        let marked = farthest(latest);
        for (name, projection) in
            [("latents", MapProjection::Pca), ("latents-tsne", MapProjection::Tsne)]
        {
            let map = project(&self.run.id, latest, &marked, projection);
            draw(name, map.draw(Size::MAP, true)?)?;
        }
        Ok(())
    }
}

/// Columns of the table: field of an evaluation, and heading. One that is empty throughout is left out.
const COLUMNS: [(&str, &str); 17] = [
    ("number", "#"),
    ("last_step", "step"),
    ("samples", "answers"),
    ("csi_per_sample", "CSI/n"),
    ("csi_null_p95", "null 95%"),
    ("csi_ratio", "change"),
    ("energy", "energy"),
    ("energy_null_p95", "null 95%"),
    ("energy_p", "p"),
    ("mop", "MOP"),
    ("dispersion_ratio", "dispersion"),
    ("distinct_ratio", "distinct"),
    ("paired_distance", "paired"),
    ("reward_mean", "reward"),
    ("tokens_mean", "tokens"),
    ("early_stop", "stop"),
    ("alerts", "alerts"),
];

impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<Value> = self
            .evaluations
            .iter()
            .map(|row| serde_json::to_value(row).unwrap_or_default())
            .collect();
        let columns =
            COLUMNS.iter().filter(|(field, _)| rows.iter().any(|row| !row[field].is_null()));
        let columns: Vec<Vec<String>> = columns
            .map(|(field, heading)| {
                let cells = rows.iter().map(|row| cell(&row[field]));
                std::iter::once((*heading).to_owned()).chain(cells).collect()
            })
            .collect();
        for line in 0..=rows.len() {
            for column in &columns {
                let width = column.iter().map(String::len).max().unwrap_or_default();
                write!(f, "{:>width$}  ", column[line])?;
            }
            writeln!(f)?;
        }
        for alert in &self.run.alerts {
            writeln!(f, "{}", line(alert))?;
        }
        if let Some(stopped) = &self.run.stopped_at {
            let reason = stopped.reason.as_deref().unwrap_or_default();
            writeln!(f, "early stop at evaluation {}: {reason}", stopped.number)?;
        }
        if let Some(reason) = self.run.last_evaluation.iter().find_map(|row| row.reason.as_deref())
        {
            writeln!(f, "the last evaluation: {reason}")?;
        }
        Ok(())
    }
}

/// An alert in a line. Each answer has the file as its request, and its line as its number there.
fn line(alert: &Alert) -> String {
    let Alert { kind, severity, statistic, value, null_mean, null_quantile, .. } = alert;
    let number = alert.since_evaluation;
    let since = match alert.since_step {
        Some(step) => format!("step {step} (evaluation {number})"),
        None => format!("evaluation {number}"),
    };
    let end = if alert.resolved_at.is_some() { "ended" } else { "lasts" };
    let [value, null_mean, null_quantile] =
        [value, null_mean, null_quantile].map(|&value| significant(value));
    let null = match alert.p {
        Some(p) => {
            let p = significant(p);
            format!("null mean {null_mean}, 95 % limit {null_quantile}, p = {p}")
        }
        None => format!("usual {null_mean}, limit {null_quantile}"),
    };
    let severity = severity.name();
    let mut line = format!(
        "alert {} ({severity}) since {since}, {end}: {statistic} = {value} ({null})",
        kind.name()
    );
    if let Some(first) = alert.samples.first() {
        let lines: Vec<String> = alert.samples.iter().map(|one| one.index.to_string()).collect();
        line += &format!("; most outlying: {}, lines {}", first.request, lines.join(", "));
    }
    line
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "STOP".to_owned(),
        Value::Bool(false) => String::new(),
        Value::Number(number) if number.is_f64() => {
            format!("{:.4}", number.as_f64().unwrap_or_default())
        }
        Value::Array(list) => {
            list.iter().map(|one| one.as_str().unwrap_or_default()).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}
