//! What is told about an object, for people and for machines.
use api::age::human;
use jiff::Timestamp;
use serde::Serialize;

/// Whether somebody has to do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// All is as it should be.
    Fine,
    /// Normal: something has to happen first, and nothing hinders it.
    Waiting,
    /// It fails, and is tried again by itself.
    Retrying,
    /// It never ends by itself.
    Stuck,
}

/// A volume that a Pending claim could have, and each rule that speaks against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Candidate {
    pub volume: String,
    /// Empty for one that fits.
    pub refused: Vec<String>,
}

/// The explanation of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// `claim default/web`.
    pub object: String,
    /// One sentence.
    pub state: String,
    pub verdict: Verdict,
    /// A word that stays the same from version to version: `wait-for-first-consumer`.
    pub cause: &'static str,
    /// What a [`Verdict::Waiting`] one waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
    /// Since when it is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// When it is tried again at the latest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_by: Option<Timestamp>,
    /// Further facts, one sentence each.
    pub details: Vec<String>,
    /// Nearest first.
    pub candidates: Vec<Candidate>,
    /// Commands, and sentences that begin with `#`.
    pub fix: Vec<String>,
    /// What could not be read and might have told more.
    pub unread: Vec<String>,
}

/// Rows of the table of candidates that people are shown.
const SHOWN: usize = 20;

impl Answer {
    pub(crate) fn new(verdict: Verdict, cause: &'static str, state: impl Into<String>) -> Self {
        Self {
            object: String::new(),
            state: state.into(),
            verdict,
            cause,
            waiting_for: None,
            since: None,
            retry_by: None,
            details: Vec::new(),
            candidates: Vec::new(),
            fix: Vec::new(),
            unread: Vec::new(),
        }
    }
    pub(crate) fn fine(state: impl Into<String>) -> Self {
        Self::new(Verdict::Fine, "none", state)
    }
    pub(crate) fn stuck(cause: &'static str, state: impl Into<String>) -> Self {
        Self::new(Verdict::Stuck, cause, state)
    }
    pub(crate) fn retrying(cause: &'static str, state: impl Into<String>) -> Self {
        Self::new(Verdict::Retrying, cause, state)
    }
    pub(crate) fn waiting(cause: &'static str, state: impl Into<String>, what: impl Into<String>) -> Self {
        let mut answer = Self::new(Verdict::Waiting, cause, state);
        answer.waiting_for = Some(what.into());
        answer
    }
    #[must_use]
    pub(crate) fn since(mut self, since: Option<Timestamp>) -> Self {
        self.since = since;
        self
    }
    #[must_use]
    pub(crate) fn retry_by(mut self, when: Option<Timestamp>) -> Self {
        self.retry_by = when;
        self
    }
    #[must_use]
    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.details.push(detail.into());
        self
    }
    #[must_use]
    pub(crate) fn fix(mut self, command: impl Into<String>) -> Self {
        self.fix.push(command.into());
        self
    }

    /// How to have something in place of a cloud's driver, on a machine that is not in that cloud.
    #[must_use]
    pub(crate) fn or_stand_in(self, driver: &str) -> Self {
        match in_tree::stand_in_of(driver) {
            Some(word) => self
                .fix(format!("# or, to have local volumes in place of {driver}'s, start holdfast so:"))
                .fix(format!("holdfast up --stand-in {word}")),
            None => self,
        }
    }

    /// Whether nobody has to do anything.
    pub fn is_normal(&self) -> bool {
        matches!(self.verdict, Verdict::Fine | Verdict::Waiting)
    }

    /// As people read it: sentences, the table of candidates, the commands.
    pub fn text(&self, now: Timestamp) -> Vec<String> {
        let mut lines = vec![self.state.clone(), self.outlook(now)];
        lines.extend(self.details.iter().map(|d| format!("- {d}")));
        if let Some(nearest) = self.candidates.first() {
            lines.push(String::new());
            lines.extend(table(&self.candidates));
            if !nearest.refused.is_empty() && !self.is_normal() {
                lines.push(format!("Nearest miss: {}: {}.", nearest.volume, nearest.refused.join("; ")));
            }
        }
        if !self.fix.is_empty() {
            lines.extend([String::new(), "To fix it:".into()]);
            lines.extend(self.fix.iter().map(|f| format!("  {f}")));
        }
        lines.extend(self.unread.iter().map(|u| format!("Not taken into account: {u}.")));
        lines
    }

    fn outlook(&self, now: Timestamp) -> String {
        let ago = |t: Timestamp| human(now.duration_since(t).as_secs().max(0));
        let since = self.since.map(|t| format!(" since {t:.0} ({} ago)", ago(t))).unwrap_or_default();
        match self.verdict {
            Verdict::Fine => "This is normal.".into(),
            Verdict::Waiting => {
                format!("This is normal: it waits for {}{since}.", self.waiting_for.as_deref().unwrap_or("its turn"))
            }
            Verdict::Retrying => match self.retry_by {
                Some(when) if when > now => format!("It fails{since} and is tried again by {when:.0}."),
                _ => format!("It fails{since} and is tried again by itself."),
            },
            Verdict::Stuck => format!("This never ends by itself; it is so{}.", or_unknown(&since)),
        }
    }
}

fn or_unknown(since: &str) -> &str {
    if since.is_empty() { " for an unknown time" } else { since }
}

fn table(candidates: &[Candidate]) -> Vec<String> {
    let width = candidates.iter().take(SHOWN).map(|c| c.volume.chars().count()).max().unwrap_or(0).max("VOLUME".len());
    let row = |name: &str, text: &str| format!("{name:<width$}   {text}");
    let mut lines = vec![row("VOLUME", "REFUSED BECAUSE")];
    for candidate in candidates.iter().take(SHOWN) {
        let text = if candidate.refused.is_empty() { "it fits".into() } else { candidate.refused.join("; ") };
        lines.push(row(&candidate.volume, &text));
    }
    if candidates.len() > SHOWN {
        lines.push(format!("and {} more; -o json has all", candidates.len() - SHOWN));
    }
    lines
}
