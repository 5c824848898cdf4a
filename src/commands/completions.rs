//! `nuage completions`.

use std::io;

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::{
    args::Args,
    output::{Done, Output, write_all},
};

/// Prints the completions of a shell.
pub(crate) fn print(shell: Shell, _output: &Output) -> anyhow::Result<Done> {
    let mut script = Vec::new();
    generate(shell, &mut Args::command(), "nuage", &mut script);
    write_all(io::stdout(), &String::from_utf8(script)?)?;
    Ok(Done::Well)
}
