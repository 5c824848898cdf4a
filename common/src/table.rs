//! Strict reading of TOML tables: every key known, every value of its type, every problem kept with
//! its place. Reading goes on after a problem so that all are reported at once.

use std::{fmt::Display, ops::Range, path::Path, sync::Arc};

use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use crate::problem::{Lines, Position, Problem, Severity};

/// A text being read and the problems found in it so far.
pub(crate) struct Reading<'t> {
    file: Arc<Path>,
    lines: Lines<'t>,
    /// Where the piece being read starts in the text.
    base: usize,
    pub(crate) problems: Vec<Problem>,
}

impl<'t> Reading<'t> {
    pub(crate) fn of(file: &Path, text: &'t str) -> Self {
        Self {
            file: file.into(),
            lines: Lines::of(text),
            base: 0,
            problems: Vec::new(),
        }
    }

    /// Parses the piece of the text that starts at `base`, and reads from it until the next one is
    /// parsed; syntax errors become problems and yield no table.
    pub(crate) fn document<'d>(
        &mut self,
        base: usize,
        piece: &'d str,
    ) -> Option<Spanned<DeTable<'d>>> {
        self.base = base;
        let (table, errors) = DeTable::parse_recoverable(piece);
        for error in &errors {
            let at = error.span().map_or(0, |span| span.start);
            self.error(self.base + at, error.message().to_owned());
        }
        errors.is_empty().then_some(table)
    }

    /// Where something of the piece being read stands in the text.
    fn place(&self, span: Range<usize>) -> usize {
        self.base + span.start
    }

    pub(crate) fn position(&self, at: usize) -> Position {
        self.lines.position(at)
    }

    pub(crate) fn error(&mut self, at: usize, message: impl Into<String>) {
        self.report(Severity::Error, at, message.into());
    }

    pub(crate) fn error_at(&mut self, position: Position, message: String) {
        self.problem(Severity::Error, position, message);
    }

    pub(crate) fn warning(&mut self, at: usize, message: impl Into<String>) {
        self.report(Severity::Warning, at, message.into());
    }

    fn report(&mut self, severity: Severity, at: usize, message: String) {
        self.problem(severity, self.position(at), message);
    }

    fn problem(&mut self, severity: Severity, position: Position, message: String) {
        self.problems.push(Problem {
            severity,
            file: Arc::clone(&self.file),
            position: Some(position),
            message,
        });
    }

    /// Whether any problem is an error.
    pub(crate) fn failed(&self) -> bool {
        self.problems.iter().any(Problem::is_error)
    }
}

/// A value with the byte offset where it stands.
#[derive(Clone, Debug)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) at: usize,
}

/// One table whose keys are all known.
pub(crate) struct Table<'d> {
    table: &'d DeTable<'d>,
    /// Where the table starts, for what is missing from it.
    pub(crate) at: usize,
}

impl<'d> Table<'d> {
    /// Wraps a table; keys that are not in `known` become problems naming the nearest one.
    pub(crate) fn strict(
        table: &'d DeTable<'d>,
        span: Range<usize>,
        known: &[&str],
        reading: &mut Reading<'_>,
    ) -> Self {
        for key in table.keys() {
            let name: &str = key.get_ref();
            if !known.contains(&name) {
                let message = match nearest(name, known) {
                    Some(near) => format!("unknown key \"{name}\": did you mean \"{near}\"?"),
                    None => format!(
                        "unknown key \"{name}\": known here are {}",
                        known.join(", ")
                    ),
                };
                reading.error(reading.place(key.span()), message);
            }
        }
        Self {
            table,
            at: reading.place(span),
        }
    }

    fn get(&self, key: &str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.table.get(key)
    }

    pub(crate) fn string(&self, key: &str, reading: &mut Reading<'_>) -> Option<At<&'d str>> {
        let value = self.get(key)?;
        as_string(key, value, reading)
    }

    pub(crate) fn boolean(&self, key: &str, reading: &mut Reading<'_>) -> Option<bool> {
        let value = self.get(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            mismatch(key, "true or false", value, reading);
        }
        found
    }

    /// An integer within `range`.
    pub(crate) fn integer(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
        reading: &mut Reading<'_>,
    ) -> Option<u64> {
        let value = self.get(key)?;
        let Some(integer) = value.get_ref().as_integer() else {
            mismatch(key, "an integer", value, reading);
            return None;
        };
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        within(key, number, &range, value, reading)
    }

    /// A decimal number within `range`; an integer is one too.
    pub(crate) fn decimal(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<f64>,
        reading: &mut Reading<'_>,
    ) -> Option<f64> {
        let value = self.get(key)?;
        let number: Option<f64> = match value.get_ref() {
            DeValue::Float(float) => float.as_str().parse().ok(),
            DeValue::Integer(integer) => integer.as_str().parse().ok(),
            _ => {
                mismatch(key, "a number", value, reading);
                return None;
            }
        };
        within(key, number, &range, value, reading)
    }

    /// The value as a string when it is one, without a word when it is not.
    pub(crate) fn quiet_string(&self, key: &str) -> Option<&'d str> {
        self.get(key)?.get_ref().as_str()
    }

    /// A table of strings whose keys are the writer's own.
    pub(crate) fn map(
        &self,
        key: &str,
        reading: &mut Reading<'_>,
    ) -> Vec<(At<&'d str>, At<&'d str>)> {
        let Some(table) = self
            .get(key)
            .and_then(|value| as_table(key, value, reading))
        else {
            return Vec::new();
        };
        table
            .iter()
            .filter_map(|(name, value)| {
                let name = At {
                    value: &**name.get_ref(),
                    at: reading.place(name.span()),
                };
                Some((name.clone(), as_string(name.value, value, reading)?))
            })
            .collect()
    }

    /// The value as an integer when it is one, without a word when it is not.
    pub(crate) fn quiet_integer(&self, key: &str) -> Option<i64> {
        let integer = self.get(key)?.get_ref().as_integer()?;
        i64::from_str_radix(integer.as_str(), integer.radix()).ok()
    }

    /// A list of strings; empty when the key is absent.
    pub(crate) fn strings(&self, key: &str, reading: &mut Reading<'_>) -> Vec<At<&'d str>> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        match value.get_ref() {
            DeValue::Array(items) => items
                .iter()
                .filter_map(|item| as_string(key, item, reading))
                .collect(),
            _ => {
                mismatch(key, "a list of strings, such as [\"one\"]", value, reading);
                Vec::new()
            }
        }
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// A table inside this one.
    pub(crate) fn table(
        &self,
        key: &str,
        known: &[&str],
        reading: &mut Reading<'_>,
    ) -> Option<Self> {
        let value = self.get(key)?;
        as_table(key, value, reading).map(|t| Self::strict(t, value.span(), known, reading))
    }

    /// The named tables inside one: `[key.name]`, each with the place of its name.
    pub(crate) fn named_tables(
        &self,
        key: &str,
        known: &[&str],
        reading: &mut Reading<'_>,
    ) -> Vec<(At<&'d str>, Self)> {
        let Some(outer) = self
            .get(key)
            .and_then(|value| as_table(key, value, reading))
        else {
            return Vec::new();
        };
        outer
            .iter()
            .filter_map(|(name, value)| {
                let inner = as_table(name.get_ref(), value, reading)?;
                let inner = Self::strict(inner, name.span(), known, reading);
                let name = At {
                    value: &**name.get_ref(),
                    at: inner.at,
                };
                Some((name, inner))
            })
            .collect()
    }

    /// The tables of an array: `[[key]]`.
    pub(crate) fn array_of_tables(
        &self,
        key: &str,
        known: &[&str],
        reading: &mut Reading<'_>,
    ) -> Vec<Self> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let DeValue::Array(items) = value.get_ref() else {
            mismatch(
                key,
                &format!("a list of tables: write [[{key}]]"),
                value,
                reading,
            );
            return Vec::new();
        };
        let items: &DeArray<'d> = items;
        items
            .iter()
            .filter_map(|item| {
                let table = as_table(key, item, reading)?;
                Some(Self::strict(table, item.span(), known, reading))
            })
            .collect()
    }
}

fn as_string<'d>(
    key: &str,
    value: &'d Spanned<DeValue<'d>>,
    reading: &mut Reading<'_>,
) -> Option<At<&'d str>> {
    let found = value.get_ref().as_str();
    if found.is_none() {
        mismatch(key, "a string in quotes", value, reading);
    }
    found.map(|text| At {
        value: text,
        at: reading.place(value.span()),
    })
}

fn as_table<'d>(
    key: &str,
    value: &'d Spanned<DeValue<'d>>,
    reading: &mut Reading<'_>,
) -> Option<&'d DeTable<'d>> {
    let found = match value.get_ref() {
        DeValue::Table(table) => Some(table),
        _ => None,
    };
    if found.is_none() {
        mismatch(key, "a table", value, reading);
    }
    found
}

/// The number, if it is one within `range`.
fn within<N: PartialOrd + Display>(
    key: &str,
    number: Option<N>,
    range: &std::ops::RangeInclusive<N>,
    value: &Spanned<DeValue<'_>>,
    reading: &mut Reading<'_>,
) -> Option<N> {
    let found = number.filter(|number| range.contains(number));
    if found.is_none() {
        let (low, high) = (range.start(), range.end());
        reading.error(
            reading.place(value.span()),
            format!("`{key}` must be between {low} and {high}"),
        );
    }
    found
}

fn mismatch(key: &str, wanted: &str, value: &Spanned<DeValue<'_>>, reading: &mut Reading<'_>) {
    let found = match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    reading.error(
        reading.place(value.span()),
        format!("`{key}` must be {wanted}, found {found}"),
    );
}

/// The nearest of `known` to what was written, when near enough to be a slip.
pub(crate) fn nearest<'k>(written: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|key| (strsim::jaro_winkler(&written.to_lowercase(), key), *key))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, key)| key)
}
