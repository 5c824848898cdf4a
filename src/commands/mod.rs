//! One file for each noun of the command line.

pub(crate) mod ca;
pub(crate) mod capacity;
pub(crate) mod check;
pub(crate) mod completions;
mod delegation;
pub(crate) mod doctor;
mod keys;
pub(crate) mod running;
pub(crate) mod site;
pub(crate) mod uninstall;
pub(crate) mod zone;

use std::path::Path;

use common::{Declared, Problem};
use proxy::certificates;

use crate::output::complain;

/// Everything wrong in the files: what they say, and the certificates they name.
pub(crate) fn problems(declared: &Declared) -> Vec<Problem> {
    let mut problems = declared.problems();
    for zone in declared.registry().zones.iter() {
        let checked = zone
            .certificate
            .as_ref()
            .map(|files| certificates::check(files, zone.origin.as_str()));
        if let Some(Err(error)) = checked {
            problems.push(Problem::whole_file(
                &zone.file,
                format!("[certificate]: {error}"),
            ));
        }
    }
    problems
}

/// Reads the files as they are; problems of `nuage.toml` itself end a command.
fn open(config: &Path) -> anyhow::Result<Declared> {
    open_with(Declared::open, config)
}

/// The same, as the command wants it.
fn open_with(
    how: impl Fn(&Path) -> Result<Declared, Vec<Problem>>,
    config: &Path,
) -> anyhow::Result<Declared> {
    how(config).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("the configuration can't be used:\n{}", lines.join("\n"))
    })
}

/// Says on standard error when what is shown is not all there is.
fn complain_of_errors(declared: &Declared) -> std::io::Result<()> {
    let errors: Vec<Problem> = declared
        .problems()
        .into_iter()
        .filter(Problem::is_error)
        .collect();
    complain(&errors)
}
