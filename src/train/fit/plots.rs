//! The log of a training as plots.

use serde_json::Value;

use crate::plots::{Size, Theme, TrainingCurve, TrainingCurves};

/// Folder of the plots in a checkpoint.
const FOLDER: &str = "plots";

/// Names and bytes of the plots of a training to the folder `name`, with these records in its log. Of a curve that a
/// head does not have there is none.
///
/// # Errors
/// A record that is none of a training's, or a plot that cannot be drawn.
pub(in crate::train) fn draw(name: &str, log: &[Value]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut curves = TrainingCurves { training: name.to_owned(), ..TrainingCurves::default() };
    for record in log {
        match record.get("evaluation") {
            None => curves.steps.push(serde_json::from_value(record.clone())?),
            Some(evaluation) => {
                let step = record["step"].as_u64().unwrap_or_default();
                curves.evaluations.push((step, serde_json::from_value(evaluation.clone())?));
            }
        }
    }
    let mut files = Vec::new();
    for curve in TrainingCurve::ALL {
        if let Some(drawing) = curves.draw(curve, Size::CURVE)? {
            let file = format!("{FOLDER}/{}.svg", curve.name());
            files.push((file, drawing.standalone(Theme::Auto).into_bytes()));
        }
    }
    Ok(files)
}
