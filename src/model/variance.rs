//! How far values lie from their mean.

/// Root of the mean squared deviation from the mean; 0 of nothing.
pub(super) fn standard_deviation(values: &[f64]) -> f64 {
    variance(values).sqrt()
}

/// Mean squared deviation from the mean, `1/n sum (x - mean)^2`; 0 of nothing.
pub fn variance(values: &[f64]) -> f64 {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count
}
