//! `nuage check`.

use std::path::Path;

use common::{Declared, Problem};

use crate::output::{Done, Output, complain, count, write_all};

/// Prints every problem; exit code 1 when one of them is an error.
pub(crate) fn check(config: &Path, output: &Output) -> anyhow::Result<Done> {
    let (problems, summary) = match Declared::open(config) {
        Ok(declared) => {
            let registry = declared.registry();
            let summary = format!(
                "{} in {}",
                count(registry.site_count(), "site"),
                count(registry.zones.len(), "zone")
            );
            (super::problems(&declared), Some(summary))
        }
        Err(problems) => (problems, None),
    };
    let errors = problems.iter().filter(|problem| problem.is_error()).count();
    let warnings = problems.len() - errors;
    let found = serde_json::json!({ "errors": errors, "warnings": warnings, "problems": problems });
    output.print(&found, || {
        // Problems go where a shell can tell them from results.
        if let Err(error) = complain(&problems) {
            tracing::debug!(%error, "standard error is closed");
        }
        let verdict = match (errors, warnings) {
            (0, 0) => "ok".to_owned(),
            (0, warnings) => format!("ok, with {}", count(warnings, "warning")),
            (errors, 0) => count(errors, "error"),
            (errors, warnings) => {
                format!("{}, {}", count(errors, "error"), count(warnings, "warning"))
            }
        };
        match summary.filter(|_| errors == 0) {
            Some(summary) => format!("{verdict}: {summary}\n"),
            None => format!("{verdict}\n"),
        }
    })?;
    Ok(if errors == 0 {
        Done::Well
    } else {
        Done::WithProblems
    })
}

/// Refuses to go on with problems, printing them.
pub(crate) fn refuse(problems: &[Problem], output: &Output, what: &str) -> anyhow::Result<Done> {
    output.print(
        &serde_json::json!({ "error": what, "problems": problems }),
        || {
            let lines: String = problems
                .iter()
                .map(|problem| format!("{problem}\n"))
                .collect();
            write_all(std::io::stderr(), &format!("{lines}error: {what}\n")).unwrap_or_default();
            String::new()
        },
    )?;
    Ok(Done::WithProblems)
}
