//! Evaluations as people read them: one in lines, several side by side in a table.

use std::fmt::{self, Write};

use crate::train::accuracy::{PairAccuracy, PairEvaluation};

impl fmt::Display for PairEvaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, accuracy) in self.parts() {
            let PairAccuracy { pairs, correct, accuracy, interval: (low, high), .. } = accuracy;
            let name = if name == "all" { String::new() } else { format!("{name}: ") };
            if *pairs > 0 {
                writeln!(
                    f,
                    "{name}{correct} of {pairs} pairs = {accuracy:.4}, 95 % interval {low:.4} to {high:.4}"
                )?;
            }
        }
        let PairAccuracy { margin_mean, reward_mean, reward_std, .. } = self.all;
        writeln!(
            f,
            "mean margin {margin_mean:.4}, rewards {reward_mean:.4} +- {reward_std:.4}, calibration error {:.4}",
            self.calibration_error
        )?;
        self.latents.iter().try_for_each(|latents| writeln!(f, "latents: {latents}"))
    }
}

/// Checkpoints side by side, as a Markdown table: accuracies with their 95 % intervals.
pub fn side_by_side(evaluations: &[(String, PairEvaluation)]) -> String {
    let mut table = String::from("| pairs | number |");
    for (name, _) in evaluations {
        let _ = write!(table, " {name} |");
    }
    table.push_str("\n|---|---|");
    table.push_str(&"---|".repeat(evaluations.len()));
    table.push('\n');
    let parts: Vec<Vec<(String, &PairAccuracy)>> =
        evaluations.iter().map(|(_, evaluation)| evaluation.parts().collect()).collect();
    for (row, (name, accuracy)) in parts.first().into_iter().flatten().enumerate() {
        let _ = write!(table, "| {name} | {} |", accuracy.pairs);
        for column in &parts {
            let PairAccuracy { accuracy, interval: (low, high), pairs, .. } = column[row].1;
            if *pairs == 0 {
                table.push_str(" |");
            } else {
                let _ = write!(table, " {accuracy:.3} ({low:.3} to {high:.3}) |");
            }
        }
        table.push('\n');
    }
    let mut figures = |name: &str, figure: &dyn Fn(&PairEvaluation) -> Option<String>| {
        let cells: Vec<Option<String>> =
            evaluations.iter().map(|(_, evaluation)| figure(evaluation)).collect();
        if cells.iter().all(Option::is_none) {
            return;
        }
        let _ = write!(table, "| {name} | |");
        for cell in cells {
            let _ = write!(table, " {} |", cell.unwrap_or_default());
        }
        table.push('\n');
    };
    let number = |value: f64| Some(format!("{value:.3}"));
    figures("calibration error", &|evaluation| number(evaluation.calibration_error));
    figures("mean margin", &|evaluation| number(evaluation.all.margin_mean));
    figures("KL (nats)", &|evaluation| number(evaluation.latents.as_ref()?.kl));
    figures("active units", &|evaluation| {
        let latents = evaluation.latents.as_ref()?;
        Some(format!("{} of {}", latents.active_units, latents.dimension()))
    });
    figures("mean posterior sigma", &|evaluation| number(evaluation.latents.as_ref()?.sigma_mean));
    table
}
