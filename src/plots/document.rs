//! A drawing as an SVG document: its size, its words for those who do not see it, its stylesheet.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;

use super::error::PlotError;
use super::palette::Theme;
use super::palette::{properties, rules};
use super::size::Size;

/// Drawing units to a pixel: plotters draws at whole units, and curves need finer ones than pixels.
pub(super) const SCALE: u32 = 4;

/// A finished drawing.
#[derive(Debug, Clone)]
pub struct Drawing {
    /// What it shows.
    pub title: String,
    /// Its numbers, in words.
    pub description: String,
    size: Size,
    shapes: String,
}

impl Drawing {
    /// Takes what plotters wrote and the shapes that are to lie over it.
    pub(super) fn new(
        title: String,
        description: String,
        size: Size,
        written: &str,
        over: &str,
    ) -> Result<Self, PlotError> {
        let shapes = written
            .split_once(">\n")
            .and_then(|(_, rest)| rest.trim_end().strip_suffix("</svg>"))
            .ok_or_else(|| PlotError("the drawing is no SVG".to_owned()))?;
        Ok(Self { title, description, size, shapes: format!("{shapes}{over}") })
    }

    /// A file of its own.
    pub fn standalone(&self, theme: Theme) -> String {
        let style = format!("{}{}", properties(".plot", theme), rules(SCALE));
        let ground = "<rect width=\"100%\" height=\"100%\" fill=\"#FFFFFF\"/>\n";
        self.write("plot", &format!("<style>\n{style}</style>\n{ground}"))
    }

    /// Writes it as a file of its own, `NAME.svg`, into a folder, which is made where it is missing.
    ///
    /// # Errors
    /// A folder or file that cannot be written.
    pub fn save(&self, folder: &Path, name: &str) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let file = folder.join(format!("{name}.svg"));
        let text = self.standalone(Theme::Auto);
        std::fs::write(&file, text).with_context(|| file.display().to_string())
    }

    /// An element of a page whose stylesheet has [`page_style`]. `id` is an identifier that the page has once.
    pub fn inline(&self, id: &str) -> String {
        self.write(id, "")
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.title.len() + self.description.len() + self.shapes.len()
    }

    fn write(&self, id: &str, before: &str) -> String {
        let Size { width, height } = self.size;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {} {}\" role=\"img\" aria-labelledby=\"{id}-title {id}-text\">\n",
            width * SCALE,
            height * SCALE,
        );
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<title id=\"{id}-title\">{}</title>\n<desc id=\"{id}-text\">{}</desc>\n{before}{}</svg>\n",
            escape(&self.title),
            escape(&self.description),
            self.shapes,
        );
        svg
    }
}

/// What the stylesheet of a page with plots must have.
pub fn page_style() -> String {
    format!("{}{}", properties(":root", Theme::Auto), rules(SCALE))
}

/// Text as XML has it. Characters that XML 1.0 cannot hold become the replacement character.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\t' | '\n' | '\r' => escaped.push(' '),
            '\0'..='\u{1F}' | '\u{FFFE}' | '\u{FFFF}' => escaped.push('\u{FFFD}'),
            other => escaped.push(other),
        }
    }
    escaped
}
