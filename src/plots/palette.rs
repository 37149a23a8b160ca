//! Colours of the plots, for light and for dark surroundings.
//!
//! A shape is drawn in the colour for light ground, as its attribute. The stylesheet finds shapes by that
//! attribute and gives them the custom property of their ink, which the surroundings set: so a plot is
//! whole without a stylesheet, and changes with the theme where there is one. The inks for data are from
//! the palette of Okabe and Ito, which people with any kind of colour vision can tell apart; what matters is told by
//! shape or dash as well.

use std::fmt::Write as _;

use plotters::style::RGBColor;

/// What is drawn with a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// Ground.
    Paper,
    /// Titles, and numbers beside points.
    Text,
    /// Labels of axes.
    Label,
    /// Grid and axes.
    Grid,
    /// The statistic itself; SFT answers on the map.
    First,
    /// A second statistic on the same axes.
    Second,
    /// What the statistic is on unchanged answers: dashed.
    Null,
    /// Alerts; the policy's answers on the map.
    Alert,
}

/// Ink, name of its custom property, light colour, dark colour.
const INKS: [(Ink, &str, [u8; 3], [u8; 3]); 8] = [
    (Ink::Paper, "paper", [0xFF, 0xFF, 0xFF], [0x16, 0x1B, 0x22]),
    (Ink::Text, "text", [0x1B, 0x23, 0x2C], [0xE6, 0xEA, 0xEE]),
    (Ink::Label, "label", [0x59, 0x63, 0x6E], [0x9E, 0xA8, 0xB3]),
    (Ink::Grid, "grid", [0xE1, 0xE5, 0xEA], [0x2C, 0x34, 0x3E]),
    (Ink::First, "first", [0x00, 0x72, 0xB2], [0x5B, 0xB4, 0xEE]),
    (Ink::Second, "second", [0x00, 0x86, 0x62], [0x3D, 0xC7, 0x9E]),
    (Ink::Null, "null", [0x6F, 0x79, 0x84], [0x9A, 0xA4, 0xAF]),
    (Ink::Alert, "alert", [0xC6, 0x4F, 0x00], [0xFF, 0x9A, 0x52]),
];

/// Surroundings that a plot is drawn for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Theme {
    /// As the reader's system or browser prefers.
    #[default]
    Auto,
    /// Light ground.
    Light,
    /// Dark ground.
    Dark,
}

impl Ink {
    /// Its colour on light ground.
    pub(super) fn color(self) -> RGBColor {
        let [red, green, blue] = INKS[self as usize].2;
        RGBColor(red, green, blue)
    }

    /// The same as text.
    pub(super) fn hexadecimal(self) -> String {
        hexadecimal(INKS[self as usize].2)
    }
}

/// Rules that give every shape of an `svg.plot` the custom property of its ink. `scale` is the number of drawing
/// units to a pixel.
pub(super) fn rules(scale: u32) -> String {
    let mut css = String::new();
    for (ink, name, light, _) in INKS {
        let light = hexadecimal(light);
        let dash = if ink == Ink::Null {
            format!(";stroke-dasharray:{} {}", 5 * scale, 3 * scale)
        } else {
            String::new()
        };
        // Writing to a string cannot fail.
        let _ = writeln!(css, ".plot [fill=\"{light}\"]{{fill:var(--plot-{name})}}");
        let _ = writeln!(css, ".plot [stroke=\"{light}\"]{{stroke:var(--plot-{name}){dash}}}");
    }
    css.push_str(".plot polyline{stroke-linejoin:round}\n.plot .hit{fill:transparent}\n");
    let _ = writeln!(css, ".plot .hit:hover{{fill:var(--plot-label);fill-opacity:.15}}");
    css
}

/// The custom properties, set on `selector`.
pub(super) fn properties(selector: &str, theme: Theme) -> String {
    let block = |dark: bool| {
        let mut css = format!("{selector}{{");
        for (_, name, light, darkened) in INKS {
            let _ =
                write!(css, "--plot-{name}:{};", hexadecimal(if dark { darkened } else { light }));
        }
        css.push_str("}\n");
        css
    };
    match theme {
        Theme::Light => block(false),
        Theme::Dark => block(true),
        Theme::Auto => {
            format!("{}@media (prefers-color-scheme:dark){{{}}}\n", block(false), block(true))
        }
    }
}

/// As plotters writes it.
fn hexadecimal([red, green, blue]: [u8; 3]) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative luminance and contrast of WCAG 2.2.
    fn contrast(a: [u8; 3], b: [u8; 3]) -> f64 {
        let luminance = |color: [u8; 3]| {
            let [red, green, blue] = color.map(|value| {
                let value = f64::from(value) / 255.0;
                if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
            });
            0.2126 * red + 0.7152 * green + 0.0722 * blue
        };
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn every_ink_is_where_its_number_says_and_no_two_look_alike() {
        for (number, (ink, _, light, _)) in INKS.into_iter().enumerate() {
            assert_eq!(ink as usize, number);
            assert!(INKS.iter().filter(|other| other.2 == light).count() == 1);
        }
    }

    #[test]
    fn data_and_text_stand_out_from_the_ground() {
        let (_, _, light_paper, dark_paper) = INKS[Ink::Paper as usize];
        for (ink, name, light, dark) in INKS {
            let least = match ink {
                Ink::Paper | Ink::Grid => continue,
                Ink::Text | Ink::Label => 4.5,
                _ => 3.0,
            };
            for (color, paper) in [(light, light_paper), (dark, dark_paper)] {
                let found = contrast(color, paper);
                assert!(found >= least, "{name}: {found}");
            }
        }
    }
}
