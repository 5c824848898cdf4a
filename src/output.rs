//! What commands print, and how they end.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use common::Problem;
use serde::Serialize;

use crate::args::Format;

/// How a command ended, short of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// Exit code 0.
    Well,
    /// Exit code 1: what is wrong has been printed.
    WithProblems,
    /// The exit code of a command run for the user.
    Code(u8),
}

/// Where a command prints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    /// Prints a value for programs, or the text for people.
    pub(crate) fn print(
        &self,
        value: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> io::Result<()> {
        let printed = match self.format {
            Format::Json => serde_json::to_string_pretty(value)? + "\n",
            Format::Text => text(),
        };
        write_all(io::stdout(), &printed)
    }

    /// The command's exit code; an error is printed with what caused it.
    pub(crate) fn finish(&self, done: anyhow::Result<Done>) -> ExitCode {
        match done {
            Ok(Done::Well) => ExitCode::SUCCESS,
            Ok(Done::WithProblems) => ExitCode::FAILURE,
            Ok(Done::Code(code)) => ExitCode::from(code),
            // Whoever read the output has seen enough.
            Err(error)
                if error
                    .downcast_ref::<io::Error>()
                    .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) =>
            {
                ExitCode::SUCCESS
            }
            Err(error) => {
                let printed = match self.format {
                    Format::Json => {
                        serde_json::json!({ "error": format!("{error:#}") }).to_string() + "\n"
                    }
                    Format::Text => format!("error: {error:#}\n"),
                };
                // Nowhere left to tell of a failure to tell.
                write_all(io::stderr(), &printed).unwrap_or_default();
                ExitCode::FAILURE
            }
        }
    }
}

/// Prints problems to standard error, a line each.
pub(crate) fn complain(problems: &[Problem]) -> io::Result<()> {
    let lines: String = problems
        .iter()
        .map(|problem| format!("{problem}\n"))
        .collect();
    write_all(io::stderr(), &lines)
}

pub(crate) fn write_all(mut to: impl Write, text: &str) -> io::Result<()> {
    to.write_all(text.as_bytes())?;
    to.flush()
}

/// Columns as wide as their widest cell; the last one ragged.
pub(crate) fn table(indent: &str, rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = indent.to_owned();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `1 site`, `2 sites`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}
