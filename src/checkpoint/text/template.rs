//! The chat template: from a conversation to text, as transformers renders it.

use std::io::{self, Write};

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::date::Date;
use super::message::Message;

const NAME: &str = "chat";

/// Instructions of the template's engine that one conversation may take: more than 2,000 turns take.
const FUEL: u64 = 10_000_000;

/// A compiled template.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
}

/// The names of the special tokens in a template.
pub(super) struct SpecialTokens<'a> {
    pub(super) bos: &'a str,
    pub(super) eos: &'a str,
}

impl ChatTemplate {
    /// Compiles a template with the settings and helpers that transformers renders it with. `strftime_now` gives
    /// `date`, whatever the day: a reward must not depend on it.
    ///
    /// # Errors
    /// Why it does not compile.
    pub(super) fn compile(source: &str, date: Date) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        // Python's None cannot be walked through.
        environment
            .add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", move |format: String| {
            date.format(&format).map_err(|error| Error::new(ErrorKind::InvalidOperation, error))
        });
        environment
            .add_template_owned(NAME, without_generation_blocks(source))
            .map_err(|error| format!("{error:#}"))?;
        Ok(Self { environment })
    }

    /// The conversation as the template writes it; with what begins the assistant's next turn where one is to come.
    ///
    /// # Errors
    /// Why the template refuses the messages, or cannot be carried out.
    pub(super) fn render(
        &self,
        messages: &[Message],
        tokens: &SpecialTokens<'_>,
        answer_comes: bool,
    ) -> Result<String, String> {
        let template = self.environment.get_template(NAME).map_err(|error| error.to_string())?;
        let rendered = template.render(context! {
            messages => messages,
            bos_token => tokens.bos,
            eos_token => tokens.eos,
            add_generation_prompt => answer_comes,
            tools => (),
            documents => (),
        });
        rendered.map_err(|error| match error.kind() {
            ErrorKind::OutOfFuel => {
                format!("the chat template took more than {FUEL} steps: does it loop for ever?")
            }
            _ => format!("the chat template failed: {error:#}"),
        })
    }
}

/// The marks by which transformers finds what the assistant wrote are blocks that change nothing.
fn without_generation_blocks(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(begin) = rest.find("{%") {
        let Some(length) = rest[begin..].find("%}") else { break };
        let (before, tag) = (&rest[..begin], &rest[begin..begin + length + 2]);
        let inner = &tag[2..tag.len() - 2];
        result.push_str(before);
        let replaced = match inner.trim_matches(|c: char| c.is_whitespace() || "-+".contains(c)) {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
            _ => tag.to_owned(),
        };
        result.push_str(&replaced);
        rest = &rest[begin + length + 2..];
    }
    result.push_str(rest);
    result
}

/// The filter `tojson` as Hugging Face defines it: Python's `json.dumps`, which, unlike Jinja's own,
/// escapes no character for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let mut json = Vec::new();
    let written = match options.get::<Option<usize>>("indent")? {
        Some(indent) => {
            let indent = vec![b' '; indent];
            let formatter = PrettyFormatter::with_indent(&indent);
            value.serialize(&mut Serializer::with_formatter(&mut json, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut json, OneLine)),
    };
    options.assert_all_used()?;
    let failed = |error: String| Error::new(ErrorKind::BadSerialization, error);
    written.map_err(|error| failed(error.to_string()))?;
    String::from_utf8(json).map(Value::from).map_err(|error| failed(error.to_string()))
}

/// JSON on one line with Python's spaces after commas and colons.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.begin_array_value(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}
