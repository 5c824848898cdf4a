//! What was found, and how it is told.

use serde::Serialize;

use crate::output::count;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// As it should be.
    Ok,
    /// Works, but not for everybody or not for ever.
    Warning,
    /// Keeps visitors away.
    Error,
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    /// What it is about, in a word or two.
    pub(super) subject: &'static str,
    /// What was asked of whom.
    pub(super) asked: String,
    /// What came back.
    pub(super) found: String,
    /// What to do; records to write are lines of their own.
    pub(super) cure: Option<String>,
}

impl Finding {
    pub(super) fn ok(
        subject: &'static str,
        asked: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Ok,
            subject,
            asked: asked.into(),
            found: found.into(),
            cure: None,
        }
    }

    pub(super) fn warning(
        subject: &'static str,
        asked: impl Into<String>,
        found: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self::bad(Severity::Warning, subject, asked, found, cure)
    }

    pub(super) fn error(
        subject: &'static str,
        asked: impl Into<String>,
        found: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self::bad(Severity::Error, subject, asked, found, cure)
    }

    pub(super) fn bad(
        severity: Severity,
        subject: &'static str,
        asked: impl Into<String>,
        found: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            cure: Some(cure.into()),
            ..Self::ok(subject, asked, found)
        }
    }
}

/// Everything found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) zone: String,
    pub(super) name: Option<String>,
    pub(super) resolver: String,
    pub(super) findings: Vec<Finding>,
}

impl Report {
    pub(super) fn count(&self, severity: Severity) -> usize {
        self.findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count()
    }

    /// For people: a line each; what is wrong with what was asked and what to do.
    pub(super) fn text(&self) -> String {
        let what = match &self.name {
            Some(name) if name.ends_with(&format!(".{}", self.zone)) => name.clone(),
            Some(name) => format!("{name}, a domain of a site in {}", self.zone),
            None => self.zone.clone(),
        };
        let mut text = format!("{what}, as the resolver {} sees it\n\n", self.resolver);
        // The longest words of each column.
        const SEVERITY: usize = "warning".len();
        const SUBJECT: usize = "name server".len();
        let indent = " ".repeat(SEVERITY + SUBJECT + 4);
        let mut told: Vec<&String> = Vec::new();
        for finding in &self.findings {
            let (word, subject) = (finding.severity.word(), finding.subject);
            text.push_str(&format!(
                "{word:<SEVERITY$}  {subject:<SUBJECT$}  {}\n",
                finding.found
            ));
            let Some(cure) = &finding.cure else {
                continue;
            };
            text.push_str(&format!("{indent}asked: {}\n", finding.asked));
            // Several faults may have one cure, and it may be long.
            if told.contains(&cure) {
                text.push_str(&format!("{indent}cure:  as above\n"));
                continue;
            }
            told.push(cure);
            let mut lines = cure.lines();
            let first = lines.next().unwrap_or_default();
            text.push_str(&format!("{indent}cure:  {first}\n"));
            for line in lines {
                // Ready to be copied: records keep their tabs.
                text.push_str(&format!("{indent}  {line}\n"));
            }
        }
        let (errors, warnings) = (self.count(Severity::Error), self.count(Severity::Warning));
        let verdict = match (errors, warnings) {
            (0, 0) => "nothing is wrong".to_owned(),
            (0, warnings) => format!("no error, {}", count(warnings, "warning")),
            (errors, 0) => count(errors, "error"),
            (errors, warnings) => {
                format!("{}, {}", count(errors, "error"), count(warnings, "warning"))
            }
        };
        text.push_str(&format!("\n{verdict}\n"));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_aligned_and_ends_with_its_verdict() {
        let report = Report {
            zone: "w.example".to_owned(),
            name: Some("alice.w.example".to_owned()),
            resolver: "127.0.0.3".to_owned(),
            findings: vec![
                Finding::ok("parent", "", "example delegates to ns1.w.example"),
                Finding::error(
                    "glue",
                    "a.example (192.0.2.1) for w.example NS",
                    "there is none",
                    "add:\nns1.w.example.\t300\tIN\tA\t192.0.2.10",
                ),
                Finding::warning(
                    "glue",
                    "a.example (192.0.2.1) for w.example NS",
                    "and none here",
                    "add:\nns1.w.example.\t300\tIN\tA\t192.0.2.10",
                ),
            ],
        };
        let want = "alice.w.example, as the resolver 127.0.0.3 sees it\n\
            \n\
            ok       parent       example delegates to ns1.w.example\n\
            error    glue         there is none\n\
            \x20                     asked: a.example (192.0.2.1) for w.example NS\n\
            \x20                     cure:  add:\n\
            \x20                       ns1.w.example.\t300\tIN\tA\t192.0.2.10\n\
            warning  glue         and none here\n\
            \x20                     asked: a.example (192.0.2.1) for w.example NS\n\
            \x20                     cure:  as above\n\
            \n\
            1 error, 1 warning\n";
        assert_eq!(report.text(), want);
    }
}
