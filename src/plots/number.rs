//! Numbers as people read them.

/// Three significant digits; thousands and millions as `12.5k` and `3.2M`; tiny and huge ones with an exponent.
pub fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let (size, unit) = match value.abs() {
        size if !(1e-4..1e12).contains(&size) => return format!("{value:.1e}"),
        size if size >= 999.5e6 => (value / 1e9, "G"),
        size if size >= 999.5e3 => (value / 1e6, "M"),
        size if size >= 9_999.5 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let before = size.abs().log10().floor() as i32;
    let decimals = (2 - before).clamp(0, 6) as usize;
    let text = format!("{size:.decimals$}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{}{unit}", text.replacen('-', "\u{2212}", 1))
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn numbers_are_short_and_keep_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.25, "0.25"),
            (0.123_456, "0.123"),
            (0.001_234, "0.00123"),
            (-1.5, "\u{2212}1.5"),
            (41.83, "41.8"),
            (100.0, "100"),
            (1234.0, "1234"),
            (12_500.0, "12.5k"),
            (120_000.0, "120k"),
            (999_900.0, "1M"),
            (3.2e6, "3.2M"),
            (0.000_012, "1.2e-5"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
